"""Files that hold more than one adapter: CSGO's two, and PuLID's beside the face encoder that makes its tokens."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.checkpoint import load_adapter, parts_of, read_beside, read_contents, save_adapter, save_parts
from imprompt.core.errors import CheckpointError
from tests.published import PUBLISHED, write_safetensors
from tests.unit.adapter.test_formats import built, contents_of, equal, narrow

CONTROLNET = "controlnet_adapter_modules.down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.weight"
CSGO_BESIDE = {
    CONTROLNET: torch.ones(4, 6),
    "conv_in_unet_sd.weight": torch.ones(2, 2),
    "ip_adapter.121.to_k_ip.weight": torch.ones(16, 64),  # of the middle block, which neither part acts in
}


@pytest.fixture(scope="module")
def csgo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    path = write_safetensors(PUBLISHED["csgo"], tmp_path_factory.mktemp("csgo") / "csgo.safetensors")
    return {part: built(narrow(read_contents(path, part=part).spec)) for part in ("content", "style")}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("name", ["csgo.safetensors", "csgo.bin"])
@pytest.mark.parametrize("beside", [{}, CSGO_BESIDE], ids=["alone", "with the rest"])
def test_csgo_read_write_read(csgo: dict[str, Adapter], name: str, beside: dict[str, Tensor], tmp_path: Path) -> None:
    path = save_parts([csgo["style"], csgo["content"]], tmp_path / name, beside=beside)  # in any order
    assert parts_of(path) == ("content", "style")
    again = {part: load_adapter(path, part=part) for part in csgo}
    assert all(equal(again[part], csgo[part]) for part in csgo)
    if path.suffix == ".safetensors":
        assert all(again[part].spec == csgo[part].spec for part in csgo)
    assert same(read_beside(path), beside)
    second = save_parts([*again.values()], tmp_path / f"second-{name}", beside=read_beside(path))
    if path.suffix == ".safetensors":
        assert same(contents_of(path)[0], contents_of(second)[0]) and contents_of(path)[1] == contents_of(second)[1]
    else:
        assert torch.load(path, weights_only=True).keys() == torch.load(second, weights_only=True).keys()


def test_csgo_is_written_under_the_published_keys(csgo: dict[str, Adapter], tmp_path: Path) -> None:
    keys = load_file(save_parts([*csgo.values()], tmp_path / "a.safetensors")).keys()
    deeper = tuple(f"{part}_image_proj.layers.{layer}." for part in csgo for layer in (2, 3))  # tiny ones have two
    published = {key for key in PUBLISHED["csgo"].shapes if not key.startswith((*deeper, "controlnet_"))}
    assert keys == published


def test_csgo_without_metadata(csgo: dict[str, Adapter], tmp_path: Path) -> None:
    save_file(load_file(save_parts([*csgo.values()], tmp_path / "a.safetensors")), tmp_path / "bare.safetensors")
    for part, adapter in csgo.items():
        again = load_adapter(tmp_path / "bare.safetensors", part=part)
        assert equal(again, adapter) and again.spec.projector == adapter.spec.projector and again.spec.is_partial


def test_what_is_not_two_parts_of_csgo(csgo: dict[str, Adapter], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    content, style = csgo.values()
    other = built(replace(content.spec, site_indices=(121,), site_widths=(16,)))
    for parts, words in (
        ([content], "expected two adapters"),
        ([content, content], "both act in 'down_blocks'"),
        ([content, other], "is no part of CSGO.*it acts in mid_block"),
        ([content, style, style], "both act in 'up_blocks'"),
    ):
        with pytest.raises(CheckpointError, match=words):
            save_parts(parts, path)
    with pytest.raises(CheckpointError, match="ends in .safetensors"):
        save_parts([content, style], tmp_path / "a.txt")
    with pytest.raises(CheckpointError, match="has no place for 'other.weight'"):
        save_parts([content, style], path, beside={"other.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match="both together with imprompt.adapter.checkpoint.save_parts"):
        save_adapter(content, path, format="official")
    assert not [*tmp_path.iterdir()]


# PuLID ---------------------------------------------------------------------------------------------------------------


def pulid(name: str, folder: Path) -> tuple[Adapter, dict[str, Tensor]]:
    """A small one, and as much of its face encoder as tells its tokens."""
    contents = read_contents(write_safetensors(PUBLISHED[name], folder / f"{name}.safetensors"))
    spec = contents.spec
    width, tokens = 64, spec.num_tokens
    adapter = built(narrow(replace(spec, projector=replace(spec.projector, width=width))))  # pyright: ignore
    prefix = contents.layout.aside and next(iter(contents.layout.aside))
    encoder = {f"{prefix}latents": torch.ones(1, tokens, 8), f"{prefix}proj_out": torch.ones(8, width)}
    return adapter, encoder


@pytest.mark.parametrize("name", ["pulid_v1.1", "pulid_flux_v0.9.1"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_pulid_read_write_read(name: str, suffix: str, tmp_path: Path) -> None:
    adapter, encoder = pulid(name, tmp_path)
    path = save_adapter(adapter, tmp_path / f"first.{suffix}", format="official", beside=encoder)
    again = load_adapter(path)
    assert equal(again, adapter) and again.spec.projector == adapter.spec.projector
    assert suffix == "bin" or again.spec == adapter.spec
    assert same(read_beside(path), encoder)
    second = save_adapter(again, tmp_path / f"second.{suffix}", format="official", beside=read_beside(path))
    if suffix == "safetensors":
        keys = contents_of(second)[0]
        assert same(contents_of(path)[0], keys) and keys.keys() - encoder.keys() <= PUBLISHED[name].shapes.keys()
    else:
        assert equal(load_adapter(second), adapter)


@pytest.mark.parametrize("name", ["pulid_v1.1", "pulid_flux_v0.9.1"])
def test_pulids_attention_half_alone(name: str, tmp_path: Path) -> None:
    """Its spec tells the tokens; in a pickle nothing does."""
    adapter, _ = pulid(name, tmp_path)
    path = save_adapter(adapter, tmp_path / "a.safetensors", format="official")
    assert load_file(path).keys() <= PUBLISHED[name].shapes.keys()
    again = load_adapter(path)
    assert again.spec == adapter.spec and equal(again, adapter) and read_beside(path) == {}
    with pytest.raises(CheckpointError, match="only its face encoder tells how many tokens"):
        save_adapter(adapter, tmp_path / "a.bin", format="official")
    with pytest.raises(CheckpointError, match="has no place for"):
        save_adapter(adapter, tmp_path / "b.safetensors", beside={"pulid_encoder.latents": torch.ones(1, 2, 3)})


def test_other_files_hold_nothing_beside(tmp_path: Path) -> None:
    path = write_safetensors(PUBLISHED["ip-adapter_sd15"], tmp_path / "a.safetensors")
    assert read_beside(path) == {}
