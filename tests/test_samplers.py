"""Samplers, checked on data whose denoisers are exact: laws, orders of accuracy, inversion."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from exact import (
    SCHEDULE,
    WEIGHTS,
    correlated_step,
    data,
    distance,
    gaussian,
    level_at,
    log_density,
    mixture,
    mmd2,
    noise,
    noisy_data,
    psnr,
    within_std,
)
from torch import Generator

from minidiff.denoiser import Prediction, from_eps
from minidiff.noise import per_image, randn
from minidiff.samplers import (
    ddim_step,
    ddpm_step,
    dpmpp_2m_step,
    heun_step,
    invert,
    sample,
    spacing_for,
    trajectory,
)
from minidiff.schedule import NoiseSchedule, climbs, jumps, renoise

EXACT = mixture()
SMALL, LARGE = partial(ddpm_step, variance="small"), partial(ddpm_step, variance="large")
DDIM_1 = partial(ddim_step, eta=1.0)
CLEAN = SCHEDULE.level(0)


def counted(denoise, levels):
    """The denoiser, writing down the levels it is called at."""

    def counting(x, level):
        levels.append(level)
        return denoise(x, level)

    return counting


def written_out(std):
    """DDPM's equation 7 in alpha_bar, plus noise of deviation std(alpha_bar here, there, beta)."""

    def step(denoise, x, here, there, past=(), *, generator=None):
        a, p = here.alpha**2, there.alpha**2
        b = 1 - a / p
        prediction = denoise(x, here)
        mean = p**0.5 * b / (1 - a) * prediction.x0 + (a / p) ** 0.5 * (1 - p) / (1 - a) * x
        return mean + std(a, p, b) * torch.randn_like(x), prediction

    return step


WRITTEN_SMALL = written_out(lambda a, p, b: (b * (1 - p) / (1 - a)) ** 0.5)
WRITTEN_LARGE = written_out(lambda a, p, b: b**0.5)
NO_NOISE = written_out(lambda a, p, b: 0)


def drawn(step, x, here, there):
    """One move with the noise of a fixed seed."""
    torch.manual_seed(5)
    return step(EXACT, x, here, there)[0]


# --- DDPM -----------------------------------------------------------------------------------------


def test_ddpm_draws_the_data_in_1000_steps():
    x = sample(SMALL, EXACT, noise(20000), SCHEDULE.path(1000))
    assert within_std(x) == pytest.approx(0.146, abs=0.003)
    right, top = (x.flatten(1).T > 0).double()
    shares = [right * top, (1 - right) * top, (1 - right) * (1 - top), right * (1 - top)]
    assert [share.mean().item() for share in shares] == pytest.approx(WEIGHTS, abs=0.01)


def test_ddpm_of_large_variance_draws_the_data_in_1000_steps():
    x = sample(LARGE, EXACT, noise(4000), SCHEDULE.path(1000))
    assert within_std(x) == pytest.approx(0.152, abs=0.004)
    value, bound = mmd2(x[:1000], data(1000))
    assert value < bound


def test_in_20_steps_small_variance_is_too_narrow_and_large_too_wide():
    path = SCHEDULE.path(20)
    assert within_std(sample(SMALL, EXACT, noise(4000), path)) < 0.13
    assert within_std(sample(LARGE, EXACT, noise(4000), path)) > 0.155


def test_ddpm_without_its_noise_contracts_to_the_mean():
    """The network gives the mean of a broad kernel, and means of means shrink."""

    def spread(step):
        return sample(step, EXACT, noise(300), SCHEDULE.path(1000)).flatten(1).std(0)

    assert spread(SMALL).min() > 0.7  # truth: .95 and .81
    assert spread(NO_NOISE).max() < 0.002


@pytest.mark.parametrize("pair", [(1000, 999), (600, 350), (2, 1)])
def test_ddpm_is_its_equation(pair):
    here, there = map(SCHEDULE.level, pair)
    x = noisy_data(50, here)
    small, large = (drawn(step, x, here, there) for step in (SMALL, LARGE))
    torch.testing.assert_close(small, drawn(WRITTEN_SMALL, x, here, there), rtol=0, atol=1e-11)
    torch.testing.assert_close(large, drawn(WRITTEN_LARGE, x, here, there), rtol=0, atol=1e-11)
    assert (small - large).abs().max() > 1e-7  # Mutant: the other variance.


