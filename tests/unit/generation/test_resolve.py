"""Prompts become numbers: tokens, null tokens, scales, regions; row by row."""

import pytest
import torch

from imprompt.adapter.clock import progress_bins
from imprompt.adapter.conditioning import NUM_PROGRESS
from imprompt.core.errors import EncoderMismatch, ImageError, PromptError
from imprompt.core.images import image_hash
from imprompt.generation.resolve import pad_tokens, resolve
from imprompt.generation.scales import column_scales
from imprompt.prompts.image_prompt import ImagePrompt
from tests import tiny


class Source:
    """Features that depend on the picture alone, and a count of what was asked."""

    def __init__(self, adapter):
        self.adapter = adapter
        self.num_null = 0

    def features(self, images, fit):
        return torch.cat([tiny.features(self.adapter, seed=int(image_hash(image)[:6], 16)) for image in images])

    def null_features(self):
        self.num_null += 1
        return tiny.features(self.adapter, seed=-100)


def scales(column, *, num_sites):
    return column_scales(column, [str(number) for number in range(num_sites)], [1280] * num_sites)["scale"]


@pytest.fixture(scope="module")
def host():
    return tiny.unet()


@pytest.fixture(params=tiny.PROJECTORS)
def adapter(request, host):
    return tiny.adapter(host, request.param)


def prompt(seed=0, **fields):
    return ImagePrompt(tiny.picture(seed=seed), **fields)


def resolve_one(adapter, rows, **options):
    return resolve(rows, [adapter], [Source(adapter)], **options)


def test_a_prompt_becomes_tokens_null_tokens_and_a_scale(adapter):
    source = Source(adapter)
    picture = tiny.picture()
    (branch,) = resolve([[ImagePrompt(picture, weight=0.7)]], [adapter], [source]).branches
    tokens = adapter.project(source.features([picture], "crop"))
    assert torch.equal(branch.tokens, tokens)
    assert branch.scale.shape == (1, 16, 1)
    assert branch.scale.unique().tolist() == pytest.approx([0.7])
    assert branch.region is None and branch.token_mask is None
    if adapter.spec.null_image == "zero_features":
        null = adapter.project(torch.zeros_like(tiny.features(adapter)))
        assert source.num_null == 0
    else:
        null = adapter.project(source.null_features())
    assert torch.equal(branch.null_tokens, null)


def test_rows_equal_their_own_runs(adapter):
    rows = [[prompt(1), prompt(2, weight=0.5)], [], [prompt(3, weight=0.2)]]
    together = resolve_one(adapter, rows)
    assert together.rows == 3 and len(together.branches) == 2
    for number, row in enumerate(rows):
        alone = resolve_one(adapter, [row])
        for position, branch in enumerate(alone.branches):
            assert torch.equal(together.branches[position].tokens[number], branch.tokens[0])
            assert torch.equal(together.branches[position].null_tokens[number], branch.null_tokens[0])
            assert torch.equal(together.branches[position].scale[..., number], branch.scale[..., 0])
        for branch in together.branches[len(row) :]:
            assert branch.scale[..., number].abs().max() == 0
            assert branch.tokens[number].abs().max() == 0


def test_no_image_in_any_row_makes_no_branch(adapter):
    conditioning = resolve_one(adapter, [[], []])
    assert conditioning.branches == () and conditioning.rows == 2


def test_each_adapter_has_branches_of_its_own(host):
    pair = [tiny.adapter(host, "linear"), tiny.adapter(host, "resampler")]
    rows = [[prompt(1, adapter=1), prompt(2, adapter=0)], [prompt(3, adapter=0)]]
    conditioning = resolve(rows, pair, [Source(adapter) for adapter in pair])
    assert [(branch.adapter, branch.tokens.shape[1]) for branch in conditioning.branches] == [(1, 6), (0, 4)]
    assert conditioning.branches[0].scale[0, 0].tolist() == [1, 0]
    assert conditioning.branches[1].scale[0, 0].tolist() == [1, 1]


def test_several_images_of_one_prompt_share_a_softmax(adapter):
    both = ImagePrompt([tiny.picture(seed=1), tiny.picture(seed=2)])
    (branch,) = resolve_one(adapter, [[both]]).branches
    single = [resolve_one(adapter, [[prompt(seed)]]).branches[0] for seed in (1, 2)]
    assert torch.allclose(branch.tokens[0], torch.cat([part.tokens[0] for part in single]), atol=1e-6)
    assert torch.allclose(branch.null_tokens[0], torch.cat([part.null_tokens[0] for part in single]), atol=1e-6)


def test_different_token_counts_are_padded_and_masked(adapter):
    both = ImagePrompt([tiny.picture(seed=1), tiny.picture(seed=2)])
    (branch,) = resolve_one(adapter, [[both], [prompt(3)], []]).branches
    length = adapter.spec.num_tokens
    assert branch.tokens.shape[1] == 2 * length
    assert branch.token_mask.sum(dim=1).tolist() == [2 * length, length, 0]
    assert branch.tokens[1, length:].abs().max() == 0


