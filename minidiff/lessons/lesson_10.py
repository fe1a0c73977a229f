"""Lesson 10, editing with a mask: checks of its exercises, an exact pair, scenes, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from matplotlib import pyplot as plt
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from minidiff import plot
from minidiff.data import shapes
from minidiff.lessons import exercise, expect, require
from minidiff.noise import randn
from minidiff.samplers import Frame
from minidiff.schedule import NoiseLevel, NoiseSchedule, add_noise, jumps

SCHEDULE = NoiseSchedule.linear()


def _normal(seed: int) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------------------ checks


@exercise
def check_climb(answer: Callable) -> str:
    """answer(x, here, there, noise) -> a draw of q(x_there | x_here), `there` the noisier."""
    x, noise = _normal(1), _normal(2)
    here, there = SCHEDULE.level(400), SCHEDULE.level(450)
    ratio = there.alpha / here.alpha
    beta = 1 - ratio**2
    found = answer(x, here, there, noise)
    require(
        not isinstance(found, Tensor) or torch.equal(found, answer(x, here, there, noise)),
        "called twice, it answers differently: take the noise that is given, draw none",
    )
    expect(
        found,
        ratio * x + beta**0.5 * noise,
        "sqrt(1 - beta) * x + sqrt(beta) * noise, with beta = 1 - (there.alpha/here.alpha)**2",
        known=[
            (
                ratio * x + beta * noise,
                "beta is a variance, and noise is scaled by a deviation: take the square root",
            ),
            (
                ratio**2 * x + beta**0.5 * noise,
                "x is scaled by 1 - beta: here, too, the square root is missing",
            ),
            (x + beta**0.5 * noise, "x keeps its size: scale it by there.alpha/here.alpha"),
            (ratio * x, "no noise comes on top: x is only made smaller; add sqrt(beta) * noise"),
            (
                ratio**0.5 * x + (1 - ratio) ** 0.5 * noise,
                "1 - beta is the square of there.alpha/here.alpha: alpha is a root already",
            ),
            (
                ratio * x + (there.sigma**2 - here.sigma**2) ** 0.5 * noise,
                "the noise in x becomes smaller, too, as x is scaled: more than the difference of "
                "the two variances is missing",
            ),
            (
                beta**0.5 * x + ratio * noise,
                "the two factors are exchanged: sqrt(1 - beta) belongs to x, sqrt(beta) to noise",
            ),
            (
                ratio * x + there.sigma * noise,
                "x has noise already: only what is missing comes on top, sqrt(beta)",
            ),
            (
                add_noise(x, there, noise),
                "that would be right for a clean x; this one is at level `here` already",
            ),
            (x / ratio + beta**0.5 * noise, "the ratio is upside down: x must become smaller"),
        ],
    )
    return "the forward process, a few levels further"


@exercise
def check_jumps(answer: Callable) -> str:
    """answer(steps, length, times) -> RePaint's list of levels, from steps to 0."""
    found, wanted = answer(9, 3, 3), jumps(9, 3, 3)
    require(isinstance(found, list), f"expected a list of integers, got a {type(found).__name__}")
    require(len(found) > 0, "the list is empty: it begins with steps, and ends with 0")
    odd = [k for k in found if not isinstance(k, int)]
    require(not odd, f"expected integers, indices of a path: there is {odd[:1]} in the list")
    shown = f"9 steps with jumps of 3, 3 passes, give {', '.join(map(str, found[:14]))}, ..."
    down = list(range(9, -1, -1))
    require(found != down, f"{shown}: that never climbs")
    require(
        found != down * 3 and found != down + down[1:] * 2,
        f"{shown}: the whole walk is repeated; the passes belong inside, at each place by itself",
    )
    require(found[0] == 9, f"{shown}: the list begins where the path does, at steps")
    require(
        found != jumps(9, 3, 4),
        f"{shown}: that is a pass too many: 3 passes are 2 climbs, as the first pass needs none",
    )
    require(
        found != jumps(9, 3, 2),
        f"{shown}: that is a pass too few: 3 passes are 2 climbs from each place",
    )
    require(
        found != jumps(9, 1, 3),
        f"{shown}: each climb is by `length` levels, and there is one every `length` levels",
    )
    require(found[-1:] == [0], f"{shown} and end at {found[-1:]}: the last level is 0, clean")
    require(
        all(abs(a - b) == 1 for a, b in pairwise(found)),
        f"{shown}: the list visits every level on its way, also when it climbs",
    )
    lowest = [b for a, b, c in zip(found, found[1:], found[2:], strict=False) if a > b < c]
    require(
        set(lowest) == {1, 4},
        f"{shown}: it climbs from {', '.join(map(str, dict.fromkeys(lowest)))}; the places are 1, "
        "1 + length, ..., so 1 and 4: a climb from 7 would end above 9",
    )
    unlike = [i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b]
    right = min([*unlike, len(found), len(wanted)])
    rest = slice(right, right + 8)
    require(
        found == wanted,
        f"9 steps with jumps of 3, 3 passes: the first {right} levels are right, but then come "
        f"{found[rest]}, expected {wanted[rest]}",
    )
    require(answer(5, 1, 2) == jumps(5, 1, 2), "right for jumps of 3 levels, but not of 1")
    require(answer(4, 2, 1) == [4, 3, 2, 1, 0], "right for 3 passes, but one never climbs")
    return f"{len(found) - 1} moves, {sum(b < a for a, b in pairwise(found))} of them down"


