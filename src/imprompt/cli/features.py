"""`imprompt features`: latents and features of references, computed once for any number of training runs."""

from inspect import cleandoc
from typing import TYPE_CHECKING, Annotated

import typer

from imprompt.cli.interrupts import goes_on
from imprompt.cli.split import Engine, split_of

if TYPE_CHECKING:
    from imprompt.training.features.compute import Computed

EXAMPLES = """
Examples:

  imprompt features emoji-global data.source=pictures

  imprompt features sd15-global data.source=manifest.parquet data.num_views=4 data.mirror=true --batch-size 64

  imprompt features sdxl-global data.source=manifest.parquet --split 2/8      the second of eight machines

  torchrun --nproc-per-node 8 -m imprompt features sdxl-global data.source=manifest.parquet

  imprompt features sdxl-global data.source=manifest.parquet --engine ray
"""


@goes_on("the shards that are computed")
def features(  # noqa: PLR0913  (a command's options are its parameters)
    recipe: Annotated[str, typer.Argument(help="As 'imprompt train' takes it: 'sd15-plus', or a run's config.json.")],
    settings: Annotated[list[str] | None, typer.Argument(help="As 'imprompt train' takes them.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Which part to compute, as 2/8; by default torchrun's or SLURM's, or all.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="This machine, or a Ray cluster.")] = Engine.LOCAL,
    processes: Annotated[int, typer.Option(min=1, help="Processes of this machine, one an accelerator.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each that read pictures ahead.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that are encoded at a time.")] = 32,
    verify: Annotated[bool, typer.Option("--verify", help="Hash what is there; compute what is damaged anew.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try samples again that could not be read.")] = False,
) -> None:
    """Compute once what a training run with the same recipe and settings reads at every step.

    What is there already is kept; after an interruption or a kill, the same command goes on. 'imprompt train' computes
    what is missing by itself, in one process; this command does it with as many as there are.
    """
    from imprompt.cli.progress import progress_bar
    from imprompt.generation.quiet import quiet_libraries
    from imprompt.recipes import config_named
    from imprompt.training.adapters.stores import feature_root, jobs_of, manifest_of
    from imprompt.training.features.compute import compute_features
    from imprompt.training.features.work import ComputeOptions
    from imprompt.training.overrides import override

    quiet_libraries()
    config = override(config_named(recipe), settings or ())
    part = split_of(split)
    options = ComputeOptions(
        batch_size=batch_size,
        num_threads=threads,
        device=config.loop.device,
        bad_samples=config.data.bad_samples,
        verify=verify,
        retry=retry,
    )
    manifest = manifest_of(config)
    jobs = jobs_of(config).values()
    if not jobs:
        typer.echo("nothing to compute: features.latents and features.references are online", err=True)
    if part[1] > 1:
        typer.echo(f"part {part[0] + 1} of {part[1]}", err=True)
    for job in jobs:
        with progress_bar(job.kind, unit="samples") as on_progress:
            computed = compute_features(
                manifest,
                job,
                feature_root(config, manifest),
                split=part,
                engine=engine.value,
                processes=processes,
                options=options,
                on_progress=on_progress,
            )
        typer.echo(summary(job.kind, computed))


features.__doc__ = f"{cleandoc(features.__doc__ or '')}\n{EXAMPLES}"


def summary(kind: str, computed: "Computed") -> str:
    """What was done, in a line."""
    done = [f"{computed.num_computed} of {computed.num_shards} shards computed"]
    if computed.num_adopted:
        done.append(f"{computed.num_adopted} taken from other features")
    if computed.num_missing:
        done.append(f"{computed.num_missing} still missing")
    if computed.holes:
        done.append(f"{len(computed.holes)} samples without: {'; '.join(list(computed.holes.values())[:1])}")
    return f"{kind}: {', '.join(done)}; {computed.folder}"
