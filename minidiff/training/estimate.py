"""What a training run will cost, before it starts."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minidiff.training.loop import Run
from minidiff.training.processes import world


class Estimate(NamedTuple):
    """What is left of a run will cost this; memory is that of one process."""

    pflops: float
    minutes: float
    gigabytes: float

    def __str__(self) -> str:
        return f"{self.pflops:.3g} PFLOPs, {self.minutes:.0f} min, {self.gigabytes:.1f} GB"


def estimate(run: Run) -> Estimate:
    """Count the operations of one image, and time three parts of a batch; changes nothing."""
    c, objective = run.config, run.objective
    batch = run.batch(0)

    def loss(n: int) -> Tensor:
        with run.precision():
            return objective(**{name: values[:n] for name, values in batch.items()})

    def activations(n: int) -> int:  # bytes that the backward pass needs
        kept = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss(n)
        return sum(kept.values())

    part = c.batch // (world() * c.accumulate)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        loss(1)
    an_image = activations(2) - activations(1)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        loss(part).backward()
        if run.device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    run.optimizer.zero_grad()
    left = max(c.images - run.seen, 0)
    copies = 5  # weights, gradients, two moments and the average, in 4 bytes each
    weights = 4 * copies * sum(p.numel() for p in objective.parameters())
    return Estimate(
        3 * flops.get_total_flops() * left / 1e15,
        sorted(times)[1] * left / (part * world()) / 60,
        (weights + part * an_image) / 1e9,
    )
