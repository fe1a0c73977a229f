"""CLIP guidance: unconditional diffusion that a text or a picture draws to itself (Crowson 2021;
Nichol et al. 2022, arXiv 2112.10741, section 2.4).

The CLIP sees the predicted clean image, through many random cut-outs: the gradient of a single
view changes details that mean nothing to the eye. It arrives as a function `encode`: images
(B,3,H,W) in [-1, 1] -> embeddings (B,D), which `minidiff.clip.use.encoder` makes of any CLIP.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.condition import for_batch
from minidiff.denoiser import Denoiser, Prediction
from minidiff.editing.checks import check_count, check_image, check_weight
from minidiff.guidance import guide_by_x0
from minidiff.noise import Randomness, per_image, randn
from minidiff.schedule import NoiseLevel

Encode = Callable[[Tensor], Tensor]

BEND = 0.05  # of the affine map of a cut-out: how much its axes turn, slant and stretch
STRAY = 0.1  # of half the side: how far a cut-out may reach over the rim


def cutouts(
    images: Tensor, number: int, generator: Randomness = None, *, smallest: float = 0.8
) -> Tensor:
    """Random views (number*B,3,H,W) of images (B,3,H,W), one of each image after the other.

    A view is a parallelogram whose sides are `smallest` to 1 of the image's, turned and slanted a
    little, anywhere in the image; beyond the rim the image is reflected. Every view of every image
    is drawn by itself: torchvision's random crops draw one place for the whole batch. With
    `smallest` 0.8 at least three quarters of each side are seen: in small pictures the object would
    be cut off by less.
    """
    check_image(images)
    check_count("number", number)
    if not 0 < smallest <= 1:
        raise ValueError(f"smallest = {smallest} is out of range: expected 0 < smallest <= 1")
    many = images.to(torch.promote_types(images.dtype, torch.float32))
    luck = torch.special.ndtr(randn((len(images), number, 7), generator, like=many))
    luck = luck.transpose(0, 1).flatten(0, 1)  # (number*B,7), uniform in 0..1
    side = smallest + (1 - smallest) * luck[:, 0]
    bend = BEND * (2 * luck[:, 1:5] - 1).unflatten(1, (2, 2))
    axes = side[:, None, None] * (torch.eye(2).to(bend) + bend)  # (number*B,2,2)
    corner = (1 + STRAY - side)[:, None, None] * (2 * luck[:, 5:, None] - 1)  # (number*B,2,1)
    with torch.autocast(images.device.type, enabled=False):  # a grid needs its digits
        many = many.repeat(number, 1, 1, 1)
        grid = F.affine_grid(torch.cat([axes, corner], dim=2), many.shape, align_corners=False)
        views = F.grid_sample(many, grid, padding_mode="reflection", align_corners=False)
    return views.to(images)


def spherical_distance(x: Tensor, y: Tensor) -> Tensor:
    """Half the square of the angle between x and y (...,D): 2 asin(|u - w| / 2)^2 of their unit
    vectors u and w. In the atan2 form, whose gradient is finite for opposite vectors, too."""
    u, w = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    half = torch.atan2((u - w).norm(dim=-1), (u + w).norm(dim=-1))  # of the angle
    return 2 * half.square()


def clip_score(
    encode: Encode,
    target: Tensor,
    *,
    cuts: int = 16,
    smallest: float = 0.8,
    generator: Randomness = None,
) -> Callable[[Tensor], Tensor]:
    """A score of images (B,3,H,W) -> (B,) for `guide_by_x0` and `blended`: minus the mean spherical
    distance of `cuts` random cut-outs to the target.

    target: embeddings (1 or B,D) of what is wanted, of texts or of images. Every call draws new
    cut-outs from `generator`.
    """
    if target.ndim != 2:
        raise ValueError(f"the target has shape {tuple(target.shape)}: expected (1 or B, D)")
    check_count("cuts", cuts)

    def score(images: Tensor) -> Tensor:
        own = per_image(generator, len(images))
        seen = encode(cutouts(images, cuts, own, smallest=smallest))  # (cuts*B,D)
        seen = seen.unflatten(0, (cuts, -1))
        return -spherical_distance(seen, for_batch(target, len(images))).mean(0)

    return score


def clip_guided(
    denoise: Denoiser,
    encode: Encode,
    target: Tensor,
    scale: float,
    *,
    cuts: int = 16,
    smallest: float = 0.8,
    through_network: bool = True,
    generator: Randomness = None,
) -> Denoiser:
    """eps -= scale * sigma * gradient of `clip_score` of the predicted x0.

    `through_network` takes the gradient with respect to x_t. The shortcut takes it with respect to
    x0: it is x_t's without the network's derivative, times alpha, for 1/alpha, 157 at the start,
    would drown the image. Cheaper, and cruder: what the network would make of a change is not
    asked. Scale 0 is `denoise` itself.

    Raises ValueError for a scale that is not finite, and for targets that are not one, or one an
    image.
    """
    check_weight("scale", scale)
    if scale == 0:
        return denoise
    score = clip_score(encode, target, cuts=cuts, smallest=smallest, generator=generator)
    if through_network:
        return guide_by_x0(denoise, score, scale)

    def shortcut(x: Tensor, level: NoiseLevel) -> Prediction:
        return guide_by_x0(denoise, score, scale * level.alpha, through_network=False)(x, level)

    return shortcut
