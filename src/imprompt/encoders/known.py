"""The encoders that published adapters were trained on, so that a message can name the right one."""

from dataclasses import dataclass

from imprompt.encoders.base import Layer


@dataclass(frozen=True)
class KnownEncoder:
    """A published vision tower with a projection.

    Attributes:
        name: What people call it.
        width: Width of its hidden layers.
        projection_dim: Width of its pooled output.
        image_size: Side of the square it looks at, in pixels.
        num_layers: How many transformer blocks it has.
        repository: Where it is on the hub.
        subfolder: In which folder of it.
    """

    name: str
    width: int
    projection_dim: int
    image_size: int
    num_layers: int
    repository: str
    subfolder: str | None = None

    @property
    def address(self) -> str:
        """Repository and folder in one."""
        return self.repository if self.subfolder is None else f"{self.repository}/{self.subfolder}"


KNOWN_ENCODERS = (
    KnownEncoder("OpenCLIP ViT-H/14", 1280, 1024, 224, 32, "h94/IP-Adapter", "models/image_encoder"),
    KnownEncoder("OpenCLIP ViT-bigG/14", 1664, 1280, 224, 48, "h94/IP-Adapter", "sdxl_models/image_encoder"),
    KnownEncoder("CLIP ViT-L/14", 1024, 768, 224, 24, "openai/clip-vit-large-patch14"),
    KnownEncoder("CLIP ViT-L/14-336", 1024, 768, 336, 24, "openai/clip-vit-large-patch14-336"),
)


def known_encoder(name: str) -> KnownEncoder | None:
    """Find a published encoder by its name; None if it is not one of them."""
    return next((encoder for encoder in KNOWN_ENCODERS if encoder.name == name), None)


def encoder_name(*, width: int, projection_dim: int, image_size: int | None = None) -> str | None:
    """Name the published encoder of these sizes; None if there is none."""
    for encoder in KNOWN_ENCODERS:
        if (encoder.width, encoder.projection_dim) == (width, projection_dim):
            if image_size is None or image_size == encoder.image_size:
                return encoder.name
    return None


def encoders_of_width(feature_width: int, layer: Layer) -> tuple[KnownEncoder, ...]:
    """List the published encoders whose features at a layer have a width.

    1280 is both the hidden width of ViT-H/14 and the pooled width of ViT-bigG/14: the layer decides.
    """
    return tuple(
        encoder
        for encoder in KNOWN_ENCODERS
        if feature_width == (encoder.projection_dim if layer == "image_embeds" else encoder.width)
    )
