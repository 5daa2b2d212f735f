"""Adapters of faces in whole pipelines: pictures in, the LoRA on and off, rows, neighbours, number formats, memory."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import imprompt
from imprompt import ImagePrompt
from imprompt.adapter.attach import attach
from imprompt.core.errors import EncoderMismatch, FaceError, HostMismatch, PromptError
from imprompt.encoders.vision import VisionEncoder
from tests import tiny, tiny_faces
from tests.conformance.test_neighbours import lora_state

WEIGHTED = {"guidance_scale": 3.0, "steps": 2}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_faces.pipeline("sd1")


@pytest.fixture(scope="module")
def clip() -> VisionEncoder:
    return VisionEncoder(tiny.vision_tower(), tiny.image_processor())


@pytest.fixture(params=[True, False], ids=["fused", "taps"])
def fuse(request: pytest.FixtureRequest) -> bool:
    return request.param


def encoders_for(kind: str, clip: VisionEncoder) -> dict[str, Any]:
    return {"face_encoder": tiny_faces.faces(), **({"image_encoder": clip} if "plus" in kind else {})}


def made(pipe: Any, *prompts: ImagePrompt, adapter: Any, **options: Any) -> Tensor:
    with imprompt.attach(pipe, adapter, **options) as images:
        images.set(*prompts)
        return tiny.generate(pipe, **WEIGHTED)


def state_of(host: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in host.state_dict().items()}


def has_hooks(host: Any) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in host.modules())


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# Pictures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tiny_faces.KINDS)
def test_a_picture_is_its_features(kind: str, pipe: Any, clip: VisionEncoder) -> None:
    adapter = tiny_faces.adapter(pipe.unet, kind)
    encoders, picture = encoders_for(kind, clip), tiny_faces.portrait(1)
    plain = tiny.generate(pipe, **WEIGHTED)
    shown = made(pipe, ImagePrompt(picture), adapter=adapter, **encoders)
    faces = tiny_faces.faces(normalised=adapter.spec.features.normalised)
    parts: dict[str, Any] = {"features": faces.encode([picture])}
    if adapter.spec.face_crop is not None:
        parts["crop_features"] = clip.encode(faces.crops([picture], 224), layer="hidden_states", index=-2)
    given = made(pipe, ImagePrompt(**parts), adapter=adapter, **({"image_encoder": clip} if "plus" in kind else {}))
    assert torch.equal(shown, given)
    assert apart(shown, plain) > 0.1
    assert torch.equal(tiny.generate(pipe, **WEIGHTED), plain)


def test_which_face(pipe: Any) -> None:
    adapter = tiny_faces.adapter(pipe.unet, "faceid")
    both, one, other = tiny_faces.portrait(1, 2), tiny_faces.portrait(1), tiny_faces.portrait(2)
    faces = tiny_faces.faces()
    options = {"adapter": adapter, "face_encoder": faces}
    by_number = [made(pipe, ImagePrompt(both, face=number), **options) for number in (0, 1)]
    assert apart(*by_number) > 0.1
    for number, picture in enumerate((one, other)):
        alike = made(pipe, ImagePrompt(both, face=faces.encode([picture])), **options)
        assert any(torch.equal(alike, each) for each in by_number), number
    largest = made(pipe, ImagePrompt(both, face="largest"), **options)
    assert torch.equal(made(pipe, ImagePrompt(both), **options), largest)


def test_several_pictures_are_groups_of_tokens_and_their_average_one(pipe: Any) -> None:
    adapter = tiny_faces.adapter(pipe.unet, "portrait")
    pictures = [tiny_faces.portrait(seed) for seed in (1, 2, 3)]
    faces = tiny_faces.faces()
    options = {"adapter": adapter, "face_encoder": faces}
    groups = made(pipe, ImagePrompt(pictures), **options)
    assert torch.equal(groups, made(pipe, ImagePrompt(features=faces.encode(pictures)), **options))
    average = made(pipe, ImagePrompt(features=faces.identity(pictures)), **options)
    assert apart(groups, average) > 1e-3


def test_structure_acts_in_version_2_alone(pipe: Any, clip: VisionEncoder) -> None:
    picture = tiny_faces.portrait(1)
    plus, v2 = (tiny_faces.adapter(pipe.unet, kind) for kind in ("faceid-plus", "faceid-plusv2"))
    options = encoders_for("faceid-plus", clip)
    strong = made(pipe, ImagePrompt(picture, structure=2.0), adapter=v2, **options)
    assert apart(strong, made(pipe, ImagePrompt(picture), adapter=v2, **options)) > 1e-2
    for adapter in (plus, tiny_faces.adapter(pipe.unet, "faceid")):
        with pytest.raises(PromptError, match="structure=2.0 is for FaceID-Plus version 2 alone"):
            made(pipe, ImagePrompt(picture, structure=2.0), adapter=adapter, face_encoder=tiny_faces.faces())


def test_a_picture_without_a_face_is_named(pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "wall.png"
    tiny_faces.portrait().save(path)
    adapter = tiny_faces.adapter(pipe.unet, "faceid")
    options = {"adapter": adapter, "face_encoder": tiny_faces.faces()}
    with pytest.raises(FaceError, match=r"wall\.png"):
        made(pipe, ImagePrompt(str(path)), **options)
    with imprompt.attach(pipe, adapter, face_encoder=tiny_faces.faces()) as images:
        images.set(ImagePrompt(tiny_faces.portrait(1)))
        with pytest.raises(FaceError, match="picture 2 of 3"):
            images.set(ImagePrompt([tiny_faces.portrait(1), tiny_faces.portrait(), tiny_faces.portrait(2)]))


def test_wrong_encoders_are_one_sentence(pipe: Any, clip: VisionEncoder, unchecked: None) -> None:
    faceid, plus = tiny_faces.adapter(pipe.unet, "faceid"), tiny_faces.adapter(pipe.unet, "plus")
    faces = tiny_faces.faces()
    plain = tiny.generate(pipe, **WEIGHTED)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (faceid, {"image_encoder": clip}, "makes none of faces"),
        (faceid, {"face_encoder": clip}, "is no face encoder"),
        (faceid, {"face_encoder": tiny_faces.faces(width=12)}, "width 512.*makes 12"),
        (plus, {"image_encoder": faces}, "makes embeddings of faces only"),
        (plus, {"face_encoder": faces}, "reads no faces"),
        (faceid, {"face_encoder": [faces, faces]}, "2 face encoders for 1 adapters"),
    ]
    for adapter, options, message in cases:
        with pytest.raises(EncoderMismatch, match=message) as caught:
            imprompt.attach(pipe, adapter, **options)
        assert "\n" not in str(caught.value)
        assert not has_hooks(pipe.unet)
    with imprompt.attach(pipe, faceid) as images, pytest.raises(EncoderMismatch, match="pass face_encoder="):
        images.set(ImagePrompt(tiny_faces.portrait(1)))
    with imprompt.attach(pipe, plus, image_encoder=clip) as images:
        with pytest.raises(PromptError, match="reads whole pictures"):
            images.set(ImagePrompt(tiny_faces.portrait(1), face=0))
        with pytest.raises(PromptError, match="no crop_features"):
            images.set(ImagePrompt(features=torch.ones(5, 20), crop_features=torch.ones(5, 20)))
    assert torch.equal(tiny.generate(pipe, **WEIGHTED), plain)


def test_face_and_general_adapter_together_have_encoders_of_their_own(pipe: Any, clip: VisionEncoder) -> None:
    faceid, plus = tiny_faces.adapter(pipe.unet, "faceid"), tiny_faces.adapter(pipe.unet, "plus", seed=2)
    prompts = [ImagePrompt(tiny_faces.portrait(1)), ImagePrompt(tiny.picture(seed=4), adapter=1)]
    with imprompt.attach(pipe, faceid, plus, image_encoder=clip, face_encoder=tiny_faces.faces()) as images:
        images.set(*prompts)
        both = tiny.generate(pipe, **WEIGHTED)
        described = images.describe_encoders()
    assert [each["name"] for each in described] == ["cells", clip.spec.name]
    assert apart(both, made(pipe, prompts[0], adapter=faceid, face_encoder=tiny_faces.faces())) > 1e-2


# The LoRA ------------------------------------------------------------------------------------------------------------


def branch(adapter: Any, rows: int = 1, **options: Any) -> Any:
    return tiny.branch(adapter, rows, **options)


def two(pipe: Any) -> Tensor:
    return tiny.generate(pipe, ["a cat", "a dog"], **WEIGHTED)


def test_lora_is_gone_after_detaching(fuse: bool) -> None:
    host = tiny_faces.host("sdxl")
    adapter = tiny_faces.adapter(host, "faceid")
    inputs, state = tiny.host_inputs(host, 2), state_of(host)
    plain = tiny.call(host, inputs)
    with attach(host, adapter, fuse=fuse) as images:
        assert torch.equal(tiny.call(host, inputs), plain)
        images.set(tiny.conditioning(branch(adapter, 2)))
        assert apart(tiny.call(host, inputs), plain) > 0.1
        assert all(torch.equal(value, state[key]) for key, value in host.state_dict().items())
        images.set(None)
        assert torch.equal(tiny.call(host, inputs), plain)
    assert torch.equal(tiny.call(host, inputs), plain)
    assert not has_hooks(host)


def test_lora_scale(fuse: bool) -> None:
    host = tiny_faces.host()
    adapter = tiny_faces.adapter(host, "faceid")
    inputs = tiny.host_inputs(host)
    outputs = []
    for scale in (0.0, 0.5, 1.0):
        with attach(host, adapter, fuse=fuse, lora_scale=scale) as images:
            images.set(tiny.conditioning(branch(adapter)))
            outputs.append(tiny.call(host, inputs))
    assert apart(outputs[0], outputs[1]) > 1e-2 and apart(outputs[1], outputs[2]) > 1e-2
    bare = copy.deepcopy(adapter)
    for part in bare.ip_adapter.modules():
        if hasattr(part, "up"):
            torch.nn.init.zeros_(part.up.weight)  # pyright: ignore
    with attach(host, bare, fuse=fuse) as images:
        images.set(tiny.conditioning(branch(adapter)))
        assert torch.equal(tiny.call(host, inputs), outputs[0])


@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
def test_rows_without_a_face_are_those_of_the_bare_host(weights: list[float], fuse: bool) -> None:
    pipe = tiny_faces.pipeline()
    adapter = tiny_faces.adapter(pipe.unet, "faceid")
    plain = two(pipe)
    with attach(pipe, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(branch(adapter, 2)))
        full = two(pipe)
        images.set(tiny.conditioning(branch(adapter, 2, weight=weights)))
        output = two(pipe)
    for row, weight in enumerate(weights):
        assert torch.equal(output[row], full[row] if weight else plain[row])


def test_two_adapters_with_a_lora_each_act_in_their_rows(fuse: bool) -> None:
    host = tiny_faces.host()
    first, second = (tiny_faces.adapter(host, "faceid", seed=seed) for seed in (1, 2))
    inputs = tiny.host_inputs(host, 3)
    parts = [branch(first, 3, weight=[1.0, 0.0, 0.6]), branch(second, 3, weight=[0.0, 1.0, 0.7], number=1)]
    with attach(host, first, second, fuse=fuse) as images:
        images.set(tiny.conditioning(*parts))
        together = tiny.call(host, inputs)
    alone = []
    for adapter, part, number in ((first, parts[0], 0), (second, parts[1], 1)):
        with attach(host, first, second, fuse=fuse) as images:
            images.set(tiny.conditioning(part))
            alone.append(tiny.call(host, inputs))
        with attach(host, adapter, fuse=fuse) as images:
            images.set(tiny.conditioning(branch(adapter, 3, weight=[[1.0, 0.0, 0.6], [0.0, 1.0, 0.7]][number])))
            assert torch.equal(tiny.call(host, inputs), alone[number])
    assert torch.allclose(together[0], alone[0][0], atol=1e-5)
    assert torch.allclose(together[1], alone[1][1], atol=1e-5)
    assert min(apart(together[2], each[2]) for each in alone) > 1e-2


def test_lora_of_one_row_under_perturbed_attention(fuse: bool) -> None:
    """PAG's processors ask for the keys of a part of the batch."""
    from diffusers.pipelines.pag.pipeline_pag_sd import StableDiffusionPAGPipeline

    pipe = tiny_faces.pipeline(kind=StableDiffusionPAGPipeline, pag_applied_layers=["mid"])
    adapter = tiny_faces.adapter(pipe.unet, "faceid")
    options = {"pag_scale": 2.0, **WEIGHTED}
    plain = tiny.generate(pipe, ["a cat", "a dog"], **options)
    with attach(pipe, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(branch(adapter, 2, weight=[0.0, 1.0])))
        output = tiny.generate(pipe, ["a cat", "a dog"], **options)
    assert torch.allclose(output[0], plain[0], atol=1e-5)
    assert apart(output[1], plain[1]) > 0.1


