"""How a pipeline lays out one batch: which rows of the denoiser's call are negative, which positive."""

from typing import Any, Literal

from imprompt.adapter.clock import current_step
from imprompt.core.errors import ConditioningError

Part = Literal["negative", "positive"]

# The layouts of diffusers' pipelines. PAG repeats the positive rows for its perturbed pass (pag_utils.py);
# InstructPix2Pix asks with text and picture, with the picture alone, and with neither, DreamLite the other way round.
LAYOUTS: dict[str, tuple[Part, ...]] = {
    "none": ("positive",),
    "negative": ("negative",),
    "cfg": ("negative", "positive"),
    "pag": ("positive", "positive"),
    "cfg+pag": ("negative", "positive", "positive"),
    "pix2pix": ("positive", "negative", "negative"),
    "cfg-reversed": ("positive", "negative"),
    "edit": ("negative", "negative", "positive"),
    "separate": ("positive",),
}
"""Layouts by name. With "separate" every half has a call of its own, and `CallCounter` tells which this is."""


# Where pipelines keep the objects that split guidance into calls.
GUIDERS = ("guider", "ocr_guider")


class CallCounter:
    """Tells the two halves of guidance apart where a pipeline calls its denoiser once for each.

    Every such pipeline of diffusers asks for the positive half first, and may leave the negative one out; between one
    step's calls and the next's it calls its scheduler, which counts. So the first call since then is positive, and
    nothing has to wait for the device to tell. A pipeline that says that it is not guided has no other half, and one
    with a guider has that tell.
    """

    def __init__(self) -> None:
        self._run: Any = None
        self._step: Any = None
        self._calls = 0

    def part(self, pipe: Any) -> str:
        """The layout of the call that is about to be made: "none", that is positive alone, or "negative".

        Raises:
            ConditioningError: there is no pipeline with a scheduler that counts its steps.
        """
        if _is_told_unguided(pipe):
            return "none"
        guiders = [guider for guider in (getattr(pipe, name, None) for name in GUIDERS) if guider is not None]
        if len(guiders) == 1:  # of two, the pipeline alone knows which is at work
            return "none" if guiders[0].is_conditional else "negative"
        scheduler: Any = getattr(pipe, "scheduler", None)
        run = getattr(scheduler, "timesteps", None)
        if run is None or not hasattr(scheduler, "step_index"):
            raise ConditioningError(
                "this denoiser is called once for each half of guidance, and no scheduler that counts its steps tells "
                "which; attach to the pipeline, or pass guidance='none' or 'negative' to attach"
            )
        step = scheduler.step_index
        if run is not self._run or step != self._step:
            self._run, self._step, self._calls = run, step, 0
        self._calls += 1
        return "none" if self._calls % 2 else "negative"


def layout_of(pipe: Any, batch: int | None = None, usual: str = "cfg") -> str:
    """The layout of the run that a pipeline is in the middle of.

    Args:
        pipe: the pipeline.
        batch: rows of the denoiser's call, where the layout may depend on it.
        usual: that of the denoiser's family under guidance.

    Raises:
        ConditioningError: the pipeline does not tell whether it uses classifier-free guidance, or mixes the rows.
    """
    if "Panorama" in type(pipe).__name__ and batch is not None and batch > 2:
        raise ConditioningError(
            f"{type(pipe).__name__} called the denoiser with a batch of {batch}, in which negative and positive rows "
            "alternate; make one picture with view_batch_size=1"
        )
    if usual in ("separate", "none"):
        return usual
    guided = _is_guided(pipe)
    if guided is None:
        raise ConditioningError(
            f"{type(pipe).__name__} does not tell whether it uses classifier-free guidance (expected a property "
            f"'do_classifier_free_guidance'); pass guidance={usual!r} to attach where it does, else guidance='none' "
            f"(or another of {', '.join(LAYOUTS)})"
        )
    if "InstructPix2Pix" in type(pipe).__name__:
        return "pix2pix" if guided else "none"
    if guided and _is_truncated(pipe):
        return "none"
    perturbed = getattr(pipe, "do_perturbed_attention_guidance", False)
    return {(False, False): "none", (True, False): usual, (False, True): "pag", (True, True): "cfg+pag"}[
        bool(guided), bool(perturbed)
    ]


def _is_told_unguided(pipe: Any) -> bool:
    told = getattr(pipe, "do_classifier_free_guidance", None)
    return told is not None and not told


def _is_truncated(pipe: Any) -> bool:
    """Whether Z-Image's run is past `cfg_truncation`, and asks for the positive rows alone. It waits for the device."""
    until = getattr(pipe, "_cfg_truncation", None)
    if until is None or float(until) >= 1.0:
        return False
    timestep = pipe.scheduler.timesteps[current_step(pipe.scheduler)]
    return ((1000 - timestep.float()) / 1000).item() > until


def _is_guided(pipe: Any) -> bool | None:
    told = getattr(pipe, "do_classifier_free_guidance", None)
    scale = getattr(pipe, "guidance_scale", None)
    return scale > 1.0 if told is None and isinstance(scale, int | float) else told


def bank_rows(layout: str, *, rows: int, batch: int) -> tuple[int, ...]:
    """For every row of the denoiser's batch, the row of the bank that conditions it.

    The bank holds the positive rows first and the negative ones after them. Each conditioning row serves
    `batch / parts / rows` neighbours, as `num_images_per_prompt` repeats prompts; a single row serves them all.

    Args:
        layout: a key of `LAYOUTS`.
        rows: conditioning rows.
        batch: rows of the denoiser's call.

    Raises:
        ConditioningError: the numbers do not fit together.
    """
    parts = LAYOUTS[layout]
    each, rest = divmod(batch, len(parts))
    if rest or each % rows:
        raise ConditioningError(
            f"the denoiser was called with a batch of {batch}; guidance '{layout}' makes it {len(parts)} part(s), each "
            f"of which must be a multiple of the {rows} row(s) of image prompts. Set one row for every text prompt, or "
            "one for all"
        )
    offset = {"positive": 0, "negative": rows}
    return tuple(offset[part] + row for part in parts for row in range(rows) for _ in range(each // rows))
