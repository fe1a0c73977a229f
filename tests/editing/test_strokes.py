"""Guides for SDEdit: arrays, polygons, simulated strokes."""

import numpy as np
import pytest
import torch

from minidiff.editing import strokes

RED = (1, -1, -1)


def test_an_array_becomes_an_image():
    array = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    image = strokes.from_array(array)
    assert image.shape == (1, 3, 5, 4) and image.dtype == torch.float32
    torch.testing.assert_close((image[0, :, 2, 3] + 1) * 127.5, torch.tensor([33.0, 34, 35]))
    extremes = strokes.from_array(np.array([[[0, 255, 0]]], dtype=np.uint8))
    assert extremes.flatten().tolist() == [-1, 1, -1]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((8, 8, 4), np.uint8), "four channels, one of them alpha: expected three, RGB"),
        (np.zeros((8, 8), np.uint8), r"the picture is \(8, 8\) of uint8: expected \(H, W, 3\)"),
        (np.zeros((8, 8, 3)), "of float64: expected"),
    ],
)
def test_a_bad_array_is_refused(array, words):
    with pytest.raises(ValueError, match=words):
        strokes.from_array(array)


def test_polygons_are_painted_flat_one_over_the_other():
    image = torch.zeros(2, 3, 10, 10)
    square = [(0.2, 0.2), (0.6, 0.2), (0.6, 0.6), (0.2, 0.6)]
    later = [(0.5, 0.5), (0.9, 0.5), (0.9, 0.9), (0.5, 0.9)]
    guide, mask = strokes.paint(image, [(square, RED), (later, (-1, 1, -1))])
    assert guide.shape == image.shape and mask.shape == (1, 1, 10, 10)
    assert guide[1, :, 3, 3].tolist() == [1, -1, -1] and guide[0, :, 5, 5].tolist() == [-1, 1, -1]
    assert (1 - mask).sum() == 16 + 16 - 1 and (mask[..., 2:6, 2:6] == 0).all()
    assert torch.equal(guide * mask, image * mask) and image.abs().max() == 0


def test_any_polygon_has_its_area():
    triangle = [(0.1, 0.1), (0.9, 0.3), (0.4, 0.8)]
    arrow = [(0.13, 0.1), (0.9, 0.48), (0.1, 0.93), (0.37, 0.51)]  # not convex
    for points in (triangle, arrow, arrow[::-1]):
        _, mask = strokes.paint(torch.zeros(1, 3, 200, 100), [(points, RED)])
        corners = zip(points, [*points[1:], points[0]], strict=True)
        area = abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in corners)) / 2
        assert 1 - mask.mean().item() == pytest.approx(area, abs=0.003)


def test_a_pixel_is_painted_if_its_centre_is_inside():
    for left, first in ((0.34, 3), (0.36, 4)):  # the centre of pixel 3 of 10 lies at 0.35
        points = [(left, 0), (1, 0), (1, 1), (left, 1)]
        for turned in (points, [(y, x) for x, y in points]):
            _, mask = strokes.paint(torch.zeros(1, 3, 10, 10), [(turned, RED)])
            rows = mask[0, 0] if turned is points else mask[0, 0].T
            assert rows.tolist() == [[1] * first + [0] * (10 - first)] * 10
    # corners may lie outside the image
    _, mask = strokes.paint(torch.zeros(1, 3, 10, 10), [([(-9, -9), (9, -9), (0, 9)], RED)])
    assert mask.sum() == 0


def test_a_bad_polygon_is_refused():
    image = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="a polygon of 2 points: expected at least 3"):
        strokes.paint(image, [([(0, 0), (1, 1)], RED)])
    for colour in ((255, 0, 0), (1, 1), (float("nan"), 0, 0)):
        with pytest.raises(ValueError, match=r"expected red, green and blue in \[-1, 1\]"):
            strokes.paint(image, [([(0, 0), (1, 1), (0, 1)], colour)])
    for far in (float("nan"), float("inf"), 1e9):
        with pytest.raises(ValueError, match="expected shares of the width and height, 0 to 1"):
            strokes.paint(image, [([(0, 0), (1, far), (0, 1)], RED)])


def test_simulated_strokes_have_few_colours_and_no_small_things():
    generator = torch.Generator().manual_seed(0)
    image = torch.full((2, 3, 32, 32), -0.5)
    image[:, :, 8:24, 8:24] = torch.tensor([0.8, 0.1, -0.3]).reshape(3, 1, 1)
    image[1, 0] *= -1
    speckled = image + 0.02 * torch.randn(image.shape, generator=generator)
    speckled[:, :, 16, 4] = 1  # one small bright thing
    simple = strokes.simplify(speckled, colours=2)
    assert [len(one.flatten(1).T.unique(dim=0)) for one in simple] == [2, 2]
    away = torch.ones(32, 32, dtype=torch.bool)
    away[5:11, 5:11] = away[5:11, 21:27] = away[21:27, 5:11] = away[21:27, 21:27] = False  # corners
    assert (simple - image)[..., away].abs().max() < 0.02
    # Control: few colours alone keep the small thing.
    assert (strokes.simplify(speckled, 3, window=1)[:, :, 16, 4] == 1).all()
    for one, alone in zip(simple, speckled.split(1), strict=True):
        assert torch.equal(strokes.simplify(alone, 2)[0], one)


def test_bad_settings_of_simulated_strokes_are_refused():
    with pytest.raises(ValueError, match="window = 4: expected an odd number of pixels"):
        strokes.simplify(torch.zeros(1, 3, 8, 8), window=4)
    with pytest.raises(ValueError, match="colours = 0: expected a whole number from 1 up"):
        strokes.simplify(torch.zeros(1, 3, 8, 8), colours=0)
    with pytest.raises(ValueError, match="colours = 257: expected at most 256"):
        strokes.simplify(torch.zeros(1, 3, 8, 8), colours=257)


def test_simulated_strokes_keep_the_range_the_type_and_a_plain_image():
    plain = torch.full((1, 3, 4, 5), 0.2, dtype=torch.float64, requires_grad=True)
    simple = strokes.simplify(plain)
    assert simple.dtype == plain.dtype and not simple.requires_grad
    assert (simple - plain).abs().max() < 1 / 255
    assert strokes.simplify(torch.full((1, 3, 4, 5), -1.7)).unique().tolist() == [-1]
