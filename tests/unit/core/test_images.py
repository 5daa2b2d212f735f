"""Pictures from every source, and everything that is not one."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imprompt.core import images
from imprompt.core.errors import ImageError
from imprompt.core.images import fit_square, image_hash, load_image, load_mask


def gradient(width: int = 6, height: int = 4) -> Image.Image:
    values = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(values)


def write_png(path: Path, width: int, height: int, *, rows: int) -> Path:
    """A PNG of one bit a pixel whose header claims width x height and whose data holds `rows` rows of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 7) // 8 + 1) * rows, 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("suffix", ["png", "webp", "gif", "bmp", "jpg"])
def test_known_formats_open(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / f"picture.{suffix}")
    loaded = load_image(tmp_path / f"picture.{suffix}")
    assert (loaded.mode, loaded.size) == ("RGB", (6, 4))
    assert loaded.getpixel((0, 0))[0] > 250


def test_a_string_and_a_path_are_the_same(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    assert load_image(str(tmp_path / "a.png")) == load_image(tmp_path / "a.png") == gradient()


def test_the_original_is_left_alone() -> None:
    original = gradient()
    loaded = load_image(original)
    loaded.paste((0, 0, 0), (0, 0, 6, 4))
    assert original == gradient()


def test_exif_turns_the_picture_and_is_dropped(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    exif[0x010E] = "a private remark"
    gradient().save(tmp_path / "upright.png", exif=exif)
    loaded = load_image(tmp_path / "upright.png")
    assert loaded == gradient().transpose(Image.Transpose.ROTATE_270)
    assert loaded.info == {}


def test_transparency_becomes_white() -> None:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (255, 0, 0, 0))
    assert list(load_image(picture).get_flattened_data()) == [(255, 0, 0), (255, 255, 255)]


def test_a_palette_with_a_transparent_colour_becomes_white(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "p.gif", transparency=1)
    assert list(load_image(tmp_path / "p.gif").get_flattened_data()) == [(255, 0, 0), (255, 255, 255)]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert [pixel[0] for pixel in load_image(tmp_path / "deep.png").get_flattened_data()] == [0, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "HSV"])
def test_every_usual_mode_becomes_rgb(mode: str) -> None:
    assert load_image(gradient().convert("L").convert("RGB").convert(mode)).mode == "RGB"


def test_an_unusual_mode_is_refused() -> None:
    with pytest.raises(ImageError, match="mode 'La' cannot be made RGB"):
        load_image(Image.new("La", (2, 2)))


def test_tensors_and_arrays_are_read_in_their_own_order() -> None:
    array = np.asarray(gradient())
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for source in (array, tensor, tensor[None], tensor / 255.0, array / 255.0, (tensor / 255.0).double()):
        assert load_image(source) == gradient()


def test_grey_tensors_and_transparent_arrays() -> None:
    assert load_image(torch.ones(1, 2, 3)) == Image.new("RGB", (3, 2), "white")
    assert load_image(np.zeros((2, 3), dtype=np.uint8)) == Image.new("RGB", (3, 2), "black")
    assert load_image(np.zeros((2, 3, 4), dtype=np.uint8)) == Image.new("RGB", (3, 2), "white")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            torch.zeros(5, 2, 2),
            r"tensor \[channels, height, width\] with 1, 3 or 4 channels; got.*\[5, 2, 2\]",
        ),
        (torch.zeros(2, 3, 4, 4), r"got the shape \[2, 3, 4, 4\]"),
        (torch.full((3, 2, 2), 1.5), "from 0 to 1; got 1.5 to 1.5"),
        (torch.full((3, 2, 2), -1.0), "from 0 to 1; got -1 to -1"),
        (torch.full((3, 2, 2), torch.nan), "got nan to nan"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), "got int64"),
        (torch.zeros(3, 0, 2), "is empty: 2 x 0"),
        (np.zeros((4,)), r"array \[height, width, channels\].*got the shape \[4\]"),
    ],
)
def test_numbers_that_are_no_picture(source: torch.Tensor | np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(source)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="none.png' does not exist; give the path of a PNG, JPEG"):
        load_image(tmp_path / "none.png")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)


def test_an_address_is_not_opened() -> None:
    with pytest.raises(ImageError, match="is an address"):
        load_image("https://example.org/cat.png")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_a_file_that_is_no_picture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fake.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="not a picture in a known format|damaged or cut short"):
        load_image(path)


