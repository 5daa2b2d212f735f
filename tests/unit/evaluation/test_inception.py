"""FID's Inception: the features of torch-fidelity, the resize of TensorFlow, weights in files."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imprompt.core.errors import CheckpointError
from imprompt.evaluation import inception
from imprompt.evaluation.judges import load_judges
from imprompt.evaluation.metrics.table import METRICS
from imprompt.evaluation.scoring import set_features, set_value
from tests import tiny

# Of `waves` on `picture`, from torch-fidelity 0.4.0 (FeatureExtractorInceptionV3, "2048"). Ours were equal to it to the
# bit there, and with random weights on pictures of other sizes.
EXPECTED = {0: 1.20413, 341: 0.21503, 721: 0.27282, 1131: 0.36918, 1554: 0.38400, 1981: 0.15694}


@pytest.fixture(scope="module")
def waves() -> nn.Sequential:
    """The network with weights that are sines, the same on every machine."""
    model = inception.network()
    for number, (name, tensor) in enumerate(sorted(model.state_dict().items())):
        if tensor.is_floating_point():
            angles = torch.arange(tensor.numel(), dtype=torch.float64) * (1.0 + number / 97) + number
            spread = math.sqrt(4 / tensor[0].numel()) if tensor.ndim == 4 else 0.2
            middle = 1.0 if name.endswith(("running_var", "bn.weight")) else 0.0
            tensor.copy_((middle + spread * torch.sin(angles)).reshape(tensor.shape))
    return model


def picture() -> Tensor:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(80), indexing="ij")
    return torch.stack([x * 3 % 256, y * 5 % 256, (x * y) % 256]).to(torch.uint8)[None]


def test_features_are_those_of_torch_fidelity(waves: nn.Sequential) -> None:
    found = inception.features(waves, picture())[0]
    assert len(found) == inception.WIDTH
    assert {index: found[index].item() for index in EXPECTED} == pytest.approx(EXPECTED, abs=1e-4)


@pytest.mark.parametrize("size", [(5, 7), (299, 299), (512, 400)])
def test_the_resize_is_that_of_tensorflow(size: tuple[int, int]) -> None:
    """At place `i` the source is read at `i * size / 299`, between its neighbours, the last of which repeats."""
    pixels = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0)).float()
    found = inception.resize(pixels)
    for row, column in [(0, 0), (1, 298), (150, 77), (298, 298), (297, 3)]:
        places = [
            (min(int(at), most - 1), min(int(at) + 1, most - 1), at % 1) for at, most in _places(row, column, size)
        ]
        (top, bottom, down), (left, right, along) = places
        upper = pixels[0, 0, top, left] * (1 - along) + pixels[0, 0, top, right] * along
        lower = pixels[0, 0, bottom, left] * (1 - along) + pixels[0, 0, bottom, right] * along
        assert found[0, 0, row, column].item() == pytest.approx(float(upper * (1 - down) + lower * down), abs=0.02)


def _places(row: int, column: int, size: tuple[int, int]) -> list[tuple[float, int]]:
    return [(row * size[0] / 299, size[0]), (column * size[1] / 299, size[1])]


def fid(pictures: list[Path], references: list[Path], judges: dict[str, Any]) -> float:
    return set_value(METRICS["fid"], *set_features(METRICS["fid"], pictures, references, judges))[0]


def test_fid_is_measured_with_weights_from_either_kind_of_file(
    waves: nn.Sequential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    state = {**waves.state_dict(), "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(state, tmp_path / "published.pth")
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    save_file(old, tmp_path / "converted.safetensors")
    pictures = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(pictures):
        tiny.picture(seed=number).save(path)
    found = []
    for name in ("published.pth", "converted.safetensors"):
        judges = load_judges({"inception": f"~/{name}"}, ["inception"], None)
        assert fid(pictures, pictures, judges) == pytest.approx(0, abs=1e-3)
        found.append(fid(pictures[:2], pictures[1:], judges))
        assert judges["inception"].describe()["name"] == name
    assert found[0] == found[1] > 0


def test_another_network_is_refused(waves: nn.Sequential, tmp_path: Path) -> None:
    state = dict(waves.state_dict())
    save_file({**state, "Conv2d_3b_1x1.conv.weight": torch.zeros(8, 8)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"Conv2d_3b_1x1.conv.weight has \(8, 8\), expected \(80, 64, 1, 1\)"):
        inception.load_network(tmp_path / "other.safetensors")
    del state["Mixed_7c.branch_pool.conv.weight"]
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match="branch_pool.conv.weight has nothing"):
        inception.load_network(tmp_path / "less.safetensors")
