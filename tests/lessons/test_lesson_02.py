"""Lesson 02: each check accepts the solution and rejects every known wrong answer; its tools."""

import math

import pytest
import torch
from torch import nn

from minidiff import UNet, UNetConfig
from minidiff.lessons import diagram
from minidiff.lessons import lesson_02 as lesson


def attention(scale=None, axis=-1, softmax=True):
    def answer(q, k, v):
        scores = q.transpose(1, 2) @ k / (math.sqrt(q.shape[1]) if scale is None else scale(q))
        weights = scores.softmax(dim=axis) if softmax else scores
        return v @ weights.transpose(1, 2)

    return answer


def join(take, together):
    return lambda h, skips: together(h, take(skips))


def channels(h, skip):
    return torch.cat([h, skip], dim=1)


def reach(count=lambda k, s, before: (k - 1) / 2 * before, after=lambda r: r):
    def answer(layers):
        r, before = 0, 1
        for kernel, stride in layers:
            r += count(kernel, stride, before)
            before *= stride
        return after(r)

    return answer


RIGHT = {
    "attention": (lesson.check_attention, attention()),
    "join": (lesson.check_join, join(lambda skips: skips.pop(), channels)),
    "reach": (lesson.check_reach, reach()),
}

WRONG = [
    (lesson.check_attention, attention(scale=lambda q: 1), "not divided by sqrt"),
    (lesson.check_attention, attention(scale=lambda q: q.shape[1]), "not by d"),
    (lesson.check_attention, attention(scale=lambda q: q.shape[2] ** 0.5), "number of pixels"),
    (lesson.check_attention, attention(axis=1), "runs over the queries"),
    (lesson.check_attention, attention(softmax=False), "softmax is missing"),
    (lesson.check_attention, lambda q, k, v: v[..., : q.shape[-1]], "off by"),
    (
        lesson.check_attention,
        lambda q, k, v: attention()(q, k, v).transpose(1, 2),
        "expected shape",
    ),
    (lesson.check_join, join(lambda skips: skips.pop(0), channels), "that is the first skip"),
    (lesson.check_join, join(lambda skips: skips[-1], channels), "still in the list"),
    (
        lesson.check_join,
        join(lambda skips: skips.pop(), lambda h, skip: torch.cat([skip, h], 1)),
        "h comes first",
    ),
    (
        lesson.check_join,
        join(lambda skips: skips.pop(), lambda h, skip: h[:, :2] + skip),
        "expected shape",
    ),
    (
        lesson.check_join,
        join(lambda skips: skips.pop(), lambda h, skip: torch.cat([h[:, :2], skip], 0)),
        "expected shape",
    ),
    (lesson.check_reach, reach(lambda k, s, before: (k - 1) / 2), "strides are left out"),
    (lesson.check_reach, reach(lambda k, s, before: (k - 1) / 2 * before * s), "own stride"),
    (lesson.check_reach, reach(lambda k, s, before: (k - 1) * before), "full width"),
    (lesson.check_reach, reach(after=lambda r: 2 * r + 1), "full width"),
    (lesson.check_reach, reach(lambda k, s, before: (k - 1) / 2 * s), "strides multiply up"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_the_solution_is_right_and_a_blank_is_not_done(name):
    check, answer = RIGHT[name]
    assert check.verdict(answer).startswith("right: ")
    assert check.verdict(lambda *args: ...).startswith("not done yet")
    assert "forget `return`" in check.verdict(lambda *args: None)


@pytest.mark.parametrize(("check", "answer", "message"), WRONG)
def test_a_wrong_answer_is_told_why(check, answer, message):
    verdict = check.verdict(answer)
    assert verdict.startswith("not yet right: ")
    assert message in verdict


def test_equality_is_asserted_and_not_for_networks_that_answer_zero():
    x = torch.randn(2, 16, 8, 8)
    lesson.assert_equal(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1), x)
    with pytest.raises(AssertionError):
        lesson.assert_equal(nn.ReLU(), nn.ReLU(), 0 * x)

    class Other(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 1.01

    with pytest.raises(AssertionError):
        lesson.assert_equal(Other(16, 16, 1), nn.Conv2d(16, 16, 1), x)


def test_a_few_steps_of_training_lower_the_loss_and_are_reproducible():
    torch.manual_seed(0)
    stack = lesson.Stack(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))
    start = [p.detach().clone() for p in stack.parameters()]
    losses = lesson.train(stack, 0, 20)
    assert len(losses) == 2 and losses[1] < losses[0]
    for p, before in zip(stack.parameters(), start, strict=True):
        p.data = before
    assert lesson.train(stack, 0, 20) == losses


def test_the_parts_of_a_network_are_all_there_with_their_shapes_and_costs():
    network = UNet(lesson.CONFIG)
    x, t = torch.zeros(1, 3, 16, 16), torch.zeros(1, dtype=torch.long)
    parts = diagram.record(network, x, t)
    assert parts["down.0.1"][:2] == ((1, 16, 16, 16), (1, 16, 8, 8))
    assert parts["up.1.1"][:2] == ((1, 32, 16, 16), (1, 16, 16, 16))
    table = diagram.costs(network, x, t)
    assert list(table) == ["stem", "down 0", "down 1", "mid", "up 1", "up 0", "head"]
    boxes = sum(million for million, _ in table.values())
    rest = [network.time, network.norm]  # what has no box
    rest = sum(p.numel() for part in rest for p in part.parameters()) / 1e6
    assert boxes + rest == pytest.approx(sum(p.numel() for p in network.parameters()) / 1e6)
    assert table["head"][1] == pytest.approx(2 * 9 * 16 * 3 * 16 * 16 / 1e9)


def test_the_big_network_is_costed_without_computing():
    with torch.device("meta"):
        table = diagram.costs(UNet(UNetConfig()), torch.zeros(1, 3, 32, 32), torch.zeros(1))
    assert 11 < sum(gflops for _, gflops in table.values()) < 13.5


def test_taps_that_switch_attention_off():
    probs = torch.rand(2, 4, 6, 6).softmax(-1)
    assert torch.equal(lesson.self_off(None, "mid.first.self.probs", probs)[1, 2], torch.eye(6))
    assert torch.equal(lesson.self_off(None, "up1.cross.probs", probs), probs)
    assert (lesson.cross_off(None, "up1.cross.probs", probs) == 1 / 6).all()
    assert torch.equal(lesson.cross_off(None, "up1.self.probs", probs), probs)
