"""Lesson 10: each check accepts the solution and rejects each known wrong answer by a hint."""

import pytest
import torch

from minidiff.denoiser import Prediction
from minidiff.editing import masks
from minidiff.lessons import lesson_10 as lesson
from minidiff.samplers import ddim_step, trajectory
from minidiff.schedule import add_noise, jumps, renoise


def beta(here, there):
    return 1 - (there.alpha / here.alpha) ** 2


WRONG_CLIMBS = {
    "scaled by a deviation": lambda x, a, b, z: b.alpha / a.alpha * x + beta(a, b) * z,
    "scaled by 1 - beta": lambda x, a, b, z: (1 - beta(a, b)) * x + beta(a, b) ** 0.5 * z,
    "x keeps its size": lambda x, a, b, z: x + beta(a, b) ** 0.5 * z,
    "has noise already": lambda x, a, b, z: b.alpha / a.alpha * x + b.sigma * z,
    "right for a clean x": lambda x, a, b, z: add_noise(x, b, z),
    "upside down": lambda x, a, b, z: a.alpha / b.alpha * x + beta(a, b) ** 0.5 * z,
    "no noise comes on top": lambda x, a, b, z: b.alpha / a.alpha * x,
    "alpha is a root already": lambda x, a, b, z: (
        (b.alpha / a.alpha) ** 0.5 * x + (1 - b.alpha / a.alpha) ** 0.5 * z
    ),
    "more than the difference": lambda x, a, b, z: (
        b.alpha / a.alpha * x + (b.sigma**2 - a.sigma**2) ** 0.5 * z
    ),
    "are exchanged": lambda x, a, b, z: beta(a, b) ** 0.5 * x + b.alpha / a.alpha * z,
    "complex": lambda x, a, b, z: a.alpha / b.alpha * x + beta(b, a) ** 0.5 * z,
    "draw none": lambda x, a, b, z: renoise(x, a, b, torch.randn_like(x)),
    "off by up to": lambda x, a, b, z: b.alpha / a.alpha * x - beta(a, b) ** 0.5 * z,
}


def test_climb_accepts_the_solution():
    assert lesson.check_climb.verdict(renoise).startswith("right")


@pytest.mark.parametrize(("hint", "wrong"), WRONG_CLIMBS.items(), ids=WRONG_CLIMBS)
def test_climb_rejects(hint, wrong):
    verdict = lesson.check_climb.verdict(wrong)
    assert verdict.startswith("not yet right: ") and hint in verdict


def down(steps):
    return list(range(steps, -1, -1))


def climbing(places):
    """Like `jumps`, but from places(steps, length)."""

    def walk(steps, length, times):
        left = {k: times - 1 for k in places(steps, length)}
        t, visited = steps, [steps]
        while t > 0:
            t -= 1
            visited.append(t)
            if left.get(t, 0) > 0:
                left[t] -= 1
                visited += range(t + 1, t + length + 1)
                t += length
        return visited

    return walk


def once_too_often(steps, length, times):
    return jumps(steps, length, max(times, 2))


WRONG_JUMPS = {
    "never climbs": lambda steps, length, times: down(steps),
    "the whole walk is repeated": lambda steps, length, times: down(steps) * times,
    "a pass too many": lambda steps, length, times: jumps(steps, length, times + 1),
    "each climb is by": lambda steps, length, times: jumps(steps, 1, times),
    "the last level is 0": lambda *a: jumps(*a)[:-1],
    "visits every level": lambda *a: [k for k in jumps(*a) if k % 3 == 0],
    "begins where the path does": lambda *a: jumps(*a)[1:],
    "a pass too few": lambda steps, length, times: jumps(steps, length, times - 1),
    "climbs from 6, 3": climbing(lambda steps, length: range(length, steps, length)),
    "climbs from 3, 0": climbing(lambda steps, length: range(0, steps - length, length)),
    "climbs from 7, 4, 1": climbing(lambda steps, length: range(1, steps, length)),
    "the first 18 levels are right": lambda *a: [*jumps(*a)[:18], *jumps(*a)[12:]],
    "is empty": lambda *a: [],
    "expected integers": lambda *a: [float(k) for k in jumps(*a)],
    "but one never climbs": once_too_often,
    "but not of 1": lambda *a: jumps(9, 3, 3),
    "expected a list": lambda *a: tuple(jumps(*a)),
}


