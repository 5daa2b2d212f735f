"""Several requests at once: what can share a batch does, and results come back in order."""

import numpy as np
import pytest

from imprompt.core.errors import PromptError
from imprompt.generation.attach import attach
from imprompt.generation.batches import share_batches
from imprompt.generation.generate import generate
from imprompt.generation.request import Request
from imprompt.prompts.image_prompt import ImagePrompt
from imprompt.prompts.masks import Box
from imprompt.prompts.noise import Noise
from tests import tiny


def request(**fields):
    return Request(**{"prompt": "a cat", "steps": 2, "seed": 5, "height": 32, "width": 32, **fields})


def difference(one, other):
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()


def test_results_are_those_of_each_request_alone(pipe, adapters, cat, street):
    requests = [
        request(image_prompts=[ImagePrompt(cat, blocks="style", end=0.5)], num_images=3),
        request(prompt="a dog", steps=3, negative_prompt="blue"),
        request(prompt="a dog", image_prompts=[ImagePrompt(street, mask=Box(0.0, 0.0, 0.5, 1.0), negative=Noise())]),
        request(image_prompts=[ImagePrompt([cat, street], combine="average", curve="fall", unit="noise")], seed=9),
    ]
    seen = []
    with attach(pipe, adapters["resampler"]) as images:
        results = generate(pipe, images, requests, batch_size=3, progress=lambda *step: seen.append(step))
        for result, alone in zip(results, requests, strict=True):
            wanted = generate(pipe, images, alone)
            assert result.seeds == wanted.seeds and len(result.images) == alone.num_images
            for one, other in zip(result.images, wanted.images, strict=True):
                assert difference(one, other) <= 1
            assert {**result.provenance, "options": {}} == {**wanted.provenance, "options": {}}
    assert seen


def test_what_can_share_a_batch_does():
    requests = [request(seed=1, num_images=3), request(steps=3), request(seed=7), request(negative_prompt="blue")]
    batches = share_batches(requests, 4)
    told = [[(row.number, row.request.seed) for row in batch] for batch in batches]
    assert told == [[(0, 1), (0, 2), (0, 3), (2, 7)], [(1, 5)], [(3, 5)]]
    assert [len(batch) for batch in share_batches(requests, 2)] == [2, 2, 1, 1]


def test_nothing_to_do_is_said(pipe):
    with pytest.raises(PromptError, match="no requests"):
        generate(pipe, None, [])
    with pytest.raises(PromptError, match="batch_size is 0"):
        generate(pipe, None, [request()], batch_size=0)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_requests_without_images(family):
    pipe = tiny.pipeline(family=family)
    results = generate(pipe, None, [request(seed=1), request(seed=2, prompt="a dog")])
    assert [result.seeds for result in results] == [(1,), (2,)]
