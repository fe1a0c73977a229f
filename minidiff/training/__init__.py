"""Training: the loop of DDPM's algorithm 1 with what every real run needs."""

from minidiff.training.batches import Batches, Column, TrainingSet, draw_column, draw_index, mixed
from minidiff.training.loop import Objective, Run, TrainConfig, fit
from minidiff.training.processes import rank, world

__all__ = [
    "Batches",
    "Column",
    "Objective",
    "Run",
    "TrainConfig",
    "TrainingSet",
    "draw_column",
    "draw_index",
    "fit",
    "mixed",
    "rank",
    "world",
]
