"""Samplers: a step between two noise levels, and the loop along a path.

A step is `(denoise, x, here, there, past=(), *, generator=None) -> (x_there, Prediction)`. Nothing
is hidden between steps: `past` lists the (level, Prediction) of the steps before, latest last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minidiff.denoiser import Denoiser, Prediction
from minidiff.noise import Randomness, per_image, randn
from minidiff.schedule import NoiseLevel, add_noise, renoise

Past = Sequence[tuple[NoiseLevel, Prediction]]
Step = Callable[..., tuple[Tensor, Prediction]]


class Frame(NamedTuple):
    """An image at its level, and the prediction it was made from (None for a climb)."""

    x: Tensor
    level: NoiseLevel
    prediction: Prediction | None


def ddpm_step(
    denoise: Denoiser,
    x: Tensor,
    here: NoiseLevel,
    there: NoiseLevel,
    past: Past = (),
    *,
    variance: str = "small",
    generator: Randomness = None,
) -> tuple[Tensor, Prediction]:
    """Ancestral sampling (Ho et al. 2020, equations 6, 7 and algorithm 2), levels may be skipped.

    "small" is the variance of q(x_there | x_here, x0), "large" is beta itself. No noise is added
    on the move to the clean image.
    """
    prediction = denoise(x, here)
    if there.sigma == 0:
        return prediction.x0, prediction
    ratio = here.alpha / there.alpha  # sqrt(1 - beta)
    beta = 1 - ratio**2
    mean = there.alpha * beta / here.sigma**2 * prediction.x0
    mean = mean + ratio * there.sigma**2 / here.sigma**2 * x
    if variance == "small":
        std = math.sqrt(beta) * there.sigma / here.sigma
    elif variance == "large":
        std = math.sqrt(beta)
    else:
        raise ValueError(f"unknown variance {variance!r}: expected small or large")
    return mean + std * randn(x.shape, generator, like=x), prediction


def ddim_step(
    denoise: Denoiser,
    x: Tensor,
    here: NoiseLevel,
    there: NoiseLevel,
    past: Past = (),
    *,
    eta: float = 0.0,
    generator: Randomness = None,
) -> tuple[Tensor, Prediction]:
    """DDIM (Song et al. 2021, equations 12 and 16): eta 0 is deterministic, eta 1 is DDPM."""
    prediction = denoise(x, here)
    if eta == 0:
        return add_noise(prediction.x0, there, prediction.eps), prediction
    std = eta * there.sigma / here.sigma * math.sqrt(1 - (here.alpha / there.alpha) ** 2)
    if std > there.sigma:
        raise ValueError(f"eta = {eta} adds more noise than level t = {there.t} holds")
    kept = math.sqrt(there.sigma**2 - std**2)
    x = there.alpha * prediction.x0 + kept * prediction.eps
    return (x if std == 0 else x + std * randn(x.shape, generator, like=x)), prediction


def heun_step(
    denoise: Denoiser,
    x: Tensor,
    here: NoiseLevel,
    there: NoiseLevel,
    past: Past = (),
    *,
    generator: Randomness = None,
) -> tuple[Tensor, Prediction]:
    """EDM's second-order step (Karras et al. 2022, algorithm 1 without churn).

    In y = x/alpha and s = sigma/alpha the slope dy/ds is eps itself. Two network calls, one on the
    move to the clean image.
    """
    prediction = denoise(x, here)
    y, move = x / here.alpha, there.sigma / there.alpha - here.sigma / here.alpha
    euler = there.alpha * (y + move * prediction.eps)
    if there.sigma == 0:
        return euler, prediction
    slope = (prediction.eps + denoise(euler, there).eps) / 2
    return there.alpha * (y + move * slope), prediction


def dpmpp_2m_step(
    denoise: Denoiser,
    x: Tensor,
    here: NoiseLevel,
    there: NoiseLevel,
    past: Past = (),
    *,
    generator: Randomness = None,
) -> tuple[Tensor, Prediction]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order from the step before, one call.

    First order, which is DDIM, on the first step and on the move to the clean image. Best on
    the "log_snr" path.
    """
    prediction = denoise(x, here)
    if there.sigma == 0:
        return prediction.x0, prediction
    x0, h = prediction.x0, _log_snr(there) - _log_snr(here)
    if past and there.sigma < here.sigma < past[-1][0].sigma:  # a level given twice teaches nothing
        before, earlier = past[-1]
        r = (_log_snr(here) - _log_snr(before)) / h
        x0 = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * earlier.x0
    return there.sigma / here.sigma * x - there.alpha * math.expm1(-h) * x0, prediction


