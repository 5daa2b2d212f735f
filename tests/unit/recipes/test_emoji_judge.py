"""The judge's style probe: what it recognises, and that nothing but its data decides it."""

import pytest
import torch
from torch.nn import functional

from imprompt.recipes.emoji.judge import style_probe

NUM_STYLES, WIDTH = 5, 40


@pytest.fixture(scope="module")
def drawings():
    """Features of many sizes, one of which tells nothing, and styles that they do not quite tell apart."""
    generator = torch.Generator().manual_seed(0)
    styles = torch.arange(300) % NUM_STYLES
    mixing = torch.randn(WIDTH, WIDTH, generator=generator)
    features = torch.randn(300, WIDTH, generator=generator) + torch.eye(NUM_STYLES, WIDTH)[styles] * 3
    features = features @ mixing * torch.logspace(-3, 3, WIDTH)
    features[:, 7] = 2.0
    return features[:200], styles[:200], features[200:], styles[200:]


def test_the_probe_recognises_styles_of_new_pictures(drawings):
    features, styles, new, wanted = drawings
    found = style_probe(features, styles, NUM_STYLES)(new).argmax(dim=1)
    assert (found == wanted).float().mean() > 0.75  # chance: 0.2


def test_order_threads_and_seeds_change_nothing_that_the_probe_says(drawings):
    features, styles, new, _ = drawings
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    found = []
    try:
        for number, rows in enumerate((slice(None), order)):
            torch.set_num_threads(number + 1)
            torch.manual_seed(number)
            found.append(style_probe(features[rows], styles[rows], NUM_STYLES)(new))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
    assert torch.equal(found[0].argmax(dim=1), found[1].argmax(dim=1))


def test_the_probe_is_at_its_minimum(drawings):
    features, styles, _, _ = drawings
    probe = style_probe(features, styles, NUM_STYLES)
    linear = probe.linear.requires_grad_(True)
    missed = probe(features) - functional.one_hot(styles, NUM_STYLES)
    (missed.square().sum() + 0.3 * WIDTH * linear.weight.square().sum()).backward()
    assert linear.weight.grad.abs().max() < 1e-8
    assert linear.bias.grad.abs().max() < 1e-8


def test_the_probe_reads_both_formats_and_says_the_same(drawings):
    features, styles, new, _ = drawings
    single, double = (style_probe(values, styles, NUM_STYLES) for values in (features, features.double()))
    assert single(new).dtype == torch.float64
    assert torch.equal(single(new), double(new.double()))


def test_a_style_without_a_picture_is_never_recognised(drawings):
    features, styles, new, _ = drawings
    rows = styles != 2
    found = style_probe(features[rows], styles[rows], NUM_STYLES)(new).argmax(dim=1)
    assert sorted(set(found.tolist())) == [0, 1, 3, 4]
