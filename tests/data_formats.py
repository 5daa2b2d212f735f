"""The same pictures in every format that training data come in."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZES = ((40, 30), (30, 40), (32, 32), (64, 32))


def picture(number: int, size: tuple[int, int] | None = None) -> Image.Image:
    width, height = size or SIZES[number % len(SIZES)]
    values = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)


def encoded(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def caption(number: int) -> str:
    return f"picture number {number}"


def contents(count: int) -> list[bytes]:
    return [encoded(picture(number)) for number in range(count)]


def text_folder(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number, content in enumerate(contents(count)):
        (folder / f"{number:03}.png").write_bytes(content)
        (folder / f"{number:03}.txt").write_text(caption(number))
    return folder


def metadata_folder(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number, content in enumerate(contents(count)):
        (folder / f"{number:03}.png").write_bytes(content)
    write_metadata(folder, *({"file_name": f"{number:03}.png", "text": caption(number)} for number in range(count)))
    return folder


def write_metadata(folder: Path, *lines: dict[str, object]) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def official_json(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number, content in enumerate(contents(count)):
        (folder / f"{number:03}.png").write_bytes(content)
    entries = [{"image_file": f"{number:03}.png", "text": caption(number)} for number in range(count)]
    (folder / "data.json").write_text(json.dumps(entries))
    return folder / "data.json"


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def shard_members(number: int, content: bytes) -> dict[str, bytes]:
    key = f"{number:09}"
    record = {"key": key, "caption": caption(number), "status": "success"}
    return {f"{key}.png": content, f"{key}.txt": caption(number).encode(), f"{key}.json": json.dumps(record).encode()}


def plain_tars(folder: Path, count: int) -> Path:
    """Two shards without lists."""
    folder.mkdir(parents=True)
    pictures = contents(count)
    for shard, numbers in enumerate(np.array_split(np.arange(count), 2)):
        members: dict[str, bytes] = {}
        for number in numbers.tolist():
            members.update(shard_members(number, pictures[number]))
        tar_of(folder / f"{shard:05}.tar", members)
    return folder


def listed_tars(folder: Path, count: int) -> Path:
    """Two shards as img2dataset writes them, with a list beside each that also names a failed download."""
    plain_tars(folder, count)
    pictures = contents(count)
    for shard, numbers in enumerate(np.array_split(np.arange(count), 2)):
        rows = [row_of(number, pictures[number]) for number in numbers.tolist()]
        rows.append({**rows[0], "key": f"9{shard:08}", "status": "failed_to_download", "sha256": None})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05}.parquet")
    return folder


def row_of(number: int, content: bytes) -> dict[str, object]:
    width, height = SIZES[number % len(SIZES)]
    return {
        "url": f"https://example.org/{number}.png",
        "caption": caption(number),
        "key": f"{number:09}",
        "status": "success",
        "error_message": None,
        "width": width,
        "height": height,
        "original_width": 2 * width,
        "original_height": 2 * height,
        "exif": "{}",
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def parquet_file(folder: Path, count: int) -> Path:
    """Pictures as Hugging Face's parquet files have them, three a row group."""
    folder.mkdir(parents=True)
    rows = [
        {"image": {"bytes": content, "path": f"{number}.png"}, "text": caption(number)}
        for number, content in enumerate(contents(count))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000.parquet", row_group_size=3)
    return folder


def plain_parquet(folder: Path, count: int) -> Path:
    """Bare bytes in a column of another name, names in another."""
    folder.mkdir(parents=True)
    rows = [
        {"jpg": content, "id": f"p{number}", "caption": [caption(number)]}
        for number, content in enumerate(contents(count))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.bin")
    return folder / "data.bin"


def saved_dataset(folder: Path, count: int) -> Path:
    import datasets

    datasets.disable_progress_bars()
    pictures = [picture(number) for number in range(count)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    data = {"image": pictures, "text": [caption(number) for number in range(count)]}
    datasets.Dataset.from_dict(data, features=features).save_to_disk(str(folder), num_shards=2)
    return folder


FORMATS: dict[str, Callable[[Path, int], Path]] = {
    "text folder": text_folder,
    "metadata folder": metadata_folder,
    "official JSON": official_json,
    "plain tars": plain_tars,
    "listed tars": listed_tars,
    "parquet": parquet_file,
    "plain parquet": plain_parquet,
    "saved dataset": saved_dataset,
}


def header_places(path: Path) -> Iterator[int]:
    """Where the headers of a tar's members are."""
    with tarfile.open(path) as archive:
        yield from [member.offset for member in archive.getmembers()]


def overwritten(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)
