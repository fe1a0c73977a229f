"""Exercises: one verdict for each kind of answer, and the cost of running a notebook."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import minidiff
from minidiff import lessons
from minidiff.lessons import cost, exercise, expect, require

X = torch.linspace(-1, 1, 6).reshape(2, 3)


@exercise
def check_double(answer):
    found = answer(X)
    expect(found, 2 * X, "multiply by two", known=[(X**2, "that is the square, not the double")])
    return "twice as much"


@exercise
def check_best_scale(answer):
    require(answer == 3, "look at the row with the fewest faults")
    return "three"


def blank(x):
    return ...


def blank_inside(x):
    half = ...
    return half * 4


def forgets_return(x):
    x * 2


def breaks(x):
    size = x.shape[0]
    return x.reshape(size, 7)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (lambda x: x + x, "right: twice as much"),
        (blank, "not done yet: blank; open the solution below or go on"),
        (blank_inside, "not done yet: blank_inside; open the solution below or go on"),
        (forgets_return, "not yet right: the result is None: did you forget `return`?"),
        (lambda x: x**2, "not yet right: that is the square, not the double"),
        (lambda x: x, "not yet right: the result is off by up to 1; multiply by two"),
        (lambda x: x[0], "not yet right: expected shape (2, 3), got (3,); multiply by two"),
        (lambda x: x / 0, "not yet right: the result holds NaN or infinite values; multiply by"),
        (lambda x: [1], "not yet right: expected a tensor of shape (2, 3), got a list"),
        (lambda x: (x, ...), "not done yet: <lambda>; open"),
        (lambda x: x + 2j * x, "not yet right: the result is complex: a root was taken"),
    ],
)
def test_each_answer_has_its_verdict(answer, verdict):
    assert check_double.verdict(answer).startswith(verdict)


def test_an_error_is_told_with_its_line():
    told = check_double.verdict(breaks)
    assert "breaks fails at `return x.reshape(size, 7)`: RuntimeError: shape '[2, 7]'" in told
    assert "TypeError" in check_double.verdict(lambda: 1)  # the wrong number of arguments


@exercise
def check_inner(answer):
    def given(x):
        require(x.ndim == 2, "give it a matrix")
        return x

    expect(answer(given)(X), 2 * X, "multiply by two")
    return "twice as much"


@pytest.mark.parametrize(
    ("inner", "verdict"),
    [
        (lambda f: lambda x: f(x + x), "right: twice as much"),
        (lambda f: lambda x: ..., "not done yet: <lambda>; open"),
        (lambda f: lambda x: None, "not yet right: the result is None: did you forget `return`?"),
        (lambda f: lambda x: x.reshape(7), "<lambda> fails at `(lambda f: lambda x: x.reshape(7)"),
        (lambda f: lambda x: f(x[0]), "not yet right: give it a matrix"),
    ],
)
def test_a_function_that_is_answered_is_watched_too(inner, verdict):
    assert check_inner.verdict(inner).startswith(verdict)


def test_a_blank_may_be_a_value():
    assert check_best_scale.verdict(...).startswith("not done yet: best scale;")
    assert check_best_scale.verdict(3) == "right: three"
    assert check_best_scale.verdict(5) == "not yet right: look at the row with the fewest faults"


def test_a_check_prints_and_never_stops_the_notebook(capsys):
    assert check_double(breaks) is None
    check_double(blank)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_fault_of_the_check_itself_is_not_blamed_on_the_learner():
    @exercise
    def check_broken(answer):
        answer(X)
        return "x"[3]

    with pytest.raises(IndexError):
        check_broken.verdict(lambda x: x)


@pytest.mark.parametrize("error", [0.9e-4, 3e-4])
def test_expect_is_relative_to_the_largest_value(error):
    wanted = 1000 * X
    if error < 1e-4:
        expect(wanted + 1000 * error, wanted, "")
    else:
        with pytest.raises(lessons.Wrong):
            expect(wanted + 1000 * error, wanted, "")


# --- where a lesson runs -------------------------------------------------------------------------


def test_setup_settles_seeds_and_prints_one_line(monkeypatch, capsys):
    monkeypatch.setenv("MINIDIFF_FAST", "1")
    lesson = lessons.setup(4)
    first = torch.rand(2)
    assert capsys.readouterr().out.count("\n") == 1
    assert lesson.fast and lesson.choose(1, 2, 3) == 1
    lessons.setup(4)
    assert torch.equal(first, torch.rand(2))
    monkeypatch.setenv("MINIDIFF_FAST", "0")
    lesson = lessons.setup(4)
    assert lesson.choose(1, 2, 3) == (2 if lesson.device.type == "cpu" else 3)
    assert torch.equal(
        torch.rand(3, generator=lesson.generator(7)), torch.rand(3, generator=lesson.generator(7))
    )


def test_an_animation_is_a_gif_that_notebooks_show():
    shown = lessons.animation([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    assert shown._repr_png_()[:4] == b"GIF8"


# --- what it costs -------------------------------------------------------------------------------


def counted(call) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def metered(call) -> float:
    meter = cost.Meter().start()
    try:
        call()
    finally:
        meter.stop()
    return meter.flops


@pytest.fixture(scope="module")
def unet():
    config = minidiff.UNetConfig(channels=16, multipliers=(1, 2), groups=8)
    return minidiff.UNet(config).eval()


def test_calls_of_a_known_shape_are_added(unet):
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 5])

    def calls():
        with torch.no_grad():
            for _ in range(3):
                unet(x, t)
            unet(x[:1], t[:1])

    assert metered(calls) == counted(calls) > 1e6


def test_inference_mode_is_counted(unet):
    def call():
        with torch.inference_mode():
            unet(torch.randn(1, 3, 16, 16), torch.tensor([3]))

    assert metered(call) == counted(call) > 1e6


def test_a_backward_pass_counts_twice_its_forward():
    layer = nn.Linear(4, 5)
    forward = metered(lambda: layer(torch.ones(3, 4)))
    assert forward == 2 * 3 * 4 * 5
    trained = metered(lambda: layer(torch.ones(3, 4)).sum().backward())
    assert trained == 3 * forward


def test_a_module_called_by_keywords_is_counted_with_those_inside():
    class Objective(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.network = Encoder(), nn.Linear(4, 5)

        def forward(self, x, ids):
            return (self.network(x) + self.encoder(ids).tokens).square().mean()

    class Encoder(nn.Linear):
        def __init__(self):
            super().__init__(4, 5)

        def forward(self, ids):
            return minidiff.Condition(tokens=super().forward(ids))

    objective, x = Objective(), torch.ones(3, 4)

    def calls():
        for n in (1, 2, 3):
            objective(x=x[:n], ids=x[:n]).backward()

    forward = 2 * (1 + 2 + 3) * 2 * 4 * 5  # two layers, for 1, 2 and 3 rows
    assert metered(calls) == 3 * forward


def test_a_condition_of_another_shape_is_counted_again():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, x, condition):
            return x + self.linear(condition.tokens).sum()

    network, x = Network(), torch.ones(2)

    def calls():
        for n in (1, 3):
            network(x, minidiff.Condition(tokens=torch.ones(1, n, 4)))

    assert metered(calls) == (1 + 3) * 2 * 4 * 5


def test_an_error_in_a_network_leaves_the_meter_working():
    layer = nn.Linear(4, 5)

    def calls():
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            layer(torch.ones(3, 6))
        layer(torch.ones(3, 4))

    assert metered(calls) == 2 * 3 * 4 * 5


def test_the_meter_reads_this_process():
    meter = cost.Meter().start()
    meter.stop()
    read = meter.read()
    assert 0 < read["minutes"] and 0.05 < read["gigabytes"] < 100 and read["pflops"] == 0
