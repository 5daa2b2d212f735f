"""What an adapter is, said once: frozen dataclasses that travel with the weights as JSON.

One class a projector kind, so no field exists that a kind does not use and no `is_*` flag is ever asked.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from imprompt.adapter.families import family_names
from imprompt.core.errors import CheckpointError

Layer = Literal["image_embeds", "hidden_states", "face_embeds", "tokens"]
NullImage = Literal["zero_features", "zero_pixels", "black_pixels", "none"]


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


@dataclass(frozen=True, kw_only=True)
class PooledMLPSpec:
    """One pooled feature becomes `num_tokens` tokens by a two-layer MLP (FaceID's `MLPProjModel`, InstantX on FLUX)."""

    feature_width: int
    hidden_width: int
    num_tokens: int
    width: int


@dataclass(frozen=True, kw_only=True)
class FacePlusSpec:
    """FaceID-Plus: the tokens of a face embedding read the features of the face's picture (official `ProjPlusModel`).

    `shortcut` adds what was read to the tokens (version 2) in place of replacing them (version 1); no tensor tells.
    """

    feature_width: int
    hidden_width: int
    crop_width: int
    depth: int
    head_width: int
    num_tokens: int
    width: int
    shortcut: bool = True
    mlp_ratio: int = 4


@dataclass(frozen=True, kw_only=True)
class TimeResamplerSpec:
    """A resampler that knows the timestep, so that it reads the features anew at every step (InstantX on SD3.5)."""

    feature_width: int
    inner_width: int
    depth: int
    num_heads: int
    head_width: int
    num_tokens: int
    width: int
    time_width: int
    mlp_ratio: int = 4


@dataclass(frozen=True, kw_only=True)
class TokensSpec:
    """No projector: the tokens are made elsewhere and given as features (PuLID without its face stack)."""

    num_tokens: int
    width: int

    @property
    def feature_width(self) -> int:
        """Width of what is given, which is that of the tokens."""
        return self.width


ProjectorSpec = LinearSpec | MLPSpec | ResamplerSpec | PooledMLPSpec | FacePlusSpec | TimeResamplerSpec | TokensSpec


@dataclass(frozen=True, kw_only=True)
class LinearKVSpec:
    """Keys and values are one linear layer each (equation 4)."""

    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class NormedKVSpec:
    """The same, and then a norm without weights over each head of the keys (InstantX on FLUX).

    InstantX's own code leaves the values as they are (`norm_added_v` is commented out in its `attention_processor.py`);
    Shakker-Labs' ComfyUI node normalises them as well, which `with_values` does. No tensor tells.
    """

    head_width: int
    with_values: bool = False


@dataclass(frozen=True, kw_only=True)
class TimedKVSpec:
    """Keys and values of tokens that are modulated by the timestep, read beside the picture's own (InstantX on SD3.5).

    `time_width` is that of the timestep's embedding.
    """

    head_width: int
    time_width: int


@dataclass(frozen=True, kw_only=True)
class PerceiverKVSpec:
    """A whole cross-attention with queries and an output layer of its own, after the block (PuLID on FLUX)."""

    num_heads: int
    head_width: int


KeyValueSpec = LinearKVSpec | NormedKVSpec | TimedKVSpec | PerceiverKVSpec


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """A low-rank change of the host's attentions that belongs to the adapter (FaceID).

    Attributes:
        rank: of every pair of matrices.
        indices: numbers of the attentions in checkpoints, self-attentions included.
        widths: width of each one's queries.
        key_widths: width of what each one's keys and values read.
    """

    rank: int
    indices: tuple[int, ...]
    widths: tuple[int, ...]
    key_widths: tuple[int, ...]


MAX_SIZE = 2**20  # larger numbers come from damaged files, and would make us build layers without end
MAX_DEPTH = 1024
FLAGS = ("bias", "shortcut", "with_values")  # fields that are no sizes

PROJECTOR_KINDS: dict[str, type[ProjectorSpec]] = {
    "linear": LinearSpec,
    "mlp": MLPSpec,
    "resampler": ResamplerSpec,
    "pooled_mlp": PooledMLPSpec,
    "face_plus": FacePlusSpec,
    "time_resampler": TimeResamplerSpec,
    "tokens": TokensSpec,
}
KEY_VALUE_KINDS: dict[str, type[KeyValueSpec]] = {
    "linear": LinearKVSpec,
    "normed": NormedKVSpec,
    "timed": TimedKVSpec,
    "perceiver": PerceiverKVSpec,
}
# What specs of earlier versions call "sdxl", since Kolors had no family of its own.
_RENAMED = {("kolors-ip-adapter-plus", "sdxl"): "kolors"}
_KINDS: dict[str, dict[str, type[Any]]] = {"projector": PROJECTOR_KINDS, "key_values": KEY_VALUE_KINDS}


def projector_kind(projector: ProjectorSpec) -> str:
    """A projector's name in `PROJECTOR_KINDS`."""
    return _kind_of(projector, PROJECTOR_KINDS)


def _kind_of(part: Any, kinds: dict[str, type[Any]]) -> str:
    return next(kind for kind, cls in kinds.items() if type(part) is cls)


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """Which features of which image encoder the projector reads.

    Attributes:
        layer: `image_embeds` (pooled), `hidden_states` (every token of one layer), `face_embeds` (one vector a face),
            or `tokens`, which no encoder makes.
        index: which hidden layer, counted as transformers counts them (-2 is the next to last); None for the others.
        width: size of one feature vector.
        encoder: the encoder's common name, for messages and for finding it.
        normalised: whether a face embedding has length 1 (`normed_embedding`) or the network's own (`embedding`).
    """

    layer: Layer
    width: int
    encoder: str
    index: int | None = None
    normalised: bool = True

    @property
    def is_sequence(self) -> bool:
        """Whether one picture has many vectors."""
        return self.layer in ("hidden_states", "tokens")


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """Everything that an adapter needs from the outside, and everything it is.

    Attributes:
        name: the variant's name, as its authors publish it where known.
        family: the base models it was made for, and how it acts on them: a name of `imprompt.adapter.families`.
        projector: shape of the projector.
        features: what the image encoder must deliver.
        null_image: how the unconditional tokens are made: zeros in place of the *features*, zeros in place of the
            *normalised pixels* (see `ip-adapter` scripts: base and plus differ), a black picture, or not at all.
        cross_attention_dim: width of one token where keys and values read it.
        site_indices: the sites' numbers in checkpoints (for UNets in the order down, up, mid).
        site_widths: the width of each site's keys and values.
        key_values: how keys and values are made of tokens.
        face_crop: what the encoder must deliver of the aligned face, where the projector reads that too.
        null_crop: how "no image" is expressed in the features of the aligned face.
        lora: the change of the host's own attentions that comes with it.
        is_partial: whether it acts on some of the host's sites only, as each half of CSGO does.
    """

    name: str
    family: str
    projector: ProjectorSpec
    features: FeatureSpec
    null_image: NullImage
    cross_attention_dim: int
    site_indices: tuple[int, ...]
    site_widths: tuple[int, ...]
    key_values: KeyValueSpec = LinearKVSpec()
    face_crop: FeatureSpec | None = None
    null_crop: NullImage = "zero_pixels"
    lora: LoraSpec | None = None
    is_partial: bool = False

    @property
    def is_timed(self) -> bool:
        """Whether its tokens depend on the timestep, so that they are made at every step."""
        return isinstance(self.projector, TimeResamplerSpec)

    @property
    def num_tokens(self) -> int:
        """Tokens for one image."""
        return self.projector.num_tokens

    def to_json(self) -> str:
        """The spec as one line of JSON, for safetensors metadata."""
        fields = asdict(self)
        for name, kinds in _KINDS.items():
            fields[name] = {"kind": _kind_of(getattr(self, name), kinds), **fields[name]}
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
        fields = {"key_values": {"kind": "linear"}, **fields}
        for name, kinds in _KINDS.items():
            parts = dict(fields[name])
            fields[name] = kinds[parts.pop("kind")](**parts)
        for name in ("features", "face_crop"):
            if fields.get(name) is not None or name == "features":
                fields[name] = FeatureSpec(**fields[name])
        if fields.get("lora") is not None:
            lists: dict[str, Any] = fields["lora"]
            fields["lora"] = LoraSpec(rank=lists.pop("rank"), **{key: tuple(value) for key, value in lists.items()})
        for name in ("site_indices", "site_widths"):
            fields[name] = tuple(fields[name])
        fields["family"] = _RENAMED.get((fields["name"], fields["family"]), fields["family"])
        spec = cls(**fields)
        check_spec(spec)
        return spec


def check_spec(spec: AdapterSpec) -> None:
    """Refuse what a file can say and no adapter can be.

    Raises:
        ValueError: a field has an impossible value.
    """
    nulls = get_args(NullImage)
    for name, allowed in (("family", family_names()), ("null_image", nulls), ("null_crop", nulls)):
        if getattr(spec, name) not in allowed:
            raise ValueError(f"{name} is {getattr(spec, name)!r}, expected one of {', '.join(allowed)}")
    claimed: Any = spec  # its fields are what a file says, whatever their types say
    for features in (claimed.features, claimed.face_crop):
        if features is not None and (
            features.layer not in get_args(Layer) or not isinstance(features.index, int | None)
        ):
            raise ValueError(f"no such features: {features.layer!r}[{features.index!r}]")
    if not isinstance(claimed.name, str) or not isinstance(claimed.features.encoder, str):
        raise ValueError("the names of the adapter and of its encoder must be texts")
    if len(spec.site_indices) != len(spec.site_widths) or len(set(spec.site_indices)) != len(spec.site_indices):
        raise ValueError(f"{len(spec.site_indices)} site numbers, {len(spec.site_widths)} widths; expected one each")
    _check_sizes(spec)


def _check_sizes(spec: AdapterSpec) -> None:
    lora = spec.lora
    fields = asdict(spec.projector) | {f"key_values.{name}": value for name, value in asdict(spec.key_values).items()}
    flags = {name: value for name, value in fields.items() if name.rpartition(".")[2] in FLAGS}
    if not all(type(flag) is bool for flag in flags.values()):
        raise ValueError(f"{', '.join(flags)} must be true or false")
    sizes = [size for name, size in fields.items() if name not in flags]
    sizes += [spec.features.width, spec.cross_attention_dim, *spec.site_widths]
    indices = [*spec.site_indices]
    if lora is not None:
        if not len(lora.indices) == len(lora.widths) == len(lora.key_widths):
            raise ValueError("the LoRA has different numbers of attentions and of widths; expected one each")
        sizes += [lora.rank, *lora.widths, *lora.key_widths]
        indices += lora.indices
    wrong = [size for size in sizes if type(size) is not int or not 0 < size <= MAX_SIZE]
    wrong += [index for index in indices if type(index) is not int or not 0 <= index <= MAX_SIZE]
    wrong += [depth for depth in (getattr(spec.projector, "depth", 1),) if not wrong and depth > MAX_DEPTH]
    if wrong:
        raise ValueError(f"a size of {wrong[0]!r}, expected a whole number from 1 to {MAX_SIZE:,}")
