"""Adapters in files: whole, safe, and the same after a round trip; whatever is wrong is one sentence."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.checkpoint import load_adapter, read_spec, save_adapter
from imprompt.adapter.spec import AdapterSpec, FeatureSpec, LinearSpec
from imprompt.core.errors import CheckpointError, EncoderMismatch, ImpromptError, UnknownFormat

SPEC = AdapterSpec(
    name="tiny",
    family="unet",
    projector=LinearSpec(feature_width=8, num_tokens=2, width=12),
    features=FeatureSpec(layer="image_embeds", width=8, encoder="a tiny encoder"),
    null_image="zero_features",
    cross_attention_dim=12,
    site_indices=(1, 3),
    site_widths=(16, 24),
)


@pytest.fixture
def adapter() -> Adapter:
    torch.manual_seed(0)
    return Adapter(SPEC)


@pytest.fixture
def file(adapter: Adapter, tmp_path: Path) -> Path:
    return save_adapter(adapter, tmp_path / "adapter.safetensors")


def same(a: Adapter, b: Adapter) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def as_pickle(adapter: Adapter, path: Path) -> Path:
    halves: dict[str, dict[str, Any]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in adapter.state_dict().items():
        section, name = key.split(".", 1)
        halves[section][name] = value
    torch.save(halves, path)
    return path


def test_round_trip_keeps_tensors_and_spec(adapter: Adapter, file: Path) -> None:
    loaded = load_adapter(file)
    assert same(adapter, loaded)
    assert loaded.spec == read_spec(file) == SPEC
    assert loaded.source == file
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_layout_is_the_published_one(file: Path) -> None:
    with safe_open(file, framework="pt") as content:
        assert content.metadata()["format"] == "pt"
        keys = set(content.keys())
    assert {"image_proj.proj.weight", "image_proj.norm.bias", "ip_adapter.1.to_k_ip.weight"} <= keys
    assert {key.split(".")[0] for key in keys} == {"image_proj", "ip_adapter"}


def test_a_pickle_of_tensors_loads_equal(adapter: Adapter, tmp_path: Path) -> None:
    loaded = load_adapter(as_pickle(adapter, tmp_path / "adapter.bin"))
    assert same(adapter, loaded)
    assert loaded.spec.projector == SPEC.projector


def test_half_precision_files_load_in_float32_or_as_they_are(adapter: Adapter, tmp_path: Path) -> None:
    path = save_adapter(adapter, tmp_path / "half.safetensors", dtype=torch.float16)
    assert load_adapter(path).dtype == torch.float32
    assert load_adapter(path, dtype=None).dtype == torch.float16


def test_wrong_features_name_both_sizes(adapter: Adapter) -> None:
    with pytest.raises(EncoderMismatch, match=r"features of width 8 \(a tiny encoder, image_embeds\); got .* width 9"):
        adapter.project(torch.zeros(1, 9))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImpromptError, match=r"nowhere\.safetensors"):
        load_adapter(tmp_path / "nowhere.safetensors")


def test_truncated_file(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="no complete safetensors file"):
        load_adapter(file)


def test_a_pickle_with_code_does_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    for name, write in (("zip.bin", torch.save), ("plain.bin", lambda o, p: p.write_bytes(pickle.dumps(o, protocol=2)))):
        write({"image_proj": Harmful(), "ip_adapter": {}}, tmp_path / name)
        with pytest.raises(CheckpointError, match="is refused"):
            load_adapter(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_a_bomb_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    packed = tmp_path / "bomb.bin"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="unpack to 10,000,000"):
        load_adapter(packed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(file: Path, value: float) -> None:
    tensors = load_file(file)
    tensors["image_proj.proj.bias"][0] = value
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"image_proj\.proj\.bias.*NaN or infinite"):
        load_adapter(file)


def test_missing_and_foreign_tensors_are_counted(file: Path) -> None:
    tensors = load_file(file)
    del tensors["ip_adapter.3.to_v_ip.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"lacks 'ip_adapter\.3\.to_v_ip\.weight' \(1 missing, 0 foreign"):
        load_adapter(file)
    tensors |= {"ip_adapter.3.to_v_ip.weight": torch.zeros(24, 12), "ip_adapter.3.extra": torch.zeros(1)}
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"has 'ip_adapter\.3\.extra'"):
        load_adapter(file)


@pytest.mark.parametrize("name", ["adapter.txt", "adapter"])
def test_other_files_are_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("hello")
    with pytest.raises(UnknownFormat, match=r"expected \.safetensors, or \.bin"):
        load_adapter(tmp_path / name)


def test_saving_takes_one_suffix_only(adapter: Adapter, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ends in \.safetensors"):
        save_adapter(adapter, tmp_path / "adapter.bin")


def test_a_failed_save_keeps_the_old_file(adapter: Adapter, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    before = file.read_bytes()
    monkeypatch.setattr("imprompt.adapter.checkpoint.files.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_adapter(adapter, file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]
