"""Lesson 09, editing by noising: checks of its exercises, exact draws, guides, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from PIL import Image
from torch import Generator, Tensor

from minidiff.data import shapes
from minidiff.editing import low_pass
from minidiff.editing.strokes import paint
from minidiff.lessons import exercise, expect, mixture, require
from minidiff.schedule import NoiseLevel, NoiseSchedule, add_noise

SCHEDULE = NoiseSchedule.linear()


def _normal(seed: int) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------------------ checks


@exercise
def check_start(answer: Callable) -> str:
    """answer(guide, path, strength, noise) -> (x, levels): where SDEdit starts, and what is left
    of the path."""
    guide, noise, path = _normal(1).clamp(-1, 1), _normal(2), SCHEDULE.path(20)
    result = answer(guide, path, 0.3, noise)
    require(
        isinstance(result, tuple) and len(result) == 2,
        "expected two things: the noisy guide, and the list of levels to walk",
    )
    x, levels = result
    times = [round(level.t) for level in levels]
    wanted = [round(level.t) for level in path[-7:]]
    require(
        times != [round(level.t) for level in path[:7]],
        "those are the first levels of the path, the noisiest: the walk takes the last ones, "
        "path[-1 - k:]",
    )
    require(
        times != wanted[1:],
        "one level is missing: k steps stand between k + 1 levels, so take path[-1 - k:]",
    )
    require(times == wanted, f"the walk visits t = {times}: expected {wanted}, 0.3 of 20 steps")
    here = levels[0]
    expect(
        x,
        add_noise(guide, here, noise),
        "x = alpha * guide + sigma * noise at the first of the levels",
        known=[
            (
                guide,
                "the guide has no noise yet: the network expects some at this level",
            ),
            (here.alpha * guide, "the guide is scaled but has no noise: add sigma * noise"),
            (guide + here.sigma * noise, "the guide keeps its full size: scale it by alpha"),
            (noise, "that is pure noise: nothing of the guide is left in it"),
            (
                here.alpha**2 * guide + here.sigma**2 * noise,
                "alpha_bar and 1 - alpha_bar stand there: both square roots are missing",
            ),
            (
                add_noise(guide, path[0], noise),
                "that is the noise of the path's first level: take levels[0]",
            ),
        ],
    )
    return "the guide, noised to the first of the last k + 1 levels"


@exercise
def check_keep(answer: Callable) -> str:
    """answer(x, guide, mask, level, noise) -> x with the guide where mask is 1, noised to level."""
    x, guide, noise = _normal(3), _normal(4).clamp(-1, 1), _normal(5)
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    mask[..., :3] = 1
    level = SCHEDULE.level(400)
    good = add_noise(guide, level, noise)
    expect(
        answer(x, guide, mask, level, noise),
        torch.where(mask.bool(), good, x),
        "where the mask is 1 stands add_noise(guide, level, noise), elsewhere x",
        known=[
            (torch.where(mask.bool(), x, good), "the mask is turned around: 1 keeps the guide"),
            (
                torch.where(mask.bool(), guide, x),
                "the kept pixels are clean while the rest is noisy: noise them to x's level",
            ),
            (good, "everything is the guide now: only where the mask is 1"),
        ],
    )
    clean = answer(x, guide, mask, SCHEDULE.level(0), noise)
    require(
        torch.equal(clean * mask, guide * mask),
        "at t = 0 the kept pixels must be the guide's, bit for bit: published code leaves the "
        "noise of its lowest level in them",
    )
    return "the kept pixels follow the noise down, and end as they began"


def cubic(x: Tensor, factor: int) -> Tensor:
    """Down and up again by cubic resizing, as ILVR's authors do: (B,3,H,W). It is no projection."""
    small = F.interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    return F.interpolate(small, scale_factor=factor, mode="bicubic")


@exercise
def check_refine(answer: Callable) -> str:
    """answer(x, reference, here, there, factor, draw) -> x after ILVR's replacement.

    x is a step's proposal, already at `there`; draw() gives fresh noise.
    """
    x, reference = _normal(6), _normal(7).clamp(-1, 1)
    here, there = SCHEDULE.level(600), SCHEDULE.level(400)
    noises = [_normal(8), _normal(9)]
    unused = list(noises)
    found = answer(x, reference, here, there, 2, lambda: unused.pop(0))

    def moved(level: NoiseLevel, noise: Tensor, low: Callable = low_pass) -> Tensor:
        return x - low(x, 2) + low(add_noise(reference, level, noise), 2)

    expect(
        found,
        moved(there, noises[0]),
        "x - low_pass(x) + low_pass(y), with y the reference at x's level",
        known=[
            (
                moved(here, noises[0]),
                "the reference is noised to the level the step came from; x is at `there` already "
                "(published code has this slip: at the end it leaves noise in the picture)",
            ),
            (
                x - low_pass(x, 2) + low_pass(reference, 2),
                "the reference is clean while x is noisy: add_noise(reference, there, draw())",
            ),
            (
                x + low_pass(add_noise(reference, there, noises[0]), 2),
                "x still has low frequencies of its own: take low_pass(x) away first",
            ),
            (
                low_pass(add_noise(reference, there, noises[0]), 2),
                "only the low frequencies are left: add them to x - low_pass(x)",
            ),
            (
                moved(there, noises[0], cubic),
                "cubic resizing is no projection: use low_pass, which done twice changes nothing",
            ),
        ],
    )
    again = answer(x, reference, here, there, 2, lambda: noises[1])
    require(
        not torch.allclose(again, moved(there, noises[0])),
        "the second call used the noise of the first: each level needs a fresh draw()",
    )
    return "the proposal's details on the reference's low frequencies"


