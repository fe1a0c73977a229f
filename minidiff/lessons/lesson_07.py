"""Lesson 07, CLIP: checks of its exercises, and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from matplotlib import pyplot as plt
from torch import Tensor
from torch.nn import functional as F

from minidiff.clip import CLIPConfig, Preprocess
from minidiff.data.shapes import COLOURS, SHAPES, Scene, random_codes, random_scenes
from minidiff.lessons import exercise, expect, require
from minidiff.metrics import wilson


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------------------- checks


@exercise
def check_merge(answer: Callable) -> str:
    """answer(parts, pair) -> parts with every such pair made one, from the left."""
    parts = ["r", "e", "d", "r", "e", "d", "d", "e"]
    found = answer(list(parts), ("e", "d"))
    require(isinstance(found, list), f"expected a list of symbols, got a {type(found).__name__}")
    require(
        "".join(found) == "".join(parts),
        f"the symbols spell {''.join(found)!r}, they were {''.join(parts)!r}: nothing may be lost",
    )
    require(
        found != ["r", "ed", "r", "e", "d", "d", "e"],
        "only the first pair was merged: a merge applies wherever the pair stands",
    )
    require(
        found != ["r", "ed", "r", "ed", "de"],
        "e after d was merged too: the order within a pair counts",
    )
    require(
        found == ["r", "ed", "r", "ed", "d", "e"],
        f"{' '.join(parts)} became {' '.join(found)}: expected r ed r ed d e",
    )
    require(
        answer(["o", "o", "o"], ("o", "o")) == ["oo", "o"],
        "o o o must become oo o: pairs are taken from the left and do not overlap",
    )
    require(answer(["a"], ("a", "b")) == ["a"], "a single symbol has no pair, and stays")
    return "every pair, from the left, none twice"


@exercise
def check_loss(answer: Callable) -> str:
    """answer(images, texts, scale) -> the symmetric contrastive loss of features (B,D)."""
    images, texts, scale = 3 * _normal(6, 5), 2 * _normal(6, 5, seed=1), torch.tensor(4.0)
    right = torch.arange(6)
    cosines = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    by_row, by_column = (F.cross_entropy(4 * c, right) for c in (cosines, cosines.T))
    raw = 4 * images @ texts.T
    cold = F.cross_entropy(cosines, right) + F.cross_entropy(cosines.T, right)
    expect(
        answer(images, texts, scale),
        (by_row + by_column) / 2,
        "cross-entropy over each row and over each column of scale * cosines, halved",
        known=[
            (by_row, "only images look for their texts: texts look for their images too"),
            (by_column, "only texts look for their images: images look for their texts too"),
            (by_row + by_column, "the two losses are added: CLIP takes their mean"),
            (
                (F.cross_entropy(raw, right) + F.cross_entropy(raw.T, right)) / 2,
                "the features are not normalised: the product of unit vectors is a cosine",
            ),
            (cold / 2, "the scale is missing: cosines alone differ too little for a softmax"),
            (
                (F.cross_entropy(cosines / 4, right) + F.cross_entropy(cosines.T / 4, right)) / 2,
                "the cosines are divided by the scale: it multiplies them (1/temperature)",
            ),
            (
                (F.cross_entropy(4 * cosines, right, reduction="sum") + 6 * by_column) / 2,
                "the losses are summed over the batch: take means",
            ),
            (1 - cosines.diagonal().mean(), "that only attracts: the wrong pairs are not used"),
        ],
    )
    require(
        abs(answer(torch.ones(6, 5), torch.ones(6, 5), scale) - torch.tensor(6.0).log()) < 1e-4,
        "of equal features the loss must be ln(B): nothing can be told apart",
    )
    return "each image finds its text, and each text its image"


@exercise
def check_prepare(answer: Callable) -> str:
    """answer(images, preprocess) -> what the encoder wants of images in [-1, 1]."""
    preprocess = Preprocess(CLIPConfig())
    images = _normal(2, 3, 8, 8).clamp(-1, 1)
    mean, std = (torch.tensor(x).double()[:, None, None] for x in _PUBLISHED)
    expect(
        answer(images.clone(), preprocess),
        ((images + 1) / 2 - mean) / std,
        "bring [-1, 1] to [0, 1], then normalise",
        known=[
            (
                (images - mean) / std,
                "images in [-1, 1] are fed where [0, 1] is due: CLIP sees everything too dark and "
                "too hard. A course shipped this, and CLIP still answers, only worse",
            ),
            ((images + 1) / 2, "the range is right, but red, green and blue are not normalised"),
            (
                (127.5 * (images + 1) - mean) / std,
                "images in 0..255 are fed where [0, 1] is due",
            ),
            (((images + 1) / 2).clamp(0, 1), "the images are not normalised"),
        ],
    )
    return "from [-1, 1] to [0, 1], then normalised"


_PUBLISHED = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def correct(probs: Tensor, scenes: Sequence[Scene], what: str) -> Tensor:
    """Whether the likeliest "colour" or "shape" is the thing's: probs (N,names) -> (N,) of bool."""
    names = {"colour": COLOURS, "shape": SHAPES}[what]
    truth = torch.tensor([names.index(getattr(scene.thing, what)) for scene in scenes])
    return probs.argmax(1).cpu() == truth


