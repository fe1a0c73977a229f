"""How the shipped diffusion models were trained, and how to train one on your own pictures.

One function a data set. `minidiff train --data NAME` runs it; its options replace what they name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from minidiff.data import images, shapes
from minidiff.data.emoji import HELD_OUT, noto_emoji
from minidiff.recipes.recipe import SMALL, Recipe
from minidiff.schedule import NoiseSchedule
from minidiff.text import ClassLabels, TextConfig, TextEncoder, vocabulary, words_of
from minidiff.training import Column, Objective, TrainConfig, TrainingSet
from minidiff.unet import UNet, UNetConfig
from minidiff.zoo import Diffusion

LONGEST = 64  # words of a caption that are read
DROP = 0.1  # share of images that are learnt without their condition, for guidance

steady = partial(Objective, min_snr=5.0)  # min-SNR weights: less grain, for networks of few weights


def captioned_shapes(size: int = 32) -> Recipe:
    """Text to image on the shapes world, without the held-out pairs of colour and shape.

    The shipped model went on from there with min-SNR weights, which took its grain away, and then
    with more images without their captions: its card has the commands.
    """
    drawn, captions = shapes.captioned(200_000, Generator().manual_seed(0), size)
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(words=shapes.WORDS, length=20))
    network = replace(
        SMALL,
        channels=48,
        multipliers=(1, 2, 3),
        attention=(1, 2),
        cross_attention=(0, 1, 2),
        context_dim=encoder.config.width,
        head_dim=24,
    )
    card = {
        "description": "Draws captioned shapes: one thing, or two with a relation.",
        "data": "200,000 scenes drawn by minidiff.data.shapes",
        "licence": "MIT, as this project",
        "limits": "It knows only the words of minidiff.data.shapes.WORDS, in such sentences.",
    }
    schedule = NoiseSchedule.linear()  # more of its levels decide what is where
    return Recipe(
        _fresh(network, schedule, size, encoder, card),
        TrainingSet(drawn, {"ids": _captions(encoder, captions)}),
        TrainConfig(images=500_000, batch=32, learning_rate=8e-4, cooldown=0.4, flip=False),
        shapes.captions(shapes.random_scenes(16, Generator().manual_seed(1))),
    )


def cifar10(size: int = 32) -> Recipe:
    """Class to image on the 50,000 training images of CIFAR-10."""
    if size != 32:
        raise ValueError(f"CIFAR-10 has 32 pixels a side: expected size 32, got {size}")
    data = images.cifar10()
    card = {
        "description": "Draws the ten classes of CIFAR-10.",
        "data": "the 50,000 training images of CIFAR-10 (Krizhevsky 2009)",
        "licence": "none stated by its author",
        "limits": "A small network that has seen each image a few times: layouts and colours "
        "are right, details smeared. For a lesson, not for use.",
    }
    network = replace(SMALL, classes=len(data.classes))
    return Recipe(
        _fresh(network, NoiseSchedule.cosine(), size, ClassLabels(data.classes), card),
        _labelled(data.images, data.labels, len(data.classes)),
        TrainConfig(images=450_000, learning_rate=8e-4),
        [name for name in data.classes for _ in range(2)],
        steady,
    )


def butterflies(size: int = 64) -> Recipe:
    """Butterflies on white, unconditional.

    Some hundred pictures are soon learnt by heart. The shipped model saw more kinds of butterflies
    first, photographed outdoors: its card has the commands.
    """
    pictures = images.butterflies(size).images
    train, held_out = images.split(pictures)
    card = {
        "description": "Draws butterflies, without a prompt.",
        "data": f"{len(train)} photographs of butterflies on white ({len(held_out)} more held out)",
        "licence": "CC0, as declared by those who collected them",
        "limits": "Few training pictures: expect wings like those in the data, rarely new species.",
    }
    return _unlabelled(train, size, card)


def emoji(size: int = 32) -> Recipe:
    """Text to image on emoji and their names, without those held out.

    The shipped model went on from there with min-SNR weights: its card has the commands.
    """
    _check_size(size)  # before anything is downloaded
    data = noto_emoji(size)
    keep = [i for i, name in enumerate(data.captions) if name not in HELD_OUT]
    names = [data.captions[i] for i in keep]
    # names have no article, prompts may: each picture is there with and without
    captions = names + [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names]
    card = {
        "description": "Draws emoji by their names.",
        "data": f"{len(names)} emoji of Google's Noto ({len(HELD_OUT)} more held out)",
        "licence": "Apache 2.0 (pictures), MIT (names)",
        "limits": "It has learnt its emoji by heart, as it should: every draw of a name is the "
        "same picture. A colour and a shape that it knows from many others go together anew; a "
        "blue apple or a cat with a hat become blots. Flat areas keep a faint grid. It knows only "
        "the words of the names.",
        # 26 from all over Unicode, and those that are new to it: four rows of eight
        "examples": [*names[13 :: len(names) // 26][:26], *HELD_OUT],
    }
    recipe = _captioned(data.images[keep].repeat(2, 1, 1, 1), captions, size, card)
    network = replace(recipe.model.network.config, channels=32, head_dim=32)
    return replace(
        recipe,
        model=reset(recipe.model, network),
        train=replace(recipe.train, images=900_000, flip=False),
    )


def folder(path: str | Path, size: int = 32) -> Recipe:
    """Anybody's pictures, by their captions in metadata.csv (columns file_name and text), if there
    are any; else sub-folders, if there are several, are classes."""
    _check_size(size)  # before a large folder is read
    data = images.image_folder(path, size)
    card = {"data": f"{len(data)} pictures of the folder {Path(path).name}"}
    if data.captions:
        return _captioned(data.images, data.captions, size, card)
    if data.labels is None:
        return _unlabelled(data.images, size, card)
    names = data.classes
    recipe = _unlabelled(data.images, size, card)
    network = replace(recipe.model.network.config, classes=len(names))
    return replace(
        recipe,
        model=_fresh(network, recipe.model.schedule, size, ClassLabels(names), card),
        data=_labelled(data.images, data.labels, len(names)),
        previews=[names[i % len(names)] for i in range(16)],
    )


def reset(model: Diffusion, network: UNetConfig, seed: int = 0) -> Diffusion:
    """The model with a network of fresh weights, those of a seed."""
    torch.manual_seed(seed)
    return replace(model, network=UNet(network))


def _fresh(
    network: UNetConfig,
    schedule: NoiseSchedule,
    size: int,
    encoder: TextEncoder | ClassLabels | None,
    card: dict,
) -> Diffusion:
    """A model of fresh weights that predicts v."""
    torch.manual_seed(0)
    shape = (network.out_channels, size, size)
    return Diffusion(UNet(network), schedule, "v", shape, encoder, card=card)


def _captions(encoder: TextEncoder, captions: Sequence[str]) -> Column:
    return Column(encoder.tokenize(captions), encoder.tokenize([""])[0], DROP)


def _captioned(pictures: Tensor, captions: Sequence[str], size: int, card: dict) -> Recipe:
    """Text to image: the vocabulary is every word of the captions, which are cut to LONGEST."""
    recipe = _unlabelled(pictures, size, card)
    known = vocabulary(captions)
    if not known:
        raise ValueError("the captions are without a word: expected what each picture shows")
    short = [" ".join(words_of(caption)[:LONGEST]) for caption in captions]
    length = max(16, *(len(caption.split()) for caption in short))
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(words=known, length=length))
    small = recipe.model.network.config
    levels = tuple(range(1, len(small.multipliers)))  # the first has the most pixels
    network = replace(small, cross_attention=levels, context_dim=encoder.config.width)
    told = sorted({caption for caption in short if caption})
    examples = card.get("examples", told[:: math.ceil(len(told) / 32)])
    # Most levels of the linear schedule decide what is where, which is what the words are about:
    # min-SNR weights would down-weight exactly those, so the plain loss trains here.
    schedule, card = NoiseSchedule.linear(), card | {"examples": examples}
    return Recipe(
        _fresh(network, schedule, size, encoder, card),
        TrainingSet(pictures, {"ids": _captions(encoder, short)}),
        replace(recipe.train, images=500_000),
        examples[-16:],
    )


def _labelled(pictures: Tensor, labels: Tensor, classes: int) -> TrainingSet:
    return TrainingSet(pictures, {"ids": Column(labels, torch.tensor(classes), DROP)})


def _check_size(size: int) -> int:
    """How many levels a size needs more than 32 pixels do; ValueError for one that cannot be."""
    if not 8 <= size <= 256:
        raise ValueError(f"size is {size}: expected 8 to 256 pixels")
    deeper = max(0, math.ceil(math.log2(size / 32)))
    if size % (unit := 8 * 2**deeper):  # a patch of 2, and half the size at each level but one
        raise ValueError(f"size is {size}: expected a multiple of {unit} pixels near that size")
    return deeper


def _unlabelled(pictures: Tensor, size: int, card: dict) -> Recipe:
    """An unconditional model: a level more for each doubling above 32 pixels, and narrower."""
    deeper = _check_size(size)
    network = replace(
        SMALL,
        channels=32 if deeper else 48,
        multipliers=(1, 2, 3, 4, 4, 4)[: 3 + deeper],
        attention=(1 + deeper, 2 + deeper),
        head_dim=32 if deeper else 24,
    )
    return Recipe(
        _fresh(network, NoiseSchedule.cosine(), size, None, card),
        TrainingSet(pictures),
        TrainConfig(images=100_000, learning_rate=8e-4, warmup=10_000),
        [None] * 16,
        steady,
    )
