"""References: pure functions of the draw, and never what they must not be."""

from pathlib import Path

import pytest
import torch

from imprompt.training.data.manifest import Manifest, write_manifest
from imprompt.training.data.references import augmented, choose
from imprompt.training.errors import DataError
from imprompt.training.loop.task import Draw
from tests.data_formats import picture, write_metadata

GROUPS = ["a", "b", "a", "a", "", "b", "c", "a", "a", "a", "a", "a", "a"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(len(GROUPS)):
        picture(number).save(folder / f"{number}.png")
    lines = [{"file_name": f"{number}.png", "text": "x", "group": group} for number, group in enumerate(GROUPS)]
    lines[4]["references"] = ["0.png", "1.png", "2.png"]
    write_metadata(folder, *lines)
    return write_manifest(folder, folder / "manifest.parquet")


def draw(*samples: int, step: int = 0, rows: list[int] | None = None) -> Draw:
    places = torch.arange(len(samples)) if rows is None else torch.tensor(rows)
    return Draw(step, 7, torch.tensor(samples), places, 64)


def test_itself(manifest: Manifest) -> None:
    one = draw(3, 5)
    assert choose(manifest, one.samples, "self", 2, one).tolist() == [[3, 3], [5, 5]]


def test_others_of_the_group(manifest: Manifest) -> None:
    seen = set()
    for step in range(60):
        now = draw(0, 1, 4, 6, step=step)
        others, pair, none, alone = choose(manifest, now.samples, "group", 1, now).flatten().tolist()
        seen.add(others)
        assert (pair, none, alone) == (5, 4, 6)
    assert seen == set(manifest.reference_ids(0, "group")) == {2, 3, 7, 8, 9, 10, 11, 12}


def test_several_differ_while_there_are_enough(manifest: Manifest) -> None:
    for num in (2, 3, 8):
        for step in range(20):
            now = draw(0, step=step)
            row = choose(manifest, now.samples, "group", num, now)[0].tolist()
            assert len(set(row)) == num
            assert 0 not in row
    now = draw(1, 4)
    assert choose(manifest, now.samples, "group", 3, now).tolist() == [[5] * 3, [4] * 3]
    chosen = choose(manifest, now.samples, "explicit", 3, now).tolist()
    assert (chosen[0], sorted(chosen[1])) == ([1] * 3, [0, 1, 2])


def test_a_row_chooses_the_same_whoever_takes_it(manifest: Manifest) -> None:
    whole = draw(0, 2, 3, 7)
    together = choose(manifest, whole.samples, "group", 2, whole)
    part = draw(3, 7, rows=[2, 3])
    assert torch.equal(choose(manifest, part.samples, "group", 2, part), together[2:])
    again = draw(0, 2, 3, 7, step=1)
    assert not torch.equal(choose(manifest, again.samples, "group", 2, again), together)


def test_as_many_samples_as_rows(manifest: Manifest) -> None:
    with pytest.raises(DataError, match="1 samples for 2 rows"):
        choose(manifest, torch.tensor([1]), "group", 1, draw(1, 2))


def test_a_group_is_on_one_side_of_the_split(tmp_path: Path) -> None:
    for number in range(40):
        picture(number).save(tmp_path / f"{number}.png")
    lines = [{"file_name": f"{number}.png", "text": "x", "group": str(number // 4)} for number in range(40)]
    write_metadata(tmp_path, *lines)
    manifest = write_manifest(tmp_path, tmp_path / "manifest.parquet", validation=0.3)
    held_out = manifest.split("validation").tolist()
    assert 0 < len(held_out) < 40
    assert len(held_out) == 4 * len({number // 4 for number in held_out})


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_reference_is_cropped_on_its_own() -> None:
    image = picture(0, (80, 60))
    crops = [augmented(image, generator(seed), smallest=0.5, mirror=False) for seed in range(50)]
    areas = [crop.width * crop.height / (80 * 60) for crop in crops]
    assert 0.45 < min(areas) < 0.7 < max(areas) <= 1
    assert len({crop.tobytes() for crop in crops}) == 50
    assert crops[3] == augmented(image, generator(3), smallest=0.5, mirror=False)


def test_whole_references_stay_as_they_are() -> None:
    image = picture(0, (80, 60))
    assert all(augmented(image, generator(seed), smallest=1.0, mirror=False) == image for seed in range(9))
    mirrored = {augmented(image, generator(seed), smallest=1.0, mirror=True).tobytes() for seed in range(20)}
    assert len(mirrored) == 2


def test_the_smallest_pictures_are_cropped_to_a_pixel() -> None:
    for seed in range(9):
        assert augmented(picture(0, (1, 1)), generator(seed), smallest=0.01, mirror=True).size == (1, 1)
