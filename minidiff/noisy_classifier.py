"""A classifier of noisy images, whose gradient guides a denoiser (Dhariwal and Nichol 2021).

It is the UNet's way down with CLIP's attention pooling (their section 4.3), and has seen images at
every noise level. A head names one attribute; heads together answer for what they were told.

from minidiff import guidance, noisy_classifier, zoo

model, judge = zoo.load("shapes"), noisy_classifier.load("shapes")
guided = guidance.classifier(model.denoiser(), judge.log_prob("green star"), 3.0)

minidiff train-classifier --data shapes
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff import checkpoint
from minidiff.clip.model import AttentionPool
from minidiff.denoiser import network_time
from minidiff.device import best_device
from minidiff.layers import GroupNorm, TimeEmbedding
from minidiff.schedule import NoiseLevel, NoiseSchedule
from minidiff.unet import Block, Down, UNetConfig

ALONE = {"things": "one"}  # what a name of one thing's look says besides
SCENE = ("things", "background")  # the heads that are no thing's look

# ------------------------------------------------------------------------------------- the network


class Encoder(nn.Module):
    """The UNet's way down and its middle: x (B,3,H,W), t (B,) -> (B, width, H/8, W/8) or so."""

    def __init__(self, c: UNetConfig):
        super().__init__()
        self.config = c
        self.time = TimeEmbedding(
            c.channels, cosine_first=c.cosine_first, frequency_shift=c.frequency_shift
        )
        width = c.channels * c.multipliers[0]
        self.stem = nn.Conv2d(c.in_channels * c.patch**2, width, 3, padding=1)
        self.down = nn.ModuleList()
        for i, w in enumerate(c.channels * m for m in c.multipliers):
            if i > 0:
                self.down.append(Down(c, width))
            for _ in range(c.blocks):
                self.down.append(Block(c, width, w, f"down{i}", i in c.attention, False))
                width = w
        self.down.append(Block(c, width, width, "mid", True, False))
        self.norm = GroupNorm(c.groups, width, c.norm_eps)
        self.width = width

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = F.silu(self.time(t))
        h = self.stem(F.pixel_unshuffle(x, self.config.patch))
        for layer in self.down:
            h = layer(h) if isinstance(layer, Down) else layer(h, emb, None, None)
        return F.silu(self.norm(h))


class NoisyClassifier(nn.Module):
    """classifier(x, t) -> the log-probabilities (B, classes) of each head, by its name.

    x is (B,3,size,size) at the noise level that the schedule has for t + 1, t (B,) as networks
    count it. `heads` are attributes and the names of their classes; no name occurs twice.
    """

    def __init__(
        self,
        config: UNetConfig,
        heads: Mapping[str, Sequence[str]],
        schedule: NoiseSchedule,
        size: int,
        card: dict | None = None,
    ):
        super().__init__()
        self.config, self.schedule, self.size, self.card = config, schedule, size, card or {}
        self.heads = {name: tuple(classes) for name, classes in heads.items()}
        self.encoder = Encoder(config)
        tokens = (size // config.patch // 2 ** (len(config.multipliers) - 1)) ** 2 + 1
        width, classes = self.encoder.width, sum(map(len, self.heads.values()))
        self.pool = AttentionPool(tokens, width, width // (config.head_dim or width), classes)

    @property
    def device(self) -> torch.device:
        return self.encoder.stem.weight.device

    def forward(self, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        if x.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"got images of shape {tuple(x.shape)}: expected (B, 3, {self.size}, {self.size})"
            )
        logits = self.pool(self.encoder(x, t)).float()  # (B, classes of all heads)
        parts = logits.split([len(classes) for classes in self.heads.values()], dim=1)
        return {name: part.log_softmax(1) for name, part in zip(self.heads, parts, strict=True)}

    def labels(self, prompt: str) -> dict[str, int]:
        """What a prompt says, as head -> class: "small red star", "left, on mint", "horse".

        A thing's look or place says that it is alone. ValueError for a word that is no name, and
        for two names of one head.
        """
        known = {name: head for head, classes in self.heads.items() for name in classes}
        names = "|".join(sorted(map(re.escape, known), key=len, reverse=True))
        said = re.findall(rf"\b(?:{names})\b", prompt)
        rest = re.sub(rf"\b(?:{names}|an?|the|on|at|background)\b|,", " ", prompt).split()
        found = {known[name]: name for name in said}
        if rest or not said or len(found) < len(said):
            wrong = f"does not know {rest[0]!r}" if rest else "needs one name of a head"
            raise ValueError(f"{prompt!r}: the classifier {wrong}; its names are {self._names()}")
        if "things" in self.heads and set(found) - set(SCENE):
            found = ALONE | found
        return {head: self.heads[head].index(name) for head, name in found.items()}

    def log_prob(self, prompt: str | Sequence[str]) -> Callable[[Tensor, NoiseLevel], Tensor]:
        """log p(prompt | x_t) as `guidance.classifier` wants it: (x (B,3,H,W), level) -> (B,).

        Of one prompt, or of a list of prompts, one an image. The heads are taken as independent.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        labels = [self.labels(p) for p in prompts]
        columns = [(head, i) for head, names in self.heads.items() for i in range(len(names))]
        said = [[label.get(head) == i for head, i in columns] for label in labels]
        said = torch.tensor(said, device=self.device)  # (1 or B, classes of all heads)

        def log_prob(x: Tensor, level: NoiseLevel) -> Tensor:
            if len(said) not in (1, len(x)):
                raise ValueError(
                    f"{len(said)} prompts for {len(x)} images: expected one, or one each"
                )
            parts = self(x, network_time(x, level))
            return torch.where(said, torch.cat([*parts.values()], dim=1), 0).sum(1)

        return log_prob

    def _names(self) -> str:
        return "; ".join(f"{head}: {', '.join(names)}" for head, names in self.heads.items())


# --------------------------------------------------------------------------------------- the files


def save(path: str | Path, model: NoisyClassifier) -> None:
    """Write a classifier in half precision, whole or not at all."""
    tensors = {name: value.half() for name, value in model.state_dict().items()}
    tensors |= model.schedule.tables()
    about = {"kind": "noisy classifier", "network": asdict(model.config), "heads": model.heads}
    checkpoint.save(path, tensors, about | {"size": model.size, "card": model.card})


def shipped() -> dict[str, Path]:
    """The noisy classifiers that come with minidiff: the model they guide -> file."""
    found = checkpoint.shipped("noisy classifier")
    return {name.removesuffix("_noisy_classifier"): file for name, file in found.items()}


def load(name_or_path: str | Path, device: str | torch.device | None = None) -> NoisyClassifier:
    """The classifier that ships for a model ("shapes", "cifar10"), or one that training has saved.

    In eval mode and frozen; its input may have gradients. FileNotFoundError for an unknown name,
    ValueError for a damaged or foreign file.
    """
    path = checkpoint.find(name_or_path, shipped, "noisy classifier")
    tensors, about = checkpoint.load(path)
    if about.get("kind") != "noisy classifier":
        raise ValueError(f"{path} holds a {about.get('kind')}, not a noisy classifier")
    schedule = NoiseSchedule.take_tables(tensors)
    config = UNetConfig(**about["network"])
    model = NoisyClassifier(config, about["heads"], schedule, about["size"], about["card"])
    checkpoint.fill(model, tensors, str(path))  # copies half precision into float32
    return model.eval().requires_grad_(False).to(device or best_device())
