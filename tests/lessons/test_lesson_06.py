"""The checks of lesson 06 accept its solutions and tell known mistakes apart."""

from functools import partial

import pytest
import torch

from minidiff.lessons import lesson_06 as lesson
from minidiff.lessons import mixture

LEFT = torch.tensor([0, 0.6, 0.4, 0], dtype=torch.float64)


def drop(labels, null, p, generator):
    luck = torch.rand(len(labels), generator=generator)
    return torch.where(luck < p, null, labels)


def test_solutions_are_right():
    def my_cross_attention(q, k, v):
        return (q @ k.T / q.shape[1] ** 0.5).softmax(dim=1) @ v

    def my_guide(eps_c, eps_u, scale):
        return eps_u + scale * (eps_c - eps_u)

    for check, answer in (
        (lesson.check_cross_attention, my_cross_attention),
        (lesson.check_drop, drop),
        (lesson.check_guide, my_guide),
    ):
        assert check.verdict(answer).startswith("right: ")
        assert check.verdict(lambda *args: ...).startswith("not done yet")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda q, k, v: (q @ k.T).softmax(1) @ v, "not divided by sqrt"),
        (lambda q, k, v: (q @ k.T / q.shape[1]).softmax(1) @ v, "root is missing"),
        (lambda q, k, v: (q @ k.T / 2).softmax(0) @ v, "runs over the pixels"),
        (lambda q, k, v: (q @ k.T / 2).softmax(1) @ k, "it is v that is read"),
        (lambda q, k, v: q @ k.T / 2 @ v, "softmax is missing"),
        (lambda q, k, v: (q @ k.T / 2).softmax(1), "expected shape (6, 4)"),
    ],
)
def test_cross_attention_slips(answer, told):
    assert told in lesson.check_cross_attention.verdict(answer)


def drops_ninety_percent(labels, null, p, generator):
    return torch.where(torch.rand(len(labels), generator=generator) > p, null, labels)


def drops_all_or_none(labels, null, p, generator):
    lucky = torch.rand((), generator=generator) < p
    return torch.full_like(labels, null) if lucky else labels.clone()


def drops_in_place(labels, null, p, generator):
    labels[torch.rand(len(labels), generator=generator) < p] = null
    return labels


def drops_to_zero(labels, null, p, generator):
    return torch.where(torch.rand(len(labels), generator=generator) < p, 0, labels)


def drops_twenty_percent(labels, null, p, generator):
    return torch.where(torch.rand(len(labels), generator=generator) < 2 * p, null, labels)


def drops_every_tenth(labels, null, p, generator):
    return torch.where(torch.arange(len(labels)) % 10 == 3, null, labels)


def drops_by_global_luck(labels, null, p, generator):
    return torch.where(torch.rand(len(labels)) < p, null, labels)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (drops_ninety_percent, "90% of the labels were dropped, not 10%"),
        (drops_all_or_none, "one for the whole batch"),
        (drops_in_place, "changed in place"),
        (drops_to_zero, "must stay what it was"),
        (drops_twenty_percent, "expected 10%"),
        (drops_every_tenth, "another generator drops the same labels"),
        (drops_by_global_luck, "use the generator given"),
        (lambda labels, null, p, generator: None, "did you forget `return`"),
    ],
)
def test_drop_slips(answer, told):
    assert told in lesson.check_drop.verdict(answer)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda c, u, s: (1 + s) * c - s * u, "paper's convention"),
        (lambda c, u, s: c + s * (u - c), "exchanged"),
        (lambda c, u, s: u + s * (u - c), "wrong sign"),
        (lambda c, u, s: s * (c - u), "starting point eps_u is missing"),
        (lambda c, u, s: u + s * c, "weights sum to 4"),
        (lambda c, u, s: (u + s * (c - u)) / s, "divided by the scale"),
        (lambda c, u, s: u + s * (c - u) + (s == 0), "scale 0 must be eps_u"),
    ],
)
def test_guide_slips(answer, told):
    assert told in lesson.check_guide.verdict(answer)


def test_the_mixture_of_a_class_is_exact():
    level = lesson.SCHEDULE.level(400)
    x = 0.5 * mixture.noise(50, torch.Generator().manual_seed(0))
    log_left = mixture.log_shares(x, level).log_softmax(1)[:, [1, 2]].logsumexp(1)

    def score(weights):  # of the density of x_t, by autograd
        y = x.clone().requires_grad_()
        return torch.autograd.grad(mixture.log_shares(y, level, weights).logsumexp(1).sum(), y)[0]

    difference = score(LEFT) - score(mixture.WEIGHTS)  # = grad log p(left | x_t)
    wanted = mixture.denoise(x, level, LEFT).eps - mixture.denoise(x, level).eps
    assert log_left.shape == (50,)
    assert torch.allclose(-level.sigma * difference, wanted)


def test_a_small_network_learns_both_predictions():
    network = lesson.train_points(drop, 0.1, 60)
    x = mixture.noise(8, torch.Generator().manual_seed(1)).float()
    t = torch.full((8,), 400)
    with_label, without = (network(x, t, torch.full((8,), y)) for y in (0, 2))
    assert with_label.shape == (8, 2, 1, 1) and not torch.equal(with_label, without)
    level, left = lesson.SCHEDULE.level(400), partial(mixture.denoise, weights=LEFT)
    found = lesson.errors(network, left, mixture.denoise, level)
    assert max(found) < 0.3  # of noise of variance 1
    assert lesson.errors(network, mixture.denoise, left, level)[1] > found[1]  # another question


def test_pictures_are_drawn():
    cloud = mixture.points(50, torch.Generator().manual_seed(0))
    assert len(lesson.scatter({"a": cloud, "b": cloud}, cloud).axes) == 2
    share = [(0.5, 0.3, 0.7), (0.6, 0.4, 0.8)]
    assert len(lesson.trade([1, 2], {"a": share}, [0.2, 0.1]).axes) == 2
