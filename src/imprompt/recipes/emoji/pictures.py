"""The emoji pictures as a folder of training data, as anybody would bring their own."""

import json
import shutil
from pathlib import Path

from PIL import Image

from imprompt.core.files import atomic_write
from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji.captions import PLAIN, STYLED, names_of
from imprompt.recipes.emoji.dataset import EmojiPictures

METADATA = "metadata.jsonl"

# A caption is drawn among all, so that repetitions are weights: three of some eleven name the style, in the others only
# the image tells it; two are search words in place of the label.
PLAIN_REPEATS = 2


def write_pictures(pictures: EmojiPictures, folder: Path) -> Path:
    """Write pictures as PNG files with `metadata.jsonl`, unless that is there already for just these.

    Args:
        pictures: A data set.
        folder: Where such folders are.

    Returns:
        The folder; it appears complete or not at all.
    """
    target = folder / f"{len(pictures.subjects)}-subjects-{len(pictures.images)}-pictures"
    text = "".join(json.dumps(_line(pictures, index)) + "\n" for index in range(len(pictures.images)))
    if (target / METADATA).is_file() and (target / METADATA).read_text() == text:
        return target
    shutil.rmtree(target, ignore_errors=True)
    for index, pixels in enumerate(pictures.images):
        path = target / _name(pictures, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    with atomic_write(target / METADATA) as path:
        path.write_text(text)
    return target


def captions_of(pictures: EmojiPictures, index: int) -> list[str]:
    """Captions of a picture, some of them several times."""
    label, *tags = names_of(pictures.subject_of(index))
    word = STYLES[pictures.styles[index]].word
    plain = [template.format(name=label) for template in PLAIN] * PLAIN_REPEATS
    styled = [template.format(name=label, word=word) for template in STYLED]
    return [*plain, *tags[:2], *styled]


def _line(pictures: EmojiPictures, index: int) -> dict[str, object]:
    split = "train" if pictures.split_name(index) == "train" else "validation"
    subject = pictures.subject_of(index)
    name = _name(pictures, index)
    return {"file_name": name, "captions": captions_of(pictures, index), "group": subject.hexcode, "split": split}


def _name(pictures: EmojiPictures, index: int) -> str:
    return f"{STYLES[pictures.styles[index]].name}/{pictures.subject_of(index).hexcode}.png"
