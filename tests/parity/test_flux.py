"""FLUX: XLabs' adapters against diffusers' own in whole pipelines, InstantX's and PuLID's against their formulas.

The formulas are written here once more, in float64 and without imprompt: from InstantX's `attention_processor.py` (kept
by ford442/StableDiffusion35_IP_Adapter at 7a06853) and from `flux/model.py` and `pulid/encoders_transformer.py` of
ToTheBeginning/PuLID (at 30b9f15 and 5f746e0).
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imprompt.adapter.adapter import Adapter
from imprompt.adapter.attach import attach
from tests import tiny
from tests import tiny_transformers as transformers
from tests.parity.native import largest_difference, official_state

LIMIT = 1e-5

XLABS_KEYS = {
    "image_proj.": "ip_adapter_proj_model.",
    ".to_k_ip.": ".processor.ip_adapter_double_stream_k_proj.",
    ".to_v_ip.": ".processor.ip_adapter_double_stream_v_proj.",
    "ip_adapter.": "double_blocks.",
}


# XLabs ---------------------------------------------------------------------------------------------------------------


def xlabs_state(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors under the keys of XLabs' files."""
    state = {}
    for key, value in adapter.state_dict().items():
        for ours, theirs in XLABS_KEYS.items():
            key = key.replace(ours, theirs) if not theirs.startswith("ip_adapter_proj") or key.startswith(ours) else key
        state[key] = value.clone()
    return state


def native(model: Any, *states: dict[str, dict[str, Tensor]], scale: Any = 1.0) -> Any:
    """A pipeline over a copy of a denoiser, with adapters loaded diffusers' way."""
    pipe = transformers.flux_pipeline(copy.deepcopy(model))
    pipe.transformer._load_ip_adapter_weights(list(states))
    pipe.set_ip_adapter_scale(scale)
    return pipe


@pytest.fixture(scope="module")
def wide() -> Any:
    """A host whose texts, and so XLabs' tokens, have the published width."""
    return transformers.flux(text_width=transformers.XLABS_WIDTH)


def null_of(adapter: Adapter) -> Tensor:
    """What the encoder makes of a black picture, which both sides are given."""
    return transformers.features(adapter, seed=9)


@pytest.mark.parametrize("num_tokens", [4, 16])
@pytest.mark.parametrize("weight", [0.7, [0.9, 0.2, 0.5]], ids=["one", "layers"])
def test_xlabs_in_a_whole_pipeline(wide: Any, num_tokens: int, weight: Any) -> None:
    adapter = transformers.adapter("flux-xlabs", wide, num_tokens=num_tokens)
    shown, null = transformers.features(adapter), null_of(adapter)
    theirs = transformers.generate(
        native(wide, official_state(adapter), scale=weight),
        2,
        ip_adapter_image_embeds=[shown[:, None]],
        negative_ip_adapter_image_embeds=[null[:, None]],
    )
    scale = torch.tensor(weight) if isinstance(weight, list) else torch.full((3,), weight)
    pipe = transformers.flux_pipeline(wide)
    plain = transformers.generate(pipe, 2)
    with attach(pipe, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, given=shown, null=null, scale=scale)))
        ours = transformers.generate(pipe, 2)
    assert largest_difference(theirs, plain) > 0.1
    assert largest_difference(theirs, ours) <= LIMIT


def test_two_xlabs_adapters_at_once(wide: Any) -> None:
    adapters = [
        transformers.adapter("flux-xlabs", wide, seed=seed, num_tokens=number) for seed, number in ((1, 4), (2, 16))
    ]
    shown = [transformers.features(adapter, seed=seed) for seed, adapter in enumerate(adapters)]
    weights = [0.6, [0.4, 1.1, 0.3]]
    theirs = transformers.generate(
        native(wide, *(official_state(adapter) for adapter in adapters), scale=weights),
        ip_adapter_image_embeds=[each[:, None] for each in shown],
        negative_ip_adapter_image_embeds=[null_of(adapter)[:, None] for adapter in adapters],
    )
    pipe = transformers.flux_pipeline(wide)
    branches = [
        transformers.branch(
            adapter,
            given=each,
            null=null_of(adapter),
            scale=torch.tensor(weight).expand(3).clone(),
            number=number,
        )
        for number, (adapter, each, weight) in enumerate(zip(adapters, shown, weights, strict=True))
    ]
    with attach(pipe, *adapters) as images:
        images.set(transformers.conditioning(*branches))
        assert largest_difference(theirs, transformers.generate(pipe)) <= LIMIT


