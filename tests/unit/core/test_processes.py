"""Processes of a pool are alike, tell what went wrong in one sentence, and do not outlive the one that made them."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import as_completed
from pathlib import Path

import pyarrow
import pytest
import torch

from imprompt.core import processes
from imprompt.core.errors import ImpromptError
from imprompt.core.processes import place_in_pool, process_pool

PATIENCE = 120.0
prepared = False


def prepare() -> None:
    global prepared
    prepared = True


def meet(folder: Path) -> tuple[int | None, int, int, bool, str]:
    """Wait for another process to come here too, and tell how this one is set up."""
    appear(folder)
    wait_for(folder, 2)
    cache = os.environ.get("IMPROMPT_CACHE", "")
    return place_in_pool(), torch.get_num_threads(), pyarrow.cpu_count(), prepared, cache


def appear(folder: Path) -> None:
    (folder / str(os.getpid())).touch()


def sleep(folder: Path) -> None:
    appear(folder)
    time.sleep(3 * PATIENCE)


def fail(folder: Path) -> None:
    wait_for(folder, 1)
    raise ImpromptError("as told")


def be_killed(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(folder: Path, count: int) -> None:
    """Wait until some processes have appeared."""
    deadline = time.monotonic() + PATIENCE
    while (found := len(list(folder.iterdir()))) < count:
        assert time.monotonic() < deadline, f"{found} of {count} processes began"
        time.sleep(0.01)


@pytest.mark.parametrize("cache", ["here", "there"])
def test_processes_are_set_up_alike_and_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    monkeypatch.setenv("IMPROMPT_CACHE", cache)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with process_pool(2, num_threads=3, prepare=prepare) as pool:
        told = list(pool.map(meet, [tmp_path] * 2))
    assert sorted(told) == [(0, 3, 3, True, cache), (1, 3, 3, True, cache)]
    assert place_in_pool() is None and not prepared


def test_an_error_is_told_as_it_is_and_ends_the_work_at_hand(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(ImpromptError, match="as told"), process_pool(2) as pool:
        for future in as_completed([pool.submit(work, tmp_path) for work in (sleep, fail)]):
            future.result()
    assert time.monotonic() - begun < PATIENCE


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_killed_process_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImpromptError, match="one of 1 processes was killed.*use fewer"), process_pool(1) as pool:
        pool.submit(be_killed, tmp_path).result()


SCRIPT = f"""
import signal, sys
from pathlib import Path
from {processes.__name__} import process_pool
from {__name__} import sleep

signal.signal(signal.SIGINT, signal.default_int_handler)
with process_pool(2) as pool:
    list(pool.map(sleep, [Path(sys.argv[1])] * 3))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there are no signals to a group")
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_processes_end_with_the_one_that_made_them(tmp_path: Path, name: str) -> None:
    """A terminal interrupts all of them; who kills, kills one. The pipe ends when the last one has ended."""
    number = getattr(signal, name)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as maker:
        try:
            wait_for(tmp_path, 2)
            (os.killpg if name == "SIGINT" else os.kill)(maker.pid, number)
            told = maker.communicate(timeout=PATIENCE)[1]
        finally:
            maker.kill()
    assert maker.returncode == -number
    assert told.count("Traceback") == (1 if name == "SIGINT" else 0), told
