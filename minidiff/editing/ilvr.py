"""ILVR: images that share a reference's coarse look (Choi et al. 2021, arXiv 2108.02938)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from minidiff.denoiser import Denoiser
from minidiff.editing.checks import check_count, check_image, check_path
from minidiff.noise import Randomness, per_image, randn
from minidiff.samplers import Step, ddpm_step, sample
from minidiff.schedule import NoiseLevel, add_noise


def low_pass(x: Tensor, factor: int) -> Tensor:
    """Each square of factor x factor pixels gets its mean: x (B,3,H,W), the paper's phi_N.

    A projection, so doing it twice changes nothing; the cubic resizing of the authors is none.
    ValueError where the image does not divide into such squares.
    """
    if x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(f"{tuple(x.shape[2:])} pixels do not divide into squares of {factor}")
    coarse = F.avg_pool2d(x, factor)  # (B,3,H/factor,W/factor)
    return F.interpolate(coarse, scale_factor=factor, mode="nearest")


def ilvr(
    denoise: Denoiser,
    reference: Tensor,
    path: Sequence[NoiseLevel],
    *,
    factor: int = 4,
    until: float = 0,
    step: Step = ddpm_step,
    generator: Randomness = None,
    progress: bool = False,
) -> Tensor:
    """New images whose low frequencies are the reference's (algorithm 1).

    reference (B,3,H,W) in [-1, 1]. After every step x' becomes x' - phi(x') + phi(y), y being the
    reference at the level of x'. A larger `factor` leaves more free; so does ending earlier: below
    t = `until` nothing is changed. With until = 0 the result has the reference's low frequencies
    exactly. Use a step that adds noise: DDIM's images come out blurred. Returns (B,3,H,W).

    Raises ValueError for a factor that does not divide H and W.
    """
    check_image(reference, "reference")
    check_path(path)
    check_count("factor", factor)
    height, width = reference.shape[2:]
    if height % factor or width % factor:
        raise ValueError(f"factor {factor} does not divide the reference's {height} x {width}")
    if not until >= 0:
        raise ValueError(f"until = {until}: expected the time t >= 0 of the last level to change")
    generators = per_image(generator, len(reference))

    def edit(x: Tensor, level: NoiseLevel) -> Tensor:
        if level.t < until:
            return x
        y = add_noise(reference, level, randn(x.shape, generators, like=x))
        return x + low_pass(y - x, factor)  # phi is linear: x - phi(x) + phi(y)

    x = randn(reference.shape, generators, like=reference)
    return sample(step, denoise, x, path, edit=edit, generator=generators, progress=progress)
