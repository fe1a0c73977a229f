"""What the small CLIPs are worth, measured: the figures in their cards."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from minidiff import metrics
from minidiff.clip.model import CLIP
from minidiff.clip.use import image_features, text_features, zero_shot
from minidiff.data import images, shapes
from minidiff.evaluation.cards import write_page
from minidiff.evaluation.classifier import load_classifier
from minidiff.evaluation.figure import Figure, share
from minidiff.recipes.clip import TEMPLATES

#: The columns of a scene's code that a word of its caption stands for, and their words.
WORDS = {
    0: shapes.BACKGROUNDS,
    1: shapes.POSITIONS,
    3: shapes.SHAPES,
    4: shapes.COLOURS,
    5: shapes.SIZES,
    6: shapes.TEXTURES,
}


def report_shapes(model: CLIP, n: int = 500) -> list[Figure]:
    """Finding captions, naming colours and shapes, and differences that name themselves."""
    every = _all_codes_of_one_thing()
    texts = text_features(model, shapes.captions(shapes.decode(every)))
    figures = []
    for kind, held_out in (("seen in training", False), ("held out of training", True)):
        codes = shapes.random_codes(n, Generator().manual_seed(2000), pairs=0.0, held_out=held_out)
        drawn, _ = shapes.render(codes, generator=Generator().manual_seed(2001))
        cosines = image_features(model, drawn) @ texts.T
        found = every[cosines.argmax(dim=1).cpu()]
        note = f"% of {n} images find their caption among {len(every):,}"
        figures.append(share(f"pairs {kind}: R@1", (found == codes).all(dim=1), note))
        for what, column, names, templates in (
            ("colour", 4, shapes.COLOURS, [f"a {{}} {shape}" for shape in shapes.SHAPES]),
            ("shape", 3, shapes.SHAPES, [f"a {colour} {{}}" for colour in shapes.COLOURS]),
        ):
            says = zero_shot(model, drawn, names, templates).argmax(dim=1).cpu()
            right = says == codes[:, column]
            figures.append(share(f"pairs {kind}: zero-shot {what}", right, f"% of {n} images"))
    return figures + _differences(model, n)


def _differences(model: CLIP, n: int) -> list[Figure]:
    """How often the word nearest to the difference of two images names what differs.

    Two images of one caption differ, too. They say how much a direction means nothing, and there
    all differences count for less: space is whitened by those of other scenes.
    """
    words, directions = _word_directions(model)
    scenes = shapes.random_codes(n, Generator().manual_seed(2005), pairs=0.0, held_out=None)
    space = _whitening(_change(model, scenes, scenes, 2006))
    directions = F.normalize(directions @ space, dim=1)
    figures = []
    for what, changed in (("differ in one attribute", True), ("have the same caption", False)):
        before, after, named = _twins(n, changed)
        difference = F.normalize(_change(model, before, after, 2002) @ space, dim=1)
        nearest = (difference @ directions.T).argmax(dim=1).cpu()
        if changed:
            right = torch.tensor([words[i] == w for i, w in zip(nearest, named, strict=True)])
            note = f"% of {n} differences are nearest to the word for it, of {len(words)}"
            figures.append(share(f"twins that {what}", right, note))
        else:
            most = nearest.bincount(minlength=len(words)).max() / n * len(words)
            note = f"times chance: how often the most frequent word is the nearest, {n} pairs"
            figures.append(Figure(f"control: twins that {what}", most.item(), note=note))
    return figures


def _change(model: CLIP, before: Tensor, after: Tensor, seed: int) -> Tensor:
    """Embeddings of scenes (n,11) less those of others; each is drawn anew. (n, embed)"""
    first, second = (
        image_features(model, shapes.render(codes, generator=Generator().manual_seed(s))[0])
        for s, codes in ((seed, before), (seed + 1, after))
    )
    return second - first


def _whitening(noise: Tensor) -> Tensor:
    """The symmetric matrix (D,D) that makes noise (n,D) as large in all directions, nearly: its
    mean variance is added, for few samples know the small ones badly."""
    values, vectors = torch.linalg.eigh(noise.T @ noise / len(noise))
    return vectors * (values + values.mean()).rsqrt() @ vectors.T


def report_cifar10(model: CLIP, n: int = 10_000) -> list[Figure]:
    """Zero-shot accuracy on the test images, beside that of the supervised classifier."""
    test = images.cifar10(train=False)
    labels, drawn = test.labels[:n], images.to_float(test.images[:n])
    note = f"% of {n:,} test images"
    figures = []
    for what, templates in (
        (f"zero-shot, {len(TEMPLATES)} templates", TEMPLATES),
        ('zero-shot, "a photo of a {}"', ["a photo of a {}"]),
    ):
        says = zero_shot(model, drawn, test.classes, templates).argmax(dim=1).cpu()
        figures.append(share(what, says == labels, note))
    says = metrics.features(load_classifier(), drawn).argmax(dim=1)
    figures.append(share("the supervised classifier, cifar10_classifier", says == labels, note))
    return figures


def _all_codes_of_one_thing() -> Tensor:
    """Every scene of one thing, (10368, 11): large things alone have textures."""
    looks = [[0, 0], *([1, texture] for texture in range(len(shapes.TEXTURES)))]
    counts = (len(shapes.BACKGROUNDS), len(shapes.POSITIONS), len(shapes.SHAPES))
    counts += (len(shapes.COLOURS), len(looks))
    codes = torch.zeros(math.prod(counts), 11, dtype=torch.int64)
    columns = torch.cartesian_prod(*map(torch.arange, counts))
    codes[:, [0, 1, 3, 4]], codes[:, 5:7] = columns[:, :4], torch.tensor(looks)[columns[:, 4]]
    return codes


def _word_directions(model: CLIP, n: int = 4000) -> tuple[list[tuple[int, int]], Tensor]:
    """Words as (column, value), and where the captions that have one lie from the mean caption."""
    codes = shapes.random_codes(n, Generator().manual_seed(2003), pairs=0.0, held_out=None)
    texts = text_features(model, shapes.captions(shapes.decode(codes)))
    texts = texts - texts.mean(dim=0)
    words = [(column, value) for column, names in WORDS.items() for value in range(len(names))]
    means = [texts[codes[:, column] == value].mean(dim=0) for column, value in words]
    return words, F.normalize(torch.stack(means), dim=1)


def _twins(n: int, changed: bool) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Codes of n scenes of one large thing, those of their twins, and what is new there."""
    generator = Generator().manual_seed(2004)
    before = shapes.random_codes(n, generator, pairs=0.0, held_out=None)
    before[:, 5] = 1
    after, named = before.clone(), []
    for row, twin in zip(before, after, strict=True):
        column = list(WORDS)[int(torch.randint(len(WORDS), (), generator=generator))]
        others = [v for v in range(len(WORDS[column])) if v != row[column]]
        value = others[int(torch.randint(len(others), (), generator=generator))]
        if changed:
            twin[column] = value
            if column == 5:  # small things are plain
                row[6] = twin[6] = 0
        named.append((column, value))
    return before, after, named


def write_card(
    path: Path, name: str, model: CLIP, card: dict, figures: list[Figure], command: str
) -> None:
    """The card of a small CLIP as Markdown; `command` measured the figures."""
    c, millions = model.config, sum(p.numel() for p in model.parameters()) / 1e6
    network = f"CLIP, {millions:.2f}M parameters, {c.size} px in patches of {c.patch}"
    write_page(path, name, network, card, figures, command)
