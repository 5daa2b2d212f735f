"""Pictures and masks from any source, as one kind each; everything hostile or broken stops here.

Only five formats are opened and the size is read from the header before a pixel is decoded: most of Pillow's published
vulnerabilities sit in formats nobody prompts with, and a file of a few kilobytes can unpack to gigabytes.
"""

import hashlib
import struct
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from imprompt.core.errors import ImageError

Fit: TypeAlias = Literal["crop", "pad", "stretch"]
ImageSource: TypeAlias = str | Path | Image.Image | Tensor | np.ndarray

FITS: tuple[Fit, ...] = ("crop", "pad", "stretch")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 64_000_000

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"iTXt", b"zTXt")  # chunks that may hold it
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # on their side

_WHITE = (255, 255, 255)
_BLACK = (0, 0, 0)
# Everything Pillow was seen to raise over mutated files, beside its own errors.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)


def load_image(source: ImageSource) -> Image.Image:
    """Read a picture from anywhere and return it upright, opaque and in RGB.

    Args:
        source: A path (PNG, JPEG, WebP, GIF or BMP; of a moving picture the first frame), a PIL image, a tensor
            `[3 or 1, height, width]` (a leading batch of one is accepted) or an array `[height, width, 3 or 1 or 4]` or
            `[height, width]`; numbers are bytes or floats from 0 to 1.

    Returns:
        A new RGB image without metadata: turned as its EXIF says, and laid on white where it was transparent.

    Raises:
        ImageError: The source is missing, is no picture, is cut short, or has more than 64 million pixels.
    """
    return _flatten(_open(source), _WHITE)


def decode_image(content: bytes, name: str) -> Image.Image:
    """Read a picture from a file's content, by the rules of `load_image`.

    Args:
        content: The whole file.
        name: What errors call it.

    Raises:
        ImageError: As `load_image`.
    """
    return _flatten(_decode(BytesIO(content), f"'{name}'"), _WHITE)


