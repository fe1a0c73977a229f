"""CIFAR-10 beside the shapes, for what photographs show better: glare, and noise that is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from minidiff import zoo
from minidiff.denoiser import Denoiser
from minidiff.evaluation.classifier import load_classifier
from minidiff.guidance import clamp
from minidiff.metrics import features
from minidiff.samplers import Step, ddim_step, sample
from minidiff.scoring.bench import GROUP, STEPS, Arm, Bench


class Classes:
    """A bench's noises as photographs of classes, GROUP in a row of the same; a classifier that has
    not guided says what they show."""

    def __init__(self, bench: Bench):
        self.bench, self.model = bench, zoo.load("cifar10", "cpu")
        self.fast, self.judge = self.model.for_sampling(), load_classifier()
        self.labels = torch.arange(bench.n) // GROUP % len(self.model.encoder.names)
        bench.watch(self.fast.network)

    def noise(self, generators: Sequence[Generator]) -> Tensor:
        return self.model.noise(len(generators), generators)

    def of(self, rows: slice, scale: float = 1.0) -> Denoiser:
        """The denoiser of some rows' classes, not clamped."""
        return self.fast.denoiser(self.labels[rows].tolist(), scale)

    def drawn(
        self,
        denoiser: Callable[[slice], Denoiser],
        *,
        step: Step = ddim_step,
        steps: int = STEPS,
        noise: Callable[[Sequence[Generator]], Tensor] | None = None,
    ) -> Arm:
        """An arm of plain sampling, `denoiser(rows)` being that of some rows; from `noise`, drawn
        from their generators, or from the usual one."""
        path = self.model.schedule.path(steps)

        def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
            x = noise(generators) if noise else self.noise(generators)
            return sample(step, denoiser(rows), x, path, generator=generators)

        return self.bench.arm(draw)

    def guided(self, scale: float) -> Arm:
        """The classes drawn with guidance, DDIM."""
        return self.bench.shared(
            f"classes {scale}", lambda: self.drawn(lambda rows: clamp(self.of(rows, scale)))
        )

    def named(self, arm: Arm) -> Tensor:
        """Whether the classifier finds each image's class (n,)."""
        return features(self.judge, arm.images.clamp(-1, 1)).argmax(1).cpu() == self.labels
