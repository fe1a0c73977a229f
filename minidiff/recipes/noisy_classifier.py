"""How the classifiers of noisy images were trained (Dhariwal and Nichol 2021, section 4.3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from minidiff.data import images, shapes
from minidiff.denoiser import network_time
from minidiff.noisy_classifier import NoisyClassifier, save
from minidiff.recipes.recipe import SMALL, Recipe
from minidiff.schedule import NoiseSchedule, add_noise
from minidiff.training import Batches, Column, TrainConfig, TrainingSet

UNKNOWN = -100  # a label that teaches nothing: `cross_entropy` leaves it out


class Classification(nn.Module):
    """What `training.Run` needs to train a classifier on q(x_t | x_0), every t as often."""

    def __init__(self, network: NoisyClassifier):
        super().__init__()
        self.network = network

    def about(self) -> dict:
        return {"predicts": "classes", "heads": [*self.network.heads]}

    def batches(self, data: TrainingSet, config: TrainConfig) -> Batches:
        """x0 (B,3,H,W), t (B,) from 1, noise, and labels (B, heads)."""
        T = self.network.schedule.T
        return Batches(data, config.batch, T, config.seed, mirror=config.flip)

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        level = self.network.schedule.level(t)
        x = add_noise(x0, level, noise)
        says = self.network(x, network_time(x, level)).values()
        losses = [
            F.nll_loss(part, wanted, ignore_index=UNKNOWN)
            for part, wanted in zip(says, labels.T, strict=True)
        ]
        return sum(losses) / len(losses)

    def save(self, path: Path, card: dict) -> None:
        """Write the classifier itself, for `noisy_classifier.load`."""
        self.network.card = card
        save(path, self.network)


NETWORK = replace(SMALL, channels=32, multipliers=(1, 2, 3), attention=(1, 2))
TRAIN = TrainConfig(images=300_000, learning_rate=1e-3, weight_decay=0.05)
HEADS = {
    "things": ("one", "two"),
    "background": shapes.BACKGROUNDS,
    "position": shapes.POSITIONS,
    "shape": shapes.SHAPES,
    "colour": shapes.COLOURS,
    "size": shapes.SIZES,
    "texture": shapes.TEXTURES,
}


def noisy_shapes(shuffled: bool = False, seed: int = 0) -> Recipe:
    """On the scenes that the shapes model has learnt, of one thing or two, and on its schedule.

    The looks of things are learnt from scenes of one; a scene of two teaches that, and its
    background. `shuffled` is the control: every image has another one's labels.
    """
    generator = Generator().manual_seed(300)
    codes = shapes.random_codes(100_000, generator)
    drawn = torch.cat(
        [images.to_uint8(shapes.render(part, 32, generator)[0]) for part in codes.split(256)]
    )
    return _recipe(
        drawn,
        scene_labels(codes),
        HEADS,
        replace(TRAIN, flip=False, seed=seed),
        NoiseSchedule.linear(),
        {
            "description": "Names what is in a noisy picture of shapes, to guide by its gradient.",
            "data": "100,000 scenes drawn by minidiff.data.shapes",
            "licence": "MIT, as this project",
            "limits": "It knows the scenes and the schedule of the shapes model alone. Of scenes "
            "with two things it says only that, and their background.",
        },
        shuffled,
    )


def noisy_cifar10(shuffled: bool = False, seed: int = 0) -> Recipe:
    """On the 50,000 training images of CIFAR-10, and on the schedule of the cifar10 model."""
    data = images.cifar10()
    return _recipe(
        data.images,
        data.labels[:, None],
        {"class": data.classes},
        replace(TRAIN, seed=seed),
        NoiseSchedule.cosine(),
        {
            "description": "Names the class of a noisy CIFAR-10 picture, to guide by its gradient.",
            "data": "the 50,000 training images of CIFAR-10 (Krizhevsky 2009)",
            "licence": "none stated by its author",
            "limits": "A small network: on sharp pictures it is no match for the classifier that "
            "judges. It knows the schedule of the cifar10 model alone.",
        },
        shuffled,
    )


def scene_labels(codes: Tensor) -> Tensor:
    """Labels (N, heads), in the order of HEADS, of scenes as codes (N, 11)."""
    alone = codes[:, 2] == 0
    looks = torch.where(alone[:, None], codes[:, [1, 3, 4, 5, 6]], UNKNOWN)
    return torch.column_stack([(~alone).long(), codes[:, 0], looks])


def _recipe(
    drawn: Tensor,
    labels: Tensor,
    heads: dict[str, tuple[str, ...]],
    train: TrainConfig,
    schedule: NoiseSchedule,
    card: dict,
    shuffled: bool,
) -> Recipe:
    labels = labels.roll(1, dims=0) if shuffled else labels
    torch.manual_seed(train.seed)
    model = NoisyClassifier(NETWORK, heads, schedule, 32, card)
    data = TrainingSet(drawn, {"labels": Column(labels)})
    return Recipe(model, data, train, (), Classification)
