"""Lesson 05: each check accepts the solution and rejects the known wrong answers by name."""

import math
from itertools import pairwise

import pytest
import torch

from minidiff.editing.interpolation import slerp
from minidiff.lessons import lesson_05 as lesson
from minidiff.metrics import psnr


def verdicts(check, right, wrong):
    assert check.verdict(right).startswith("right: ")
    assert check.verdict(lambda *_: ...).startswith("not done yet: ")
    assert "did you forget `return`?" in check.verdict(lambda *_: None)
    for answer, message in wrong:
        assert message in check.verdict(answer), message


# --- inversion ------------------------------------------------------------------------------------


def climb(x, prediction, here, there):
    x0 = prediction.x0 if here.sigma > 0 else x
    return there.alpha * x0 + there.sigma * prediction.eps


def clipping(x, prediction, here, there):
    x0 = prediction.x0.clamp(-1, 1) if here.sigma > 0 else x
    eps = (x - here.alpha * x0) / here.sigma if here.sigma > 0 else prediction.eps
    return there.alpha * x0 + there.sigma * eps


def clipping_half(x, prediction, here, there):
    x0 = prediction.x0.clamp(-1, 1) if here.sigma > 0 else x
    return there.alpha * x0 + there.sigma * prediction.eps


def guessing(x, prediction, here, there):
    return there.alpha * prediction.x0 + there.sigma * prediction.eps


def without_roots(x, prediction, here, there):
    x0 = prediction.x0 if here.sigma > 0 else x
    return there.alpha**2 * x0 + there.sigma**2 * prediction.eps


def downward(x, prediction, here, there):
    x0 = prediction.x0 if here.sigma > 0 else x
    return there.alpha * x0 - there.sigma * prediction.eps


def inversion(move=climb, *, ask=None, levels=None):
    """An answer; `ask(here, there, lowest)` is the level that the denoiser is told."""

    def answer(denoise, x, path, lowest):
        up = path[::-1] if levels is None else levels(path, lowest)
        for here, there in pairwise(up):
            told = here if here.sigma > 0 else lowest
            told = told if ask is None else ask(here, there, lowest)
            x = move(x, denoise(x, told), here, there)
        return x

    return answer


def later(here, there, lowest):
    return lesson.SCHEDULE.level(min(here.t + 20, 1000))


def test_inversion():
    verdicts(
        lesson.check_invert,
        inversion(),
        [
            (inversion(levels=lambda path, lowest: path[-2::-1]), "the first climb"),
            (inversion(ask=lambda here, there, lowest: there), "not at the one it climbs to"),
            (inversion(ask=lambda here, there, lowest: here), "no network was trained at t = 0"),
            (inversion(ask=later), "A shifted time can even look better"),
            (inversion(levels=lambda path, lowest: path), "reverse the path"),
            (inversion(levels=lambda path, lowest: [lowest, *path[-2::-1], path[0]]), "5 calls"),
            (inversion(clipping), "clipping cannot be undone"),
            (inversion(clipping_half), "clipping cannot be undone"),
            (inversion(guessing), "at the clean picture x0 is known"),
            (inversion(without_roots), "the roots are missing"),
            (inversion(downward), "eps has the wrong sign"),
        ],
    )


# --- how good is a reconstruction? ----------------------------------------------------------------


def each(a, b):
    return (a - b).square().mean((1, 2, 3))


def test_the_median_psnr():
    verdicts(
        lesson.check_psnr,
        lambda a, b: psnr(a, b).median(),
        [
            (lambda a, b: 10 * torch.log10(4 / each(a, b).mean()), "averaged before the logarithm"),
            (lambda a, b: psnr(a, b).mean(), "that is the mean"),
            (lambda a, b: (10 * torch.log10(1 / each(a, b))).median(), "6 dB too few"),
            (lambda a, b: (10 * torch.log10(2 / each(a, b))).median(), "4 / error"),
            (lambda a, b: (10 * torch.log10(2 / each(a, b).sqrt())).median(), "20 log10"),
            (lambda a, b: psnr(a, b), "expected shape ()"),
        ],
    )


# --- slerp ----------------------------------------------------------------------------------------


def angles(a, b):
    cosine = (a * b).flatten(1).sum(1) / (a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1))
    return cosine.acos().reshape(-1, 1, 1, 1)


def arc(a, b, w, angle):
    return (((1 - w) * angle).sin() * a + (w * angle).sin() * b) / angle.sin()


def of_the_batch(a, b, w):
    return arc(a, b, w, ((a * b).sum() / (a.norm() * b.norm())).acos())


def test_slerp():
    verdicts(
        lesson.check_slerp,
        lambda a, b, w: arc(a, b, w, angles(a, b)),
        [
            (lambda a, b, w: (1 - w) * a + w * b, "the straight line"),
            (of_the_batch, "one angle for the whole batch"),
            (lambda a, b, w: slerp(a, b, 1 - w), "the ends are exchanged"),
            (lambda a, b, w: arc(a, b, w, angles(a, b)) * angles(a, b).sin(), "the division by"),
            (lambda a, b, w: arc(a, b, w, angles(a, b).cos()), "takes the cosine for the angle"),
            (
                lambda a, b, w: ((1 - w) * a + w * b) / math.hypot(1 - w, w),
                "only for noises at right angles",
            ),
        ],
    )


# --- what the lesson measures with ----------------------------------------------------------------


def test_neighbours_of_white_noise_are_strangers():
    z = torch.randn(20, 3, 32, 32)
    assert abs(lesson.neighbours(z)) < 0.02
    assert lesson.neighbours(z[..., 1:] + z[..., :-1]) == pytest.approx(0.5, abs=0.02)
