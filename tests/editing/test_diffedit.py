"""DiffEdit on exact denoisers: a caption's images are one picture with Gaussian noise around it."""

import math

import pytest
import torch
from exact import SCHEDULE

from minidiff.denoiser import Prediction
from minidiff.editing.diffedit import cut, diffedit, difference, edit_mask
from minidiff.samplers import ddim_step, invert, sample

STD, SIZE, HALF = 0.3, 16, SCHEDULE.level(500)
PATH = SCHEDULE.path(50)
OBJECT = torch.zeros(1, 1, SIZE, SIZE)
OBJECT[..., 4:10, 6:12] = 1
BACKGROUND = torch.linspace(-0.5, 0.5, SIZE).expand(1, 3, SIZE, SIZE)
RED, GREEN = (torch.tensor(c).reshape(1, 3, 1, 1) for c in ([1.0, -1, -1], [-1.0, 1, -1]))


def picture(colour):
    """What a caption shows: an object of a colour on the background."""
    return torch.where(OBJECT.bool(), colour, BACKGROUND)


def around(mean, std=STD):
    """The exact denoiser of N(mean, std^2), each pixel by itself."""

    def denoise(x, level):
        offset = (x - level.alpha * mean) / (level.alpha**2 * std**2 + level.sigma**2)
        return Prediction(mean + level.alpha * std**2 * offset, level.sigma * offset)

    return denoise


def either(mean, std=STD):
    """The exact denoiser of an even mixture, each number by itself: about mean or about -mean."""

    def denoise(x, level):
        variance = level.alpha**2 * std**2 + level.sigma**2
        lean = torch.tanh(level.alpha * mean * x / variance)  # P(+) - P(-)
        offset = (x - level.alpha * mean * lean) / variance
        return Prediction(mean * lean + level.alpha * std**2 * offset, level.sigma * offset)

    return denoise


QUERY, REFERENCE = around(picture(GREEN)), around(picture(RED))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=4):
    return picture(RED) + STD * torch.randn(n, 3, SIZE, SIZE, generator=seeded(1))


def overlap(mask, n):
    """Intersection over union of what a mask edits and the object."""
    edited, there = (mask == 0).expand(n, -1, -1, -1), OBJECT.bool()
    return ((edited & there).sum((1, 2, 3)) / (edited | there).sum((1, 2, 3))).tolist()


# --- the mask -------------------------------------------------------------------------------------


def test_the_mask_is_the_object_that_the_captions_disagree_about():
    mask = edit_mask(QUERY, REFERENCE, images(), HALF, margin=0, generator=seeded())
    assert mask.shape == (4, 1, SIZE, SIZE)
    assert overlap(mask, 4) == [1.0] * 4
    assert torch.equal(mask, (1 - OBJECT).expand(4, -1, -1, -1))  # 1 = keep
    # Control: masks of the same area at random places.
    at_random = 1 - OBJECT.flatten()[torch.randperm(SIZE**2)].reshape_as(OBJECT)
    assert overlap(at_random, 1)[0] < 0.3


def test_a_difference_is_cut_into_the_same_mask():
    gap = difference(QUERY, REFERENCE, images(), HALF, generator=seeded())
    for how in ({}, {"threshold": 0.2, "margin": 2}, {"pool": 1, "margin": 0}):
        whole = edit_mask(QUERY, REFERENCE, images(), HALF, generator=seeded(), **how)
        assert torch.equal(cut(gap, **how), whole)
    assert not torch.equal(cut(gap, margin=0), cut(gap, margin=2))  # Control


def test_a_margin_reaches_beyond_the_object_on_every_side():
    mask = edit_mask(QUERY, REFERENCE, images(1), HALF, generator=seeded())
    wide = torch.zeros(SIZE, SIZE)
    wide[3:11, 5:13] = 1  # one pixel around OBJECT
    assert torch.equal(mask[0, 0], 1 - wide)


def test_captions_that_are_the_same_edit_nothing():
    assert edit_mask(QUERY, QUERY, images(), HALF, generator=seeded()).eq(1).all()


def test_a_larger_threshold_edits_less():
    ramp = BACKGROUND + torch.linspace(0, 1, SIZE)[:, None]  # more to change in each row down
    masks = [
        edit_mask(around(ramp), around(BACKGROUND), images(), HALF, threshold=t, pool=1, margin=0)
        for t in (0.1, 0.3, 0.5, 0.6)
    ]
    rows = [(mask[0, 0, :, 0] == 0).sum().item() for mask in masks]
    # 3 t times the mean, .5, of the ramp: rows k/15 above .15, .45, .75 and .9
    assert rows == [13, 9, 4, 2]


def shared_noise(query, reference, image, level, *, n, generator):
    """The mutant of a published notebook: one noise for all n copies."""
    state = generator.get_state()
    parts = []
    for _ in range(n):
        generator.set_state(state)
        parts.append(difference(query, reference, image, level, n=1, generator=generator))
    return sum(parts) / n


def test_every_copy_has_a_noise_of_its_own():
    """The differences are noisy where a caption leaves something open; 16 noises average it out."""
    query, image = either(torch.full((1, 3, 64, 64), 0.8)), torch.zeros(1, 3, 64, 64)

    def spread(method, n):
        return method(query, around(image), image, HALF, n=n, generator=seeded()).var().item()

    once = spread(difference, 1)
    assert spread(difference, 16) == pytest.approx(once / 16, rel=0.3)
    assert spread(shared_noise, 16) == pytest.approx(once, rel=1e-3)


