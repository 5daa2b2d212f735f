import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from imprompt.core.errors import ImpromptError
from imprompt.training.feedback.report import charts, read_run, thinned, write_report

HOSTILE = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def titles(lines):
    return [chart.split("<title>")[1].split("</title>")[0] for chart in charts(lines)]


def line(step, **figures):
    return {"step": step, **figures}


def training(step):
    return line(
        step, loss=1 / step, gradient_norm=0.5, learning_rate=1e-4, images_per_second=40.0, memory_gigabytes=8.0
    )


def validation(step, gain=0.02, error=0.004):
    return line(
        step,
        **{"validation/loss": 0.3, "validation/loss_error": 0.01},
        **{"validation/reference_gain": gain, "validation/reference_gain_error": error},
        **{f"validation/loss/{part}of2": 0.1 * part for part in (1, 2)},
        **{f"validation/loss/{part}of2_error": 0.01 for part in (1, 2)},
        **{f"validation/reference_gain/{part}of2": 0.01 * part for part in (1, 2)},
    )


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run & co"
    (folder / "sheets").mkdir(parents=True)
    lines = [training(10), validation(10), training(20), validation(20)]
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    for step in (10, 20):
        Image.new("RGB", (4, 4)).save(folder / f"sheets/step-{step:08d}.png")
        (folder / f"checkpoints/step-{step:08d}").mkdir(parents=True)
    record = {"config": {"loop": {"num_steps": 40}, "recipe": HOSTILE}, "environment": {"torch": "2.13"}}
    manifest = {"step": 20, "counters": {}, "record": record, "sha256": {}}
    (folder / "checkpoints/step-00000020/manifest.json").write_text(json.dumps(manifest))
    (folder / "quarantine").mkdir()
    losses = [{"where": str(number), "reason": "cut short" if number else HOSTILE} for number in range(4)]
    (folder / "quarantine/a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in losses))
    return folder


def test_a_report_tells_all_that_a_run_left(run):
    page = Reader(write_report(run).read_text())
    for words in ("20 of 40", "0.02 ± 0.004", "the reference is used", "Quarantine: 4 samples", "cut short", "2.13"):
        assert words in page.text
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert {"sheets/step-00000010.png", "sheets/step-00000020.png", "checkpoints/step-00000020/"} <= set(sources)
    for source in sources:
        assert (run / source).exists()  # nothing from elsewhere
    assert ("src", "sheets/step-00000020.png") in page.attributes  # the latest is shown
    assert page.tags.count("svg") == 8


def test_what_people_wrote_is_shown_as_text(run):
    written = write_report(run).read_text()
    assert HOSTILE not in written
    assert written.count("<script") == 1  # the slider's
    assert HOSTILE in Reader(written).text


def test_curves_are_those_that_the_log_has():
    assert titles([training(1), training(2)]) == [
        "Training loss",
        "Gradient norm",
        "Learning rate",
        "Speed",
        "Memory",
    ]
    assert titles([validation(1)]) == [
        "Reference gain",
        "Validation loss by noise level",
        "Reference gain by noise level",
    ]
    assert titles([line(1, loss=None)]) == []


def test_parts_of_the_schedule_are_told_in_percents():
    chart = next(each for each in charts([validation(1)]) if "Validation loss" in each)
    assert chart.index("0–50") < chart.index("50–100")
    assert "50–100, step 1: 0.2" in chart


@pytest.mark.parametrize(
    ("gain", "said"), [(0.02, "the reference is used"), (0.007, "no use of the reference is seen")]
)
def test_a_gain_within_two_errors_is_no_gain(run, gain, said):
    assert said in write_report(run, [validation(30, gain=gain)]).read_text()


def test_lines_that_are_about_to_be_logged_are_shown(run):
    assert read_run(run, [validation(30)]).lines[-1]["step"] == 30
    assert "30 of 40" in Reader(write_report(run, [line(30)]).read_text()).text


def test_a_step_that_was_measured_again_has_one_point():
    (chart,) = charts([line(0, loss=0.5), line(0, loss=0.25), line(1, loss=0.75)])
    assert "step 0: 0.25" in chart and "step 0: 0.5" not in chart


def test_a_line_cut_short_and_a_damaged_manifest_do_not_stop_a_report(run):
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 30, "los')
    (run / "checkpoints/step-00000030").mkdir()
    (run / "checkpoints/step-00000030/manifest.json").write_text("{")
    record = read_run(run)
    assert record.lines[-1]["step"] == 20
    assert record.environment == {"torch": "2.13"}


@pytest.mark.parametrize(
    "config", ["[1]", '{"loop": 3}', '{"loop": {"num_steps": "<b>"}}', '{"loop": {"num_steps": []}}']
)
@pytest.mark.parametrize(
    "figures",
    [{"validation/loss/abc": 1.0, "validation/loss/1of0": 1.0, "validation/loss/3of2": 1.0}, {"loss": 10**400}],
)
def test_the_folder_of_a_stranger_is_shown_as_far_as_it_makes_sense(tmp_path, config, figures):
    (tmp_path / "config.json").write_text(config)
    lines = (line(1, **figures), line(2, loss=1e308), line(3, loss=-1e308), line(4, loss=0.5), line(10**400, loss=1.0))
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    manifest = tmp_path / "checkpoints" / "step-00000004" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"record": {"config": 1, "environment": []}}')
    page = Reader(write_report(tmp_path).read_text())
    assert "Training loss" in page.text and "Validation loss by noise level" not in page.text


def test_the_resolved_configuration_goes_before_the_checkpoints(run):
    (run / "config.json").write_text(json.dumps({"loop": {"num_steps": 50}}))
    assert "20 of 50" in Reader(write_report(run).read_text()).text


def test_divergence_and_a_sheet_that_failed_are_told(run):
    (run / "diverged-step-00000021.json").write_text("{}")
    (run / "sheets/step-00000020.txt").write_text("There is no contact sheet of step 20: too little memory.")
    notes = read_run(run).notes
    assert len(notes) == 2 and "step 21" in notes[0] and "too little memory" in notes[1]
    assert "too little memory" in write_report(run).read_text()


def test_many_points_become_means_within_their_extremes():
    values = [float(step % 7) for step in range(10_000)]
    curve = thinned(range(10_000), values, name="loss", most=100)
    assert len(curve.places) == len(curve.values) == 100
    assert curve.places == sorted(curve.places)
    assert set(curve.low) == {0.0} and set(curve.high) == {6.0}
    assert all(low <= value <= high for low, value, high in zip(curve.low, curve.values, curve.high, strict=True))
    assert thinned([1, 2], [3.0, 4.0], name="loss").low is None


def test_a_failed_write_leaves_the_old_report(run, monkeypatch):
    old = write_report(run).read_text()
    monkeypatch.setattr("imprompt.training.feedback.report.page", lambda record: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(run)
    assert (run / "report.html").read_text() == old
    assert not list(run.glob(".*"))


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(ImpromptError, match="holds no run"):
        write_report(tmp_path)
