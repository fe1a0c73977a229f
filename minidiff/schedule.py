"""Noise levels: the forward process q(x_t | x_0) of DDPM (Ho et al. 2020, equation 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class NoiseLevel(NamedTuple):
    """A point on the schedule: `x_t = alpha * x0 + sigma * eps`.

    Numbers when sampling, (B,1,1,1) tensors when training. t = 0 is the clean image; networks are
    given t - 1. `alpha = sqrt(alpha_bar)`, `sigma = sqrt(1 - alpha_bar)`.
    """

    t: float | Tensor
    alpha: float | Tensor
    sigma: float | Tensor


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """One float64 table `alpha_bar[0..T]`: index 0 is the clean image, 1..T are noisy."""

    alpha_bar: Tensor
    _tables: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        table = torch.as_tensor(self.alpha_bar, dtype=torch.float64).cpu()
        falls = table.ndim == 1 and len(table) > 1 and table[0] == 1 and (table.diff() < 0).all()
        if not (falls and table[-1] > 0):
            raise ValueError("alpha_bar must fall strictly from 1 (clean) to a value above 0")
        object.__setattr__(self, "alpha_bar", table)

    @property
    def T(self) -> int:
        return len(self.alpha_bar) - 1

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> NoiseSchedule:
        """alpha_bar_t = product of (1 - beta_s) for s <= t (DDPM, below equation 4)."""
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) == 0 or not ((betas > 0) & (betas < 1)).all():
            raise ValueError("betas must be a list of numbers strictly between 0 and 1")
        return cls(torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, 0)]))

    @classmethod
    def linear(
        cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """DDPM's schedule (Ho et al. 2020, section 4)."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, T, dtype=torch.float64))

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008) -> NoiseSchedule:
        """Improved DDPM's schedule (Nichol and Dhariwal 2021, equation 17), betas up to 0.999."""
        f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s) * math.pi / 2)
        return cls.from_betas((1 - (f[1:] / f[:-1]) ** 2).clamp(max=0.999))

    def level(self, t: float | Tensor) -> NoiseLevel:
        """The level of t in [0, T].

        A (B,) integer tensor gives float32 (B,1,1,1) tensors on its device, for training. A number
        gives numbers; between two integers the log signal-to-noise ratio is interpolated.
        Raises ValueError outside [0, T].
        """
        if isinstance(t, Tensor) and t.ndim > 0:
            return self._levels(t)
        t = float(t)
        if not 0 <= t <= self.T:
            raise ValueError(f"t = {t:g} is not on the schedule: expected 0 <= t <= {self.T}")
        if t == int(t):
            a = self.alpha_bar[int(t)].item()
            return NoiseLevel(int(t), math.sqrt(a), math.sqrt(1 - a))
        if t < 1:  # the log ratio is infinite at the clean image: interpolate the variance there
            sigma2 = t * (1 - self.alpha_bar[1].item())
            return NoiseLevel(t, math.sqrt(1 - sigma2), math.sqrt(sigma2))
        below, part = int(t), t - int(t)
        low, high = torch.logit(self.alpha_bar[below : below + 2]).tolist()
        a = torch.sigmoid(torch.tensor(low + part * (high - low), dtype=torch.float64)).item()
        return NoiseLevel(t, math.sqrt(a), math.sqrt(1 - a))

    def _levels(self, t: Tensor) -> NoiseLevel:
        if t.is_floating_point() or t.ndim != 1:
            raise ValueError(f"expected a (B,) integer tensor of levels, got {t.dtype} {t.shape}")
        if t.device.type == "cpu" and (t.min() < 0 or t.max() > self.T):  # a GPU asserts by itself
            raise ValueError(f"levels must lie in 0..{self.T}, got {t.min()}..{t.max()}")
        if t.device not in self._tables:
            pair = torch.stack([self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()])
            self._tables[t.device] = pair.float().to(t.device)
        alpha, sigma = self._tables[t.device][:, t].reshape(2, -1, 1, 1, 1)
        return NoiseLevel(t.reshape(-1, 1, 1, 1), alpha, sigma)

    def path(self, steps: int | Sequence[float], spacing: str = "trailing") -> list[NoiseLevel]:
        """The levels a sampler visits: `steps` noisy ones going down, then the clean one, t = 0.

        "trailing" starts at T and steps by T/S; "leading" steps by T//S and ends at t = 1;
        "linspace" visits both T and 1; "log_snr" spaces log(alpha/sigma) evenly from T to 1
        (DPM-Solver's grid; t is then fractional). A list of t is taken as it is.
        """
        if isinstance(steps, Iterable):
            return [self.level(t) for t in steps]
        if not 1 <= steps <= self.T or steps != int(steps):
            raise ValueError(
                f"{steps} steps on a schedule of {self.T} levels: expected 1..{self.T}"
            )
        i = torch.arange(steps, dtype=torch.float64)
        if spacing == "trailing":
            ts = (self.T - i * self.T / steps).round().tolist()
        elif spacing == "leading":
            ts = ((steps - 1 - i) * (self.T // steps) + 1).tolist()
        elif spacing == "linspace":
            ts = ((i * (self.T - 1) / max(steps - 1, 1)).round().flip(0) + 1).tolist()
        elif spacing == "log_snr":
            ts = self._even_in_log_snr(steps)
        else:
            raise ValueError(
                f"unknown spacing {spacing!r}: expected trailing, leading, linspace or log_snr"
            )
        return [self.level(t) for t in [*ts, 0]]

    def _even_in_log_snr(self, steps: int) -> list[float]:
        if self.T == 1:
            return [1]
        log_snr = torch.logit(self.alpha_bar[1:])  # falls with t = 1..T
        wanted = torch.linspace(log_snr[-1].item(), log_snr[0].item(), steps, dtype=torch.float64)
        rising = log_snr.flip(0)
        right = torch.searchsorted(rising, wanted).clamp(1, self.T - 1)
        low, high = rising[right - 1], rising[right]
        part = (wanted - low) / (high - low)
        return (self.T - (right - 1 + part)).clamp(1, self.T).tolist()


def jumps(steps: int, length: int, times: int) -> list[int]:
    """RePaint's up-and-down list of levels, from `steps` to 0 (Lugmayr et al. 2022, section 4.2).

    At each multiple of `length` below `steps - length` the path climbs back `length` levels,
    `times - 1` times. The integers count levels: use them as indices into a path.
    """
    if steps < 1 or length < 1 or times < 1:
        raise ValueError(
            f"jumps(steps={steps}, length={length}, times={times}): expected numbers from 1 up"
        )
    left = {k: times - 1 for k in range(1, steps - length + 1, length)}
    t, visited = steps, [steps]
    while t > 1:
        t -= 1
        visited.append(t)
        if left.get(t, 0) > 0:
            left[t] -= 1
            visited += range(t + 1, t + length + 1)
            t += length
    return [*visited, 0]


def weighted_sum(a: float | Tensor, x: Tensor, b: float | Tensor, y: Tensor) -> Tensor:
    """a*x + b*y; two kernels where three would run, if the weights are numbers as in sampling."""
    return a * x + b * y if isinstance(b, Tensor) else torch.add(a * x, y, alpha=b)


def add_noise(x0: Tensor, level: NoiseLevel, noise: Tensor) -> Tensor:
    """alpha * x0 + sigma * noise; for standard normal `noise` of x0's shape a draw of q(x_t | x_0)
    (DDPM, equation 4)."""
    return weighted_sum(level.alpha, x0, level.sigma, noise)


def renoise(x: Tensor, here: NoiseLevel, there: NoiseLevel, noise: Tensor | None = None) -> Tensor:
    """A draw of q(x_there | x_here), for `there` noisier than `here` (DDPM, equation 2).

    As it stands it is the `climb` of a trajectory, which gives it noise of its own generator;
    without `noise` it draws from torch's state.
    """
    ratio = there.alpha / here.alpha
    variance = there.sigma**2 - (ratio * here.sigma) ** 2
    if not isinstance(variance, Tensor) and variance < 0:
        raise ValueError(
            f"renoise goes up: t = {there.t} must be noisier than t = {here.t} it starts from"
        )
    return ratio * x + variance**0.5 * (torch.randn_like(x) if noise is None else noise)
