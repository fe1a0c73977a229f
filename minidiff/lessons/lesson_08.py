"""Lesson 08, CLIP guidance: checks of its exercises, and its pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib import pyplot as plt
from torch import Tensor
from torch.nn import functional as F

from minidiff.data.shapes import COLOURS, HELD_OUT, SHAPES, Scene, Thing, grade
from minidiff.lessons import exercise, expect, require
from minidiff.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.linear()


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------------------- checks


@exercise
def check_push(answer: Callable) -> str:
    """answer(x, level, eps, gradient, scale) -> (x0, eps) after the push."""
    x, eps, gradient = _normal(2, 3, 4, 4), _normal(2, 3, 4, 4, seed=1), _normal(2, 3, 4, 4, seed=2)
    level, scale = SCHEDULE.level(600), 3.0
    found = answer(x, level, eps, gradient, scale)
    require(
        isinstance(found, tuple) and len(found) == 2,
        "expected the pair (x0, eps): a sampler needs both",
    )
    x0_found, eps_found = found
    right = eps - scale * level.sigma * gradient
    expect(
        eps_found,
        right,
        "eps - scale * sigma * gradient",
        known=[
            (
                eps + scale * level.sigma * gradient,
                "the sign is wrong: that makes the score *fall*. Less noise of the kind that "
                "raises the score means more of the score in x0",
            ),
            (eps - scale * gradient, "sigma is missing: eps is the noise in units of sigma"),
            (
                eps - scale * level.sigma**2 * gradient,
                "sigma is squared: the score of x_t is -eps/sigma, so the factor is sigma itself",
            ),
            (eps, "eps is unchanged: nothing was pushed"),
        ],
    )
    expect(
        x0_found,
        (x - level.sigma * right) / level.alpha,
        "x0 is what is left of x_t without the *new* eps",
        known=[
            (
                (x - level.sigma * eps) / level.alpha,
                "x0 still belongs to the old eps: the pair no longer makes up x_t. A widely read "
                "course steps with such a stale eps",
            ),
            (
                (x - level.sigma**2 * right) / level.alpha**2,
                "x0 is computed with alpha_bar and 1 - alpha_bar: the roots are missing",
            ),
        ],
    )
    return "eps and x0 pushed together"


@exercise
def check_spherical(answer: Callable) -> str:
    """answer(u, w) -> half the squared angle of vectors (B,D): (B,)."""
    u, w = 3 * _normal(5, 8), 2 * _normal(5, 8, seed=1)
    unit, other = F.normalize(u, dim=1), F.normalize(w, dim=1)
    angle = 2 * ((unit - other).norm(dim=1) / 2).asin()
    expect(
        answer(u, w),
        angle**2 / 2,
        "2 asin(|u - w| / 2)^2 of the unit vectors",
        known=[
            (angle, "that is the angle: half of its square is wanted"),
            (angle**2, "that is the squared angle: take half of it"),
            (angle / 2, "the square is missing"),
            (
                1 - (unit * other).sum(1),
                "that is the cosine distance, not the way along the sphere, which needs asin",
            ),
        ],
    )
    return "the way along the sphere, which pulls at any distance"


@exercise
def check_weights(answer: Callable) -> str:
    """answer(alpha_bar, ts) -> sqrt(alpha_bar_t) for each t of a path, in the order walked."""
    ts = [1000, 750, 500, 250]
    table = SCHEDULE.alpha_bar
    found = answer(table, ts)
    found = torch.stack([torch.as_tensor(v) for v in found]) if isinstance(found, list) else found
    expect(
        found,
        table[ts].sqrt(),
        "the level t is the index, and alpha is the root of alpha_bar",
        known=[
            (
                table[: len(ts)].sqrt(),
                "alpha_bar is indexed by the loop counter 0, 1, 2, ...: the weight stays near 1 "
                "at all levels. A course shipped this, and it was copied many times",
            ),
            (table[ts], "that is alpha_bar: alpha is its root"),
            (1 / table[ts].sqrt(), "that is what the shortcut's gradient is too large by: divide"),
            (table[[t - 1 for t in ts]].sqrt(), "off by one: alpha_bar[t] belongs to level t here"),
            (table[ts].sqrt().flip(0), "the order is turned round"),
        ],
    )
    return "from almost 0 at pure noise to almost 1"


# ---------------------------------------------------------------------------------------- judging


def prompts(n: int) -> list[str]:
    """n looks as "a red circle", of all shapes and colours in turn, none held out of training."""
    looks = [(c, s) for s in SHAPES for c in COLOURS if (c, s) not in HELD_OUT]
    return [
        f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"
        for colour, shape in (looks[11 * i % len(looks)] for i in range(n))
    ]


def scenes(prompts: Sequence[str]) -> list[Scene]:
    """A scene for each prompt: a large plain thing at the centre, on white."""
    words = [prompt.split() for prompt in prompts]
    return [Scene(Thing(shape, colour)) for _, colour, shape in words]


def verdict(
    name: str,
    x: Tensor,
    prompts: Sequence[str],
    eyes: Mapping[str, tuple[Callable[[Tensor], Tensor], Tensor]],
) -> dict[str, Tensor]:
    """What each CLIP of `eyes` (encode, unit text embeddings) and the oracle say of images
    (B,3,32,32) of the prompts: cosines (B,) by name, and "oracle" (B,) bool. Prints one line."""
    with torch.no_grad():
        said = {
            k: (encode(x.float()) * wanted).sum(1).cpu() for k, (encode, wanted) in eyes.items()
        }
    said["oracle"] = grade(list(prompts), x.detach())
    cosines = "  ".join(f"{k} {said[k].mean():.2f}" for k in eyes)
    print(f"{name:<24} {cosines}  oracle {said['oracle'].sum()} of {len(x)}")
    return said


# ---------------------------------------------------------------------------------------- pictures


def gradients(ts: Sequence[float], lines: Mapping[str, Sequence[float]]) -> plt.Figure:
    """Sizes of gradients against t, on a logarithmic axis."""
    figure, axis = plt.subplots(figsize=(6.4, 3))
    for name, values in lines.items():
        axis.semilogy(ts, values, "o-", ms=4, label=name)
    axis.set(xlabel="t", title="size, times that of the gradient through the network")
    axis.legend(fontsize=9)
    plt.close(figure)
    return figure


def variances(found: Mapping[int, float]) -> plt.Figure:
    """Variance of a gradient against the number of cut-outs, beside the line 1/number."""
    figure, axis = plt.subplots(figsize=(5, 2.8))
    counts, values = list(found), list(found.values())
    axis.loglog(counts, values, "o-", ms=4, label="measured")
    axis.loglog(counts, [values[0] / n for n in counts], color="0.6", ls="--", label="1/number")
    axis.set(xlabel="cut-outs", title="variance of the gradient, relative")
    axis.set_xticks(counts, [str(n) for n in counts])
    axis.minorticks_off()
    axis.legend(fontsize=9)
    plt.close(figure)
    return figure


def three_judges(
    scales: Sequence[float],
    seen: Mapping[str, Sequence[float]],
    real: Mapping[str, float],
    shares: Sequence[tuple[float, float, float]],
    baseline: float,
) -> plt.Figure:
    """Left, mean cosines of the CLIPs against the scale, with those of real pictures; right, the
    oracle's share with its interval, beside that of classifier-free guidance."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3))
    places = range(len(scales))
    for i, (name, values) in enumerate(seen.items()):
        left.plot(places, values, "o-", ms=4, label=name)
        left.axhline(real[name], color=f"C{i}", ls=":", lw=1)
    left.set(title="cosine with the text (dotted: real pictures)")
    share, low, high = torch.tensor(shares).T
    error = torch.stack([share - low, high - share]).clamp(min=0).numpy()
    right.errorbar(places, share.numpy(), error, fmt="o-", capsize=3, ms=4)
    right.axhline(baseline, color="0.5", ls="--", lw=1)
    right.annotate(
        "classifier-free guidance",
        (0, baseline),
        xytext=(0, -12),
        textcoords="offset points",
        color="0.4",
        fontsize=9,
    )
    right.set(title="right by the oracle", ylim=(-0.03, 1.05))
    for axis in (left, right):
        axis.set_xticks(places, [f"{s:g}" for s in scales])
        axis.set_xlabel("scale")
    left.legend(fontsize=9)
    plt.close(figure)
    return figure


def size(gradient: Tensor) -> float:
    """Root mean square of a gradient (B,3,H,W)."""
    return gradient.square().mean().sqrt().item() or math.nan
