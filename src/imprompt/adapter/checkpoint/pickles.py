"""What a pickle would do, read off its instructions before anything of it is done.

torch's own loader refuses what is no tensor, but lets through a few names that take memory as asked (`bytearray`) or
make tensors of other kinds. An adapter needs fewer: a dictionary of plain tensors. The rest is refused by its name.
"""

import io
import mmap
import pickletools
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from imprompt.adapter.checkpoint.archives import foreign_bytes, is_archive
from imprompt.core.errors import CheckpointError, first_line

MAX_PICKLE_BYTES = 16 * 2**30  # a training checkpoint of Stable Diffusion XL in single precision has twelve
MAX_TENSORS = 20_000
MAX_INSTRUCTIONS = 1_000_000  # a training checkpoint of Stable Diffusion XL has some hundred thousand
MAX_STREAM_BYTES = 64 * 2**20  # of instructions in an archive, beside the numbers
LEGACY_PICKLES = (
    5  # of the format before archives: a number, a version, the system, the content, the names of its parts
)
LEGACY_CONTENT = 3

PROTOCOL = 2  # which torch writes, and the only one that its careful loader reads without complaint
FORBIDDEN = ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX", "PERSID")

REBUILDERS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
ALLOWED = {
    "collections.OrderedDict",
    "torch.Size",
    *(f"torch._utils.{name}" for name in REBUILDERS),
    *(f"torch.{kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double", "Byte", "Char", "Short", "Int")),
    *(f"torch.{kind}Storage" for kind in ("Long", "Bool")),
    "torch.storage.UntypedStorage",
    *(f"torch.{kind}" for kind in ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2")),
    *(f"torch.{kind}" for kind in ("int64", "int32", "int16", "int8", "uint8", "bool")),
}


def check_pickle(path: Path) -> None:
    """Refuse a pickle that names anything but tensors, or unpacks to more than its own size.

    Raises:
        CheckpointError: it names the file and the reason.
    """
    size = path.stat().st_size
    if size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{path.name} is refused: {size:,} bytes, more than {MAX_PICKLE_BYTES:,}")
    try:
        if is_archive(path):
            _check_stream(path, _stream_of_archive(path, size), pickles=1, content=0)
        else:
            _check_is_one_file(path)
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as file_content:
                _check_stream(path, file_content, pickles=LEGACY_PICKLES, content=LEGACY_CONTENT)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file ends in any of a dozen kinds
        raise _refusal(path, f"its instructions cannot be read: {first_line(error)}") from error


def _check_is_one_file(path: Path) -> None:
    """Refuse what other programs, or torch itself, would take for something else than a pickle of the older format."""
    if zipfile.is_zipfile(path):
        raise _refusal(path, "it starts as a pickle and ends as an archive, so that it can be read in two ways")
    try:
        with tarfile.open(path, "r:"):
            pass
    except tarfile.TarError:
        return
    raise _refusal(path, "it is a tar archive, which torch's careful loader does not read")


def _stream_of_archive(path: Path, size: int) -> Any:
    """The instructions in an archive: stored, not packed, as torch writes it; one that is packed is a bomb."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > size:
            raise CheckpointError(f"{path.name} is refused: {size:,} bytes that unpack to {unpacked:,}")
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise _refusal(path, f"its part {packed[0][:80]!r} is packed, which torch's files are not")
        foreign = foreign_bytes(path, archive)
        if foreign is not None:
            raise _refusal(path, f"an archive with {foreign}, so that it can be read in two ways")
        streams = [entry for entry in entries if entry.orig_filename.lower().endswith("data.pkl")]
        if len(streams) != 1:
            raise _refusal(path, f"an archive with {len(streams)} 'data.pkl'; expected one")
        if streams[0].file_size > MAX_STREAM_BYTES:
            raise _refusal(path, f"{streams[0].file_size:,} bytes of instructions, more than {MAX_STREAM_BYTES:,}")
        return io.BytesIO(archive.read(streams[0]))


def _check_stream(path: Path, stream: Any, *, pickles: int, content: int) -> None:
    size = path.stat().st_size
    count = storages = 0
    for number in range(pickles):
        for opcode, argument, _position in pickletools.genops(stream):
            count += 1
            if count > MAX_INSTRUCTIONS:
                raise _refusal(path, f"more than {MAX_INSTRUCTIONS:,} instructions")
            if opcode.name == "GLOBAL" and (name := str(argument).replace(" ", ".", 1)) not in ALLOWED:
                raise _refusal(path, f"it names {name[:120]!r}, which is no tensor and may run code")
            storages += opcode.name == "BINPERSID"
            if storages > MAX_TENSORS:
                raise CheckpointError(
                    f"{path.name} is refused: more than {MAX_TENSORS:,} tensors; no adapter has so many"
                )
            if opcode.name in FORBIDDEN or (opcode.name == "PROTO" and argument != PROTOCOL):
                raise _refusal(path, f"the instruction {opcode.name} {argument!r:.20}, which torch does not write")
            # No tensor of a file has more numbers, or a longer side, than the file has bytes.
            if number == content and isinstance(argument, int) and argument > max(size, 2**16):
                raise _refusal(path, f"it claims {argument:,} of something in {size:,} bytes")


def _refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is refused: it does not load as bare tensors ({reason}); "
        "a pickle may run code, so get the .safetensors file instead"
    )
