"""Lesson 03: each check accepts the solution and rejects every known wrong answer; its tools."""

import copy

import pytest
import torch

from minidiff import NoiseSchedule
from minidiff.data import shapes
from minidiff.lessons import lesson_03 as lesson


def noising(
    low=1,
    high=lambda a: len(a),
    draw=torch.randn,
    mix=lambda a, x0, noise: a.sqrt() * x0 + (1 - a).sqrt() * noise,
    each=True,
    shift=0,
):
    def answer(x0, alpha_bar, generator):
        n = len(x0) if each else 1
        t = torch.randint(low, high(alpha_bar), (n,), generator=generator)
        noise = draw(x0.shape, generator=generator)
        a = alpha_bar[(t - shift).clamp(0, len(alpha_bar) - 1)].reshape(-1, 1, 1, 1)
        return t, noise, mix(a, x0, noise)

    return answer


def centred_uniform(shape, generator):
    return 2 * torch.rand(shape, generator=generator) - 1


def unseeded(shape, generator):
    return torch.randn(shape)


def turned(x0, alpha_bar, generator):
    t, noise, x_t = noising()(x0, alpha_bar, generator)
    return x_t, t, noise


def step(*calls, result=torch.Tensor.item):
    def answer(optimizer, loss):
        for call in calls:
            call(optimizer, loss)
        return result(loss)

    return answer


def clear(optimizer, loss):
    optimizer.zero_grad()


def back(optimizer, loss):
    loss.backward()


def back_of_loss(optimizer, loss):
    loss.backward(loss)


def move(optimizer, loss):
    optimizer.step()


def accumulate(divide=True, only=slice(None), average=True):
    def answer(loss_of, parts):
        total = 0
        for part in parts[only]:
            loss = loss_of(part)
            (loss / len(parts) if divide else loss).backward()
            total += loss.item()
        return total / len(parts) if average else total

    return answer


def accumulate_clearing(loss_of, parts):
    loss_of(parts[0])
    return accumulate(only=slice(1, None))(loss_of, parts)


def accumulate_at_the_end(loss_of, parts):
    loss = sum(loss_of(part) for part in parts) / len(parts)
    loss.backward()
    return loss.item()


def drop(lost, one=False):
    def answer(labels, null, share, generator):
        luck = torch.rand(1 if one else len(labels), generator=generator)
        return torch.where(lost(luck, share), torch.tensor(null), labels)

    return answer


def drop_in_place(labels, null, share, generator):
    labels[torch.rand(len(labels), generator=generator) < share] = null
    return labels


def drop_the_first(labels, null, share, generator):
    return torch.where(torch.arange(len(labels)) < share * len(labels), null, labels)


PARTS = ("network", "average", "optimizer")


def save(*parts, copied=True):
    def answer(run):
        state = {k: getattr(run, k).state_dict() for k in parts} | {"step": run.step}
        return copy.deepcopy(state) if copied else state

    return answer


def restore(*parts, step=True, average_of_weights=False):
    def answer(run, state):
        for k in parts:
            getattr(run, k).load_state_dict(state[k])
        if average_of_weights:
            run.average.load_state_dict(run.network.state_dict())
        if step:
            run.step = state["step"]
        return run

    return answer


RIGHT = {
    "noising": (lesson.check_noising, [noising()]),
    "step": (lesson.check_step, [step(clear, back, move)]),
    "step, cleared at its end": (lesson.check_step, [step(back, move, clear)]),
    "ema": (lesson.check_ema, [lambda average, weights, d: d * average + (1 - d) * weights]),
    "accumulate": (lesson.check_accumulate, [accumulate()]),
    "drop": (lesson.check_drop, [drop(lambda luck, share: luck < share)]),
    "resume": (lesson.check_resume, [save(*PARTS), restore(*PARTS)]),
}