def _log_snr(level: NoiseLevel) -> float:
    return math.log(level.alpha / level.sigma)


def trajectory(
    step: Step,
    denoise: Denoiser,
    x: Tensor,
    path: Sequence[NoiseLevel],
    *,
    edit: Callable[[Tensor, NoiseLevel], Tensor] | None = None,
    climb: Callable[[Tensor, NoiseLevel, NoiseLevel], Tensor] | None = None,
    generator: Randomness = None,
) -> Iterator[Frame]:
    """Walk x (B,3,H,W) along `path`, a Frame a move.

    `edit(x, level) -> x` follows every move; `climb(x, here, there) -> x` replaces the step where
    the path goes up (ValueError if it does and there is no climb); `renoise` itself, given as
    climb, draws from `generator` as the steps do. Gradients flow through.
    """
    if len(path) < 2:
        raise ValueError(f"a path of {len(path)} levels goes nowhere: expected at least 2")
    generator = per_image(generator, len(x))
    past: Past = ()
    for here, there in zip(path[:-1], path[1:], strict=True):
        prediction = None
        if there.sigma > here.sigma:
            if climb is None:
                raise ValueError(f"the path climbs from t = {here.t} to {there.t}: pass climb=")
            # renoise is given its noise from here: a seed then settles the climbs too
            noise = (randn(x.shape, generator, like=x),) if climb is renoise else ()
            x, past = climb(x, here, there, *noise), ()
        else:
            x, prediction = step(denoise, x, here, there, past, generator=generator)
            past = ((here, prediction),)
        if edit is not None:
            x = edit(x, there)
        yield Frame(x, there, prediction)


@torch.no_grad()
def sample(
    step: Step,
    denoise: Denoiser,
    x: Tensor,
    path: Sequence[NoiseLevel],
    *,
    edit: Callable[[Tensor, NoiseLevel], Tensor] | None = None,
    climb: Callable[[Tensor, NoiseLevel, NoiseLevel], Tensor] | None = None,
    generator: Randomness = None,
    progress: bool = False,
) -> Tensor:
    """The last x of a trajectory, without gradients; `progress` shows a bar."""
    frames = trajectory(step, denoise, x, path, edit=edit, climb=climb, generator=generator)
    if progress:
        from tqdm.auto import tqdm

        frames = tqdm(frames, total=len(path) - 1, desc="sampling", unit="step")
    for frame in frames:
        x = frame.x
    return x


@torch.no_grad()
def invert(denoise: Denoiser, x0: Tensor, path: Sequence[NoiseLevel]) -> Tensor:
    """DDIM the other way (Song et al. 2021, section 5.4): from the image to its noise.

    `path` is the one that sampling goes down; inversion climbs exactly its levels, S calls for S
    steps, with eps evaluated at the level x is on. Use no guidance and no clamping.
    """
    up = sorted(path, key=lambda level: level.sigma)
    if len(up) < 2 or up[0].sigma != 0:
        raise ValueError("inversion starts at the clean image: expected a path that ends at t = 0")
    x = x0
    for here, there in zip(up[:-1], up[1:], strict=True):
        if here.sigma == 0:
            # the clean image is its own x0; its eps is read at DDPM's lowest noise, t = 1
            prediction = Prediction(x, denoise(x, NoiseLevel(1, math.sqrt(1 - 1e-4), 0.01)).eps)
        else:
            prediction = denoise(x, here)
        x = add_noise(prediction.x0, there, prediction.eps)
    return x
