"""Schedules, paths, and the forward process."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from exact import SCHEDULE
from hypothesis import given
from hypothesis import strategies as st

from minidiff.schedule import (
    NoiseLevel,
    NoiseSchedule,
    add_noise,
    climbs,
    jumps,
    renoise,
    transition,
)

COSINE, FLOW, VE = NoiseSchedule.cosine(), NoiseSchedule.flow(), NoiseSchedule.ve()
KINDS = {"linear": SCHEDULE, "cosine": COSINE, "flow": FLOW, "ve": VE}
each_kind = pytest.mark.parametrize("schedule", KINDS.values(), ids=KINDS.keys())


def times(path):
    return [level.t for level in path]


# --- tables ---------------------------------------------------------------------------------------


def test_linear_is_the_table_of_ddpm():
    betas = np.linspace(1e-4, 0.02, 1000)
    assert SCHEDULE.T == 1000 and SCHEDULE.alpha_bar.dtype == torch.float64
    assert SCHEDULE.alpha_bar[0] == 1
    np.testing.assert_allclose(SCHEDULE.alpha_bar[1:], np.cumprod(1 - betas), rtol=1e-12)
    assert SCHEDULE.alpha_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)


def test_cosine_follows_its_formula_until_the_cap():
    t = np.arange(1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    np.testing.assert_allclose(COSINE.alpha_bar[:999], (f / f[0])[:999], rtol=1e-9)
    assert 1 - COSINE.alpha_bar[1000] / COSINE.alpha_bar[999] == pytest.approx(0.999)


def test_from_betas_multiplies():
    schedule = NoiseSchedule.from_betas([0.1, 0.5])
    torch.testing.assert_close(schedule.alpha_bar, torch.tensor([1, 0.9, 0.45]).double())


@pytest.mark.parametrize("betas", [[], [0.1, 1.0], [0.0, 0.1], [0.1, -0.1], [[0.1]], [math.nan]])
def test_bad_betas_are_refused(betas):
    with pytest.raises(ValueError, match="numbers strictly between 0 and 1"):
        NoiseSchedule.from_betas(betas)


@pytest.mark.parametrize(
    "table",
    [[1.0], [0.9, 0.5], [1, 0.5, 0.6], [1, 0.5, -0.1], [1, 0.5, 0.0, 0.0], [1, math.nan], [[1, 0]]],
)
def test_a_table_that_does_not_fall_from_one_is_refused(table):
    with pytest.raises(ValueError, match="must fall strictly from 1"):
        NoiseSchedule.from_alpha_bar(torch.tensor(table))


def test_alpha_bar_may_end_at_pure_noise():
    schedule = NoiseSchedule.from_alpha_bar([1, 0.25, 0.0])
    assert schedule.level(2) == (2, 0, 1) and schedule.level(1) == (1, 0.5, math.sqrt(0.75))
    assert schedule.log_snr[2] == -math.inf and schedule.log_snr[0] == math.inf


def test_flow_is_a_straight_line_and_ve_a_geometric_row():
    t = torch.arange(1001, dtype=torch.float64)
    assert torch.equal(FLOW.alpha, 1 - t / 1000) and torch.equal(FLOW.sigma, t / 1000)
    assert FLOW.level(250) == (250, 0.75, 0.25) and FLOW.level(1000) == (1000, 0, 1)

    assert (VE.alpha == 1).all() and VE.sigma[0] == 0
    assert VE.sigma[1].item() == pytest.approx(0.01) and VE.sigma[-1].item() == pytest.approx(50)
    np.testing.assert_allclose(VE.sigma[2:] / VE.sigma[1:-1], 5000 ** (1 / 999), rtol=1e-12)
    narrow = NoiseSchedule.ve(3, sigma_min=0.5, sigma_max=2.0)
    torch.testing.assert_close(narrow.sigma, torch.tensor([0, 0.5, 1, 2]).double())
    assert NoiseSchedule.ve(1, 0.5, 2.0).sigma.tolist() == [0, 2]
    with pytest.raises(ValueError, match="expected 0 < sigma_min < sigma_max"):
        NoiseSchedule.ve(10, sigma_min=2.0, sigma_max=1.0)


def test_alpha_bar_belongs_to_schedules_that_preserve_the_variance():
    assert SCHEDULE.preserves_variance and COSINE.preserves_variance
    assert torch.equal(SCHEDULE.alpha_bar, SCHEDULE.alpha**2)
    for schedule in (FLOW, VE):
        assert not schedule.preserves_variance
        with pytest.raises(ValueError, match="use alpha, sigma"):
            _ = schedule.alpha_bar


@pytest.mark.parametrize(
    ("alpha", "sigma", "told"),
    [
        ([1, 0.5], [0, 0.5, 1], r"alpha has shape \(2,\), sigma \(3,\): expected two tables"),
        ([[1, 0.5]], [[0, 0.5]], r"shape \(1, 2\)"),
        ([1], [0], "at least one noisy level"),
        ([0.9, 0.5], [0, 1], "must begin with the clean image"),
        ([1, 0.5], [0.1, 1], "must begin with the clean image"),
        ([1, 0.5, 0.5], [0, 1, 1], "must rise strictly with t"),
        ([1, 0.5, 0.4], [0, 1, 0.7], "must rise strictly with t"),
        ([1, 0.5, 0, 0], [0, 1, 1, 2], "0 at T at the earliest"),
        ([1, -0.5], [0, 1], "alpha above 0"),
        ([1, 0.5], [0, math.nan], "must rise strictly with t"),
        ([1, 0.5], [0, math.inf], "must rise strictly with t"),
        ([1, 0.5], [0, 0], "must rise strictly with t"),
    ],
)
def test_tables_that_are_no_schedule_are_refused(alpha, sigma, told):
    with pytest.raises(ValueError, match=told) as error:
        NoiseSchedule(torch.tensor(alpha), torch.tensor(sigma))
    assert "\n" not in str(error.value)


def test_schedules_of_the_same_tables_are_equal():
    assert SCHEDULE == NoiseSchedule.linear() and SCHEDULE != COSINE and FLOW != VE
    assert NoiseSchedule(SCHEDULE.alpha, SCHEDULE.sigma) == SCHEDULE
    assert NoiseSchedule(SCHEDULE.alpha, 1.1 * SCHEDULE.sigma) != SCHEDULE
    assert SCHEDULE != NoiseSchedule.linear(999) and SCHEDULE != "linear"
    with pytest.raises(TypeError, match="unhashable"):
        hash(SCHEDULE)


@each_kind
def test_a_schedule_comes_back_from_the_tables_of_a_file(schedule):
    tensors = schedule.tables() | {"weight": torch.ones(1)}
    assert NoiseSchedule.take_tables(tensors) == schedule
    assert tensors.keys() == {"weight"}  # what is left is the network's
    with pytest.raises(KeyError):
        NoiseSchedule.take_tables(tensors)
    first_version = {"alpha_bar": SCHEDULE.alpha_bar}
    old = NoiseSchedule.take_tables(first_version)
    torch.testing.assert_close(old.alpha, SCHEDULE.alpha, rtol=0, atol=1e-15)
    assert not first_version


def test_a_schedule_is_shown_in_one_line():
    assert repr(FLOW) == "NoiseSchedule(general, T = 1000, sigma/alpha from 0.001 to inf)"
    shown = "NoiseSchedule(variance-preserving, T = 1000, sigma/alpha from 0.01 to 157)"
    assert repr(SCHEDULE) == shown


# --- levels ---------------------------------------------------------------------------------------


def test_levels_are_numbers_when_sampling_and_broadcast_when_training():
    level = SCHEDULE.level(250)
    assert level.t == 250 and isinstance(level.t, int) and isinstance(level.alpha, float)
    assert level.alpha**2 == pytest.approx(SCHEDULE.alpha_bar[250].item(), abs=1e-15)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-15)
    assert SCHEDULE.level(0) == (0, 1, 0)

    many = SCHEDULE.level(torch.tensor([250, 0, 1000]))
    assert all(part.shape == (3, 1, 1, 1) for part in many)
    assert many.alpha.dtype == torch.float32
    for i, t in enumerate([250, 0, 1000]):
        assert [part[i].item() for part in many] == pytest.approx(SCHEDULE.level(t), rel=1e-6)


def test_between_integers_the_log_snr_is_interpolated():
    def log_snr(t):
        return math.log(SCHEDULE.level(t).alpha / SCHEDULE.level(t).sigma)

    assert log_snr(400.25) == pytest.approx(0.75 * log_snr(400) + 0.25 * log_snr(401), abs=1e-12)
    sigmas = [SCHEDULE.level(t).sigma for t in (0, 0.01, 0.5, 0.99, 1)]
    assert sigmas == sorted(sigmas) and sigmas[-1] == pytest.approx(0.01)


@pytest.mark.parametrize("t", [-1, 1001, 1000.5, math.nan, torch.tensor([5, 1001])])
def test_levels_off_the_schedule_are_refused(t):
    with pytest.raises(ValueError, match="expected 0 <= t <= 1000|levels must lie in 0..1000"):
        SCHEDULE.level(t)


@pytest.mark.parametrize(
    "t", [torch.tensor([[5]]), torch.tensor([[0.5]]), torch.tensor([True]), torch.tensor([1j])]
)
def test_training_levels_are_a_list_of_numbers(t):
    with pytest.raises(ValueError, match=r"expected a \(B,\) tensor of levels, got \("):
        SCHEDULE.level(t)


@pytest.mark.parametrize("t", [-0.1, 1000.1, math.nan])
def test_fractional_training_levels_off_the_schedule_are_refused(t):
    with pytest.raises(ValueError, match="levels must lie in 0..1000"):
        SCHEDULE.level(torch.tensor([5.0, t]))


@each_kind
def test_training_levels_may_be_fractions(schedule):
    ts = [0, 0.25, 1, 1.5, 250, 250.75, 998.5, 999, 999.5, 1000]
    many = schedule.level(torch.tensor(ts))
    assert all(part.shape == (10, 1, 1, 1) for part in many)
    assert many.alpha.dtype == many.sigma.dtype == torch.float32
    for i, t in enumerate(ts):
        one = schedule.level(t)
        assert [part[i].item() for part in many] == pytest.approx(one, rel=1e-6, abs=1e-9)


def test_between_integers_other_schedules_interpolate_alpha_and_sigma():
    assert FLOW.level(250.5) == pytest.approx((250.5, 0.7495, 0.2505), abs=1e-12)
    half = (VE.level(400).sigma + VE.level(401).sigma) / 2
    assert VE.level(400.5) == pytest.approx((400.5, 1, half), abs=1e-12)
    # Mutant: the interpolation of variance-preserving schedules keeps alpha^2 + sigma^2 = 1.
    low, high = (FLOW.log_snr[t].item() for t in (250, 251))
    preserving = 1 / math.hypot(1, math.exp((low + high) / 2))
    assert abs(preserving - FLOW.level(250.5).sigma) > 0.01


@each_kind
def test_levels_rise_without_a_gap_between_the_integers(schedule):
    sigmas = [schedule.level(t / 4).sigma for t in (*range(9), *range(3990, 4001))]
    assert all(low < high for low, high in pairwise(sigmas))
    pairs = [(t, t + 1e-6) for t in (1, 500, 998)] + [(t, t - 1e-6) for t in (1, 500, 999)]
    for whole, beside in pairs:
        assert schedule.level(whole)[1:] == pytest.approx(schedule.level(beside)[1:], abs=1e-5)


def test_the_clean_level_knows_the_lowest_noisy_one_of_its_schedule():
    for schedule in KINDS.values():
        assert schedule.level(0).lowest == schedule.level(1)
        assert schedule.path(10)[-1].lowest == schedule.level(1)
        assert schedule.level(0) == NoiseLevel(0, 1.0, 0.0)


# --- paths ----------------------------------------------------------------------------------------


def test_known_lists():
    for spacing, expected in {
        "trailing": [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100, 0],
        "leading": [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0],
        "linspace": [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1, 0],
    }.items():
        assert times(SCHEDULE.path(10, spacing)) == expected
    assert times(SCHEDULE.path(3)) == [1000, 667, 333, 0]
    assert times(SCHEDULE.path(3, "leading")) == [667, 334, 1, 0]
    assert times(SCHEDULE.path(1)) == [1000, 0]


@given(st.integers(1, 1000))
def test_spacings_follow_their_formulas(S):
    up = range(S)
    expected = {  # network indices, from 0; exact fractions, halves to the even neighbour
        "trailing": [round(Fraction(1000 * (i + 1), S)) - 1 for i in up],
        "leading": [i * (1000 // S) for i in up],
        "linspace": [round(Fraction(999 * i, max(S - 1, 1))) for i in up],
    }
    for spacing, indices in expected.items():
        ts = times(SCHEDULE.path(S, spacing))
        assert ts == [*(index + 1 for index in reversed(indices)), 0]
        assert all(isinstance(t, int) for t in ts)
        assert all(here > there for here, there in pairwise(ts))


@pytest.mark.parametrize("schedule", [SCHEDULE, COSINE], ids=["linear", "cosine"])
def test_log_snr_is_evenly_spaced_from_the_noisiest_level_to_t_1(schedule):
    path = schedule.path(20, "log_snr")
    log_snr = [math.log(level.alpha / level.sigma) for level in path[:-1]]
    np.testing.assert_allclose(np.diff(log_snr), np.diff(log_snr)[0], rtol=1e-6)
    assert path[0].t == pytest.approx(schedule.T) and path[-2].t == pytest.approx(1)
    assert path[-1] == (0, 1, 0)
    # Control: even steps of t are far from even here.
    even_t = [math.log(level.alpha / level.sigma) for level in schedule.path(20)[:-1]]
    assert np.ptp(np.diff(even_t)) > 0.2


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_log_snr_begins_with_pure_noise_where_there_is_some(steps):
    """Its log signal-to-noise ratio is -inf: the even grid begins at the next level, T - 1."""
    path = FLOW.path(steps, "log_snr")
    assert path[0] == (1000, 0, 1) and path[-1] == (0, 1, 0) and len(path) == steps + 1
    noisy = path[1:-1]
    assert all(here.sigma > there.sigma for here, there in pairwise(path))
    if steps > 2:
        assert noisy[0].t == pytest.approx(999) and noisy[-1].t == pytest.approx(1)
        log_snr = [math.log(level.alpha / level.sigma) for level in noisy]
        np.testing.assert_allclose(np.diff(log_snr), np.diff(log_snr).mean(), rtol=1e-6)
        even_t = [math.log(level.alpha / level.sigma) for level in FLOW.path(steps)[1:-1]]
        assert steps == 3 or np.ptp(np.diff(even_t)) > 0.5  # control: even steps of t


def test_log_snr_of_few_levels():
    flow = NoiseSchedule.flow(2)
    assert times(flow.path(2, "log_snr")) == [2, 1, 0] and times(flow.path(1, "log_snr")) == [2, 0]
    assert times(VE.path(1, "log_snr")) == [1000, 0]


def test_a_list_is_taken_as_it_is():
    assert SCHEDULE.path([10, 20.5, 3]) == [SCHEDULE.level(t) for t in (10, 20.5, 3)]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_too_many_or_too_few_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"{steps} steps .* expected 1..1000"):
        SCHEDULE.path(steps)


def test_an_unknown_spacing_is_refused():
    with pytest.raises(ValueError, match="'even': expected trailing, leading, linspace or log_snr"):
        SCHEDULE.path(10, "even")


# --- jumps ----------------------------------------------------------------------------------------


def repaints_list(steps, length, times):
    """RePaint's list put together from its description instead of walked with counters.

    Go down one by one; at each multiple of `length` below `steps - length` (levels from 0), go
    `length` up and down again, `times - 1` times. -1 is the clean image.
    """
    visited = []
    for level in range(steps - 1, -1, -1):
        visited.append(level)
        if level % length == 0 and level < steps - length:
            up = list(range(level + 1, level + length + 1))
            visited += (up + [*reversed(up[:-1]), level]) * (times - 1)
    return [*visited, -1]


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 4))
def test_jumps_are_those_of_repaint(steps, length, times):
    ours = jumps(steps, length, times)
    assert ours == [steps, *(level + 1 for level in repaints_list(steps, length, times)[1:])]
    assert all(abs(here - there) == 1 for here, there in pairwise(ours))
    assert ours.count(0) == 1 and max(ours) == steps


def test_the_published_setting_makes_2410_calls():
    for setting, down, up in [((250, 10, 10), 2410, 2160), ((50, 1, 10), 491, 441)]:
        levels = jumps(*setting)
        assert levels == [setting[0], *(level + 1 for level in repaints_list(*setting)[1:])]
        assert sum(there < here for here, there in pairwise(levels)) == down
        assert sum(there > here for here, there in pairwise(levels)) == up
    assert jumps(5, 2, 1) == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("setting", [(0, 1, 1), (10, 0, 1), (10, 1, 0)])
def test_bad_jumps_are_refused(setting):
    with pytest.raises(ValueError, match="expected numbers from 1 up"):
        jumps(*setting)


# --- the forward process --------------------------------------------------------------------------


def test_add_noise_has_the_stated_mean_and_deviation():
    level = SCHEDULE.level(torch.tensor([300, 700]))
    x0, z = torch.full((2, 3, 4, 4), 0.5), torch.randn(2, 3, 4, 4)
    x = add_noise(x0, level, z)
    for i, t in enumerate([300, 700]):
        a = SCHEDULE.alpha_bar[t].item()
        torch.testing.assert_close(x[i], a**0.5 * x0[i] + (1 - a) ** 0.5 * z[i])


@each_kind
def test_the_transition_is_what_takes_one_level_to_another(schedule):
    """x_high = ratio * x_low + sqrt(variance) * z has the mean alpha and the variance sigma^2."""
    for low, high in ((0, 1), (0, 1000), (1, 2), (300.5, 600), (998, 999), (999, 1000)):
        low, high = schedule.level(low), schedule.level(high)
        ratio, variance = transition(low, high)
        assert ratio * low.alpha == pytest.approx(high.alpha, rel=1e-12)
        assert ratio**2 * low.sigma**2 + variance == pytest.approx(high.sigma**2, rel=1e-12)
        assert variance > 0
    middle = schedule.level(500)
    assert transition(middle, middle) == (1, 0)


def test_the_transition_of_ddpm_is_its_beta():
    betas = np.linspace(1e-4, 0.02, 1000)
    for t in (1, 500, 1000):
        ratio, variance = transition(SCHEDULE.level(t - 1), SCHEDULE.level(t))
        assert variance == pytest.approx(betas[t - 1], rel=1e-9)
        assert ratio == pytest.approx(math.sqrt(1 - betas[t - 1]), rel=1e-12)
    many = [SCHEDULE.level(torch.tensor([1, 499])), SCHEDULE.level(torch.tensor([2, 500]))]
    _, variance = transition(*many)
    assert variance.shape == (2, 1, 1, 1)
    assert variance.flatten().tolist() == pytest.approx([betas[1], betas[499]], rel=1e-2)


def test_a_transition_from_pure_noise_or_downward_is_refused():
    with pytest.raises(ValueError, match="t = 1000 is pure noise: no level is noisier"):
        transition(FLOW.level(1000), FLOW.level(1000))
    with pytest.raises(ValueError, match="t = 100 must be noisier than t = 200"):
        transition(FLOW.level(200), FLOW.level(100))


@each_kind
def test_a_move_climbs_where_the_noise_grows_against_the_image(schedule):
    up = (0, 1, 1.5, 400, 999, 1000)
    for low, high in pairwise(schedule.path(up)):
        assert climbs(low, high) and not climbs(high, low) and not climbs(low, low)
    assert not climbs(schedule.level(0), schedule.level(0))
    # Not where sigma alone does: alpha may grow faster.
    assert not climbs(NoiseLevel(1, 0.5, 0.5), NoiseLevel(2, 1.0, 0.6))


def without_the_root(x, here, there, noise):
    """The variance where its root belongs, the slip of RePaint's algorithm 1, line 5."""
    ratio = there.alpha / here.alpha
    return ratio * x + (there.sigma**2 - (ratio * here.sigma) ** 2) * noise


