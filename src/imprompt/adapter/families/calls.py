"""What the arguments of a denoiser's call say: clocks, grids and places of tokens, as pure functions for the rows."""

import functools
import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imprompt.adapter.families.base import Arguments, patch_of

Grid = tuple[tuple[int, int] | None, int | None]
Measure = Callable[[Tensor], tuple[int, int] | None]


# The timestep as the scheduler counts it ------------------------------------------------------------------------------


def from_noise(value: Any, _host: Any) -> Any:
    """A timestep that the denoiser is given as a fraction of the way from noise to picture."""
    return 1000 * (1 - value)


def one_less(value: Any, _host: Any) -> Any:
    """A timestep that the denoiser is given less one."""
    return value + 1


def scaled(value: Any, host: Any) -> Any:
    """A timestep that is multiplied by a number of the configuration first."""
    return value / host.config.timestep_scale


def thousandths_of_all(value: Any, _host: Any) -> Any:
    """A fraction of 1000 for all rows together, once or once for each half of guidance."""
    return 1000 * value[:1]


# Size of the picture in tokens, and their number ----------------------------------------------------------------------


def patched_size(latents: Any, arguments: Arguments, host: Any) -> Grid:
    """Latents [batch, ..., height, width] that the host cuts into patches, in a sequence of their own."""
    height, width = latents.shape[-2:]
    _, *patch = patch_of(host.config)
    return (-(-height // patch[0]), -(-width // patch[1])), None


def frames_first(latents: Tensor, _arguments: Arguments, host: Any) -> Grid:
    """Latents [batch, frames, channels, height, width]."""
    frames, height, width = patch_of(host.config)
    size = -(-latents.shape[3] // height), -(-latents.shape[4] // width)
    return size, -(-latents.shape[1] // frames) * math.prod(size)


def channels_last(latents: Tensor, arguments: Arguments, host: Any) -> Grid:
    """Latents [batch, frames, height, width, channels]; sparse attention has an order of its own."""
    if (arguments.get("sparse_params") or {}).get("to_fractal"):
        return None, None
    _, height, width = patch_of(host.config)
    return (-(-latents.shape[2] // height), -(-latents.shape[3] // width)), None


def listed_pictures(latents: Any, arguments: Arguments, _host: Any) -> Grid:
    """A list of latents [channels, frames, height, width], whose patch the call names."""
    frames, height, width = latents[0].shape[1:]
    side, depth = arguments.get("patch_size") or 2, arguments.get("f_patch_size") or 1
    size = -(-height // side), -(-width // side)
    return size, -(-frames // depth) * math.prod(size)


def listed_videos(latents: Any, _arguments: Arguments, host: Any) -> Grid:
    """A list of latents [channels, frames, height, width]."""
    _, height, width = patch_of(host.config)
    return (-(-latents[0].shape[2] // height), -(-latents[0].shape[3] // width)), None


def first_shape(_latents: Any, arguments: Arguments, _host: Any) -> Grid:
    """What the call lists of shapes (frames, height, width) for the first row, the picture's own before references."""
    frames, height, width = _shapes(arguments)[0]
    return (height, width), frames * height * width


def last_shape(_latents: Any, arguments: Arguments, _host: Any) -> Grid:
    """The same where the picture's own shape stands last."""
    frames, height, width = _shapes(arguments)[-1]
    return (height, width), frames * height * width


def _shapes(arguments: Arguments) -> list[tuple[int, int, int]]:
    shapes = arguments["img_shapes"] if "img_shapes" in arguments else arguments["shape_list"]
    return shapes[0] if isinstance(shapes[0], list) else [shapes[0]]


def told_size(_latents: Any, arguments: Arguments, _host: Any) -> Grid:
    """Packed latents whose height and width the call names."""
    height, width = arguments.get("height"), arguments.get("width")
    return (None if height is None or width is None else (height, width)), None


def no_size(_latents: Any, _arguments: Arguments, _host: Any) -> Grid:
    """Where the call does not tell."""
    return None, None


def measured_once(measure: Measure) -> Measure:
    """Remember the last size, for as long as the tensor it was read of lives and is not written to.

    Pipelines hand over the same tensor at every call of a run, and reading it waits for the device.
    """
    last: list[tuple[weakref.ref[Tensor], int, tuple[int, int] | None]] = []

    @functools.wraps(measure)
    def remembered(ids: Tensor) -> tuple[int, int] | None:
        if ids.is_inference():  # counts no writes
            return measure(ids)
        for known, version, size in last:
            if known() is ids and version == ids._version:
                return size
        size = measure(ids)
        last[:] = [(weakref.ref(ids), ids._version, size)]
        return size

    return remembered


@measured_once
def raster_of_ids(ids: Tensor) -> tuple[int, int] | None:
    """Rows and columns of tokens that have numbers of their own, whatever the distance between two of them."""
    ids = ids[0] if ids.ndim == 3 else ids
    return len(ids[:, 1].unique()), len(ids[:, 2].unique())


# Places of the picture's tokens [batch, tokens] -----------------------------------------------------------------------


def behind_text(arguments: Arguments, _host: Any) -> Tensor:
    """The picture between the text and its references."""
    latents, text = arguments["hidden_states"], arguments["encoder_hidden_states"]
    return _run_of(latents, text.shape[1], latents.shape[1])


def behind_real_text(arguments: Arguments, host: Any) -> Tensor:
    """The picture behind what is real of each row's text."""
    latents = arguments["hidden_states"]
    size, _ = patched_size(latents, arguments, host)
    assert size is not None
    lengths = arguments["encoder_attention_mask"].sum(dim=1, keepdim=True).long()
    return lengths + torch.arange(math.prod(size), device=latents.device)


def behind_gist(arguments: Arguments, host: Any) -> Tensor:
    """The picture behind Fibo 2.0's gist of the text; before it, where the rows' gists differ in length."""
    latents, text, mask = (
        arguments.get(name) for name in ("hidden_states", "encoder_hidden_states", "encoder_attention_mask")
    )
    assert latents is not None
    assert text is not None
    # The host waits for the same numbers.
    lengths = [text.shape[2]] * len(text) if mask is None else mask.sum(dim=1).tolist()
    gists = {gist_length(int(length), host.config) for length in lengths}
    size, _ = patched_size(latents, arguments, host)
    assert size is not None
    return _run_of(latents, gists.pop() if len(gists) == 1 else 0, math.prod(size))


def gist_length(length: int, config: Any) -> int:
    """Tokens of the gist of a text, as diffusers' `compute_gist_count` has them."""
    span = config.gist_max_text_len - config.gist_min_text_len
    ratio = min(1.0, max(0.0, (length - config.gist_min_text_len) / span))
    fewest, most, step = config.min_num_gist_tokens, config.max_num_gist_tokens, config.gist_step
    return max(fewest, min(most, math.ceil((fewest + ratio * (most - fewest)) / step) * step))


def behind_history(arguments: Arguments, host: Any) -> Tensor:
    """FramePack's frames behind those that came before, which it sees at a full, a half and a quarter of their size."""
    latents = arguments["hidden_states"]
    before = 0
    for name, coarseness in (("latents_clean", 1), ("latents_history_2x", 2), ("latents_history_4x", 4)):
        past = arguments.get(name)
        if past is not None and arguments.get(f"indices_{name}") is not None:
            patch = [coarseness * side for side in (1, 2, 2)]
            before += math.prod(-(-side // part) for side, part in zip(past.shape[2:], patch, strict=True))
    frames, height, width = patch_of(host.config)
    patch = (frames, height, width)
    own = math.prod(side // part for side, part in zip(latents.shape[2:], patch, strict=True))
    return _run_of(latents, before, own)


def told_indices(arguments: Arguments, _host: Any) -> Tensor:
    """Places that the call lists, the same for all rows."""
    return arguments["video_indices"].expand(len(arguments["hidden_states"]), -1)


def packed_indices(arguments: Arguments, _host: Any) -> Tensor:
    """Places in the part of a single packed sequence that is made anew."""
    return (arguments["vision_sequence_indexes"] - arguments["und_len"])[None]


def told_places(arguments: Arguments, _host: Any) -> Tensor:
    """Which places are the picture's [batch, length], where the call marks them: 2 is Ideogram's mark for a picture."""
    return arguments["indicator"] == 2


def _run_of(latents: Tensor, start: int, count: int) -> Tensor:
    return torch.arange(start, start + count, device=latents.device).expand(len(latents), -1)
