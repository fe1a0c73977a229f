"""What training learns from: images with named columns, and the batch of each step.

`batches(step)` returns a dictionary of tensors, each with one row an image of the whole batch, as a
function of the step alone: so a run that is resumed, split over processes or accumulated sees the
same numbers. `Batches` draws them for diffusion; any other callable will do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from minidiff.condition import choose_rows
from minidiff.data.images import flip, to_float

Batch = dict[str, Tensor]


class Column(NamedTuple):
    """A value for each image, of which a share is replaced by the null one, to be learnt too."""

    values: Tensor  # (N, ...)
    null: Tensor | None = None  # a row: what a dropped value becomes
    drop: float = 0.0  # share of images whose value is dropped, drawn in each batch

    def to(self, device: torch.device) -> Column:
        null = None if self.null is None else self.null.to(device)
        return Column(self.values.to(device), null, self.drop)


@dataclass(frozen=True)
class TrainingSet:
    """uint8 images (N,C,H,W), and columns of other values by their names.

    A diffusion model reads "ids", which its encoder turns into a condition, and the fields of a
    `Condition`: "label", "vector", "tokens", "image". ValueError for columns of another length,
    shares outside [0, 1], and values that are dropped without a null one.
    """

    images: Tensor
    columns: Mapping[str, Column] = field(default_factory=dict)

    def __post_init__(self):
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or len(self.images) == 0:
            raise ValueError(
                f"training images must be uint8 (N,C,H,W), got {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        for name, column in self.columns.items():
            if len(column.values) != len(self.images):
                raise ValueError(
                    f"{len(self.images)} images but {len(column.values)} rows of {name!r}"
                )
            if not 0 <= column.drop <= 1:
                raise ValueError(f"the drop of {name!r} is {column.drop}: expected a share in 0..1")
            if column.drop > 0 and column.null is None:
                raise ValueError(
                    f"{name!r} is dropped for a share of {column.drop} and has no null value to be "
                    "learnt instead: expected Column(values, null, drop), or a drop of 0"
                )

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> TrainingSet:
        columns = {name: column.to(device) for name, column in self.columns.items()}
        return TrainingSet(self.images.to(device), columns)

    def dropping(self, share: float) -> TrainingSet:
        """The same set with another drop of all columns that have a null value."""
        columns = {
            name: column if column.null is None else column._replace(drop=share)
            for name, column in self.columns.items()
        }
        return replace(self, columns=columns)


def uniform(n: int, T: int, generator: Generator) -> Tensor:
    """Times t (n,), whole numbers in 1..T, each as likely (DDPM, algorithm 1)."""
    return torch.randint(1, T + 1, (n,), generator=generator, device=generator.device)


@dataclass(frozen=True)
class Batches:
    """batches(step) -> {"x0", "t", "noise", and the columns}: what a diffusion model trains on.

    x0 (B,C,H,W) in [-1, 1], every epoch each image once in an order of its own; `mirror` flips half
    of them. t (B,) comes from `times(B, T, generator)`, whole or fractional; noise is like x0.
    """

    data: TrainingSet
    batch: int
    T: int
    seed: int = 0
    mirror: bool = False
    times: Callable[[int, int, Generator], Tensor] = uniform

    def __call__(self, step: int) -> Batch:
        device = self.data.images.device
        generator = Generator(device).manual_seed(mixed(self.seed, step))
        index = draw_index(len(self.data), self.batch, self.seed, step, device)
        x0 = to_float(self.data.images[index])  # (B,C,H,W) in [-1,1]
        if self.mirror:
            x0 = flip(x0, generator)
        t = self.times(self.batch, self.T, generator)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        drawn = {
            name: draw_column(column, index, generator)
            for name, column in self.data.columns.items()
        }
        return {"x0": x0, "t": t, "noise": noise, **drawn}


def draw_column(column: Column, index: Tensor, generator: Generator) -> Tensor:
    """The rows (B, ...) of some images, a share of them dropped."""
    values = column.values[index]
    if column.drop == 0:
        return values
    dropped = torch.rand(len(index), generator=generator, device=values.device) < column.drop
    return choose_rows(dropped, column.null, values)


def draw_index(
    n: int, batch: int, seed: int, step: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Which of n images (batch,) a step sees: every epoch all of them, in an order of its own."""
    at, end, parts = step * batch, (step + 1) * batch, []  # positions in an endless row of epochs
    while at < end:
        epoch, first = divmod(at, n)
        parts.append(_order(n, seed, epoch, torch.device(device))[first : first + end - at])
        at += len(parts[-1])
    return torch.cat(parts)


def mixed(seed: int, n: int) -> int:
    """A seed of 32 bits, all that CPU generators look at, for number n of a run's seed."""
    return (seed * 0x9E3779B1 + n) % 2**32


@functools.lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    """The order in which epoch number `epoch` visits n images."""
    order = torch.randperm(n, generator=Generator().manual_seed(mixed(seed, epoch)))
    return order.to(device)  # once an epoch: a copy from the host waits for the device
