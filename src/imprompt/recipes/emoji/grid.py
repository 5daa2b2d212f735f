"""Plain picture grids for looking at a run while it trains."""

from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.core.files import atomic_write


def save_grid(rows: list[Float[Tensor, "columns 3 height width"]], path: Path, zoom: int = 2) -> None:
    """Write rows of pictures in [-1, 1] as one PNG, enlarged `zoom` times.

    Args:
        rows: Rows of equal length, top to bottom.
        path: File to write.
        zoom: Side of a drawn pixel.
    """
    grid = torch.stack(rows).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    num_rows, num_columns, _, height, width = grid.shape
    pixels = grid.permute(0, 3, 1, 4, 2).reshape(num_rows * height, num_columns * width, 3)
    picture = Image.fromarray(pixels.contiguous().numpy())
    enlarged = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    with atomic_write(path) as temporary:
        enlarged.save(temporary, format="PNG")
