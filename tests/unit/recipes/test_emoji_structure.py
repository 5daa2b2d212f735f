"""What steers the embedded model, what recolours its data, and networks that fit its denoiser."""

import shutil

import pytest
import torch
from PIL import Image

from imprompt import emoji
from imprompt.core.errors import BundleError
from imprompt.emoji.conditions import as_control, colour_cells, edge_maps
from imprompt.recipes.emoji import bundle, custom, structure, unet
from imprompt.recipes.emoji.card import model_card, read_quality
from imprompt.recipes.emoji.looks import BLUEPRINT, SEPIA


@pytest.fixture
def half_red():
    """White, and red in the right half."""
    images = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    images[:, 1:, :, 32:] = 0
    return images


@pytest.fixture(scope="module")
def host():
    torch.manual_seed(0)
    return unet.build().eval()


def test_edges_are_where_colours_change_and_nowhere_else(half_red):
    (edges,) = edge_maps(half_red)[0]
    assert (edges[:, 31:33] == 255).all()
    assert edges.sum() == 2 * 64 * 255
    assert torch.equal(edge_maps(half_red.transpose(2, 3))[0, 0], edges.T)


def test_cells_hold_mean_colours(half_red):
    half_red[:, :, :8, 40:48] = 0  # a quarter of one cell
    cells = colour_cells(half_red)[0]
    assert cells[:, 0, 0].tolist() == [255, 255, 255]
    assert cells[:, 3, 3].tolist() == [255, 0, 0]
    assert cells[:, 0, 2].tolist() == [191, 0, 0]


def test_pictures_of_any_size_become_conditions(half_red):
    picture = Image.fromarray(half_red[0].permute(1, 2, 0).numpy()).resize((200, 200), Image.Resampling.NEAREST)
    wide = Image.new("RGB", (300, 200), "white")
    wide.paste(picture, (50, 0))
    for draw in (emoji.edges, emoji.colour_grid):
        assert draw(picture).size == (64, 64)
        assert list(draw(wide).tobytes()) == list(draw(picture).tobytes())
    assert emoji.colour_grid(picture).getpixel((63, 5)) == (255, 0, 0)


@pytest.mark.parametrize("look", [SEPIA, BLUEPRINT], ids=lambda look: look.name)
def test_a_look_turns_black_to_ink_and_white_to_paper(look):
    ends = torch.tensor([[0, 0, 0], [255, 255, 255]], dtype=torch.uint8).T.reshape(1, 3, 1, 2)
    assert look(ends)[0, :, 0].T.tolist() == [list(look.ink), list(look.paper)]


def test_an_untrained_controlnet_changes_nothing_and_sees_its_condition(host, half_red):
    model = structure.build("controlnet", host)
    noisy, states = torch.randn(2, 8, 8, 8), torch.randn(2, 5, 192)
    control = as_control(edge_maps(half_red)).repeat(2, 1, 1, 1)
    steps = torch.tensor([10, 900])
    with torch.no_grad():
        helped = host(noisy, steps, states, **structure.residuals(model, noisy, steps, states, control)).sample
        torch.testing.assert_close(helped, host(noisy, steps, states).sample)
        seen = model.controlnet_cond_embedding(control) - model.controlnet_cond_embedding(torch.zeros_like(control))
    assert seen.std() > 0.1  # diffusers' own beginning: 0


def test_a_t2i_adapters_maps_fit_the_denoiser(host, half_red):
    model = structure.build("t2i_adapter", host)
    noisy, states, steps = torch.randn(1, 8, 8, 8), torch.randn(1, 5, 192), torch.tensor([500])
    with torch.no_grad():
        maps = structure.residuals(model, noisy, steps, states, as_control(colour_cells(half_red)))
        changed = host(noisy, steps, states, **maps).sample - host(noisy, steps, states).sample
    assert changed.abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "least", "most"), [("lora", 0.01, 0.1), ("finetune", 1.0, 1.0)])
def test_how_much_of_the_denoiser_is_trained(kind, least, most):
    model = custom.prepare(unet.build(), kind)
    sizes = [(value.numel(), value.requires_grad) for value in model.parameters()]
    share = sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes)
    assert least <= share <= most


def test_parts_are_packaged_beside_a_base_that_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPROMPT_CACHE", str(tmp_path))
    target, models = tmp_path / "bundle", bundle.models_folder()
    shutil.copytree(emoji.bundle_folder(), target)
    shutil.rmtree(target / "controlnet", ignore_errors=True)
    before = (target / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    quality = read_quality((target / "README.md").read_text())
    structure.build("t2i_adapter", unet.build()).save_pretrained(models / "t2i_adapter")
    bundle.run_parts(bundle.BundleConfig(target))
    weights = bundle.load_file(target / "t2i_adapter" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert (target / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    assert read_quality((target / "README.md").read_text()) == quality
    assert not (target / "controlnet").exists()


def test_quality_is_read_from_a_card_as_it_was_written():
    table = "| question | share |\n|---|---|\n| text | 40 % |"
    card = model_card({}, table)
    assert read_quality(card) == table
    assert model_card({}, read_quality(card)) == card  # what is said of the table is neither lost nor said twice
    assert f"{table}\n\nThe text alone" in card
    assert read_quality(model_card({}, "")) == ""


def test_the_card_says_how_often_conditions_are_dropped_and_which_noise_is_shown():
    card = model_card({}, "")
    assert "dropped (the image 5 %, the text 30 %, both 5 %; the paper" in card
    assert "strong noise (by 3; the paper" in card


def test_a_part_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(BundleError, match="'depth'; expected one of controlnet, t2i_adapter, lora"):
        emoji.part_folder("depth")
    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setattr(emoji.bundle, "bundle_folder", lambda: tmp_path)
    with pytest.raises(BundleError, match="'lora' is not at"):
        emoji.part_folder("lora")
