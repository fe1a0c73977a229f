"""What the scorecard measures, on pictures whose answer is known."""

import pytest
import torch

from minidiff.data import shapes
from minidiff.scoring import measures
from minidiff.scoring.bench import GROUP
from minidiff.scoring.crude import KINDS, drawn_by_hand, holes
from minidiff.scoring.outside import seam

SCENES = shapes.random_scenes(10, torch.Generator().manual_seed(3), pairs=0)
SCENES = [shapes.Scene(shapes.Thing(s.thing.shape, s.thing.colour), s.position) for s in SCENES]
IMAGES, COVERED = shapes.render(SCENES)


def test_what_the_oracle_says():
    captions = shapes.captions(SCENES)
    assert measures.right(captions, 1.001 * IMAGES).all()
    assert not measures.right(captions, IMAGES.flip(0))[:5].any()
    noise = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert measures.valid(IMAGES).all() and not measures.valid(noise).any()


def test_psnr_looks_only_where_it_should():
    where = torch.zeros(1, 1, 32, 32)
    where[..., :8, :8] = 1
    other = IMAGES + 0.2 * where
    inside, outside = (measures.psnr_where(other, IMAGES, w) for w in (where, 1 - where))
    assert inside == pytest.approx(torch.full((10,), 20.0), abs=1e-3)  # 10 log10(4 / .04)
    assert (outside == measures.BEST).all()


def test_the_middle_of_a_thing_and_how_far_it_moved():
    cells = torch.tensor(
        [[8 * (1 + k % 3) - 0.5, 8 * (1 + k // 3) - 0.5] for k in map(_cell, SCENES)]
    )
    assert (measures.centre(IMAGES) - cells).norm(dim=1).max() < 2
    moved = measures.moved(IMAGES, IMAGES.roll((3, 4), (2, 3)))
    fits = (cells - 15.5).abs().amax(1) < 1  # others wrap around
    assert fits.any() and moved[fits] == pytest.approx(torch.full((int(fits.sum()),), 5.0), abs=0.1)
    assert measures.centre(torch.zeros(1, 3, 32, 32)).tolist() == [[15.5, 15.5]]


def _cell(scene):
    return shapes.POSITIONS.index(scene.position)


def test_spread_is_within_groups():
    images = torch.zeros(2 * GROUP, 3, 32, 32)
    images[GROUP:] = 1  # another group: no matter
    assert (measures.spread(images) == 0).all()
    images[0] = 0.5
    expected = torch.tensor([2 * 0.5 / GROUP, 0.0])  # one image of a group is 0.5 from the others
    assert measures.spread(images) == pytest.approx(expected, abs=1e-3)


def test_spread_of_features_does_not_know_their_length():
    features = torch.eye(GROUP).repeat(2, 1)
    features[GROUP:] = 3 * features[:1]  # a group of equal directions
    found = measures.spread_seen(features)
    assert found.tolist() == [1.0, 0.0]


def test_grain_tells_noise_from_a_blur():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)
    assert (measures.grain(blurred) < 0.2 * measures.grain(noise)).all()
    assert measures.grain(torch.ones(1, 3, 8, 8)) == 0


def test_palettes_do_not_know_places():
    assert measures.palette(IMAGES, IMAGES.roll((5, 9), (2, 3))).max() < 1e-6
    assert measures.palette(IMAGES, -IMAGES).min() > 0.1


def test_saturation_and_overlap():
    grey = torch.zeros(1, 3, 4, 4)
    red = torch.tensor([1.0, -1, -1])[:, None, None].expand(1, 3, 4, 4)
    everywhere = torch.ones(1, 1, 4, 4)
    assert measures.saturation(grey, everywhere) == 0
    assert measures.saturation(red, everywhere) == 2
    half = everywhere.clone()
    half[..., 2:] = 0
    assert measures.overlap(half, everywhere) == 0.5
    assert measures.overlap(half, 1 - half) == 0


def test_a_seam_shows_at_the_rim_only():
    keep = torch.ones(1, 1, 32, 32)
    keep[..., 8:24, 8:24] = 0
    flat = torch.zeros(1, 3, 32, 32)
    assert seam(flat, keep) == 0
    assert seam(torch.where(keep.bool(), flat, flat + 1), keep) == pytest.approx(1)
    flat[..., 16, 16] = 1  # inside
    assert seam(flat, keep) == 0


def test_crude_drawings_are_of_their_scenes_but_not_clean():
    drawn = drawn_by_hand(SCENES, torch.Generator().manual_seed(0))
    assert drawn.shape == IMAGES.shape and drawn.abs().max() <= 1
    assert measures.moved(drawn, IMAGES).max() < 4
    assert measures.misfit(drawn).min() > 2 * measures.misfit(IMAGES).max()
    again = drawn_by_hand(SCENES[:3], torch.Generator().manual_seed(0))
    assert torch.equal(again, drawn[:3])


def test_holes_hide_about_half_of_the_thing():
    things = (COVERED > 0.5).float()
    keep = holes(IMAGES, things, torch.Generator().manual_seed(0))
    assert keep.shape == things.shape and ((keep == 0) | (keep == 1)).all()
    hidden = ((1 - keep) * things).flatten(1).sum(1) / things.flatten(1).sum(1)
    assert ((hidden > 0.25) & (hidden < 0.8)).all(), dict(zip(KINDS, hidden, strict=False))
