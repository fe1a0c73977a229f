"""Lesson 06, guidance: checks of its exercises, its small networks of the plane, its pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.nn import functional as F

from minidiff.denoiser import Denoiser, as_denoiser
from minidiff.evaluation.classifier import Classifier
from minidiff.lessons import exercise, expect, mixture, require
from minidiff.schedule import NoiseLevel, NoiseSchedule

SCHEDULE = NoiseSchedule.linear()


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------------------- checks


@exercise
def check_cross_attention(answer: Callable) -> str:
    """answer(q, k, v) -> what each pixel reads: q (N,d), k and v (L,d) -> (N,d)."""
    q, k, v = 2 * _normal(6, 4), 2 * _normal(5, 4, seed=1), _normal(5, 4, seed=2)
    scores = q @ k.T
    expect(
        answer(q, k, v),
        (scores / 2).softmax(1) @ v,
        "softmax of q k^T / sqrt(d) over the words, then times v",
        known=[
            (scores.softmax(1) @ v, "the scores are not divided by sqrt(d)"),
            ((scores / 4).softmax(1) @ v, "divide by sqrt(d): the square root is missing"),
            (
                (scores / 2).softmax(0) @ v,
                "the softmax runs over the pixels (dim 0): each *pixel* shares itself out among "
                "the words, so it runs over the words (dim 1)",
            ),
            ((scores / 2).softmax(1) @ k, "the words are weighted, but it is v that is read"),
            ((scores / 2) @ v, "the softmax is missing: shares are positive and sum to 1"),
        ],
    )
    return "each pixel reads a weighted mean of the words' values"


@exercise
def check_drop(answer: Callable) -> str:
    """answer(labels, null, p, generator) -> labels, each replaced by null with probability p."""
    labels = torch.arange(20_000) % 10
    given = labels.clone()
    found = answer(given, 10, 0.1, torch.Generator().manual_seed(3))
    require(isinstance(found, Tensor), f"expected a tensor of labels, got a {type(found).__name__}")
    require(found.shape == labels.shape, f"expected {tuple(labels.shape)} labels, one each")
    require(torch.equal(given, labels), "the labels given were changed in place: return new ones")
    dropped = found == 10
    require(
        torch.equal(found[~dropped], labels[~dropped]),
        "a label that is not dropped must stay what it was",
    )
    rate = dropped.double().mean().item()
    require(
        rate not in (0.0, 1.0),
        f"of 20,000 labels {rate:.0%} were dropped: draw one number for each label, not one for "
        "the whole batch",
    )
    require(
        abs(rate - 0.9) > 0.02,
        "90% of the labels were dropped, not 10%: the comparison is the wrong way round. A "
        "published course shipped this bug; its loss looks fine",
    )
    require(abs(rate - 0.1) < 0.01, f"{rate:.1%} of the labels were dropped: expected 10%")
    again = answer(labels, 10, 0.1, torch.Generator().manual_seed(4)) == 10
    require(
        not torch.equal(again, dropped),
        "another generator drops the same labels: draw from the generator given",
    )
    same = answer(labels, 10, 0.1, torch.Generator().manual_seed(3)) == 10
    require(torch.equal(same, dropped), "the same seed drops other labels: use the generator given")
    return f"{rate:.1%} dropped, each label by its own luck"


@exercise
def check_guide(answer: Callable) -> str:
    """answer(eps_c, eps_u, scale) -> eps, where scale 1 is the condition alone."""
    eps_c, eps_u = _normal(2, 3, 4, 4), _normal(2, 3, 4, 4, seed=1)
    found = answer(eps_c, eps_u, 3.0)
    expect(
        found,
        eps_u + 3.0 * (eps_c - eps_u),
        "start at eps_u and go `scale` times the way to eps_c",
        known=[
            (
                eps_u + 4.0 * (eps_c - eps_u),
                "that is the paper's convention, (1 + w) eps_c - w eps_u with w = scale: here "
                "scale 1 means the condition alone, so w = scale - 1",
            ),
            (
                eps_c + 3.0 * (eps_u - eps_c),
                "the two are exchanged: that walks away from the condition",
            ),
            (
                eps_u + 3.0 * (eps_u - eps_c),
                "the difference has the wrong sign: that walks away from the condition",
            ),
            (3.0 * (eps_c - eps_u), "the starting point eps_u is missing"),
            (3.0 * eps_c + eps_u, "the weights sum to 4: they are scale and 1 - scale"),
            (
                (eps_u + 3.0 * (eps_c - eps_u)) / 3.0,
                "the result is divided by the scale: the weights already sum to 1",
            ),
        ],
    )
    require(torch.equal(answer(eps_c, eps_u, 0.0), eps_u), "scale 0 must be eps_u, to the last bit")
    return "scale 0 asks for anything, 1 for the condition, more for more than that"


# ------------------------------------------------------------------------------- a small network


class PointNetwork(nn.Module):
    """eps of points (B,2,1,1), labels 0, 1 and 2 for none: three layers, for the mixture."""

    def __init__(self, width: int = 96):
        super().__init__()
        self.labels = nn.Embedding(3, width)
        self.place, self.time = nn.Linear(2, width), nn.Linear(8, width)
        self.layers = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        angles = (t[:, None] + 1) / SCHEDULE.T * torch.tensor([0.5, 1, 2, 4]) * math.pi  # (B,4)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        h = self.place(x.flatten(1)) + self.time(waves) + self.labels(condition)
        return self.layers(h)[:, :, None, None]


def train_points(drop: Callable, p: float, steps: int, batch: int = 256) -> PointNetwork:
    """A PointNetwork that has learnt the mixture: label 0 is its left half, 1 its right.

    `drop(labels, null, p, generator)` makes labels null, as in the lesson.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = PointNetwork()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        x0 = mixture.points(batch, generator).float()
        label = drop((x0[:, 0, 0, 0] > 0).long(), 2, p, generator)
        level = SCHEDULE.level(torch.randint(1, SCHEDULE.T + 1, (batch,), generator=generator))
        noise = mixture.noise(batch, generator).float()
        out = network(level.alpha * x0 + level.sigma * noise, level.t.flatten() - 1, label)
        optimiser.zero_grad()
        F.mse_loss(out, noise).backward()
        optimiser.step()
        decay.step()
    return network.eval().requires_grad_(False)


