"""CLIP's training loss (Radford et al. 2021, figure 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, scale: Tensor, same: Tensor
) -> Tensor:
    """Cross-entropy over the texts for each image and over the images for each text, halved.

    Features (B,D) of any length; `scale` multiplies their cosines; same (B,B) is True where two
    texts are the same: they are right answers alike, not wrong ones.
    """
    logits = scale * F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T
    target = same / same.sum(dim=1, keepdim=True)  # (B,B), symmetric but for the division
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
