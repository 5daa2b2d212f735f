"""Recipes are complete configurations: each validates, says what is published, and is found by its name."""

import json

import pytest
from typer.testing import CliRunner

from imprompt.cli.main import app
from imprompt.recipes import KINDS, config_named, read_config, recipes
from imprompt.recipes.emoji import pictures as emoji_pictures
from imprompt.training.config import TrainConfig
from imprompt.training.overrides import ConfigError, override

RECIPES = recipes()
PAPER = [name for name in RECIPES if not name.startswith("emoji") and "1024" not in name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_and_called_by_its_name(name):
    config = RECIPES[name]()
    assert config.recipe == name == config.loop.output.name
    assert config.adapter.kind in KINDS and config.adapter.kind in name
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_hyper_parameters_are_the_defaults(name):
    config = RECIPES[name]()
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-4, 0.01)
    assert (config.dropout.image, config.dropout.text, config.dropout.both) == (0.05, 0.05, 0.05)
    assert config.loop.batch_size == 64 and config.optimizer.schedule == "constant"
    assert (config.objective.noise_offset, config.objective.min_snr_gamma) == (0.0, None)
    assert config.base.dtype == "bfloat16"


def test_the_second_stage_of_sdxl_goes_on_from_the_first():
    first, second = RECIPES["sdxl-plus"](), RECIPES["sdxl-1024-plus"]()
    assert (first.data.resolution, second.data.resolution) == (512, 1024)
    assert (second.optimizer.learning_rate, second.loop.batch_size) == (1e-5, 32)
    assert second.adapter.initial == str(first.loop.output / "ip-adapter-plus_sdxl.safetensors")


def test_only_kinds_that_read_pictures_have_an_image_encoder():
    assert RECIPES["sd15-faceid"]().adapter.image_encoder is None
    assert RECIPES["sd15-faceid"]().adapter.lora_rank == 128
    assert "models/image_encoder" in str(RECIPES["sd15-faceid-plus"]().adapter.image_encoder)
    assert RECIPES["emoji-plus"]().adapter.image_encoder is None  # the base's own


@pytest.mark.parametrize(("name", "like"), [("sd15-plsu", "sd15-plus"), ("emoji-face", "emoji-faceid")])
def test_an_unknown_recipe_is_told_the_nearest(name, like):
    with pytest.raises(ConfigError, match=f"did you mean '{like}'"):
        config_named(name)


def test_a_saved_configuration_is_a_recipe_too(tmp_path):
    config = override(config_named("emoji-global"), ["data.source=pictures", "loop.seed=3"])
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    assert config_named(str(path)) == config
    toml = tmp_path / "config.toml"
    toml.write_text('recipe = "mine"\n[loop]\noutput = "run"\nbatch_size = 2\n')
    assert read_config(toml).loop.batch_size == 2
    toml.write_text('recipe = "mine"\n[loop]\noutput = "run"\nbatchsize = 2\n')
    with pytest.raises(ConfigError, match="did you mean 'loop.batch_size'"):
        read_config(toml)
    with pytest.raises(ConfigError, match="cannot be read|can be read"):
        read_config(tmp_path / "missing.json")


def invoke(*arguments):
    return CliRunner().invoke(app, ["train", *arguments])


def test_the_command_prints_what_a_run_would_be():
    result = invoke("emoji-plus", "data.source=here", "optimizer.learning_rate=1e-5", "--resolved")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["optimizer"]["learning_rate"] == 1e-5 and shown["data"]["source"] == "here"


def test_the_command_lists_recipes_and_shows_examples():
    assert invoke("--recipes").stdout.split() == list(RECIPES)
    assert "torchrun" in invoke("--help").stdout


def test_the_command_refuses_a_run_without_pictures():
    result = invoke("emoji-plus")
    assert isinstance(result.exception, ConfigError) and "data.source=" in str(result.exception)


def test_emoji_captions_name_the_style_in_fewer_than_half():
    import numpy as np

    from imprompt.emoji.styles import STYLES
    from imprompt.recipes.emoji.dataset import EmojiPictures
    from imprompt.recipes.emoji.sources import Subject

    images = np.zeros((1, 64, 64, 3), np.uint8)
    subject = Subject("1F34E", "red apple", ("fruit", "red"), (), "food")
    pictures = EmojiPictures(images, np.zeros(1, np.int64), np.zeros(1, np.int64), (subject,))
    captions = emoji_pictures.captions_of(pictures, 0)
    styled = [caption for caption in captions if STYLES[0].word in caption]
    assert 0.2 < len(styled) / len(captions) < 0.4
    assert "fruit" in captions
