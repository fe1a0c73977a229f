"""SDEdit: from strokes to an image (Meng et al. 2022, https://arxiv.org/abs/2108.01073)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minidiff.denoiser import Denoiser
from minidiff.editing.checks import check_count, check_image, last_part
from minidiff.editing.masks import paste
from minidiff.noise import Randomness, per_image, randn
from minidiff.samplers import Step, ddpm_step, sample
from minidiff.schedule import NoiseLevel, add_noise


def sdedit(
    denoise: Denoiser,
    guide: Tensor,
    path: Sequence[NoiseLevel],
    *,
    strength: float = 0.5,
    repeats: int = 1,
    mask: Tensor | None = None,
    step: Step = ddpm_step,
    generator: Randomness = None,
    progress: bool = False,
) -> Tensor:
    """Noise a guide to a middle level and denoise it: it turns real, and stays like the guide.

    guide (B,3,H,W) in [-1, 1] is a crude picture, such as strokes over a photograph. `strength` is
    the share of the path's steps that is walked, the paper's t0: small is faithful, large is real,
    .3 to .6 a compromise. `repeats` starts again from the result (the authors do it 3 times).
    A mask (B or 1,1,H,W), 1 = keep, holds pixels of the guide: it is set back after every step, and
    at the end bit for bit. Returns (B,3,H,W); strength * steps * repeats network calls.

    Raises ValueError for a mask that does not fit the guide and a strength outside (0, 1].
    """
    check_image(guide, "guide")
    check_count("repeats", repeats)
    part = last_part(path, strength)
    generators = per_image(generator, len(guide))
    edit = paste(guide, mask, generators) if mask is not None else None
    x = guide
    for _ in range(repeats):
        x = add_noise(x, part[0], randn(x.shape, generators, like=x))
        x = sample(step, denoise, x, part, edit=edit, generator=generators, progress=progress)
    return x