def test_users_lora_before_and_after_attaching(fuse: bool) -> None:
    """PEFT wraps every layer that the adapter's own LoRA changes."""
    outputs = []
    for when in ("before", "after", "in between"):
        pipe = tiny_faces.pipeline()
        adapter = tiny_faces.adapter(pipe.unet, "faceid")
        plain = without = tiny.generate(pipe, **WEIGHTED)
        if when == "before":
            pipe.load_lora_weights(lora_state(pipe.unet), adapter_name="style")
        with attach(pipe, adapter, fuse=fuse) as images:
            images.set(tiny.conditioning(branch(adapter)))
            if when == "after":
                pipe.load_lora_weights(lora_state(pipe.unet), adapter_name="style")
            elif when == "in between":
                without = tiny.generate(pipe, **WEIGHTED)
                pipe.load_lora_weights(lora_state(pipe.unet), adapter_name="style")
            outputs.append(tiny.generate(pipe, **WEIGHTED))
            pipe.unload_lora_weights()
            alone = tiny.generate(pipe, **WEIGHTED)
        assert apart(outputs[-1], alone) > 1e-2
        assert when != "in between" or torch.equal(alone, without)
        assert torch.equal(tiny.generate(pipe, **WEIGHTED), plain)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_text_is_not_kept_where_a_lora_changes_its_keys() -> None:
    """Attached, taken off and attached again within a run: no key of another moment is read."""
    adapter = tiny_faces.adapter(tiny_faces.host(), "faceid")
    wanted = []
    for fuse in (False, True):
        pipe = tiny_faces.pipeline()
        images = attach(pipe, adapter, fuse=fuse)
        images.set(tiny.conditioning(branch(adapter)))
        wanted.append(tiny.generate(pipe, steps=4, callback_on_step_end=_between(images, adapter)))
        images.detach()
    assert torch.equal(*wanted)


