"""Every published file is recognised from its header: encoder, layer, tokens, null rule, and what no tensor tells."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.checkpoint import Contents, load_adapter, parts_of, read_contents, read_spec
from imprompt.adapter.checkpoint.formats import FORMATS
from imprompt.adapter.checkpoint.identify import BY_CALLER, BY_NAME, BY_SHAPES, BY_SIZE, Hints, recognise
from imprompt.adapter.checkpoint.paths import attention_paths
from imprompt.adapter.checkpoint.templates import to_theirs
from imprompt.adapter.spec import FacePlusSpec
from imprompt.core.errors import CheckpointError
from tests.published import PUBLISHED, Published, write_safetensors

FAMILIES = {
    "kolors": ("kolors", "kolors-text"),
    "flux": ("flux-xlabs", "flux-instantx", "flux-pulid"),
    "sd3": ("sd3-instantx",),
}


def file_of(published: Published, folder: Path) -> Path:
    path = folder / published.repository / published.path.removesuffix(".bin").removesuffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_safetensors(published, path.with_name(f"{path.name}.safetensors"))


@pytest.fixture(params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> Published:
    return PUBLISHED[request.param]


def contents_of(published: Published, folder: Path) -> list[Contents]:
    path = file_of(published, folder)
    return [read_contents(path, part=part) for part in parts_of(path) or (None,)]


def test_every_file_is_recognised(published: Published, tmp_path: Path) -> None:
    all_contents = contents_of(published, tmp_path)
    assert sum(contents.spec.num_tokens for contents in all_contents) == published.num_tokens
    for contents in all_contents:
        spec = contents.spec
        assert spec.family in FAMILIES.get(published.family, (published.family,))
        assert (spec.features.encoder, spec.features.layer) == (published.encoder, published.layer)
        assert (spec.features.width, spec.features.index) == (published.feature_width, published.index)
        assert spec.features.normalised == published.normalised
        assert spec.null_image == published.null_image
        assert (spec.face_crop and spec.face_crop.encoder) == published.face_crop
        shortcut = spec.projector.shortcut if isinstance(spec.projector, FacePlusSpec) else None
        assert shortcut == published.shortcut
        assert spec.is_partial == published.name.startswith("csgo")
        assert spec.name == published.name or published.name.startswith("csgo") and spec.name.startswith("csgo-")


def test_the_adapter_that_is_built_has_exactly_the_files_tensors(published: Published, tmp_path: Path) -> None:
    all_contents = contents_of(published, tmp_path)
    for contents in all_contents:
        with torch.device("meta"):
            adapter = Adapter(contents.spec)
        wanted = {key: tuple(value.shape) for key, value in adapter.state_dict().items()}
        assert {key: tuple(value.shape) for key, value in contents.tensors.items()} == wanted
    taken = sum(len(contents.tensors) for contents in all_contents)
    aside = {words: count for contents in all_contents for words, count in contents.aside.items()}
    others = sum(count for words, count in aside.items() if not words.startswith("the adapter for"))
    assert taken + others == len(published.shapes)


def test_the_table_read_backwards_gives_the_published_keys(published: Published, tmp_path: Path) -> None:
    """Read, write: every key that was taken is there again, in its place and shape."""
    for contents in contents_of(published, tmp_path):
        theirs, unknown = to_theirs(contents.layout.rows, contents.tensors, attention_paths(contents.spec.family))
        assert unknown == []
        assert {key: tuple(value.shape) for key, value in theirs.items()}.items() <= published.shapes.items()
        assert len(theirs) == len(contents.tensors)


def test_no_layout_takes_two_keys_for_one() -> None:
    """Templates of a table differ on both sides, but where several names are read for one tensor."""
    for layout in FORMATS:
        there = [half for row in layout.rows for half in row.halves]
        assert len(set(there)) == len(there), layout.name


# What no tensor tells ------------------------------------------------------------------------------------------------

PLUS, PLUS_V2 = "ip-adapter-faceid-plus_sd15", "ip-adapter-faceid-plusv2_sd15"


def test_the_caller_comes_first(tmp_path: Path) -> None:
    path = file_of(PUBLISHED[PLUS], tmp_path)
    for name in (PLUS, PLUS_V2):
        contents = read_contents(path, variant=name)
        assert contents.spec.name == name and contents.recognition.decided_by == BY_CALLER
        assert contents.spec.projector.shortcut == (name == PLUS_V2)  # pyright: ignore
    assert read_spec(path, shortcut=True).projector.shortcut  # pyright: ignore


def test_then_the_size_then_the_name_then_the_likeliest(caplog: pytest.LogCaptureFixture) -> None:
    shapes = PUBLISHED[PLUS].shapes
    by_size = recognise(shapes, Hints(num_bytes=PUBLISHED[PLUS].num_bytes, name=f"{PLUS_V2}.bin"))
    assert (by_size.spec.name, by_size.decided_by) == (PLUS, BY_SIZE)
    by_name = recognise(shapes, Hints(name="models/IP-Adapter FaceID-PlusV2.bin"))
    assert (by_name.spec.name, by_name.decided_by) == (PLUS_V2, BY_NAME)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    by_shapes = recognise(shapes, Hints(name="face.bin"))
    assert (by_shapes.spec.name, by_shapes.decided_by, by_shapes.others) == (PLUS_V2, BY_SHAPES, (PLUS,))
    assert "pass variant= to say which it is" in caplog.text


def test_instantid_and_portrait_unnorm_share_their_shapes(tmp_path: Path) -> None:
    shapes = PUBLISHED["instantid-ip-adapter"].shapes
    assert recognise(shapes).spec.features.encoder.endswith("(antelopev2)")
    unnorm = recognise(shapes, Hints(name="ip-adapter-faceid-portrait_sdxl_unnorm.bin")).spec
    assert unnorm.features.encoder.endswith("(buffalo_l)") and not unnorm.features.normalised


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        (PLUS, {"variant": "ip-adapter_sdxl"}, "shapes of ip-adapter-faceid-plusv2_sd15, ip-adapter-faceid-plus_sd15"),
        (PLUS, {"variant": "faceid-plus-v2"}, "no published adapter is called 'faceid-plus-v2'"),
        ("ip-adapter_sd15", {"shortcut": True}, "FaceID-Plus alone"),
        ("ip-adapter_sd15", {"part": "content"}, "holds one adapter"),
        ("csgo", {}, "holds 2 adapters, one under 'content' and one under 'style'; pass part='content'"),
        ("csgo", {"part": "1"}, "got part='1'"),
    ],
)
def test_questions_that_do_not_fit(name: str, arguments: dict[str, str], words: str, tmp_path: Path) -> None:
    path = file_of(PUBLISHED[name], tmp_path)
    with pytest.raises(CheckpointError) as error:
        read_spec(path, **arguments)  # pyright: ignore
    assert words in str(error.value) and str(error.value).startswith(path.name)


def test_the_halves_of_csgo_act_in_their_own_blocks(tmp_path: Path) -> None:
    path = file_of(PUBLISHED["csgo"], tmp_path)
    paths = attention_paths("sdxl")
    for part, blocks, count in (("content", "down_blocks", 24), ("style", "up_blocks", 36)):
        spec = read_spec(path, part=part)
        assert len(spec.site_indices) == count
        assert all(paths[index].startswith(blocks) for index in spec.site_indices)


# What is lost --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lost", "named"),
    [
        ("ip-adapter_sd15", (31,), "31 (mid_block.attentions.0.transformer_blocks.0.attn2)"),
        ("ip-adapter-plus_sd15", (5, 7), "5 (down_blocks.1.attentions.0.transformer_blocks.0.attn2), 7 (down_blocks.1"),
        ("ip-adapter_sdxl", tuple(range(121, 140, 2)), "125 (mid_block.attentions.0.transformer_blocks.2.attn2) and 7"),
    ],
)
def test_lost_layers_are_named(name: str, lost: tuple[int, ...], named: str) -> None:
    gone = tuple(f"ip_adapter.{number}." for number in lost)
    shapes = {key: shape for key, shape in PUBLISHED[name].shapes.items() if not key.startswith(gone)}
    with pytest.raises(CheckpointError) as error:
        recognise(shapes)
    sites = 16 if "sd15" in name else 70
    assert f"lacks the keys and values of {len(lost)} of {sites} attentions: 'ip_adapter.{lost[0]}." in str(error.value)
    assert named in str(error.value) and "safe_serialization=False" in str(error.value)


def test_a_lost_half_of_a_layer_is_named(tmp_path: Path) -> None:
    shapes = PUBLISHED["ip-adapter_sd15"].shapes
    path = tmp_path / "a.safetensors"
    state = {key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}
    del state["ip_adapter.9.to_v_ip.weight"]
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"lacks 'ip_adapter\.9\.to_v_ip\.weight'"):
        load_adapter(path)
