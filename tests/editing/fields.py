"""Smooth random images, (B,3,8,8) Gaussian fields, whose denoiser and conditionals are exact."""

import torch

from minidiff.denoiser import Prediction

SIDE, STD = 8, 0.4
_place = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
COVARIANCE = STD**2 * torch.exp(-torch.cdist(_place, _place) / 6)  # (64,64)
VALUES, VECTORS = torch.linalg.eigh(COVARIANCE)


def draw(n):
    """n fields (n,3,8,8), their channels independent."""
    return (torch.randn(n, 3, SIDE**2).double() @ (VECTORS * VALUES.sqrt()).T).unflatten(
        2, (SIDE, SIDE)
    )


def denoise(x, level):
    """The exact denoiser, in the basis that makes the pixels independent."""
    values, vectors = VALUES.to(x), VECTORS.to(x)
    along = x.flatten(2) @ vectors  # (B,3,64)
    gain = level.alpha * values / (level.alpha**2 * values + level.sigma**2)
    x0 = (along * gain @ vectors.T).reshape_as(x)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def expected(image, mask):
    """The fields' mean where the mask (1,1,8,8) keeps nothing, given the image where it does."""
    known = mask.flatten().bool()
    gain = COVARIANCE[~known][:, known] @ torch.linalg.inv(COVARIANCE[known][:, known])
    mean = image.flatten(2).clone()
    mean[..., ~known] = mean[..., known] @ gain.T
    return mean.reshape_as(image)


def seam(x, mask):
    """Root mean square step between neighbours of which the mask keeps one."""
    right = (x[..., 1:] - x[..., :-1])[..., (mask[..., 1:] != mask[..., :-1])[0, 0]]
    down = (x[..., 1:, :] - x[..., :-1, :])[..., (mask[..., 1:, :] != mask[..., :-1, :])[0, 0]]
    return torch.cat([right, down], dim=2).square().mean().sqrt().item()
