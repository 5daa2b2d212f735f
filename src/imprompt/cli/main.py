"""The `imprompt` command: finds a command's module when it is called, and reports errors in one line.

A command named `x-y` is a row of `COMMANDS` and a module `imprompt/cli/x_y.py` that exposes either a function `x_y`
(one command, its parameters declared the Typer way) or a `typer.Typer` called `app` (a group of them). No such module
imports torch, diffusers or transformers at its top level: a test holds `imprompt --help` under half a second.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as build_command

from imprompt import __version__
from imprompt.cli.words import as_options
from imprompt.core.errors import ImpromptError

COMMANDS = {
    "demo": "Draw a contact sheet of what image prompts do, on the embedded model.",
    "generate": "Make pictures from a text, image prompts, or both.",
    "grid": "Draw one sheet of pictures over two settings.",
    "evaluate": "Measure how well pictures follow their references and texts, by a protocol.",
    "compare": "Tell which differences between two evaluations are real.",
    "data": "Gather, check and see training data.",
    "features": "Compute once what a training run reads at every step.",
    "train": "Train an image prompt adapter on a frozen base.",
    "inspect": "Tell what an adapter file is, and what it fits.",
    "convert": "Write an adapter in another layout, verified.",
    "doctor": "Check the installation, and whether an adapter, a base and an encoder belong together.",
    "report": "Write the page of a training run: curves, contact sheets, settings.",
    "emoji": "Build, train and measure the embedded model.",
}


class LazyGroup(TyperGroup):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name every command, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Stand in for a command where only its name and first line are wanted, as in `--help`."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, callback=lambda: None, help=COMMANDS[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the stand-in by the real command, now that it is going to run."""
        name, _, rest = super().resolve_command(ctx, args)  # exits by itself where the name is unknown
        return name, load_command(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an interrupt is one line, its message if it has one (`imprompt.cli.interrupts`)."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            report(str(stop) or "interrupted")
            raise typer.Exit(130) from None


def load_command(name: str) -> Any:
    """Import the module of a command and build what it exposes."""
    module_name = name.replace("-", "_")
    module = import_module(f"imprompt.cli.{module_name}")
    command_app = getattr(module, "app", None) or single_command(name, getattr(module, module_name))
    command = build_command(command_app)
    command.name = name
    return command


def single_command(name: str, function: Callable[..., None]) -> typer.Typer:
    """Wrap one function as an app of its own."""
    command_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command_app.command(name, help=function.__doc__ or COMMANDS.get(name))(function)
    return command_app


app = typer.Typer(cls=LazyGroup, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def print_version(wanted: bool) -> bool:
    """Print the version and stop, if it was asked for."""
    if wanted:
        typer.echo(f"imprompt {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def prepare(
    version: Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log everything; show an error's whole traceback.")] = False,
) -> None:
    """Image prompts for diffusion models."""
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("imprompt").setLevel(level)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error that a user can put right is one red line and exit status 1.

    Args:
        arguments: What follows `imprompt`; the process's own arguments by default.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        app(args=arguments, prog_name="imprompt")
    except (ImpromptError, OSError) as error:
        if "--debug" in arguments:
            raise
        report(f"{type(error).__name__}: {as_options(str(error))}")
        raise SystemExit(1) from None


def report(message: str) -> None:
    """Write one red line to stderr, whatever line breaks the message held."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
    console.print(" ".join(message.split()), style="red", markup=False, highlight=False)


if __name__ == "__main__":
    main()
