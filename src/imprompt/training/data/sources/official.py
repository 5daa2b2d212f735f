"""The JSON of IP-Adapter's own training scripts: a list of objects with `image_file` and `text`.

`tutorial_train*.py` of tencent-ailab/IP-Adapter at 62e4af9; for faces also `id_embed_file` and `face_image_file`.
"""

from pathlib import Path
from typing import Any

from imprompt.training.data.sources.folder import FILE_NAME, in_parts, merged, named, picture_name, read, relative_names
from imprompt.training.data.sources.records import Format, Unit, head, parse_json


def recognises(source: Path) -> bool:
    """Whether it is a JSON file with a list of pictures."""
    return source.is_file() and head(source, 64).lstrip()[:1] == b"[" and bool(_records(source))


def _records(source: Path) -> list[Any]:
    """The list, if its first object names a picture."""
    records = parse_json(source.read_bytes())
    first = records[0] if isinstance(records, list) and records else None
    return records if isinstance(first, dict) and any(name in first for name in FILE_NAME) else []


def units(source: Path, root: Path) -> list[Unit]:
    """Records of all pictures, some hundreds a part; they are read as those of a folder are."""
    records: list[dict[str, Any]] = []
    for number, record in enumerate(_records(source)):
        name = picture_name(record)
        unreadable = {"unreadable": f"{source.name}, entry {number}"}
        records.append(unreadable if name is None else relative_names(record, name, root))
    return in_parts("official", root, merged(records))


FORMAT = Format("official", "a JSON list of image_file and text", recognises, units, read, named)