def test_a_format_nobody_prompts_with_is_not_opened(tmp_path: Path) -> None:
    gradient().save(tmp_path / "picture.tiff")
    with pytest.raises(ImageError, match="not a picture in a known format"):
        load_image(tmp_path / "picture.tiff")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
def test_a_file_cut_short(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="damaged or cut short|not a picture"):
        load_image(path)


def test_a_bomb_by_its_header_alone(tmp_path: Path) -> None:
    path = write_png(tmp_path / "bomb.png", 20_000, 20_000, rows=1)
    assert path.stat().st_size < 100
    with pytest.raises(ImageError, match="at most 64 million"):
        load_image(path)


def test_a_real_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    path = write_png(tmp_path / "bomb.png", 20_000, 20_000, rows=20_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(ImageError, match="at most 64 million"):
        load_image(path)


def test_a_bomb_below_pillows_own_limits(tmp_path: Path) -> None:
    path = write_png(tmp_path / "bomb.png", 9_000, 9_000, rows=1)
    with pytest.raises(ImageError, match="9000 x 9000 = 81 million pixels; at most 64 million"):
        load_image(path)


def test_an_image_in_memory_has_the_same_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 20)
    with pytest.raises(ImageError, match="6 x 4"):
        load_image(gradient())


def test_mutated_files_raise_our_error_or_open(tmp_path: Path) -> None:
    """Whatever bytes a file holds, the caller meets one kind of error."""
    random = np.random.default_rng(0)
    path = tmp_path / "mutant"
    for suffix in ("png", "jpeg", "webp", "gif", "bmp"):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path, suffix)
        seed = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(60):
            mutant = seed.copy()
            mutant[random.integers(0, len(seed), 4)] = random.integers(0, 256, 4)
            path.write_bytes(mutant.tobytes())
            try:
                load_image(path)
            except ImageError:
                continue


def test_masks_are_luminance_times_opacity(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (3, 1), (255, 255, 255, 255))
    picture.putpixel((1, 0), (0, 0, 0, 255))
    picture.putpixel((2, 0), (255, 255, 255, 0))
    picture.save(tmp_path / "mask.png")
    assert load_mask(tmp_path / "mask.png").tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (1, 1, 2, 3)])
def test_mask_tensors_are_not_rounded(shape: tuple[int, ...]) -> None:
    assert torch.equal(load_mask(torch.full(shape, 0.3)), torch.full((2, 3), 0.3))


def test_mask_arrays_of_booleans_bytes_and_colours() -> None:
    assert load_mask(np.array([[True, False]])).tolist() == [[1.0, 0.0]]
    assert load_mask(np.array([[[255], [0]]], dtype=np.uint8)).tolist() == [[1.0, 0.0]]
    assert load_mask(torch.ones(3, 1, 2)).tolist() == [[1.0, 1.0]]


def test_a_mask_out_of_range() -> None:
    with pytest.raises(ImageError, match="got 0 to 2"):
        load_mask(torch.tensor([[0.0, 2.0]]))


def test_the_hash_is_of_what_is_seen(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    gradient().save(tmp_path / "a.bmp")
    assert image_hash(load_image(tmp_path / "a.png")) == image_hash(load_image(tmp_path / "a.bmp"))
    assert image_hash(gradient(6, 4)) != image_hash(Image.frombytes("RGB", (4, 6), gradient(6, 4).tobytes()))


def test_crop_keeps_the_centre() -> None:
    assert fit_square(gradient(6, 4), "crop") == gradient(6, 4).crop((1, 0, 5, 4))


def test_pad_adds_white_and_keeps_every_pixel() -> None:
    square = fit_square(gradient(6, 4), "pad")
    assert square.size == (6, 6)
    assert square.crop((0, 1, 6, 5)) == gradient(6, 4)
    assert square.getpixel((0, 0)) == square.getpixel((0, 5)) == (255, 255, 255)


def test_stretch_fills_the_square() -> None:
    assert fit_square(Image.new("RGB", (6, 4), "red"), "stretch") == Image.new("RGB", (6, 6), "red")


def test_a_thin_strip_does_not_become_a_bomb() -> None:
    with pytest.raises(ImageError, match="20000 x 20000 = 400 million"):
        fit_square(Image.new("RGB", (20_000, 1)), "pad")


def test_an_unknown_fit() -> None:
    with pytest.raises(ImageError, match="fit must be one of 'crop', 'pad', 'stretch'; got 'zoom'"):
        images.check_fit("zoom")
