"""A recipe: everything that a training run is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minidiff import checkpoint, zoo
from minidiff.device import best_device, place
from minidiff.text import Prompt
from minidiff.training import Objective, Run, TrainConfig, TrainingSet
from minidiff.unet import UNetConfig

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


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, and how.

    `model` has fresh weights, or those of a trained one to go on from, and a `card` that says what
    the data are. `objective(model)` is its loss, a module that `training.Run` trains. `previews`
    are the prompts of the sheet that is drawn on the way.
    """

    model: Any
    data: TrainingSet
    train: TrainConfig
    previews: Sequence[Prompt] = ()
    objective: Callable[[Any], nn.Module] = Objective

    def run(self, out: str | Path, device: str | torch.device | None = None) -> Run:
        """The training run in the folder `out`, on the best device unless one is named."""
        device = torch.device(device or best_device())
        objective = place(self.objective(self.model), device)
        batches = objective.batches(self.data.to(device), self.train)
        return Run(objective, batches, self.train, out, about={"data": len(self.data)})


def start_from(model: zoo.Diffusion, name_or_path: str | Path) -> None:
    """Replace a model's fresh weights by those of a trained one, to train it further.

    ValueError if that has another network, vocabulary, schedule or prediction.
    """
    trained = zoo.load(name_or_path, device="cpu")
    if trained.predicts != model.predicts or trained.schedule != model.schedule:
        raise ValueError(
            f"{name_or_path} predicts {trained.predicts} on {trained.schedule}, this run "
            f"{model.predicts} on {model.schedule}: expected the same"
        )
    words = [getattr(getattr(m.encoder, "config", None), "words", None) for m in (model, trained)]
    if None not in words and words[0] != words[1]:
        raise ValueError(f"{name_or_path} knows other words than the captions here")
    checkpoint.fill(model.network, trained.network.state_dict(), str(name_or_path))
    if isinstance(model.encoder, nn.Module):
        theirs = trained.encoder.state_dict() if isinstance(trained.encoder, nn.Module) else {}
        checkpoint.fill(model.encoder, theirs, str(name_or_path))
