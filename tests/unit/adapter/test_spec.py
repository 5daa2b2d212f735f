import json
from typing import Any

import pytest

from imprompt.adapter.spec import AdapterSpec, FeatureSpec, LinearSpec
from imprompt.core.errors import CheckpointError
from tests import tiny


@pytest.mark.parametrize("kind", tiny.PROJECTORS)
def test_json_round_trip(kind: str) -> None:
    spec = tiny.adapter(tiny.unet(), kind).spec
    text = spec.to_json()
    assert "\n" not in text
    assert AdapterSpec.from_json(text) == spec
    assert hash(AdapterSpec.from_json(text)) == hash(spec)
    assert json.loads(text)["projector"]["kind"] == kind


def spec_json(**changes: Any) -> str:
    spec = AdapterSpec(
        name="a",
        family="sd1",
        projector=LinearSpec(feature_width=2, num_tokens=3, width=4),
        features=FeatureSpec(layer="image_embeds", width=2, encoder="x"),
        null_image="zero_features",
        cross_attention_dim=4,
        site_indices=(1, 3),
        site_widths=(8, 8),
    )
    fields = {**json.loads(spec.to_json()), **changes}
    return json.dumps({key: value for key, value in fields.items() if value != "REMOVED"})


def linear(**changes: Any) -> dict[str, Any]:
    return {"kind": "linear", "feature_width": 2, "num_tokens": 3, "width": 4, **changes}


def resampler(**changes: Any) -> dict[str, Any]:
    numbers = {"feature_width": 2, "inner_width": 4, "depth": 1, "num_heads": 1, "head_width": 4, "num_tokens": 3}
    return {"kind": "resampler", **numbers, "width": 4, **changes}


BAD = {
    "not json": "{",
    "a list": "[]",
    "a number": "3",
    "nothing": "",
    "null": "null",
    "unknown projector": spec_json(projector={"kind": "transformer"}),
    "no kind": spec_json(projector={"num_tokens": 3}),
    "projector is text": spec_json(projector="linear"),
    "unknown field": spec_json(colour="red"),
    "missing field": spec_json(name="REMOVED"),
    "features is null": spec_json(features=None),
    "site_indices is a number": spec_json(site_indices=3),
    "unknown null image": spec_json(null_image="black"),
    "unknown family": spec_json(family="sd9"),
    "unknown layer": spec_json(features={"layer": "attention", "width": 2, "encoder": "x", "index": None}),
    "text for a number": spec_json(cross_attention_dim="four"),
    "text in a projector": spec_json(projector=linear(num_tokens="three")),
    "negative": spec_json(projector=linear(num_tokens=-3)),
    "zero": spec_json(cross_attention_dim=0),
    "text for a site": spec_json(site_indices=["one", 3]),
    "one width too few": spec_json(site_widths=[8]),
    "a site twice": spec_json(site_indices=[1, 1]),
    "a billion layers": spec_json(projector=resampler(depth=10**9)),
    "name is a number": spec_json(name=3),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_bad_json_is_one_clear_error(text: str) -> None:
    with pytest.raises(CheckpointError, match="imprompt_spec"):
        AdapterSpec.from_json(text)


def test_good_json_is_none_of_the_above() -> None:
    assert AdapterSpec.from_json(spec_json()).num_tokens == 3
    assert AdapterSpec.from_json(spec_json(projector=resampler())).num_tokens == 3
