"""Lesson 04, sampling: checks of its exercises, and its pictures of points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor

from minidiff import plot
from minidiff.denoiser import Prediction
from minidiff.lessons import exercise, expect, require
from minidiff.schedule import NoiseLevel, NoiseSchedule

SCHEDULE = NoiseSchedule.linear()


def _normal(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)


# ----------------------------------------------------------------------------------------- checks


@exercise
def check_ddpm_step(answer: Callable) -> str:
    """answer(x, x0, here, there, noise) -> x_there, with the variance of the posterior."""
    x, x0, noise = _normal(1), _normal(2).clamp(-1, 1), _normal(3)
    lowest, clean = SCHEDULE.level(40), SCHEDULE.level(0)
    require(
        torch.allclose(*(answer(x, x0, lowest, clean, z) for z in (noise, -noise))),
        "the move to the clean image still adds noise, and no step comes after it to take the "
        "noise away: there.sigma is 0, so the deviation must be 0 too",
    )
    here, there = SCHEDULE.level(700), SCHEDULE.level(500)
    ratio, step = here.alpha / there.alpha, SCHEDULE.level(499)
    beta = 1 - ratio**2
    mean = there.alpha * beta / here.sigma**2 * x0 + ratio * there.sigma**2 / here.sigma**2 * x
    std = math.sqrt(beta) * there.sigma / here.sigma
    wrong_beta = 1 - (there.alpha / step.alpha) ** 2
    expect(
        answer(x, x0, here, there, noise),
        mean + std * noise,
        "compare each coefficient with the equation",
        known=[
            (mean + std**2 * noise, "noise is scaled by a deviation: the square root is missing"),
            (mean, "that is the mean alone: without noise all samples run together"),
            (
                mean + math.sqrt(beta) * noise,
                "the deviation is sqrt(beta), the large one: multiply it by there.sigma/here.sigma",
            ),
            (
                mean - there.alpha * beta / here.sigma**2 * (1 - there.alpha) * x0 + std * noise,
                "x0 is scaled by alpha_bar: the square root is missing (there.alpha, not its "
                "square)",
            ),
            (_posterior(x, x0, here, there, noise, wrong_beta), _ONE_STEP),
        ],
    )
    return "the posterior of DDPM, equations 6 and 7"


_ONE_STEP = (
    "beta is that of a single level; between levels that are skipped it is "
    "1 - (here.alpha/there.alpha)**2"
)


def _posterior(x, x0, here, there, noise, beta):
    mean = there.alpha * beta / here.sigma**2 * x0
    mean = mean + math.sqrt(1 - beta) * there.sigma**2 / here.sigma**2 * x
    return mean + math.sqrt(beta) * there.sigma / here.sigma * noise


@exercise
def check_ddim(answer: Callable) -> str:
    """answer(denoise, x, schedule, steps) -> x at t = 0: trailing levels, x0 clipped, eta 0."""
    x, steps, called = 2 * _normal(4), 7, []

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        called.append(level.t)
        x0 = torch.tanh(x / 2) * (0.5 + level.sigma)  # beyond [-1, 1] at high noise
        return Prediction(x0, (x - level.alpha * x0) / max(level.sigma, 1e-9))

    found = answer(denoise, x, SCHEDULE, steps)
    path = SCHEDULE.path(steps)
    _judge_levels(list(called), [level.t for level in path], steps)
    expect(
        found,
        _walk(denoise, x, path, _ddim),
        "write down x0, eps and the move of the first step, and compare them with the equation",
        known=[(_walk(denoise, x, path, move), sentence) for move, sentence in _DDIM_SLIPS],
    )
    return "a whole sampler: levels, clipping, and the deterministic move"


def _judge_levels(called: list, levels: list, steps: int) -> None:
    """Wrong unless a sampler asked the denoiser at `levels`, but for the last, the clean one."""
    T, stride = SCHEDULE.T, SCHEDULE.T // steps
    if called == levels[:-1]:
        return
    asked = f"the denoiser was called at t = {', '.join(map(str, called)) or 'no level'}"
    require(
        called != levels[1:],
        f"{asked}: the level to ask about is the one that x is on (here), not the one it moves to",
    )
    even = [T - i * stride for i in range(len(called))]
    require(
        not called or called != even,
        f"{asked}: prev = t - T//S does not end at 0 unless S divides T; take round(T - i*T/S)",
    )
    require(
        called != [t - 1 for t in levels[:-1]],
        f"{asked}: levels are counted from 1 to T here, so the first is T, not T - 1",
    )
    require(
        called != levels[-2::-1],
        f"{asked}: the path goes down, from T to 0",
    )
    require(
        len(called) == steps,
        f"the denoiser was called {len(called)} times: {steps} steps are {steps} calls, the last "
        "of which moves to t = 0",
    )
    require(False, f"{asked}: expected {', '.join(map(str, levels[:-1]))}")


def _walk(denoise, x, path, move):
    for here, there in pairwise(path):
        x = move(x, denoise(x, here), here, there)
    return x


def _clipped(x, prediction, here):
    x0 = prediction.x0.clamp(-1, 1)
    return x0, (x - here.alpha * x0) / here.sigma


def _ddim(x, prediction, here, there):
    x0, eps = _clipped(x, prediction, here)
    return there.alpha * x0 + there.sigma * eps


def _unclipped(x, prediction, here, there):
    return there.alpha * prediction.x0 + there.sigma * prediction.eps


def _stale_eps(x, prediction, here, there):
    return there.alpha * prediction.x0.clamp(-1, 1) + there.sigma * prediction.eps


def _without_roots(x, prediction, here, there):
    x0, eps = _clipped(x, prediction, here)
    return there.alpha**2 * x0 + there.sigma**2 * eps


def _ddpm_mean(x, prediction, here, there):
    x0, _ = _clipped(x, prediction, here)
    return _posterior(x, x0, here, there, 0, 1 - (here.alpha / there.alpha) ** 2)


def _upward(x, prediction, here, there):
    x0, eps = _clipped(x, prediction, here)
    return there.alpha * x0 - there.sigma * eps


_DDIM_SLIPS = (
    (_unclipped, "the clipping is forgotten: cut x0 to [-1, 1] and take eps from the cut x0"),
    (
        _stale_eps,
        "x0 was cut to [-1, 1] but eps is still that of the old one: "
        "eps = (x - here.alpha*x0)/here.sigma",
    ),
    (_without_roots, "x0 and eps are scaled by alpha_bar and 1 - alpha_bar: the roots are missing"),
    (
        _ddpm_mean,
        "that is the mean of DDPM: its coefficient of eps is smaller, because noise comes on top; "
        "DDIM adds none and keeps there.sigma of eps",
    ),
    (_upward, "eps has the wrong sign: x_there = there.alpha*x0 + there.sigma*eps"),
)


@exercise
def check_2m(answer: Callable) -> str:
    """answer(x0, x0_before, h, h_before) -> D, DPM-Solver++(2M)'s extrapolated x0."""
    x0, before, h, h_before = _normal(5), _normal(6), 0.4, 0.6
    r = h_before / h

    def bent(share: float) -> Tensor:
        return x0 + share * (x0 - before)

    expect(
        answer(x0, before, h, h_before),
        bent(1 / (2 * r)),
        "D = (1 + 1/(2r)) x0 - 1/(2r) x0_before with r = h_before/h",
        known=[
            (bent(1 / r), "1/r stands where 1/(2r) belongs: half a step ahead is enough"),
            (
                bent(-1 / (2 * r)),
                "the sign is flipped: D goes on from x0_before through x0, not back",
            ),
            (bent(r / 2), "r is upside down: it is h_before/h"),
            (x0, "that is DDIM: the prediction before is not used"),
            (bent(1 / (2 * r)) / (1 + 1 / (2 * r)), "the factor 1 + 1/(2r) of x0 is missing"),
        ],
    )
    return "second order from the call before, for no call more"


