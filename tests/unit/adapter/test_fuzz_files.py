"""Hostile files, a few hundred of them; `make fuzz` runs all (`benchmarks/fuzz_files.py`, whose promises these are)."""

import importlib.util
import json
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from imprompt.adapter.checkpoint import files, load_adapter, pickles, read_spec, save_adapter
from imprompt.core.errors import CheckpointError
from tests import hostile, tiny

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "fuzz_files.py"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_files", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def harness(fuzz: ModuleType, tmp_path: Path) -> Any:
    return fuzz.Harness(tmp_path)


def test_mutants_of_safetensors(fuzz: ModuleType, harness: Any) -> None:
    fuzz.fuzz_headers(harness, 300, seed=1)
    assert sum(harness.outcomes.values()) == 300 and set(harness.outcomes) == {"read", "refused"}


def test_mutants_of_pickles(fuzz: ModuleType, harness: Any) -> None:
    fuzz.fuzz_pickles(harness, 80, seed=1)
    assert sum(harness.outcomes.values()) == 80


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch, when it writes the gadgets
def test_gadgets_and_bombs_are_all_refused(fuzz: ModuleType, harness: Any) -> None:
    assert fuzz.fuzz_gadgets(harness) >= 100
    assert set(harness.outcomes) == {"refused"}


def test_the_canary_lives_in_the_gadgets(fuzz: ModuleType, tmp_path: Path) -> None:
    """They are real: unpickled as pickle itself does it, one of them leaves its file."""
    import pickle

    canary = tmp_path / "it-ran"
    pickle.loads(pickle.dumps(hostile.calls(canary)["os.system"]))
    assert canary.exists()


STATE = {"image_proj": {"proj.weight": torch.ones(3, 3)}, "ip_adapter": {"1.to_k_ip.weight": torch.zeros(5000)}}
TWO_IN_ONE = list(hostile.two_in_one(STATE))


@pytest.mark.parametrize(("name", "content"), TWO_IN_ONE, ids=[name for name, _ in TWO_IN_ONE])
def test_a_file_that_can_be_read_in_two_ways_is_refused_before_torch_reads_it(
    name: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.bin is refused"):
        pickles.check_pickle(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("num_numbers", [1, 5, 16, 100_000])
def test_what_torch_writes_passes(legacy: bool, num_numbers: int, tmp_path: Path) -> None:
    state = {**STATE, "more": {"a": torch.ones(num_numbers), "é" * 40: torch.ones(num_numbers).half()}}
    path = tmp_path / "a b.c.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    pickles.check_pickle(path)
    (tmp_path / "b.bin").write_bytes(hostile.pickled(state, legacy=legacy))
    pickles.check_pickle(tmp_path / "b.bin")


# What the safetensors library checks, and what it leaves to us -------------------------------------------------------


def write(path: Path, header: Any, numbers: bytes = b"\0" * 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)
    return path


def entry(start: int, stop: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 8), "b": entry(4, 8)},
        {"a": entry(0, 4)},
        {"a": entry(4, 8)},
        {"a": entry(0, 16)},
        {"a": entry(8, 0)},
        {"a": entry(0, 8, [3])},
        {"a": entry(0, 8, [2**63, 2])},
        {"a": entry(0, 8, [2**32, 2**32])},
        {"a": entry(0, 8, [-2])},
        {"a": entry(0, 8, dtype="F5")},
        {"a": {**entry(0, 8), "shape": "2"}},
        {"__metadata__": {"a": 1}, "a": entry(0, 8)},
        {"__metadata__": [], "a": entry(0, 8)},
        b'{"a":' * 2000,
        b"{",
        b"",
    ],
    ids=lambda header: str(header)[:40],
)
def test_headers_that_lie(header: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", header)
    for read in (read_spec, load_adapter):
        with pytest.raises(CheckpointError) as error:
            read(path)
        assert path.name in str(error.value) and "\n" not in str(error.value)


def test_one_key_twice_is_no_adapter(tmp_path: Path) -> None:
    text = json.dumps(entry(0, 8)).encode()
    path = write(tmp_path / "a.safetensors", b'{"a":' + text + b',"a":' + text + b"}")
    with pytest.raises(CheckpointError):
        load_adapter(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({f"{number:06}" * 30: entry(0, 0, [0]) for number in range(19_000)}, "a header of"),
        ({str(number): entry(0, 0, [0]) for number in range(21_000)}, "more than 20,000 tensors"),
        ({"k" * 600: entry(0, 8)}, "a key of 600 letters"),
        ({"a": entry(0, 8, [1] * 8 + [2])}, "9 dimensions"),
    ],
)
def test_headers_at_their_limits(header: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", header, b"\0" * (8 if "entry" not in header else 0))
    if words.startswith(("a header", "more than")):
        path = write(tmp_path / "a.safetensors", header, b"")
    with pytest.raises(CheckpointError, match=words) as error:
        read_spec(path)
    assert path.name in str(error.value)


def test_a_tensor_of_no_numbers_and_a_long_side(tmp_path: Path) -> None:
    """The library lets it through, and a layer of it would take a petabyte."""
    state = tiny.adapter(tiny.unet()).state_dict()
    path = tmp_path / "a.safetensors"
    save_file({**state, "image_proj.proj.weight": torch.zeros(0, 2**40)}, path)
    with pytest.raises(CheckpointError):
        load_adapter(path)


@pytest.mark.parametrize("field", ["site_indices", "depth", "lora"])
def test_a_spec_of_more_layers_than_the_file_has_builds_none(field: str, tmp_path: Path) -> None:
    adapter = tiny.adapter(tiny.unet(), "resampler")
    path = save_adapter(adapter, tmp_path / "a.safetensors")
    spec = json.loads(adapter.spec.to_json())
    many = list(range(100_000))
    if field == "site_indices":
        spec |= {"site_indices": many, "site_widths": [8] * len(many)}
    elif field == "depth":
        spec["projector"]["depth"] = 1000
    else:
        spec["lora"] = {"rank": 1, "indices": many, "widths": [8] * len(many), "key_widths": [8] * len(many)}
    save_file(load_file(path), path, metadata={"imprompt_spec": json.dumps(spec)})
    with pytest.raises(CheckpointError) as error:
        load_adapter(path)
    assert path.name in str(error.value) and len(str(error.value)) < 700


# Limits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "limit", "value", "words"),
    [
        (pickles, "MAX_INSTRUCTIONS", 50, "more than 50 instructions"),
        (pickles, "MAX_STREAM_BYTES", 50, "bytes of instructions, more than 50"),
        (pickles, "MAX_TENSORS", 3, "more than 3 tensors"),
        (files, "MAX_KEY_LENGTH", 5, "a key of"),
    ],
)
def test_limits_of_pickles(
    module: Any, limit: str, value: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_adapter(tiny.adapter(tiny.unet(), official=True), tmp_path / "a.bin", format="official")
    load_adapter(path)
    monkeypatch.setattr(module, limit, value)
    with pytest.raises(CheckpointError, match=words) as error:
        load_adapter(path)
    assert path.name in str(error.value)