@exercise
@torch.enable_grad()
def check_area(answer: Callable) -> str:
    """answer(score, mask) -> a score of images (B,3,H,W) -> (B,) that sees only the edited area."""
    mask = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    mask[..., 2:6, 2:6] = 0
    x, weight = _normal(3), _normal(4)[:1]

    def score(images: Tensor) -> Tensor:
        require(
            isinstance(images, Tensor) and images.shape == x.shape,
            "the score takes whole pictures (B, 3, H, W): no part cut out, but the rest set to 0",
        )
        return (images * weight + images.square()).flatten(1).sum(1).square()

    made = answer(score, mask)
    require(callable(made), "expected a function of images: define one inside, and return it")
    found = made(x.clone().requires_grad_())
    require(
        not (isinstance(found, Tensor) and found.ndim == 0),
        "that is one number for the whole batch: one an image, or the images pull at one another",
    )
    expect(
        found,
        score(x * (1 - mask)),
        "the score of x0 * (1 - mask)",
        known=[
            (score(x), "the score sees the whole picture: then the background may please it, too"),
            (
                score(x * mask),
                "the mask is turned around: the edit is where it is 0",
            ),
            (
                score(x) - score(x * mask),
                "a score is no sum over pixels: show it the picture with all but the edit set to 0",
            ),
            (
                score((x * (1 - mask) + 1) / 2),
                "the score takes images in [-1, 1]: the CLIP's own encoder makes [0, 1] of them",
            ),
        ],
    )
    require(
        found.requires_grad,
        "the value is right, but no gradient leads back to the picture: no detach, no no_grad",
    )
    return "what is kept cannot please the score"


# ---------------------------------------------------------------------------- two pixels, exactly

RHO = 0.9  # the correlation of the two pixels, each N(0, 1)


def pair_step(denoise, x, here: NoiseLevel, there: NoiseLevel, past=(), *, generator=None):
    """A draw of the exact reverse kernel of two correlated pixels (B,1,1,2); needs no denoiser.

    With C_t the covariance at level t and Q = cov(x_there, x_here), x_there given x_here has the
    mean Q C_here^-1 x_here and the covariance C_there - Q C_here^-1 Q'.
    """
    C, eye = torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64), torch.eye(2).double()
    at = [level.alpha**2 * C + level.sigma**2 * eye for level in (here, there)]
    Q = here.alpha / there.alpha * at[1]
    gain = Q @ torch.linalg.inv(at[0])
    root = torch.linalg.cholesky(at[1] - gain @ Q.T + 1e-14 * eye)
    noise = randn((len(x), 2), generator, like=C)
    return (x.reshape(-1, 2) @ gain.T + noise @ root.T).reshape(-1, 1, 1, 2), None


# ---------------------------------------------------------------------------------- scenes, seams


def half_hidden(n: int, generator: Generator) -> tuple[Tensor, list[shapes.Scene]]:
    """Pictures (n,3,32,32) of one large plain thing in the middle column, and their scenes.

    All shapes are symmetric: the left half settles what the right half must be.
    """
    codes = shapes.random_codes(n, generator, pairs=0)
    codes[:, 1] = codes[:, 1] // 3 * 3 + 1  # top, centre or bottom
    codes[:, 5], codes[:, 6] = 1, 0  # large, plain
    return shapes.render(codes)[0], shapes.decode(codes)


def same(images: Tensor, scenes: Sequence[shapes.Scene]) -> Tensor:
    """In which pictures (B,3,H,W) the oracle reads exactly the scene that was meant: (B,) bool."""
    pairs = zip(shapes.read(images.cpu()), scenes, strict=True)
    return torch.tensor([found == wanted for found, wanted in pairs])


def seam(x: Tensor, mask: Tensor) -> Tensor:
    """Root mean square step (B,) between horizontal neighbours of which the mask keeps one."""
    border = (mask[..., 1:] != mask[..., :-1]).to(x)  # (1,1,H,W-1)
    steps = (x[..., 1:] - x[..., :-1]).square().mean(1, keepdim=True)
    return ((steps * border).sum((1, 2, 3)) / border.sum((1, 2, 3))).sqrt()


# --------------------------------------------------------------------------------------- pictures


def show_paths(paths: Sequence[tuple[str, Sequence[int]]]) -> plt.Figure:
    """Lists of levels, drawn as paths over the moves."""
    figure, axes = plt.subplots(1, len(paths), figsize=(9, 2.4), sharey=True)
    for axis, (title, levels) in zip(axes, paths, strict=True):
        axis.plot(levels, lw=1)
        calls = sum(b < a for a, b in pairwise(levels))
        axis.set(title=f"{title}: {calls} calls", xlabel="moves")
    axes[0].set_ylabel("level")
    plt.close(figure)
    return figure


def film(frames: Iterable[Frame], levels: Sequence[int]) -> list[Image.Image]:
    """One picture a move: where on the path it is, x_t, and the last predicted x0."""
    width, side, steps = 300, 96, max(levels)
    points = [
        (10 + i * (width - 20) / (len(levels) - 1), side - 10 - k * (side - 20) / steps)
        for i, k in enumerate(levels)
    ]
    pictures, x0 = [], None
    for (x, y), frame in zip(points[1:], frames, strict=True):
        x0 = frame.prediction.x0 if frame.prediction is not None else x0
        canvas = Image.new("RGB", (width + 2 * side + 16, side), "white")
        pen = ImageDraw.Draw(canvas)
        pen.line(points, fill="#b0b0b0")
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=plot.COLOURS[1])
        for i, image in enumerate((frame.x, x0)):
            cell = Image.fromarray(plot.pixels(image[:1].clamp(-1, 1))[0])
            cell = cell.resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(cell, (width + i * (side + 8), 0))
        pictures.append(canvas)
    return pictures
