"""The command line reports an error in one line, and starts only what is called."""

import sys
from types import ModuleType

import pytest
import typer

from imprompt import __version__
from imprompt.cli import main as command_line
from imprompt.cli.interrupts import goes_on
from imprompt.core.errors import PromptError


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        command_line.main(arguments)
    code = caught.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a command `try-it`, to which a test adds the function."""
    module = ModuleType("imprompt.cli.try_it")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(command_line.COMMANDS, "try-it", "Try something.")
    return module


def fails_with(error: BaseException):
    def try_it(times: int = 1) -> None:
        """Fail."""
        raise error

    return try_it


def test_a_command_is_a_function_named_as_its_module(command: ModuleType) -> None:
    seen: list[int] = []

    def try_it(times: int = 1) -> None:
        """Try it."""
        seen.append(times)

    command.try_it = try_it
    assert call("try-it", "--times", "3") == 0
    assert seen == [3]


def test_a_group_is_an_app(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    command.app = typer.Typer()
    command.app.command()(fails_with(PromptError("no")))
    command.app.command("other")(lambda: typer.echo("done"))
    assert call("try-it", "other") == 0
    assert capsys.readouterr().out == "done\n"


def test_our_error_is_one_line_and_status_one(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    message = "weight must be a finite number;\n   got nan [not markup]. " + "long " * 40
    command.try_it = fails_with(PromptError(message))
    assert call("try-it") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"PromptError: {' '.join(message.split())}\n"


def test_a_full_disk_is_one_line_too(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    command.try_it = fails_with(OSError(28, "No space left on device"))
    assert call("try-it") == 1
    assert capsys.readouterr().err == "OSError: [Errno 28] No space left on device\n"


def test_debug_shows_the_traceback(command: ModuleType) -> None:
    command.try_it = fails_with(PromptError("no"))
    with pytest.raises(PromptError):
        command_line.main(["--debug", "try-it"])


def test_a_mistake_of_ours_is_not_hidden(command: ModuleType) -> None:
    command.try_it = fails_with(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        command_line.main(["try-it"])


def test_an_interrupt_is_one_line_and_130(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    command.try_it = fails_with(KeyboardInterrupt())
    assert call("try-it") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_command_that_goes_on_says_so_when_interrupted(
    command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    command.try_it = goes_on("finished pictures")(fails_with(KeyboardInterrupt()))
    assert call("try-it", "--times", "3") == 130
    said = "interrupted; finished pictures are kept, and the same command goes on from there\n"
    assert capsys.readouterr().err == said


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    output = capsys.readouterr().out
    assert all(name in output for name in command_line.COMMANDS)


@pytest.mark.parametrize("name", sorted(command_line.COMMANDS))
def test_every_command_can_be_built_and_is_documented(name: str) -> None:
    loaded = command_line.load_command(name)
    assert loaded.name == name
    assert loaded.help


def test_an_unknown_command_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("nonsense") == 2
    assert "No such command 'nonsense'" in capsys.readouterr().err
    assert call() == 2


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"imprompt {__version__}\n"
