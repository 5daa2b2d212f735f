"""The Inception network of FID: the one of 2015, with the parameter names of its published conversion to torch.

Architecture: arXiv 1512.00567 as the FID authors' TensorFlow graph has it. Where it leaves torchvision's: average
pooling does not count the border's zeros, and the last block pools by the maximum. The caller gives the weights, which
pytorch-fid publishes as `pt_inception-2015-12-05-6726825d.pth`; those of torch-fidelity have the same names.
"""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from imprompt.adapter.checkpoint.files import read_tensors
from imprompt.core.errors import CheckpointError

SIDE = 299
WIDTH = 2048
Size = int | tuple[int, int]


class Convolution(nn.Module):
    """A convolution without bias, its normalisation, and a ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Size = 1, *, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        return functional.relu(self.bn(self.conv(x)))


class BlockA(nn.Module):
    """35 x 35 positions: views of 1, 3 (two in a row) and 5."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(inputs, 64)
        self.branch5x5_1 = Convolution(inputs, 48)
        self.branch5x5_2 = Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Convolution(inputs, 64)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, padding=1)
        self.branch_pool = Convolution(inputs, pooled)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], 1)


class BlockB(nn.Module):
    """From 35 x 35 positions to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = Convolution(inputs, 64)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    """17 x 17 positions: views of 7, as rows and columns apart."""

    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(inputs, 192)
        self.branch7x7_1 = Convolution(inputs, inner)
        self.branch7x7_2 = Convolution(inner, inner, (1, 7), padding=(0, 3))
        self.branch7x7_3 = Convolution(inner, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = Convolution(inputs, inner)
        self.branch7x7dbl_2 = Convolution(inner, inner, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = Convolution(inner, inner, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = Convolution(inner, inner, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = Convolution(inner, 192, (1, 7), padding=(0, 3))
        self.branch_pool = Convolution(inputs, 192)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    """From 17 x 17 positions to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = Convolution(inputs, 192)
        self.branch3x3_2 = Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Convolution(inputs, 192)
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, functional.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    """8 x 8 positions; the last block of all pools by the maximum, which is the graph's own way, right or wrong."""

    def __init__(self, inputs: int, *, is_last: bool) -> None:
        super().__init__()
        self.is_last = is_last
        self.branch1x1 = Convolution(inputs, 320)
        self.branch3x3_1 = Convolution(inputs, 384)
        self.branch3x3_2a = Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Convolution(inputs, 448)
        self.branch3x3dbl_2 = Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Convolution(inputs, 192)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = functional.max_pool2d(x, 3, 1, 1) if self.is_last else _average(x)
        return torch.cat([*parts, self.branch_pool(pooled)], 1)


def network() -> nn.Sequential:
    """The layers in order, up to the pooled features of width 2048; weights are random."""
    pool = nn.MaxPool2d(3, 2)
    layers: dict[str, nn.Module] = {
        "Conv2d_1a_3x3": Convolution(3, 32, 3, stride=2),
        "Conv2d_2a_3x3": Convolution(32, 32, 3),
        "Conv2d_2b_3x3": Convolution(32, 64, 3, padding=1),
        "pool_1": pool,
        "Conv2d_3b_1x1": Convolution(64, 80),
        "Conv2d_4a_3x3": Convolution(80, 192, 3),
        "pool_2": pool,
        "Mixed_5b": BlockA(192, 32),
        "Mixed_5c": BlockA(256, 64),
        "Mixed_5d": BlockA(288, 64),
        "Mixed_6a": BlockB(288),
        "Mixed_6b": BlockC(768, 128),
        "Mixed_6c": BlockC(768, 160),
        "Mixed_6d": BlockC(768, 160),
        "Mixed_6e": BlockC(768, 192),
        "Mixed_7a": BlockD(768),
        "Mixed_7b": BlockE(1280, is_last=False),
        "Mixed_7c": BlockE(WIDTH, is_last=True),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model.eval().requires_grad_(False)


def load_network(path: Path) -> nn.Sequential:
    """The network with its published weights, from safetensors or, after a look at what it does, a pickle.

    Raises:
        CheckpointError: the file is missing or unsafe, or holds another network.
    """
    model = network()
    given = {key: value for key, value in read_tensors(path).items() if not key.startswith(("fc.", "AuxLogits."))}
    wanted = model.state_dict()
    for key, tensor in wanted.items():
        if key not in given and key.endswith("num_batches_tracked"):
            given[key] = tensor
        elif key not in given or given[key].shape != tensor.shape:
            found = tuple(given[key].shape) if key in given else "nothing"
            raise CheckpointError(
                f"'{path.name}' is not FID's Inception: {key} has {found}, expected {tuple(tensor.shape)}; give "
                "pt_inception-2015-12-05-6726825d.pth"
            )
    model.load_state_dict({key: given[key] for key in wanted})
    return model


@torch.no_grad()
def features(model: nn.Module, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 2048"]:
    """Pooled features of pictures, each value of a pixel from 0 to 255 brought to [-1, 1) as the graph does it."""
    return model((resize(pixels.float()) - 128) / 128).mean(dim=(2, 3))


def resize(pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 side side"]:
    """Bilinear to 299 x 299 as TensorFlow 1 does it: corners fall on corners, and nothing is smoothed before.

    Position `i` reads the source at `i * height / 299`; torch reads it at `(i + 0.5) * height / 299 - 0.5`.
    """
    return _blend(_blend(pixels, 3), 2)


def _blend(values: Tensor, dimension: int) -> Tensor:
    size = values.shape[dimension]
    places = torch.arange(SIDE) * torch.tensor(size / SIDE)
    low = places.long().clamp_max(size - 1)
    high = (low + 1).clamp_max(size - 1)
    part = (places - low).reshape(-1, *[1] * (3 - dimension))
    first = values.index_select(dimension, low)
    return first + (values.index_select(dimension, high) - first) * part


def _average(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
