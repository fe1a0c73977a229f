"""Guides for SDEdit: an array from a drawing program, polygons on an image, simulated strokes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.editing.checks import check_count, check_image

Points = Sequence[tuple[float, float]]  # (x, y) as shares of the width and height
Colour = tuple[float, float, float]  # red, green, blue in [-1, 1]


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
    here are found by k-means, for each image by itself.
    """
    check_image(image)
    check_count("colours", colours)
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window = {window}: expected an odd number of pixels")
    edge = [window // 2] * 4
    patches = F.pad(image, edge, mode="replicate").unfold(2, window, 1).unfold(3, window, 1)
    smooth = patches.flatten(4).median(dim=4).values  # (B,3,H,W)
    return torch.stack([_few_colours(one, colours) for one in smooth])


def _few_colours(image: Tensor, colours: int) -> Tensor:
    """Each pixel of (3,H,W) gets the nearest of the palette that k-means finds."""
    pixels = image.flatten(1).T  # (H*W,3)
    chosen = [pixels[0]]
    for _ in range(colours - 1):  # start from colours that lie far from one another
        chosen.append(pixels[torch.cdist(pixels, torch.stack(chosen)).min(1).values.argmax()])
    palette = torch.stack(chosen)
    for _ in range(20):
        nearest = F.one_hot(torch.cdist(pixels, palette).argmin(1), colours).to(pixels)  # (H*W,K)
        count = nearest.sum(0)[:, None]
        palette = torch.where(count > 0, nearest.T @ pixels / count.clamp(min=1), palette)
    return palette[torch.cdist(pixels, palette).argmin(1)].T.reshape_as(image)


def _inside(points: Points, height: int, width: int) -> Tensor:
    """Which pixels' centres lie inside a polygon (H,W): a ray to the right crosses it oddly."""
    x = (torch.arange(width) + 0.5) / width
    y = ((torch.arange(height) + 0.5) / height)[:, None]
    inside = torch.zeros(height, width, dtype=torch.bool)
    for (x1, y1), (x2, y2) in zip(points, [*points[1:], points[0]], strict=True):
        if y1 != y2:
            crosses = (y < y1) != (y < y2)  # (H,1)
            inside ^= crosses & (x < x1 + (y - y1) / (y2 - y1) * (x2 - x1))
    return inside
