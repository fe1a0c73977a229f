"""What a network says of a noisy image, always as the pair (x0, eps), and the loss it learns by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.schedule import NoiseLevel, add_noise, weighted_sum


class Prediction(NamedTuple):
    """The two halves of `x_t = alpha * x0 + sigma * eps`, each of the image's shape."""

    x0: Tensor
    eps: Tensor


Denoiser = Callable[[Tensor, NoiseLevel], Prediction]
Network = Callable[..., Tensor]  # network(x, t, condition) -> out
Tap = Callable[[NoiseLevel, str, Tensor], Tensor]  # tap(level, site, value) -> value


def from_eps(x: Tensor, level: NoiseLevel, out: Tensor) -> Prediction:
    """The pair of a network that predicts the noise: x0 = (x - sigma * eps) / alpha (DDPM,
    equation 15)."""
    return Prediction(weighted_sum(1 / level.alpha, x, -level.sigma / level.alpha, out), out)


def from_x0(x: Tensor, level: NoiseLevel, out: Tensor) -> Prediction:
    """The pair of a network that predicts the clean image: eps = (x - alpha * x0) / sigma.

    ValueError at the clean level, where x has no noise to be found.
    """
    if not isinstance(level.sigma, Tensor) and level.sigma == 0:
        raise ValueError("a clean image has no noise to be found: expected a level of sigma > 0")
    return Prediction(out, weighted_sum(1 / level.sigma, x, -level.alpha / level.sigma, out))


def from_v(x: Tensor, level: NoiseLevel, out: Tensor) -> Prediction:
    """The pair of a network that predicts `v = alpha * eps - sigma * x0`.

    Salimans and Ho 2022, progressive distillation, appendix D.
    """
    x0 = weighted_sum(level.alpha, x, -level.sigma, out)
    return Prediction(x0, weighted_sum(level.sigma, x, level.alpha, out))


FROM = {"eps": from_eps, "x0": from_x0, "v": from_v}


def reader(predicts: str) -> Callable[[Tensor, NoiseLevel, Tensor], Prediction]:
    """The function that turns a network's output into a Prediction; ValueError if unknown."""
    if predicts not in FROM:
        raise ValueError(f"unknown prediction {predicts!r}: expected one of {', '.join(FROM)}")
    return FROM[predicts]


def network_time(x: Tensor, level: NoiseLevel) -> Tensor:
    """The (B,) time a network is given: t - 1, as every published network counts from 0.

    The clean image (t = 0) is shown as the lowest level that networks know, t = 1.
    """
    if isinstance(level.t, Tensor):
        return (level.t.reshape(-1) - 1).clamp(min=0).expand(len(x))
    t = max(level.t - 1, 0)
    dtype = torch.int64 if isinstance(t, int) else torch.float32
    return x.new_full((len(x),), t, dtype=dtype)


def as_denoiser(
    network: Network,
    condition: Any = None,
    *,
    predicts: str = "eps",
    tap: Tap | None = None,
) -> Denoiser:
    """A network(x, t, condition) with its condition filled in, as a Denoiser.

    x is (B,3,H,W); `predicts` is "eps", "x0" or "v". A `tap` sees, and may replace, the values at
    the network's named sites.
    """
    read = reader(predicts)

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        hooks = {} if tap is None else {"tap": partial(tap, level)}
        return read(x, level, network(x, network_time(x, level), condition, **hooks))

    return denoise


def denoising_loss(
    network: Network,
    x0: Tensor,
    level: NoiseLevel,
    noise: Tensor,
    condition: Any = None,
    *,
    predicts: str = "eps",
    weight: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the network's output against its target (DDPM, equation 14).

    x0 and noise (B,3,H,W), level from `schedule.level(t)` with t (B,) in 1..T, weight None or (B,).
    """
    reader(predicts)  # refuses an unknown prediction
    out = network(add_noise(x0, level, noise), network_time(x0, level), condition)
    target = {"eps": noise, "x0": x0, "v": level.alpha * noise - level.sigma * x0}[predicts]
    if out.shape != target.shape:
        raise ValueError(
            f"the network returned {tuple(out.shape)} for images of shape {tuple(target.shape)}"
        )
    exact = torch.promote_types(target.dtype, torch.float32)  # at least float32
    each = F.mse_loss(out.to(exact), target.to(exact), reduction="none").mean((1, 2, 3))  # (B,)
    return (each if weight is None else weight * each).mean()


def min_snr_weight(level: NoiseLevel, *, predicts: str, gamma: float = 5.0) -> Tensor:
    """Min-SNR weights (B,) for `denoising_loss` (Hang et al. 2023, section 3.4).

    An x0 loss is weighted by min(SNR, gamma); the same weight is SNR times smaller on eps and
    SNR + 1 times smaller on v, because those losses already carry the factor.
    """
    snr = (level.alpha / level.sigma).reshape(-1) ** 2
    carried = {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}
    reader(predicts)
    return snr.clamp(max=gamma) / carried[predicts]