WRONG = [
    (lesson.check_noising, [noising(low=0)], "t = 0 is drawn"),
    (lesson.check_noising, [noising(high=lambda a: len(a) - 1)], "is never drawn"),
    (lesson.check_noising, [noising(high=lambda a: len(a) + 1)], "beyond T"),
    (lesson.check_noising, [noising(each=False)], "one whole number for each picture"),
    (lesson.check_noising, [noising(draw=torch.rand)], "torch.rand is uniform"),
    (
        lesson.check_noising,
        [noising(mix=lambda a, x0, noise: a * x0 + (1 - a) * noise)],
        "both square roots",
    ),
    (
        lesson.check_noising,
        [noising(mix=lambda a, x0, noise: a * x0 + (1 - a).sqrt() * noise)],
        "multiplied by alpha_bar",
    ),
    (
        lesson.check_noising,
        [noising(mix=lambda a, x0, noise: a * x0 + (1 - a**2).sqrt() * noise)],
        "alpha_bar is alpha squared",
    ),
    (
        lesson.check_noising,
        [noising(mix=lambda a, x0, noise: a.sqrt() * x0 + (1 - a) * noise)],
        "multiplied by 1 - alpha_bar",
    ),
    (lesson.check_noising, [noising(shift=1)], "level of t - 1"),
    (lesson.check_noising, [noising(draw=centred_uniform)], "deviation 0.58"),
    (lesson.check_noising, [noising(draw=unseeded)], "one generator, two answers"),
    (lesson.check_noising, [turned], "in this order"),
    (lesson.check_noising, [lambda x0, a, g: noising()(x0, a, g)[2]], "three things"),
    (lesson.check_step, [step(clear, back_of_loss, move)], "multiplied by the loss"),
    (lesson.check_step, [step(back, move)], "zero_grad() in every step"),
    (lesson.check_step, [step(back, clear, move)], "do not move"),
    (lesson.check_step, [step(clear, back)], "do not move"),
    (lesson.check_step, [step(clear, move, back)], "do not move"),
    (
        lesson.check_step,
        [lambda optimizer, loss: step(clear, back, move)(optimizer, loss) * 2],
        "off",
    ),
    (lesson.check_step, [step(clear, back, move, result=lambda loss: loss)], "graph in memory"),
    (lesson.check_ema, [lambda average, weights, d: (1 - d) * average + d * weights], "exchanged"),
    (lesson.check_ema, [lambda average, weights, d: weights], "copy of the weights"),
    (lesson.check_ema, [lambda average, weights, d: average], "does not move"),
    (lesson.check_ema, [lambda average, weights, d: average + (1 - d) * weights], "grows"),
    (lesson.check_accumulate, [accumulate(divide=False)], "twice too large"),
    (
        lesson.check_accumulate,
        [accumulate(only=slice(1, None), divide=False)],
        "only the last part",
    ),
    (lesson.check_accumulate, [accumulate_clearing], "only the last part"),
    (lesson.check_accumulate, [accumulate(only=slice(1))], "only the first part"),
    (lesson.check_accumulate, [accumulate_at_the_end], "in memory at once"),
    (lesson.check_accumulate, [accumulate(average=False)], "return the mean"),
    (lesson.check_accumulate, [lambda loss_of, parts: 3.0], "no gradient"),
    (lesson.check_drop, [drop(lambda luck, share: luck > share)], "instead of 10%: the comparison"),
    (lesson.check_drop, [drop(lambda luck, share: luck < share, one=True)], "not one for all"),
    (lesson.check_drop, [drop(lambda luck, share: luck < share / 2)], "instead of 10%"),
    (lesson.check_drop, [drop_in_place], "overwritten"),
    (lesson.check_drop, [drop_the_first], "of the second half of the labels 0%"),
    (lesson.check_resume, [copy.deepcopy, lambda run, state: state], "which it was given"),
    (lesson.check_resume, [save(*PARTS, copied=False), restore(*PARTS)], "deepcopy"),
    (
        lesson.check_resume,
        [save(*PARTS), restore("average", "optimizer")],
        "weights are not",
    ),
    (
        lesson.check_resume,
        [save(*PARTS), restore("network", "optimizer")],
        "average is not",
    ),
    (
        lesson.check_resume,
        [save(*PARTS), restore("network", "optimizer", average_of_weights=True)],
        "copy of the restored weights",
    ),
    (lesson.check_resume, [save(*PARTS), restore("network", "average")], "moments are not"),
    (lesson.check_resume, [save(*PARTS), restore(*PARTS, step=False)], "at step 0"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_the_solution_is_right_and_a_blank_is_not_done(name):
    check, answers = RIGHT[name]
    assert check.verdict(*answers).startswith("right: ")
    blank = lambda *args: ...  # noqa: E731
    assert check.verdict(*[blank] * len(answers)).startswith("not done yet")
    forgets = [lambda *args: None] * len(answers)
    assert "forget `return`" in check.verdict(*forgets)


@pytest.mark.parametrize(("check", "answers", "message"), WRONG)
def test_a_wrong_answer_is_told_why(check, answers, message):
    verdict = check.verdict(*answers)
    assert verdict.startswith("not yet right: ")
    assert message in verdict


def test_the_pictures_are_those_that_the_oracle_reads():
    drawn = lesson.pictures(40, torch.Generator().manual_seed(3))
    assert drawn.dtype == torch.uint8 and drawn.shape == (40, 3, 32, 32)
    scenes = [scene for scene in shapes.read(drawn.float() / 127.5 - 1) if scene]
    assert len(scenes) >= 38
    assert {scene.thing.size for scene in scenes} == {"large"}
    assert len({scene.thing.shape for scene in scenes}) == 4


def test_the_distance_ranks_drawn_grainy_empty_and_fog():
    drawn, new = (
        lesson.pictures(n, torch.Generator().manual_seed(n)).float() / 127.5 - 1 for n in (600, 30)
    )
    grain = new + 0.3 * torch.randn(new.shape, generator=torch.Generator().manual_seed(0))
    empty = new.flatten(2).median(2).values[:, :, None, None].expand_as(new)
    fog = torch.zeros_like(new)
    means = [lesson.distance(x, drawn).mean().item() for x in (new, grain, empty, fog)]
    assert all(1.3 * a < b for a, b in zip(means, means[1:], strict=False)), means
    assert lesson.distance(drawn[:5], drawn).max() < 1e-4
    assert lesson.interval(torch.tensor([1.0, 1.0, 1.0])) == "1.000 (1.000 to 1.000)"


def test_the_exam_knows_the_true_v_and_gives_the_same_noise_to_all():
    schedule = NoiseSchedule.cosine()
    x0 = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    exam = lesson.Exam(x0, schedule, torch.device("cpu"))

    def perfect(x, t):  # knows x0
        level = schedule.level(t + 1)
        noise = (x - level.alpha * x0) / level.sigma
        return level.alpha * noise - level.sigma * x0

    assert exam.loss(perfect, 64) < 1e-3 < exam.loss(lambda x, t: torch.zeros_like(x), 64)
    blind = exam.pictures(lambda x, t, condition: torch.zeros_like(x), 4, 3)
    assert torch.equal(blind[:2], exam.pictures(lambda x, t, c: torch.zeros_like(x), 2, 3))