@pytest.mark.parametrize("schedule", [NoiseSchedule.flow(), NoiseSchedule.ve()], ids=["flow", "ve"])
@pytest.mark.parametrize("pair", [(999, 900), (600, 350), (2, 1)])
def test_ddpm_is_bayes_rule_on_other_schedules(schedule, pair):
    """q(x_there | x_here, x0) is proportional to q(x_there | x0) q(x_here | x_there)."""
    here, there = map(schedule.level, pair)
    x, zero = noisy_data(20, here), torch.zeros(20, 2, 1, 1, dtype=torch.float64)
    ratio = here.alpha / there.alpha
    beta = here.sigma**2 - (ratio * there.sigma) ** 2
    precision = 1 / there.sigma**2 + ratio**2 / beta
    x0 = EXACT(x, here).x0
    mean = (there.alpha * x0 / there.sigma**2 + ratio * x / beta) / precision
    torch.manual_seed(5)
    z = torch.randn_like(zero)
    torch.testing.assert_close(drawn(SMALL, x, here, there), mean + z / precision**0.5)
    torch.testing.assert_close(drawn(LARGE, x, here, there), mean + z * beta**0.5)


def affine(step, denoise, here, there):
    """(gain, std) of a step that is linear in x: x_there = gain * x + std * noise."""
    out = []
    for x in (torch.zeros(1, 2, 1, 1).double(), torch.ones(1, 2, 1, 1).double()):
        torch.manual_seed(0)
        out.append(step(denoise, x, here, there)[0][0, 0].item())
    torch.manual_seed(0)
    return out[1] - out[0], out[0] / torch.randn(1, 2, 1, 1).double()[0, 0].item()


def variances(step, denoise, path, variance):
    """Exact variances of x after every move, for a step that is linear in x."""
    for here, there in pairwise(path):
        gain, std = affine(step, denoise, here, there)
        variance = gain**2 * variance + std**2
        yield variance


@pytest.mark.parametrize("steps", [50, 20])
def test_small_is_exact_for_a_point_and_large_for_unit_noise(steps):
    """The two extremes between which the right variance lies (Ho et al. 2020, section 3.2)."""
    path = SCHEDULE.path(steps)[:-1]
    truth = [level.sigma**2 for level in path]
    assert list(variances(SMALL, gaussian(0.0), path, truth[0])) == pytest.approx(truth[1:])
    assert list(variances(LARGE, gaussian(1.0), path, 1.0)) == pytest.approx([1] * len(truth[1:]))
    # Mutants: each in the place of the other.
    *_, too_wide = variances(LARGE, gaussian(0.0), path, truth[0])
    *_, too_narrow = variances(SMALL, gaussian(1.0), path, 1.0)
    assert too_wide > 1.3 * truth[-1] and too_narrow < 0.995


def test_the_move_to_the_clean_image_adds_no_noise():
    here = SCHEDULE.level(50)
    x = noisy_data(20, here)
    for step in (SMALL, LARGE, ddim_step, DDIM_1, heun_step, dpmpp_2m_step):
        torch.testing.assert_close(step(EXACT, x, here, CLEAN)[0], EXACT(x, here).x0)


def test_an_unknown_variance_is_refused():
    with pytest.raises(ValueError, match="unknown variance 'learned': expected small or large"):
        ddpm_step(EXACT, noise(1), SCHEDULE.level(9), SCHEDULE.level(8), variance="learned")


