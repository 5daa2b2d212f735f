"""Adapters of faces against diffusers where it has them, else against their formulas: at most 1e-5 apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from imprompt.adapter.attach import attach
from imprompt.adapter.checkpoint import save_adapter
from imprompt.adapter.conditioning import Branch
from imprompt.adapter.families.unet import attentions
from tests import tiny, tiny_faces
from tests.parity.native import largest_difference, native_call, native_host
from tests.parity.test_formula import attention, heads

LIMIT = 1e-5
LENGTH = 5  # of the features of an aligned face
STRUCTURE = 0.7
CSGO = ("content", "style")


def identity(rows: int, seed: int = 0) -> Tensor:
    return functional.normalize(tiny.rand(rows, tiny_faces.FACE, seed=70 + seed), dim=-1)


def aspect(rows: int, seed: int = 0) -> Tensor:
    return tiny.rand(rows, LENGTH, tiny_faces.CROP, seed=80 + seed)


def branch_of(adapter: Any, *features: Tensor, weight: float = 1.0, number: int = 0, null: Any = None) -> Branch:
    """A prompt for every row of features, embedding first and aligned face second; `null` likewise for no face."""

    def tokens(parts: Sequence[Tensor]) -> Tensor:
        embedding, *rest = parts
        has_crop = adapter.spec.face_crop is not None
        return adapter.project(embedding, **({"crop": rest[0], "structure": STRUCTURE} if has_crop else {}))

    scale = torch.full((1, len(adapter.spec.site_indices), len(features[0])), weight)
    empty = None if null is None else tokens(null)
    return Branch(tokens=tokens(features), null_tokens=empty, scale=scale, adapter=number)


def in_our_pipeline(pipe: Any, adapter: Any, branch: Branch, **options: Any) -> Tensor:
    with attach(pipe, adapter) as images:
        images.set(tiny.conditioning(branch))
        return tiny.generate(pipe, steps=2, guidance_scale=3.0, **options)


def in_theirs(pipe: Any, adapter: Any, folder: Path, features: Tensor, crop: Tensor, **options: Any) -> Tensor:
    """The same file in diffusers: its projections, and its LoRA through PEFT."""
    save_adapter(adapter, folder / "adapter.safetensors")
    pipe.load_ip_adapter(str(folder), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.7)
    layer = pipe.unet.encoder_hid_proj.image_projection_layers[0]
    if hasattr(layer, "shortcut"):
        layer.clip_embeds, layer.shortcut = crop, adapter.spec.projector.shortcut
        layer.shortcut_scale = STRUCTURE
    return tiny.generate(pipe, steps=2, guidance_scale=3.0, ip_adapter_image_embeds=[features], **options)


@pytest.mark.parametrize("kind", tiny_faces.KINDS)
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_in_a_whole_pipeline_of_diffusers(family: str, kind: str, tmp_path: Path) -> None:
    pipe = tiny_faces.pipeline(family)
    adapter = tiny_faces.adapter(pipe.unet, kind)
    face, crop, null_crop = identity(1), aspect(1), aspect(1, seed=1)
    plain = tiny.generate(pipe, steps=2, guidance_scale=3.0)
    branch = branch_of(adapter, face, crop, weight=0.7, null=(torch.zeros_like(face), null_crop))
    output = in_our_pipeline(pipe, adapter, branch)
    embeds = torch.stack([torch.zeros_like(face), face])
    embeds = embeds[:, :, None] if kind == "portrait-unnorm" else embeds  # which diffusers takes for a sequence
    theirs = in_theirs(pipe, adapter, tmp_path, embeds, torch.stack([null_crop, crop]))
    assert largest_difference(output, plain) > 0.1
    assert largest_difference(output, theirs) <= LIMIT


def test_kolors_plus_in_a_whole_pipeline_of_diffusers(tmp_path: Path) -> None:
    pipe = tiny_faces.kolors_pipeline()
    adapter = tiny_faces.adapter(pipe.unet, "plus")
    features, null = aspect(1), aspect(1, seed=1)
    options = {"prompt": None, **tiny_faces.kolors_text()}
    plain = tiny.generate(pipe, steps=2, guidance_scale=3.0, **options)
    output = in_our_pipeline(pipe, adapter, branch_of(adapter, features, weight=0.7, null=(null,)), **options)
    theirs = in_theirs(pipe, adapter, tmp_path, torch.stack([null, features]), features, **options)
    assert largest_difference(output, plain) > 0.1
    assert largest_difference(output, theirs) <= LIMIT


@pytest.mark.parametrize("number", [1, 3, 5])
def test_portrait_of_several_faces_shares_a_softmax(number: int) -> None:
    """1 to 5 pictures of a person, 16 tokens each."""
    host = tiny_faces.host()
    adapter = tiny_faces.adapter(host, "portrait")
    inputs = tiny.host_inputs(host)
    faces = identity(number)
    tokens = adapter.project(faces)
    assert tokens.shape == (number, 16, tiny_faces.TEXT)
    branch = Branch(tokens=tokens.flatten(0, 1)[None], null_tokens=None, scale=torch.full((1, 16, 1), 0.8))
    theirs = native_call(native_host(host, adapter, scales=[0.8]), inputs, [faces[None]])
    with attach(host, adapter) as images:
        images.set(tiny.conditioning(branch))
        assert largest_difference(tiny.call(host, inputs), theirs) <= LIMIT


# Formulas ------------------------------------------------------------------------------------------------------------


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    product = x @ weights[f"{name}.weight"].T
    return product + weights[f"{name}.bias"] if f"{name}.bias" in weights else product


def perceive(features: Tensor, latents: Tensor, weights: dict[str, Tensor], *, num_heads: int) -> Tensor:
    """The layers of a resampler in float64: each latent attends to the features and to all latents, then an MLP."""
    features = linear(features, weights, "proj_in")
    for number in range(4):
        parts = {key.removeprefix(f"layers.{number}."): value for key, value in weights.items()}
        source = torch.cat([norm(features, parts, "0.norm1"), norm(latents, parts, "0.norm2")], dim=1)
        query = heads(linear(norm(latents, parts, "0.norm2"), parts, "0.to_q"), num_heads)
        keys, values = (heads(x, num_heads) for x in linear(source, parts, "0.to_kv").chunk(2, dim=-1))
        read = attention(query, keys, values).permute(0, 2, 1, 3).flatten(2)
        latents = latents + linear(read, parts, "0.to_out")
        widened = functional.gelu(linear(norm(latents, parts, "1.0"), parts, "1.1"))
        latents = latents + linear(widened, parts, "1.3")
    return norm(linear(latents, weights, "proj_out"), weights, "norm_out")


def weights_of(adapter: Any, prefix: str = "") -> dict[str, Tensor]:
    state = adapter.image_proj.state_dict()
    return {key.removeprefix(prefix): value.double() for key, value in state.items() if key.startswith(prefix)}


def identity_tokens(faces: Tensor, weights: dict[str, Tensor]) -> Tensor:
    hidden = functional.gelu(linear(faces, weights, "proj.0"))
    tokens = linear(hidden, weights, "proj.2")
    return norm(tokens.reshape(len(faces), -1, len(weights["norm.weight"])), weights, "norm")


def face_plus_tokens(adapter: Any, faces: Tensor, crop: Tensor, structure: float) -> Tensor:
    tokens = identity_tokens(faces.double(), weights_of(adapter))
    spec = adapter.spec.projector
    reader = weights_of(adapter, "perceiver_resampler.")
    read = perceive(crop.double(), tokens, reader, num_heads=spec.width // spec.head_width)
    return tokens + structure * read if spec.shortcut else read


@pytest.mark.parametrize("structure", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("kind", ["faceid-plus", "faceid-plusv2", "kolors-faceid"])
def test_what_is_read_is_added_in_version_2(kind: str, structure: float) -> None:
    adapter = tiny_faces.adapter(tiny_faces.host("kolors"), kind)
    adapter = adapter.double()  # tokens are of size 8: rounding to float32 alone is 1e-5
    faces, crop = identity(3), aspect(3)
    wanted = face_plus_tokens(adapter, faces, crop, structure)
    tokens = adapter.project(faces, crop=crop, structure=structure)
    assert largest_difference(tokens.double(), wanted) <= LIMIT
    if structure == 0.0 and adapter.spec.projector.shortcut:  # pyright: ignore
        assert largest_difference(tokens.double(), identity_tokens(faces.double(), weights_of(adapter))) <= LIMIT


def test_a_resampler_of_one_vector() -> None:
    """Portrait-unnorm and InstantID: the embedding is a sequence of one."""
    adapter = tiny_faces.adapter(tiny_faces.host(), "portrait-unnorm")
    faces = 20 * identity(3)
    weights = weights_of(adapter)
    latents = weights["latents"].expand(3, -1, -1)
    wanted = perceive(faces.double()[:, None], latents, weights, num_heads=2)
    assert largest_difference(adapter.project(faces).double(), wanted) <= LIMIT


def changed(site: Any, part: Any, scale: float) -> dict[str, Tensor]:
    """The weights of an attention with a LoRA in them."""
    weights = {name: parameter.double() for name, parameter in site.named_parameters()}
    for name, path in {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}.items():
        change = getattr(part, f"{name}_lora", None)
        if change is not None:
            product = change.up.weight.double() @ change.down.weight.double()
            weights[f"{path}.weight"] = weights[f"{path}.weight"] + scale * product
    return weights


def by_hand(site: Any, weights: dict[str, Tensor], hidden: Tensor, text: Tensor, images: Any) -> Tensor:
    """An attention in float64, with image branches as (part of the adapter, tokens, scale)."""
    query = heads(linear(hidden, weights, "to_q"), site.heads)
    total = attention(query, *(heads(linear(text, weights, name), site.heads) for name in ("to_k", "to_v")))
    for part, tokens, scale in images:
        keys, values = (
            heads(tokens.double() @ getattr(part, name).weight.double().T, site.heads)
            for name in ("to_k_ip", "to_v_ip")
        )
        total = total + scale * attention(query, keys, values)
    return linear(total.permute(0, 2, 1, 3).flatten(2), weights, "to_out.0")


def recorded(host: Any, inputs: Any) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """What every attention was given, and what it gave, in one call of a host."""
    seen: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def record(name: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
            text = kwargs.get("encoder_hidden_states")
            seen[name] = (args[0].double(), (args[0] if text is None else text).double(), output)

        return hook

    hooks = [module.register_forward_hook(record(name), with_kwargs=True) for name, module in attentions(host)]
    tiny.call(host, inputs)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "taps"])
def test_lora_in_every_attention(fuse: bool) -> None:
    host = tiny_faces.host("sdxl")
    adapter = tiny_faces.adapter(host, "faceid")
    branch = branch_of(adapter, identity(2), weight=0.6)
    with attach(host, adapter, fuse=fuse, lora_scale=0.8) as images:
        images.set(tiny.conditioning(branch))
        seen = recorded(host, tiny.host_inputs(host, 2))
    assert len(seen) == len(adapter.spec.lora.indices)  # pyright: ignore
    for index, (name, (hidden, text, output)) in enumerate(sorted_sites(host, seen)):
        site, part = host.get_submodule(name), adapter.ip_adapter[str(index)]
        branches = [(part, branch.tokens, 0.6)] if name.endswith("attn2") else []
        wanted = by_hand(site, changed(site, part, 0.8), hidden, text, branches)
        torch.testing.assert_close(output.double(), wanted, atol=LIMIT, rtol=LIMIT)


def sorted_sites(host: Any, seen: dict[str, Any]) -> list[tuple[str, Any]]:
    """In the order of checkpoints, which is not that of the calls."""
    return [(name, seen[name]) for name, _ in attentions(host)]


def test_kolors_tokens_pass_its_text_projection() -> None:
    host = tiny_faces.host("kolors")
    adapter = tiny_faces.adapter(host, "kolors-faceid")
    branch = branch_of(adapter, identity(2), aspect(2), weight=0.6)
    wanted = face_plus_tokens(adapter, identity(2), aspect(2), STRUCTURE)
    projection = host.encoder_hid_proj
    tokens = wanted @ projection.weight.double().T + projection.bias.double()
    with attach(host, adapter) as images:
        images.set(tiny.conditioning(branch))
        seen = recorded(host, tiny.host_inputs(host, 2))
        sites = images.sites
    for site in sites:
        hidden, text, output = seen[site.name]
        module = host.get_submodule(site.name)
        by_formula = by_hand(
            module, changed(module, None, 1.0), hidden, text, [(adapter.ip_adapter[str(site.index)], tokens, 0.6)]
        )
        torch.testing.assert_close(output.double(), by_formula, atol=LIMIT, rtol=LIMIT)


def test_csgo_content_down_style_up() -> None:
    host = tiny_faces.host("sdxl_70")
    content, style = (tiny_faces.adapter(host, f"csgo-{kind}", seed=seed) for seed, kind in enumerate(CSGO, 3))
    assert content.spec.num_tokens == 4 and style.spec.num_tokens == 16
    branches = {
        "down_blocks": branch_of(content, aspect(2), weight=0.5),
        "up_blocks": branch_of(style, aspect(2, seed=4), weight=0.9, number=1),
    }
    with attach(host, content, style) as images:
        images.set(tiny.conditioning(*branches.values()))
        seen = recorded(host, tiny.host_inputs(host, 2))
        sites = images.sites
    counts = {"down_blocks": 0, "up_blocks": 0, "mid_block": 0}
    for site in sites:
        root = site.name.split(".")[0]
        counts[root] += 1
        acting = {"down_blocks": (content, 0.5), "up_blocks": (style, 0.9)}.get(root)
        parts = [] if acting is None else [(acting[0].ip_adapter[str(site.index)], branches[root].tokens, acting[1])]
        hidden, text, output = seen[site.name]
        module = host.get_submodule(site.name)
        wanted = by_hand(module, changed(module, None, 1.0), hidden, text, parts)
        torch.testing.assert_close(output.double(), wanted, atol=LIMIT, rtol=LIMIT)
    assert counts == {"down_blocks": 24, "up_blocks": 36, "mid_block": 10}
