"""SDEdit on an exact mixture: its law, its trade-off, repeats, masks."""

from functools import partial

import fields
import pytest
import torch
from exact import MEANS, SCHEDULE, STD, log_joint, mixture, mmd2, noise, plane
from torch import Generator

from minidiff.editing import sdedit
from minidiff.editing.masks import half
from minidiff.noise import randn
from minidiff.samplers import ddpm_step, sample
from minidiff.schedule import add_noise

EXACT, FULL, N = mixture(), SCHEDULE.path(1000), 1000
GUIDE = plane([[0.2, 0.1]]).expand(N, 2, 1, 1)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def posterior(x, level):
    """Draws of p(x0 | x_t) of the mixture."""
    mode = torch.multinomial(log_joint(x, level).softmax(0).T, 1)[:, 0]
    gain = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
    mean = plane(MEANS[mode])
    width = STD * level.sigma / (level.alpha**2 * STD**2 + level.sigma**2) ** 0.5
    return mean + gain * (x - level.alpha * mean) + width * noise(len(x))


def same_law(x, y):
    value, bound = mmd2(x, y, splits=200)
    return value <= bound


@pytest.mark.parametrize("t0", [50, 200, 1000])
def test_the_result_is_a_draw_of_the_clean_images_that_lead_to_the_noisy_guide(t0):
    level = SCHEDULE.level(t0)
    exact = posterior(add_noise(GUIDE, level, noise(N)), level)
    result = sdedit(EXACT, GUIDE, FULL, strength=t0 / 1000)
    assert same_law(result, exact)
    if t0 == 1000:  # hardly a trace of the guide is left there
        return
    # Mutants: a guide without noise; steps that start at half of its noise level.
    part = FULL[-1 - t0 :]
    assert not same_law(sample(ddpm_step, EXACT, level.alpha * GUIDE, part), exact)
    noisy = add_noise(GUIDE, level, noise(N))
    assert not same_law(sample(ddpm_step, EXACT, noisy, FULL[-1 - t0 // 2 :]), exact)


def test_strength_trades_the_guide_for_reality():
    to_guide, to_mode = [], []
    for t0 in (50, 100, 200, 300):
        x = sdedit(EXACT, GUIDE, FULL, strength=t0 / 1000)
        to_guide.append((x - GUIDE).flatten(1).norm(dim=1).mean().item())
        to_mode.append(torch.cdist(x.flatten(1), MEANS).min(1).values.mean().item())
    assert to_guide == pytest.approx([0.68, 1.02, 1.19, 1.24], abs=0.04)
    assert to_mode == pytest.approx([0.42, 0.21, 0.18, 0.19], abs=0.02)


def test_repeats_start_again_from_the_result():
    level, exact = SCHEDULE.level(100), GUIDE
    for _ in range(3):
        exact = posterior(add_noise(exact, level, noise(N)), level)
    edit = partial(sdedit, EXACT, GUIDE, FULL, strength=0.1)
    assert same_law(edit(repeats=3), exact)
    assert not same_law(edit(repeats=1), exact)  # Mutant.


def test_kept_pixels_are_the_guides_and_the_rest_fits_them():
    image, path = fields.draw(1).expand(32, 3, 8, 8), SCHEDULE.path(50)
    guide = torch.where(half(8).bool(), image, torch.tensor(1.0).double())  # white strokes
    edit = partial(sdedit, fields.denoise, guide, path, generator=seeded())
    for strength, repeats in ((0.3, 1), (0.8, 1), (0.5, 3)):
        x = edit(strength=strength, repeats=repeats, mask=half(8))
        assert torch.equal(x[..., :4], guide[..., :4])
        assert not torch.equal(x[..., 4:], guide[..., 4:])
    free = edit(strength=0.8)
    assert not torch.equal(free[..., :4], guide[..., :4])  # Control: without the mask they move.
    pasted = torch.where(half(8).bool(), image, free)
    masked = edit(strength=0.8, mask=half(8))
    assert fields.seam(masked, half(8)) < 0.8 * fields.seam(pasted, half(8))  # Mutant: pasted last


def test_network_calls_are_the_strength_of_the_steps_times_the_repeats():
    calls = []

    def counted(x, level):
        calls.append(level.t)
        return fields.denoise(x, level)

    sdedit(counted, fields.draw(1), SCHEDULE.path(20), strength=0.3, repeats=2)
    assert calls == [300, 250, 200, 150, 100, 50] * 2


def test_an_image_of_a_seed_is_the_same_alone_and_in_a_batch():
    guide, path, mask = fields.draw(4), SCHEDULE.path(10), half(8)
    edit = partial(sdedit, fields.denoise, path=path, strength=0.6, repeats=2)
    many = edit(guide=guide, mask=mask.expand(4, 1, 8, 8), generator=seeded(5))
    torch.testing.assert_close(edit(guide=guide[:1], mask=mask, generator=seeded(5)), many[:1])
    assert torch.equal(edit(guide=guide, mask=mask, generator=seeded(5)), many)
    assert not torch.equal(edit(guide=guide, mask=mask, generator=seeded(6)), many)
    same = edit(guide=guide[:1].expand(2, 3, 8, 8), generator=seeded(5))
    assert not torch.allclose(same[0], same[1])


def test_bad_input_is_refused():
    image, path = fields.draw(1), SCHEDULE.path(10)
    with pytest.raises(ValueError, match="strength 0 is out of range: expected 0 < strength <= 1"):
        sdedit(fields.denoise, image, path, strength=0)
    with pytest.raises(ValueError, match="repeats = 0: expected a whole number from 1 up"):
        sdedit(fields.denoise, image, path, repeats=0)
    with pytest.raises(ValueError, match="the mask has shape"):
        sdedit(fields.denoise, image, path, mask=half(16))
    with pytest.raises(ValueError, match="the guide has four channels, one of them alpha"):
        sdedit(fields.denoise, randn((1, 4, 8, 8)), path)
