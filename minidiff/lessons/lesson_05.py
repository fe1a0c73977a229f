"""Lesson 05, inversion and interpolation: checks of its exercises, and its curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from minidiff.denoiser import Prediction
from minidiff.editing.interpolation import slerp
from minidiff.lessons import exercise, expect, require
from minidiff.lessons.lesson_04 import sheet as sheet
from minidiff.schedule import NoiseLevel, NoiseSchedule

SCHEDULE = NoiseSchedule.linear()


def _normal(seed: int, n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 4, 4, generator=generator, dtype=torch.float64)


# ----------------------------------------------------------------------------------------- checks


@exercise
def check_invert(answer: Callable) -> str:
    """answer(denoise, x0, path, lowest) -> z: up the levels that sampling goes down."""
    x0, path, lowest, called = 0.6 * _normal(1), SCHEDULE.path(5), SCHEDULE.level(1), []

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        called.append(level.t)
        guess = torch.tanh(x) * (1.2 + level.sigma)  # beyond [-1, 1], as real predictions are
        return Prediction(guess, (x - level.alpha * guess) / max(level.sigma, 1e-9))

    found = answer(denoise, x0, path, lowest)
    up = path[::-1]
    _judge_climb(list(called), [lowest.t] + [level.t for level in up[1:-1]])

    def climbed(move: Callable) -> Tensor:
        x = x0
        for here, there in pairwise(up):
            x = move(x, denoise(x, here if here.sigma > 0 else lowest), here, there)
        return x

    expect(
        found,
        climbed(_climb),
        "follow the first two moves with pencil and paper",
        known=[(climbed(move), sentence) for move, sentence in _CLIMB_SLIPS],
    )
    return "the sampler's path, walked from the picture up"


def _judge_climb(called: list, levels: list) -> None:
    """Wrong unless the denoiser was asked at `levels`."""
    if called == levels:
        return
    asked = f"the denoiser was called at t = {', '.join(map(str, called)) or 'no level'}"
    require(
        called not in (levels[1:], levels[:0:-1]),
        f"{asked}: the first climb, from the clean picture, is left out. The reconstruction hardly "
        "shows it; the number of calls does",
    )
    require(
        called != [*levels[1:], SCHEDULE.T],
        f"{asked}: ask at the level that x is on (here), not at the one it climbs to",
    )
    require(
        called != [0, *levels[1:]],
        f"{asked}: no network was trained at t = 0; the clean picture is shown at `lowest`",
    )
    require(
        len(called) < 2 or called[0] < called[-1],
        f"{asked}: inversion climbs, from the clean picture to pure noise; reverse the path",
    )
    require(
        len(called) == len(levels),
        f"{asked}: {len(levels)} moves are {len(levels)} calls, one each",
    )
    require(
        False,
        f"{asked}: expected {', '.join(map(str, levels))}. A shifted time can even look better at "
        "few steps, and it never converges",
    )


def _climb(x, prediction, here, there):
    x0 = prediction.x0 if here.sigma > 0 else x
    return there.alpha * x0 + there.sigma * prediction.eps


def _clipped(x, prediction, here, there):
    x0 = prediction.x0.clamp(-1, 1) if here.sigma > 0 else x
    eps = (x - here.alpha * x0) / here.sigma if here.sigma > 0 else prediction.eps
    return there.alpha * x0 + there.sigma * eps


def _only_x0_clipped(x, prediction, here, there):
    x0 = prediction.x0.clamp(-1, 1) if here.sigma > 0 else x
    return there.alpha * x0 + there.sigma * prediction.eps


def _guess_of_the_picture(x, prediction, here, there):
    return there.alpha * prediction.x0 + there.sigma * prediction.eps


def _without_roots(x, prediction, here, there):
    x0 = prediction.x0 if here.sigma > 0 else x
    return there.alpha**2 * x0 + there.sigma**2 * prediction.eps


def _minus(x, prediction, here, there):
    x0 = prediction.x0 if here.sigma > 0 else x
    return there.alpha * x0 - there.sigma * prediction.eps


_CLAMP = "x0 is clipped: clipping cannot be undone, so the way back would miss the picture"
_CLIMB_SLIPS = (
    (_clipped, _CLAMP),
    (_only_x0_clipped, _CLAMP),
    (
        _guess_of_the_picture,
        "at the clean picture x0 is known, it is x itself: take only eps from the network there",
    ),
    (_without_roots, "x0 and eps are scaled by alpha_bar and 1 - alpha_bar: the roots are missing"),
    (_minus, "eps has the wrong sign: the move is DDIM's own, only the levels are swapped"),
)


@exercise
def check_psnr(answer: Callable) -> str:
    """answer(a, b) -> the median over images (B,3,H,W) in [-1, 1] of their PSNR in dB."""
    a, each = _normal(2, 5).clamp(-1, 1), torch.tensor([0.01, 0.02, 0.05, 0.1, 0.8]).double()
    b = a + each.reshape(-1, 1, 1, 1) * torch.ones_like(a)
    errors = each.square()  # mean squared, one each
    decibels = 10 * torch.log10(4 / errors)
    expect(
        answer(a, b),
        decibels.median(),
        "one mean squared error an image, then decibels, then the median",
        known=[
            (
                10 * torch.log10(4 / errors.mean()),
                "the errors are averaged before the logarithm: one bad image then hides four good "
                "ones. Take the PSNR of each image, then the median",
            ),
            (decibels.mean(), "that is the mean; the median is not moved by a few bad images"),
            (
                (decibels - 10 * math.log10(4)).median(),
                "the range of [-1, 1] is 2, and its square 4: these are 6 dB too few",
            ),
            (
                (decibels - 10 * math.log10(2)).median(),
                "the range 2 goes into the formula squared: 4 / error",
            ),
            (
                10 * torch.log10(2 / each).median(),
                "that is the logarithm of root mean squares: use 20 log10, or 10 log10 of squares",
            ),
        ],
    )
    return "per image, range 2, median"


@exercise
def check_slerp(answer: Callable) -> str:
    """answer(a, b, weight) -> the noise between, each image by itself."""
    a, b, w = _normal(3), _normal(4), 0.3
    b[0] = 0.5 * (a[0] + b[0])  # unequal angles, so that a common one is found out
    flat = [z.flatten(1) for z in (a, b)]
    cosine = (flat[0] * flat[1]).sum(1) / (flat[0].norm(dim=1) * flat[1].norm(dim=1))
    angle = cosine.acos().reshape(-1, 1, 1, 1)
    one = ((a * b).sum() / (a.norm() * b.norm())).acos()
    line = (1 - w) * a + w * b

    def arc(angle: Tensor) -> Tensor:
        return (((1 - w) * angle).sin() * a + (w * angle).sin() * b) / angle.sin()

    expect(
        answer(a, b, w),
        slerp(a, b, w),
        "find the angle of each pair first, and compare it with arccos of their cosine",
        known=[
            (line, "that is the straight line: halfway its noise is too short by sqrt(2)"),
            (arc(one), "one angle for the whole batch: each pair of noises has its own"),
            (slerp(b, a, w), "the ends are exchanged: weight 0 is the first noise"),
            (arc(angle) * angle.sin(), "the division by sin(angle) is missing"),
            (
                arc(cosine.reshape(-1, 1, 1, 1)),
                "that takes the cosine for the angle: angle = acos(cosine)",
            ),
            (
                line / ((1 - w) ** 2 + w**2) ** 0.5,
                "that is right only for noises at right angles: use their own angle",
            ),
        ],
    )
    return "along the circle, each pair by its own angle"


# ---------------------------------------------------------------------------------------- pictures


def curves(panels: Mapping[str, Mapping[str, Mapping[float, float]]], x: str) -> plt.Figure:
    """Panels of lines {name: {x: y}} side by side; x logarithmic if it spans a factor of 8."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.0 * len(panels), 3.0), squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for name, found in lines.items():
            axis.plot(found.keys(), found.values(), "o-", ms=4, label=name)
        at = sorted({place for found in lines.values() for place in found})
        axis.set(title=title, xlabel=x)
        if at[0] > 0 and at[-1] >= 8 * at[0]:
            axis.set_xscale("log")
            axis.set(xticks=at, xticklabels=at)
            axis.minorticks_off()
        axis.legend(fontsize=9)
    plt.close(figure)
    return figure


def neighbours(z: Tensor) -> float:
    """Correlation of pixels with their right neighbours in (B,3,H,W); 0 in white noise."""
    pairs = torch.stack([z[..., :-1].flatten(), z[..., 1:].flatten()]).cpu().double()
    return torch.corrcoef(pairs)[0, 1].item()
