"""PuLID on Stable Diffusion XL: the plain branch of its `IDAttnProcessor2_0`, with tokens of the identity as given.

Written once more after `pulid/attention_processor.py` of ToTheBeginning/PuLID (at 6bfef55) with `ORTHO` and `ORTHO_v2`
off; `NUM_ZERO` appends tokens of zeros, which whoever makes the tokens may do.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from imprompt.adapter.adapter import Adapter, new_adapter
from imprompt.adapter.attach import attach
from imprompt.adapter.conditioning import Branch
from imprompt.adapter.spec import FeatureSpec, TokensSpec
from tests import tiny
from tests.parity.native import largest_difference

LIMIT = 1e-5
NUM_TOKENS = 10  # as version 1 makes them


class IDAttention:
    """A cross-attention whose output before `to_out` has the identity's attention added."""

    def __init__(self, made: Any, tokens: Tensor, scale: float) -> None:
        self.made, self.tokens, self.scale = made, tokens, scale

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        query = attn.to_q(hidden_states)
        text = self.attend(attn, query, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        identity = self.attend(attn, query, self.made.to_k_ip(self.tokens), self.made.to_v_ip(self.tokens))
        return attn.to_out[1](attn.to_out[0](text + self.scale * identity))

    @staticmethod
    def attend(attn: Any, *parts: Tensor) -> Tensor:
        query, keys, values = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in parts)
        return functional.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)


def pulid(host: Any) -> Adapter:
    def build() -> Adapter:
        return new_adapter(
            host,
            TokensSpec(num_tokens=NUM_TOKENS, width=tiny.TEXT_WIDTH),
            FeatureSpec(layer="tokens", width=tiny.TEXT_WIDTH, encoder="PuLID's face stack"),
            null_image="zero_features",
            name="tiny-pulid",
        )

    made = tiny.seeded(build, 1)
    for number, parameter in enumerate(made.parameters()):  # not the text's, with which a fresh adapter starts
        parameter.copy_(tiny.rand(*parameter.shape, seed=number) * parameter.shape[1] ** -0.5)
    return made


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "taps"])
@pytest.mark.parametrize("family", ["sdxl", "sdxl_70"])
def test_one_call(family: str, fuse: bool) -> None:
    host = tiny.unet(family)
    adapter, inputs = pulid(host), tiny.host_inputs(host, 2)
    tokens = tiny.rand(2, NUM_TOKENS, tiny.TEXT_WIDTH, seed=40)
    scale = torch.full((1, len(adapter.sites), 2), 0.8)
    with attach(host, adapter, fuse=fuse) as images:
        images.set(tiny.conditioning(Branch(tokens=adapter.project(tokens), null_tokens=None, scale=scale)))
        ours = tiny.call(host, inputs)
        names = [site.name for site in images.sites]
    written = copy.deepcopy(host)
    for name, made in zip(names, adapter.sites, strict=True):
        written.get_submodule(name).processor = IDAttention(made, tokens, 0.8)
    theirs = tiny.call(written, inputs)
    assert largest_difference(theirs, tiny.call(host, inputs)) > 1e-2
    assert largest_difference(theirs, ours) <= LIMIT


def test_whole_pipeline_with_tokens_for_both_halves() -> None:
    """The negative rows have the identity that PuLID makes of nothing, which is not zero."""
    pipe = tiny.pipeline(family="sdxl")
    adapter = pulid(pipe.unet)
    tokens, nothing = (tiny.rand(1, NUM_TOKENS, tiny.TEXT_WIDTH, seed=seed) for seed in (40, 41))
    scale = torch.full((1, len(adapter.sites), 1), 0.8)
    with attach(pipe, adapter) as images:
        images.set(tiny.conditioning(Branch(tokens=tokens, null_tokens=nothing, scale=scale)))
        ours = tiny.generate(pipe, steps=2, guidance_scale=3.0)
        names = [site.name for site in images.sites]
    for name, made in zip(names, adapter.sites, strict=True):
        pipe.unet.get_submodule(name).processor = IDAttention(made, torch.cat([nothing, tokens]), 0.8)
    assert largest_difference(tiny.generate(pipe, steps=2, guidance_scale=3.0), ours) <= LIMIT