@torch.no_grad()
def errors(
    network: PointNetwork, cond: Denoiser, uncond: Denoiser, level: NoiseLevel, n: int = 2000
) -> tuple[float, float]:
    """Mean squared errors of eps, with label 0 on noisy points of its half, and without a label."""
    generator = torch.Generator().manual_seed(1)
    x0, noise = mixture.points(n, generator), mixture.noise(n, generator)
    x = level.alpha * x0 + level.sigma * noise
    found = []
    for label, exact, at in ((0, cond, x[x0[:, 0, 0, 0] < 0]), (2, uncond, x)):
        denoise = as_denoiser(network, torch.full((len(at),), label))
        error = denoise(at.float(), level).eps - exact(at, level).eps
        found.append(error.square().mean().item())
    return found[0], found[1]


@torch.no_grad()
def apart(judge: Classifier, images: Tensor, groups: int = 10) -> float:
    """The mean angle between the features of two images of a class: labels are 0, ..., 9, 0, ..."""
    groups = groups if len(images) > groups else 1
    f = F.normalize(judge.features(images.float().clamp(-1, 1)), dim=1).cpu()
    cosines = [f[i::groups] @ f[i::groups].T for i in range(groups)]
    others = torch.cat([c[~torch.eye(len(c)).bool()] for c in cosines])
    return others.mean().acos().item()


# ---------------------------------------------------------------------------------------- pictures


def scatter(panels: Mapping[str, Tensor], truth: Tensor | None = None) -> plt.Figure:
    """Clouds of points (B,2,1,1) beside one another, under their titles; `truth` (B,2,1,1) in
    grey behind each of them."""
    figure, axes = plt.subplots(1, len(panels), figsize=(2.2 * len(panels), 2.5))
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        if truth is not None:
            axis.scatter(*truth.flatten(1)[:1000].T, s=3, color="0.85", linewidths=0)
        axis.scatter(*points.flatten(1)[:1000].T, s=3, alpha=0.4, linewidths=0)
        axis.set(title=title, xlim=(-2.2, 1.8), ylim=(-1.9, 1.9), xticks=[], yticks=[])
        axis.set_aspect("equal")
    plt.close(figure)
    return figure


def trade(
    scales: list[float],
    shares: Mapping[str, list[tuple[float, float, float]]],
    spread: list[float],
) -> plt.Figure:
    """Left, shares (share, low, high) against the scale with their intervals; right, a spread."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3))
    for name, found in shares.items():
        share, low, high = map(list, zip(*found, strict=True))
        error = [
            [s - a for s, a in zip(share, low, strict=True)],
            [b - s for s, b in zip(share, high, strict=True)],
        ]
        left.errorbar(scales, share, error, fmt="o-", capsize=3, ms=4, label=name)
    right.plot(scales, spread, "o-", ms=4)
    left.set(title="right by an independent judge", ylim=(-0.03, 1.03), xlabel="scale")
    right.set(title="angle between two pictures of a class", ylim=(0, None), xlabel="scale")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(scales, [f"{s:g}" for s in scales])
    left.legend(fontsize=9)
    plt.close(figure)
    return figure
