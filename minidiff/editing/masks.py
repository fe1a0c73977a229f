"""Masks (1 or B, 1, H, W) of zeros and ones, 1 = keep: makers, and pasting by them.

The makers draw square masks on the CPU; the editing functions move them to the image's device.
`1 - mask` swaps what is kept and what is edited.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from minidiff.editing.checks import check_count, check_mask
from minidiff.noise import Randomness, per_image, randn
from minidiff.schedule import NoiseLevel, add_noise


def paste(
    image: Tensor, mask: Tensor, generator: Randomness = None
) -> Callable[[Tensor, NoiseLevel], Tensor]:
    """The edit that puts the image (B,3,H,W) back where the mask keeps it, noised to x's level.

    At the clean level the kept pixels are the image's bit for bit. ValueError for a bad mask.
    """
    check_mask(mask, image)
    keep, generators = mask.to(image.device).bool(), per_image(generator, len(image))

    def edit(x: Tensor, level: NoiseLevel) -> Tensor:
        if level.sigma == 0:
            return torch.where(keep, image, x)
        noise = randn(image.shape, generators, like=image)
        return torch.where(keep, add_noise(image, level, noise), x)

    return edit


def box(
    size: int, top: float = 0.25, left: float = 0.25, bottom: float = 0.75, right: float = 0.75
) -> Tensor:
    """Keeps all but a box, whose edges are shares of the side; the central quarter by default."""
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise ValueError(
            f"box {top, left, bottom, right}: expected 0 <= top < bottom <= 1, left to right alike"
        )
    mask = _all(size)
    rows, columns = (
        slice(round(a * size), round(b * size)) for a, b in ((top, bottom), (left, right))
    )
    mask[..., rows, columns] = 0
    return mask


def half(size: int) -> Tensor:
    """Keeps the left half."""
    return box(size, 0, 0.5, 1, 1)


def lines(size: int) -> Tensor:
    """Keeps every other row."""
    mask = _all(size)
    mask[..., 1::2, :] = 0
    return mask


def every_other_pixel(size: int) -> Tensor:
    """Keeps every other pixel of every other row: a quarter, for super-resolution by two."""
    mask = torch.zeros_like(_all(size))
    mask[..., ::2, ::2] = 1
    return mask


def irregular(size: int, n: int = 1, *, generator: Randomness = None) -> Tensor:
    """Keeps all but a few broad random strokes, as from an eraser: (n,1,size,size). The hole takes
    a tenth to four tenths, a quarter on average.

    Mask i of a seed is the same whatever n.
    """
    check_count("n", n)
    generators = per_image(generator, n) or [None] * n
    return torch.cat([_all(size) * ~_scribble(size, g)[None, None] for g in generators])


def grow(mask: Tensor, pixels: int) -> Tensor:
    """The mask with its hole enlarged by so many pixels on every side."""
    return 1 - F.max_pool2d(1 - mask.float(), 2 * pixels + 1, stride=1, padding=pixels)


def _all(size: int) -> Tensor:
    check_count("size", size)
    return torch.ones(1, 1, size, size)


def _scribble(size: int, generator: Generator | None) -> Tensor:
    """Where a pen of random width goes on two random walks of four strokes: (size,size) bool."""
    device = generator.device if generator is not None else None
    luck = torch.rand(2, 11, generator=generator, device=device).cpu()
    axis = (torch.arange(size) + 0.5) / size
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)  # (size,size,2)
    inside = torch.zeros(size, size, dtype=torch.bool)
    for walk in luck:
        point, width = 0.2 + 0.6 * walk[:2], 0.05 + 0.05 * walk[2]
        for turn, length in walk[3:].reshape(4, 2):
            angle = 2 * math.pi * turn
            move = (0.15 + 0.25 * length) * torch.stack([angle.cos(), angle.sin()])
            end = (point + move).clamp(0, 1)
            inside |= _to_segment(pixels, point, end) <= width
            point = end
    return inside


def _to_segment(pixels: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Distances (H,W) of pixels (H,W,2) to the segment between two points (2,)."""
    along = end - start
    part = ((pixels - start) @ along / along.square().sum().clamp(min=1e-12)).clamp(0, 1)  # (H,W)
    return (pixels - start - part[..., None] * along).norm(dim=-1)
