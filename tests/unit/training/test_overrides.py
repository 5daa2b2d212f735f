from pathlib import Path

import pytest

from imprompt.training.config import LoopConfig, TrainConfig
from imprompt.training.overrides import ConfigError, field_names, override

CONFIG = TrainConfig(recipe="test", loop=LoopConfig(output=Path("run")))


@pytest.mark.parametrize(
    ("argument", "read", "value"),
    [
        ("optimizer.learning_rate=1e-5", lambda config: config.optimizer.learning_rate, 1e-5),
        ("optimizer.betas=0.9,0.95", lambda config: config.optimizer.betas, (0.9, 0.95)),
        ("optimizer.betas=[0.9, 0.95]", lambda config: config.optimizer.betas, (0.9, 0.95)),
        ("loop.micro_batch_size=none", lambda config: config.loop.micro_batch_size, None),
        ("data.source=pictures", lambda config: config.data.source, Path("pictures")),
        ("data.mirror=true", lambda config: config.data.mirror, True),
        ("validation.prompts=a cat,a dog", lambda config: config.validation.prompts, ("a cat", "a dog")),
        ("data.prompt_template=a=b", lambda config: config.data.prompt_template, "a=b"),
    ],
)
def test_an_argument_changes_its_field_and_nothing_else(argument, read, value):
    changed = override(CONFIG, [argument])
    assert read(changed) == value
    key = argument.partition("=")[0]
    part, name = key.split(".")
    restored = changed.model_copy(
        update={part: getattr(changed, part).model_copy(update={name: getattr(getattr(CONFIG, part), name)})}
    )
    assert restored == CONFIG


def test_the_last_of_two_counts():
    assert override(CONFIG, ["loop.seed=1", "loop.seed=2"]).loop.seed == 2


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optimizer.learing_rate=1", "did you mean 'optimizer.learning_rate'"),
        ("learning_rate=1", "did you mean 'optimizer.learning_rate'"),
        ("loop.num_steps", "no 'key=value'"),
        ("loop.num_steps=many", "loop.num_steps is 'many'"),
        ("dropout.image=0.95", "dropout.*at most 1"),
        ("base.dtype=int8", "base.dtype is 'int8'"),
        ("loop=3", "no setting 'loop'"),
        ("zzzz=1", "settings begin with one of recipe"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(argument, message):
    with pytest.raises(ConfigError, match=message) as caught:
        override(CONFIG, [argument])
    assert "\n" not in str(caught.value)


def test_every_wrong_field_gets_its_own_sentence():
    with pytest.raises(ConfigError) as caught:
        override(CONFIG, ["loop.num_steps=0", "optimizer.learning_rate=-1"])
    assert "loop.num_steps" in str(caught.value) and "optimizer.learning_rate" in str(caught.value)


def test_fields_are_named_by_their_path():
    assert "objective.min_snr_gamma" in list(field_names(CONFIG))
