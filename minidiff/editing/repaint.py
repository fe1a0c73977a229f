"""RePaint: fill in what a mask leaves out (Lugmayr et al. 2022, arXiv 2201.09865)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minidiff.denoiser import Denoiser
from minidiff.editing.checks import check_image, check_path
from minidiff.editing.masks import paste
from minidiff.noise import Randomness, per_image, randn
from minidiff.samplers import Step, ddpm_step, sample
from minidiff.schedule import NoiseLevel, jumps, renoise


def repaint(
    denoise: Denoiser,
    image: Tensor,
    mask: Tensor,
    path: Sequence[NoiseLevel],
    *,
    length: int = 1,
    times: int = 10,
    step: Step = ddpm_step,
    generator: Randomness = None,
    progress: bool = False,
) -> Tensor:
    """Inpainting by an unconditional model that resamples (algorithm 1).

    image (B,3,H,W) in [-1, 1], mask (B or 1,1,H,W), 1 = keep. The kept pixels are set back after
    every move, noised to its level. Steps alone do not bring the hole into harmony with them,
    however many: so the path climbs back `length` levels and comes down again, `times` times in
    all at each place. A path of 50 steps with jumps of 1 is 491 network calls; the paper's setting
    is 250 steps, length 10, and jumps as long need as many steps. `times=1` is plain replacement.
    Returns (B,3,H,W); the kept pixels are the image's bit for bit.

    Raises ValueError for a mask that does not fit the image and jumps longer than the path.
    """
    check_image(image)
    check_path(path)
    steps = len(path) - 1
    if times > 1 and length >= steps:
        raise ValueError(f"jumps of {length} levels do not fit a path of {steps} steps")
    levels = path[::-1]  # from clean to noisy
    up_and_down = [levels[k] for k in jumps(steps, length, times)]
    generators = per_image(generator, len(image))
    return sample(
        step,
        denoise,
        randn(image.shape, generators, like=image),
        up_and_down,
        edit=paste(image, mask, generators),
        climb=renoise,
        generator=generators,
        progress=progress,
    )
