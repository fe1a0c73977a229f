"""Guides for SDEdit: an array from a drawing program, polygons on an image, simulated strokes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from minidiff.editing.checks import check_count, check_image

Points = Sequence[tuple[float, float]]  # (x, y) as shares of the width and height
Colour = tuple[float, float, float]  # red, green, blue in [-1, 1]

FINE = 16  # parts of a pixel's side to which corners are rounded
FAR = 1000.0  # shares beyond which Pillow's whole numbers could overflow


def from_array(array: np.ndarray) -> Tensor:
    """A picture (H,W,3) of uint8, as drawing programs and PIL give it, as (1,3,H,W) in [-1, 1]."""
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 4:
        raise ValueError("the picture has four channels, one of them alpha: expected three, RGB")
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"the picture is {array.shape} of {array.dtype}: expected (H, W, 3) of uint8"
        )
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def paint(image: Tensor, polygons: Sequence[tuple[Points, Colour]]) -> tuple[Tensor, Tensor]:
    """Flat polygons on an image (B,3,H,W): the guide, and the mask (1,1,H,W), 1 = unpainted.

    guide, mask = paint(image, [([(0.2, 0.5), (0.8, 0.5), (0.5, 0.9)], (1, -1, -1))])  # red

    A pixel is painted if its centre lies inside the polygon, to 1/16 of a pixel; later polygons
    cover earlier ones. ValueError for fewer than three points, points far outside the image or not
    finite, and a colour outside [-1, 1].
    """
    check_image(image)
    painted = torch.zeros_like(image[:1, :1], dtype=torch.bool)
    for points, colour in polygons:
        if len(points) < 3:
            raise ValueError(f"a polygon of {len(points)} points: expected at least 3")
        if len(colour) != 3 or not all(-1 <= part <= 1 for part in colour):
            raise ValueError(f"colour {colour}: expected red, green and blue in [-1, 1]")
        inside = _inside(points, *image.shape[2:]).to(image.device)
        image = torch.where(inside, image.new_tensor(colour).reshape(1, 3, 1, 1), image)
        painted = painted | inside
    return image, (~painted).to(image)


def simplify(image: Tensor, colours: int = 6, window: int = 5) -> Tensor:
    """Strokes as a person might paint the image (B,3,H,W): a median filter, and few colours.

    SDEdit's own simulation (appendix C.2) with a window of 23 pixels of 256 and 6 colours, which
    here are found by k-means, for each image by itself. Values are clamped to [-1, 1] and rounded
    to 256 levels. ValueError unless `colours` is 1 to 256 and `window` odd.
    """
    check_image(image)
    check_count("colours", colours)
    if colours > 256:
        raise ValueError(f"colours = {colours}: expected at most 256")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window = {window}: expected an odd number of pixels")
    return torch.cat([_simplified(one, colours, window) for one in image.detach()]).to(image)


def _simplified(image: Tensor, colours: int, window: int) -> Tensor:
    """One image (3,H,W) as (1,3,H,W)."""
    levels = ((image.cpu().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    smooth = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()).filter(
        ImageFilter.MedianFilter(window)
    )
    # k-means starts from colours that are far from one another: small bright things keep theirs.
    few = smooth.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=1)
    return from_array(np.asarray(few.convert("RGB")))


def _inside(points: Points, height: int, width: int) -> Tensor:
    """The pixels (H,W) whose centres lie inside a polygon.

    Pillow rounds corners to whole pixels. So the polygon is drawn FINE times larger, and of each
    block of FINE x FINE pixels the middle one is read: nearest-neighbour reduction.
    """
    if not all(abs(share) <= FAR for point in points for share in point):
        raise ValueError(f"points {points}: expected shares of the width and height, 0 to 1 inside")
    canvas = Image.new("L", (FINE * width, FINE * height))
    corners = [(round(FINE * width * x), round(FINE * height * y)) for x, y in points]
    ImageDraw.Draw(canvas).polygon(corners, fill=1)
    small = canvas.resize((width, height), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(small, dtype=bool))
