import math

import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from imprompt.recipes.emoji.teacher import principal_components
from imprompt.recipes.emoji.tokenizer import END, START, save_tokenizer, train_tokenizer
from imprompt.recipes.emoji.unet import build_text_encoder
from imprompt.recipes.emoji.vision import (
    CONTRAST_SCALE,
    build,
    contrastive_loss,
    image_processor,
    levelled,
    local_means,
    mirror_grid,
    neighbours,
    patch_colours,
    thumbnails,
)

TEXTS = ["red apple, noto style emoji", "blob style cat face", "3d style rocket"] * 20


def test_the_tokenizer_is_clips_own_kind_and_survives_saving(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocabulary_size=600)
    save_tokenizer(tokenizer, tmp_path)
    assert {"vocab.json", "merges.txt"} <= {path.name for path in tmp_path.iterdir()}
    for reread in (tokenizer, CLIPTokenizer.from_pretrained(tmp_path)):
        ids = reread("Red  Apple, a piñata", padding="max_length", max_length=24, truncation=True).input_ids
        assert len(ids) == 24
        assert reread.convert_ids_to_tokens(ids)[:3] == [START, "red</w>", "apple</w>"]
        assert ids[-1] == reread.pad_token_id == reread.get_vocab()[END]
        assert reread.decode(ids, skip_special_tokens=True) == "red apple , a piñata"
        assert reread.model_max_length == 24


def test_contrast_is_the_cross_entropy_of_finding_ones_partner_both_ways():
    seen = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    taught = torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, 1.0]])
    cosines = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.5**0.5] * 3])
    rows, columns = (torch.log_softmax(CONTRAST_SCALE * cosines, dim=dim).diag().mean() for dim in (1, 0))
    assert float(contrastive_loss(seen, taught)) == pytest.approx(float(-(rows + columns) / 2), abs=1e-5)


def test_levelled_components_keep_their_order_and_lose_half_of_its_spread():
    components = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([16.0, 4.0, 1.0])
    deviations = levelled(components).std(dim=0)
    ratios = deviations[:2] / deviations[2]
    assert torch.allclose(ratios, components.std(dim=0)[:2].div(components.std(dim=0)[2]).sqrt(), rtol=1e-4)
    assert float(levelled(components).square().mean()) == pytest.approx(1.0, abs=1e-4)


def test_neighbours_share_their_labels_and_fill_their_dimensions():
    pairs = torch.tensor([[9.0, 1.0], [9.0, -1.0], [-9.0, 1.0], [-9.0, -1.0]])
    figures = neighbours(pairs, {"subject": torch.tensor([0, 0, 1, 1]), "style": torch.tensor([0, 0, 0, 1])})
    assert figures["subject"] == 1.0
    assert figures["style"] == 0.5  # two pairs, one of them of one style
    assert figures["dimensions"] == pytest.approx((81 + 1) ** 2 / (81**2 + 1), rel=1e-4)


def test_patch_colours_lie_as_the_vision_towers_patches_do():
    images = torch.full((1, 3, 64, 64), -1.0)
    images[0, 1, 8:16, 16:24] = 1.0  # green in row 1, column 2
    colours = patch_colours(images)
    assert colours.shape == (1, 64, 48)
    assert (colours[0, 10].view(3, 16).mean(1) == torch.tensor([-1.0, 1.0, -1.0])).all()
    assert (colours[0, 9] == -1).all()
    assert thumbnails(images)[0].view(3, 8, 8)[1, 1, 2] == 1


def test_local_means_and_mirrored_grids_keep_rows_and_columns():
    patches = torch.arange(64.0).view(1, 64, 1).repeat(1, 1, 3)
    assert local_means(patches)[0, 1, 0] == (2 + 3 + 10 + 11) / 4
    grid = torch.arange(16.0).view(1, 16, 1)
    assert mirror_grid(grid, torch.tensor([True]))[0, :4, 0].tolist() == [3, 2, 1, 0]
    assert torch.equal(mirror_grid(grid, torch.tensor([False])), grid)


def test_principal_components_are_uncorrelated_and_of_unit_mean_square():
    features = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) @ torch.randn(6, 6)
    kept = principal_components(features, 3)
    covariance = kept.T @ kept / len(kept)
    assert float(kept.square().mean()) == pytest.approx(1.0, abs=1e-4)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3
    assert covariance.diag().diff().max() < 0


def test_the_towers_have_the_widths_that_adapters_and_the_denoiser_expect():
    text = build_text_encoder(600, 598, 599)
    vision = build()
    seen = vision(torch.zeros(1, 3, 64, 64), output_hidden_states=True)
    assert seen.image_embeds.shape == (1, 192)
    assert seen.hidden_states[-2].shape == (1, 65, 192)
    assert text(torch.full((1, 24), 599)).last_hidden_state.shape == (1, 24, 192)


def test_preprocessing_gives_the_range_that_the_vision_tower_was_trained_on():
    white = image_processor()(Image.new("RGB", (100, 80), "white"), return_tensors="pt").pixel_values
    assert white.shape == (1, 3, 64, 64)
    assert math.isclose(float(white.mean()), 1.0, abs_tol=1e-6)
