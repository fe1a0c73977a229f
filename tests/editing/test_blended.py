"""Blended Diffusion on exact denoisers: its law, the background, the seam, the earlier variant."""

import sys
from functools import partial

import fields
import pytest
import torch
from exact import SCHEDULE, gaussian
from torch import Generator

from minidiff.editing import background_loss, blended, in_place, rank, sdedit
from minidiff.editing.masks import box, half
from minidiff.metrics import psnr

MODULE = sys.modules["minidiff.editing.blended"]
BOX = box(8)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def brightness(x):
    """A score of images (B,): the sum of their pixels."""
    return x.flatten(1).sum(1)


def test_scale_0_is_sdedit_with_a_mask_bit_for_bit():
    image, path = fields.draw(3), SCHEDULE.path(20)
    unguided = sdedit(fields.denoise, image, path, strength=0.75, mask=BOX, generator=seeded())
    edit = partial(blended, fields.denoise, image, BOX, path, brightness)
    assert torch.equal(edit(0, generator=seeded()), unguided)
    assert not torch.equal(edit(1e-6, generator=seeded()), unguided)


def test_the_edited_area_has_exactly_the_law_that_the_score_tilts(monkeypatch):
    """N(0, s^2) pixels weighted by exp(scale * sum) are N(scale * s^2, s^2): the same, moved."""
    std, scale = 0.2, 10
    image, path = torch.full((4, 3, 8, 8), 0.7).double(), SCHEDULE.path(100)
    edit = partial(blended, gaussian(std), image, BOX, path, brightness, strength=1)

    def moved():
        x = edit(scale, generator=seeded()) - edit(0, generator=seeded())
        assert (x * BOX == 0).all()
        return x[..., ~BOX[0, 0].bool()]

    torch.testing.assert_close(moved(), torch.full_like(moved(), scale * std**2), rtol=0.01, atol=0)
    # Mutant: a score of the kept area guides nothing.
    of_edited = MODULE._of_edited
    monkeypatch.setattr(MODULE, "_of_edited", lambda score, keep: of_edited(score, 1 - keep))
    assert moved().abs().max() < 0.1 * scale * std**2


def test_the_background_is_the_images_and_the_seam_is_natural():
    image, path = fields.draw(64), SCHEDULE.path(50)
    natural = max(fields.seam(fields.draw(64), BOX) for _ in range(20))
    x = blended(fields.denoise, image, BOX, path, brightness, 0.1)
    assert torch.equal(x * BOX, image * BOX)
    assert fields.seam(x, BOX) < 1.25 * natural
    # Mutant: the same guidance without blending, and the background pasted at the end.
    free = background_loss(fields.denoise, image, BOX, path, brightness, 0.1, 0)
    assert fields.seam(torch.where(BOX.bool(), image, free), BOX) > 2 * natural
    assert not torch.equal(free * BOX, image * BOX)


def test_the_earlier_variant_trades_the_background_for_the_edit_and_blending_does_not():
    image, path = fields.draw(48), SCHEDULE.path(50)

    def measure(x):
        gained = brightness((x - image) * (1 - BOX)).mean().item()
        return psnr(x * BOX, image * BOX).mean().item(), gained

    variant = partial(background_loss, fields.denoise, image, BOX, path, brightness, 1)
    weights = (0, 10, 100, 1000)
    kept, gained = zip(*(measure(variant(w, generator=seeded())) for w in weights), strict=True)
    assert all(a + 1 < b for a, b in zip(kept[:-1], kept[1:], strict=True))
    assert all(a > 1.1 * b for a, b in zip(gained[:-1], gained[1:], strict=True))
    x = blended(fields.denoise, image, BOX, path, brightness, 1, generator=seeded())
    infinite, by_blending = measure(x)
    assert infinite == float("inf") and kept[-1] > 20 and by_blending > 1.5 * gained[-1]