def _between(images: Any, adapter: Any) -> Callable[..., Any]:
    def callback(_pipe: Any, step: int, _timestep: Any, tensors: Any) -> Any:
        if step < 2:
            images.set(None if step == 0 else tiny.conditioning(branch(adapter, seed=3)))
        return tensors

    return callback


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_lora_in_another_format(dtype: torch.dtype, fuse: bool) -> None:
    host = tiny_faces.host()
    adapter = tiny_faces.adapter(host, "faceid")
    inputs = tiny.host_inputs(host)
    with attach(host, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(branch(adapter)))
        wanted = tiny.call(host, inputs)
    host, converted = host.to(dtype), copy.deepcopy(inputs)
    converted["sample"] = inputs["sample"].to(dtype)
    converted["encoder_hidden_states"] = inputs["encoder_hidden_states"].to(dtype)
    with attach(host, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(branch(adapter)))
        output = tiny.call(host, converted)
    assert output.dtype == dtype and adapter.dtype == torch.float32
    tolerance = {torch.bfloat16: 0.2, torch.float16: 0.03, torch.float64: 1e-5}[dtype]
    assert apart(output.float(), wanted) < tolerance * float(wanted.abs().max())


def test_host_that_changes_its_format_while_attached() -> None:
    host = tiny_faces.host()
    adapter = tiny_faces.adapter(host, "faceid")
    inputs = tiny.host_inputs(host)
    with attach(host, adapter) as images:
        images.set(tiny.conditioning(branch(adapter)))
        wanted = tiny.call(host, inputs)
        host.double()
        wide = {**inputs, "sample": inputs["sample"].double()}
        wide["encoder_hidden_states"] = inputs["encoder_hidden_states"].double()
        assert apart(tiny.call(host, wide).float(), wanted) < 1e-4


