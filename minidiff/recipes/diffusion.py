"""How the shipped models were trained, and how to train one on your own pictures.

One function a data set. `minidiff train --data NAME` runs it; its options replace what they name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from minidiff import checkpoint, zoo
from minidiff.data import images, shapes
from minidiff.data.emoji import HELD_OUT, noto_emoji
from minidiff.evaluation import split
from minidiff.schedule import NoiseSchedule
from minidiff.text import TextConfig, TextEncoder, vocabulary, words_of
from minidiff.training import Objective, TrainConfig, TrainingSet
from minidiff.unet import UNet, UNetConfig
from minidiff.zoo import ClassLabels, Diffusion, Prompt

LONGEST = 64  # words of a caption that are read


@dataclass(frozen=True)
class Recipe:
    """All that a training run is made of."""

    data: TrainingSet
    network: UNetConfig
    train: TrainConfig
    schedule: NoiseSchedule
    predicts: str
    size: int
    encoder: TextEncoder | ClassLabels | None
    previews: Sequence[Prompt]  # the prompts of the preview sheet
    card: dict  # what the data are

    def objective(self) -> Objective:
        """The network with fresh weights, those of the run's seed, and its loss."""
        torch.manual_seed(self.train.seed)
        encoder = self.encoder if isinstance(self.encoder, nn.Module) else None
        return Objective(
            UNet(self.network),
            self.schedule,
            encoder,
            predicts=self.predicts,
            min_snr=self.train.min_snr,
        )

    def start_from(self, objective: Objective, name_or_path: str) -> None:
        """Replace fresh weights by those of a trained model, to train it further.

        ValueError if it has another network, vocabulary, schedule or prediction.
        """
        model = zoo.load(name_or_path, device="cpu")
        if model.predicts != self.predicts or not torch.equal(
            model.schedule.alpha_bar, self.schedule.alpha_bar
        ):
            raise ValueError(f"{name_or_path} predicts {model.predicts} on another schedule")
        if isinstance(self.encoder, TextEncoder) and isinstance(model.encoder, TextEncoder):
            if self.encoder.config.words != model.encoder.config.words:
                raise ValueError(f"{name_or_path} knows other words than the captions here")
        checkpoint.fill(objective.network, model.network.state_dict(), name_or_path)
        if objective.encoder is not None:
            theirs = model.encoder.state_dict() if isinstance(model.encoder, nn.Module) else {}
            checkpoint.fill(objective.encoder, theirs, name_or_path)

    def model(self, trained: Objective) -> Diffusion:
        """The trained network as a model to sample from."""
        encoder = self.encoder if trained.encoder is None else trained.encoder
        return Diffusion(
            trained.network, self.schedule, self.predicts, self.size, encoder, dict(self.card)
        )

    def save(self, trained: Objective, path: Path, card: dict) -> None:
        """Write the trained model with its card, for `zoo.load`."""
        zoo.save(path, replace(self.model(trained), card=card))


SMALL = UNetConfig(  # for 32 px on a CPU: it works on 2x2 pixels at a time
    channels=64,
    multipliers=(1, 2, 2),
    blocks=1,
    attention=(1,),
    head_dim=32,
    patch=2,
    groups=16,
    dropout=0.0,
    scale_shift=True,
)


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
    previews = shapes.captions(shapes.random_scenes(16, Generator().manual_seed(1)))
    null = encoder.tokenize([""])[0]
    return Recipe(
        data=TrainingSet(drawn, encoder.tokenize(captions), null),
        network=network,
        train=TrainConfig(images=500_000, batch=32, learning_rate=8e-4, cooldown=0.4, flip=False),
        schedule=NoiseSchedule.linear(),  # more of its levels decide what is where
        predicts="v",
        size=size,
        encoder=encoder,
        previews=previews,
        card={
            "description": "Draws captioned shapes: one thing, or two with a relation.",
            "data": "200,000 scenes drawn by minidiff.data.shapes",
            "licence": "MIT, as this project",
            "limits": "It knows only the words of minidiff.data.shapes.WORDS, in such sentences.",
        },
    )


def cifar10(size: int = 32) -> Recipe:
    """Class to image on the 50,000 training images of CIFAR-10."""
    if size != 32:
        raise ValueError(f"CIFAR-10 has 32 pixels a side: expected size 32, got {size}")
    data = images.cifar10()
    return Recipe(
        data=_labelled(data.images, data.labels, len(data.classes)),
        network=replace(SMALL, classes=len(data.classes)),
        train=TrainConfig(images=450_000, learning_rate=8e-4, min_snr=5.0),
        schedule=NoiseSchedule.cosine(),
        predicts="v",
        size=size,
        encoder=ClassLabels(data.classes),
        previews=[name for name in data.classes for _ in range(2)],
        card={
            "description": "Draws the ten classes of CIFAR-10.",
            "data": "the 50,000 training images of CIFAR-10 (Krizhevsky 2009)",
            "licence": "none stated by its author",
            "limits": "A small network that has seen each image a few times: layouts and colours "
            "are right, details smeared. For a lesson, not for use.",
        },
    )


def butterflies(size: int = 64) -> Recipe:
    """Butterflies on white, unconditional.

    Some hundred pictures are soon learnt by heart. The shipped model saw more kinds of butterflies
    first, photographed outdoors: its card has the commands.
    """
    pictures = images.butterflies(size).images
    train, held_out = split(pictures)
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
    return replace(
        recipe,
        network=replace(recipe.network, channels=32, head_dim=32),
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
    recipe = _unlabelled(data.images, size, card)
    names = data.classes
    return replace(
        recipe,
        data=_labelled(data.images, data.labels, len(names)),
        network=replace(recipe.network, classes=len(names)),
        encoder=ClassLabels(names),
        previews=[names[i % len(names)] for i in range(16)],
    )


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
    levels = tuple(range(1, len(recipe.network.multipliers)))  # the first has the most pixels
    network = replace(
        recipe.network,
        cross_attention=levels,
        context_dim=encoder.config.width,
    )
    told = sorted({caption for caption in short if caption})
    examples = card.get("examples", told[:: math.ceil(len(told) / 32)])
    return replace(
        recipe,
        data=TrainingSet(pictures, encoder.tokenize(short), encoder.tokenize([""])[0]),
        network=network,
        # most of these levels decide what is where, and there the words count: min-SNR weights
        # would hush just those
        schedule=NoiseSchedule.linear(),
        train=replace(recipe.train, images=500_000, min_snr=None),
        encoder=encoder,
        previews=examples[-16:],
        card=card | {"examples": examples},
    )


def _labelled(pictures: Tensor, labels: Tensor, classes: int) -> TrainingSet:
    return TrainingSet(pictures, labels, torch.tensor(classes))


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
        data=TrainingSet(pictures),
        network=network,
        train=TrainConfig(images=100_000, learning_rate=8e-4, warmup=10_000, min_snr=5.0),
        schedule=NoiseSchedule.cosine(),
        predicts="v",
        size=size,
        encoder=None,
        previews=[None] * 16,
        card=card,
    )
