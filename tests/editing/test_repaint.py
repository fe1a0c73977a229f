"""RePaint: the conditional law of two correlated pixels, and of smooth fields under every mask."""

import sys
from functools import partial

import fields
import pytest
import torch
from exact import SCHEDULE, correlated_step
from torch import Generator

from minidiff.editing import masks, repaint
from minidiff.schedule import NoiseLevel

MODULE = sys.modules["minidiff.editing.repaint"]
RHO, KNOWN = 0.9, 1.5  # the law of the unknown pixel: mean 1.350, deviation .436
PAIR, LEFT = KNOWN * torch.ones(1, 1, 1, 2).double(), torch.tensor([[[[1, 0]]]])


def seeded(seed=0):
    return Generator().manual_seed(seed)


def pair_step(denoise, x, here, there, past=(), *, generator=None):
    """The exact reverse kernel for images (B,1,1,2) of two pixels."""
    x, prediction = correlated_step(RHO)(None, x.reshape(-1, 2, 1, 1), here, there)
    return x.reshape(-1, 1, 1, 2), prediction


def painted_in(n, steps, length, times, step=pair_step):
    """The unknown pixel (n,) of n images."""
    image, path = PAIR.expand(n, 1, 1, 2), SCHEDULE.path(steps, "linspace")
    x = repaint(None, image, LEFT, path, length=length, times=times, step=step)
    assert torch.equal(x[..., 0], image[..., 0])
    return x[..., 1].flatten()


def right(x):
    return 1.25 < x.mean() < 1.40 and x.std() < 0.50


@pytest.mark.parametrize(("n", "setting"), [(4000, (50, 1, 10)), (1000, (250, 10, 10))])
def test_resampling_finds_the_conditional_law(n, setting):
    x = painted_in(n, *setting)
    assert right(x)
    assert x.mean().item() == pytest.approx(1.31, abs=0.04)
    assert x.std().item() == pytest.approx(0.45, abs=0.03)


@pytest.mark.parametrize("setting", [(50, 1, 1), (491, 1, 1), (50, 10, 10)])
def test_neither_more_steps_nor_jumps_too_long_do(setting):
    assert not right(painted_in(2000, *setting))


def test_pixels_have_the_laws_of_their_levels(monkeypatch):
    def laws():
        """Of every level: are kept pixels, and the noise that climbs add, as they must be?"""
        kept, climbs, left = [], [], []

        def step(denoise, x, here, there, past=(), *, generator=None):
            known = x[..., 0]
            if left:  # not the pure noise at the start
                close = (known.mean() - here.alpha * KNOWN).abs() < 4 * here.sigma / len(x) ** 0.5
                kept.append(bool(close) and abs(known.std().item() / here.sigma - 1) < 0.025)
            if left and here.sigma > left[-1][1].sigma:
                before, level = left[-1]
                ratio = here.alpha / level.alpha
                added = (x - ratio * before)[..., 1].std().item()
                variance = here.sigma**2 - (ratio * level.sigma) ** 2
                climbs.append(added == pytest.approx(variance**0.5, rel=0.025))
            x, prediction = pair_step(denoise, x, here, there)
            left.append((x, there))
            return x, prediction

        painted_in(10000, 20, 1, 2, step)
        assert len(kept) == 38 and len(climbs) == 19
        return all(kept), all(climbs)

    assert laws() == (True, True)

    def misprint(x, here, there, noise):
        """Mutant: the variance where its root belongs, the slip of algorithm 1, line 5."""
        ratio = there.alpha / here.alpha
        return ratio * x + (there.sigma**2 - (ratio * here.sigma) ** 2) * noise

    def late(image, mask, generator):
        """Mutant: kept pixels at the noise of the level above."""
        levels = SCHEDULE.path(20, "linspace")
        paste = masks.paste(image, mask, generator)
        return lambda x, level: paste(x, levels[max(levels.index(level) - 1, 0)])

    with monkeypatch.context() as mutant:
        mutant.setattr(MODULE, "renoise", misprint)
        assert laws() == (True, False)
    monkeypatch.setattr(MODULE, "paste", late)
    with pytest.raises(AssertionError):  # not even the result keeps what is known
        laws()


@pytest.mark.parametrize(
    ("setting", "calls"), [((50, 1, 10), 491), ((250, 10, 10), 2410), ((7, 1, 1), 7)]
)
def test_network_calls(setting, calls):
    steps, length, times = setting
    seen = []

    def denoise(x, level):
        seen.append(level)
        return fields.denoise(x, level)

    path = SCHEDULE.path(steps)
    repaint(denoise, fields.draw(1), masks.half(8), path, length=length, times=times)
    assert len(seen) == calls and all(isinstance(level, NoiseLevel) for level in seen)


KINDS = {
    "box": masks.box(8),
    "half": masks.half(8),
    "lines": masks.lines(8),
    "every other pixel": masks.every_other_pixel(8),
    "irregular": masks.irregular(8, generator=seeded(1)),
}


@pytest.mark.parametrize("mask", KINDS.values(), ids=KINDS)
def test_the_hole_fits_its_surroundings_better_than_by_replacement(mask):
    """Control: plain replacement with as many network calls."""
    image = fields.draw(8).repeat_interleave(16, 0)
    wanted = fields.expected(image, mask)

    def error(steps, times):
        x = repaint(fields.denoise, image, mask, SCHEDULE.path(steps), times=times)
        assert torch.equal(x * mask, image * mask)
        mean = x.unflatten(0, (8, 16)).mean(1, keepdim=True)  # over the draws of each image
        return (mean - wanted.unflatten(0, (8, 16))).square().mean().sqrt().item()

    assert error(25, 10) < 0.9 * error(241, 1)


def test_an_image_of_a_seed_is_the_same_alone_and_in_a_batch():
    image, path = fields.draw(3), SCHEDULE.path(6)
    mask = masks.irregular(8, 3, generator=seeded(2))
    fill = partial(repaint, fields.denoise, path=path, length=2, times=3)
    many = fill(image=image, mask=mask, generator=seeded(5))
    alone = fill(image=image[:1], mask=mask[:1], generator=seeded(5))
    torch.testing.assert_close(alone, many[:1])
    assert torch.equal(fill(image=image, mask=mask, generator=seeded(5)), many)
    assert not torch.equal(fill(image=image, mask=mask, generator=seeded(6)), many)


def test_bad_input_is_refused():
    image, path = fields.draw(1), SCHEDULE.path(10)
    fill = partial(repaint, fields.denoise)
    with pytest.raises(ValueError, match="jumps of 10 levels do not fit a path of 10 steps"):
        fill(image, masks.half(8), path, length=10)
    with pytest.raises(ValueError, match=r"times=0\): expected numbers from 1 up"):
        fill(image, masks.half(8), path, times=0)
    with pytest.raises(ValueError, match="the mask has shape"):
        fill(image, masks.half(16), path)
    with pytest.raises(ValueError, match="expected 1 = keep, 0 = edit"):
        fill(image, masks.half(8) / 2, path)
    with pytest.raises(ValueError, match="the image has four channels, one of them alpha"):
        fill(torch.zeros(1, 4, 8, 8), masks.half(8), path)
    with pytest.raises(ValueError, match="at least one step that goes down to t = 0"):
        fill(image, masks.half(8), path[:-1])
