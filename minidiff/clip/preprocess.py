"""Images as CLIP wants them: bit for bit what OpenAI's pipeline of torchvision transforms makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from minidiff.clip.model import CLIPConfig

if TYPE_CHECKING:
    from PIL.Image import Image


class Preprocess:
    """preprocess(image) -> (3,size,size): a PIL image of any size and mode, its shorter side made
    `size` pixels long (bicubic, antialiased), the centre cut out, red, green and blue normalised.

    As at OpenAI the resizing comes first: colours of a palette are then picked, not mixed.
    """

    def __init__(self, config: CLIPConfig):
        self.config = config

    def __call__(self, image: Image) -> Tensor:
        from PIL.Image import Resampling

        size, (w, h) = self.config.size, image.size
        short = min(w, h)
        w, h = int(size * w / short), int(size * h / short)
        image = image.resize((w, h), Resampling.BICUBIC)
        left, top = round((w - size) / 2), round((h - size) / 2)
        image = image.crop((left, top, left + size, top + size)).convert("RGB")
        pixels = torch.from_numpy(np.array(image))  # (size,size,3), 0 to 255
        return self.normalise(pixels.permute(2, 0, 1).contiguous().float() / 255)

    def normalise(self, images: Tensor) -> Tensor:
        """Images (...,3,H,W) in [0, 1] as CLIP's encoder wants them; differentiable.

        ValueError for values far outside: those of images in [-1, 1], or of 0 to 255.
        """
        low, high = images.min().item(), images.max().item()
        if low < -0.1 or high > 1.1:
            raise ValueError(
                f"got images with values from {low:.3g} to {high:.3g}: expected them in [0, 1], "
                "not in [-1, 1] or 0 to 255"
            )
        return self.standardise(images)

    def standardise(self, images: Tensor) -> Tensor:
        """`normalise` for values that may lie outside [0, 1], as predictions of images do."""
        mean, std = (
            torch.tensor(x, dtype=images.dtype, device=images.device)[:, None, None]
            for x in (self.config.mean, self.config.std)
        )
        return (images - mean) / std
