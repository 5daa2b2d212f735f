"""The encoders that people know by name, so that a message can name the right one."""

from dataclasses import dataclass

from imprompt.core import published
from imprompt.core.registry import HubName, parse_hub_name
from imprompt.encoders.base import Layer


@dataclass(frozen=True)
class KnownEncoder:
    """A published vision tower.

    Attributes:
        name: What people call it.
        width: Width of its hidden layers.
        projection_dim: Width of its pooled output.
        image_size: Side of the square it looks at, in pixels.
        num_layers: How many transformer blocks it has.
        repository: Where it is on the hub.
        subfolder: In which folder of it.
        kind: Its kind, as in `encoders.kinds`.
        revision: Which revision of the repository to take, where the main one lacks safetensors.
        read_by_published: Whether a published adapter reads it; others are for adapters still to be trained.
    """

    name: str
    width: int
    projection_dim: int
    image_size: int
    num_layers: int
    repository: str
    subfolder: str | None = None
    kind: str = "clip"
    revision: str | None = None
    read_by_published: bool = True

    @property
    def address(self) -> str:
        """Repository and folder in one; with a revision, as `owner/name@revision:folder`."""
        if self.revision is not None:
            return f"{self.repository}@{self.revision}:{self.subfolder or ''}"
        return self.repository if self.subfolder is None else f"{self.repository}/{self.subfolder}"


def _read(
    name: str, width: int, projection_dim: int, image_size: int, num_layers: int, address: str, kind: str = "clip"
) -> KnownEncoder:
    """An encoder that published adapters read, from where their table says."""
    place = parse_hub_name(address) or HubName(address)
    return KnownEncoder(
        name,
        width,
        projection_dim,
        image_size,
        num_layers,
        place.repository,
        place.inside or None,
        kind=kind,
        revision=place.revision,
    )


def _new(name: str, width: int, num_layers: int, repository: str, kind: str, image_size: int = 224) -> KnownEncoder:
    """An encoder that no published adapter reads, whose pooled feature is as wide as its layers."""
    return KnownEncoder(name, width, width, image_size, num_layers, repository, kind=kind, read_by_published=False)


KNOWN_ENCODERS = (
    _read("OpenCLIP ViT-H/14", 1280, 1024, 224, 32, published.VIT_H),
    _read("OpenCLIP ViT-bigG/14", 1664, 1280, 224, 48, published.BIG_G),
    _read("CLIP ViT-L/14", 1024, 768, 224, 24, published.CLIP_L),
    _read("CLIP ViT-L/14-336", 1024, 768, 336, 24, published.CLIP_L_336),
    _read("SigLIP so400m/14-384", 1152, 1152, 384, 27, published.SIGLIP, "siglip"),
    _new("SigLIP 2 so400m/14-384", 1152, 27, "google/siglip2-so400m-patch14-384", "siglip", 384),
    _new("DINOv2 ViT-S/14", 384, 12, "facebook/dinov2-small", "dinov2"),
    _new("DINOv2 ViT-B/14", 768, 12, "facebook/dinov2-base", "dinov2"),
    _new("DINOv2 ViT-L/14", 1024, 24, "facebook/dinov2-large", "dinov2"),
    _new("DINOv2 ViT-g/14", 1536, 40, "facebook/dinov2-giant", "dinov2"),
)


def known_encoder(name: str) -> KnownEncoder | None:
    """Find a published encoder by its name; None if it is not one of them."""
    return next((encoder for encoder in KNOWN_ENCODERS if encoder.name == name), None)


def encoder_at(address: str) -> KnownEncoder | None:
    """Find a published encoder by its hub folder, as `owner/name/folder` or `owner/name:folder`; None if it is none."""
    wanted = address.replace(":", "/").strip("/")
    return next((encoder for encoder in KNOWN_ENCODERS if encoder.address.replace(":", "/") == wanted), None)


def encoder_name(kind: str, *, width: int, projection_dim: int, image_size: int | None = None) -> str | None:
    """Name the published encoder of a kind and these sizes; None if there is none.

    SigLIP and SigLIP 2 are one network of the same sizes: weights alone are named after the first, which published
    adapters read, and weights that come from a hub folder after that.
    """
    for encoder in KNOWN_ENCODERS:
        if (encoder.kind, encoder.width, encoder.projection_dim) == (kind, width, projection_dim):
            if image_size is None or image_size == encoder.image_size:
                return encoder.name
    return None


def encoders_of_width(feature_width: int, layer: Layer) -> tuple[KnownEncoder, ...]:
    """List the encoders of published adapters whose features at a layer have a width.

    1280 is both the hidden width of ViT-H/14 and the pooled width of ViT-bigG/14: the layer decides. Encoders that no
    published adapter reads are left out: a file of unknown origin was not trained on them.
    """
    return tuple(
        encoder
        for encoder in KNOWN_ENCODERS
        if encoder.read_by_published
        and feature_width == {"image_embeds": encoder.projection_dim, "hidden_states": encoder.width}.get(layer)
    )
