import json

import pytest

from imprompt.cli.main import main


def test_report_writes_the_page_and_tells_where(tmp_path, capsys):
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 10, "loss": 0.25}) + "\n")
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "Training loss" in (tmp_path / "report.html").read_text()


def test_a_folder_without_a_run_is_one_red_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code == 1
    assert "holds no run" in capsys.readouterr().err
