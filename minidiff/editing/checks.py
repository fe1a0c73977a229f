"""What the editing functions refuse, each in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from minidiff.schedule import NoiseLevel


def check_image(image: Tensor, name: str = "image") -> None:
    """ValueError unless `image` is (B,3,H,W), of floats that are all finite."""
    if not isinstance(image, Tensor):
        raise ValueError(f"the {name} is a {type(image).__name__}: expected a tensor (B, 3, H, W)")
    shape = tuple(image.shape)
    if image.ndim != 4 or 0 in shape:
        raise ValueError(f"the {name} has shape {shape}: expected (B, 3, H, W)")
    if shape[1] == 4:
        raise ValueError(f"the {name} has four channels, one of them alpha: expected three, RGB")
    if not image.is_floating_point():
        raise ValueError(f"the {name} holds {image.dtype}: expected floats in [-1, 1]")
    if not image.isfinite().all():
        raise ValueError(f"the {name} holds NaN or infinity: expected numbers in [-1, 1]")
    if image.min() >= 0 and (most := image.max()) > 2:  # predictions may leave [-1, 1], both ways
        raise ValueError(f"the {name} reaches {most:g}: expected [-1, 1], as load_image gives")


def check_mask(mask: Tensor, image: Tensor) -> None:
    """ValueError unless `mask` is (B or 1,1,H,W) for the image (B,3,H,W), of zeros and ones."""
    if not isinstance(mask, Tensor):
        kind = type(mask).__name__
        raise ValueError(f"the mask is a {kind}: expected a tensor (B or 1, 1, H, W)")
    batch, _, height, width = image.shape
    if mask.ndim != 4 or tuple(mask.shape[1:]) != (1, height, width):
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)}: expected (1 or {batch}, 1, {height}, "
            f"{width}), the size of the image"
        )
    if len(mask) not in (1, batch):
        raise ValueError(f"{len(mask)} masks for {batch} images: expected one, or one each")
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("the mask holds other numbers than 0 and 1: expected 1 = keep, 0 = edit")


def check_path(path: Sequence[NoiseLevel]) -> None:
    """ValueError unless `path` goes down to the clean image, as `NoiseSchedule.path` does."""
    sigmas = [level.sigma for level in path]
    if len(path) < 2 or sigmas[-1] != 0 or sigmas != sorted(set(sigmas), reverse=True):
        raise ValueError("expected a path of at least one step that goes down to t = 0")


def last_part(path: Sequence[NoiseLevel], strength: float) -> Sequence[NoiseLevel]:
    """The levels of the last `strength` (0 to 1) of a path's steps, at least one step.

    With evenly spaced levels this is SDEdit's t0. ValueError for a strength outside (0, 1].
    """
    check_path(path)
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength} is out of range: expected 0 < strength <= 1")
    steps = max(round(strength * (len(path) - 1)), 1)
    return path[-1 - steps :]


def check_count(name: str, value: int) -> None:
    """ValueError unless `value` is a whole number from 1 up."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} = {value}: expected a whole number from 1 up")


def check_weight(name: str, value: float) -> None:
    """ValueError unless `value` is a finite number."""
    if not math.isfinite(value):
        raise ValueError(f"{name} = {value}: expected a finite number")
