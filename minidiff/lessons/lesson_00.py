"""Lesson 00, the bug museum: the exhibits, and the checks of what the visitor says of them.

The wrong lines live here, so that the notebook does not give them away. Each exhibit returns what
the right code makes and what the wrong one makes, from the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor, nn

from minidiff import plot
from minidiff.denoiser import Denoiser
from minidiff.lessons import Wrong, exercise, expect, mixture, require
from minidiff.noise import per_image, randn
from minidiff.samplers import ddim_step, ddpm_step, trajectory
from minidiff.schedule import NoiseLevel, NoiseSchedule, add_noise

SCHEDULE = NoiseSchedule.linear()
Path = Sequence[NoiseLevel]


# ----------------------------------------------------------------------------------------- answers


def choose(answer: object, right: str, praise: str, wrong: dict[str, str]) -> str:
    """Judge a multiple choice: the praise for the right letter, Wrong with what speaks against
    another."""
    letter = str(answer).strip().lower()
    letters = sorted([right, *wrong])
    require(letter in letters, f"expected one of the letters {', '.join(letters)}")
    if letter != right:
        raise Wrong(wrong[letter])
    return praise


@exercise
def check_grain(answer):
    return choose(
        answer,
        "b",
        "the grain is fresh noise that no later step takes away",
        {
            "a": "the row above has as many steps",
            "c": "another network could not make the clean row above",
        },
    )


@exercise
def check_root(answer):
    return choose(
        answer,
        "c",
        "too little noise is taken out at every step, and it piles up",
        {
            "a": "the upper strip is by the same network, which was loaded",
            "b": "a dose at the very end would lie over a finished picture; here none is ever made",
        },
    )


@exercise
def check_stride(answer):
    return choose(
        answer,
        "a",
        "the sampler lands at another level than the one the network is told next",
        {
            "b": "the schedule of training is the same in both rows, as the network is",
            "c": "nothing is drawn after the first noise: DDIM with eta = 0 has none to add",
        },
    )


@exercise
def check_counter(answer):
    return choose(
        answer,
        "c",
        "the strength should follow t and follows the loop counter",
        {
            "a": "all rows have the same scale; look at the curve, at when it acts",
            "b": "with the sign turned, the pictures would flee from the colour",
        },
    )


@exercise
def check_gradient(answer):
    return choose(
        answer,
        "b",
        "every gradient is multiplied by the loss: the lower the loss, the slower it learns",
        {
            "a": "both lines have as many updates: look where they end on the x axis",
            "c": "the batches are the same, seed by seed, in both runs",
        },
    )


@exercise
def check_dropped(answer):
    return choose(
        answer,
        "b",
        "nine in ten lose their label, where it should be one in ten",
        {
            "a": "a word that is never shown would be missing from both rows",
            "c": "shuffled labels are wrong labels; here they are missing",
        },
    )


@exercise
def check_range(answer):
    return choose(
        answer,
        "a",
        "-1..1 was taken for 0..1: all that is darker than grey became black",
        {
            "b": "exchanged channels would turn red into blue; the hues have stayed",
            "c": "a crop would cut edges off; nothing has moved",
        },
    )


@exercise
def check_known(answer):
    return choose(
        answer,
        "c",
        "the known half has too little noise for its level",
        {
            "a": "a turned mask would draw the known half anew; it is the right picture, only too "
            "clean",
            "b": "both finished rows have the left half: the paste at the end is there",
        },
    )


@exercise
def check_known_part(answer):
    """answer(image, level, noise) -> the known pixels at a level."""
    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, 2, 3, 8, 8, generator=generator)
    level = SCHEDULE.level(300)
    expect(
        answer(image, level, noise),
        level.alpha * image + level.sigma * noise,
        "it is the jump of lesson 1",
        known=[
            (
                level.alpha * image + level.sigma**2 * noise,
                "that is the paper's line 5 to the letter: the square root is missing, so the "
                "noise has the deviation 1 - alpha_bar",
            ),
            (image, "the known half must be as noisy as the rest, or the network sees a seam"),
        ],
    )
    return "x_known = alpha x0 + sigma eps"


@exercise
def check_drop(answer):
    """answer(labels, null, chance, generator) -> labels with some replaced by null."""
    labels = torch.arange(20_000) % 10
    out = answer(labels, 10, 0.1, torch.Generator().manual_seed(3))
    require(isinstance(out, Tensor) and out.shape == labels.shape, "return one label a picture")
    share = (out == 10).double().mean().item()
    require(abs(share - 0.9) > 0.02, f"{share:.0%} are dropped: the comparison is the wrong way")
    require(0.08 < share < 0.12, f"{share:.1%} are dropped, where `chance` says 10%")
    kept = out != 10
    require(torch.equal(out[kept], labels[kept]), "a label that is kept must not change")
    runs = (out == 10).reshape(-1, 100).double().mean(1)
    require(runs.max() < 0.5, "drop label by label, not whole batches")
    return f"{share:.1%} of 20,000 labels are dropped"


# ---------------------------------------------------------------------------------------- exhibits


@torch.no_grad()
def walk(step: Callable, denoise: Denoiser, x: Tensor, path: Path, seed: int = 0) -> list[Tensor]:
    """All x of a trajectory."""
    generator = torch.Generator().manual_seed(seed)
    return [frame.x for frame in trajectory(step, denoise, x, path, generator=generator)]


@torch.no_grad()
def grain(denoise: Denoiser, x: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    """DDPM with large variance, and with noise on its last step too (labml's p_sample)."""

    def step(denoise, x, here, there, past=(), *, generator=None):
        return ddpm_step(denoise, x, here, there, past, variance="large", generator=generator)

    clean = walk(step, denoise, x, path)[-1]
    beta = 1 - path[-2].alpha ** 2  # of the last step
    generators = per_image(torch.Generator().manual_seed(1), len(x))
    return clean, clean + math.sqrt(beta) * randn(x.shape, generators, like=x)


@torch.no_grad()
def root(denoise: Denoiser, x: Tensor, path: Path) -> list[Tensor]:
    """All x of DDIM with 1 - alpha_bar in the place of its root, when x0 is solved for."""
    found = []
    for here, there in pairwise(path):
        eps = denoise(x, here).eps
        x0 = (x - here.sigma**2 * eps) / here.alpha
        x = there.alpha * x0.clamp(-1, 1) + there.sigma * eps
        found.append(x)
    return found


@torch.no_grad()
def stride(denoise: Denoiser, x: Tensor, schedule: NoiseSchedule, steps: int) -> Tensor:
    """DDIM on even spacing from T to 1 that takes t - T // steps for the next level."""
    for here in schedule.path(steps, "linspace")[:-1]:
        there = schedule.level(max(here.t - schedule.T // steps, 0))
        x, _ = ddim_step(denoise, x, here, there)
    return x


@torch.no_grad()
def coloured(
    denoise: Denoiser, x: Tensor, path: Path, colour: Tensor, strengths: Sequence[float]
) -> Tensor:
    """Colour guidance by the shortcut, as courses write it: x is moved along the gradient of the
    distance of x0 to a colour, scaled by a strength for each step; eps stays."""
    for (here, there), strength in zip(pairwise(path), strengths, strict=True):
        prediction = denoise(x, here)
        gradient = (prediction.x0 - colour).sign() / (here.alpha * x[0].numel())
        moved = x - strength * gradient
        x0 = ((moved - here.sigma * prediction.eps) / here.alpha).clamp(-1, 1)
        x = there.alpha * x0 + there.sigma * prediction.eps
    return x


def training(optimiser: Callable, by_loss: bool, steps: int) -> list[float]:
    """The losses of a small network that learns the noise of four islands of points."""
    torch.manual_seed(0)
    generator = Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
    network.append(nn.Linear(64, 2))
    optimiser = optimiser(network.parameters())
    losses = []
    for _ in range(steps):
        x0 = mixture.points(256, generator)
        t = torch.randint(1, 1001, (256,), generator=generator)
        noise = mixture.noise(256, generator)
        x = add_noise(x0, SCHEDULE.level(t), noise).flatten(1)
        out = network(torch.cat([x, t[:, None] / 1000], 1).float())
        loss = (out - noise.flatten(1)).square().mean()
        optimiser.zero_grad()
        loss.backward(loss if by_loss else None)
        optimiser.step()
        losses.append(loss.item())
    return losses


def smooth(losses: Sequence[float], width: int) -> tuple[list[int], list[float]]:
    """The means of `width` losses each, and the steps they stand for."""
    means = torch.tensor(losses).unfold(0, width, width).mean(1)
    return [width * (i + 1) for i in range(len(means))], means.tolist()


def dropped(captions: Sequence[str], seed: int = 0) -> tuple[list[str], list[str]]:
    """The captions that a network is shown: one in ten without, and nine in ten."""
    xi = torch.rand(len(captions), generator=Generator().manual_seed(seed))
    right = ["(none)" if x < 0.1 else c for x, c in zip(xi, captions, strict=True)]
    return right, ["(none)" if x > 0.1 else c for x, c in zip(xi, captions, strict=True)]


def beside(above: Tensor, below: Tensor) -> Image.Image:
    """One frame of an animation: two rows of pictures (B,3,H,W), three times as large."""
    rows = [np.concatenate(list(plot.pixels(x.clamp(-1, 1))), 1) for x in (above, below)]
    picture = Image.fromarray(np.concatenate(rows, 0))
    return picture.resize((3 * picture.width, 3 * picture.height), Image.Resampling.NEAREST)


def seen_by_clip(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] as CLIP understands them: mapped to [0, 1] before, and not."""
    return images, images.clamp(0, 1) * 2 - 1


@torch.no_grad()
def known_half(
    denoise: Denoiser, x: Tensor, path: Path, image: Tensor, keep: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """All x of RePaint without resampling, with the root and as printed in its algorithm 1."""
    found = []
    for power in (1, 2):
        generator = torch.Generator().manual_seed(5)

        def edit(x: Tensor, level: NoiseLevel, power=power, generator=generator) -> Tensor:
            noise = torch.randn(image.shape, generator=generator).to(x.device)
            return torch.where(keep, level.alpha * image + level.sigma**power * noise, x)

        draws = torch.Generator().manual_seed(6)
        frames = trajectory(ddpm_step, denoise, x, path, edit=edit, generator=draws)
        found.append([frame.x for frame in frames])
    return found[0], found[1]
