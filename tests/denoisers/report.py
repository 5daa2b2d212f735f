"""The table of denoisers in docs/denoisers.md, of the walk over all classes: `python -m tests.denoisers.report`."""

import re
from collections import Counter
from pathlib import Path

import torch

from imprompt.adapter.attach import attach
from imprompt.adapter.conditioning import Conditioning
from imprompt.adapter.families import NOT_ATTACHABLE
from imprompt.adapter.sites import Site
from imprompt.core.errors import ConditioningError
from imprompt.core.files import atomic_write
from tests.denoisers import all_denoiser_classes
from tests.denoisers.attached import Attachable, attachable

PAGE = Path(__file__).parents[2] / "docs" / "denoisers.md"

GUIDANCE = {
    "cfg": "one call: negative, positive",
    "cfg-reversed": "one call: positive, negative",
    "separate": "a call for each half",
    "none": "positive rows alone",
}
SPANS = {
    "all": "every token of its stream",
    "first": "the first tokens",
    "last": "the last tokens",
    "indexed": "tokens at places of their own",
}

HEAD = """# Which denoisers take an image prompt

Every denoiser class that diffusers {version} exports, as `python -m tests.denoisers.report` finds it: {attaching} of \
{classes} attach. A tiny random model of each class is built and called; `tests/conformance/test_denoisers.py` proves \
its row, and a test holds this page to it.

* *Sites*: the attentions at which image tokens are attended to, and how many of them the tiny model has.
* *The picture*: which tokens of those sequences are the picture's; text and padding are left alone.
* *Masks*: whether the calls tell where in the picture a token lies.
* *Guidance*: how the pipelines ask for the negative half. Where a pipeline does not tell whether it is guided, \
`attach` says so and takes `guidance=`.

| class | family | sites | the picture | masks | guidance |
|---|---|---|---|---|---|
"""
MIDDLE = """
## Classes that take none

| class | it |
|---|---|
"""


def render() -> str:
    """The page."""
    names = all_denoiser_classes()
    attaching = [name for name in names if name not in NOT_ATTACHABLE]
    head = HEAD.format(version=_version(), attaching=len(attaching), classes=len(names))
    rows = [f"| {' | '.join(_row(attachable(name)))} |" for name in attaching]
    others = [f"| {name} | {NOT_ATTACHABLE[name]} |" for name in names if name in NOT_ATTACHABLE]
    return head + "\n".join(rows) + "\n" + MIDDLE + "\n".join(others) + "\n"


def _row(host: Attachable) -> tuple[str, ...]:
    places = Counter(_template(site) for site in host.sites)
    sites = "<br>".join(f"`{name}` × {count}" for name, count in places.items())
    spans = dict.fromkeys(SPANS[site.query_span] for site in host.sites)
    masks = "yes" if _places_masks(host) else "no"
    guidance = GUIDANCE[host.family.guidance]
    return host.entry.name, f"`{host.family.name}`", sites, "; ".join(spans), masks, guidance


def _template(site: Site) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "{}", site.name)


def _places_masks(host: Attachable) -> bool:
    region = torch.ones(host.rows, 1, 2)
    with attach(host.model, host.adapter) as attachment:
        attachment.set(Conditioning(branches=(host.branch(region=region),), rows=host.rows))
        try:
            host.call()
        except ConditioningError:
            return False
    return True


def _version() -> str:
    import diffusers

    return diffusers.__version__


if __name__ == "__main__":
    with atomic_write(PAGE) as path:
        path.write_text(render())
