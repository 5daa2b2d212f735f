import pytest
import torch

from imprompt.core.errors import ImpromptError
from imprompt.training.dropout import ConditionDropout


def test_image_text_and_both_are_dropped_at_their_rates():
    no_image, no_text = ConditionDropout().draw(100_000, torch.Generator().manual_seed(0))
    rates = [(no_image & ~no_text), (~no_image & no_text), (no_image & no_text)]
    for rate in rates:
        assert float(rate.float().mean()) == pytest.approx(0.05, abs=0.004)


@pytest.mark.parametrize("probabilities", [(0.5, 0.5, 0.5), (-0.1, 0.0, 0.0)])
def test_impossible_probabilities_are_refused(probabilities):
    with pytest.raises(ImpromptError, match="at most 1"):
        ConditionDropout(*probabilities)
