"""The eight drawing styles of the embedded model: who drew them, under which licence, and the word that names each."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Style:
    """One design team's set of drawings.

    Attributes:
        name: Key of the style in files and tables.
        package: npm package and version that carries the drawings.
        layout: `iconify` is one JSON file of SVG bodies, `files` is one raster file a picture.
        licence: SPDX name of the licence of the drawings.
        author: Whom the licence asks to name.
        word: How captions call the style: "red apple, {word} style emoji".
    """

    name: str
    package: str
    layout: Literal["iconify", "files"]
    licence: str
    author: str
    word: str


STYLES = (
    Style("noto", "@iconify-json/noto@1.2.9", "iconify", "Apache-2.0", "Google Inc (Noto Emoji)", "noto"),
    Style("blob", "@iconify-json/noto-v1@1.2.5", "iconify", "Apache-2.0", "Google Inc (Noto Emoji v1)", "blob"),
    Style("twemoji", "@iconify-json/twemoji@1.2.5", "iconify", "CC-BY-4.0", "Twitter, Inc (Twemoji)", "twemoji"),
    Style("fluent3d", "@lobehub/fluent-emoji-3d@1.1.0", "files", "MIT", "Microsoft (Fluent Emoji)", "3d"),
    Style("fluentflat", "@iconify-json/fluent-emoji-flat@1.2.6", "iconify", "MIT", "Microsoft (Fluent Emoji)", "flat"),
    Style(
        "fluenthc",
        "@iconify-json/fluent-emoji-high-contrast@1.2.6",
        "iconify",
        "MIT",
        "Microsoft (Fluent Emoji)",
        "ink",
    ),
    Style("emojione2", "@iconify-json/emojione@1.2.3", "iconify", "CC-BY-4.0", "EmojiOne (version 2)", "emojione"),
    Style("fxemoji", "@iconify-json/fxemoji@1.2.2", "iconify", "Apache-2.0", "Mozilla (FxEmojis)", "firefox"),
)
