"""`imprompt train`: an adapter from a folder of pictures."""

from inspect import cleandoc
from typing import Annotated

import typer

from imprompt.core.errors import PromptError

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
    devices: Annotated[int | None, typer.Option(min=1, help="Devices to plan for; one by default.")] = None,
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
    from imprompt.generation.quiet import quiet_libraries

    quiet_libraries()
    if devices is not None and not plan:
        raise PromptError("--devices says for how many to plan; give --plan too, or start the run with torchrun")
    if plan:
        from imprompt.training.planning.plan import describe
        from imprompt.training.planning.plan import plan as plan_run

        typer.echo("\n".join(describe(plan_run(config, devices or 1))))
        return
    from imprompt.training.run import train as run

    finished = run(config)
    if finished.is_main:
        wanted, report = config.loop.num_steps, config.loop.output / "report.html"
        how_far = f"{finished.step:,} steps"
        if finished.step < wanted:
            how_far = f"stopped at step {finished.step:,} of {wanted:,}, the same command goes on"
        typer.echo(f"{how_far}; adapter: {finished.adapter}; report: {report}")


train.__doc__ = f"{cleandoc(train.__doc__ or '')}\n{EXAMPLES}"
