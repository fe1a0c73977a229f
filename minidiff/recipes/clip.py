"""Contrastive training (Radford et al. 2021, figure 3): in a batch, each image is to find its text
among all texts, and each text its image. Small CLIPs for 32 px are trained so: of the shapes world
one that may guide, and one of another shape and seed that only judges; and one of CIFAR-10.

minidiff train-clip --data shapes --out runs/clip_shapes
minidiff train-clip --data shapes --judge --out runs/clip_shapes_judge
minidiff train-clip --data cifar10 --out runs/clip_cifar10
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from minidiff.clip.loss import contrastive_loss
from minidiff.clip.model import CLIP, CLIPConfig
from minidiff.clip.tokenizer import Tokenizer, train_bpe
from minidiff.clip.weights import load, save
from minidiff.data import images, shapes
from minidiff.recipes.recipe import Recipe
from minidiff.training import Column, TrainConfig, TrainingSet, draw_index, mixed
from minidiff.training.batches import Batch

LARGEST_SCALE = 100.0  # of the logits: more makes training unstable


class Contrastive(nn.Module):
    """What `training.Run` needs to train a CLIP. The images compared are those of one process and
    one accumulated part."""

    def __init__(self, network: CLIP, shift: int = 2):
        super().__init__()
        self.network, self.shift = network, shift

    def about(self) -> dict:
        return {"predicts": "which text belongs to which image", "shift": self.shift}

    def batches(self, data: TrainingSet, config: TrainConfig) -> Callable[[int], Batch]:
        """Images x (B,3,H,W) in [-1,1], shifted by up to `shift` pixels, and texts (B,L).

        Where images have several texts, (N,T,L), the steps take turns: in a batch of one template
        the same class is the same text, and no wrong answer.
        """
        device, texts = data.images.device, data.columns["text"].values
        texts = texts[:, None] if texts.ndim == 2 else texts

        def batches(step: int) -> Batch:
            generator = Generator(device).manual_seed(mixed(config.seed, step))
            index = draw_index(len(data), config.batch, config.seed, step, device)
            x = images.random_crop(data.images[index], self.shift, generator)
            if config.flip:
                x = images.flip(x, generator)
            return {"x": images.to_float(x), "text": texts[index, step % texts.shape[1]]}

        return batches

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        scale = self.network.logit_scale.clamp(max=math.log(LARGEST_SCALE)).exp()
        same = (text[:, None] == text).all(dim=-1)  # (B,B)
        features = self.network.encode_image(x).float(), self.network.encode_text(text).float()
        with torch.autocast(x.device.type, enabled=False):  # cosines need their digits
            return contrastive_loss(*features, scale, same)

    def save(self, path: Path, card: dict) -> None:
        """Write the CLIP itself, in half precision, for `clip.load`."""
        save(copy.deepcopy(self.network).half(), path, {"card": card})


GUIDE = CLIPConfig(
    embed=64,
    size=32,
    patch=4,
    width=128,
    layers=4,
    heads=4,
    context=24,
    text_width=128,
    text_layers=2,
    text_heads=4,
    quick_gelu=False,
    mean=(0.5, 0.5, 0.5),  # images in [-1, 1]
    std=(0.5, 0.5, 0.5),
)
JUDGE = replace(
    GUIDE, embed=96, patch=8, width=192, layers=5, heads=6, text_width=96, text_layers=3
)
TRAIN = TrainConfig(
    images=600_000, batch=256, learning_rate=1e-3, weight_decay=0.1, cooldown=0.8, ema=0.99
)
TRAIN_CIFAR10 = replace(TRAIN, images=450_000, flip=True)


def clip_shapes(
    judge: bool = False,
    shuffled: bool = False,
    weights: str | Path | None = None,
    seed: int | None = None,
) -> Recipe:
    """On the shapes world, without the held-out pairs of colour and shape.

    The judge has another shape and seed, and has seen other scenes. `shuffled` is the control:
    every image has the caption of another one. `weights` of a trained CLIP are trained further.
    `seed` is that of the fresh weights and the batches.
    """
    own = 1 if judge else 0
    drawn, captions = shapes.captioned(200_000, Generator().manual_seed(100 + own))
    drawn, captions = recolour(drawn, captions, 0.5, Generator().manual_seed(200 + own))
    if shuffled:
        captions = captions[1:] + captions[:1]
    return _recipe(
        drawn,
        [[caption, short(caption)] for caption in captions],
        torch.arange(len(captions)),
        JUDGE if judge else GUIDE,
        replace(TRAIN, flip=False, seed=own if seed is None else seed),
        {
            "description": "Compares images of shapes with captions"
            + (", to judge what the other one has guided." if judge else "."),
            "data": "200,000 scenes drawn by minidiff.data.shapes, in full captions and short ones "
            "in turn; of half of them the colours are changed and not named",
            "licence": "MIT, as this project",
            "limits": "It knows only the pictures and words of the shapes world.",
        },
        None if weights is None else load(weights, "cpu")[0],
    )


TEMPLATES = (  # in the words of OpenAI's prompts for CIFAR-10
    "a photo of a {}",
    "a blurry photo of a {}",
    "a small photo of the {}",
    "a picture of a {}",
    "the {}",
    "{}",
)


def clip_cifar10(shuffled: bool = False, seed: int = 0) -> Recipe:
    """On CIFAR-10, its classes named in several templates; `shuffled`, `seed` as for the shapes."""
    data = images.cifar10()
    labels = data.labels.roll(1) if shuffled else data.labels
    named = [[template.format(name) for template in TEMPLATES] for name in data.classes]
    card = {
        "description": "Compares pictures of ten kinds of things with their names.",
        "data": f"the 50,000 training images of CIFAR-10 (Krizhevsky 2009), named in "
        f"{len(TEMPLATES)} templates",
        "licence": "none stated by its author",
        "limits": "It knows ten nouns, and no other word: what it says of anything else is noise. "
        "The supervised classifier, a convolutional network, is the better judge.",
    }
    train = replace(TRAIN_CIFAR10, seed=seed)
    return _recipe(data.images, named, labels, replace(GUIDE, context=12), train, card)


def recolour(
    drawn: Tensor, captions: list[str], share: float, generator: Generator
) -> tuple[Tensor, list[str]]:
    """A share of the pictures (N,3,H,W) with red, green and blue exchanged and some of them turned
    to their opposites, and captions that name no colours: a star is a star in any colour, also in
    one that stars never had. No picture gets a held-out pair of colour and shape that way.
    """
    palette = torch.tensor(
        [[int(v[i : i + 2], 16) for i in (1, 3, 5)] for v in shapes.COLOUR_VALUES.values()]
    ).float()  # (colours, 3)
    changes = list(
        itertools.product(itertools.permutations(range(3)), itertools.product((0, 255), repeat=3))
    )[1:]
    looks = [
        torch.cdist((palette[:, e] - torch.tensor(opposite)).abs(), palette).argmin(dim=1).tolist()
        for e, opposite in changes
    ]
    name = re.compile(rf"({'|'.join(shapes.COLOURS)}) ({'|'.join(shapes.SHAPES)})")
    luck = torch.rand(len(drawn), 2, generator=generator).tolist()
    drawn, captions = drawn.clone(), list(captions)
    for i, (chosen, which) in enumerate(luck):
        k = int(which * len(changes))
        things = [
            (shapes.COLOURS[looks[k][shapes.COLOURS.index(colour)]], shape)
            for colour, shape in name.findall(captions[i])
        ]
        if chosen < share and not set(things) & set(shapes.HELD_OUT):
            exchange, opposite = changes[k]
            turn = torch.tensor(opposite, dtype=torch.uint8)[:, None, None]
            drawn[i] = drawn[i, list(exchange)] ^ turn  # with 255: 255 less the value
            captions[i] = _english(re.sub(" on a .* background", "", name.sub(r"\2", captions[i])))
    return drawn, captions


def short(caption: str) -> str:
    """What a caption says of colours, shapes and relations: "a large striped orange star at the
    top" is "an orange star". Else a short text stands for nothing but large, plain things."""
    looks = "|".join((*shapes.SIZES, *shapes.TEXTURES))
    return _english(re.sub(rf"\b(?:{looks}) | (?:at the|on a) .*", "", caption))


