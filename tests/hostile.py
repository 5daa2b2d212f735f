"""Hostile adapter files: damaged headers and tensors, damaged pickles, gadgets and bombs, all from a seed.

A gadget that runs leaves a file where the canary is; nobody may ever find one there.
"""

import builtins
import io
import json
import os
import pickle
import random
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I8", "U8", "BOOL", "F4", "X", "", None, 7)
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    2**16,
    2**31,
    2**32,
    2**53,
    2**63,
    2**64,
    2**64 - 1,
    10**30,
    0.5,
    "1",
    None,
    True,
    [],
    {},
)
KEYS = ("", "a", "image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight", "ip_adapter.999999.to_k_ip.weight", "\u0000")
KEYS += ("ip_adapter.0000001.to_k_ip.weight", "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q", "x" * 3000)
KEYS += ("__metadata__", "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight", "pulid_ca.0.to_q.weight")
KEYS += (
    "id_adapter.latents",
    "module.module.x",
    "encoder_hid_proj.image_projection_layers.0.latents",
    "\ud7ff",
    "../../x",
)


# Safetensors ---------------------------------------------------------------------------------------------------------


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and numbers of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Any, numbers: bytes, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", (len(text) if length is None else length) % 2**64) + text + numbers


def mutate_safetensors(content: bytes, random: random.Random) -> bytes:
    """One to three changes of a file: of bytes, of the header's text, of its fields, or of its spec."""
    for _ in range(random.randint(1, 3)):
        change = random.choice((bytes_of, header_text, fields_of, fields_of, fields_of, spec_of, spec_of, length_of))
        try:
            content = change(content, random)
        except Exception:  # too damaged for that change
            content = bytes_of(content, random)
    return content


def bytes_of(content: bytes, random: random.Random) -> bytes:
    if not content:
        return bytes([random.randrange(256)])
    place = random.randrange(min(len(content), random.choice((16, 400, 10**9))))
    match random.randrange(5):
        case 0:
            return content[:place]
        case 1:
            return content[:place] + bytes([content[place] ^ (1 << random.randrange(8))]) + content[place + 1 :]
        case 2:
            return content[:place] + random.randbytes(random.randint(1, 12)) + content[place:]
        case 3:
            return content[:place] + content[place + random.randint(1, 64) :]
        case _:
            return content + random.randbytes(random.randint(1, 64))


def header_text(content: bytes, random: random.Random) -> bytes:
    header, numbers = split(content)
    text = json.dumps(header).encode()
    place = random.randrange(len(text))
    junk = random.choice((b"[" * 5000, b'{"a":' * 300, b'"', b"\\u0000", b"1e999", b"NaN", b"\xff\xfe", b" " * 70_000))
    doubled = text[:-1] + b"," + text[1:]
    return join(random.choice((text[:place] + junk + text[place:], doubled, b"", b"null", b"[]", junk)), numbers)


def length_of(content: bytes, random: random.Random) -> bytes:
    header, numbers = split(content)
    return join(header, numbers, length=random.choice((0, 1, 7, 2**20, 2**27, 2**32, 2**63, 2**64 - 1, len(content))))


def fields_of(content: bytes, random: random.Random) -> bytes:
    header, numbers = split(content)
    key = random.choice([name for name in header if name != "__metadata__"] or [""])
    entry = header.get(key)
    match random.randrange(8):
        case 0:
            header.pop(key, None)
        case 1:
            header[random.choice(KEYS)] = header.pop(key, {"dtype": "F32", "shape": [], "data_offsets": [0, 4]})
        case 2:
            entry["dtype"] = random.choice(DTYPES)  # pyright: ignore
        case 3:
            entry["shape"] = [random.choice(NUMBERS) for _ in range(random.choice((0, 1, 2, 3, 9, 70)))]  # pyright: ignore
        case 4:
            entry["data_offsets"][random.randrange(2)] = random.choice(NUMBERS)  # pyright: ignore
        case 5:
            header[key] = random.choice(NUMBERS)
        case 6:  # the same numbers under another shape
            entry["shape"] = [*reversed(entry["shape"]), *[1] * random.randrange(3)]  # pyright: ignore
        case _:
            empty = {"dtype": "F16", "shape": [0, random.choice((1, 2**31, 2**60))], "data_offsets": [0, 0]}
            header.update(
                {f"ip_adapter.{number}.to_k_ip.weight": empty for number in range(random.choice((1, 9, 400)))}
            )
    return join(header, numbers)