# ------------------------------------------------------------------------- the exact law in a plane


def posterior(x: Tensor, level: NoiseLevel, generator: Generator) -> Tensor:
    """Exact draws of p(x0 | x_t) of the mixture, one for each point (B,2,1,1): no walk at all."""
    variance = level.alpha**2 * mixture.STD**2 + level.sigma**2
    flat = x.flatten(1)
    away = (flat[:, None] - level.alpha * mixture.MEANS).square().sum(2)  # (B,4)
    share = (mixture.WEIGHTS.log() - away / (2 * variance)).softmax(1)
    mean = mixture.MEANS[torch.multinomial(share, 1, generator=generator)[:, 0]]  # (B,2)
    gain = level.alpha * mixture.STD**2 / variance
    width = mixture.STD * level.sigma / variance**0.5
    x0 = mean + gain * (flat - level.alpha * mean)
    return x0[:, :, None, None] + width * mixture.noise(len(x), generator)


def modes(x: Tensor) -> Tensor:
    """How many of the points (B,2,1,1) lie nearest to each Gaussian (4,)."""
    return torch.bincount(torch.cdist(x.flatten(1), mixture.MEANS).argmin(1), minlength=4)


def show_points(panels: Sequence[tuple[str, Tensor]], guide: Tensor) -> plt.Figure:
    """Points (B,2,1,1) in a row of panels, over the Gaussians' means and the guide."""
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 2.7), sharey=True)
    for axis, (title, x) in zip(axes, panels, strict=True):
        axis.scatter(*x.flatten(1).T, s=2, alpha=0.35)
        axis.plot(*mixture.MEANS.T, "k+", ms=9)
        axis.plot(*guide.flatten(), "o", color="#D55E00", ms=6)
        axis.set(title=title, xlim=(-1.9, 1.9), ylim=(-1.9, 1.9), aspect="equal")
    plt.close(figure)
    return figure


# -------------------------------------------------------------------------------- guides, pictures


def blobs(n: int, generator: Generator) -> tuple[Tensor, list[str], list[shapes.Scene]]:
    """Flat hexagons for things of the shapes world: guides (n,3,32,32), captions that name shape
    and colour only, and the scenes that the hexagons stand for."""
    codes = shapes.random_codes(n, generator, pairs=0)
    codes[:, 6] = 0  # no texture
    scenes, guides = shapes.decode(codes), []
    for scene in scenes:
        row, column = divmod(shapes.POSITIONS.index(scene.position), 3)
        corners = [(math.cos(k * math.pi / 3), math.sin(k * math.pi / 3)) for k in range(6)]
        hexagon = [((column + 1) / 4 + 0.17 * x, (row + 1) / 4 + 0.17 * y) for x, y in corners]
        ground = torch.tensor(_rgb(shapes.BACKGROUND_VALUES[scene.background]))
        canvas = ground.reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
        guides.append(paint(canvas, [(hexagon, _rgb(shapes.COLOUR_VALUES[scene.thing.colour]))])[0])
    things = [scene.thing for scene in scenes]
    said = [f"{'an' if t.colour[0] in 'aeiou' else 'a'} {t.colour} {t.shape}" for t in things]
    return torch.cat(guides), said, scenes


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 127.5 - 1 for i in (1, 3, 5))


def seams(x: Tensor, factor: int) -> Tensor:
    """How much larger the steps between blocks of factor x factor pixels are than those within:
    (B,), 1 where blocks do not show."""
    right = (x[..., 1:] - x[..., :-1]).square().mean((1, 2))  # (B, W-1)
    down = (x[..., 1:, :] - x[..., :-1, :]).square().mean((1, 3))
    steps = right + down
    edge = torch.arange(1, x.shape[-1]) % factor == 0
    return (steps[:, edge].mean(1) / steps[:, ~edge].mean(1)).sqrt()


def diversity(x: Tensor) -> float:
    """Root mean square difference between two of the images (B,3,H,W), over all pairs."""
    return (2 * x.var(0).mean()).sqrt().item()


def small(picture: Image.Image) -> Image.Image:
    """A sheet of photographs at half its size with 100 colours, to be stored in a notebook."""
    return picture.reduce(2).quantize(100, dither=Image.Dither.NONE).convert("RGB")
