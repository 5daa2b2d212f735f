import pytest

from imprompt.cli.progress import busy, progress_bar
from imprompt.core.ranks import RANK_VARIABLES


@pytest.mark.parametrize(("rank", "is_shown"), [(None, True), ("0", True), ("1", False)])
def test_of_a_launchers_processes_the_first_shows_what_goes_on(monkeypatch, capfd, rank, is_shown):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    with progress_bar("drawing") as bar:
        bar(1, 2)
    with busy("loading"):
        pass
    shown = capfd.readouterr().err
    assert ("drawing" in shown, "loading" in shown) == (is_shown, is_shown)
