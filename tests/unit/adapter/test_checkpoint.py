"""Files: what is read, what is refused and how, and that nothing half-written is left."""

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imprompt.adapter.checkpoint import files, load_adapter, pickles, read_spec, save_adapter
from imprompt.core.errors import CheckpointError, ImpromptError, UnknownFormat
from tests import tiny


@pytest.fixture(params=tiny.PROJECTORS)
def adapter(request: pytest.FixtureRequest) -> Any:
    return tiny.adapter(tiny.unet(), request.param)


@pytest.fixture
def linear() -> Any:
    return tiny.adapter(tiny.unet())


def sections(adapter: Any) -> dict[str, dict[str, torch.Tensor]]:
    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in adapter.state_dict().items():
        section, name = key.split(".", 1)
        state[section][name] = value
    return state


def one_line(error: pytest.ExceptionInfo[BaseException], path: Path) -> bool:
    text = str(error.value)
    return path.name in text and "\n" not in text and len(text) < 400


# Writing -------------------------------------------------------------------------------------------------------------


def test_round_trip(adapter: Any, tmp_path: Path) -> None:
    path = save_adapter(adapter, tmp_path / "folder" / "a.safetensors")
    loaded = load_adapter(path)
    assert loaded.spec == adapter.spec == read_spec(path)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    for key, value in adapter.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_layout_of_the_file(adapter: Any, tmp_path: Path) -> None:
    path = save_adapter(adapter, tmp_path / "a.safetensors", metadata={"recipe": "none"})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        keys = set(file.keys())
    assert keys == set(adapter.state_dict())
    assert all(key.startswith(("image_proj.", "ip_adapter.")) for key in keys)
    assert metadata["format"] == "pt" and metadata["recipe"] == "none"
    assert json.loads(metadata["imprompt_spec"])["name"] == adapter.spec.name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_formats(adapter: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    path = save_adapter(adapter, tmp_path / "a.safetensors", dtype=dtype)
    assert all(value.dtype == dtype for value in load_file(path).values())
    assert load_adapter(path).dtype == torch.float32
    assert load_adapter(path, dtype=None).dtype == dtype
    assert adapter.dtype == torch.float32


@pytest.mark.parametrize("name", ["a.bin", "a", "a.safetensors.txt", "a.pt"])
def test_wrong_suffix_is_named(linear: Any, name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\.safetensors"):
        save_adapter(linear, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file(linear: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_adapter(linear, tmp_path / "a.safetensors")
    before = path.read_bytes()

    def fail(_tensors: Any, target: Any, **_: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(files, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_adapter(linear, path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


# Damaged safetensors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0, 1, 7, 8, 9, 100, 0.5, 0.99])
def test_truncated_safetensors(linear: Any, part: float, tmp_path: Path) -> None:
    path = save_adapter(linear, tmp_path / "a.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: int(part if part >= 1 else part * len(content))])
    for read in (load_adapter, read_spec):
        with pytest.raises(CheckpointError) as error:
            read(path)
        assert one_line(error, path)


def test_header_that_lies_about_its_length(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(CheckpointError) as error:
        load_adapter(path)
    assert one_line(error, path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_weights_that_are_not_finite(linear: Any, value: float, suffix: str, tmp_path: Path) -> None:
    linear.ip_adapter["7"].to_v_ip.weight.data[2, 3] = value
    path = tmp_path / f"a{suffix}"
    torch.save(sections(linear), path) if suffix == ".bin" else save_adapter(linear, path)
    with pytest.raises(CheckpointError, match=r"ip_adapter\.7\.to_v_ip\.weight") as error:
        load_adapter(path)
    assert one_line(error, path)


@pytest.mark.parametrize("with_spec", [True, False])
@pytest.mark.parametrize("key", ["ip_adapter.7.to_v_ip.weight", "image_proj.norm.bias", "image_proj.proj.weight"])
def test_missing_tensor(linear: Any, key: str, with_spec: bool, tmp_path: Path) -> None:
    state = {name: value for name, value in linear.state_dict().items() if name != key}
    path = tmp_path / "a.safetensors"
    save_file(state, path, metadata={"imprompt_spec": linear.spec.to_json()} if with_spec else None)
    with pytest.raises(CheckpointError) as error:
        load_adapter(path)
    assert one_line(error, path)
    assert not with_spec or key in str(error.value)


def test_foreign_tensor(linear: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({**linear.state_dict(), "image_proj.extra.weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"image_proj\.extra\.weight") as error:
        load_adapter(path)
    assert one_line(error, path)


def test_tensor_of_another_shape(linear: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({**linear.state_dict(), "ip_adapter.3.to_v_ip.weight": torch.ones(3, 24)}, path)
    with pytest.raises(CheckpointError, match=r"to_v_ip.*\(3, 24\).*expected \(8, 24\)") as error:
        load_adapter(path)
    assert one_line(error, path)


def test_spec_of_another_file(linear: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    other = tiny.adapter(tiny.unet(), "resampler")
    save_file(linear.state_dict(), path, metadata={"imprompt_spec": other.spec.to_json()})
    with pytest.raises(CheckpointError) as error:
        load_adapter(path)
    assert one_line(error, path)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"variant": "nothing"}, "no published adapter is called 'nothing'"),
        ({"variant": "ip-adapter_sd15"}, "the spec in its metadata says 'tiny-linear'; leave variant= out"),
        ({"part": "style"}, "holds one adapter, and so no part='style'"),
        ({"shortcut": True}, "shortcut=True is not what the spec in its metadata says"),
    ],
)
def test_what_is_said_against_the_spec(linear: Any, said: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = save_adapter(linear, tmp_path / "a.safetensors")
    for read in (load_adapter, read_spec):
        with pytest.raises(CheckpointError) as error:
            read(path, **said)
        assert one_line(error, path) and words in str(error.value)
    assert read_spec(path, variant=linear.spec.name) == linear.spec


def test_unreadable_spec_names_the_file(linear: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(linear.state_dict(), path, metadata={"imprompt_spec": "{"})
    with pytest.raises(CheckpointError, match="imprompt_spec"):
        load_adapter(path)


def test_another_models_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"lora_unet.down.weight": torch.ones(2)}, path)
    with pytest.raises(UnknownFormat) as error:
        load_adapter(path)
    assert one_line(error, path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e4m3fn, torch.float64])
def test_odd_number_formats(linear: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({**linear.state_dict(), "image_proj.norm.bias": torch.ones(24).to(dtype)}, path)
    loaded = load_adapter(path)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.image_proj.norm.bias, torch.ones(24))


# Pickles -------------------------------------------------------------------------------------------------------------


def test_bin_equals_safetensors(adapter: Any, tmp_path: Path) -> None:
    official = tiny.adapter(tiny.unet(), adapter.spec.name.removeprefix("tiny-"), official=True)
    torch.save(sections(official), tmp_path / "a.bin")
    torch.save(sections(official), tmp_path / "b.bin", _use_new_zipfile_serialization=False)
    save_file(official.state_dict(), tmp_path / "a.safetensors")
    first, second, third = (load_adapter(tmp_path / name) for name in ("a.bin", "b.bin", "a.safetensors"))
    assert first.spec == second.spec == third.spec
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]) and torch.equal(value, third.state_dict()[key])


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "numpy"])
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_pickle_with_code_does_not_run(linear: Any, form: str, suffix: str, tmp_path: Path) -> None:
    path, mark = tmp_path / f"a{suffix}", tmp_path / "it-ran"
    content: Any = {**sections(linear), "extra": Bomb(mark)}
    if form == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    for read in (load_adapter, read_spec):
        with pytest.raises(CheckpointError) as error:
            read(path)
        assert one_line(error, path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))  # the bomb is a real one
    assert mark.exists()


def test_pickle_under_the_name_of_safetensors(linear: Any, tmp_path: Path) -> None:
    path, mark = tmp_path / "a.safetensors", tmp_path / "it-ran"
    torch.save({**sections(linear), "extra": Bomb(mark)}, path)
    with pytest.raises(CheckpointError) as error:
        load_adapter(path)
    assert one_line(error, path) and not mark.exists()


def test_zip_bomb(linear: Any, tmp_path: Path) -> None:
    torch.save(sections(linear), tmp_path / "plain.bin")
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(tmp_path / "plain.bin") as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.namelist():
            target.writestr(entry, source.read(entry) if entry.endswith("pkl") else bytes(10**5))
    assert path.stat().st_size < 10**5
    with pytest.raises(CheckpointError, match="unpack") as error:
        load_adapter(path)
    assert one_line(error, path)


def test_tensor_that_claims_more_than_its_storage(linear: Any, tmp_path: Path) -> None:
    """One number, said to be repeated 10^12 times: a few bytes that would fill any memory when looked at."""
    state = sections(linear)
    state["ip_adapter"]["1.to_v_ip.weight"] = torch.zeros(1).expand(10**6, 10**6)
    path = tmp_path / "a.bin"
    torch.save(state, path)
    assert path.stat().st_size < 10**6
    with pytest.raises(CheckpointError) as error:
        load_adapter(path)
    assert one_line(error, path)


def test_pickle_too_large(linear: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    torch.save(sections(linear), path)
    monkeypatch.setattr(pickles, "MAX_PICKLE_BYTES", 1000)
    with pytest.raises(CheckpointError, match="more than 1,000"):
        load_adapter(path)


@pytest.mark.parametrize("part", [0, 1, 10, 0.5, 0.99])
@pytest.mark.parametrize("new", [True, False])
def test_truncated_pickle(linear: Any, part: float, new: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save(sections(linear), path, _use_new_zipfile_serialization=new)
    content = path.read_bytes()
    path.write_bytes(content[: int(part if part >= 1 else part * len(content))])
    with pytest.raises(CheckpointError) as error:
        load_adapter(path)
    assert one_line(error, path)


@pytest.mark.parametrize("new", [True, False])
def test_damaged_pickle_is_our_error_or_none(linear: Any, new: bool, tmp_path: Path) -> None:
    """One byte in a hundred places: whatever torch makes of it, nothing but our error comes out."""
    path = tmp_path / "a.bin"
    torch.save(sections(linear), path, _use_new_zipfile_serialization=new)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, len(content), (50,), generator=generator).tolist()
    places += torch.randint(0, 600, (30,), generator=generator).tolist()
    places += (len(content) - 1 - torch.randint(0, 900, (40,), generator=generator)).tolist()
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :])
        try:
            load_adapter(path)
        except ImpromptError as error:
            assert path.name in str(error)


@pytest.mark.parametrize(
    "content",
    [
        torch.ones(3),
        {"image_proj": {}},
        {"image_proj": torch.ones(2), "ip_adapter": torch.ones(2)},
        {"image_proj": {"proj.weight": 3}, "ip_adapter": {"1.to_k_ip.weight": "text"}},
        {"image_proj": {3: torch.ones(2)}, "ip_adapter": {}},
        {"image_proj": {"proj.weight": torch.ones(2, 2).to_sparse()}, "ip_adapter": {}},
        {"image_proj": {"proj.weight": torch.ones(2, 2, device="meta")}, "ip_adapter": {}},
        [1, 2],
        None,
        "text",
    ],
    ids=["tensor", "one half", "tensors for halves", "numbers", "numbered", "sparse", "meta", "list", "none", "text"],
)
def test_pickles_of_something_else(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save(content, path)
    with pytest.raises(CheckpointError) as error:
        load_adapter(path)
    assert one_line(error, path)


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.gguf", "a", "a.zip"])
def test_unknown_suffix(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"hello")
    with pytest.raises(UnknownFormat) as error:
        load_adapter(path)
    assert one_line(error, path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ImpromptError, match="nowhere"):
        load_adapter(tmp_path / "nowhere.safetensors")


def test_a_folder_and_a_file_in_it(linear: Any, tmp_path: Path) -> None:
    save_adapter(linear, tmp_path / "a.safetensors")
    assert load_adapter(tmp_path, "a.safetensors").spec == linear.spec
    with pytest.raises(ImpromptError):
        load_adapter(tmp_path)