def test_jumps_accepts_the_solution():
    assert lesson.check_jumps.verdict(jumps).startswith("right")


@pytest.mark.parametrize(("hint", "wrong"), WRONG_JUMPS.items(), ids=WRONG_JUMPS)
def test_jumps_rejects(hint, wrong):
    assert hint in lesson.check_jumps.verdict(wrong)


WRONG_AREAS = {
    "sees the whole picture": lambda score, mask: score,
    "turned around": lambda score, mask: lambda x0: score(x0 * mask),
    "one number for the whole batch": lambda score, mask: lambda x0: score(x0 * (1 - mask)).mean(),
    "makes [0, 1] of them": lambda score, mask: lambda x0: score((x0 * (1 - mask) + 1) / 2),
    "expected a function": lambda score, mask: 1 - mask,
    "no sum over pixels": lambda score, mask: lambda x0: score(x0) - score(x0 * mask),
    "whole pictures": lambda score, mask: lambda x0: score(x0[..., 2:6, 2:6]),
    "no gradient": lambda score, mask: lambda x0: score(x0.detach() * (1 - mask)),
    "NameError": lambda score, mask: lambda x0: score(x0 * (1 - msk)),  # noqa: F821
    "did you forget": lambda score, mask: lambda x0: None,
    "not done yet": lambda score, mask: lambda x0: ...,
    "off by up to": lambda score, mask: lambda x0: -score(x0 * (1 - mask)),
}


def test_area_accepts_the_solution():
    solution = lambda score, mask: lambda x0: score(x0 * (1 - mask))  # noqa: E731
    assert lesson.check_area.verdict(solution).startswith("right")


@pytest.mark.parametrize(("hint", "wrong"), WRONG_AREAS.items(), ids=WRONG_AREAS)
def test_area_rejects(hint, wrong):
    assert hint in lesson.check_area.verdict(wrong)


def test_blanks_are_not_done_yet():
    for check in (lesson.check_climb, lesson.check_jumps, lesson.check_area):
        assert check.verdict(lambda *a: ...).startswith("not done yet")


def test_the_exact_step_draws_correlated_pixels():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, 1, 2, generator=generator, dtype=torch.float64)
    path = lesson.SCHEDULE.path(20)
    for here, there in zip(path[:-1], path[1:], strict=True):
        x, _ = lesson.pair_step(None, x, here, there, generator=generator)
    assert torch.corrcoef(x.flatten(1).T)[0, 1].item() == pytest.approx(lesson.RHO, abs=0.02)


def test_half_of_a_thing_settles_the_other_half():
    images, scenes = lesson.half_hidden(12, torch.Generator().manual_seed(0))
    assert lesson.same(images, scenes).all()
    assert not lesson.same(images * masks.half(32), scenes).any()
    half = images[..., :16]
    mirrored = torch.cat([half, half.flip(3)], dim=3)
    assert lesson.same(mirrored, scenes).float().mean() > 0.9
    grey = images * masks.half(32)
    assert (lesson.seam(images, masks.half(32)) < lesson.seam(grey, masks.half(32))).all()


def test_a_film_shows_every_move_and_the_climbs():
    schedule, levels = lesson.SCHEDULE, jumps(4, 1, 2)
    walk = [schedule.path(4)[::-1][k] for k in levels]

    def denoise(x, level):
        return Prediction(x / 2, x)

    x = torch.zeros(1, 3, 8, 8)
    frames = list(trajectory(ddim_step, denoise, x, walk, climb=renoise))
    pictures = lesson.film(frames, levels)
    assert len(pictures) == len(levels) - 1
    assert {picture.size for picture in pictures} == {(508, 96)}
    assert lesson.show_paths([("down", [2, 1, 0]), ("jumps", levels)]).axes