def test_rows_of_one_length_need_no_mask():
    rows = [torch.ones(3, 2), None, torch.ones(3, 2)]
    tokens, mask = pad_tokens(rows)
    assert mask is None and tokens.sum(dim=(1, 2)).tolist() == [6, 0, 6]


def test_a_whole_run_needs_one_step_of_scale():
    assert scales([prompt(weight=0.5), None], num_sites=3).shape == (1, 3, 2)
    assert scales([prompt(end=0.5), None], num_sites=3).shape == (NUM_PROGRESS, 3, 2)


@pytest.mark.parametrize("num_steps", [3, 4, 7, 16, 20, 30, 50, 99])
@pytest.mark.parametrize(("start", "end"), [(1 / 3, 1.0), (0.0, 1 / 3), (0.25, 0.75), (0.0625, 2 / 3), (0.5, 0.51)])
def test_a_window_opens_and_closes_at_the_step_that_it_names(num_steps, start, end):
    timesteps = torch.arange(num_steps).flip(0) * 2
    table = scales([prompt(start=start, end=end)], num_sites=1)
    acts = [bool(table[progress_bins(timesteps, timestep), 0, 0]) for timestep in timesteps]
    fractions = [step / num_steps for step in range(num_steps)]
    assert acts == [start <= at and (at < end or end == 1) for at in fractions]


def test_masks_become_regions_of_one_size(adapter):
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    rows = [[prompt(1, mask=left)], [prompt(2)], [], [prompt(3, mask=torch.zeros(4, 16))]]
    (branch,) = resolve_one(adapter, rows).branches
    assert branch.region.shape == (4, 8, 16)
    assert branch.region[0].mean() == 0.5 and branch.region[0, :, :8].min() == 1
    assert branch.region[1].min() == 1 and branch.region[3].max() == 0


def test_a_mask_of_another_shape_than_the_picture_is_refused(adapter):
    rows = [[prompt(mask=torch.ones(64, 48))]]
    assert resolve_one(adapter, rows).branches[0].region.shape == (1, 64, 48)
    assert resolve_one(adapter, rows, size=(512, 384)).branches
    with pytest.raises(ImageError, match=r"48 x 64 pixels, the picture 512 x 512"):
        resolve_one(adapter, rows, size=(512, 512))
    with pytest.raises(ImageError):
        resolve_one(adapter, [[prompt(mask=torch.ones(2, 3, 4, 5))]])


def test_features_may_be_given(adapter):
    features = tiny.features(adapter, 2)
    (one,) = resolve_one(adapter, [[ImagePrompt(features=features[0])]]).branches
    (two,) = resolve_one(adapter, [[ImagePrompt(features=features)]]).branches
    assert torch.allclose(one.tokens[0], adapter.project(features[:1])[0], atol=1e-6)
    assert two.tokens.shape[1] == 2 * one.tokens.shape[1]


@pytest.mark.usefixtures("unchecked")
def test_features_of_another_encoder_are_refused(adapter):
    width = adapter.spec.features.width
    with pytest.raises(EncoderMismatch, match=rf"width {width} .* got .*width {width + 1}"):
        resolve_one(adapter, [[ImagePrompt(features=tiny.rand(*tiny.features(adapter).shape[:-1], width + 1))]])


def test_features_of_another_length_than_the_null_images_are_refused(host):
    adapter = tiny.adapter(host, "mlp")
    with pytest.raises(EncoderMismatch, match="make 9 tokens, its image encoder's 5"):
        resolve_one(adapter, [[ImagePrompt(features=tiny.rand(9, tiny.VISION_WIDTH))]])


def test_what_makes_no_sense_is_said(adapter):
    with pytest.raises(PromptError, match="no rows"):
        resolve_one(adapter, [])
    with pytest.raises(PromptError, match="names adapter 1, but 1 attached"):
        resolve_one(adapter, [[prompt(adapter=1)]])


def test_compat_leaves_out_the_middle_block(host):
    adapter = tiny.adapter(host)
    labels = [
        [f"{root}.{number}" for number, root in enumerate(["down_blocks"] * 6 + ["up_blocks"] * 9 + ["mid_block"])]
    ]
    rows = [[prompt(1, compat="comfy-ipadapter-plus", weight=0.5)], [prompt(2)]]
    (branch,) = resolve(rows, [adapter], [Source(adapter)], blocks=labels).branches
    assert branch.scale[0, :, 0].tolist() == [0.5] * 15 + [0.0] and branch.scale[0, :, 1].tolist() == [1.0] * 16
    with pytest.raises(PromptError, match="compat='comfy-ipadapter-plus' leaves out a UNet's middle block"):
        resolve_one(adapter, rows)  # sites that are known by their numbers
