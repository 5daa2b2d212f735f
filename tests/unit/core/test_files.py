"""Files are whole or not there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imprompt.core.files import atomic_write, sha256_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_file_is_in_place_and_alone(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "new" / "file.txt") as temporary:
        assert temporary.suffix == ".txt"
        assert temporary.parent == tmp_path / "new"
        temporary.write_text("whole")
    assert (tmp_path / "new" / "file.txt").read_text() == "whole"
    assert names(tmp_path / "new") == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(error), atomic_write(tmp_path / "file.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert (tmp_path / "file.txt").read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_rename_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file.txt").mkdir()
    (tmp_path / "file.txt" / "inside").touch()
    with pytest.raises(OSError), atomic_write(tmp_path / "file.txt") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == ["file.txt"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("old")
    program = (
        "import sys, time\nfrom imprompt.core.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n    print('writing', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "file.txt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    assert (tmp_path / "file.txt").read_text() == "old"


def test_what_a_killed_writer_left_is_removed_later(tmp_path: Path) -> None:
    stale, fresh, other = (tmp_path / f".{name}.part.txt" for name in ("file.01234567", "file.89abcdef", "x.01234567"))
    for part in (stale, fresh, other):
        part.touch()
    os.utime(stale, (0, 0))
    os.utime(other, (0, 0))
    with atomic_write(tmp_path / "file.txt") as temporary:
        temporary.touch()
    assert names(tmp_path) == sorted([".file.89abcdef.part.txt", ".x.01234567.part.txt", "file.txt"])


def test_names_with_wildcards_remove_nothing_else(tmp_path: Path) -> None:
    part = tmp_path / ".anything.01234567.part.txt"
    part.touch()
    os.utime(part, (0, 0))
    with atomic_write(tmp_path / "*.txt") as temporary:
        temporary.touch()
    assert part.exists()


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "file.bin") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as writers of weights do
    assert (tmp_path / "file.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode
