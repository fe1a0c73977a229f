"""Masks: what the makers keep, pasting, and what is refused."""

import pytest
import torch
from exact import SCHEDULE
from torch import Generator

from minidiff.editing import masks
from minidiff.editing.checks import check_image, check_mask, check_path, last_part

MAKERS = [masks.box, masks.half, masks.lines, masks.every_other_pixel, masks.irregular]


def seeded(seed=0):
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_maker_draws_zeros_and_ones_of_the_size(maker):
    for size in (31, 32, 64):
        mask = maker(size)
        check_mask(mask, torch.zeros(3, 3, size, size))
        assert mask.shape == (1, 1, size, size) and 0 < mask.mean() < 1
        check_mask(1 - mask, torch.zeros(1, 3, size, size))
    with pytest.raises(ValueError, match="size = 0: expected a whole number from 1 up"):
        maker(0)


def test_what_each_mask_keeps():
    assert masks.box(8)[0, 0, 2:6, 2:6].sum() == 0 and masks.box(8).sum() == 64 - 16
    assert masks.box(10, 0, 0.1, 0.2, 1)[0, 0, :2, 1:].sum() == 0
    assert masks.half(4).tolist() == [[[[1, 1, 0, 0]] * 4]]
    assert masks.lines(4).tolist() == [[[[1] * 4, [0] * 4] * 2]]
    assert masks.every_other_pixel(4).tolist() == [[[[1, 0, 1, 0], [0] * 4] * 2]]
    with pytest.raises(ValueError, match="expected 0 <= top < bottom <= 1, left to right alike"):
        masks.box(8, 0.5, 0, 0.5, 1)


def test_irregular_masks_are_broad_differ_and_repeat():
    some = masks.irregular(64, 200, generator=seeded())
    holes = 1 - some.mean((1, 2, 3))
    assert 0.08 < holes.min() and 0.15 < holes.mean() < 0.3 and holes.max() < 0.5
    assert len({tuple(m.flatten().tolist()) for m in some}) == 200
    assert torch.equal(masks.irregular(64, 3, generator=seeded()), some[:3])
    # the pen is several pixels wide: shrinking the hole by one leaves most of it
    left = 1 - masks.grow(1 - some, 1)
    assert left.sum() < some.numel() - 0.6 * (1 - some).sum()


def test_growing_enlarges_the_hole_and_nothing_else():
    mask = masks.box(16)
    assert torch.equal(masks.grow(mask, 2), masks.box(16, 2 / 16, 2 / 16, 14 / 16, 14 / 16))
    assert torch.equal(masks.grow(mask, 0), mask)


def test_pasting_gives_kept_pixels_the_law_of_their_level():
    image = torch.full((20000, 1, 1, 2), 0.5, dtype=torch.float64)
    mask = torch.tensor([[[[1, 0]]]])
    x = torch.full_like(image, 7)
    edit = masks.paste(image, mask)
    for t in (1, 100, 500, 1000):
        level = SCHEDULE.level(t)
        known, free = edit(x, level).unbind(-1)
        assert known.std().item() == pytest.approx(level.sigma, rel=0.02)
        bound = 4 * level.sigma / 20000**0.5
        assert known.mean().item() == pytest.approx(level.alpha * 0.5, abs=bound)
        assert (free == 7).all()
    assert torch.equal(edit(x, SCHEDULE.level(0))[..., 0], image[..., 0])  # bit for bit
    assert not torch.equal(edit(x, SCHEDULE.level(9)), edit(x, SCHEDULE.level(9)))  # fresh noise


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(1, 1, 4, 8), r"shape \(1, 1, 4, 8\): expected \(1 or 2, 1, 8, 8\), the size"),
        (torch.ones(8, 8), r"the mask has shape \(8, 8\)"),
        (torch.ones(2, 3, 8, 8), r"the mask has shape \(2, 3, 8, 8\)"),
        (torch.ones(3, 1, 8, 8), "3 masks for 2 images: expected one, or one each"),
        (torch.full((1, 1, 8, 8), 0.5), "expected 1 = keep, 0 = edit"),
        (torch.full((1, 1, 8, 8), 255), "expected 1 = keep, 0 = edit"),
        (torch.full((1, 1, 8, 8), torch.nan), "expected 1 = keep, 0 = edit"),
        (torch.ones(1, 1, 8, 8).numpy(), "the mask is a ndarray: expected a tensor"),
    ],
)
def test_a_bad_mask_is_refused(mask, words):
    image = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=words):
        masks.paste(image, mask)
    for good in (torch.ones(1, 1, 8, 8), torch.zeros(2, 1, 8, 8), torch.ones(1, 1, 8, 8).bool()):
        masks.paste(image, good)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(1, 4, 8, 8), "the guide has four channels, one of them alpha: expected three"),
        (torch.zeros(3, 8, 8), r"the guide has shape \(3, 8, 8\): expected \(B, 3, H, W\)"),
        (torch.zeros(0, 3, 8, 8), "the guide has shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "holds torch.uint8: expected floats in"),
        (torch.full((1, 3, 8, 8), torch.nan), "the guide holds NaN or infinity"),
        (torch.full((1, 3, 8, 8), 200.0), r"the guide reaches 200: expected \[-1, 1\]"),
        (torch.zeros(1, 3, 8, 8).numpy(), "the guide is a ndarray: expected a tensor"),
    ],
)
def test_a_bad_image_is_refused(image, words):
    with pytest.raises(ValueError, match=words):
        check_image(image, "guide")
    for good in (torch.zeros(2, 3, 8, 8), 50 * torch.randn(2, 3, 8, 8)):  # as predictions may be
        check_image(good)


def test_the_last_part_of_a_path():
    path = SCHEDULE.path(50)
    assert [len(last_part(path, s)) - 1 for s in (0.001, 0.5, 0.76, 1)] == [1, 25, 38, 50]
    assert last_part(path, 0.4)[0].t == 400 and last_part(path, 0.4)[-1].t == 0
    for strength in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match=f"strength {strength} is out of range: expected 0 <"):
            last_part(path, strength)
    for bad in ([500, 250], [0], [], [250, 500, 0], [500, 500, 0], [500, 0, 0]):
        with pytest.raises(ValueError, match="at least one step that goes down to t = 0"):
            check_path(SCHEDULE.path(bad))
