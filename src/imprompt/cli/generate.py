"""`imprompt generate`: pictures from a text, image prompts, or both."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprompt.cli.progress import busy, progress_bar
from imprompt.core.errors import ImpromptError, PromptError

if TYPE_CHECKING:
    from imprompt.generation.attach import PipelineAttachment
    from imprompt.generation.request import Request
    from imprompt.prompts.image_prompt import ImagePrompt
    from imprompt.prompts.text_region import TextRegion

BATCH_SIZE = 4  # pictures made, and then saved, at once
NO_MASK = "none"


def generate(  # noqa: PLR0913  (a command's options are its parameters)
    prompt: Annotated[str, typer.Argument(help="The text; may be left out where there is an --image.")] = "",
    image: Annotated[
        list[str] | None, typer.Option("--image", "-i", help="A picture to follow; may be repeated.")
    ] = None,
    weight: Annotated[list[float] | None, typer.Option(help="How strongly each image acts, 0 to 1.")] = None,
    mask: Annotated[
        list[str] | None, typer.Option(help="Where each acts: a picture, white there; 'none' for everywhere.")
    ] = None,
    subtract: Annotated[
        list[str] | None, typer.Option(help="A text whose features are taken from each, to keep a style alone.")
    ] = None,
    start: Annotated[list[float] | None, typer.Option(help="From which fraction of the steps, 0 to 1.")] = None,
    end: Annotated[list[float] | None, typer.Option(help="Up to which fraction of the steps, 0 to 1.")] = None,
    fit: Annotated[str, typer.Option(help="For images that are not square: crop, pad, stretch or tile.")] = "crop",
    face: Annotated[
        list[str] | None, typer.Option(help="Whose face of each: 'largest', or a number counted from 0 at the left.")
    ] = None,
    structure: Annotated[
        list[float] | None, typer.Option(help="FaceID-Plus V2: how strongly the face's picture counts, 1 as trained.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="A file, a published name, OWNER/REPOSITORY:FILE on the hub, or 'global', 'plus' (embedded)."
        ),
    ] = None,
    part: Annotated[str | None, typer.Option(help="Which adapter, where a file holds several: content, style.")] = None,
    variant: Annotated[str | None, typer.Option(help="What the adapter is, where its tensors do not tell.")] = None,
    lora: Annotated[str | None, typer.Option(help="A LoRA file that belongs to the adapter.")] = None,
    base: Annotated[str | None, typer.Option(help="A diffusers folder or hub repository; else the embedded.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Folder of the image encoder, here or on the hub; else found by itself.")
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(help="Folder of a text tower of the encoder's CLIP, for --subtract; else the base's."),
    ] = None,
    faces: Annotated[
        str | None, typer.Option(help="Folder of a face detector and embedder (ONNX), for adapters that read faces.")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What to keep away from.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How closely to follow; 1 turns guidance off.")] = None,
    guidance: Annotated[
        str | None, typer.Option(help="How the pipeline lays out a batch, where it does not tell: cfg, separate, ...")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Another sampler, e.g. ddim, dpm or euler.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the first picture, random if not given; the k-th adds k.")
    ] = None,
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="How many pictures.")] = 1,
    size: Annotated[str | None, typer.Option(help="Side, or WIDTHxHEIGHT, in pixels; else the base's own.")] = None,
    region: Annotated[
        list[str] | None, typer.Option(help="A text for a part of the picture; may be repeated (UNets alone).")
    ] = None,
    region_mask: Annotated[
        list[str] | None, typer.Option(help="Where each --region is: LEFT,TOP,RIGHT,BOTTOM from 0 to 1, or a picture.")
    ] = None,
    request: Annotated[
        Path | None, typer.Option(help="A request file (TOML, YAML or JSON), in place of the options of images.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .png file, or a folder.")] = Path("outputs"),
    offload: Annotated[bool, typer.Option("--offload", help="Keep weights off the accelerator while unused.")] = False,
) -> None:
    """Make pictures from a text, image prompts, or both.

    Options of an image (--weight, --mask, --start, --end, --face, --structure) are given once for all images or once
    for each, in order.
    What else image prompts and regions can say (blocks, curves, polygons, negatives, ...) is said in a request file.

    Examples:

    imprompt generate --image cat.png --output cat-like.png

    imprompt generate "on the moon" -i cat.png --weight 0.6 -i street.png --weight 0.4 --num-images 4

    imprompt generate --request shot.toml --seed 7

    imprompt generate "a cat" -i photo.jpg --base stable-diffusion-v1-5/stable-diffusion-v1-5 --adapter
    ip-adapter-plus_sd15

    imprompt generate "a meadow" --region "a red fox" --region-mask 0,0,0.5,1

    imprompt generate "in a spacesuit" -i person.jpg --base ./sd15 --adapter ip-adapter-faceid_sd15 --faces ./buffalo_l
    """
    from imprompt.generation.result import check_output

    check_output(output)
    of_images = {"weight": weight, "mask": mask, "start": start, "end": end, "face": face, "structure": structure}
    of_images["subtract"] = subtract
    prompts = image_prompts(image or [], fit, **of_images)
    models = {"base": base, "adapter": adapter, "encoder": encoder, "scheduler": scheduler, "faces": faces}
    models |= {"part": part, "variant": variant, "lora": lora, "guidance": guidance, "text_encoder": text_encoder}
    wanted, named = request_of(
        request,
        prompt,
        prompts,
        models=models,
        size=size,
        negative_prompt=negative,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        num_images=num_images,
        regions=text_regions(region or [], region_mask or []) or None,
    )
    if not wanted.prompt and not wanted.image_prompts and not wanted.regions:
        raise PromptError("nothing to draw: give a text, an --image, or both")
    check_pictures(wanted.image_prompts)
    check_pictures(wanted.regions)
    with plain_words():
        with busy("loading"):
            pipe = load_base(named["base"], named["scheduler"], offload)
            attachment = attach_wanted(pipe, named, [wanted], offload=offload)
        for path in make(pipe, attachment, wanted, output):
            typer.echo(path)


# What a request file may name beside the request, as options do.
NAMES = ("base", "adapter", "part", "variant", "lora", "encoder", "text_encoder", "faces", "guidance", "scheduler")


def request_of(
    file: Path | None,
    prompt: str,
    prompts: "Sequence[ImagePrompt]",
    *,
    models: Mapping[str, str | None],
    size: str | None,
    **given: Any,
) -> "tuple[Request, dict[str, str | None]]":
    """The request of a file and of options, which go first; and the models that either names, by `NAMES`.

    Args:
        file: a request file, if there is one.
        prompt: the text; empty if it was not given.
        prompts: image prompts of the command line, which go beside no file's.
        models: what options name of `NAMES`.
        size: as in `parse_size`.
        **given: other fields of the request; None where an option was not given.

    Raises:
        PromptError: the file cannot be read, says what nobody knows, or meets images of the command line.
    """
    from imprompt.generation.pipelines import settings_for
    from imprompt.generation.request import parse_request
    from imprompt.prompts.parse import read_mapping

    said = {} if file is None else read_mapping(file)
    named = {name: said.pop(name, None) for name in NAMES}
    for name, value in named.items():
        if not isinstance(value, str | None):
            raise PromptError(f"{name} must be a text; got {value!r:.60}")
    named |= {name: value for name, value in models.items() if value is not None}
    if prompts and "image_prompts" in said:
        raise PromptError("the request file has image_prompts; write the --image there too, or leave them out of it")
    height, width = parse_size(size)
    options = {"prompt": prompt or None, "height": height, "width": width, **given}
    if file is not None and options.get("num_images") == 1:
        del options["num_images"]  # the option's default, over which the file goes
    if given.get("regions") and "regions" in said:
        raise PromptError("the request file has regions; write the --region there too, or leave them out of it")
    said |= {name: value for name, value in options.items() if value is not None}
    request = parse_request(said, "." if file is None else file.parent, **settings_for(named["base"]))
    return (replace(request, image_prompts=prompts) if prompts else request), named


def image_prompts(images: Sequence[str], fit: str, **options: Sequence[Any] | None) -> "list[ImagePrompt]":
    """Image prompts from repeated options.

    Args:
        images: the pictures.
        fit: what becomes of those that are not square.
        **options: values of `ImagePrompt`'s fields, one for all pictures or one for each; None or empty if not given.

    Raises:
        PromptError: the numbers of pictures and values do not fit together, or a value makes no sense.
    """
    from imprompt.prompts.image_prompt import FRAMINGS, ImagePrompt

    if fit not in FRAMINGS:
        raise PromptError(f"fit must be one of {', '.join(map(repr, FRAMINGS))}; got {fit!r}")
    columns = {name: _for_each(name, values, len(images)) for name, values in options.items() if values}
    fields = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    fields = fields or [{} for _ in images]
    for field in fields:
        if field.get("mask") == NO_MASK:
            del field["mask"]
        if "face" in field:
            field["face"] = _face(field["face"])
    return [ImagePrompt(image, fit=fit, **field) for image, field in zip(images, fields, strict=True)]  # pyright: ignore[reportArgumentType]


def text_regions(texts: Sequence[str], masks: Sequence[str]) -> list[dict[str, Any]]:
    """Texts' regions from repeated options, as a request file would have them.

    Raises:
        PromptError: not as many masks as texts, or one that is none.
    """
    if len(texts) != len(masks):
        raise PromptError(f"{len(masks)} --region-mask for {len(texts)} --region; give one for each, in order")
    return [{"text": text, "mask": _place(mask)} for text, mask in zip(texts, masks, strict=True)]


def _place(mask: str) -> str | dict[str, list[float]]:
    parts = mask.split(",")
    if len(parts) != 4:
        return str(Path(mask).absolute())
    try:
        return {"box": [float(part) for part in parts]}
    except ValueError:
        return str(Path(mask).absolute())


def _for_each(name: str, values: Sequence[Any], count: int) -> Sequence[Any]:
    if len(values) == count:
        return values
    if len(values) == 1 and count:
        return list(values) * count
    raise PromptError(f"{len(values)} --{name} for {count} --image; give one for all images, or one for each, in order")


def _face(choice: str) -> int | str:
    if choice != "largest" and not (choice.isascii() and choice.isdecimal()):
        raise PromptError(f"--face must be 'largest' or a number counted from 0 at the left; got {choice!r}")
    return choice if choice == "largest" else int(choice)


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """Height and width from `512` or `768x512` (width first, as people say it).

    Raises:
        PromptError: it is neither.
    """
    if size is None:
        return None, None
    numbers = size.lower().split("x")
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise PromptError(f"--size is {size!r}; expected a side, as 512, or WIDTHxHEIGHT, as 768x512")
    return int(numbers[-1]), int(numbers[0])


def check_pictures(prompts: "Sequence[ImagePrompt | TextRegion]") -> None:
    """Open every picture before the models are loaded, so that a wrong path is told at once.

    Raises:
        ImageError: one of them cannot be used.
    """
    from imprompt.core.images import load_image, load_mask

    for prompt in prompts:
        for picture in (*getattr(prompt, "images", ()), getattr(prompt, "negative", None)):
            if isinstance(picture, str | Path):
                load_image(picture)
        for mask in getattr(prompt, "masks", (prompt.mask,)):
            if isinstance(mask, str | Path):
                load_mask(mask)


def load_base(base: str | None, scheduler: str | None, offload: bool) -> Any:
    """The pipeline; with `offload`, each of its models is on the accelerator only while it works."""
    from imprompt.generation.pipelines import default_device, default_dtype, load_pipeline
    from imprompt.generation.quiet import quiet_libraries

    quiet_libraries()
    device = default_device()
    if not offload or device.type == "cpu":
        return load_pipeline(base, scheduler=scheduler)
    pipe = load_pipeline(base, scheduler=scheduler, dtype=default_dtype(device), device="cpu")
    pipe.enable_model_cpu_offload(device=device)
    return pipe


def attach_wanted(
    pipe: Any, named: Mapping[str, str | None], requests: "Sequence[Request]", *, offload: bool = False
) -> "PipelineAttachment | None":
    """Attach the adapter where image prompts want it, and none where texts of regions are all; None for text alone."""
    if any(request.image_prompts for request in requests):
        return attach_adapter(pipe, named, offload=offload)
    if not any(request.regions for request in requests):
        return None
    from imprompt.generation.attach import attach

    return attach(pipe, guidance=named["guidance"])


def attach_adapter(pipe: Any, named: Mapping[str, str | None], *, offload: bool = False) -> "PipelineAttachment":
    """Attach the adapter that was named, or the embedded model's own.

    Args:
        pipe: the pipeline.
        named: base, adapter and what goes with it, by `NAMES`.
        offload: as in `attach`.

    Raises:
        PromptError: an adapter is wanted and not named.
        ImpromptError: one of the files cannot be used, or they do not belong together.
    """
    from imprompt.adapter.checkpoint import load_adapter
    from imprompt.emoji.bundle import ADAPTER_FILES
    from imprompt.encoders.face import FaceEncoder
    from imprompt.generation.attach import attach
    from imprompt.generation.pipelines import is_embedded, load_embedded_adapter

    base, adapter = named["base"], named["adapter"]
    of_adapter: dict[str, Any] = {name: named[name] for name in ("part", "variant", "lora") if named[name] is not None}
    if is_embedded(base) and (adapter is None or adapter in ADAPTER_FILES):
        if of_adapter:
            raise PromptError(f"--{next(iter(of_adapter))} says something of an --adapter; name that too")
        loaded = load_embedded_adapter(adapter or "plus")
    elif adapter is None:
        raise PromptError(f"--image with --base {base} needs an --adapter: a file, or OWNER/REPOSITORY:FILE on the hub")
    else:
        loaded = load_adapter(adapter, **of_adapter)
    faces = None if named["faces"] is None else FaceEncoder.from_folder(named["faces"])
    options: dict[str, Any] = {name: named[name] for name in ("guidance", "text_encoder")} | {"offload": offload}
    return attach(pipe, loaded, image_encoder=named["encoder"], face_encoder=faces, **options)


def make(pipe: Any, attachment: "PipelineAttachment | None", request: "Request", output: Path) -> Iterator[Path]:
    """Make and save a few pictures at a time, so that an interruption loses none that are done."""
    from imprompt.generation.generate import generate, with_seed
    from imprompt.generation.result import output_paths, save_png

    request = with_seed(request)
    assert request.seed is not None
    seeds = range(request.seed, request.seed + request.num_images)
    paths = output_paths(output, seeds)
    batches = [seeds[start : start + BATCH_SIZE] for start in range(0, len(seeds), BATCH_SIZE)]
    for number, batch in enumerate(batches):
        part = replace(request, seed=batch[0], num_images=len(batch))
        done = number * BATCH_SIZE + len(batch)
        with progress_bar(f"drawing {done} of {len(seeds)}") as bar:
            result = generate(pipe, attachment, part, progress=bar)
        for index, path in enumerate(paths[number * BATCH_SIZE : done]):
            save_png(result.images[index], path, result.provenance_of(index))
            yield path


@contextmanager
def plain_words(remedy: str = "--offload, a smaller --size, or fewer --num-images") -> Iterator[None]:
    """Say in a sentence what a pipeline says in a traceback: memory that does not suffice, settings it refuses.

    Args:
        remedy: What of the command's options to try where memory does not suffice.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        raise ImpromptError(f"the memory does not suffice; try {remedy}") from error
    except ValueError as error:
        raise PromptError(f"the pipeline refuses these settings: {error}") from error
