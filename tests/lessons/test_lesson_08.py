"""The checks of lesson 08 accept its solutions and tell known mistakes apart."""

import pytest
import torch
from torch.nn import functional as F

from minidiff.data.shapes import render
from minidiff.lessons import lesson_08 as lesson


def my_push(x, level, eps, gradient, scale):
    eps = eps - scale * level.sigma * gradient
    return (x - level.sigma * eps) / level.alpha, eps


def my_spherical(u, w):
    u, w = F.normalize(u, dim=1), F.normalize(w, dim=1)
    return 2 * ((u - w).norm(dim=1) / 2).asin() ** 2


def my_weights(alpha_bar, ts):
    return alpha_bar[ts].sqrt()


def test_solutions_are_right():
    for check, answer in (
        (lesson.check_push, my_push),
        (lesson.check_spherical, my_spherical),
        (lesson.check_weights, my_weights),
    ):
        assert check.verdict(answer).startswith("right: ")
        assert check.verdict(lambda *args: ...).startswith("not done yet")

    def one_by_one(alpha_bar, ts):
        return [alpha_bar[t] ** 0.5 for t in ts]

    assert lesson.check_weights.verdict(one_by_one).startswith("right: ")


def stale_eps(x, level, eps, gradient, scale):
    return my_push(x, level, eps, gradient, scale)[0], eps


def stale_x0(x, level, eps, gradient, scale):
    return (x - level.sigma * eps) / level.alpha, my_push(x, level, eps, gradient, scale)[1]


def by(eps_of):
    def push(x, level, eps, gradient, scale):
        eps = eps_of(eps, level, scale * gradient)
        return (x - level.sigma * eps) / level.alpha, eps

    return push


def without_roots(x, level, eps, gradient, scale):
    eps = eps - scale * level.sigma * gradient
    return (x - level.sigma**2 * eps) / level.alpha**2, eps


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (by(lambda eps, level, g: eps + level.sigma * g), "sign is wrong"),
        (by(lambda eps, level, g: eps - g), "sigma is missing"),
        (by(lambda eps, level, g: eps - level.sigma**2 * g), "sigma is squared"),
        (stale_eps, "nothing was pushed"),
        (stale_x0, "belongs to the old eps"),
        (without_roots, "roots are missing"),
        (lambda x, level, eps, gradient, scale: eps, "expected the pair"),
    ],
)
def test_push_slips(answer, told):
    assert told in lesson.check_push.verdict(answer)


def angle(u, w):
    return 2 * ((F.normalize(u, dim=1) - F.normalize(w, dim=1)).norm(dim=1) / 2).asin()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (angle, "half of its square"),
        (lambda u, w: angle(u, w) ** 2, "take half of it"),
        (lambda u, w: angle(u, w) / 2, "the square is missing"),
        (lambda u, w: 1 - F.cosine_similarity(u, w), "the cosine distance"),
        (
            lambda u, w: (F.normalize(u, dim=1) - F.normalize(w, dim=1)).norm(dim=1) ** 2 / 2,
            "the cosine distance",
        ),
        (lambda u, w: 2 * ((u - w).norm(dim=1) / 2).asin() ** 2, "NaN"),
    ],
)
def test_spherical_slips(answer, told):
    assert told in lesson.check_spherical.verdict(answer)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda a, ts: [a[i].sqrt() for i, t in enumerate(ts)], "loop counter 0, 1, 2"),
        (lambda a, ts: [a[i] for i, t in enumerate(ts)], "loop counter 0, 1, 2"),
        (lambda a, ts: a[ts], "alpha is its root"),
        (lambda a, ts: 1 / a[ts].sqrt(), "too large by"),
        (lambda a, ts: a[[t - 1 for t in ts]].sqrt(), "off by one"),
        (lambda a, ts: a[ts[::-1]].sqrt(), "turned round"),
    ],
)
def test_weights_slips(answer, told):
    assert told in lesson.check_weights.verdict(answer)


def test_the_verdict_is_of_each_picture(capsys):
    asked = lesson.prompts(6)
    assert len(set(asked)) == 6 and all(len(prompt.split()) == 3 for prompt in asked)
    x = render(lesson.scenes(asked), generator=torch.Generator().manual_seed(0))[0]
    eyes = {"a": (lambda x: x.flatten(1)[:, :2], torch.eye(2)[[0] * 6])}
    said = lesson.verdict("real", x, asked, eyes)
    assert said["oracle"].all() and torch.equal(said["a"], x[:, 0, 0, 0])
    assert not lesson.verdict("others", x, asked[1:] + asked[:1], eyes)["oracle"].any()
    assert "oracle 6 of 6" in capsys.readouterr().out


def test_pictures_are_drawn():
    assert lesson.gradients([1000, 500], {"a": [100.0, 2.0]}).axes
    assert lesson.variances({1: 1.0, 2: 0.5}).axes
    seen, real = {"guide": [0.1, 0.9], "judge": [0.1, 0.5]}, {"guide": 0.8, "judge": 0.8}
    shares = [(0.0, 0.0, 0.2), (0.5, 0.3, 0.7)]
    assert len(lesson.three_judges([0, 10], seen, real, shares, 1.0).axes) == 2
    assert lesson.size(torch.full((1, 3, 2, 2), 2.0)) == 2.0
