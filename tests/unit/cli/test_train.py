"""What `imprompt train` refuses before anything is loaded."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("emoji-plus", "--devices", "2"), "--plan"),
        (("emoji-pluss",), "did you mean 'emoji-plus'"),
        (("emoji-plus", "loop.num_step=3"), "loop.num_steps"),
        (("emoji-plus", "data.source=.", "loop.output=file.txt"), "loop.output is 'file.txt'"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("")
    code, _, err = run("train", *arguments)
    assert code == 1 and words in err and "Traceback" not in err
