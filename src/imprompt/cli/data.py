"""`imprompt data`: training data as one manifest, checked and looked at before anything is paid for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from imprompt.training.data.manifest import Manifest

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Gather, check and see training data.",
)


class References(StrEnum):
    """What a target is followed from."""

    SELF = "self"
    GROUP = "group"
    EXPLICIT = "explicit"


SourceArgument = Annotated[
    Path, typer.Argument(help="A manifest, or a folder of pictures, tars, parquet, JSON, or a saved dataset.")
]
ResolutionOption = Annotated[int, typer.Option(min=1, help="Side of the square whose area every bucket has.")]
StepOption = Annotated[int, typer.Option(min=1, help="Sides of buckets are multiples of so many pixels.")]
AspectOption = Annotated[float, typer.Option(min=1.0, help="Longest side of a bucket over its shortest.")]
ReferencesOption = Annotated[References, typer.Option(help="The target itself, its group, or what it names.")]
BadOption = Annotated[float, typer.Option(min=0.0, max=1.0, help="Fraction of samples that may be bad.")]
ProcessesOption = Annotated[int, typer.Option(min=1, help="How many read at a time.")]
RootOption = Annotated[Path | None, typer.Option(help="Folder that the source's file names are relative to.")]
FolderGroupsOption = Annotated[bool, typer.Option("--group-by-folder", help="Pictures of one folder are a group.")]


@app.command()
def build(
    source: Annotated[Path, typer.Argument(help="Folder of pictures, tars, parquet, JSON, or a saved dataset.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The manifest to write.")] = Path("manifest.parquet"),
    root: RootOption = None,
    validation: Annotated[float, typer.Option(min=0.0, max=1.0, help="Fraction that is not trained on.")] = 0.02,
    group_by_folder: FolderGroupsOption = False,
    bad_samples: BadOption = 0.01,
    processes: ProcessesOption = 1,
) -> None:
    """Make one manifest of any training data: where every picture lies, its size, captions, references and split.

    Pictures stay where they are. Which format the source has is told by its content.

    Examples:

    imprompt data build pictures

    imprompt data build laion/shards -o laion.parquet --processes 8
    """
    from imprompt.cli.progress import progress_bar
    from imprompt.training.data.manifest import write_manifest

    with progress_bar("reading") as on_progress:
        manifest = write_manifest(
            source,
            output,
            root=root,
            validation=validation,
            group_by_folder=group_by_folder,
            bad_samples=bad_samples,
            processes=processes,
            on_progress=on_progress,
        )
    typer.echo(f"{output}: {len(manifest):,} samples, {len(manifest.split('validation')):,} of them for validation")
    if manifest.num_lost:
        typer.echo(f"{manifest.num_lost:,} samples are lost: see {output.with_suffix('.losses.jsonl')}")


@app.command()
def check(  # noqa: PLR0913  (a command's options are its parameters)
    source: SourceArgument,
    resolution: ResolutionOption = 512,
    bucket_step: StepOption = 64,
    max_aspect: AspectOption = 2.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a step, for the fill of buckets.")] = 64,
    references: ReferencesOption = References.SELF,
    bad_samples: BadOption = 0.01,
    quick: Annotated[bool, typer.Option("--quick", help="Decode no picture; go by the manifest alone.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Draw the worst of each kind into this PNG.")] = None,
    group_by_folder: FolderGroupsOption = False,
    root: RootOption = None,
    processes: ProcessesOption = 1,
) -> None:
    """Find what would fail in training, or teach the wrong thing. The exit status is 1 above the budget.

    Unreadable pictures, missing and long captions, duplicates and near duplicates, pictures that are too small or cut,
    face embeddings of several lengths, references that are missing, buckets that fill no batch.

    Examples:

    imprompt data check manifest.parquet --resolution 1024 --batch-size 32 --sheet worst.png

    imprompt data check pictures --group-by-folder --references group
    """
    from imprompt.cli.progress import progress_bar
    from imprompt.core.files import atomic_write
    from imprompt.training.config import DataConfig
    from imprompt.training.data.check import check as check_manifest
    from imprompt.training.data.check import describe, worst_sheet
    from imprompt.training.data.looks import look_at_all

    config = DataConfig(
        resolution=resolution,
        bucket_step=bucket_step,
        max_aspect=max_aspect,
        references=references.value,
        bad_samples=bad_samples,
    )
    with manifest_at(source, root, group_by_folder, processes) as manifest:
        with progress_bar("looking at pictures") as on_progress:
            looks = None if quick else look_at_all(manifest, processes=processes, on_progress=on_progress)
        report = check_manifest(manifest, looks, config, batch_size)
        typer.echo(describe(report))
        if sheet is not None:
            with atomic_write(sheet.with_suffix(".png")) as path:
                worst_sheet(manifest, report).save(path)
            typer.echo(f"the worst: {sheet.with_suffix('.png')}")
    raise typer.Exit(0 if report.passed else 1)


@app.command()
def show(  # noqa: PLR0913  (a command's options are its parameters)
    source: SourceArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The PNG to draw.")] = Path("samples.png"),
    num: Annotated[int, typer.Option(min=1, help="How many samples.")] = 12,
    split: Annotated[str, typer.Option(help="Of which split.")] = "train",
    seed: Annotated[int, typer.Option(help="Which of them.")] = 0,
    resolution: ResolutionOption = 512,
    bucket_step: StepOption = 64,
    max_aspect: AspectOption = 2.0,
    references: ReferencesOption = References.SELF,
    num_references: Annotated[int, typer.Option(min=1, help="References a target.")] = 1,
    group_by_folder: FolderGroupsOption = False,
    root: RootOption = None,
    processes: ProcessesOption = 1,
) -> None:
    """Draw a contact sheet of samples as training sees them: caption, crop, references.

    Examples:

    imprompt data show manifest.parquet --references group --num-references 2 -o pairs.png
    """
    from imprompt.core.files import atomic_write
    from imprompt.training.config import DataConfig
    from imprompt.training.data.gallery import gallery

    config = DataConfig(
        resolution=resolution,
        bucket_step=bucket_step,
        max_aspect=max_aspect,
        references=references.value,
        num_references=num_references,
    )
    target = output.with_suffix(".png")
    with manifest_at(source, root, group_by_folder, processes) as manifest, atomic_write(target) as path:
        gallery(manifest, config, num=num, split=split, seed=seed).save(path)
    typer.echo(f"samples: {target}")


@contextmanager
def manifest_at(source: Path, root: Path | None, group_by_folder: bool, processes: int) -> "Iterator[Manifest]":
    """Read a manifest, or make one of a source for as long as the block runs; what is lost is then part of it."""
    from tempfile import TemporaryDirectory

    from imprompt.cli.progress import progress_bar
    from imprompt.training.data.manifest import Manifest, is_manifest, write_manifest

    if is_manifest(source):
        yield Manifest.read(source, root)
        return
    with TemporaryDirectory() as folder:
        with progress_bar("reading") as on_progress:
            manifest = write_manifest(
                source,
                Path(os.path.realpath(folder)) / "manifest.parquet",
                root=root,
                group_by_folder=group_by_folder,
                bad_samples=1.0,
                processes=processes,
                on_progress=on_progress,
            )
        yield manifest