def test_leaving_the_range_of_images_is_penalised(monkeypatch):
    image, path = torch.zeros(64, 3, 8, 8).double(), SCHEDULE.path(50)

    def outside():
        x = blended(
            gaussian(1.5), image, BOX, path, lambda x: 0 * brightness(x), 2e4, generator=seeded()
        )
        return (x.abs() > 1).double().mean().item()

    with_penalty = outside()
    monkeypatch.setattr(MODULE, "RANGE", 0)  # Mutant.
    assert with_penalty < 0.8 * outside()


def test_ranking_puts_the_best_edit_first_and_ignores_the_background():
    images = torch.full((4, 3, 8, 8), -1.0)
    for i, value in enumerate((0.1, 0.4, -0.2, 0.3)):
        images[i, :, 2:6, 2:6] = value
    images[0, :, :2] = 1  # bright, but outside
    assert rank(images, BOX, brightness).tolist() == [1, 3, 0, 2]
    assert rank(images, BOX, lambda x: -brightness(x)).tolist() == [2, 0, 3, 1]
    assert brightness(images).argsort(descending=True).tolist()[0] == 0  # Mutant: whole images.


def test_in_place_the_score_sees_the_kept_pixels_around_the_edited_area():
    image, path, seen = fields.draw(2), SCHEDULE.path(6), []

    def score(x):
        seen.append(x.detach())
        return brightness(x)

    blended(fields.denoise, image, BOX, path, score, 1, generator=seeded())
    alone = len(seen)
    blended(fields.denoise, image, BOX, path, in_place(score, image, BOX), 1, generator=seeded())
    kept = BOX.bool().expand_as(image)
    assert all((x[kept] == 0).all() for x in seen[:alone]) and len(seen) == 2 * alone > 0
    assert all(torch.equal(x[kept], image[kept]) for x in seen[alone:])
    with pytest.raises(ValueError, match="the mask has shape"):
        in_place(score, image, BOX[..., :4])


def test_an_image_of_a_seed_is_the_same_alone_and_in_a_batch():
    image, path = fields.draw(3), SCHEDULE.path(8)
    for method in (blended, partial(background_loss, background=100)):
        edit = partial(method, fields.denoise, path=path, score=brightness, scale=1)
        many = edit(image=image, mask=BOX.expand(3, 1, 8, 8), generator=seeded(5))
        alone = edit(image=image[:1], mask=BOX, generator=seeded(5))
        torch.testing.assert_close(alone, many[:1])
        other = edit(image=image, mask=BOX, generator=seeded(6))
        assert not torch.allclose(other, many)


@pytest.mark.parametrize("method", [blended, partial(background_loss, background=1)])
def test_bad_input_is_refused(method):
    image, path = fields.draw(2), SCHEDULE.path(8)
    edit = partial(
        method, fields.denoise, image=image, mask=BOX, path=path, score=brightness, scale=1
    )
    with pytest.raises(ValueError, match="scale = nan: expected a finite number"):
        edit(scale=float("nan"))
    with pytest.raises(ValueError, match=r"expected a tensor \(2,\), one number an image"):
        edit(score=lambda x: brightness(x).mean())
    with pytest.raises(ValueError, match="strength 1.5 is out of range"):
        edit(strength=1.5)
    with pytest.raises(ValueError, match="the mask has shape"):
        edit(mask=half(16))
    with pytest.raises(ValueError, match="expected 1 = keep, 0 = edit"):
        edit(mask=BOX + 1)
    with pytest.raises(ValueError, match="the image has four channels, one of them alpha"):
        edit(image=torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"expected a tensor \(2,\), one number an image"):
        rank(image, BOX, torch.mean)


def test_the_background_weight_is_a_finite_number():
    image, path = fields.draw(1), SCHEDULE.path(8)
    for weight in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"background = {weight}: expected a finite number"):
            background_loss(fields.denoise, image, BOX, path, brightness, 1, weight)
