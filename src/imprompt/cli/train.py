"""`imprompt train`: an adapter from a folder of pictures."""

from typing import Annotated

import typer

EXAMPLES = """
Examples:

  imprompt train emoji-plus data.source=pictures loop.num_steps=500

  imprompt train sd15-global data.source=pictures base.path=stable-diffusion-v1-5/stable-diffusion-v1-5

  imprompt train sdxl-plus data.source=shards loop.micro_batch_size=8 base.gradient_checkpointing=true

  imprompt train sdxl-plus --plan --devices 8        parameters, memory, arithmetic, hours

  imprompt train runs/sdxl-plus/config.json loop.num_steps=300000        go on with a run

  torchrun --nproc-per-node 8 -m imprompt train sdxl-plus data.source=manifest.parquet
"""


def train(
    recipe: Annotated[str, typer.Argument(help="Base and kind, as 'sd15-plus', or the config.json of a run.")] = "",
    settings: Annotated[list[str] | None, typer.Argument(help="Changes of it, as 'loop.num_steps=500'.")] = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Print the whole configuration and stop.")] = False,
    recipes: Annotated[bool, typer.Option("--recipes", help="List all recipes and stop.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Tell what the run will need and stop; no weights are read.")
    ] = False,
    devices: Annotated[int, typer.Option(min=1, help="Devices to plan for.")] = 1,
) -> None:
    """Train an image prompt adapter on a frozen base, or go on where a run was stopped or killed.

    A recipe is one complete configuration; 'part.field=value' changes a field of it. The run folder (loop.output) gets
    checkpoints, log.jsonl, contact sheets, report.html and the adapter in the official layout.
    """
    from imprompt.recipes import config_named
    from imprompt.recipes import recipes as known
    from imprompt.training.overrides import override

    if recipes or not recipe:
        typer.echo("\n".join(known()))
        return
    config = override(config_named(recipe), settings or ())
    if resolved:
        typer.echo(config.model_dump_json(indent=2))
        return
    from imprompt.cli.progress import quiet_libraries

    quiet_libraries()
    if plan:
        from imprompt.training.planning.plan import describe
        from imprompt.training.planning.plan import plan as plan_run

        typer.echo("\n".join(describe(plan_run(config, devices))))
        return
    from imprompt.training.run import train as run

    finished = run(config)
    typer.echo(f"{finished.step:,} steps; adapter: {finished.adapter}; report: {config.loop.output / 'report.html'}")


train.__doc__ = f"{train.__doc__}\n{EXAMPLES}"