def test_the_differences_are_those_of_the_noise_predictions():
    gap = difference(QUERY, REFERENCE, images(), HALF, n=2)
    variance = HALF.alpha**2 * STD**2 + HALF.sigma**2
    means = (picture(RED) - picture(GREEN)).abs().mean(1, keepdim=True)
    expected = HALF.sigma * HALF.alpha / variance * means
    torch.testing.assert_close(gap, expected.expand_as(gap), rtol=1e-4, atol=1e-5)


def test_image_i_has_the_same_mask_alone_and_in_a_batch():
    query, x = either(torch.tensor(0.8)), images()

    def masks(x, seed=0):
        chance = {"n": 1, "threshold": 0.3, "margin": 0, "generator": seeded(seed)}
        return edit_mask(query, REFERENCE, x, HALF, **chance)

    assert torch.equal(masks(x)[:1], masks(x[:1]))
    assert not torch.equal(masks(x), masks(x, seed=1))


# --- the edit -------------------------------------------------------------------------------------


def test_a_mask_that_keeps_all_returns_the_image_and_one_that_keeps_none_decodes_plainly():
    x = images()
    keep, change = torch.ones(1, 1, SIZE, SIZE), torch.zeros(1, 1, SIZE, SIZE)
    assert torch.equal(diffedit(QUERY, REFERENCE, x, keep, PATH), x)
    part = PATH[35:]  # the last .3 of 50 steps
    plain = sample(ddim_step, QUERY, invert(REFERENCE, x, part), part)
    assert torch.equal(diffedit(QUERY, REFERENCE, x, change, PATH, strength=0.3), plain)
    # Mutant: decoding from another level than was encoded.
    wrong = sample(ddim_step, QUERY, invert(REFERENCE, x, part), PATH[36:])
    assert (wrong - plain).abs().max() > 0.01


def test_the_object_changes_as_asked_and_what_is_kept_is_equal_bit_for_bit():
    x = images()
    mask = edit_mask(QUERY, REFERENCE, x, HALF, margin=0, generator=seeded())
    edited = diffedit(QUERY, REFERENCE, x, mask, PATH)
    kept = mask.bool().expand_as(x)
    assert torch.equal(edited[kept], x[kept])
    inside = ~kept
    asked, before = ((edited - p)[inside].abs().mean() for p in (picture(GREEN), picture(RED)))
    assert asked < 0.4 < 1 < before


def test_encoding_holds_what_the_captions_do_not_say():
    """Exact inversion takes image = red + rest to green + rest; fresh noise forgets the rest."""
    x, path = images(64), SCHEDULE.path(200)
    change = torch.zeros(1, 1, SIZE, SIZE)
    rest = (x - picture(RED)) / STD

    def kept(edited):
        """Correlation of what remains beside the new picture with what was there."""
        return ((edited - picture(GREEN)) / STD * rest).mean().item()

    assert kept(diffedit(QUERY, REFERENCE, x, change, path, strength=1)) > 0.9
    # Control: the same walk down from noise.
    assert abs(kept(sample(ddim_step, QUERY, torch.randn_like(x), path))) < 0.05


def test_the_edit_grows_with_strength():
    x, mask = images(), 1 - OBJECT
    edits = [diffedit(QUERY, REFERENCE, x, mask, PATH, strength=s) for s in (0.1, 0.3, 0.5, 0.7, 1)]
    moved = [(edited - x).abs().mean().item() for edited in edits]
    assert moved == sorted(moved) and moved[0] < 0.5 * moved[-1]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0, 1, -1, math.nan])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match="expected 0 < threshold < 1"):
        edit_mask(QUERY, REFERENCE, images(), HALF, threshold=threshold)


def test_bad_input_is_refused():
    x, mask = images(), torch.ones(1, 1, SIZE, SIZE)
    for bad, words in [
        (mask[..., 1:], "the mask has shape"),
        (0.5 * mask, "other numbers than 0 and 1"),
        (mask.expand(3, -1, -1, -1), "3 masks for 4 images"),
    ]:
        with pytest.raises(ValueError, match=words):
            diffedit(QUERY, REFERENCE, x, bad, PATH)
    for strength in (0, 1.1, math.nan):
        with pytest.raises(ValueError, match="expected 0 < strength <= 1"):
            diffedit(QUERY, REFERENCE, x, mask, PATH, strength=strength)
    with pytest.raises(ValueError, match="pool 3 does not divide"):
        edit_mask(QUERY, REFERENCE, x, HALF, pool=3)
    with pytest.raises(ValueError, match="margin = -1: expected a number of pixels"):
        edit_mask(QUERY, REFERENCE, x, HALF, margin=-1)
    with pytest.raises(ValueError, match="n = 0: expected a whole number"):
        edit_mask(QUERY, REFERENCE, x, HALF, n=0)
    with pytest.raises(ValueError, match="four channels"):
        edit_mask(QUERY, REFERENCE, torch.zeros(1, 4, 8, 8), HALF)
