"""Exact denoisers: data whose posterior means have a closed form, so no network is trained.

Points of the plane are handled as (B,2,1,1) images, in float64.
"""

import math

import torch

from minidiff.denoiser import Prediction
from minidiff.schedule import NoiseLevel, NoiseSchedule

SCHEDULE = NoiseSchedule.linear()
MEANS = torch.tensor([[1.0, 0.8], [-1.0, 0.9], [-0.7, -1.0], [0.9, -0.6]], dtype=torch.float64)
STD = 0.15
WEIGHTS = (0.4, 0.3, 0.2, 0.1)
CLASS = (0.0, 0.6, 0.4, 0.0)  # the two modes on the left, in the proportions of WEIGHTS


def plane(points):
    """(B,2) -> (B,2,1,1) in float64."""
    return torch.as_tensor(points, dtype=torch.float64)[:, :, None, None]


def level_at(ratio):
    """The level with sigma/alpha = ratio; exact denoisers need no t."""
    return NoiseLevel(math.nan, 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio))


def noise(n, channels=2):
    return torch.randn(n, channels, 1, 1, dtype=torch.float64)


def data(n, weights=WEIGHTS):
    """n draws of the mixture (n,2,1,1)."""
    modes = torch.multinomial(torch.tensor(weights, dtype=torch.float64), n, replacement=True)
    return plane(MEANS[modes]) + STD * noise(n)


def noisy_data(n, level, weights=WEIGHTS):
    """n draws of the mixture's exact marginal at a level."""
    return level.alpha * data(n, weights) + level.sigma * noise(n)


def log_joint(x, level, weights=WEIGHTS):
    """log p(mode k, x_t) for every k (4,B), but for terms that all modes share.

    The weights are four numbers, or (4,B) with levels of (B,1,1,1).
    """
    alpha, sigma = (torch.as_tensor(part, dtype=x.dtype).flatten() for part in level[1:])
    variance = alpha**2 * STD**2 + sigma**2
    scaled = (alpha / variance) * x.flatten(1).T  # (2,B)
    shift = alpha**2 / variance / 2 * (MEANS**2).sum(1, keepdim=True)
    return MEANS @ scaled - shift + torch.as_tensor(weights, dtype=x.dtype).log().reshape(4, -1)


def log_density(x, level, weights=WEIGHTS):
    """log p(x_t) of the mixture's marginal (B,)."""
    variance = level.alpha**2 * STD**2 + level.sigma**2
    shared = x.flatten(1).pow(2).sum(1) / (2 * variance) + math.log(2 * math.pi * variance)
    return log_joint(x, level, weights).logsumexp(0) - shared


def mixture(weights=WEIGHTS):
    """The exact denoiser of the mixture; `weights` CLASS gives the class-conditional one."""

    def denoise(x, level):
        mean = plane((MEANS.T @ log_joint(x, level, weights).softmax(0)).T)  # (B,2,1,1)
        variance = level.alpha**2 * STD**2 + level.sigma**2
        offset = (x - level.alpha * mean) / variance
        return Prediction(mean + level.alpha * STD**2 * offset, level.sigma * offset)

    return denoise


def network(x, t, condition):
    """The mixture as a network that predicts eps: t (B,) from 0, and the weights of the modes as
    Condition(vector=...), (B,4)."""
    alpha, sigma = (table[t + 1].reshape(-1, 1, 1, 1) for table in (SCHEDULE.alpha, SCHEDULE.sigma))
    return mixture(condition.vector.T)(x, NoiseLevel(t, alpha, sigma)).eps


def log_class(x, level):
    """log p(CLASS | x_t) (B,): the exact classifier of noisy points."""
    joint = log_joint(x, level)
    return joint[1:3].logsumexp(0) - joint.logsumexp(0)


def gaussian(std):
    """The exact denoiser of N(0, std^2) in every coordinate; 0 is a point mass at the origin."""

    def denoise(x, level):
        variance = level.alpha**2 * std**2 + level.sigma**2
        return Prediction(level.alpha * std**2 / variance * x, level.sigma / variance * x)

    return denoise


def correlated_step(rho):
    """A step that draws the exact reverse kernel of two N(0,1) coordinates of correlation rho.

    With C_t the covariance of x_t and Q = cov(x_there, x_here), x_there | x_here has the mean
    Q C_here^-1 x_here and the covariance C_there - Q C_here^-1 Q'. It needs no denoiser.
    """
    C, eye = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64), torch.eye(2).double()

    def step(denoise, x, here, there, past=(), *, generator=None):
        at = [level.alpha**2 * C + level.sigma**2 * eye for level in (here, there)]
        Q = here.alpha / there.alpha * at[1]
        gain = Q @ torch.linalg.inv(at[0])
        root = torch.linalg.cholesky(at[1] - gain @ Q.T + 1e-14 * eye)
        x = x.flatten(1) @ gain.T + torch.randn(len(x), 2).double() @ root.T  # (B,2)
        return plane(x), None

    return step


def within_std(x):
    """Root mean square distance to the nearest mode, a coordinate."""
    return (x.flatten(1)[:, None] - MEANS).pow(2).sum(2).min(1).values.mean().div(2).sqrt().item()


def distance(x, y):
    """The median over the points of |x - y|."""
    return (x - y).flatten(1).norm(dim=1).median().item()


def psnr(x, y):
    """The median over the images of the peak signal-to-noise ratio in dB, for a range of 2."""
    return (10 * torch.log10(4 / (x - y).flatten(1).pow(2).mean(1))).median().item()


def mmd2(x, y, splits=500):
    """Unbiased MMD^2 of two samples of one size, and its bound if both had one distribution.

    Gaussian kernels of widths .1, .3 and 1 are summed. The bound is the largest value over
    random splits of the pooled points: a permutation test of level 1/(splits + 1).
    """
    n = len(x)
    pool = torch.cat([x, y]).flatten(1).float()
    squares = torch.cdist(pool, pool, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    kernel = sum(torch.exp(-squares / (2 * h * h)) for h in (0.1, 0.3, 1.0)).fill_diagonal_(0)
    first = torch.zeros(splits + 1, 2 * n)
    first[0, :n] = 1
    for row in first[1:]:
        row[torch.randperm(2 * n)[:n]] = 1
    toward = first @ kernel  # (splits+1, 2n)
    xx, total, rows = (toward * first).sum(1), kernel.sum(), kernel.sum(1)
    xy = first @ rows - xx
    yy = total - xx - 2 * xy
    values = (xx + yy) / (n * (n - 1)) - 2 * xy / n**2
    return values[0].item(), values[1:].max().item()
