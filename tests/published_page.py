"""The table of published adapters in docs/adapters.md, of core/published.py: `python -m tests.published_page`."""

from pathlib import Path

from imprompt.core.files import atomic_write
from imprompt.core.published import PUBLISHED_ADAPTERS, PublishedAdapter
from imprompt.encoders.known import encoder_at
from tests.published import PUBLISHED

PAGE = Path(__file__).parents[1] / "docs" / "adapters.md"

FAMILIES = {"sd1": "SD 1.5", "sdxl": "SDXL", "kolors": "Kolors", "flux": "FLUX.1", "sd3": "SD 3.5"}

HEAD = """# Published adapters, by name

`imprompt.load_adapter("NAME")` and `imprompt generate --adapter NAME` find each of these {count} files: on the hub, \
at a pinned revision, or below the folder that `$IMPROMPT_MODELS` names, laid out like the hub. \
`OWNER/REPOSITORY:FILE` \
works too, with or without the suffix. `imprompt inspect OWNER/REPOSITORY` tells sizes, presets and LoRA files.

Written by `python -m tests.published_page`; a test holds this page to `core/published.py`.

* *Reads*: the image encoder, found by itself, and the pack of face networks, which you bring as a folder (`--faces`, \
`face_encoder=`). Both, where the face's picture is read beside its identity.
* *Tokens*: for each picture, or each face.
* *Licence*: what the authors say of the adapter's weights; `?` where they say nothing. That of the base and of the \
face networks comes on top, and whether yours is a use they allow is for you to check: InsightFace's packs, \
`buffalo_l` and `antelopev2`, are for non-commercial research only.

| name | base | reads | tokens | licence | repository |
|---|---|---|---|---|---|
"""


def render() -> str:
    """The whole page."""
    return HEAD.format(count=len(PUBLISHED_ADAPTERS)) + "".join(map(_row, PUBLISHED_ADAPTERS))


def _row(adapter: PublishedAdapter) -> str:
    cells = (
        f"`{adapter.name}`",
        FAMILIES[adapter.family],
        " and ".join(_reads(adapter)),
        _tokens(adapter),
        adapter.licence or "?",
        adapter.repository,
    )
    return f"| {' | '.join(cells)} |\n"


def _reads(adapter: PublishedAdapter) -> list[str]:
    encoder = None if adapter.encoder is None else encoder_at(adapter.encoder)
    if adapter.name.startswith("pulid"):
        return ["tokens that its own encoder makes: `ImagePrompt(features=)`"]
    found = [] if adapter.encoder is None else [encoder.name if encoder else adapter.encoder]
    return [*found, f"`{adapter.face_encoder}`"] if adapter.face_encoder else found


def _tokens(adapter: PublishedAdapter) -> str:
    if adapter.name.startswith("csgo"):  # two adapters: part="content" and part="style"
        style = {"csgo": 16, "csgo_4_32": 32}[adapter.name]
        return f"`content` 4, `style` {style}"
    return str(PUBLISHED[adapter.name].num_tokens)


if __name__ == "__main__":
    with atomic_write(PAGE) as path:
        path.write_text(render())
