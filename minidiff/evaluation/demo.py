"""The demo sheet: what the shipped models draw, and how a picture comes out of noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from minidiff import plot, zoo

CAPTIONS = (
    "a large red heart at the centre on a cream background",
    "a small yellow circle at the top left on a navy background",
    "a large striped blue ring at the centre on a white background",
    "a large green square left of a small orange star on a mint background",
    "a large pink triangle above a large purple circle on a lavender background",
    "a large dotted cyan heart at the right on a grey background",
    "a large red star at the centre on a white background",
    "a large green heart at the bottom on a cream background",
)
EMOJI = (
    "red apple",
    "a rocket",
    "smiling cat with heart eyes",
    "snowman",
    "blue heart",
    "green heart",  # the last three were held out of training
    "blue circle",
    "red square",
)
CLASSES = ("automobile", "horse", "ship", "truck")
COLUMNS = 8


def draw(path: str | Path, say: Callable[[str], None] = print) -> Path:
    """Draw the sheet to `path`; `say` is told each step. Nothing is chosen: seed 0 throughout."""
    shipped = zoo.names()
    if not shipped:
        raise FileNotFoundError("no trained model is here: expected data/*.safetensors")
    rows = []

    def timed(name: str, what: str, make: Callable[[zoo.Diffusion], Tensor]) -> Tensor:
        start = time.perf_counter()
        images = make(zoo.load(name)).cpu()
        say(f"{name}: {len(images)} {what}, {time.perf_counter() - start:.1f} s")
        return images

    strip = timed("shapes", "moments of one trajectory", _strip)
    rows.append(("from noise\npredicted x₀ as t falls", strip))
    drawn = timed("shapes", "captions, guidance 3", _by_words(CAPTIONS))
    rows.append(("words\nguidance 3", drawn, CAPTIONS))
    drawn = timed("emoji", "names, guidance 3", _by_words(EMOJI))
    rows.append(("emoji\nguidance 3", drawn, EMOJI))
    labels = [name for name in CLASSES for _ in range(COLUMNS)]
    drawn = timed(
        "cifar10",
        "images of classes, guidance 2",
        lambda model: model.sample(labels, scale=2, progress=True),
    )
    rows += list(zip(CLASSES, drawn.split(COLUMNS), strict=True))
    drawn = timed(
        "butterflies", "butterflies", lambda model: model.sample(n=COLUMNS, progress=True)
    )
    rows.append(("butterflies\nno prompt", drawn))
    return plot.save(plot.rows(rows), path)


def _by_words(captions: Sequence[str]) -> Callable[[zoo.Diffusion], Tensor]:
    return lambda model: model.sample(captions, scale=3, progress=True)


def _strip(model: zoo.Diffusion) -> Tensor:
    """The predicted x0 of one image at eight moments."""
    frames = list(model.frames(CAPTIONS[2], 1, scale=3))
    picks = [round(i * (len(frames) - 1) / (COLUMNS - 1)) for i in range(COLUMNS)]
    return torch.cat([frames[i].prediction.x0 for i in picks])
