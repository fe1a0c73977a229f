"""Interpolation: from image to image through their noises (DDIM, Song et al. 2021, section 5.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.denoiser import Denoiser
from minidiff.editing.checks import check_image, check_path
from minidiff.samplers import ddim_step, invert, sample
from minidiff.schedule import NoiseLevel


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """The point between two noises (B,3,H,W) along the great circle, each image by itself.

    (sin((1-w) a) first + sin(w a) second) / sin(a), with a the angle between them (appendix D.5).
    Halfway along the straight line the noise is shorter by the square root of 2, which no network
    has seen. Weight 0 is `first` and 1 is `second`, bit for bit.

    Raises ValueError for noises of different shapes, for opposite ones, which no single circle
    joins, and for a weight outside [0, 1].
    """
    _check_pair(first, second)
    if not 0 <= weight <= 1:
        raise ValueError(f"weight {weight} is out of range: expected 0 <= weight <= 1")
    a, b = (z.flatten(1).cpu().double() for z in (first, second))  # (B,D); mps has no float64
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))  # (B,)
    if not (cosine > -1 + 1e-9).all():
        raise ValueError("no great circle joins noises that are opposite, or zero")
    angle = cosine.clamp(max=1).acos()
    parallel = angle < 1e-6  # then the circle is a line, and sin(a) = 0 divides nothing

    def share(part: float) -> Tensor:
        arc = torch.where(parallel, part, (part * angle).sin() / angle.sin())
        return arc.to(first).reshape(-1, *[1] * (first.ndim - 1))  # (B,1,1,1)

    return share(1 - weight) * first + share(weight) * second


def interpolate(
    denoise: Denoiser,
    first: Tensor,
    second: Tensor,
    path: Sequence[NoiseLevel],
    weights: Sequence[float],
    *,
    progress: bool = False,
) -> Tensor:
    """From `first` to `second`, images (B,3,H,W) in [-1, 1], through the noises between theirs.

    Both are inverted up the path, and for each weight in [0, 1] the noise between is denoised down
    it: 2 + len(weights) times as many network calls as steps. Nothing is random. Use no guidance,
    else inversion leads not back to the images, weights 0 and 1. Returns (len(weights),B,3,H,W).

    Raises ValueError for images of different shapes and for a weight outside [0, 1].
    """
    for image, name in ((first, "first image"), (second, "second image")):
        check_image(image, name)
    check_path(path)
    _check_pair(first, second)
    a, b = (invert(denoise, image, path) for image in (first, second))
    noises = [slerp(a, b, weight) for weight in weights]
    return torch.stack([sample(ddim_step, denoise, z, path, progress=progress) for z in noises])


def _check_pair(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"expected two of the same shape, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