def _english(text: str) -> str:
    """With "a" and "an" where they belong."""
    return re.sub(r"\ban? (?=([aeiou])?)", lambda m: "an " if m[1] else "a ", text)


def _recipe(
    drawn: Tensor,
    captions: list[list[str]],
    labels: Tensor,
    network: CLIPConfig,
    train: TrainConfig,
    card: dict,
    start: CLIP | None = None,
) -> Recipe:
    """Pictures (N,3,H,W) and, by label (N,), their captions: as many templates for each.

    The vocabulary is the captions' own, in which every word that occurs twice is one token, or that
    of the CLIP to start from.
    """
    every = [text for texts in captions for text in texts]
    tokenizer = Tokenizer(train_bpe(every, 1000)) if start is None else start.tokenizer
    merges = tuple(tokenizer.merges)
    network = replace(network, vocabulary=len(tokenizer), end=tokenizer.end, merges=merges)
    tokens = tokenizer.tokenize(every, network.context)  # (captions * T, L)
    tokens = tokens.unflatten(0, (len(captions), -1))[labels]  # (N,T,L)
    torch.manual_seed(train.seed)
    model = CLIP(network)
    if start is not None:
        if start.config != network:
            raise ValueError("the CLIP to start from has other sizes than the recipe's")
        model.load_state_dict(start.state_dict())
    model.card = card
    return Recipe(model, TrainingSet(drawn, {"text": Column(tokens)}), train, (), Contrastive)