def test_trained_lora_gets_gradients(fuse: bool) -> None:
    host = tiny_faces.host()
    adapter = tiny_faces.adapter(host, "faceid").requires_grad_(True)
    inputs = tiny.host_inputs(host)
    with attach(host, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(branch(adapter)))
        host(**inputs).sample.square().mean().backward()
    changes = {name: each for name, each in adapter.named_parameters() if "_lora" in name}
    assert len(changes) == 32 * 8
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in changes.values())


def test_offloaded_adapter_leaves_its_lora_behind(fuse: bool) -> None:
    """The adapter moves away, its LoRA does not need it."""
    host = tiny_faces.host()
    adapter = tiny_faces.adapter(host, "faceid")
    inputs = tiny.host_inputs(host)
    with attach(host, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(branch(adapter)))
        wanted = tiny.call(host, inputs)
    with attach(host, adapter, offload=True, fuse=fuse) as images:
        images.set(tiny.conditioning(branch(adapter)))
        adapter.to("meta")  # farther away than any device
        assert torch.equal(tiny.call(host, inputs), wanted)


@pytest.mark.parametrize("kind", ["faceid", "plus", "csgo-style"])
def test_an_adapter_of_another_base_is_named(kind: str) -> None:
    adapter = tiny_faces.adapter(tiny_faces.host("sdxl"), kind)
    other = tiny_faces.host("sd1")
    with pytest.raises(HostMismatch):
        attach(other, adapter)
    assert not has_hooks(other)


def test_kolors_face_adapter_wants_kolors() -> None:
    adapter = tiny_faces.adapter(tiny_faces.host("kolors"), "kolors-faceid")
    with pytest.raises(HostMismatch, match="text projection"):
        attach(tiny_faces.host("sdxl"), adapter)
    with pytest.raises(HostMismatch, match="192"):
        attach(tiny_faces.host("kolors", encoder_hid_dim=100), adapter)
