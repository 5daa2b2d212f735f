"""Encoders that people know by name."""

from imprompt.core.published import BIG_G, CLIP_L, CLIP_L_336, PUBLISHED_ADAPTERS, SIGLIP, VIT_H
from imprompt.encoders.kinds import KINDS
from imprompt.encoders.known import KNOWN_ENCODERS, encoder_at, encoder_name, encoders_of_width, known_encoder

READ = {VIT_H, BIG_G, CLIP_L, CLIP_L_336, SIGLIP}


def test_by_name() -> None:
    encoder = known_encoder("OpenCLIP ViT-H/14")
    assert encoder is not None
    assert encoder.address == "h94/IP-Adapter/models/image_encoder"
    assert known_encoder("nobody") is None


def test_names_are_unique() -> None:
    assert len({encoder.name for encoder in KNOWN_ENCODERS}) == len(KNOWN_ENCODERS)


def test_by_sizes() -> None:
    assert encoder_name("clip", width=1280, projection_dim=1024) == "OpenCLIP ViT-H/14"
    assert encoder_name("clip", width=1024, projection_dim=768, image_size=336) == "CLIP ViT-L/14-336"
    assert encoder_name("clip", width=16, projection_dim=12) is None
    assert encoder_name("siglip", width=1152, projection_dim=1152, image_size=384) == "SigLIP so400m/14-384"
    assert encoder_name("siglip", width=1152, projection_dim=1152, image_size=224) is None
    assert encoder_name("dinov2", width=1536, projection_dim=1536) == "DINOv2 ViT-g/14"


def test_by_address() -> None:
    for encoder in KNOWN_ENCODERS:
        assert encoder_at(encoder.address) == encoder
    assert {adapter.encoder for adapter in PUBLISHED_ADAPTERS if adapter.encoder} == READ
    assert {encoder.address for encoder in KNOWN_ENCODERS if encoder.read_by_published} == {
        "h94/IP-Adapter/models/image_encoder",
        "h94/IP-Adapter/sdxl_models/image_encoder",
        "openai/clip-vit-large-patch14",
        "Kwai-Kolors/Kolors-IP-Adapter-Plus@refs/pr/4:image_encoder",
        "google/siglip-so400m-patch14-384",
    }
    assert encoder_at("h94/IP-Adapter:models/image_encoder") == known_encoder("OpenCLIP ViT-H/14")
    assert encoder_at("google/siglip2-so400m-patch14-384") == known_encoder("SigLIP 2 so400m/14-384")
    assert encoder_at("nobody/nothing") is None


def test_a_revision_is_part_of_the_address() -> None:
    encoder = known_encoder("CLIP ViT-L/14-336")
    assert encoder is not None
    assert encoder.address == "Kwai-Kolors/Kolors-IP-Adapter-Plus@refs/pr/4:image_encoder"


def test_their_kinds_are_known() -> None:
    assert {encoder.kind for encoder in KNOWN_ENCODERS} <= {kind.name for kind in KINDS}


def test_a_width_alone_does_not_tell_but_its_layer_does() -> None:
    assert [encoder.name for encoder in encoders_of_width(1280, "image_embeds")] == ["OpenCLIP ViT-bigG/14"]
    assert [encoder.name for encoder in encoders_of_width(1280, "hidden_states")] == ["OpenCLIP ViT-H/14"]
    assert encoders_of_width(7, "image_embeds") == ()
    assert [encoder.name for encoder in encoders_of_width(1152, "image_embeds")] == ["SigLIP so400m/14-384"]
    assert [encoder.name for encoder in encoders_of_width(1024, "image_embeds")] == ["OpenCLIP ViT-H/14"]  # not DINOv2
