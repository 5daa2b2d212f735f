"""`imprompt evaluate --engine ray` draws the same pictures, each once, with what a process has loaded kept."""

import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from imprompt.emoji.bundle import ADAPTER_FILES
from imprompt.evaluation import cluster, drawing
from tests import fake_ray, tiny


@pytest.fixture
def evaluate(tiny_bundle, run, tmp_path, monkeypatch):
    """Evaluate the tiny model, named as a base and an adapter of one's own; further options follow."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "references").mkdir()
    for number in range(2):
        tiny.picture(seed=number).save(tmp_path / "references" / f"subject-{number}.png")
    adapter = tiny_bundle / "adapters" / ADAPTER_FILES["plus"]
    said = ("--base", tiny_bundle, "--adapter", adapter, "--metrics", "near_copies")
    quick = ("--steps", 1, "--num-seeds", 2, "--batch-size", 1)
    return lambda *options: run("evaluate", "folder", "references", *said, *quick, *options)


@pytest.fixture
def ray(monkeypatch):
    ray = fake_ray.Cluster({"CPU": 2.0})
    monkeypatch.setitem(sys.modules, "ray", ray)
    cluster._loaded.cache_clear()
    yield ray
    cluster._loaded.cache_clear()


def same_pictures(first: Path, second: Path) -> bool:
    names = [{path.name for path in folder.glob("pictures/*.png")} for folder in (first, second)]
    return names[0] == names[1] and all(
        ImageChops.difference(*(Image.open(folder / "pictures" / name) for folder in (first, second))).getbbox() is None
        for name in names[0]
    )


def test_a_cluster_draws_the_same_and_loads_once(evaluate, ray, monkeypatch):
    code, here, err = evaluate("-o", "here")
    assert code == 0, err
    assert ray.num_started == 0
    loaded, load = [], cluster.models_of
    monkeypatch.setattr(cluster, "models_of", lambda *models: loaded.append(models) or load(*models))
    code, there, err = evaluate("-o", "there", "--engine", "ray")
    assert code == 0, err
    assert here.splitlines()[:-1] == there.splitlines()[:-1]
    assert same_pictures(Path("here"), Path("there"))
    assert (Path("here") / "run.json").read_text() == (Path("there") / "run.json").read_text()
    assert sorted(ray.numbers) == list(range(8)) and len(loaded) == 1  # four tasks for each of two processors


def test_a_cluster_draws_nothing_twice_and_no_more_than_its_share(evaluate, ray, monkeypatch):
    drawn, save = [], drawing.save_png
    monkeypatch.setattr(
        drawing, "save_png", lambda image, path, said: drawn.append(path.name) or save(image, path, said)
    )
    code, out, err = evaluate("--engine", "ray", "--split", "2/2")
    assert code == 0 and out.startswith("4 pictures of other shares are not drawn yet"), err
    assert len(drawn) == 4
    code, out, err = evaluate("--engine", "ray")
    assert code == 0 and out.endswith("evaluation/report.html\n"), err
    assert len(drawn) == len(set(drawn)) == 8


def test_what_stops_a_task_is_told_in_a_sentence(evaluate, ray):
    assert evaluate("--engine", "ray")[0] == 0
    tiny.picture(seed=9).save("references/subject-0.png")
    code, _, err = evaluate("--engine", "ray")
    assert code == 1 and "pictures of other references" in err and len(ray.cancelled) == 7


@pytest.mark.ray
def test_ray_itself_draws_the_same(evaluate):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert evaluate("-o", "here")[0] == 0
        code, out, err = evaluate("-o", "there", "--engine", "ray")
        assert code == 0 and out.endswith("there/report.html\n"), err
        assert same_pictures(Path("here"), Path("there"))
        code, _, err = evaluate("-o", "there", "--engine", "ray", "--guidance-scale", 2)
        assert code == 1 and "pictures of other guidance_scale (" in err
    finally:
        ray.shutdown()
