"""`imprompt data`: from files to a manifest, a table and a sheet."""

import resource
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imprompt.core.images import load_image
from imprompt.training.data.manifest import Manifest
from tests.data_formats import tar_of, text_folder

SMALL = ("--resolution", 32, "--bucket-step", 8, "--batch-size", 1)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return text_folder(tmp_path / "pictures", 8)


def test_build_check_show(run, pictures, tmp_path):
    code, out, err = run("data", "build", pictures)
    assert (code, err) == (0, "")
    assert out == "manifest.parquet: 8 samples, 1 of them for validation\n"
    assert len(Manifest.read(tmp_path / "manifest.parquet")) == 8
    code, out, err = run("data", "check", "manifest.parquet", *SMALL, "--sheet", "worst.png")
    assert (code, err) == (0, "")
    assert "0 of 8 samples are bad (0.00%), within the budget of 1.00%." in out
    assert load_image(tmp_path / "worst.png").width > 100
    code, out, err = run("data", "show", "manifest.parquet", "--resolution", 32, "--bucket-step", 8, "-o", "a.png")
    assert (code, out, err) == (0, "samples: a.png\n", "")
    assert load_image(tmp_path / "a.png").width == 8 + 3 * 168


def test_a_source_is_checked_without_a_manifest(run, pictures, tmp_path):
    (pictures / "bad.png").write_bytes(b"no picture")
    code, out, _ = run("data", "check", pictures, *SMALL)
    assert code == 1
    assert "1 of 9 samples are bad (11.11%), ABOVE the budget of 1.00%." in out
    assert run("data", "check", pictures, *SMALL, "--bad-samples", 0.2)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def test_a_quick_check_decodes_nothing(run, pictures):
    run("data", "build", pictures)
    (pictures / "000.png").unlink()
    assert run("data", "check", "manifest.parquet", *SMALL)[0] == 1
    assert run("data", "check", "manifest.parquet", *SMALL, "--quick")[0] == 0


def test_pairs_by_folder(run, pictures, tmp_path):
    more = ("--group-by-folder", "--references", "group")
    code, out, _ = run("data", "check", tmp_path, *SMALL, *more)
    assert code == 0
    assert "1 of 8 to 8 samples" in out
    assert "alone in its group" not in out
    assert run("data", "show", tmp_path, "--resolution", 32, "--bucket-step", 8, *more, "--num-references", 2)[0] == 0
    assert load_image(tmp_path / "samples.png").width == 8 + 4 * 168


def test_refusals_are_one_line(run, pictures):
    (pictures / "bad.png").write_bytes(b"no picture")
    code, out, err = run("data", "build", pictures)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "has lost 1 of 9 samples" in err
    assert "raise --bad-samples" in err
    code, _, err = run("data", "build", "nothing")
    assert code == 1
    assert "'nothing' does not exist" in err.replace(str(pictures.parent) + "/", "")
    code, out, _ = run("data", "build", pictures, "--bad-samples", 0.5)
    assert (code, out.splitlines()[1]) == (0, "1 samples are lost: see manifest.losses.jsonl")


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_a_matter_of_seconds(tmp_path):
    """Ten shards of ten thousand pictures, none of which is opened: they are no pictures. Without checks of types."""
    (tmp_path / "data").mkdir()
    row = {"status": "success", "caption": "a picture", "width": 512, "height": 384, "sha256": "0" * 64, "exif": "{}"}
    tar_of(tmp_path / "data" / "0.tar", {f"{number:09}.jpg": b"x" for number in range(10_000)})
    rows = pa.Table.from_pylist([{**row, "key": f"{number:09}"} for number in range(10_000)])
    pq.write_table(rows, tmp_path / "data" / "0.parquet")
    for shard in range(1, 10):
        for suffix in ("tar", "parquet"):
            shutil.copyfile(tmp_path / "data" / f"0.{suffix}", tmp_path / "data" / f"{shard}.{suffix}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "imprompt", "data", "build", str(tmp_path / "data"), "-o", "m.parquet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    manifest = Manifest.read(tmp_path / "m.parquet")
    assert len(manifest) == 100_000
    assert manifest.content(99_999) == b"x"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30