def spec_of(content: bytes, random: random.Random) -> bytes:
    """A change in what the metadata say that the adapter is."""
    header, numbers = split(content)
    metadata = header.get("__metadata__") or {}
    try:
        spec = json.loads(metadata.get("imprompt_spec", "{}"))
        place = random.choice([spec, *(value for value in spec.values() if isinstance(value, dict))])
        name = random.choice(list(place) or ["name"])
        place[name] = random.choice(
            (*NUMBERS, [1] * 30_000, list(range(60)), {"kind": "linear"}, "sd3-instantx", "tokens")
        )
        text = json.dumps(spec)
    except (ValueError, AttributeError, TypeError):
        text = random.choice(("", "{", "[]", "null", "1e999", "{" * 3000))
    header["__metadata__"] = {**metadata, "imprompt_spec": text}
    return join(header, numbers)


# Pickles -------------------------------------------------------------------------------------------------------------


def pickled(content: Any, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def repacked(content: bytes, change: Callable[[str, bytes], bytes | None], packing: int = zipfile.ZIP_STORED) -> bytes:
    """An archive with some of its parts changed or left out."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w", packing) as archive:
        for entry in source.infolist():
            part = change(entry.filename, source.read(entry))
            if part is not None:
                archive.writestr(entry.filename, part)
    return target.getvalue()


def mutate_pickle(content: bytes, random: random.Random) -> bytes:
    """One to three changes: of bytes anywhere, or of the instructions, which an archive's sums do not protect."""
    for _ in range(random.randint(1, 3)):
        if not zipfile.is_zipfile(io.BytesIO(content)) or random.random() < 0.3:
            content = bytes_of(content, random)
            continue

        def change(name: str, part: bytes) -> bytes:
            return bytes_of(part, random) if name.endswith("data.pkl") or random.random() < 0.05 else part

        try:
            content = repacked(content, change)
        except Exception:  # an archive that is damaged already
            content = bytes_of(content, random)
    return content


class Call:
    """Calls something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def calls(canary: Path) -> dict[str, Any]:
    """Objects that leave a file, or take memory, when they are unpickled as pickle itself would."""
    code = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch {canary}"),
        "eval": Call(builtins.eval, code.replace(".close()", "")),
        "exec": Call(builtins.exec, code),
        "open": Call(builtins.open, str(canary), "w"),
        "subprocess": Call(subprocess.check_call, ["touch", str(canary)]),
        "Path.touch": Call(Path.touch, canary),
        "getattr": Call(builtins.getattr, "text", "join"),
        "import": Call(__import__, "antigravity"),
        "torch.load": Call(torch.load, str(canary)),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {canary}"))),
        "torch.hub": Call(torch.hub.load, str(canary.parent), "x"),
        "bytearray": Call(bytearray, 10**11),
        "a tensor of a tebibyte": Call(torch.Tensor, 2**38),
        "a size": Call(torch.Size, [2**60]),
        "a set": {1, 2},
        "a range": range(3),
        "a module": torch.nn.Linear(2, 2),
        "a device": torch.device("cpu"),
    }


def bombs(state: dict[str, dict[str, Tensor]]) -> Iterator[tuple[str, bytes]]:
    """Files that would take memory or time without end, or run something by other ways than a name."""
    plain = pickled(state)
    zeros = {
        "image_proj": {"proj.weight": torch.zeros(4_000_000)},
        "ip_adapter": {"1.to_k_ip.weight": torch.zeros(9, 9)},
    }
    yield "packed", repacked(pickled(zeros), lambda _name, part: part, zipfile.ZIP_DEFLATED)
    yield "packed by bzip2", repacked(pickled(zeros), lambda _name, part: part, zipfile.ZIP_BZIP2)
    yield "no instructions", repacked(plain, lambda name, part: None if name.endswith("data.pkl") else part)
    yield "instructions twice", repacked(plain, lambda _name, part: part) + plain
    yield "no numbers", repacked(plain, lambda name, part: None if "/data/" in name else part)
    yield "TorchScript", repacked(plain, lambda name, part: part if "pkl" not in name else b"\x80\x02N.")
    yield from two_in_one(state)
    yield "seven-zip", b"7z\xbc\xaf\x27\x1c" + plain[6:]
    for legacy in (False, True):
        word = "legacy " if legacy else ""
        huge = {**state, "ip_adapter": {**state["ip_adapter"], "1.to_v_ip.weight": torch.zeros(1).expand(2**20, 2**20)}}
        yield f"{word}stride 0", pickled(huge, legacy=legacy)
        nested: dict[str, Any] = {"1.to_k_ip.weight": torch.ones(2)}
        for _ in range(60):
            nested = {"a": nested, "b": nested}
        yield f"{word}dictionaries in dictionaries", pickled({"image_proj": nested, "ip_adapter": {}}, legacy=legacy)
        empty: dict[str, Any] = {}
        for _ in range(4):
            empty = {str(number): empty for number in range(3000)}
        yield f"{word}empty dictionaries without end", pickled({"image_proj": empty, "ip_adapter": {}}, legacy=legacy)
        itself: dict[str, Any] = {}
        itself["a"] = itself
        yield f"{word}a dictionary in itself", pickled({"image_proj": itself, "ip_adapter": {}}, legacy=legacy)
        parts = torch.zeros(21_000).split(1)
        many = {str(number): part for number, part in enumerate(parts)}
        yield f"{word}too many tensors", pickled({"image_proj": many, "ip_adapter": {}}, legacy=legacy)
        yield (
            f"{word}a long key",
            pickled({"image_proj": {"k" * 10**6: torch.ones(1)}, "ip_adapter": {}}, legacy=legacy),
        )
        yield f"{word}a sparse tensor", pickled({"image_proj": {"a": torch.eye(2).to_sparse()}}, legacy=legacy)
        yield f"{word}a number", pickled({"image_proj": {"a": 10**3000}}, legacy=legacy)
    for name, text in bare_streams():
        yield name, text
        yield (
            f"{name}, in an archive",
            repacked(plain, lambda n, part, text=text: text if n.endswith("data.pkl") else part),
        )


def two_in_one(state: dict[str, dict[str, Tensor]]) -> Iterator[tuple[str, bytes]]:
    """Files that are one thing from their start and another from their end: a harmless one, and one that takes 700 MiB.

    torch goes by the first four bytes, Python's zipfile by the last.
    """
    plain, bomb = pickled(state), Call(bytearray, 700 * 2**20)
    evil, old = (pickled({**state, "extra": bomb}, legacy=legacy) for legacy in (False, True))
    yield "legacy + zip", old + plain
    yield "harmless legacy + zip", pickled(state, legacy=True) + plain
    yield "zip + legacy", plain + old
    yield "zip + zip", evil + plain
    yield "junk + zip", b"\x80\x02N." * 100 + plain
    yield "zip + junk", plain + b"\0" * 64
    yield "zip with a comment", plain[:-2] + struct.pack("<H", 2000) + bytes(2000)
    place = plain.index(b"PK\x01\x02")  # the directory, which is moved back
    moved = place + len(old)
    shifted = plain[:-6] + struct.pack("<I", moved) + plain[-2:]
    yield "bytes before the directory", shifted[:place] + old + shifted[place:]
    stream = next(part for name, part in _parts(evil) if name.endswith("data.pkl"))
    for name in ("archive/DATA.PKL", "archive/Data.pkl", "archive/xdata.pkl"):
        yield name, _added(plain, name, stream)
    renamed = plain.replace(b"archive/data.pkl", b"archive/DATA.PKL")
    yield "two streams of one name", _added(renamed, "other/data.pkl", stream)
    hidden = plain.replace(b"archive/data.pkl", b"archive/data.pkm", 1)  # under another name than in the directory
    yield "a part of two names", hidden
    yield "tar", _tar(pickled(state, legacy=True))


def _parts(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def _added(content: bytes, name: str, part: bytes) -> bytes:
    target = io.BytesIO(content)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(name, part)
    return target.getvalue()


def _tar(content: bytes) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return target.getvalue()


def bare_streams() -> Iterator[tuple[str, bytes]]:
    """Pickles written by hand."""
    touch = b"touch CANARY"
    yield "protocol 0", b"cos\nsystem\n(S'" + touch + b"'\ntR."
    yield "INST", b"(S'" + touch + b"'\nios\nsystem\n."
    yield "OBJ", b"(cos\nsystem\nS'" + touch + b"'\no."
    yield "STACK_GLOBAL", b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(touch)]) + touch + b"\x85R."
    yield "EXT1", b"\x80\x02\x82\x01."
    yield "PERSID", b"\x80\x02Ptouch\n."
    yield "a million marks", b"\x80\x02" + b"(" * 3_000_000 + b"."
    yield "doubling", b"\x80\x02]q\x00" + b"h\x00h\x00\x86q\x00" * 5000 + b"."
    yield "a long that is long", b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\xff" * 100 + b"."
    yield "a text that is not there", b"\x80\x02X\xff\xff\xff\x7fa."
    yield "an empty file", b""
    yield "a stop", b"."
