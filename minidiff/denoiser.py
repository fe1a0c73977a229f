"""Network predictions as the pair (x0, eps), and the training loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.schedule import NoiseLevel, add_noise, weighted_sum


class Prediction(NamedTuple):
    """The two halves of `x_t = alpha * x0 + sigma * eps`, each of the image's shape."""

    x0: Tensor
    eps: Tensor


Denoiser = Callable[[Tensor, NoiseLevel], Prediction]
Tap = Callable[[NoiseLevel, str, Tensor], Tensor]  # tap(level, site, value) -> value


class Network(Protocol):
    """What a denoiser is made of: x (B,C,H,W), t (B,) from 0 to T-1, a Condition of B rows or None
    -> out, of x's shape. `tap` sees, and may replace, the values at the network's named sites; a
    network without sites need not take one."""

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        condition: Any = None,
        *,
        tap: Callable[[str, Tensor], Tensor] | None = None,
    ) -> Tensor: ...


# ------------------------------------------------------------------------------- parametrisations


def from_eps(x: Tensor, level: NoiseLevel, out: Tensor) -> Prediction:
    """The pair of a network that predicts the noise: x0 = (x - sigma * eps) / alpha (DDPM,
    equation 15).

    ValueError at pure noise, alpha = 0, where the noise tells nothing of x0.
    """
    if _is_zero(level.alpha):
        raise ValueError(
            f"t = {level.t} is pure noise (alpha = 0), where a prediction of eps leaves x0 open: "
            'expected a network that predicts "v", "flow" or "x0", or a path that starts below'
        )
    return Prediction(weighted_sum(1 / level.alpha, x, -level.sigma / level.alpha, out), out)


def from_x0(x: Tensor, level: NoiseLevel, out: Tensor) -> Prediction:
    """The pair of a network that predicts the clean image: eps = (x - alpha * x0) / sigma.

    ValueError at the clean level, where x contains no noise.
    """
    if _is_zero(level.sigma):
        raise ValueError("a clean image contains no noise: expected a level of sigma > 0")
    return Prediction(out, weighted_sum(1 / level.sigma, x, -level.alpha / level.sigma, out))


def from_v(x: Tensor, level: NoiseLevel, out: Tensor) -> Prediction:
    """The pair of a network that predicts `v = alpha * eps - sigma * x0`.

    Salimans and Ho 2022, progressive distillation, appendix D, where alpha^2 + sigma^2 = 1.
    """
    norm = level.alpha**2 + level.sigma**2
    x0 = weighted_sum(level.alpha / norm, x, -level.sigma / norm, out)
    return Prediction(x0, weighted_sum(level.sigma / norm, x, level.alpha / norm, out))


def from_flow(x: Tensor, level: NoiseLevel, out: Tensor) -> Prediction:
    """The pair of a network that predicts the velocity `eps - x0` of rectified flow.

    Liu et al. 2023, equation 1, whose time runs the other way, and where alpha + sigma = 1.
    """
    norm = level.alpha + level.sigma
    x0 = weighted_sum(1 / norm, x, -level.sigma / norm, out)
    return Prediction(x0, weighted_sum(1 / norm, x, level.alpha / norm, out))


class Parametrisation(NamedTuple):
    """What a network can predict: how its output is read, and what it is trained towards."""

    read: Callable[[Tensor, NoiseLevel, Tensor], Prediction]  # (x, level, out) -> (x0, eps)
    target: Callable[[Any, Any, NoiseLevel], Any]  # (x0, eps, level) -> what out should be


PARAMETRISATIONS = {
    "eps": Parametrisation(from_eps, lambda x0, eps, level: eps),
    "x0": Parametrisation(from_x0, lambda x0, eps, level: x0),
    "v": Parametrisation(from_v, lambda x0, eps, level: level.alpha * eps - level.sigma * x0),
    "flow": Parametrisation(from_flow, lambda x0, eps, level: eps - x0),
}


def parametrisation(predicts: str) -> Parametrisation:
    """A row of the table; ValueError for an unknown name."""
    if predicts not in PARAMETRISATIONS:
        known = ", ".join(PARAMETRISATIONS)
        raise ValueError(f"unknown prediction {predicts!r}: expected one of {known}")
    return PARAMETRISATIONS[predicts]


# ------------------------------------------------------------------------- networks as denoisers


def network_time(x: Tensor, level: NoiseLevel) -> Tensor:
    """The (B,) time a network is given: t - 1, as every published network counts from 0.

    The clean image (t = 0) is shown as the lowest level that networks are trained on, t = 1.
    """
    if isinstance(level.t, Tensor):
        t = level.t.reshape(-1)
        return torch.where(t == 0, 0, t - 1).expand(len(x))
    t = level.t - 1 if level.t != 0 else 0
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

    x is (B,C,H,W); `predicts` is a name of PARAMETRISATIONS. A `tap` sees, and may replace, the
    values at the network's named sites.
    """
    read = parametrisation(predicts).read

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        hooks = {} if tap is None else {"tap": partial(tap, level)}
        return read(x, level, network(x, network_time(x, level), condition, **hooks))

    return denoise


# ---------------------------------------------------------------------------------------- the loss


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

    x0 and noise (B,C,H,W), level from `schedule.level(t)` with t (B,), weight None or (B,).
    """
    target = parametrisation(predicts).target(x0, noise, level)
    out = network(add_noise(x0, level, noise), network_time(x0, level), condition)
    if out.shape != target.shape:
        raise ValueError(
            f"the network returned {tuple(out.shape)} for images of shape {tuple(target.shape)}"
        )
    exact = torch.promote_types(target.dtype, torch.float32)  # at least float32
    each = F.mse_loss(out.to(exact), target.to(exact), reduction="none").mean((1, 2, 3))  # (B,)
    return (each if weight is None else weight * each).mean()


def min_snr_weight(level: NoiseLevel, *, predicts: str, gamma: float = 5.0) -> Tensor:
    """Weights (B,) that cap the signal-to-noise weight of the x0 loss at `gamma` (Hang et al.
    2023, section 3.4), divided by the weight of the x0 error that the target carries by itself.

    With x_t fixed, an error d of x0 is an error -alpha/sigma * d of eps: what that makes of the
    target, squared, is the weight it carries. `level` is of t (B,), above the clean one.
    """
    ratio = (level.alpha / level.sigma).reshape(-1)
    flat = NoiseLevel(*(part.reshape(-1) for part in level))
    carried = parametrisation(predicts).target(torch.ones_like(ratio), -ratio, flat) ** 2
    return (ratio**2).clamp(max=gamma) / carried


def _is_zero(number: float | Tensor) -> bool:
    return not isinstance(number, Tensor) and number == 0
