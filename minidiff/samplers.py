"""Samplers: a step between two noise levels, the loop along a path, and inversion.

A step is `(denoise, x, here, there, past=(), *, generator=None) -> (x_there, Prediction)`. Nothing
is hidden between steps: `past` lists the (level, Prediction) pairs of the steps before, latest
last. Every step is right for every (alpha, sigma): variance-preserving, variance-exploding, flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from minidiff.denoiser import Denoiser, Prediction
from minidiff.noise import Randomness, per_image, randn
from minidiff.schedule import CleanLevel, NoiseLevel, add_noise, climbs, transition

Past = Sequence[tuple[NoiseLevel, Prediction]]
Edit = Callable[[Tensor, NoiseLevel], Tensor]  # edit(x, level) -> x
Climb = Callable[[Tensor, NoiseLevel, NoiseLevel, Tensor], Tensor]  # (x, here, there, noise) -> x

REMEMBERED = 3  # steps that `past` holds: a linear multistep method of order 4 needs no more


class Step(Protocol):
    """One move from `here` to `there`, which is less noisy. A step that draws noise draws it from
    `generator`. Its attribute `spacing`, if it has one, names the path that suits it."""

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        here: NoiseLevel,
        there: NoiseLevel,
        past: Past = (),
        *,
        generator: Randomness = None,
    ) -> tuple[Tensor, Prediction]: ...


class Frame(NamedTuple):
    """An image x at its level; the prediction it was made from, and the level `before` the move,
    where that prediction was made. A climb makes no prediction: it is then None."""

    x: Tensor
    level: NoiseLevel
    prediction: Prediction | None
    before: NoiseLevel


# ----------------------------------------------------------------------------------------- steps


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
    """Ancestral sampling (Ho et al. 2020, equations 6, 7 and algorithm 2); levels may be skipped.

    "small" is the variance of q(x_there | x_here, x0), "large" that of q(x_here | x_there), DDPM's
    beta. No noise is added on the move to the clean image.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"unknown variance {variance!r}: expected small or large")
    prediction = denoise(x, here)
    if there.sigma == 0:
        return prediction.x0, prediction
    ratio, beta = transition(there, here)
    mean = there.alpha * beta / here.sigma**2 * prediction.x0
    mean = mean + ratio * there.sigma**2 / here.sigma**2 * x
    std = math.sqrt(beta) * (there.sigma / here.sigma if variance == "small" else 1)
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
    """DDIM (Song et al. 2021, equations 12 and 16): eta 0 is deterministic, eta 1 is DDPM.

    On a flow schedule with eta 0 it is Euler's step along the velocity eps - x0.
    """
    prediction = denoise(x, here)
    if eta == 0:
        return add_noise(prediction.x0, there, prediction.eps), prediction
    _, beta = transition(there, here)
    std = eta * there.sigma / here.sigma * math.sqrt(beta)
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

    In y = x/alpha and s = sigma/alpha the slope dy/ds is eps itself. Two network calls; one, which
    is DDIM, on the move to the clean image and from pure noise (alpha = 0), where s is infinite.
    Best on the "log_snr" path: at low alpha a long step in s magnifies every error of eps.
    """
    prediction = denoise(x, here)
    if here.alpha == 0:
        return add_noise(prediction.x0, there, prediction.eps), prediction
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
    if (
        past and climbs(here, past[-1][0]) and climbs(there, here)
    ):  # a level given twice teaches nothing
        before, earlier = past[-1]
        r = (_log_snr(here) - _log_snr(before)) / h
        x0 = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * earlier.x0
    return there.sigma / here.sigma * x - there.alpha * math.expm1(-h) * x0, prediction


def _log_snr(level: NoiseLevel) -> float:
    return math.log(level.alpha / level.sigma) if level.alpha > 0 else -math.inf


# The other steps are at their best on the default path, "trailing".
heun_step.spacing = dpmpp_2m_step.spacing = "log_snr"


def spacing_for(step: Step) -> str:
    """The spacing of a path that suits a step: its attribute `spacing`, else "trailing"."""
    while isinstance(step, partial):
        step = step.func
    return getattr(step, "spacing", "trailing")


# ------------------------------------------------------------------------------------------ loops


def trajectory(
    step: Step,
    denoise: Denoiser,
    x: Tensor,
    path: Sequence[NoiseLevel],
    *,
    edit: Edit | None = None,
    climb: Climb | None = None,
    generator: Randomness = None,
) -> Iterator[Frame]:
    """Walk x (B,C,H,W) along `path`, a Frame a move.

    `edit(x, level) -> x` follows every move; `climb(x, here, there, noise) -> x`, such as
    `renoise`, replaces the step where the path goes up (ValueError if it does and there is no
    climb). Its noise comes from `generator`, as that of the steps. Gradients flow through.
    """
    if len(path) < 2:
        raise ValueError(f"a path of {len(path)} levels goes nowhere: expected at least 2")
    generator = per_image(generator, len(x))
    past: Past = ()  # since the last climb
    for here, there in zip(path[:-1], path[1:], strict=True):
        prediction = None
        if climbs(here, there):
            if climb is None:
                raise ValueError(f"the path climbs from t = {here.t} to {there.t}: pass climb=")
            x, past = climb(x, here, there, randn(x.shape, generator, like=x)), ()
        else:
            x, prediction = step(denoise, x, here, there, past, generator=generator)
            past = (*past, (here, prediction))[-REMEMBERED:]
        if edit is not None:
            x = edit(x, there)
        yield Frame(x, there, prediction, here)


@torch.no_grad()
def sample(
    step: Step,
    denoise: Denoiser,
    x: Tensor,
    path: Sequence[NoiseLevel],
    *,
    edit: Edit | None = None,
    climb: Climb | None = None,
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
    steps, with eps evaluated at the level x is on. The clean image contains no noise: its eps is
    read at the schedule's lowest noisy level, t = 1, or if the path is not of a schedule, at the
    path's own. Use no guidance and no clamping. ValueError unless the path ends at the clean image.
    """
    up = sorted(path, key=lambda level: level.sigma)
    if len(up) < 2 or up[0].sigma != 0:
        raise ValueError("inversion starts at the clean image: expected a path that ends at t = 0")
    lowest = up[0].lowest if isinstance(up[0], CleanLevel) else up[1]
    x = x0
    for here, there in zip(up[:-1], up[1:], strict=True):
        if here.sigma == 0:  # the clean image is its own x0
            prediction = Prediction(x, denoise(x, lowest).eps)
        else:
            prediction = denoise(x, here)
        x = add_noise(prediction.x0, there, prediction.eps)
    return x
