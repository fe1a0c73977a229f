"""Lesson 00: answers are judged with a reason, and each exhibit shows what its test measures."""

import pytest
import torch

from minidiff import samplers
from minidiff.denoiser import from_eps
from minidiff.lessons import lesson_00 as lesson
from minidiff.lessons import mixture
from minidiff.schedule import NoiseSchedule

CHOICES = {
    lesson.check_grain: "b",
    lesson.check_root: "c",
    lesson.check_stride: "a",
    lesson.check_counter: "c",
    lesson.check_gradient: "b",
    lesson.check_dropped: "b",
    lesson.check_range: "a",
    lesson.check_known: "c",
}
SCHEDULE = NoiseSchedule.linear()


@pytest.mark.parametrize(("check", "right"), CHOICES.items(), ids=lambda value: str(value)[:30])
def test_one_letter_is_right_and_the_others_are_answered(check, right):
    assert check.verdict(right.upper()).startswith("right: ")
    told = [check.verdict(letter) for letter in "abc" if letter != right]
    assert all(verdict.startswith("not yet right: ") for verdict in told)
    assert told[0] != told[1] and not any("expected one of" in verdict for verdict in told)
    assert check.verdict(...).startswith("not done yet")
    assert "expected one of the letters a, b, c" in check.verdict("d")


def my_drop(compare):
    def drop(labels, null, chance, generator):
        return torch.where(
            compare(torch.rand(len(labels), generator=generator), chance), null, labels
        )

    return drop


def whole_batches(labels, null, chance, generator):
    batches = len(labels) // 100
    keep = torch.randperm(batches, generator=generator) >= chance * batches
    return torch.where(keep.repeat_interleave(100), labels, null)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (my_drop(torch.lt), "right: "),
        (my_drop(torch.gt), "the comparison is the wrong way"),
        (lambda labels, null, *_: labels, "0.0% are dropped"),
        (whole_batches, "drop label by label"),
        (lambda labels, *rest: my_drop(torch.lt)(labels + 20, *rest), "must not change"),
    ],
)
def test_dropping_nine_in_ten_is_refused(answer, words):
    assert words in lesson.check_drop.verdict(answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x, level, z: level.alpha * x + level.sigma * z, "right: "),
        (lambda x, level, z: level.alpha * x + level.sigma**2 * z, "square root is missing"),
        (lambda x, level, z: x, "as noisy as the rest"),
    ],
)
def test_line_5_to_the_letter_is_refused(answer, words):
    assert words in lesson.check_known_part.verdict(answer)


# --- the exhibits, on the exact denoiser ---------------------------------------------------------


def start(n=400):
    return mixture.noise(n, torch.Generator().manual_seed(0))


def test_each_sampler_of_the_gallery_is_wrong_and_its_neighbour_is_not():
    path = SCHEDULE.path(50)
    right = lesson.walk(samplers.ddim_step, mixture.denoise, start(), path)[-1]
    smooth, grainy = lesson.grain(mixture.denoise, start(), path)
    strided = lesson.stride(mixture.denoise, start(), SCHEDULE, 30)
    width = mixture.within_std
    assert width(right) < 0.16 and width(smooth) < 0.18
    assert (grainy - smooth).std() == pytest.approx(path[-2].sigma, rel=0.1)
    assert width(lesson.root(mixture.denoise, start(), path)[-1]) > 0.3
    even = SCHEDULE.path(30, "linspace")
    straight = lesson.walk(samplers.ddim_step, mixture.denoise, start(), even)[-1]
    assert (strided - straight).abs().mean() > 0.01


def test_the_known_half_lacks_noise_where_the_root_is_missing():
    def denoise(x, level):
        return from_eps(x, level, x * level.sigma)  # of white noise

    image, x = torch.zeros(8, 3, 8, 8), torch.randn(8, 3, 8, 8)
    keep = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    path = SCHEDULE.path(5)
    right, wrong = lesson.known_half(denoise, x, path, image, keep)
    for level, a, b in zip(path[1:-1], right, wrong, strict=False):
        assert a.std().item() == pytest.approx(level.sigma, rel=0.1)
        assert b.std().item() == pytest.approx(level.sigma**2, rel=0.1)
    assert torch.equal(right[-1], image) and torch.equal(wrong[-1], image)


def test_loss_times_gradient_stalls_plain_descent_only():
    def end(optimiser, by_loss):
        losses = lesson.training(optimiser, by_loss, 300)
        return sum(losses[-50:]) / 50

    def descent(parameters):
        return torch.optim.SGD(parameters, lr=0.3)

    assert end(descent, True) > end(descent, False) + 0.01


def test_one_in_ten_and_nine_in_ten():
    right, wrong = lesson.dropped(["red circle"] * 2000)
    assert 0.08 < right.count("(none)") / 2000 < 0.12
    assert 0.88 < wrong.count("(none)") / 2000 < 0.92
