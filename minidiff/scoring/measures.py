"""What is measured of images (n,3,32,32): by the oracle, or pixel by pixel. Each gives (n,), but
diversity, which is of groups of images of one prompt (n/GROUP,)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes
from minidiff.scoring.bench import GROUP

BEST = 60.0  # dB: the pixels of 8-bit pictures cannot agree better


def right(captions: Sequence[str], images: Tensor) -> Tensor:
    """Whether the oracle finds all that each caption says."""
    return shapes.grade(list(captions), images.clamp(-1, 1))


def valid(images: Tensor) -> Tensor:
    """Whether the oracle can read the image at all."""
    return misfit(images) <= shapes.TOLERANCE


def misfit(images: Tensor) -> Tensor:
    """How far the image is from the scene that explains it best; 0.2 is the most accepted."""
    return shapes.explain(images.clamp(-1, 1))[1]


def read(images: Tensor) -> list[shapes.Scene | None]:
    return shapes.read(images.clamp(-1, 1))


def spread(images: Tensor) -> Tensor:
    """Root mean square difference of two images of the same group of GROUP, on average."""
    flat = images.clamp(-1, 1).flatten(1).unflatten(0, (-1, GROUP))  # (n/GROUP,GROUP,D)
    distances = torch.cdist(flat, flat) / flat.shape[2] ** 0.5
    return _between_two(distances)


def spread_seen(features: Tensor) -> Tensor:
    """One less the cosine of the features (n,D) of two images of a group, on average: diversity to
    an eye that overlooks the colour of the background."""
    groups = F.normalize(features, dim=1).unflatten(0, (-1, GROUP))
    return _between_two(1 - groups @ groups.mT)


def _between_two(distances: Tensor) -> Tensor:
    """The mean of a table (groups,GROUP,GROUP) that has zeros on its diagonal."""
    return distances.sum((1, 2)) / (GROUP * (GROUP - 1))


def rms(images: Tensor, others: Tensor) -> Tensor:
    """Root mean square difference, image by image."""
    return (images - others).square().flatten(1).mean(1).sqrt()


def psnr_where(images: Tensor, others: Tensor, where: Tensor) -> Tensor:
    """PSNR over the pixels where `where` (n or 1,1,H,W) is 1, in dB, at most BEST."""
    where = where.expand(len(images), -1, -1, -1)
    error = ((images - others).square().mean(1, keepdim=True) * where).flatten(1).sum(1)
    error = error / where.flatten(1).sum(1).clamp(min=1)
    return (10 * torch.log10(4 / error.clamp(min=1e-12))).clamp(max=BEST)


def foreground(images: Tensor) -> Tensor:
    """1 where the image differs from its background, the median of its border (n,1,H,W)."""
    border = torch.cat(
        [images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1]], dim=2
    )
    ground = border.median(dim=2).values[..., None, None]  # (n,3,1,1)
    return ((images - ground).abs().amax(1, keepdim=True) > 0.3).float()


def centre(images: Tensor) -> Tensor:
    """The middle (n,2) of what is not background: x, y in pixels; the image's middle if nothing."""
    seen = foreground(images)[:, 0]  # (n,H,W)
    axis = torch.arange(seen.shape[-1], dtype=torch.float32)
    mass = seen.sum((1, 2)).clamp(min=1)
    x, y = (seen.sum(1) * axis).sum(1) / mass, (seen.sum(2) * axis).sum(1) / mass
    middle = (seen.shape[-1] - 1) / 2
    empty = (seen.sum((1, 2)) == 0)[:, None]
    return torch.where(empty, torch.full((1, 2), middle), torch.stack([x, y], dim=1))


def moved(images: Tensor, others: Tensor) -> Tensor:
    """Pixels between the middles of what the two images show."""
    return (centre(images) - centre(others)).norm(dim=1)


def saturation(images: Tensor, where: Tensor) -> Tensor:
    """The mean difference of the largest and the smallest of red, green and blue, there."""
    colour = images.amax(1, keepdim=True) - images.amin(1, keepdim=True)
    return (colour * where).flatten(1).sum(1) / where.flatten(1).sum(1).clamp(min=1)


def saturated(images: Tensor) -> Tensor:
    """The share of values at the ends of the range, in per cent."""
    return 100 * (images.abs() > 0.98).double().flatten(1).mean(1)


def grain(images: Tensor) -> Tensor:
    """The mean difference of neighbouring pixels: large of noise, small of a blur."""
    across, down = images.diff(dim=3).abs().flatten(1), images.diff(dim=2).abs().flatten(1)
    return torch.cat([across, down], dim=1).mean(1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of areas (n,1,H,W) of zeros and ones."""
    both, either = (a * b).flatten(1).sum(1), torch.maximum(a, b).flatten(1).sum(1)
    return both / either.clamp(min=1)


def palette(images: Tensor, others: Tensor) -> Tensor:
    """How far apart the colours are, wherever they stand: each channel's values in order."""
    a, b = (x.flatten(2).sort(dim=2).values for x in (images, others))  # (n,3,H*W)
    return (a - b).abs().mean((1, 2))
