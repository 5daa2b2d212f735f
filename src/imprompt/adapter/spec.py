"""What an adapter is, said once: frozen dataclasses that travel with the weights as JSON.

One class a projector kind, so no field exists that a kind does not use and no `is_*` flag is ever asked.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

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

MAX_SIZE = 2**20  # larger numbers come from damaged files, and would make us build layers without end
MAX_DEPTH = 1024

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
            CheckpointError: the text is not a spec (unknown kind, missing or unknown field, impossible value).
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
        spec = cls(**fields)
        check_spec(spec)
        return spec


def check_spec(spec: AdapterSpec) -> None:
    """Refuse what a file can say and no adapter can be.

    Raises:
        ValueError: a field has an impossible value.
    """
    for name, allowed in (("family", Family), ("null_image", NullImage)):
        if getattr(spec, name) not in get_args(allowed):
            raise ValueError(f"{name} is {getattr(spec, name)!r}, expected one of {', '.join(get_args(allowed))}")
    claimed: Any = spec  # its fields are what a file says, whatever their types say
    if claimed.features.layer not in get_args(Layer) or not isinstance(claimed.features.index, int | None):
        raise ValueError(f"no such features: {claimed.features.layer!r}[{claimed.features.index!r}]")
    if not isinstance(claimed.name, str) or not isinstance(claimed.features.encoder, str):
        raise ValueError("the names of the adapter and of its encoder must be texts")
    if len(spec.site_indices) != len(spec.site_widths) or len(set(spec.site_indices)) != len(spec.site_indices):
        raise ValueError(f"{len(spec.site_indices)} site numbers, {len(spec.site_widths)} widths; expected one each")
    _check_sizes(spec)


def _check_sizes(spec: AdapterSpec) -> None:
    sizes = (*asdict(spec.projector).values(), spec.features.width, spec.cross_attention_dim, *spec.site_widths)
    wrong = [size for size in sizes if type(size) is not int or not 0 < size <= MAX_SIZE]
    wrong += [index for index in spec.site_indices if type(index) is not int or not 0 <= index <= MAX_SIZE]
    if not wrong and isinstance(spec.projector, ResamplerSpec) and spec.projector.depth > MAX_DEPTH:
        wrong = [spec.projector.depth]
    if wrong:
        raise ValueError(f"a size of {wrong[0]!r}, expected a whole number from 1 to {MAX_SIZE:,}")
