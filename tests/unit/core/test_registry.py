"""The table of published adapters, and the names that people type."""

import re

import pytest

from imprompt.core.errors import DownloadError
from imprompt.core.published import PUBLISHED_ADAPTERS, REVISIONS, PublishedAdapter
from imprompt.core.registry import FAMILIES, HubName, files_at, find_adapter, is_published, parse_hub_name
from imprompt.encoders.known import encoder_at
from tests.published import PUBLISHED

PLUS = "ip-adapter-plus_sd15"


@pytest.fixture(params=PUBLISHED_ADAPTERS, ids=lambda adapter: adapter.name)
def adapter(request: pytest.FixtureRequest) -> PublishedAdapter:
    return request.param


def test_names_are_unique() -> None:
    assert len({adapter.name for adapter in PUBLISHED_ADAPTERS}) == len(PUBLISHED_ADAPTERS)


def test_the_table_is_complete() -> None:
    assert {adapter.name for adapter in PUBLISHED_ADAPTERS} == set(PUBLISHED)


def test_a_row_says_what_its_fixture_says(adapter: PublishedAdapter) -> None:
    """Both were written down on their own; the fixtures' sizes are proven by their headers."""
    published = PUBLISHED[adapter.name]
    assert (adapter.repository, adapter.family) == (published.repository, published.family)
    (file,) = [file for file in adapter.files if file.path == published.path]
    assert file.num_bytes == published.num_bytes
    read = published.face_crop or (published.encoder if adapter.face_encoder is None else None)
    if adapter.encoder is None:
        assert read is None
    else:
        known = encoder_at(adapter.encoder)
        assert known is not None
        assert known.name == read
    assert (adapter.face_encoder is None) == ("ArcFace" not in published.encoder)
    assert adapter.face_encoder is None or f"({adapter.face_encoder})" in published.encoder


def test_a_row_is_well_formed(adapter: PublishedAdapter) -> None:
    assert adapter.family in FAMILIES
    for file in (*adapter.files, *([adapter.lora] if adapter.lora else [])):
        assert file.path.endswith((".safetensors", ".bin"))
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{16}", file.sha256)
    assert [file.path.endswith(".bin") for file in adapter.files] in ([False], [True], [False, True])
    assert (adapter.lora is not None) == any("_lora." in key for key in PUBLISHED[adapter.name].shapes)


def test_revisions_are_commits() -> None:
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in REVISIONS.values())


def test_every_name_of_an_adapter_means_it(adapter: PublishedAdapter) -> None:
    names = [adapter.name, adapter.name.upper(), adapter.name.replace("-", "_"), adapter.address]
    for file in adapter.files:
        stem = file.path.rsplit(".", 1)[0]
        names += [f"{adapter.repository}/{file.path}", f"{adapter.repository}:{stem}"]
    if adapter.preset:
        names += [f"{adapter.preset} {alias}" for alias in FAMILIES[adapter.family]]
        assert find_adapter(adapter.preset, family=adapter.family) == adapter
    for name in names:
        assert find_adapter(name) == adapter, name


@pytest.mark.parametrize(
    "name",
    [
        PLUS,
        "plus_sd15",
        " Plus-SD15 ",
        "IP Adapter Plus SD15",
        f"{PLUS}.safetensors",
        f"h94/IP-Adapter:models/{PLUS}",
        f"h94/IP-Adapter/models/{PLUS}.bin",
        "PLUS sd1.5",
        "PLUS sd15",
    ],
)
def test_names_that_people_type(name: str) -> None:
    assert find_adapter(name).name == PLUS


