"""What an adapter is, said once: frozen dataclasses that travel with the weights as JSON.

One class a projector kind, so no field exists that a kind does not use and no `is_*` flag is ever asked.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from imprompt.core.errors import CheckpointError

Family = Literal["sd1", "sd2", "sdxl", "unet"]
Layer = Literal["image_embeds", "hidden_states"]
NullImage = Literal["zero_features", "zero_pixels"]


@dataclass(frozen=True, kw_only=True)
class LinearSpec:
    """Global adapter: one pooled feature becomes `num_tokens` tokens (official `ImageProjModel`)."""

    feature_width: int
    num_tokens: int
    width: int


@dataclass(frozen=True, kw_only=True)
class MLPSpec:
    """Full adapter: every feature token goes through the same two-layer MLP (official `MLPProjModel`)."""

    feature_width: int
    hidden_width: int
    num_tokens: int
    width: int


@dataclass(frozen=True, kw_only=True)
class ResamplerSpec:
    """Plus adapter: learned queries read the feature tokens (official `Resampler`)."""

    feature_width: int
    inner_width: int
    depth: int
    num_heads: int
    head_width: int
    num_tokens: int
    width: int
    mlp_ratio: int = 4


ProjectorSpec = LinearSpec | MLPSpec | ResamplerSpec

PROJECTOR_KINDS: dict[str, type[ProjectorSpec]] = {"linear": LinearSpec, "mlp": MLPSpec, "resampler": ResamplerSpec}


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """Which features of which image encoder the projector reads.

    Attributes:
        layer: `image_embeds` (pooled, projected) or `hidden_states` (every token of one layer).
        index: which hidden layer, counted as transformers counts them (-2 is the next to last); None for pooled.
        width: size of one feature vector.
        encoder: the encoder's common name, for messages and for finding it.
    """

    layer: Layer
    width: int
    encoder: str
    index: int | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """Everything that an adapter needs from the outside, and everything it is.

    Attributes:
        name: the variant's name, as its authors publish it where known.
        family: the base models it was made for.
        projector: shape of the projector.
        features: what the image encoder must deliver.
        null_image: how the unconditional tokens are made: zeros in place of the *features*, or zeros in place of the
            *normalised pixels* (see `ip-adapter` scripts: base and plus differ).
        cross_attention_dim: width of one token.
        site_indices: the sites' numbers in checkpoints (order down, up, mid).
        site_widths: the width of each site's keys and values.
    """

    name: str
    family: Family
    projector: ProjectorSpec
    features: FeatureSpec
    null_image: NullImage
    cross_attention_dim: int
    site_indices: tuple[int, ...]
    site_widths: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens for one image."""
        return self.projector.num_tokens

    def to_json(self) -> str:
        """The spec as one line of JSON, for safetensors metadata."""
        fields = asdict(self)
        kind = next(kind for kind, cls in PROJECTOR_KINDS.items() if isinstance(self.projector, cls))
        fields["projector"] = {"kind": kind, **fields["projector"]}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "AdapterSpec":
        """Read `to_json`'s text.

        Raises:
            CheckpointError: the text is not a spec (unknown kind, missing or unknown field).
        """
        try:
            return cls._from_fields(json.loads(text))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"the spec in the file's metadata cannot be read ({error!r}); "
                "remove the metadata key 'imprompt_spec' to have the variant identified from its tensors"
            ) from error

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> "AdapterSpec":
        projector = dict(fields["projector"])
        kind = PROJECTOR_KINDS[projector.pop("kind")]
        fields = fields | {
            "projector": kind(**projector),
            "features": FeatureSpec(**fields["features"]),
            "site_indices": tuple(fields["site_indices"]),
            "site_widths": tuple(fields["site_widths"]),
        }
        return cls(**fields)
