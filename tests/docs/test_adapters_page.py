"""docs/adapters.md is what core/published.py says, and every name in it is one that `load_adapter` finds."""

from imprompt.core.published import PUBLISHED_ADAPTERS
from imprompt.core.registry import find_adapter
from tests.published_page import PAGE, render


def test_the_page_is_the_table():
    assert PAGE.read_text() == render(), "run python -m tests.published_page"


def test_every_name_is_found():
    for adapter in PUBLISHED_ADAPTERS:
        assert find_adapter(adapter.name) is adapter