def upright_size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height that `decode_image` would return, from the header; pixels are decoded only where they must be.

    Args:
        content: The whole file.
        name: What errors call it.

    Raises:
        ImageError: It is no picture, its header is damaged, or it has more than 64 million pixels.
    """
    # Pillow decodes a PNG to look for EXIF data behind its pixels.
    plain = content.startswith(_PNG) and not any(mark in content for mark in _PNG_ORIENTATION)
    with _opened(BytesIO(content), f"'{name}'") as image:
        orientation = 1 if plain else image.getexif().get(_ORIENTATION, 1)
        width, height = image.size
    return (height, width) if orientation in _TURNED else (width, height)


def load_mask(source: ImageSource) -> Float[Tensor, "height width"]:
    """Read a mask from anywhere: 1 where it is white, 0 where it is black or transparent.

    Args:
        source: As for `load_image`; tensors and arrays may also be `[height, width]` or boolean.

    Returns:
        Luminance from 0 to 1, at the source's own size.

    Raises:
        ImageError: As `load_image`.
    """
    if isinstance(source, Tensor | np.ndarray):
        plane = _mask_plane(source)
        if plane is not None:
            return plane
    luminance = _flatten(_open(source), _BLACK).convert("L")
    return torch.tensor(np.asarray(luminance), dtype=torch.float32) / 255.0


def image_hash(image: Image.Image) -> str:
    """Hash what is seen: mode, size and pixels, whatever file they came from.

    Returns:
        The hexadecimal SHA-256, 64 characters.
    """
    digest = hashlib.sha256(f"{image.mode}:{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def fit_square(image: Image.Image, fit: Fit) -> Image.Image:
    """Make a picture square.

    Args:
        image: Any picture.
        fit: `"crop"` keeps the centre, `"pad"` adds white on both sides of the shorter extent, `"stretch"` distorts it
            to the longer one.

    Raises:
        ImageError: `fit` is none of these, or the square would have more than 64 million pixels.
    """
    check_fit(fit)
    width, height = image.size
    if width == height:
        return image
    if fit != "crop":
        _check_size((max(image.size), max(image.size)), f"a square of a {width} x {height} picture")
    if fit == "stretch":
        side = max(width, height)
        return image.resize((side, side), Image.Resampling.BICUBIC)
    side = min(width, height) if fit == "crop" else max(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if fit == "crop":
        return image.crop((left, top, left + side, top + side))
    square = Image.new("RGB", (side, side), _WHITE)
    square.paste(image, (-left, -top))
    return square


def check_fit(fit: str) -> None:
    """Refuse a word that is not a fit.

    Raises:
        ImageError: It is not one of `FITS`.
    """
    if fit not in FITS:
        raise ImageError(f"fit must be one of {', '.join(map(repr, FITS))}; got {fit!r}.")


def _open(source: ImageSource) -> Image.Image:
    if isinstance(source, Image.Image):
        _check_size(source.size, "the image")
        return _upright(source, "the image")
    if isinstance(source, Tensor):
        return _from_array(_tensor_to_array(source), "tensor [channels, height, width]", tuple(source.shape))
    if isinstance(source, np.ndarray):
        return _from_array(source, "array [height, width, channels]", source.shape)
    if "://" in str(source):
        raise ImageError(f"'{source}' is an address, and only files are opened; download it first.")
    return _read(Path(source).expanduser())


def _read(path: Path) -> Image.Image:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ImageError(f"The picture '{path}' {what}; give the path of a {_formats()} file.")
    return _decode(path, f"'{path}'")


def _decode(file: Path | BytesIO, name: str) -> Image.Image:
    with _opened(file, name) as image:
        image.load()
        return _upright(image, name)


@contextmanager
def _opened(file: Path | BytesIO, name: str) -> Generator[Image.Image]:
    """Open a picture whose header passes; whatever goes wrong with it, here or in the block, is one sentence."""
    try:
        with warnings.catch_warnings():
            # Pillow warns below our cap and refuses above twice its own; the check that follows is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                _check_size(image.size, name)
                yield image
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(name, "far more")) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a picture in a known format; convert it to {_formats()}.") from error
    except MemoryError as error:
        raise ImageError(f"{name} does not fit into memory; scale it down.") from error
    except _DECODING_ERRORS as error:
        raise ImageError(f"{name} is damaged or cut short ({error}); save or download it again.") from error


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DECODING_ERRORS as error:
        raise ImageError(f"The EXIF data or pixels of {name} are damaged ({error}); save it again.") from error


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Lay a picture of any mode on a plain background; nothing but its pixels is kept."""
    if image.mode.startswith("I;16"):
        image = _to_eight_bits(image)
    flat = Image.new("RGB", image.size, background)
    try:
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            flat.paste(layer, mask=layer.getchannel("A"))
        else:
            flat.paste(image.convert("RGB"))
    except ValueError as error:
        raise ImageError(f"A picture of mode {image.mode!r} cannot be made RGB ({error}); convert it first.") from error
    return flat


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to bytes; Pillow's own conversion would clip all above 255 to white."""
    return Image.fromarray((np.asarray(image) / 257.0).round().astype(np.uint8))


def _tensor_to_array(tensor: Tensor) -> np.ndarray:
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim == 3:
        tensor = tensor.permute(1, 2, 0)
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _from_array(array: np.ndarray, wanted: str, shape: tuple[int, ...]) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(f"A picture must be a {wanted} with 1, 3 or 4 channels; got the shape {list(shape)}.")
    _check_size((array.shape[1], array.shape[0]), "the picture")
    return Image.fromarray((_unit_range(array) * 255.0).round().astype(np.uint8))


def _unit_range(array: np.ndarray) -> np.ndarray:
    """Bring bytes, booleans or floats to floats from 0 to 1; refuse anything else."""
    if array.dtype == np.bool_:
        return array.astype(np.float32)
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255.0
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"Pixels must be bytes (uint8), booleans or floats from 0 to 1; got {array.dtype}.")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails it too
        raise ImageError(f"Pixels given as floats must lie from 0 to 1; got {low:g} to {high:g}.")
    return array.astype(np.float32)


def _mask_plane(source: Tensor | np.ndarray) -> Tensor | None:
    """Take numbers with one channel as they are, without rounding them to bytes; None if there are more channels."""
    array = _tensor_to_array(source) if isinstance(source, Tensor) else source
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2:
        return None
    _check_size((array.shape[1], array.shape[0]), "the mask")
    return torch.tensor(_unit_range(array))


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty: {width} x {height} pixels.")
    if width * height > MAX_PIXELS:
        raise ImageError(_too_large(name, f"{width} x {height} = {width * height / 1e6:.0f} million"))


def _too_large(name: str, found: str) -> str:
    return f"{name} has {found} pixels; at most {MAX_PIXELS // 10**6} million are opened. Scale it down."


def _formats() -> str:
    return ", ".join(FORMATS[:-1]) + " or " + FORMATS[-1]