@pytest.mark.parametrize(
    ("label", "family", "name"),
    [
        ("LIGHT - SD1.5 only (low strength)", "sd15", "ip-adapter_sd15_light_v11"),
        ("STANDARD (medium strength)", "sdxl", "ip-adapter_sdxl_vit-h"),
        ("VIT-G (medium strength)", "sdxl", "ip-adapter_sdxl"),
        ("PLUS (high strength)", "sd15", PLUS),
        ("PLUS FACE (portraits)", "sdxl", "ip-adapter-plus-face_sdxl_vit-h"),
        ("FULL FACE - SD1.5 only (portraits stronger)", "sd15", "ip-adapter-full-face_sd15"),
        ("FACEID PLUS - SD1.5 only", "sd15", "ip-adapter-faceid-plus_sd15"),
        ("FACEID PLUS V2", "sdxl", "ip-adapter-faceid-plusv2_sdxl"),
        ("FACEID PORTRAIT (style transfer)", "sd15", "ip-adapter-faceid-portrait-v11_sd15"),
        ("FACEID PORTRAIT UNNORM - SDXL only (strong)", "sdxl", "ip-adapter-faceid-portrait_sdxl_unnorm"),
        ("FACEID PLUS KOLORS", "kolors", "kolors-ip-adapter-faceid-plus"),
    ],
)
def test_what_comfyui_calls_them(label: str, family: str, name: str) -> None:
    assert find_adapter(label, family=family).name == name


@pytest.mark.parametrize("name", ["PLUS FACE", "plus", "faceid"])
def test_a_name_of_several_asks_which(name: str) -> None:
    with pytest.raises(DownloadError, match=r"means several published adapters; say which one: '.*sd15' \(for sd1\), "):
        find_adapter(name)


@pytest.mark.parametrize(
    ("name", "family", "nearest"),
    [
        ("pluss_sd15", None, r"'ip-adapter-plus_sd15' \(spelt 'plus', not 'pluss'\)"),
        ("full-face_sdxl", None, r"'ip-adapter-full-face_sd15' \(for sd1\)"),
        ("LIGHT", "sdxl", r"'ip-adapter_sd15_light_v11' \(for sd1\)"),
        ("pulid_flux", None, r"'pulid_flux_v0.9.0' \(also has 'v0.9.0'\)"),
        ("plus-hands_sd15", None, r"\(has no 'hands'\)"),
        ("h94/IP-Adapter:models/ip-adapter-pls_sd15", None, r"'ip-adapter-plus_sd15' \(spelt 'plus', not 'pls'\)"),
    ],
)
def test_an_unknown_name_is_told_the_nearest_and_why_each_is_not_it(
    name: str, family: str | None, nearest: str
) -> None:
    with pytest.raises(DownloadError, match=rf"nor a published adapter; the nearest are .*{nearest}"):
        find_adapter(name, family=family)


def test_a_name_like_no_other() -> None:
    with pytest.raises(DownloadError, match="nor a published adapter; they are called as 'ip-adapter_sd15' is"):
        find_adapter("qqq.bin")


def test_an_unknown_family() -> None:
    with pytest.raises(DownloadError, match="'sd4' is no family of base models; expected one of sd1, sdxl, kolors"):
        find_adapter("plus", family="sd4")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a/b", HubName("a/b")),
        ("a/b/", HubName("a/b")),
        ("a/b/c/d.bin", HubName("a/b", "c/d.bin")),
        ("a/b:c/d.bin", HubName("a/b", "c/d.bin")),
        ("a/b@refs/pr/4:c", HubName("a/b", "c", "refs/pr/4")),
        ("a/b@main", HubName("a/b", "", "main")),
        ("InstantX/FLUX.1-dev-IP-Adapter", HubName("InstantX/FLUX.1-dev-IP-Adapter")),
    ],
)
def test_places_on_the_hub(name: str, place: HubName) -> None:
    assert parse_hub_name(name) == place


@pytest.mark.parametrize(
    "name",
    ["", "a", "/a/b", "./a", "a/b/../c", "a/b//etc/passwd", "a/b:/etc/passwd", "a/b:c\\d", "C:\\a\\b", "a/b:./c"],
)
def test_what_is_no_place_on_the_hub(name: str) -> None:
    assert parse_hub_name(name) is None


def test_files_at_a_place() -> None:
    both = files_at(HubName("h94/IP-Adapter", f"models/{PLUS}"))
    assert [file.path for file in both] == [f"models/{PLUS}.safetensors", f"models/{PLUS}.bin"]
    assert files_at(HubName("h94/IP-Adapter", f"models/{PLUS}.bin")) == both[1:]
    assert files_at(HubName("h94/IP-Adapter")) == ()
    assert [file.path for file in files_at(HubName("InstantX/InstantID"))] == ["ip-adapter.bin"]
    assert is_published("h94/IP-Adapter", both[0])
    assert not is_published("a/b")
