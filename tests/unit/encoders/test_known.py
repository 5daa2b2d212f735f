"""Encoders that people know by name."""

from imprompt.encoders.known import KNOWN_ENCODERS, encoder_name, encoders_of_width, known_encoder


def test_by_name() -> None:
    encoder = known_encoder("OpenCLIP ViT-H/14")
    assert encoder is not None
    assert encoder.address == "h94/IP-Adapter/models/image_encoder"
    assert known_encoder("nobody") is None


def test_names_are_unique() -> None:
    assert len({encoder.name for encoder in KNOWN_ENCODERS}) == len(KNOWN_ENCODERS)


def test_by_sizes() -> None:
    assert encoder_name(width=1280, projection_dim=1024) == "OpenCLIP ViT-H/14"
    assert encoder_name(width=1024, projection_dim=768, image_size=336) == "CLIP ViT-L/14-336"
    assert encoder_name(width=16, projection_dim=12) is None


def test_a_width_alone_does_not_tell_but_its_layer_does() -> None:
    assert [encoder.name for encoder in encoders_of_width(1280, "image_embeds")] == ["OpenCLIP ViT-bigG/14"]
    assert [encoder.name for encoder in encoders_of_width(1280, "hidden_states")] == ["OpenCLIP ViT-H/14"]
    assert encoders_of_width(7, "image_embeds") == ()
