"""What every lesson in notebooks/ starts from: where it runs, how long it may take, how it looks.

`lesson_NN` beside this file holds the checks and the longer pictures of lesson NN; `exercise` is
what those checks are made of, `cost` is what `python -m notebooks.build` measures with.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from minidiff.device import best_device, describe
from minidiff.lessons.exercise import Wrong, exercise, expect, require

__all__ = ["Animation", "Lesson", "Wrong", "animation", "exercise", "expect", "require", "setup"]

T = TypeVar("T")


@dataclass(frozen=True)
class Lesson:
    """The lesson that is running, and where.

    `fast` is the mode of continuous integration (MINIDIFF_FAST=1): all cells with tiny numbers.
    """

    number: int
    device: torch.device
    fast: bool

    def choose(self, fast: T, cpu: T, gpu: T) -> T:
        """The setting for where the lesson runs: the one switch between a CPU and a GPU."""
        if self.fast:
            return fast
        return cpu if self.device.type == "cpu" else gpu

    def generator(self, seed: int) -> torch.Generator:
        """A seeded source of noise, on the CPU: a seed draws the same picture on every device."""
        return torch.Generator().manual_seed(seed)


def setup(number: int) -> Lesson:
    """Begin lesson `number`: settles seeds and the look of figures, and prints where it runs."""
    from minidiff import __version__

    lesson = Lesson(number, best_device(), os.environ.get("MINIDIFF_FAST", "0") not in ("", "0"))
    torch.manual_seed(number)
    for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
        warnings.simplefilter("ignore", category)  # other packages' plans are not the learner's
    _set_style()
    mode = ", in the fast mode of tests" if lesson.fast else ""
    where = "the CPU" if lesson.device.type == "cpu" else describe(lesson.device)
    print(f"minidiff {__version__}, lesson {number:02}, on {where}{mode}")
    return lesson


def _set_style() -> None:
    """matplotlib in the look of `minidiff.plot`, small enough to be stored in a notebook."""
    import matplotlib
    from matplotlib import cycler

    from minidiff.plot.charts import COLOURS

    matplotlib.rcParams.update(
        {
            "figure.dpi": 80,
            "figure.figsize": (7.5, 3.2),
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.grid": False,
            "legend.frameon": False,
            "image.interpolation": "nearest",
        }
    )


class Animation:
    """A GIF that a notebook shows.

    It says that it is a PNG: GitHub and nbconvert leave out outputs of other kinds, and browsers
    look at the bytes.
    """

    def __init__(self, gif: bytes):
        self.gif = gif

    def _repr_png_(self) -> bytes:
        return self.gif

    def __repr__(self) -> str:
        return f"<animation of {len(self.gif) / 1000:.0f} kB>"


def animation(frames: Iterable[Any], fps: float = 12) -> Animation:
    """What `minidiff.plot.animate` makes of `frames`, to be the last expression of a cell."""
    from minidiff import plot

    with tempfile.TemporaryDirectory() as folder:
        return Animation(plot.animate(frames, Path(folder) / "animation.gif", fps).read_bytes())
