"""Noise levels: the forward process q(x_t | x_0) of DDPM (Ho et al. 2020, equation 4) and of its
relatives, as three numbers. Nothing here assumes alpha^2 + sigma^2 = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class NoiseLevel(NamedTuple):
    """A point on the schedule: `x_t = alpha * x0 + sigma * eps`.

    Numbers when sampling, (B,1,1,1) tensors when training. t = 0 is the clean image; networks are
    given t - 1.
    """

    t: float | Tensor
    alpha: float | Tensor
    sigma: float | Tensor


class CleanLevel(NoiseLevel):
    """The clean image's level, t = 0, as a schedule gives it. It knows the lowest noisy level of
    that schedule, where inversion reads the eps of an image that contains no noise."""

    lowest: NoiseLevel


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Two float64 tables, alpha[0..T] and sigma[0..T]: index 0 is the clean image, 1..T are noisy.

    sigma/alpha rises strictly. alpha may be 0 at T, where nothing is left of the image. ValueError
    for other tables.
    """

    alpha: Tensor
    sigma: Tensor
    _on_device: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        alpha, sigma = (
            torch.as_tensor(table, dtype=torch.float64).cpu() for table in (self.alpha, self.sigma)
        )
        if alpha.ndim != 1 or alpha.shape != sigma.shape or len(alpha) < 2:
            raise ValueError(
                f"alpha has shape {tuple(alpha.shape)}, sigma {tuple(sigma.shape)}: expected two "
                "tables of one length, of the clean image and at least one noisy level"
            )
        if alpha[0] != 1 or sigma[0] != 0:
            raise ValueError("the tables must begin with the clean image, alpha = 1 and sigma = 0")
        inside = (alpha[:-1] > 0).all() and alpha[-1] >= 0 and (sigma[1:] > 0).all()
        rises = (sigma[1:] * alpha[:-1] > sigma[:-1] * alpha[1:]).all()
        if not (inside and rises and alpha.isfinite().all() and sigma.isfinite().all()):
            raise ValueError(
                "sigma/alpha must rise strictly with t, with alpha above 0 (0 at T at the earliest)"
            )
        object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "sigma", sigma)

    # ---------------------------------------------------------------------------- the schedules

    @classmethod
    def from_alpha_bar(cls, alpha_bar: Sequence[float] | Tensor) -> NoiseSchedule:
        """A variance-preserving schedule: alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar)."""
        table = torch.as_tensor(alpha_bar, dtype=torch.float64)
        falls = table.ndim == 1 and len(table) > 1 and table[0] == 1 and (table.diff() < 0).all()
        if not (falls and table[-1] >= 0):
            raise ValueError("alpha_bar must fall strictly from 1 (clean) to a value not below 0")
        return cls(table.sqrt(), (1 - table).sqrt())

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> NoiseSchedule:
        """alpha_bar_t = product of (1 - beta_s) for s <= t (DDPM, below equation 4)."""
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) == 0 or not ((betas > 0) & (betas < 1)).all():
            raise ValueError("betas must be a list of numbers strictly between 0 and 1")
        return cls.from_alpha_bar(torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, 0)]))

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

    @classmethod
    def flow(cls, T: int = 1000) -> NoiseSchedule:
        """alpha = 1 - t/T, sigma = t/T: the straight lines of rectified flow (Liu et al. 2023) and
        of flow matching with optimal-transport paths (Lipman et al. 2023). At T nothing is left of
        the image, so a network cannot predict eps there: "flow", "v" and "x0" work."""
        sigma = torch.arange(T + 1, dtype=torch.float64) / T
        return cls(1 - sigma, sigma)

    @classmethod
    def ve(cls, T: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0) -> NoiseSchedule:
        """alpha = 1, sigma geometric from sigma_min at t = 1 to sigma_max at T: the
        variance-exploding process (Song et al. 2021, score SDE, appendix C)."""
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"sigma_min {sigma_min}, sigma_max {sigma_max}: expected 0 < sigma_min < sigma_max"
            )
        share = torch.arange(T, dtype=torch.float64) / max(T - 1, 1)
        if T == 1:
            share = share + 1
        noisy = sigma_min * (sigma_max / sigma_min) ** share
        return cls(torch.ones(T + 1), torch.cat([torch.zeros(1), noisy]))

    # --------------------------------------------------------------------------- what it says

    @property
    def T(self) -> int:
        return len(self.alpha) - 1

    @cached_property
    def preserves_variance(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1 at all levels."""
        norm = self.alpha.square() + self.sigma.square()
        return torch.allclose(norm, torch.ones_like(norm), rtol=0, atol=1e-9)

    @property
    def alpha_bar(self) -> Tensor:
        """alpha^2, DDPM's table; ValueError for a schedule that does not preserve the variance."""
        if not self.preserves_variance:
            raise ValueError("alpha_bar belongs to variance-preserving schedules: use alpha, sigma")
        return self.alpha.square()

    @cached_property
    def log_snr(self) -> Tensor:
        """log(alpha / sigma) of 0..T: inf for the clean image, -inf where alpha is 0."""
        return self.alpha.log() - self.sigma.log()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NoiseSchedule):
            return NotImplemented
        return torch.equal(self.alpha, other.alpha) and torch.equal(self.sigma, other.sigma)

    __hash__ = None

    def __repr__(self) -> str:
        kind = "variance-preserving" if self.preserves_variance else "general"
        low, high = (self.sigma / self.alpha)[[1, -1]].tolist()
        return f"NoiseSchedule({kind}, T = {self.T}, sigma/alpha from {low:.3g} to {high:.3g})"

    def tables(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it; `take_tables` makes the schedule again."""
        return {"alpha": self.alpha, "sigma": self.sigma}

    @classmethod
    def take_tables(cls, tensors: dict[str, Tensor]) -> NoiseSchedule:
        """The schedule of a checkpoint, whose tables are taken out of its tensors.

        Files of version 1 kept alpha_bar alone. KeyError if there is neither.
        """
        if "alpha_bar" in tensors:
            return cls.from_alpha_bar(tensors.pop("alpha_bar"))
        return cls(tensors.pop("alpha"), tensors.pop("sigma"))

    # -------------------------------------------------------------------------- levels and paths

    def level(self, t: float | Tensor) -> NoiseLevel:
        """The level of t in [0, T].

        A (B,) tensor, of integers or floats, gives float32 (B,1,1,1) tensors on its device, for
        training. A number gives numbers. Between two whole t, a variance-preserving schedule
        interpolates the log signal-to-noise ratio, any other one alpha and sigma.
        Raises ValueError outside [0, T].
        """
        if isinstance(t, Tensor) and t.ndim > 0:
            return self._levels(t)
        t = float(t)
        if not 0 <= t <= self.T:
            raise ValueError(f"t = {t:g} is not on the schedule: expected 0 <= t <= {self.T}")
        if t == 0:
            clean = CleanLevel(0, 1.0, 0.0)
            clean.lowest = self.level(1)
            return clean
        if t == int(t):
            return NoiseLevel(int(t), self.alpha[int(t)].item(), self.sigma[int(t)].item())
        alpha, sigma = self._between(torch.tensor(t, dtype=torch.float64), self.alpha, self.sigma)
        return NoiseLevel(t, alpha.item(), sigma.item())

    def _levels(self, t: Tensor) -> NoiseLevel:
        if t.ndim != 1 or t.is_complex() or t.dtype == torch.bool:
            raise ValueError(f"expected a (B,) tensor of levels, got {tuple(t.shape)} of {t.dtype}")
        # a GPU is not asked, and waited for: it asserts by itself
        if t.device.type == "cpu" and not (t.min() >= 0 and t.max() <= self.T):
            raise ValueError(f"levels must lie in 0..{self.T}, got {t.min()}..{t.max()}")
        if t.is_floating_point():
            exact = "cpu" if t.device.type == "mps" else t.device  # which has no float64
            tables = self._tables(torch.device(exact), torch.float64)
            alpha, sigma = (
                part.to(t.device, torch.float32)
                for part in self._between(t.to(exact, torch.float64), *tables)
            )
        else:
            alpha, sigma = self._tables(t.device, torch.float32)[:, t]
        return NoiseLevel(*(part.reshape(-1, 1, 1, 1) for part in (t, alpha, sigma)))

    def _tables(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """alpha and sigma (2, T+1), kept where training reads them at every step."""
        if (device, dtype) not in self._on_device:
            pair = torch.stack([self.alpha, self.sigma])
            self._on_device[device, dtype] = pair.to(dtype).to(device)
        return self._on_device[device, dtype]

    def _between(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at any t (...), in float64."""
        below = t.floor().long().clamp(max=self.T - 1)
        part = t - below
        if not self.preserves_variance:
            return tuple(table[below].lerp(table[below + 1], part) for table in (alpha, sigma))
        log_snr = 2 * (alpha.log() - sigma.log())  # of the variances
        low, high = log_snr[below], log_snr[below + 1]
        variance = torch.sigmoid(-low - part * (high - low))
        # the ratio is infinite at the clean image, and may be 0 at T: interpolate the variance
        ends = (below == 0) | high.isinf()
        variance = torch.where(
            ends, sigma[below].square().lerp(sigma[below + 1].square(), part), variance
        )
        whole = part == 0
        kept = (1 - variance).sqrt()
        return torch.where(whole, alpha[below], kept), torch.where(
            whole, sigma[below], variance.sqrt()
        )

    def path(self, steps: int | Sequence[float], spacing: str = "trailing") -> list[NoiseLevel]:
        """The levels a sampler visits: `steps` noisy ones going down, then the clean one, t = 0.

        "trailing" starts at T and steps by T/S; "leading" steps by T//S and ends at t = 1;
        "linspace" visits both T and 1; "log_snr" spaces log(alpha/sigma) evenly from T to 1
        (DPM-Solver's grid; t is then fractional), or from T - 1 where alpha is 0 at T. A list of t
        is taken as it is.
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
        if self.T == 1 or steps == 1:
            return [self.T]
        if self.alpha[-1] == 0:  # pure noise, then an even grid from the next level on
            top, first = self.T - 1, [self.T]
        else:
            top, first = self.T, []
        steps -= len(first)
        log_snr = self.log_snr[1 : top + 1]  # falls with t = 1..top
        if top == 1:
            return [*first, 1]
        wanted = torch.linspace(log_snr[-1].item(), log_snr[0].item(), steps, dtype=torch.float64)
        rising = log_snr.flip(0)
        right = torch.searchsorted(rising, wanted).clamp(1, top - 1)
        part = self._share(wanted, top - right, rising[right - 1], rising[right])
        return [*first, *(top - (right - 1 + part)).clamp(1, top).tolist()]

    def _share(self, wanted: Tensor, below: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Where the wanted log SNR lies between t = below + 1 (low), 0, and t = below (high), 1:
        `_between` read the other way."""
        if self.preserves_variance:
            return (wanted - low) / (high - low)
        alpha, sigma, ratio = self.alpha, self.sigma, wanted.exp()
        rise = alpha[below] - alpha[below + 1] - ratio * (sigma[below] - sigma[below + 1])
        return (ratio * sigma[below + 1] - alpha[below + 1]) / rise


def transition(low: NoiseLevel, high: NoiseLevel) -> tuple[float | Tensor, float | Tensor]:
    """(ratio, variance) of q(x_high | x_low) = N(ratio * x_low, variance), `high` being noisier.

    ratio = high.alpha / low.alpha and variance = high.sigma^2 - (ratio * low.sigma)^2: in DDPM's
    terms sqrt(1 - beta) and beta (equation 2). ValueError if `high` is the less noisy one.
    """
    if not isinstance(low.alpha, Tensor):
        if low.alpha == 0:
            raise ValueError(f"t = {low.t} is pure noise: no level is noisier")
        if high.sigma * low.alpha < low.sigma * high.alpha:
            raise ValueError(
                f"t = {high.t} must be noisier than t = {low.t}: expected a move up the schedule"
            )
    ratio = high.alpha / low.alpha
    variance = high.sigma**2 - (ratio * low.sigma) ** 2
    return ratio, variance if isinstance(variance, Tensor) else max(variance, 0.0)


def climbs(here: NoiseLevel, there: NoiseLevel) -> bool:
    """Whether the move from `here` to `there` goes up, to more noise."""
    return there.sigma * here.alpha > here.sigma * there.alpha


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


def renoise(x: Tensor, here: NoiseLevel, there: NoiseLevel, noise: Tensor) -> Tensor:
    """A draw of q(x_there | x_here), for `there` noisier than `here` (DDPM, equation 2).

    `noise` is standard normal, of x's shape. It is the `climb` of a trajectory.
    """
    ratio, variance = transition(here, there)
    return ratio * x + variance**0.5 * noise
