"""The public list is short, sorted and exact; a change of it is a decision."""

import importlib

import imprompt

PUBLIC = [
    "Adapter",
    "AdapterSpec",
    "ImagePrompt",
    "ImpromptError",
    "Request",
    "Result",
    "__version__",
    "attach",
    "generate",
    "load_adapter",
    "load_pipeline",
    "save_adapter",
]


def test_the_list_is_exact_and_sorted() -> None:
    assert imprompt.__all__ == PUBLIC == sorted(PUBLIC)


def test_every_name_is_there_and_documented() -> None:
    for name in PUBLIC:
        assert name in dir(imprompt)
        if name != "__version__":
            value = getattr(imprompt, name)
            assert value.__doc__, name
            assert value.__name__ == name
            assert getattr(importlib.import_module(value.__module__), name) is value


def test_a_name_that_is_not_there() -> None:
    assert not hasattr(imprompt, "Pipeline")