# --- DDIM -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [(1000, 999), (1000, 900), (500, 20), (2, 1), (1, 0)])
def test_ddim_with_eta_1_is_the_posterior_of_ddpm(pair):
    here, there = map(SCHEDULE.level, pair)
    x = noisy_data(100, here)
    ddpm = drawn(SMALL, x, here, there)
    assert (ddpm - drawn(DDIM_1, x, here, there)).abs().max() < 1e-11
    if there.sigma > 0:
        # Mutants: a little less noise; and DDIM is not DDPM without its noise.
        assert (ddpm - drawn(partial(ddim_step, eta=0.9), x, here, there)).abs().max() > 1e-5
        silent = drawn(NO_NOISE, x, here, there) - drawn(ddim_step, x, here, there)
        assert silent.abs().max() > 1e-5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_the_marginals_of_a_point_at_any_eta(eta):
    """Song et al. 2021, theorem 1: the family shares q(x_t | x_0)."""
    path = SCHEDULE.path(20)[:-1]
    truth = [level.sigma**2 for level in path]
    step = partial(ddim_step, eta=eta)
    assert list(variances(step, gaussian(0.0), path, truth[0])) == pytest.approx(truth[1:])


def test_ddim_is_deterministic_at_eta_0():
    x, path = noise(50), SCHEDULE.path(20)
    torch.manual_seed(1)
    first = sample(ddim_step, EXACT, x, path)
    torch.manual_seed(2)
    assert torch.equal(sample(ddim_step, EXACT, x, path), first)
    assert not torch.equal(sample(DDIM_1, EXACT, x, path), sample(DDIM_1, EXACT, x, path))


def test_an_eta_that_overfills_the_level_is_refused():
    with pytest.raises(ValueError, match="eta = 3 adds more noise than level t = 990 holds"):
        ddim_step(EXACT, noise(1), SCHEDULE.level(1000), SCHEDULE.level(990), eta=3)


# --- the probability-flow ODE: laws ---------------------------------------------------------------


def laws(step, path):
    """{t: (MMD^2 against the exact marginal, its bound)} along the path."""
    found = {}
    for frame in trajectory(step, EXACT, noise(1000), path):
        if frame.level.t in (800, 500, 200):
            found[frame.level.t] = mmd2(frame.x, noisy_data(1000, frame.level))
    return found


