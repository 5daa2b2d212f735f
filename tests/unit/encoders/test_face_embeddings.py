"""Embeddings as values, and in files that only the network that made them reads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imprompt.core.errors import CheckpointError, EncoderMismatch, FaceError
from imprompt.encoders.face_base import EmbedderSpec
from imprompt.encoders.face_embeddings import (
    average,
    load_embeddings,
    normalise,
    read_embeddings,
    save_embeddings,
    similarities,
)

SPEC = EmbedderSpec("mine", "MIT", "a" * 64, 112, 4)
OTHER = EmbedderSpec("another", "MIT", "b" * 64, 112, 4)


def test_unit_length() -> None:
    assert torch.equal(normalise(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize("values", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_what_has_no_direction(values: list[float]) -> None:
    with pytest.raises(FaceError, match="zero or not finite"):
        normalise(torch.tensor([[1.0, 0.0], values]))


def test_the_average_keeps_the_length() -> None:
    mean = average(torch.tensor([[10.0, 0.0], [0.0, 20.0]]))
    assert torch.allclose(mean, torch.tensor([[1.0, 1.0]]) * 15 / 2**0.5)
    unit = average(normalise(torch.randn(5, 8)))
    assert unit.norm() == pytest.approx(1.0)
    one = torch.randn(1, 8)
    torch.testing.assert_close(average(one), one)


def test_averages_that_make_no_sense() -> None:
    with pytest.raises(FaceError, match="at least one"):
        average(torch.zeros(0, 4))
    with pytest.raises(FaceError, match="zero or not finite"):
        average(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))


def test_likeness_is_the_cosine() -> None:
    likeness = similarities(torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]), torch.tensor([[5.0, 0.0]]))
    assert torch.equal(likeness, torch.tensor([1.0, 0.0, -1.0]))


def test_embeddings_come_back(tmp_path: Path) -> None:
    path, values = tmp_path / "folder" / "faces.safetensors", torch.randn(3, 4)
    save_embeddings(path, values, SPEC, normalised=False)
    assert torch.equal(load_embeddings(path, SPEC, normalised=False), values)
    assert torch.equal(load_embeddings(path, SPEC, normalised=True), normalise(values))
    stored = read_embeddings(path)
    assert (stored.embedder, stored.fingerprint, stored.normalised) == ("mine", "a" * 64, False)
    content = path.read_bytes()
    save_embeddings(path, values, SPEC, normalised=False)
    assert path.read_bytes() == content


def test_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "faces.safetensors"
    save_embeddings(path, torch.randn(1, 4), SPEC, normalised=True)
    with pytest.raises(EncoderMismatch, match="as mine embeds them .* say nothing to another"):
        load_embeddings(path, OTHER, normalised=True)


def test_a_lost_length_does_not_come_back(tmp_path: Path) -> None:
    path = tmp_path / "faces.safetensors"
    save_embeddings(path, torch.randn(1, 4), SPEC, normalised=True)
    with pytest.raises(EncoderMismatch, match="raw ones are wanted"):
        load_embeddings(path, SPEC, normalised=False)


def test_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderMismatch, match="width 5, and mine makes 4"):
        save_embeddings(tmp_path / "faces.safetensors", torch.randn(1, 5), SPEC, normalised=True)


ORIGIN = {"embedder": "mine", "fingerprint": "a" * 64, "normalised": True}


@pytest.mark.parametrize(
    ("values", "metadata"),
    [
        (torch.ones(1, 4), {}),
        (torch.ones(1, 4), {"imprompt.face": "not json"}),
        (torch.ones(1, 4), {"imprompt.face": "[]"}),
        (torch.ones(1, 4), {"imprompt.face": json.dumps({"embedder": "mine"})}),
        (torch.ones(4), {"imprompt.face": json.dumps(ORIGIN)}),
        (torch.ones(0, 4), {"imprompt.face": json.dumps(ORIGIN)}),
        (torch.ones(1, 4, dtype=torch.int32), {"imprompt.face": json.dumps(ORIGIN)}),
        (torch.full((1, 4), float("nan")), {"imprompt.face": json.dumps(ORIGIN)}),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, values: torch.Tensor, metadata: dict[str, str]) -> None:
    path = tmp_path / "faces.safetensors"
    save_file({"face_embeds": values}, path, metadata)
    with pytest.raises(CheckpointError, match="holds no face embeddings that can be read"):
        load_embeddings(path, SPEC, normalised=True)


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", bytes(100)])
def test_files_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "faces.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_embeddings(path)
    with pytest.raises(CheckpointError, match="There is no file"):
        read_embeddings(tmp_path / "absent.safetensors")
