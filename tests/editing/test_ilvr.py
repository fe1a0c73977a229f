"""ILVR: the reference's low frequencies exactly, and how much is left free."""

import sys
from functools import partial

import fields
import pytest
import torch
import torch.nn.functional as F
from exact import SCHEDULE
from torch import Generator

from minidiff.editing import ilvr, low_pass
from minidiff.samplers import ddpm_step, sample
from minidiff.schedule import NoiseLevel, add_noise

MODULE = sys.modules["minidiff.editing.ilvr"]
STD, FACTORS = 0.5, (2, 4, 8)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def cubic(x, factor):
    """The authors' way down and up, which is no projection."""
    small = F.interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    return F.interpolate(small, scale_factor=factor, mode="bicubic")


def off(x, reference, factor):
    return (low_pass(x, factor) - low_pass(reference, factor)).abs().max().item()


@pytest.mark.parametrize("factor", FACTORS)
def test_the_low_frequencies_are_the_references(factor, monkeypatch):
    reference, path = fields.draw(4).float(), SCHEDULE.path(30)
    edit = partial(ilvr, fields.denoise, reference, path, factor=factor, generator=seeded())
    assert off(edit(), reference, factor) <= 1e-6
    assert off(edit(), reference[[1, 0, 3, 2]], factor) > 0.05

    # Mutant: the reference at the noise of the level before, as in the authors' code.
    levels = {there.t: here for here, there in zip(path[:-1], path[1:], strict=True)}
    with monkeypatch.context() as mutant:
        mutant.setattr(MODULE, "add_noise", lambda x, at, z: add_noise(x, levels[at.t], z))
        assert off(edit(), reference, factor) > 1e-3
    # Mutant: cubic resizing (of one pixel it is a mean).
    if factor == 8:
        return
    monkeypatch.setattr(MODULE, "low_pass", cubic)
    x = edit()
    assert (cubic(x, factor) - cubic(reference, factor)).abs().max() > 1e-3


def test_the_filter_is_a_projection_and_the_cubic_one_is_none():
    x = fields.draw(3)
    for factor in (1, *FACTORS):
        once = low_pass(x, factor)
        assert once.shape == x.shape
        torch.testing.assert_close(low_pass(once, factor), once, atol=1e-15, rtol=0)
    assert torch.equal(low_pass(x, 1), x)
    torch.testing.assert_close(low_pass(x, 8)[..., 0, 0], x.mean((2, 3)))
    assert (cubic(cubic(x, 2), 2) - cubic(x, 2)).norm() > 0.02 * cubic(x, 2).norm()


def exact_step(denoise, x, here, there, past=(), *, generator=None):
    """A draw of the exact reverse kernel of N(0, STD^2) pixels."""
    before, after = (level.alpha**2 * STD**2 + level.sigma**2 for level in (here, there))
    gain = here.alpha / there.alpha * after / before
    return gain * x + (after - gain**2 * before) ** 0.5 * torch.randn_like(x), None


def variance_left(factor, until=0):
    """Mean variance of the pixels over 500 images of one reference, for N(0, STD^2) pixels."""
    reference, path = torch.full((500, 3, 8, 8), 0.3), SCHEDULE.path(20)
    x = ilvr(None, reference, path, factor=factor, until=until, step=exact_step)
    return x.var(0).mean().item()


def test_diversity_rises_with_the_factor_as_it_must():
    left = [variance_left(factor) for factor in FACTORS]
    assert left == pytest.approx([STD**2 * (1 - 1 / n**2) for n in FACTORS], rel=0.015)
    assert left == sorted(left)


def test_diversity_rises_when_it_ends_earlier_as_it_must():
    left = [variance_left(2, until) for until in (0, 50, 100, 150)]
    exact = []
    for until in (0, 50, 100, 150):
        # the last reference, of deviation sigma around it, and the images that lead there
        _, alpha, sigma = SCHEDULE.level(until)
        total = alpha**2 * STD**2 + sigma**2
        free = (alpha * STD**2 * sigma / total) ** 2 + STD**2 * sigma**2 / total
        exact.append(STD**2 * (1 - 1 / 4) + free / 4)
    assert left == pytest.approx(exact, rel=0.015) and left == sorted(left)


def test_below_until_nothing_is_changed():
    changed = []

    def spy(x, level, noise):
        changed.append(level.t)
        return add_noise(x, level, noise)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "add_noise", spy)
        ilvr(fields.denoise, fields.draw(1), SCHEDULE.path(10), until=600)
        assert changed == [900, 800, 700, 600]
        changed.clear()
        ilvr(fields.denoise, fields.draw(1), SCHEDULE.path(10))
        assert changed == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]


def test_without_reference_it_is_ddpm():
    reference, path = fields.draw(2), SCHEDULE.path(10)
    free = ilvr(fields.denoise, reference, path, until=1001, generator=seeded())
    other = ilvr(fields.denoise, -reference, path, until=1001, generator=seeded())
    assert torch.equal(free, other) and isinstance(path[0], NoiseLevel)
    assert free.shape == sample(ddpm_step, fields.denoise, reference, path).shape


def test_an_image_of_a_seed_is_the_same_alone_and_in_a_batch():
    reference, path = fields.draw(3), SCHEDULE.path(10)
    many = ilvr(fields.denoise, reference, path, generator=seeded(5))
    alone = ilvr(fields.denoise, reference[:1], path, generator=seeded(5))
    torch.testing.assert_close(alone, many[:1])
    assert not torch.allclose(many, ilvr(fields.denoise, reference, path, generator=seeded(6)))


def test_bad_input_is_refused():
    image, path = fields.draw(1), SCHEDULE.path(10)
    with pytest.raises(ValueError, match="factor 3 does not divide the reference's 8 x 8"):
        ilvr(fields.denoise, image, path, factor=3)
    with pytest.raises(ValueError, match=r"\(8, 8\) pixels do not divide into squares of 3"):
        low_pass(image, 3)
    for factor in (0, 2.0):
        with pytest.raises(ValueError, match="expected a whole number from 1 up"):
            ilvr(fields.denoise, image, path, factor=factor)
    for until in (-1, float("nan")):
        with pytest.raises(ValueError, match=f"until = {until}: expected the time t >= 0"):
            ilvr(fields.denoise, image, path, until=until)
    with pytest.raises(ValueError, match="the reference has four channels, one of them alpha"):
        ilvr(fields.denoise, torch.zeros(1, 4, 8, 8), path)
    with pytest.raises(ValueError, match="at least one step that goes down to t = 0"):
        ilvr(fields.denoise, image, path[::-1])
