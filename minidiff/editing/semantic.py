"""Semantic Diffusion Guidance (Liu et al. 2023, arXiv 2112.05744): towards a text, towards the
content, the structure or the style of a picture, or towards several of them at once.

Each is a log_prob(x, level) -> (B,), as `guidance.classifier` wants it, made of an encoder of noisy
images that arrives as an argument: encoder(x, level) -> (embedding (B,D), maps [(B,C,h,w), ...]).

encoder = clip.noisy.load("shapes")
wanted = semantic.total((1e3, semantic.text(encoder, e)), (20, semantic.style(encoder, picture)))
images = semantic.guide(model.denoiser(), model.noise(8, g), model.schedule.path(50), wanted)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.condition import for_batch
from minidiff.denoiser import Denoiser
from minidiff.editing.checks import check_image, check_weight
from minidiff.guidance import clamp, classifier
from minidiff.noise import Randomness, per_image, randn
from minidiff.samplers import Step, ddpm_step, sample
from minidiff.schedule import NoiseLevel, add_noise

LogProb = Callable[[Tensor, NoiseLevel], Tensor]
Encoder = Callable[[Tensor, NoiseLevel], tuple[Tensor, Sequence[Tensor]]]


def guide(
    denoise: Denoiser,
    x: Tensor,
    path: Sequence[NoiseLevel],
    log_prob: LogProb,
    scale: float = 1.0,
    *,
    step: Step = ddpm_step,
    generator: Randomness = None,
    progress: bool = False,
) -> Tensor:
    """Sample from noise x (B,3,H,W) under guidance: mean += variance * gradient (algorithm 1).

    Predictions are clamped to [-1, 1]. With scale 0 it is plain sampling, bit for bit. ValueError
    for a scale that is not finite, and for a log_prob that is not one number an image.
    """
    check_image(x, "noise")
    guided = clamp(classifier(denoise, log_prob, scale))
    return sample(step, guided, x, path, generator=generator, progress=progress)


def total(*weighted: tuple[float, LogProb]) -> LogProb:
    """The weighted sum of several aims (equation 13)."""
    if not weighted:
        raise ValueError("expected at least one aim, as (weight, log_prob)")
    for weight, _ in weighted:
        check_weight("weight", weight)

    def log_prob(x: Tensor, level: NoiseLevel) -> Tensor:
        return sum(weight * aim(x, level) for weight, aim in weighted)

    return log_prob


def text(encoder: Encoder, wanted: Tensor) -> LogProb:
    """The cosine with the embedding (1 or B, D) of a text (equation 6)."""

    def log_prob(x: Tensor, level: NoiseLevel) -> Tensor:
        return F.cosine_similarity(encoder(x, level)[0], for_batch(wanted, len(x)))

    return log_prob


def content(encoder: Encoder, picture: Tensor, generator: Randomness = None) -> LogProb:
    """The cosine of the embeddings of x_t and of the noised picture (equation 8).

    Here as below, the picture is (1 or B,3,H,W) in [-1, 1], and its noise is drawn once.
    """
    see = _noised(encoder, picture, generator)

    def log_prob(x: Tensor, level: NoiseLevel) -> Tensor:
        return F.cosine_similarity(encoder(x, level)[0], for_batch(see(level)[0], len(x)))

    return log_prob


def structure(encoder: Encoder, picture: Tensor, generator: Randomness = None) -> LogProb:
    """Less the mean squared difference of the maps, place by place (equation 9)."""
    return _of_maps(encoder, _noised(encoder, picture, generator), lambda maps: maps)


def style(encoder: Encoder, picture: Tensor, generator: Randomness = None) -> LogProb:
    """Less the mean squared difference of the maps' Gram matrices (equation 11)."""
    return _of_maps(encoder, _noised(encoder, picture, generator), gram)


def gram(maps: Tensor) -> Tensor:
    """Which channels (B,C,h,w) go together: (B,C,C), each image by itself, means over places."""
    flat = maps.flatten(2)  # (B,C,h*w)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def _of_maps(encoder: Encoder, see, summary: Callable[[Tensor], Tensor]) -> LogProb:
    def log_prob(x: Tensor, level: NoiseLevel) -> Tensor:
        losses = []
        for here, there in zip(encoder(x, level)[1], see(level)[1], strict=True):
            wanted = for_batch(summary(_exact(there)), len(x))
            losses.append((summary(_exact(here)) - wanted).square().flatten(1).mean(1))  # (B,)
        return -torch.stack(losses).sum(0)

    return log_prob


def _exact(maps: Tensor) -> Tensor:
    """In float32 at least: squares of bfloat16 maps are too coarse to be compared."""
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def _noised(encoder: Encoder, picture: Tensor, generator: Randomness):
    """level -> what the encoder sees of the picture at that noise."""
    check_image(picture, "picture")
    noise = randn(picture.shape, per_image(generator, len(picture)), like=picture)

    @torch.no_grad()
    def see(level: NoiseLevel) -> tuple[Tensor, Sequence[Tensor]]:
        return encoder(add_noise(picture, level, noise), level)

    return see
