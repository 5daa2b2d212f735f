"""What holds for every test: one thread a worker, no network, and types checked at run time."""

import os
from collections.abc import Iterator

import pytest

# Before torch is imported: two workers on two cores, each with a pool of its own, would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turn off the type checks that only tests make, to see what a caller of the wrong type sees."""
    import jaxtyping

    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
