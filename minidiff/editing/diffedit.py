"""DiffEdit: the model finds by itself what to edit (Couairon et al. 2022, arXiv 2210.11427).

mask = edit_mask(query, reference, image, schedule.level(500))  # where the two captions differ
edited = diffedit(guided_query, unconditional, image, mask, path)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.denoiser import Denoiser
from minidiff.editing.checks import check_count, check_image, check_mask, last_part
from minidiff.editing.masks import grow
from minidiff.noise import Randomness, per_image, randn
from minidiff.samplers import ddim_step, invert, sample
from minidiff.schedule import NoiseLevel, add_noise

EXTREME = 3  # times the mean: larger differences count as this large (diffusers, Xiang-cd)


@torch.no_grad()
def difference(
    query: Denoiser,
    reference: Denoiser,
    image: Tensor,
    level: NoiseLevel,
    *,
    n: int = 10,
    generator: Randomness = None,
) -> Tensor:
    """How much two captions disagree about the noise at each pixel of the image (B,3,H,W).

    The mean over `n` noises and the channels of |eps_query - eps_reference|; (B,1,H,W), from 0 up.
    """
    check_image(image)
    check_count("n", n)
    generators = per_image(generator, len(image))
    total = torch.zeros_like(image[:, :1])
    for _ in range(n):  # a noise of its own each time: one noise n times averages nothing away
        x = add_noise(image, level, randn(image.shape, generators, like=image))
        gap = (query(x, level).eps - reference(x, level).eps).abs()
        total += gap.mean(dim=1, keepdim=True)  # (B,1,H,W)
    return total / n


def edit_mask(
    query: Denoiser,
    reference: Denoiser,
    image: Tensor,
    level: NoiseLevel,
    *,
    n: int = 10,
    threshold: float = 0.5,
    pool: int = 2,
    margin: int = 1,
    generator: Randomness = None,
) -> Tensor:
    """Step 1 of the paper (section 3.2): what the query must change. (B,1,H,W), 1 = keep.

    `query` and `reference` are unguided denoisers: of the caption wanted, and of the image's own or
    the empty one; the paper's level is that of half the time. The differences are averaged over
    pool x pool pixels, as the paper's are over 8 x 8, and cut at 3 times their mean; what lies
    above `threshold` of that is edited, and `margin` pixels around, for the blurred rims of things.
    A larger threshold edits less. 2 n calls. Captions that are the same edit nothing.

    Between a circle and a square of one colour only the corners differ: with the image's own
    caption the mask is a ring, with the empty one the whole thing.

    Raises ValueError for a threshold outside (0, 1) and a pool that does not divide H and W.
    """
    check_image(image)
    _check_cut(image, threshold, pool, margin)
    gap = difference(query, reference, image, level, n=n, generator=generator)
    return cut(gap, threshold=threshold, pool=pool, margin=margin)


def cut(gap: Tensor, *, threshold: float = 0.5, pool: int = 2, margin: int = 1) -> Tensor:
    """The mask (B,1,H,W) of a `difference` (B,1,H,W), as `edit_mask` makes it of its own."""
    _check_cut(gap, threshold, pool, margin)
    gap = F.interpolate(F.avg_pool2d(gap, pool), scale_factor=pool)  # (B,1,H,W)
    cap = EXTREME * gap.mean((2, 3), keepdim=True)  # (B,1,1,1)
    mask = (gap.minimum(cap) <= threshold * cap).to(gap)
    return grow(mask, margin) if margin else mask


def _check_cut(image: Tensor, threshold: float, pool: int, margin: int) -> None:
    if not 0 < threshold < 1:
        raise ValueError(f"threshold {threshold} is out of range: expected 0 < threshold < 1")
    check_count("pool", pool)
    if margin < 0:
        raise ValueError(f"margin = {margin}: expected a number of pixels, 0 or more")
    if image.shape[2] % pool or image.shape[3] % pool:
        raise ValueError(f"pool {pool} does not divide the image's {tuple(image.shape[2:])} pixels")


def diffedit(
    query: Denoiser,
    unconditional: Denoiser,
    image: Tensor,
    mask: Tensor,
    path: Sequence[NoiseLevel],
    *,
    strength: float = 0.8,
    progress: bool = False,
) -> Tensor:
    """Steps 2 and 3: encode the image, and decode it with the query where the mask lets it.

    image (B,3,H,W) in [-1, 1], mask (B or 1,1,H,W), 1 = keep. DDIM inverts the image along the last
    `strength` of the path's steps by the `unconditional` denoiser, and goes down again by the
    `query`, guided (3 or more; the paper has 5). After every step the kept pixels are set back to
    those of the way up, so the edited ones agree with them: the encoding is what holds pose and
    place. Nothing is random. Returns (B,3,H,W); the kept pixels are the image's bit for bit.

    Raises ValueError for a mask that does not fit the image and a strength outside (0, 1].
    """
    check_image(image)
    check_mask(mask, image)
    part, keep = last_part(path, strength), mask.to(image.device).bool()
    on_the_way_up = []

    def watched(x: Tensor, level: NoiseLevel):
        on_the_way_up.append(x)
        return unconditional(x, level)

    encoded = invert(watched, image, part)
    track = {level.t: x for level, x in zip(part[::-1], [*on_the_way_up, encoded], strict=True)}

    def edit(x: Tensor, level: NoiseLevel) -> Tensor:
        return torch.where(keep, track[level.t], x)

    return sample(ddim_step, query, encoded, part, edit=edit, progress=progress)
