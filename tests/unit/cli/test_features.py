"""`imprompt features`: computes what a run with the same arguments reads, and goes on where it was stopped."""

import pytest
import torch

from imprompt.cli.split import parse_split
from imprompt.core.errors import PromptError
from imprompt.recipes import config_named
from imprompt.training.adapters.stores import jobs_of, manifest_of, open_stores
from imprompt.training.loop.task import Draw
from imprompt.training.overrides import override
from imprompt.training.run import Run
from tests import tiny


@pytest.fixture
def settings(embedded, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        tiny.picture(seed=number).save(tmp_path / "pictures" / f"{number}.png")
        (tmp_path / "pictures" / f"{number}.txt").write_text(f"picture {number}")
    return ["data.source=pictures", "data.resolution=32", "data.bucket_step=8", "loop.output=run", "loop.device=cpu"]


def test_it_computes_what_a_run_opens_and_nothing_twice(run, settings):
    status, out, _ = run("features", "emoji-global", *settings)
    assert status == 0
    assert [line.split(";")[0] for line in out.splitlines()] == [
        "latents: 1 of 1 shards computed",
        "image_embeds: 1 of 1 shards computed",
    ]
    config = override(config_named("emoji-global"), settings)
    stores = open_stores(config, manifest_of(config), jobs_of(config))
    assert {name: len(store) for name, store in stores.items()} == {"latents": 5, "features": 5}
    status, out, err = run("features", "emoji-global", *settings, "--split", "2/2")
    assert "0 of 1 shards computed" in out and "part 2 of 2" in err


def test_a_run_with_other_settings_does_not_open_it(run, settings):
    run("features", "emoji-global", *settings)
    config = override(config_named("emoji-global"), [*settings, "data.num_views=7"])
    with pytest.raises(Exception, match="compute them with: imprompt features emoji-global") as error:
        open_stores(config, manifest_of(config), jobs_of(config))
    assert type(error.value).__name__ == "StaleFeatures"


def test_a_launcher_says_which_part(run, settings, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, out, err = run("features", "emoji-global", *settings)
    assert status == 0 and "part 2 of 2" in err
    assert "latents: 0 of 1 shards computed, 1 still missing" in out


def test_online_features_are_not_computed(run, settings):
    status, out, err = run("features", "emoji-plus", *settings, "features.latents=online", "features.references=online")
    assert (status, out) == (0, "") and "nothing to compute" in err


def test_pictures_that_cannot_be_read_are_told(run, settings, tmp_path):
    run("features", "emoji-global", *settings, "features.latents=online", "features.references=online")
    manifest = tmp_path / "run" / "manifest.parquet"
    (tmp_path / "pictures" / "3.png").write_bytes(b"no picture")
    status, out, err = run("features", "emoji-global", f"data.source={manifest}", *settings[1:])
    assert status == 1 and "1 of 5 samples cannot be used" in " ".join(err.split())
    status, out, _ = run("features", "emoji-global", f"data.source={manifest}", *settings[1:], "data.bad_samples=0.5")
    assert status == 0 and "1 samples without" in out


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "a/b", "1/2/3", "-1/2"])
def test_parts_that_are_none_are_refused(text):
    with pytest.raises(PromptError, match="as 2/8"):
        parse_split(text)


def test_parts_are_counted_from_one():
    assert parse_split("1/8") == (0, 8) and parse_split("8/8") == (7, 8)


def test_texts_computed_once_train_as_those_made_at_every_step(settings):
    def loss(text):
        changes = [f"features.text={text}", "dropout.text=0.5", "validation.every=0", "validation.sheet_every=0"]
        task = Run(override(config_named("emoji-global"), [*settings, *changes])).task
        rows = torch.arange(4)
        batch = task.batch(Draw(step=1, seed=0, samples=rows % task.num_examples, rows=rows, batch_size=4))
        assert 0 < sum(batch.no_text) < 4 and (batch.texts is not None) == (text == "cached")
        return task.loss(batch)[0]

    torch.testing.assert_close(loss("cached"), loss("online"), rtol=1e-3, atol=1e-4)
