"""Contact sheets: pictures in a grid, with words along the top and down the side."""

from collections.abc import Sequence
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PAPER = (255, 255, 255)
_EMPTY = (244, 244, 244)
_INK = (40, 40, 40)


def contact_sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    *,
    cell: int = 160,
    gap: int = 8,
    font_size: int = 16,
) -> Image.Image:
    """Draw pictures in a grid.

    Args:
        rows: Pictures, row by row; None leaves a cell grey. Rows may differ in length.
        column_labels: Words above the columns; long ones are wrapped to the width of a cell.
        row_labels: Words left of the rows; likewise.
        cell: Side of a cell, in pixels. Pictures are scaled to fit and keep their proportions.
        gap: Space between cells and around the sheet, in pixels.
        font_size: Height of the letters, in pixels.
    """
    font = ImageFont.load_default(font_size)
    num_columns = max([len(row) for row in rows] + [len(column_labels), 1])
    left = gap + (cell + gap if row_labels else 0)
    top = gap + _labels_height(column_labels, cell, font, gap)
    size = (left + num_columns * (cell + gap), top + max(len(rows), 1) * (cell + gap))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(column_labels):
        x = left + column * (cell + gap) + cell // 2
        draw.multiline_text((x, top - gap), _wrap(label, cell, font), _INK, font, anchor="md", align="center")
    for index, label in enumerate(row_labels):
        y = top + index * (cell + gap) + cell // 2
        draw.multiline_text((gap, y), _wrap(label, cell, font), _INK, font, anchor="lm")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            _place(sheet, picture, (left + x * (cell + gap), top + y * (cell + gap)), cell)
    return sheet


def _place(sheet: Image.Image, picture: Image.Image | None, corner: tuple[int, int], cell: int) -> None:
    """Put one picture in the middle of its cell."""
    if picture is None:
        sheet.paste(_EMPTY, (corner[0], corner[1], corner[0] + cell, corner[1] + cell))
        return
    factor = cell / max(picture.size)
    width, height = (max(1, round(extent * factor)) for extent in picture.size)
    scaled = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    sheet.paste(scaled, (corner[0] + (cell - width) // 2, corner[1] + (cell - height) // 2))


def _labels_height(labels: Sequence[str], width: int, font: _Font, gap: int) -> int:
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [draw.multiline_textbbox((0, 0), _wrap(label, width, font), font) for label in labels]
    return round(max((box[3] for box in boxes), default=-gap)) + gap


def _wrap(text: str, width: int, font: _Font) -> str:
    """Break a text so that no line is wider than `width`; a word that is too long alone is cut."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.extend(_cut(word, width, font))
    return "\n".join(lines)


def _cut(word: str, width: int, font: _Font) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces
