"""What the shipped models are worth, measured: the figures in their cards.

Each report is a list of (what, value, low, high, note): a 95% interval where there is one. Under
torchrun the samples are shared out over the processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Generator, Tensor

from minidiff import metrics
from minidiff.data import images, shapes
from minidiff.data.emoji import HELD_OUT, noto_emoji
from minidiff.evaluation.classifier import load_classifier
from minidiff.evaluation.figure import Figure, share
from minidiff.samplers import Step, ddim_step
from minidiff.text import Prompt
from minidiff.training import rank, world
from minidiff.zoo import Diffusion


def sample_many(
    model: Diffusion,
    prompts: Sequence[Prompt],
    *,
    scale: float = 1.0,
    negative: Prompt = None,
    steps: int = 50,
    seed: int = 0,
    step: Step = ddim_step,
    spacing: str | None = None,
    progress: bool = True,
) -> Tensor:
    """`model.sample` of one image for each prompt, (n, *shape) on the CPU, shared out over the
    processes: image i of a seed is the same whatever their number."""
    n, mine = len(prompts), range(rank(), len(prompts), world())
    drawn = model.sample(
        prompts,
        n,
        scale=scale,
        negative=negative,
        steps=steps,
        seed=seed,
        step=step,
        spacing=spacing,
        only=mine,
        progress=progress and rank() == 0,
    ).cpu()
    if not dist.is_initialized():
        return drawn
    parts: list = [None] * world()
    dist.all_gather_object(parts, drawn)
    images = torch.empty(n, *drawn.shape[1:])
    for process, part in enumerate(parts):
        images[process :: world()] = part
    return images


def report_shapes(model: Diffusion, n: int = 500, scale: float = 3.0) -> list[Figure]:
    """Full captions against the oracle: everything a caption says must be in the picture."""
    figures = []
    kinds = {
        "one thing, pairs of colour and shape seen in training": (0.0, False),
        "one thing, pairs held out of training": (0.0, True),
        "two things, pairs seen in training": (1.0, False),
        "two things, pairs held out of training": (1.0, True),
    }
    for seed, (name, (pairs, held_out)) in enumerate(kinds.items()):
        scenes = shapes.random_scenes(
            n, Generator().manual_seed(1000 + seed), pairs=pairs, held_out=held_out
        )
        captions = shapes.captions(scenes)
        drawn = sample_many(model, captions, scale=scale, seed=seed)
        note = f"% of {n} full captions right by the oracle, guidance {scale:g}"
        figures.append(share(name, shapes.grade(captions, drawn), note))
        if seed == 0:
            shuffled = [captions[i - 1] for i in range(n)]
            control = shapes.grade(shuffled, drawn)
            figures.append(share("control: the same pictures, captions exchanged", control, "%"))
    corner = [shapes.Scene(shapes.Thing("circle", "red"), "bottom right", "white")] * 64
    drawn = sample_many(model, shapes.captions(corner), scale=scale)[:, :, 1:9, 1:9]
    note = "period of two pixels against other periods; 1 is none"
    figures.append(Figure("texture in flat corners", texture(drawn), note=note))
    note = "of 255 grey levels, standard deviation; a difference of 1 cannot be seen"
    figures.append(Figure("grain in flat corners", 127.5 * levelled(drawn).std().item(), note=note))
    return figures


def texture(images: Tensor) -> float:
    """How much of the variation of flat areas has a period of two pixels, against the rest.

    Flat areas (B,3,8,8) cut from pictures, a linear shading is no matter; about 1 without a
    texture of the patch's size.
    """
    # (8, 8), frequency 4 has period 2
    power = torch.fft.fft2(levelled(images)).abs().square().mean((0, 1))
    others = [1, 2, 3, 5, 6, 7]
    period_two = torch.cat([power[4], power[[0, *others], 4]]).mean()
    return (period_two / power[others][:, others].mean()).sqrt().item()


def levelled(images: Tensor) -> Tensor:
    """Flat areas (B,3,8,8) without their mean and their linear shading."""
    flat, ramp = images - images.mean((2, 3), keepdim=True), torch.arange(8) - 3.5
    for slope in (ramp, ramp[:, None]):
        flat = flat - slope * (flat * slope).mean((2, 3), keepdim=True) / ramp.square().mean()
    return flat


def report_cifar10(
    model: Diffusion, n: int = 5000, scale: float = 1.5, steps: int = 25
) -> list[Figure]:
    """Distance to the test images and class accuracy, by a classifier that was not used to train.

    The floor is the distance between two halves of the test set.
    """
    judge = load_classifier().to(model.device)
    test = images.cifar10(train=False)
    real = metrics.features(judge.features, images.to_float(test.images))
    labels = torch.arange(n) % 10
    drawn = sample_many(model, labels.tolist(), scale=scale, steps=steps)
    fake = metrics.features(judge.features, drawn)
    says = metrics.features(judge, drawn).argmax(1)
    distance, floor = metrics.with_floor(
        metrics.frechet_distance, real, fake, Generator().manual_seed(0)
    )
    precision, recall = metrics.precision_recall(real[:n], fake)
    train = images.to_float(images.cifar10().images)
    copies = metrics.memorisation(drawn[:500], images.to_float(test.images[:500]), train, flip=True)
    how = f"{n} images, guidance {scale:g}, DDIM {steps}"
    return [
        Figure("Frechet distance to test images", distance, note=f"classifier features; {how}"),
        Figure("its floor, test images to test images", floor, note="the same numbers of images"),
        share("class accuracy under the classifier", says == labels, f"%; {how}"),
        Figure("precision", precision, note="k = 3, classifier features"),
        Figure("recall", recall, note="k = 3, classifier features"),
        Figure(
            "distance to the nearest training image, over that of test images",
            copies,
            note="500 images, pixels; copies would be near 0",
        ),
    ]


def report_butterflies(model: Diffusion, n: int = 256) -> list[Figure]:
    """Are they copies? Distances to the training images, against those of held-out butterflies."""
    train, held_out = images.split(images.to_float(images.butterflies(model.size).images))
    drawn = sample_many(model, [None] * n)
    near = metrics.nearest_neighbours(drawn, train, flip=True)[0][:, 0]
    usual = metrics.nearest_neighbours(held_out, train, flip=True)[0][:, 0]
    ratio = metrics.memorisation(drawn, held_out, train, flip=True)
    closest = usual.quantile(0.02)
    return [
        Figure(
            "distance to the nearest training image, over that of held-out butterflies",
            ratio,
            note=f"medians of {n} samples and {len(held_out)} real ones; copies would be near 0",
        ),
        share(
            "samples nearer to a training image than 98% of held-out butterflies are",
            near < closest,
            "%; 2% expected without copying",
        ),
    ]


def report_emoji(model: Diffusion, n: int = 400, scale: float = 3.0) -> list[Figure]:
    """Is a picture, of all emoji, nearest to the one it was asked for? Names learnt and new."""
    data = noto_emoji(model.size)
    real = images.to_float(data.images)
    known = [i for i, name in enumerate(data.captions) if name not in HELD_OUT]
    known = known[:: math.ceil(len(known) / n)]
    new = [data.captions.index(name) for name in HELD_OUT for _ in range(8)]
    figures = []
    for what, asked in (("names learnt", known), ("names held out of training", new)):
        drawn = sample_many(model, [data.captions[i] for i in asked], scale=scale)
        nearest = metrics.nearest_neighbours(drawn, real)[1][:, 0]
        note = f"% of {len(asked)} pictures, in pixels, of {len(real)} emoji; guidance {scale:g}"
        wanted = torch.tensor(asked)
        figures.append(
            share(f"{what}: the emoji of that name is the nearest", nearest == wanted, note)
        )
        exchanged = nearest == wanted.roll(8)  # the next name, for those drawn eight times
        figures.append(share("control: the same pictures, names exchanged", exchanged, "%"))
    return figures
