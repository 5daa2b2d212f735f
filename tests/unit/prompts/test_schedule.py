"""When a prompt acts."""

import pytest

from imprompt.prompts.schedule import window


@pytest.mark.parametrize(
    ("start", "end", "acting"),
    [(0.0, 1.0, [0, 1, 2, 3, 4]), (0.2, 0.6, [1, 2]), (0.5, 1.0, [3, 4]), (0.0, 0.2, [0]), (0.9, 0.95, [])],
)
def test_steps_in_a_window(start: float, end: float, acting: list[int]) -> None:
    assert [step for step in range(5) if window(start, end, step / 5)] == acting


def test_the_last_moment_belongs_to_an_end_of_one() -> None:
    assert window(0.0, 1.0, 1.0)
    assert not window(0.0, 0.99, 1.0)


def test_two_windows_hand_over_without_overlap_or_gap() -> None:
    for progress in (index / 1000 for index in range(1001)):
        assert window(0.0, 0.3, progress) + window(0.3, 1.0, progress) == 1