def law_after(climb, here, there):
    """Mean and deviation of x_there given x0 = 1, when x_here is climbed from: (m, s)."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    mean = climb(add_noise(one, here, zero), here, there, zero)
    old = climb(add_noise(zero, here, one), here, there, zero)
    new = climb(add_noise(zero, here, zero), here, there, one)
    return mean.item(), math.hypot(old.item(), new.item())


@each_kind
@pytest.mark.parametrize("pair", [(0, 1), (0, 600), (1, 2), (100, 110), (300, 600)])
def test_renoising_composes_into_the_forward_process(schedule, pair):
    """q(t | s) after q(s | 0) is q(t | 0)."""
    here, there = map(schedule.level, pair)
    assert law_after(renoise, here, there) == pytest.approx(there[1:], abs=1e-12)
    mutant = law_after(without_the_root, here, there)
    assert abs(mutant[1] / there.sigma - 1) > 0.005


def test_renoise_takes_training_levels_and_refuses_to_go_down():
    here, there = SCHEDULE.level(torch.tensor([100])), SCHEDULE.level(torch.tensor([200]))
    x = torch.randn(1, 3, 4, 4)
    numbers = renoise(x, SCHEDULE.level(100), SCHEDULE.level(200), x)
    torch.testing.assert_close(renoise(x, here, there, x), numbers)
    with pytest.raises(ValueError, match="t = 100 must be noisier than t = 200"):
        renoise(x, SCHEDULE.level(200), SCHEDULE.level(100), x)


def test_a_level_is_a_plain_tuple():
    assert SCHEDULE.level(1) == NoiseLevel(1, math.sqrt(0.9999), pytest.approx(0.01))


def test_another_table_means_other_levels_for_training_too():
    linear, cosine = NoiseSchedule.linear(), NoiseSchedule.cosine()
    t = torch.tensor([500])
    linear.level(t)  # fills its tables
    changed = replace(linear, alpha=cosine.alpha, sigma=cosine.sigma)
    assert torch.equal(changed.level(t).alpha, cosine.level(t).alpha)
    assert torch.equal(changed.level(t.double()).sigma, cosine.level(t.double()).sigma)


def test_a_schedule_of_one_level_and_steps_that_are_not_whole():
    one = NoiseSchedule.from_betas([0.5])
    assert [level.t for level in one.path(1, spacing="log_snr")] == [1, 0]
    with pytest.raises(ValueError, match="2.5 steps on a schedule"):
        NoiseSchedule.linear().path(2.5)