def test_every_row_equals_a_run_of_diffusers_with_its_picture(wide: Any) -> None:
    """diffusers gives one picture to all rows; ours may differ, and each is what diffusers makes of it."""
    adapter = transformers.adapter("flux-xlabs", wide)
    shown, null = transformers.features(adapter, 2), null_of(adapter)
    pipe, reference = transformers.flux_pipeline(wide), native(wide, official_state(adapter), scale=0.8)
    with attach(pipe, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, 2, weight=0.8, given=shown, null=null)))
        ours = transformers.generate(pipe, 2)
    for row in range(2):
        theirs = transformers.generate(
            reference,
            2,
            ip_adapter_image_embeds=[shown[row : row + 1, None]],
            negative_ip_adapter_image_embeds=[null[:, None]],
        )
        assert largest_difference(theirs[row], ours[row]) <= LIMIT


def test_xlabs_file_in_diffusers(wide: Any, tmp_path: Path) -> None:
    """The published keys, by way of diffusers' reader of files."""
    adapter = transformers.adapter("flux-xlabs", wide, num_tokens=16)
    save_file(xlabs_state(adapter), tmp_path / "ip_adapter.safetensors")
    pipe = transformers.flux_pipeline(copy.deepcopy(wide))
    pipe.load_ip_adapter(
        str(tmp_path), weight_name="ip_adapter.safetensors", image_encoder_pretrained_model_name_or_path=None
    )
    pipe.set_ip_adapter_scale(0.7)
    shown, null = transformers.features(adapter), null_of(adapter)
    theirs = transformers.generate(
        pipe,
        ip_adapter_image_embeds=[shown[:, None]],
        negative_ip_adapter_image_embeds=[null[:, None]],
    )
    pipe = transformers.flux_pipeline(wide)
    with attach(pipe, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, weight=0.7, given=shown, null=null)))
        assert largest_difference(theirs, transformers.generate(pipe)) <= LIMIT


def test_xlabs_projector(wide: Any) -> None:
    adapter = transformers.adapter("flux-xlabs", wide, num_tokens=16)
    theirs = copy.deepcopy(wide)._convert_ip_adapter_image_proj_to_diffusers(official_state(adapter)["image_proj"])
    shown = transformers.features(adapter, 3)
    with torch.no_grad():
        assert largest_difference(theirs(shown), adapter.project(shown)) <= LIMIT


