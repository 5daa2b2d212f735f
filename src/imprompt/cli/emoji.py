"""`imprompt emoji`: gather the data of the embedded model, train it, measure it, package it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Build, train and measure the embedded model."
)


class Course(StrEnum):
    """Courses of the learning rate after its rise."""

    CONSTANT = "constant"
    COSINE = "cosine"


class Stage(StrEnum):
    """Stages in the order in which they build on each other; from ControlNet on, on the packaged base."""

    VISION = "vision"
    AUTOENCODER = "autoencoder"
    DECODER = "decoder"
    UNET = "unet"
    ADAPTER_GLOBAL = "adapter-global"
    ADAPTER_PLUS = "adapter-plus"
    CONTROLNET = "controlnet"
    T2I_ADAPTER = "t2i-adapter"
    LORA = "lora"
    FINETUNE = "finetune"


@app.command()
def data(
    everything: Annotated[bool, typer.Option("--all", help="Also people, smileys, symbols and flags.")] = False,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 64,
) -> None:
    """Gather and draw the pictures; count them per style and draw a contact sheet."""
    from imprompt.recipes.emoji import dataset

    folder = dataset.gather(size, everything=everything)
    pictures = dataset.read(folder)
    for style, num_pictures, num_held_out in dataset.counts(pictures):
        typer.echo(f"{style:11s} {num_pictures:5d} pictures, {num_held_out:4d} held out")
    typer.echo(f"{'all':11s} {len(pictures.images):5d} pictures of {len(pictures.subjects)} subjects in {folder}")
    typer.echo(f"contact sheet: {dataset.save_sheet(pictures, folder / 'sheet.png')}")


@app.command()
def restore() -> None:
    """Take up the weights that ship with the package, so that training goes on from them on a new machine."""
    from imprompt.emoji.bundle import bundle_folder
    from imprompt.recipes.emoji import restore as recipe

    typer.echo(f"finished models: {recipe.restore(bundle_folder())}")


@app.command()
def train(
    stage: Stage,
    minutes: Annotated[float | None, typer.Option(help="Stop at a checkpoint after so many minutes.")] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the whole run in steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    schedule: Annotated[Course | None, typer.Option(help="Course of the rate; the cosine ends with the run.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Train on all emoji, not only on things.")] = False,
    device: Annotated[str | None, typer.Option(help="Where to train, such as 'cuda'; the CPU by default.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU to compute with.")] = None,
) -> None:
    """Train a stage, or go on where it was stopped or killed."""
    import torch

    from imprompt.recipes.emoji import stages

    if threads is not None:
        torch.set_num_threads(threads)
    changes: dict[str, Any] = {
        "minutes": minutes,
        "num_steps": steps,
        "learning_rate": learning_rate,
        "schedule": None if schedule is None else schedule.value,
        "device": device,
    }
    changed = {name: value for name, value in changes.items() if value is not None}
    typer.echo(f"finished model: {stages.train(stage.value, everything=everything, **changed)}")


@app.command()
def snapshot() -> None:
    """Hand the denoiser's newest checkpoint on to the adapters, also while it trains on."""
    from imprompt.recipes.emoji import unet

    typer.echo(f"denoiser: {unet.snapshot()}")


@app.command()
def bundle(
    parts: Annotated[
        bool, typer.Option("--parts", help="Only ControlNet, T2I-Adapter and LoRA; keep the base.")
    ] = False,
) -> None:
    """Package the newest weights in half precision, in diffusers' layout."""
    from imprompt.recipes.emoji import bundle as recipe

    run = recipe.run_parts if parts else recipe.run
    typer.echo(f"bundle: {run(recipe.default_config())}")


@app.command()
def quality(
    pictures: Annotated[int, typer.Option(help="Pictures for each question.")] = 128,
) -> None:
    """Measure the packaged model on held-out pictures with an independent judge; the next bundle's card tells it."""
    from imprompt.core.files import atomic_write
    from imprompt.emoji.bundle import bundle_folder
    from imprompt.recipes.emoji import quality as recipe
    from imprompt.recipes.emoji.paths import quality_file

    table = recipe.table(recipe.measure(recipe.QualityConfig(bundle=bundle_folder(), num_pictures=pictures)))
    with atomic_write(quality_file()) as path:
        path.write_text(table)
    typer.echo(table)


@app.command()
def evidence(
    quick: Annotated[
        bool, typer.Option("--quick", help="So little of everything that it shows nothing, but that it runs.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="The page; docs/evidence.md by default, of --quick one in the cache.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes of one thread each that draw and train.")] = 2,
    device: Annotated[str, typer.Option(help="Where to draw and train: cpu, cuda; there with one process.")] = "cpu",
) -> None:
    """Check the paper's claims on the packaged model: train what they compare, draw, judge, and write the page.

    Held-out references, five noises each, three trainings of every ablation, and a judge that had no part in the
    model. Hours on two processors; after an interruption or a kill, the same command goes on. 'make evidence' installs
    the judge first.

    Example: imprompt emoji evidence --processes 8
    """
    from dataclasses import replace

    from imprompt.generation.quiet import quiet_libraries

    if quick and output is not None:
        raise typer.BadParameter("--quick shows nothing that a page should say; leave --output out")
    quiet_libraries()
    from imprompt.recipes.emoji.evidence import run as recipe

    settings = replace(
        recipe.quick_settings() if quick else recipe.default_settings(), num_processes=processes, device=device
    )
    page = None if quick else output or Path("docs") / recipe.PAGE
    typer.echo(f"page: {recipe.run(settings, page)}")