# ---------------------------------------------------------------------------------------- pictures


def sheet(table: Sequence, **options) -> Image.Image:
    """`plot.rows` at half its size and in 128 colours, small enough to be stored in a notebook.

    Values outside [-1, 1] are clipped, so that noise can be shown.
    """
    return _small(plot.rows([(name, x.clamp(-1, 1)) for name, x in table], **options))


def strip(frames: Iterable, **options) -> Image.Image:
    """`plot.trajectory`, as small as a `sheet`."""
    return _small(plot.trajectory(frames, **options))


def _small(picture: Image.Image) -> Image.Image:
    return picture.reduce(2).quantize(128, kmeans=1, dither=Image.Dither.NONE)


def scatter(panels: Mapping[str, Tensor]) -> plt.Figure:
    """Clouds of points (B,2,1,1) beside one another on the same axes, each under its title."""
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 2.7))
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        axis.scatter(*points.flatten(1)[:1000].T, s=3, alpha=0.4, linewidths=0)
        axis.set(title=title, xlim=(-1.8, 1.8), ylim=(-1.8, 1.8), xticks=[], yticks=[])
        axis.set_aspect("equal")
    plt.close(figure)
    return figure


def tracks(panels: Mapping[str, Sequence[Tensor]]) -> plt.Figure:
    """The ways of the first points through lists of x / alpha (B,2,1,1), from far away to 0."""
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.3))
    for axis, (title, places) in zip(axes, panels.items(), strict=True):
        ways = torch.stack(list(places)).flatten(2)[:, :24]  # (steps, B, 2)
        axis.plot(*ways.permute(2, 0, 1), lw=0.8, alpha=0.7)
        axis.scatter(*ways[-1].T, s=12, color="black", zorder=3)
        axis.set(title=title, xlim=(-4, 4), ylim=(-4, 4), xticks=[], yticks=[])
        axis.set_aspect("equal")
    plt.close(figure)
    return figure


def errors(
    panels: Mapping[str, Mapping[str, Mapping[int, float]]], slopes: Sequence[float] = (1, 2)
) -> plt.Figure:
    """Errors against network calls on logarithmic axes, with grey lines of the `slopes`."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.3), squeeze=False)
    for axis, (title, arms) in zip(axes[0], panels.items(), strict=True):
        for name, found in arms.items():
            axis.loglog(found.keys(), found.values(), "o-", ms=4, label=name)
        calls = sorted({n for found in arms.values() for n in found})
        top = max(max(found.values()) for found in arms.values())
        for slope in slopes:
            guide = [top * (n / calls[0]) ** -slope for n in calls]
            axis.loglog(calls, guide, color="0.8", lw=1, zorder=0)
            axis.annotate(f"slope {slope:g}", (calls[-1], guide[-1]), color="0.5", ha="right")
        axis.set(title=title, xlabel="network calls", xticks=calls, xticklabels=calls)
        axis.minorticks_off()
        axis.legend(fontsize=9, loc="lower left")
        axis.set_ylim(0.5 * min(min(found.values()) for found in arms.values()), 2 * top)
    plt.close(figure)
    return figure


def slope(found: Mapping[int, float]) -> float:
    """The order of accuracy: how steeply errors fall with calls, over the last two numbers."""
    (few, coarse), (many, fine) = sorted(found.items())[-2:]
    return math.log(coarse / fine) / math.log(many / few)