# InstantX and PuLID --------------------------------------------------------------------------------------------------


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax(Q K^T / sqrt d) V, for [batch, heads, length, head]."""
    return torch.softmax(query @ keys.transpose(-1, -2) / math.sqrt(query.shape[-1]), dim=-1) @ values


def rms(x: Tensor, eps: float = 1e-5) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


class InstantXProcessor:
    """One attention of `IPAFluxAttnProcessor2_0`, over diffusers' own processor: the branch is added to the attention's
    output, before `to_out` in double blocks; in single ones it is the output, of text and picture."""

    def __init__(self, stock: Any, made: Any, tokens: Tensor, scale: float, *, with_values: bool = False) -> None:
        self.stock, self.made, self.tokens, self.scale, self.with_values = stock, made, tokens, scale, with_values

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, *rest: Any) -> Any:
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1))).transpose(1, 2)
        layers = (self.made.to_k_ip, self.made.to_v_ip)
        keys, values = (heads(self.tokens @ layer.weight.T, attn.heads) for layer in layers)
        values = rms(values) if self.with_values else values
        branch = self.scale * merged(attention(query, rms(keys), values))
        stock = self.stock(attn, hidden_states, encoder_hidden_states, *rest)
        if encoder_hidden_states is None:
            return stock + branch
        picture, text = stock
        return picture + branch @ attn.to_out[0].weight.T, text


@pytest.mark.parametrize("with_values", [False, True], ids=["keys", "keys-and-values"])
@pytest.mark.parametrize("num_tokens", [8, 128])
def test_instantx(num_tokens: int, with_values: bool) -> None:
    model = transformers.flux()
    adapter = transformers.adapter("flux-instantx", model, num_tokens=num_tokens, with_values=with_values)
    assert len(adapter.sites) == 3 + 5  # every double and every single block
    shown, arguments = transformers.features(adapter, 2), transformers.inputs(model, 2)
    with attach(model, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, 2, weight=0.7, given=shown)))
        ours = tiny.call(model, arguments)

    written = copy.deepcopy(model).double()
    tokens = adapter.project(shown).double()
    blocks = [*written.transformer_blocks, *written.single_transformer_blocks]
    for block, made in zip(blocks, copy.deepcopy(adapter).double().sites, strict=True):
        block.attn.processor = InstantXProcessor(block.attn.processor, made, tokens, 0.7, with_values=with_values)
    theirs = tiny.call(written, to_double(arguments))
    assert largest_difference(theirs, tiny.call(model, arguments)) > 0.1
    assert largest_difference(theirs, ours.double()) <= LIMIT


def to_double(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value.double() for name, value in arguments.items()}


def perceiver(made: Any, tokens: Tensor, hidden: Tensor) -> Tensor:
    """`PerceiverAttentionCA`: tokens of the identity, and the picture's stream, which asks."""

    def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    keys, values = (norm(made.norm1, tokens) @ made.to_kv.weight.T).chunk(2, dim=-1)
    query = norm(made.norm2, hidden) @ made.to_q.weight.T
    attended = attention(*(heads(x, made.num_heads) for x in (query, keys, values)))
    return merged(attended) @ made.to_out.weight.T


def adding(made: Any, tokens: Tensor, weight: float) -> Callable[..., Any]:
    def hook(_block: Any, _inputs: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        text, picture = output
        return text, picture + weight * perceiver(made, tokens, picture)

    return hook


def test_pulid() -> None:
    """After double blocks 0 and 2 and single blocks 0 and 4, on the picture alone."""
    model = transformers.flux()
    adapter = transformers.adapter("flux-pulid", model)
    tokens, arguments = transformers.features(adapter, 2), transformers.inputs(model, 2)
    with attach(model, adapter) as images:
        images.set(transformers.conditioning(transformers.branch(adapter, 2, weight=0.9, given=tokens)))
        ours = tiny.call(model, arguments)

    written = copy.deepcopy(model).double()
    chosen = [
        *(block for number, block in enumerate(written.transformer_blocks) if number % 2 == 0),
        *(block for number, block in enumerate(written.single_transformer_blocks) if number % 4 == 0),
    ]
    for block, made in zip(chosen, copy.deepcopy(adapter).double().sites, strict=True):
        block.register_forward_hook(adding(made, tokens.double(), 0.9))
    theirs = tiny.call(written, to_double(arguments))
    assert largest_difference(theirs, tiny.call(model, arguments)) > 0.1
    assert largest_difference(theirs, ours.double()) <= LIMIT


def test_pulid_numbers_of_the_published_network() -> None:
    """20 attentions for 19 double and 38 single blocks."""
    model = transformers.flux(num_layers=19, num_single_layers=38)
    adapter = transformers.adapter("flux-pulid", model)
    with attach(model, adapter) as images:
        names = [site.name for site in images.sites]
    double = [f"transformer_blocks.{number}.attn" for number in range(0, 19, 2)]
    assert names == [*double, *(f"single_transformer_blocks.{number}.attn" for number in range(0, 38, 4))]
    assert len(names) == len(adapter.sites) == 20
