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
    "algorithm 1 of the paper is misprinted": lambda x, a, b, z: (
        b.alpha / a.alpha * x + beta(a, b) * z
    ),
    "scaled by 1 - beta": lambda x, a, b, z: (1 - beta(a, b)) * x + beta(a, b) ** 0.5 * z,
    "x keeps its size": lambda x, a, b, z: x + beta(a, b) ** 0.5 * z,
    "has noise already": lambda x, a, b, z: b.alpha / a.alpha * x + b.sigma * z,
    "right for a clean x": lambda x, a, b, z: add_noise(x, b, z),
    "upside down": lambda x, a, b, z: a.alpha / b.alpha * x + beta(a, b) ** 0.5 * z,
    "off by up to": lambda x, a, b, z: b.alpha / a.alpha * x - beta(a, b) ** 0.5 * z,
}


def test_climb_accepts_the_solution():
    assert lesson.check_climb.verdict(renoise).startswith("right")


@pytest.mark.parametrize(("hint", "wrong"), WRONG_CLIMBS.items(), ids=WRONG_CLIMBS)
def test_climb_rejects(hint, wrong):
    assert hint in lesson.check_climb.verdict(wrong)


def down(steps):
    return list(range(steps, -1, -1))


WRONG_JUMPS = {
    "never climbs": lambda steps, length, times: down(steps),
    "the whole walk is repeated": lambda steps, length, times: down(steps) * times,
    "a pass too many": lambda steps, length, times: jumps(steps, length, times + 1),
    "each climb is by": lambda steps, length, times: jumps(steps, 1, times),
    "the last level is 0": lambda *a: jumps(*a)[:-1],
    "visits every level": lambda *a: [k for k in jumps(*a) if k % 3 == 0],
    "expected 9, 8": lambda steps, length, times: jumps(steps + 1, length, times)[1:],
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
