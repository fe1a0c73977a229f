"""Training: the loop of DDPM's algorithm 1 with what every real run needs."""

from minidiff.training.loop import (
    Objective,
    Run,
    TrainConfig,
    TrainingSet,
    draw_batch,
    draw_index,
    fit,
    mixed,
    rank,
    world,
)

__all__ = [
    "Objective",
    "Run",
    "TrainConfig",
    "TrainingSet",
    "draw_batch",
    "draw_index",
    "fit",
    "mixed",
    "rank",
    "world",
]
