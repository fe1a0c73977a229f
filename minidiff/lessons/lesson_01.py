"""Lesson 01, noise: checks of its exercises, and its pictures of points."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor

from minidiff.lessons import exercise, expect, mixture, require
from minidiff.plot.charts import COLOURS
from minidiff.schedule import NoiseLevel

SIDE = 1.9  # the plane is shown from -SIDE to SIDE


# ----------------------------------------------------------------------------------------- checks


@exercise
def check_alpha_bar(answer: Callable) -> str:
    """answer(betas) -> alpha_bar with the clean image first: (T,) to (T+1,)."""
    betas = torch.linspace(0.1, 0.4, 5, dtype=torch.float64)
    kept = (1 - betas).cumprod(0)

    def from_clean(table: Tensor) -> Tensor:
        return torch.cat([torch.ones(1, dtype=torch.float64), table])

    root = "that is the square root of alpha_bar, which comes later: alpha = sqrt(alpha_bar)"
    expect(
        answer(betas),
        from_clean(kept),
        "multiply what each step keeps, 1 - beta, from the first step to step t",
        known=[
            (kept, "index 0 is the clean image: put a 1 in front, so that alpha_bar[t] is level t"),
            (from_clean(betas.cumprod(0)), "a step keeps 1 - beta of the variance, not beta"),
            (from_clean(1 - betas.cumsum(0)), "each step keeps a share of what is left: multiply"),
            (from_clean(1 - betas), "these are the single steps: take their running product"),
            (from_clean(kept.sqrt()), root),
            (kept.sqrt(), root),
        ],
    )
    return "alpha_bar[t] is the share of the image's variance that is left at level t"


@exercise
def check_add_noise(answer: Callable) -> str:
    """answer(x0, alpha, sigma, noise) -> x_t."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 3, 4, 4, generator=generator)
    alpha, sigma = 0.6, 0.8
    expect(
        answer(x0, alpha, sigma, noise),
        alpha * x0 + sigma * noise,
        "compare with the equation above",
        known=[
            (
                alpha * x0 + sigma**2 * noise,
                "the noise has variance 1, and sigma is a standard deviation: do not square it",
            ),
            (alpha**2 * x0 + sigma * noise, "alpha is sqrt(alpha_bar) already: do not square it"),
            (alpha**2 * x0 + sigma**2 * noise, "alpha and sigma are roots already: square neither"),
            (x0 + sigma * noise, "the image is not shrunk, so the variance grows above 1"),
            (sigma * x0 + alpha * noise, "alpha belongs to the image and sigma to the noise"),
        ],
    )
    draws = [answer(x0, alpha, sigma, z) for z in (noise, 2 * noise)]
    require(not torch.equal(*draws), "the noise that is given must be used, not drawn anew")
    return "x_t = alpha x0 + sigma eps"


@exercise
def check_denoise(answer: Callable) -> str:
    """answer(x, data, alpha, sigma) -> E[x0 | x_t] for data of equally likely images."""
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(7, 2, 1, 1, generator=generator, dtype=torch.float64)
    x = torch.randn(4, 2, 1, 1, generator=generator, dtype=torch.float64)
    alpha, sigma = 0.8, 0.6
    flat, rows = data.flatten(1), x.flatten(1)
    far = torch.cdist(rows, alpha * flat) ** 2  # (4, 7)

    def mean(logits: Tensor, dim: int = 1) -> Tensor:
        return (logits.softmax(dim) @ flat).reshape(x.shape)

    right = -far / (2 * sigma**2)
    unscaled = -(torch.cdist(rows, flat) ** 2) / (2 * sigma**2)
    expect(
        answer(x, data, alpha, sigma),
        mean(right),
        "weigh every image of the data by how likely it made x, then average the images",
        known=[
            (mean(unscaled), "x holds alpha x0, not x0: compare it with alpha * data"),
            (mean(-far / (2 * sigma)), "divide by the variance: sigma is not squared"),
            (mean(-far / sigma**2), "the exponent of a normal density has a 2 below: 2 sigma^2"),
            (mean(-far.sqrt() / (2 * sigma**2)), "the distance is squared in a normal density"),
            (mean(far / (2 * sigma**2)), "the sign: images far away must weigh less"),
            (mean(right, 0), "the weights of one x sum to 1: softmax over the data, dim=1"),
            (
                flat[far.argmin(1)].reshape(x.shape),
                "that is the nearest image; the mean weighs all of them",
            ),
            (
                alpha * mean(right),
                "average the clean images: data, not alpha * data",
            ),
        ],
    )
    return "no network can predict x0 better, in mean square, than this mean"


# --------------------------------------------------------------------------------------- pictures


def island(points: Tensor) -> Tensor:
    """The Gaussian that each point (B,2,1,1) is nearest to (B,)."""
    return torch.cdist(points.flatten(1), mixture.MEANS).argmin(1)


def scatter(
    panels: Mapping[str, Tensor], colours: Tensor | None = None, side: float = SIDE
) -> plt.Figure:
    """Clouds of points (B,2,1,1) beside one another, coloured by the numbers `colours` (B,)."""
    figure, axes = plt.subplots(1, len(panels), figsize=(2.1 * len(panels), 2.3), squeeze=False)
    palette = np.array(COLOURS)
    shown = None if colours is None else palette[colours[:1000].numpy()]
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        axis.scatter(*points.flatten(1)[:1000].T, s=3, alpha=0.5, linewidths=0, c=shown)
        axis.set(title=title, xlim=(-side, side), ylim=(-side, side), xticks=[], yticks=[])
        axis.set_aspect("equal")
    plt.close(figure)
    return figure


def arrows(denoise: Callable, levels: Mapping[str, NoiseLevel]) -> plt.Figure:
    """From places x_t to the mean of x0 that the denoiser gives there, a panel a level."""
    figure, axes = plt.subplots(1, len(levels), figsize=(2.6 * len(levels), 2.8))
    line = torch.linspace(-1.6, 1.6, 13, dtype=torch.float64)
    places = torch.cartesian_prod(line, line)[:, :, None, None]  # (169, 2, 1, 1)
    for axis, (title, level) in zip(axes, levels.items(), strict=True):
        x0 = denoise(places, level).x0.flatten(1)
        start = places.flatten(1)
        look = dict(angles="xy", scale_units="xy", scale=1, width=0.004, alpha=0.6)
        axis.quiver(*start.T, *(x0 - start).T, **look)
        axis.scatter(*mixture.MEANS.T, s=25, color=COLOURS[1], zorder=3)
        axis.set(title=title, xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), xticks=[], yticks=[])
        axis.set_aspect("equal")
    plt.close(figure)
    return figure


def moment(points: Tensor, title: str, colours: Tensor) -> Image.Image:
    """One frame of an animation: points (B,2,1,1) as a small square picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2, 3.4), dpi=65, layout="none")
    canvas = FigureCanvasAgg(figure)
    axis = figure.add_axes((0.02, 0.02, 0.96, 0.86))
    colour = np.array(COLOURS)[colours[:400].numpy()]
    axis.scatter(*points.flatten(1)[:400].T, s=5, linewidths=0, c=colour)
    axis.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[])
    axis.set_title(title, fontsize=11)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
