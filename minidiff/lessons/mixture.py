"""Four Gaussians in the plane, whose denoiser has a closed form: every error is the sampler's own.

Points are handled as (B,2,1,1) images, in float64. There are two channels where images have three.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from minidiff.denoiser import Prediction
from minidiff.schedule import NoiseLevel

MEANS = torch.tensor([[1.0, 0.8], [-1.0, 0.9], [-0.7, -1.0], [0.9, -0.6]], dtype=torch.float64)
STD = 0.15  # of each Gaussian
WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def noise(n: int, generator: Generator) -> Tensor:
    """Standard normal points (n,2,1,1)."""
    return torch.randn(n, 2, 1, 1, generator=generator, dtype=torch.float64)


def points(n: int, generator: Generator) -> Tensor:
    """n draws of the mixture (n,2,1,1)."""
    modes = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    return MEANS[modes][:, :, None, None] + STD * noise(n, generator)


def log_shares(x: Tensor, level: NoiseLevel, weights: Tensor = WEIGHTS) -> Tensor:
    """log of how likely each Gaussian made x (B,2,1,1), but for what all share: (B,4)."""
    variance = level.alpha**2 * STD**2 + level.sigma**2
    away = x.flatten(1)[:, None] - level.alpha * MEANS  # (B,4,2)
    return weights.log() - away.square().sum(2) / (2 * variance)


def denoise(x: Tensor, level: NoiseLevel, weights: Tensor = WEIGHTS) -> Prediction:
    """The exact denoiser: the mean of x0 given x (B,2,1,1), and the eps that belongs to it.

    Given its Gaussian, x0 is normal; the Gaussians are weighted by how likely each one made x.
    Other `weights` are another mixture: those of a class, zero outside it.
    """
    flat = x.flatten(1)  # (B,2)
    variance = level.alpha**2 * STD**2 + level.sigma**2
    mean = log_shares(x, level, weights).softmax(1) @ MEANS  # (B,2)
    offset = (flat - level.alpha * mean) / variance
    x0, eps = mean + level.alpha * STD**2 * offset, level.sigma * offset
    return Prediction(x0[:, :, None, None], eps[:, :, None, None])


def within_std(x: Tensor) -> float:
    """Root mean square distance of points (B,2,1,1) to the nearest mean, a coordinate."""
    nearest = torch.cdist(x.flatten(1), MEANS).min(1).values  # (B,)
    return nearest.square().mean().div(2).sqrt().item()


def distance(x: Tensor, y: Tensor) -> float:
    """The median over the points (B,2,1,1) of |x - y|."""
    return (x - y).flatten(1).norm(dim=1).median().item()


def level_at(ratio: float) -> NoiseLevel:
    """The level with sigma / alpha = ratio. It has no t: exact denoisers need none."""
    return NoiseLevel(math.nan, 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio))
