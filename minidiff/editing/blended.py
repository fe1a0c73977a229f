"""Blended Diffusion: a local edit that a score asks for (Avrahami et al. 2022, arXiv 2111.14818).

A score is any differentiable function of images (B,3,H,W) -> (B,), larger where they fit better: a
CLIP score of augmented images, say. It sees the edited area alone, the rest is grey (0); with
`in_place` it sees the kept pixels, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minidiff.denoiser import Denoiser
from minidiff.editing.checks import check_image, check_mask, check_weight, last_part
from minidiff.editing.masks import paste
from minidiff.guidance import check_scores, guide_by_x0
from minidiff.noise import Randomness, per_image, randn
from minidiff.samplers import Step, ddpm_step, sample
from minidiff.schedule import NoiseLevel, add_noise

Score = Callable[[Tensor], Tensor]

RANGE = 0.05  # weight of leaving [-1, 1] against the score: the authors' 50 against 1000


def blended(
    denoise: Denoiser,
    image: Tensor,
    mask: Tensor,
    path: Sequence[NoiseLevel],
    score: Score,
    scale: float,
    *,
    strength: float = 0.75,
    step: Step = ddpm_step,
    generator: Randomness = None,
    progress: bool = False,
) -> Tensor:
    """Guide the edited area by the score, and blend the noised image in around it (algorithm 2).

    image (B,3,H,W) in [-1, 1], mask (B or 1,1,H,W), 1 = keep. The walk starts from the image at the
    last `strength` of the path's steps. Returns (B,3,H,W); the kept pixels are the image's bit for
    bit. With scale 0 this is SDEdit with a mask.

    Raises ValueError for a mask that does not fit the image, a strength outside (0, 1], a scale
    that is not finite, and a score that is not one number an image.
    """
    check_image(image)
    check_weight("scale", scale)
    generators = per_image(generator, len(image))
    edit = paste(image, mask, generators)
    guided = guide_by_x0(denoise, _of_edited(score, mask.to(image)), scale)
    part = last_part(path, strength)
    x = add_noise(image, part[0], randn(image.shape, generators, like=image))
    return sample(step, guided, x, part, edit=edit, generator=generators, progress=progress)


def background_loss(
    denoise: Denoiser,
    image: Tensor,
    mask: Tensor,
    path: Sequence[NoiseLevel],
    score: Score,
    scale: float,
    background: float,
    *,
    strength: float = 0.75,
    step: Step = ddpm_step,
    generator: Randomness = None,
    progress: bool = False,
) -> Tensor:
    """The earlier variant: nothing is blended, a loss holds the background (algorithm 1).

    `background` weighs the mean squared error of the kept pixels, which the authors average with
    LPIPS. It is a compromise that `blended` does not need: a small weight changes the whole image,
    a large one hinders the edit (1e4 is the authors', for 256 x 256 pixels; an image of few pixels
    takes less, or its values explode). Arguments and refusals are those of `blended`; the kept
    pixels come out similar, not equal.
    """
    check_image(image)
    check_mask(mask, image)
    check_weight("scale", scale)
    check_weight("background", background)
    keep, wanted = mask.to(image), _of_edited(score, mask.to(image))

    def log_prob(x0: Tensor) -> Tensor:
        error = ((x0 - image) * keep).square().flatten(1).mean(1)  # (B,)
        return scale * wanted(x0) - background * error

    generators = per_image(generator, len(image))
    part = last_part(path, strength)
    x = add_noise(image, part[0], randn(image.shape, generators, like=image))
    guided = guide_by_x0(denoise, log_prob, 1.0)
    return sample(step, guided, x, part, generator=generators, progress=progress)


def in_place(score: Score, image: Tensor, mask: Tensor) -> Score:
    """A score for `blended` that sees the edited area among the kept pixels of the image.

    Departs from the paper: on a plain background the grey's edge is a thing to see, too: a square.
    Better to exchange a thing, not to add one beside others, which hold CLIP's eye.
    """
    check_image(image)
    check_mask(mask, image)
    kept = image * mask.to(image)
    return lambda area: score(area + kept)


@torch.no_grad()
def rank(images: Tensor, mask: Tensor, score: Score) -> Tensor:
    """The order (B,) of several results (B,3,H,W) of one edit by their score, best first.

    The authors draw 64 and show the best: `images[rank(images, mask, score)[:5]]`.
    """
    check_image(images)
    check_mask(mask, images)
    scores = check_scores(score(images * (1 - mask.to(images))), images)
    return scores.argsort(descending=True, stable=True)


def _of_edited(score: Score, keep: Tensor) -> Score:
    """The score of the edited area, less a penalty for leaving the range of images."""

    def log_prob(x0: Tensor) -> Tensor:
        outside = (x0 - x0.clamp(-1, 1)).square().flatten(1).mean(1)  # (B,)
        return check_scores(score(x0 * (1 - keep)), x0) - RANGE * outside

    return log_prob