def told(name: str, right: Tensor, ways: int) -> tuple[float, float]:
    """Prints how many of (N,) are right, where chance is 1 in `ways`; returns the interval."""
    hits, n = right.sum().item(), len(right)
    low, high = wilson(hits, n)
    print(f"{name}: {hits / n:.1%} ({low:.1%} to {high:.1%}), chance {1 / ways:.1%}")
    return low, high


def twins(
    n: int, columns: Mapping[int, Sequence[str]], generator: torch.Generator
) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Codes (n,11) of scenes of one thing, those of their twins, and what each twin has of its own:
    a (column, value). `columns` may change, in turn, and are given with their words."""
    before = random_codes(n, generator, pairs=0.0)
    after, changed = before.clone(), []
    for row, twin in enumerate(after):
        column = list(columns)[row % len(columns)]
        count = len(columns[column])
        twin[column] = (twin[column] + 1 + row % (count - 1)) % count
        changed.append((column, twin[column].item()))
    return before, after, changed


def two_things(n: int, generator: torch.Generator) -> list[Scene]:
    """Scenes of two things, of two colours and two shapes."""
    scenes: list[Scene] = []
    while len(scenes) < n:
        drawn = random_scenes(n, generator, pairs=1.0)
        scenes += [s for s in drawn if s.thing.colour != s.other.colour]
        scenes = [s for s in scenes if s.thing.shape != s.other.shape]
    return scenes[:n]


def slips(scenes: Sequence[Scene]) -> dict[str, list[Scene]]:
    """What scenes of two things might be taken for: two have another word, two have the same."""
    found: dict[str, list[Scene]] = {
        "another colour": [],
        "another shape": [],
        "colours exchanged": [],
        "places exchanged": [],
    }
    for i, scene in enumerate(scenes):
        a, b = scene.thing, scene.other
        colours = [colour for colour in COLOURS if colour not in (a.colour, b.colour)]
        shapes = [shape for shape in SHAPES if shape not in (a.shape, b.shape)]
        wrong = (
            (replace(a, colour=colours[i % len(colours)]), b),
            (replace(a, shape=shapes[i % len(shapes)]), b),
            (replace(a, colour=b.colour), replace(b, colour=a.colour)),
            (b, a),
        )
        for slip, (thing, other) in zip(found.values(), wrong, strict=True):
            slip.append(replace(scene, thing=thing, other=other))
    return found


# ---------------------------------------------------------------------------------------- pictures


def similarity(cosines: Tensor, texts: Sequence[str]) -> plt.Figure:
    """Cosines (N,N) of images (rows) and texts (columns) as shades, the texts written below."""
    figure, axis = plt.subplots(figsize=(6.4, 4.6))
    shown = axis.imshow(cosines.cpu().numpy(), cmap="viridis", vmin=-0.4, vmax=1)
    axis.set_xticks(range(len(texts)), texts, rotation=35, ha="right", fontsize=8)
    axis.set(yticks=range(len(cosines)), ylabel="image")
    figure.colorbar(shown, label="cosine")
    plt.close(figure)
    return figure


def losses(lines: Mapping[str, Sequence[float]], floor: float, name: str) -> plt.Figure:
    """Losses against the step, beside one level that means something."""
    figure, axis = plt.subplots(figsize=(6.4, 2.8))
    for label, values in lines.items():
        axis.plot(values, label=label)
    axis.axhline(floor, color="0.6", ls="--", lw=1)
    axis.annotate(name, (0, floor), xytext=(2, 4), textcoords="offset points", color="0.4")
    axis.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axis.legend(fontsize=9)
    plt.close(figure)
    return figure


def bars(scores: Sequence[tuple[str, float]], title: str) -> plt.Figure:
    """Named values as horizontal bars, the largest on top."""
    names, values = zip(*scores, strict=True)
    figure, axis = plt.subplots(figsize=(5.2, 0.3 * len(names) + 0.8))
    axis.barh(names, values)
    axis.invert_yaxis()
    axis.set(title=title)
    plt.close(figure)
    return figure


def matrix(cosines: Tensor) -> Tensor:
    """Cosines (N,N) as a picture (1,3,N,N): white at 1, black at -0.5 and below."""
    return (cosines.clamp(-0.5, 1) * 4 / 3 - 1 / 3)[None, None].expand(1, 3, -1, -1)