@pytest.mark.parametrize("step", [ddim_step, heun_step, LARGE], ids=["ddim", "heun", "sde"])
def test_every_level_has_its_exact_marginal(step):
    """Song et al. 2021: the ODE and the SDE have the same marginals."""
    steps = 100 if step is heun_step else 1000
    found = laws(step, SCHEDULE.path(steps)[: steps * 4 // 5 + 1])
    assert found.keys() == {800, 500, 200}
    assert all(value < bound for value, bound in found.values())


def test_an_ode_with_the_whole_score_has_other_marginals():
    """Mutant: the reverse SDE's drift with its noise left out; the ODE has half that score."""
    found = laws(NO_NOISE, SCHEDULE.path(1000)[:801])
    assert all(value > 5 * bound for value, bound in found.values())


def test_the_ode_gives_the_likelihood_by_change_of_variables():
    """log p(x) = log p(z) - log |dx/dz|, the Jacobian taken through the whole trajectory."""
    top, bottom = SCHEDULE.level(1000), SCHEDULE.level(1)
    z = noisy_data(200, top).requires_grad_()

    def error(step):
        *_, last = trajectory(step, EXACT, z, SCHEDULE.path(101, "log_snr")[:-1])
        rows = [
            torch.autograd.grad(last.x[:, axis].sum(), z, retain_graph=True)[0].flatten(1)
            for axis in (0, 1)
        ]
        log_volume = torch.stack(rows, 1).det().abs().log()  # (B,2,2) -> (B,)
        told = log_density(z, top) - log_volume
        return ((told - log_density(last.x, bottom)).abs().mean() / 2).item()  # nats a dimension

    assert error(heun_step) < 0.005
    assert error(NO_NOISE) > 0.5  # Mutant: the whole score.


# --- orders of accuracy ---------------------------------------------------------------------------


def karras(n, rho=7):
    """EDM's levels (Karras et al. 2022, equation 5): n moves from t = 1000 to t = 1."""
    high, low = (level.sigma / level.alpha for level in map(SCHEDULE.level, (1000, 1)))
    bends = (i / n * (low ** (1 / rho) - high ** (1 / rho)) for i in range(n + 1))
    return [level_at((high ** (1 / rho) + bend) ** rho) for bend in bends]


def even_log_snr(n):
    return SCHEDULE.path(n + 1, "log_snr")[:-1]


def even_t(n):
    return SCHEDULE.path([1000 - 999 * i / n for i in range(n + 1)])


@pytest.fixture(scope="module")
def start_and_truth():
    """Starting points, and where the exact probability-flow ODE takes them."""
    torch.manual_seed(0)
    z = noise(1000)
    return z, sample(heun_step, EXACT, z, karras(1500))


def errors(step, path_of, start_and_truth):
    """Median errors at 32, 64 and 128 steps, and their two ratios."""
    z, truth = start_and_truth
    error = [distance(sample(step, EXACT, z, path_of(n)), truth) for n in (32, 64, 128)]
    return error, [coarse / fine for coarse, fine in pairwise(error)]


def multistep(bend):
    """DPM-Solver++(2M) written out anew; `bend(r)` is 1/(2r) in the paper."""

    def step(denoise, x, here, there, past=(), *, generator=None):
        lam = [math.log(level.alpha) - math.log(level.sigma) for level in (here, there)]
        h = lam[1] - lam[0]
        now = D = denoise(x, here)
        if past:
            level, before = past[-1]
            r = (lam[0] - math.log(level.alpha / level.sigma)) / h
            D = Prediction(now.x0 + bend(r) * (now.x0 - before.x0), None)
        x = there.sigma / here.sigma * x - there.alpha * (math.exp(-h) - 1) * D.x0
        return x, now

    return step


def test_ddim_is_of_first_order(start_and_truth):
    error, ratios = errors(ddim_step, even_log_snr, start_and_truth)
    assert error[-1] == pytest.approx(0.0078, rel=0.2)
    assert all(1.8 < ratio < 2.2 for ratio in ratios)


def test_heun_is_of_second_order(start_and_truth):
    error, ratios = errors(heun_step, karras, start_and_truth)
    assert error[-1] == pytest.approx(0.00035, rel=0.25)
    assert all(ratio >= 3.5 for ratio in ratios)


def test_dpmpp_2m_is_of_second_order_on_the_log_snr_path(start_and_truth):
    error, ratios = errors(dpmpp_2m_step, even_log_snr, start_and_truth)
    assert error[-1] == pytest.approx(0.0002, rel=0.25)
    assert all(ratio >= 3.5 for ratio in ratios)


def test_dpmpp_2m_loses_its_order_on_even_steps_of_t(start_and_truth):
    _, ratios = errors(dpmpp_2m_step, even_t, start_and_truth)
    assert all(ratio < 3 for ratio in ratios)


@pytest.mark.parametrize("bend", [lambda r: -1 / (2 * r), lambda r: 1 / r], ids=["sign", "1/r"])
def test_mutants_of_dpmpp_2m_are_of_first_order(bend, start_and_truth):
    _, ratios = errors(multistep(bend), even_log_snr, start_and_truth)
    assert all(ratio < 2.6 for ratio in ratios)


def test_dpmpp_2m_is_its_equation():
    x, path = noise(100), even_t(15)
    ours = sample(dpmpp_2m_step, EXACT, x, path)
    written = sample(multistep(lambda r: 1 / (2 * r)), EXACT, x, path)
    assert (ours - written).abs().max() < 1e-11


@pytest.mark.parametrize("pair", [(1000, 900), (500, 20), (1, 0)])
def test_the_first_step_of_dpmpp_2m_is_ddim(pair):
    here, there = map(SCHEDULE.level, pair)
    x = noisy_data(100, here)
    ours, ddim = drawn(dpmpp_2m_step, x, here, there), drawn(ddim_step, x, here, there)
    assert (ours - ddim).abs().max() < 1e-12


def test_a_level_given_twice_is_no_step_of_dpmpp_2m():
    levels = [SCHEDULE.level(t) for t in (900, 500, 500, 200, 0)]
    x = noisy_data(100, levels[0])
    twice = sample(dpmpp_2m_step, EXACT, x, levels)
    begun_anew = sample(dpmpp_2m_step, EXACT, x, levels[:2])
    begun_anew = sample(dpmpp_2m_step, EXACT, begun_anew, levels[2:])
    torch.testing.assert_close(twice, begun_anew)


def edm_sampler(D, y, ratios):
    """Karras et al. 2022, algorithm 1 without churn, in its own coordinates y = x / alpha."""
    for s, s_next in pairwise(ratios):
        d = (y - D(y, s)) / s
        y_next = y + (s_next - s) * d
        if s_next != 0:
            d_next = (y_next - D(y_next, s_next)) / s_next
            y_next = y + (s_next - s) * (d / 2 + d_next / 2)
        y = y_next
    return y


def test_heun_is_the_sampler_of_edm():
    calls = []
    path = [*karras(17), CLEAN]
    x = noise(200)
    ours = sample(heun_step, counted(EXACT, calls), x, path)
    theirs = edm_sampler(
        lambda y, s: EXACT(y / math.hypot(1, s), level_at(s)).x0,
        x / path[0].alpha,
        [level.sigma / level.alpha for level in path],
    )
    assert (ours - theirs).abs().max() < 1e-12
    assert len(calls) == 2 * 18 - 1
    # Mutant: Euler's step alone, which is DDIM.
    assert (sample(ddim_step, EXACT, x, path) - theirs).abs().max() > 0.01


# --- inversion ------------------------------------------------------------------------------------


def shifted(x, level):
    """Mutant: the network is told a time 20 too late."""
    eps = EXACT(x, SCHEDULE.level(min(level.t + 20, 1000))).eps
    return Prediction((x - level.sigma * eps) / level.alpha, eps)


def without_the_first_step(denoise, x0, path):
    """Mutant: the first climb, from the clean image, is left out."""
    for here, there in pairwise(path[-2::-1]):
        prediction = denoise(x0, here)
        x0 = there.alpha * prediction.x0 + there.sigma * prediction.eps
    return x0


def round_trip(invert, denoise, x0, steps):
    path = SCHEDULE.path(steps)
    return psnr(sample(ddim_step, EXACT, invert(denoise, x0, path), path), x0)


def exact_latent(x0):
    """Where the ODE takes x0: Heun upward, from a level so low that the image is still itself."""
    ratios = torch.logspace(-3, math.log10(157.405), 600).tolist()
    path = [level_at(ratio) for ratio in ratios] + [SCHEDULE.level(1000)]
    up = trajectory(
        None, EXACT, x0, path, climb=lambda x, here, there, _: heun_step(EXACT, x, here, there)[0]
    )
    *_, last = up
    return last.x


def test_inversion_reconstructs_better_with_every_doubling():
    x0 = data(1000)
    expected = {20: 30, 50: 37, 100: 42, 200: 48, 500: 56, 1000: 62}  # dB
    found = {steps: round_trip(invert, EXACT, x0, steps) for steps in expected}
    assert found == pytest.approx(expected, abs=1.5)
    assert found[100] - found[50] >= 4.5 and found[200] - found[100] >= 4.5
    # Control: an unrelated latent.
    assert psnr(sample(ddim_step, EXACT, noise(1000), SCHEDULE.path(50)), x0) < 8
    # Mutant: at 20 and 50 steps its PSNR is better than the right code's; then it stalls.
    mutant = {steps: round_trip(invert, shifted, x0, steps) for steps in (20, 50, 100, 200)}
    assert mutant[20] > found[20] and mutant[50] > found[50]
    assert mutant[100] - mutant[50] < 4.5 and mutant[200] - mutant[100] < 1


def test_the_latent_comes_twice_as_near_to_the_exact_one_with_every_doubling():
    x0 = data(1000)
    z = exact_latent(x0)

    def ladder(denoise):  # medians over the coordinates
        latents = (invert(denoise, x0, SCHEDULE.path(S)) for S in (50, 100, 200))
        return [(latent - z).abs().median().item() for latent in latents]

    found = ladder(EXACT)
    assert found == pytest.approx([0.042, 0.021, 0.011], rel=0.2)
    assert all(1.8 < coarse / fine < 2.2 for coarse, fine in pairwise(found))
    assert ladder(shifted) == pytest.approx([0.056, 0.070, 0.082], rel=0.15)  # Mutant: it grows.


def test_inversion_climbs_exactly_the_levels_that_sampling_goes_down():
    path, up, down = SCHEDULE.path(50), [], []
    x0 = data(100)
    sample(ddim_step, counted(EXACT, down), invert(counted(EXACT, up), x0, path), path)
    assert down == path[:-1] and len(up) == 50
    # eps at the level x is on: the clean image is shown as t = 1, the last level is only reached
    assert [level.t for level in up] == [1, *(level.t for level in path[-2:0:-1])]
    # Mutant: without the first climb nothing shows in the PSNR, only in the calls.
    found, mutant = (round_trip(f, EXACT, x0, 50) for f in (invert, without_the_first_step))
    assert abs(found - mutant) < 2
    up.clear()
    without_the_first_step(counted(EXACT, up), x0, path)
    assert len(up) == 49


def test_inversion_needs_a_path_that_reaches_the_clean_image():
    for path in ([SCHEDULE.level(500), SCHEDULE.level(1)], [CLEAN]):
        with pytest.raises(ValueError, match="expected a path that ends at t = 0"):
            invert(EXACT, data(1), path)


# --- RePaint on two correlated coordinates --------------------------------------------------------

RHO, KNOWN = 0.9, 1.5  # the law of the unknown coordinate: mean 1.350, deviation .436


def paste(x, level):
    """The known coordinate, at the level's noise."""
    x = x.clone()
    x[:, 0] = level.alpha * KNOWN + level.sigma * torch.randn(len(x), 1, 1, dtype=x.dtype)
    return x


def without_the_root(x, here, there, noise):
    """Mutant: the variance where its root belongs, the slip of RePaint's algorithm 1, line 5."""
    ratio = there.alpha / here.alpha
    return ratio * x + (there.sigma**2 - (ratio * here.sigma) ** 2) * noise


def repaint(steps, length, times, n=4000):
    """Mean and deviation of the coordinate that was painted in."""
    levels = SCHEDULE.path(steps, "linspace")[::-1]  # from clean to noisy
    path = [levels[k] for k in jumps(steps, length, times)]
    x = sample(correlated_step(RHO), None, noise(n), path, edit=paste, climb=renoise)
    assert (x[:, 0] == KNOWN).all()
    return x[:, 1].mean().item(), x[:, 1].std().item()


def painted_in(mean, std):
    """The verdict on an inpainting."""
    return 1.25 < mean < 1.40 and std < 0.50


@pytest.mark.parametrize("setting", [(50, 1, 10), (250, 10, 10)])
def test_repaint_with_resampling_finds_the_conditional_law(setting):
    mean, std = repaint(*setting, n=4000 if setting[0] == 50 else 1000)
    assert painted_in(mean, std)
    assert mean == pytest.approx(1.31, abs=0.04) and std == pytest.approx(0.45, abs=0.04)


@pytest.mark.parametrize("steps", [50, 250])
def test_repaint_without_resampling_does_not_however_slow(steps):
    mean, std = repaint(steps, 1, 1)
    assert not painted_in(mean, std)
    assert mean == pytest.approx(0.92, abs=0.04) and std > 0.53


def test_long_jumps_need_many_steps():
    assert not painted_in(*repaint(50, 10, 10))


def law_is_right(x, level):
    """The known coordinate has the mean alpha * KNOWN, the deviation sigma within 2%."""
    known = x[:, 0].flatten()
    mean_is_right = (known.mean() - level.alpha * KNOWN).abs() < 4 * level.sigma / len(x) ** 0.5
    return bool(mean_is_right) and abs(known.std().item() / level.sigma - 1) < 0.02


def test_known_pixels_have_the_law_of_their_level():
    levels = SCHEDULE.path(50, "linspace")[::-1]
    path = [levels[k] for k in jumps(50, 1, 2)][:-1]
    climbed = {renoise: [], without_the_root: []}

    def frames(up, edit=paste):
        def watched(x, here, there, noise):
            x = up(x, here, there, noise)
            climbed[up].append(law_is_right(x, there))
            return x

        return trajectory(correlated_step(RHO), None, noise(20000), path, edit=edit, climb=watched)

    assert all(law_is_right(frame.x, frame.level) for frame in frames(renoise))
    assert len(climbed[renoise]) == 49 and all(climbed[renoise])
    # Mutants: the climb without its root; and known pixels of the level above.
    list(frames(without_the_root))
    assert not any(climbed[without_the_root][-20:])
    late = frames(renoise, lambda x, level: paste(x, levels[min(levels.index(level) + 1, 50)]))
    assert not all(law_is_right(frame.x, frame.level) for frame in late)


# --- the walk -------------------------------------------------------------------------------------


def seeded(seed=3):
    return Generator().manual_seed(seed)


def pixelwise(x, level):
    """A denoiser that treats every pixel alike, so that batches change no rounding."""
    return from_eps(x, level, torch.tanh(x) * (0.5 + level.sigma))


@pytest.mark.parametrize("step", [SMALL, LARGE, DDIM_1], ids=["small", "large", "ddim eta 1"])
def test_a_seed_gives_the_same_image_alone_and_in_a_batch_of_16(step):
    path = SCHEDULE.path(10)

    def images(n):
        generators = per_image(seeded(), n)
        return sample(step, pixelwise, randn((n, 3, 8, 8), generators), path, generator=generators)

    batch = images(16)
    assert torch.equal(images(1), batch[:1]) and torch.equal(images(5), batch[:5])
    assert not torch.equal(batch[0], batch[1])

    # one generator is split in the same way; alone, image 5 needs generator 5
    x = randn((16, 3, 8, 8), seeded(1))
    many = sample(step, pixelwise, x, path, generator=seeded())
    fifth = per_image(seeded(), 16)[5:6]
    assert torch.equal(sample(step, pixelwise, x[:1], path, generator=seeded()), many[:1])
    assert torch.equal(sample(step, pixelwise, x[5:6], path, generator=fifth), many[5:6])

    def together(x):  # Mutant: one generator draws the noise of the whole batch.
        generator = seeded()
        for here, there in pairwise(path):
            x, _ = step(pixelwise, x, here, there, generator=generator)
        return x

    assert not torch.equal(together(x)[:1], together(x[:1]))


def test_climbing_by_renoise_is_settled_by_the_seed():
    levels = SCHEDULE.path(8)[::-1]
    path = [levels[k] for k in jumps(8, 2, 2)]
    x = randn((4, 3, 8, 8), seeded(1))

    def images(x, climb):
        return sample(ddim_step, pixelwise, x, path, climb=climb, generator=seeded())

    assert torch.equal(images(x, renoise), images(x, renoise))
    assert torch.equal(images(x, renoise)[:1], images(x[:1], renoise))

    # Mutant: noise of torch's own state.
    def careless(x, here, there, noise):
        return renoise(x, here, there, torch.randn_like(x))

    assert not torch.equal(images(x, careless), images(x, careless))


def test_a_climb_is_given_standard_normal_noise_of_its_own():
    levels, given = SCHEDULE.path(8)[::-1], []

    def watched(x, here, there, noise):
        given.append(noise)
        return renoise(x, here, there, noise)

    x = randn((4, 3, 8, 8), seeded(1))
    path = [levels[k] for k in jumps(8, 2, 3)]
    sample(ddim_step, pixelwise, x, path, climb=watched, generator=seeded())
    assert len(given) == sum(climbs(here, there) for here, there in pairwise(path)) == 12
    every = torch.stack(given)
    assert every.shape[1:] == x.shape and len({noise.sum().item() for noise in given}) == 12
    assert abs(every.mean()) < 0.05 and abs(every.std() - 1) < 0.05


def test_a_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="2 generators for 3 images: expected one an image"):
        sample(SMALL, EXACT, noise(3), SCHEDULE.path(2), generator=[seeded(), seeded()])


def test_frames_hold_every_move_its_level_and_its_prediction():
    path = SCHEDULE.path([1000, 500, 250, 500, 250, 0])
    edited = []

    def edit(x, level):
        edited.append(level)
        return x + 1

    x = noise(4)
    frames = list(trajectory(ddim_step, EXACT, x, path, edit=edit, climb=renoise))
    assert [frame.level for frame in frames] == edited == path[1:]
    assert [frame.before for frame in frames] == path[:-1]
    assert [frame.prediction is None for frame in frames] == [False, False, True, False, False]
    torch.testing.assert_close(frames[0].prediction, EXACT(x, path[0]))
    torch.testing.assert_close(frames[0].x, ddim_step(EXACT, x, *path[:2])[0] + 1)
    for frame, earlier in zip(frames[1:], frames, strict=False):
        if frame.prediction is not None:  # it was made at the level before the move
            torch.testing.assert_close(frame.prediction, EXACT(earlier.x, frame.before))
    torch.manual_seed(0)
    last = sample(ddim_step, EXACT, x, path, edit=edit, climb=renoise)
    torch.manual_seed(0)
    *_, frame = trajectory(ddim_step, EXACT, x, path, edit=edit, climb=renoise)
    assert torch.equal(last, frame.x)


def test_a_step_is_given_the_past_and_forgets_it_on_a_climb():
    pasts = []

    def step(denoise, x, here, there, past=(), *, generator=None):
        pasts.append([level.t for level, _ in past])
        return ddim_step(denoise, x, here, there)

    path = SCHEDULE.path([900, 600, 300, 600, 300, 0])
    list(trajectory(step, EXACT, noise(2), path, climb=renoise))
    assert pasts == [[], [900], [], [600]]


@pytest.mark.parametrize("step", [heun_step, dpmpp_2m_step], ids=["heun", "2m"])
def test_the_spacing_that_a_step_brings_is_the_best_one_for_it(step, start_and_truth):
    """30 steps from noise to the clean image, against where the exact ODE ends."""
    z, _ = start_and_truth
    truth = sample(heun_step, EXACT, z, [*karras(300), CLEAN])
    error = {
        spacing: distance(sample(step, EXACT, z, SCHEDULE.path(30, spacing)), truth)
        for spacing in ("trailing", "leading", "linspace", "log_snr")
    }
    best = error.pop(spacing_for(step))
    assert best < 0.75 * min(error.values()) and best < 0.2 * error["trailing"]


def test_a_path_that_climbs_or_goes_nowhere_is_refused():
    with pytest.raises(ValueError, match="climbs from t = 250 to 500: pass climb="):
        sample(ddim_step, EXACT, noise(1), SCHEDULE.path([500, 250, 500, 0]))
    with pytest.raises(ValueError, match="a path of 1 levels goes nowhere: expected at least 2"):
        sample(ddim_step, EXACT, noise(1), SCHEDULE.path([500]))


@pytest.mark.parametrize(
    "step",
    [SMALL, LARGE, ddim_step, DDIM_1, heun_step, dpmpp_2m_step],
    ids=["small", "large", "ddim", "ddim eta 1", "heun", "2m"],
)
def test_gradients_flow_through_a_trajectory(step):
    x = noise(3).requires_grad_()

    def end(x):
        *_, last = trajectory(
            step, EXACT, x, SCHEDULE.path(4), edit=lambda x, _: 1.1 * x, generator=seeded()
        )
        return last.x

    assert torch.autograd.gradcheck(end, (x,))  # against finite differences
    assert not sample(step, EXACT, x, SCHEDULE.path(4)).requires_grad


def test_progress_shows_a_bar_and_changes_nothing(capsys):
    x, path = noise(2), SCHEDULE.path(3)
    shown = sample(ddim_step, EXACT, x, path, progress=True)
    assert "sampling" in (err := capsys.readouterr().err) and "3/3" in err
    assert torch.equal(shown, sample(ddim_step, EXACT, x, path))
    assert capsys.readouterr().err == ""
