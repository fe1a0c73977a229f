"""Lesson 04: each check accepts the solution and rejects the known wrong answers by name."""

import math
from itertools import pairwise

import exact
import pytest
import torch

from minidiff.lessons import lesson_04 as lesson
from minidiff.lessons import mixture
from minidiff.schedule import NoiseSchedule


def verdicts(check, right, wrong):
    assert check.verdict(right).startswith("right: ")
    assert check.verdict(lambda *_: ...).startswith("not done yet: ")
    assert "did you forget `return`?" in check.verdict(lambda *_: None)
    for answer, message in wrong:
        assert message in check.verdict(answer), message


# --- one step of DDPM -----------------------------------------------------------------------------


def ddpm(x, x0, here, there, noise, *, std=None, beta=None, scale=None):
    beta = 1 - (here.alpha / there.alpha) ** 2 if beta is None else beta(here, there)
    weight = there.alpha if scale is None else scale(there)
    mean = weight * beta / here.sigma**2 * x0
    mean = mean + math.sqrt(1 - beta) * there.sigma**2 / here.sigma**2 * x
    small = math.sqrt(beta) * there.sigma / here.sigma
    return mean + (small if std is None else std(small, beta, there)) * noise


def mutant(**changes):
    return lambda x, x0, here, there, noise: ddpm(x, x0, here, there, noise, **changes)


def one_level(here, there):
    """beta of the schedule's table at `there`, as if no level were skipped."""
    below = lesson.SCHEDULE.level(max(there.t - 1, 0))
    return 1 - (there.alpha / below.alpha) ** 2 if there.t else here.sigma**2


def test_the_step_of_ddpm():
    verdicts(
        lesson.check_ddpm_step,
        ddpm,
        [
            (mutant(std=lambda small, beta, there: math.sqrt(beta)), "still adds noise"),
            (mutant(std=lambda small, beta, there: max(small, 0.01)), "still adds noise"),
            (
                mutant(std=lambda small, beta, there: there.sigma and math.sqrt(beta)),
                "the large one",
            ),
            (mutant(std=lambda small, beta, there: small**2), "the square root is missing"),
            (mutant(std=lambda small, beta, there: 0), "that is the mean alone"),
            (mutant(scale=lambda there: there.alpha**2), "x0 is scaled by alpha_bar"),
            (mutant(beta=one_level), "that of a single level"),
            (lambda x, x0, here, there, noise: ddpm(x0, x, here, there, noise), "compare each"),
        ],
    )


# --- a whole sampler ------------------------------------------------------------------------------


def trailing(T, steps):
    return [round(T - i * T / steps) for i in range(steps)] + [0]


def move(denoise, x, here, there):
    x0 = denoise(x, here).x0.clamp(-1, 1)
    return there.alpha * x0 + there.sigma * (x - here.alpha * x0) / here.sigma


def without_clipping(denoise, x, here, there):
    x0, eps = denoise(x, here)
    return there.alpha * x0 + there.sigma * eps


def stale(denoise, x, here, there):
    x0, eps = denoise(x, here)
    return there.alpha * x0.clamp(-1, 1) + there.sigma * eps


def without_roots(denoise, x, here, there):
    x0 = denoise(x, here).x0.clamp(-1, 1)
    return there.alpha**2 * x0 + there.sigma**2 * (x - here.alpha * x0) / here.sigma


def ddpm_without_noise(denoise, x, here, there):
    return ddpm(x, denoise(x, here).x0.clamp(-1, 1), here, there, 0)


def upside_down(denoise, x, here, there):
    x0 = denoise(x, here).x0.clamp(-1, 1)
    return there.alpha * x0 - there.sigma * (x - here.alpha * x0) / here.sigma


def asked_too_late(denoise, x, here, there):
    x0 = denoise(x, there).x0.clamp(-1, 1)
    return there.alpha * x0 + there.sigma * (x - here.alpha * x0) / here.sigma


def sampler(times=trailing, move=move):
    def answer(denoise, x, schedule, steps):
        for t, s in pairwise(times(schedule.T, steps)):
            x = move(denoise, x, schedule.level(t), schedule.level(s))
        return x

    return answer


def test_a_whole_sampler():
    verdicts(
        lesson.check_ddim,
        sampler(),
        [
            (
                sampler(lambda T, S: [T - i * (T // S) for i in range(S + 1)]),
                "prev = t - T//S does not end at 0",
            ),
            (
                sampler(lambda T, S: [*range(T, 0, -(T // S)), 0]),
                "prev = t - T//S does not end at 0",
            ),
            (sampler(lambda T, S: [max(t - 1, 0) for t in trailing(T, S)]), "not T - 1"),
            (sampler(lambda T, S: trailing(T, S)[:-1]), "the last of which moves to t = 0"),
            (sampler(lambda T, S: [*trailing(T, S)[-2::-1], 0]), "the path goes down"),
            (sampler(lambda T, S: [i * (T // S) + 1 for i in range(S)][::-1] + [0]), "expected "),
            (sampler(move=asked_too_late), "not the one it moves to"),
            (sampler(move=without_clipping), "the clipping is forgotten"),
            (sampler(move=stale), "eps is still that of the old one"),
            (sampler(move=without_roots), "the roots are missing"),
            (sampler(move=ddpm_without_noise), "that is the mean of DDPM"),
            (sampler(move=upside_down), "eps has the wrong sign"),
        ],
    )


# --- DPM-Solver++(2M) -----------------------------------------------------------------------------


def test_the_extrapolation():
    verdicts(
        lesson.check_2m,
        lambda x0, before, h, h_before: x0 + h / (2 * h_before) * (x0 - before),
        [
            (lambda x0, before, h, h_before: x0 + h / h_before * (x0 - before), "1/r stands"),
            (
                lambda x0, before, h, h_before: x0 - h / (2 * h_before) * (x0 - before),
                "the sign is flipped",
            ),
            (
                lambda x0, before, h, h_before: x0 + h_before / (2 * h) * (x0 - before),
                "r is upside down",
            ),
            (lambda x0, before, h, h_before: x0, "that is DDIM"),
            (
                lambda x0, before, h, h_before: x0 - h / (2 * h_before + h) * before,
                "the factor 1 + 1/(2r) of x0 is missing",
            ),
        ],
    )


# --- what the lesson measures on, and with --------------------------------------------------------


def test_the_mixture_is_the_one_of_the_tests():
    generator, level = torch.Generator().manual_seed(0), NoiseSchedule.linear().level(400)
    x = level.alpha * mixture.points(200, generator) + level.sigma * mixture.noise(200, generator)
    ours, theirs = mixture.denoise(x, level), exact.mixture()(x, level)
    torch.testing.assert_close(tuple(ours), tuple(theirs))
    data = mixture.points(4000, generator)
    assert mixture.within_std(data) == pytest.approx(exact.within_std(data))
    assert mixture.within_std(data) == pytest.approx(mixture.STD, rel=0.03)
    assert mixture.distance(x, data[:200]) == exact.distance(x, data[:200])
    found = mixture.level_at(0.5)
    assert found.sigma / found.alpha == pytest.approx(0.5)
    assert found.sigma**2 + found.alpha**2 == pytest.approx(1)


def test_the_slope_is_the_order():
    assert lesson.slope({8: 1.0, 16: 0.5, 32: 0.25}) == pytest.approx(1)
    assert lesson.slope({32: 1 / 16, 8: 1.0, 16: 0.25}) == pytest.approx(2)
