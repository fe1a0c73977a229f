"""Every step, inversion, jumps, guidance and training on every kind of schedule, against the truth.

Each check has a mutant beside it, most of them the old assumption alpha^2 + sigma^2 = 1, which must
fail.
"""

import math
from functools import partial
from itertools import pairwise

import exact
import pytest
import torch
from torch import Generator, nn

from minidiff.condition import Condition
from minidiff.denoiser import (
    PARAMETRISATIONS,
    Prediction,
    as_denoiser,
    denoising_loss,
    min_snr_weight,
    network_time,
)
from minidiff.guidance import classifier, weighted_prompts
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
from minidiff.schedule import NoiseLevel, NoiseSchedule, add_noise, jumps, renoise, transition
from minidiff.zoo import Diffusion

SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "cosine": NoiseSchedule.cosine(),
    "ve": NoiseSchedule.ve(),
    "flow": NoiseSchedule.flow(),
}
MEAN, STD = 0.3, 0.5  # the data: independent pixels
pytestmark = pytest.mark.usefixtures("one_thread")  # small tensors: threads only wait
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
new = pytest.mark.parametrize("schedule", [SCHEDULES["ve"], SCHEDULES["flow"]], ids=["ve", "flow"])


def denoise(x, level):
    """The exact denoiser of N(MEAN, STD^2)."""
    variance = level.alpha**2 * STD**2 + level.sigma**2
    offset = (x - level.alpha * MEAN) / variance
    return Prediction(MEAN + level.alpha * STD**2 * offset, level.sigma * offset)


def marginal(level, seed=0):
    """Draws of x at a level, as one image of 160 x 160 pixels."""
    generator = Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 1, 1, 160, 160, generator=generator, dtype=torch.float64)
    return level.alpha * (MEAN + STD * x0[None]) + level.sigma * eps[None]


def solution(x, here, there):
    """Where the probability-flow equation takes x: it keeps the number of standard deviations."""
    spread = [math.sqrt(level.alpha**2 * STD**2 + level.sigma**2) for level in (here, there)]
    return there.alpha * MEAN + (x - here.alpha * MEAN) * spread[1] / spread[0]


# --- the samplers ---------------------------------------------------------------------------------

STEPS = {
    "ddpm": ddpm_step,
    "ddpm, large variance": partial(ddpm_step, variance="large"),
    "ddim": ddim_step,
    "ddim, eta 0.5": partial(ddim_step, eta=0.5),
    "ddim, eta 1": partial(ddim_step, eta=1.0),
    "heun": heun_step,
    "2m": dpmpp_2m_step,
}


def old_ddpm_step(denoise, x, here, there, past=(), *, generator=None):
    """Mutant: beta = 1 - ratio^2, which holds where the variance is preserved."""
    prediction = denoise(x, here)
    if there.sigma == 0:
        return prediction.x0, prediction
    ratio = here.alpha / there.alpha
    beta = 1 - ratio**2
    mean = there.alpha * beta / here.sigma**2 * prediction.x0
    mean = mean + ratio * there.sigma**2 / here.sigma**2 * x
    noise = torch.randn(x.shape, generator=generator[0], dtype=x.dtype)
    return mean + math.sqrt(beta) * there.sigma / here.sigma * noise, prediction


def drawn(step, schedule, steps, spacing=None):
    """Mean and standard deviation of samples along the path that suits the step."""
    path = schedule.path(steps, spacing or spacing_for(step))
    x = sample(step, denoise, marginal(path[0]), path, generator=Generator().manual_seed(1))
    return x.mean().item(), x.std().item()


def fits(found, tolerance):
    mean, std = found
    return abs(mean / MEAN - 1) < tolerance and abs(std / STD - 1) < tolerance


@every
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_samples_have_the_mean_and_the_standard_deviation_of_the_data(step, schedule):
    """Within 2% at 200 steps. Ancestral steps take x0 for known, which narrows what they draw by an
    error of first order, largest on the linear schedule: 5% at 200 steps, 2% at 800."""
    if "ddpm" in str(step) or "eta" in str(step):
        assert fits(drawn(step, schedule, 200), 0.05)
        assert fits(drawn(step, schedule, 800), 0.02)
    else:
        assert fits(drawn(step, schedule, 200), 0.02)


@new
def test_the_old_variance_of_ddpm_fails_off_its_home_ground(schedule):
    found = drawn(old_ddpm_step, schedule, 200)
    assert not all(map(math.isfinite, found)) or not fits(found, 0.1)
    assert fits(drawn(old_ddpm_step, SCHEDULES["cosine"], 400), 0.02)


def errors(step, schedule, counts, spacing="log_snr"):
    """The root mean square distance to the exact solution, down to t = 1."""
    found = []
    for steps in counts:
        path = schedule.path(steps, spacing)[:-1]
        x = marginal(path[0])
        truth = solution(x, path[0], path[-1])
        found.append((sample(step, denoise, x, path) - truth).square().mean().sqrt().item())
    return found


@every
@pytest.mark.parametrize(
    ("step", "order"),
    [(ddim_step, 1), (heun_step, 2), (dpmpp_2m_step, 2)],
    ids=["ddim", "heun", "2m"],
)
def test_orders_of_convergence(step, order, schedule):
    found = errors(step, schedule, (25, 50, 100, 200))
    for coarse, fine in pairwise(found[1:]):
        assert 0.75 * 2**order < coarse / fine < 1.35 * 2**order, found
    assert found[-1] < (0.02 if order == 1 else 0.002)


def test_ddim_on_a_flow_schedule_is_eulers_step():
    flow = SCHEDULES["flow"]
    here, there = flow.level(700), flow.level(650)
    x = marginal(here)
    moved, prediction = ddim_step(denoise, x, here, there)
    velocity = prediction.eps - prediction.x0
    torch.testing.assert_close(moved, x + (there.sigma - here.sigma) * velocity)
    wrong = x + (here.sigma - there.sigma) * velocity  # Mutant: time runs the other way
    assert (moved - wrong).abs().max() > 0.01


@pytest.mark.parametrize("step", [ddim_step, heun_step, dpmpp_2m_step, ddpm_step])
def test_sampling_starts_from_pure_noise_where_nothing_is_left_of_the_image(step):
    """alpha = 0 at T: every step is finite, and the deterministic ones begin with DDIM's step."""
    flow = SCHEDULES["flow"]
    top, below = flow.level(1000), flow.level(950)
    assert top.alpha == 0
    moved, prediction = step(denoise, marginal(top), top, below)
    assert moved.isfinite().all()
    if step is not ddpm_step:
        torch.testing.assert_close(moved, add_noise(prediction.x0, below, prediction.eps))


def test_a_network_of_eps_is_refused_at_pure_noise_in_one_sentence():
    flow = SCHEDULES["flow"]
    eps = as_denoiser(lambda x, t, condition: x, predicts="eps")
    with pytest.raises(ValueError, match="t = 1000 is pure noise .* leaves x0 open: expected"):
        sample(ddim_step, eps, torch.randn(1, 1, 2, 2), flow.path(5))


def test_each_step_brings_its_spacing():
    def own(*_, **__):
        """A step of the user's."""

    own.spacing = "linspace"
    steps = (ddim_step, ddpm_step, heun_step, dpmpp_2m_step, partial(ddim_step, eta=1), own)
    expected = ["trailing", "trailing", "log_snr", "log_snr", "trailing", "linspace"]
    assert [spacing_for(step) for step in steps] == expected
    assert spacing_for(partial(partial(own), x=1)) == "linspace"


# --- the past of a step, and the fields of a frame ------------------------------------------------


def test_the_past_holds_three_steps_and_ends_at_a_climb():
    schedule, seen = SCHEDULES["linear"], []

    def step(denoise, x, here, there, past=(), *, generator=None):
        seen.append([level.t for level, _ in past])
        return ddim_step(denoise, x, here, there)

    path = schedule.path([900, 700, 500, 300, 200, 400, 100, 0])
    list(trajectory(step, denoise, marginal(path[0]), path, climb=renoise))
    assert seen == [[], [900], [900, 700], [900, 700, 500], [], [400]]


def test_a_frame_names_the_level_its_prediction_was_made_at():
    schedule = SCHEDULES["flow"]
    path = schedule.path([800, 500, 600, 0])
    frames = list(trajectory(ddim_step, denoise, marginal(path[0]), path, climb=renoise))
    assert [(f.before.t, f.level.t) for f in frames] == [(800, 500), (500, 600), (600, 0)]
    down, up, last = frames
    assert up.prediction is None
    torch.testing.assert_close(
        down.prediction, denoise(marginal(path[0]), down.before), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(last.x, denoise(up.x, last.before).x0)


# --- transitions, jumps, inversion ----------------------------------------------------------------


@every
def test_transitions_compose(schedule):
    low, middle, high = (schedule.level(t) for t in (0, 310, 777.5))
    (first, v1), (second, v2) = transition(low, middle), transition(middle, high)
    ratio, variance = transition(low, high)
    assert first * second == pytest.approx(ratio, rel=1e-9)
    assert second**2 * v1 + v2 == pytest.approx(variance, rel=1e-9)
    assert (ratio, variance) == pytest.approx((high.alpha, high.sigma**2))  # q(x_t | x_0)
    with pytest.raises(ValueError, match="t = 310 must be noisier than t = 777.5"):
        transition(high, middle)
    mutant = 1 - (high.alpha / middle.alpha) ** 2  # holds where the variance is preserved
    assert (mutant == pytest.approx(v2, rel=1e-6)) == schedule.preserves_variance


def test_a_transition_of_training_levels():
    low, high = (SCHEDULES["ve"].level(torch.tensor([t, t])) for t in (10, 900))
    ratio, variance = transition(low, high)
    assert ratio.shape == variance.shape == (2, 1, 1, 1)
    number = transition(SCHEDULES["ve"].level(10), SCHEDULES["ve"].level(900))
    assert (ratio[0].item(), variance[0].item()) == pytest.approx(number, rel=1e-5)


def test_nothing_is_noisier_than_pure_noise():
    top = SCHEDULES["flow"].level(1000)
    with pytest.raises(ValueError, match="t = 1000 is pure noise"):
        transition(top, top)


@every
def test_a_path_with_jumps_keeps_the_law(schedule):
    levels = schedule.path(100, "log_snr")[::-1]
    path = [levels[k] for k in jumps(100, 10, 3)]

    def law(climb):
        x = sample(
            heun_step,
            denoise,
            marginal(path[0]),
            path,
            climb=climb,
            generator=Generator().manual_seed(3),
        )
        return x.mean().item(), x.std().item()

    assert fits(law(renoise), 0.02)

    def without_the_root(x, here, there, noise):  # Mutant
        ratio, variance = transition(here, there)
        return ratio * x + variance * noise

    assert not fits(law(without_the_root), 0.02)


@every
def test_inversion_reads_the_clean_image_at_the_schedules_own_lowest_level(schedule):
    asked, path = [], schedule.path(200, "log_snr")

    def watched(x, level):
        asked.append(level)
        return denoise(x, level)

    x0 = marginal(schedule.level(0))
    noise = invert(watched, x0, path)
    assert asked[0] == schedule.level(1) and len(asked) == 200
    assert (solution(x0, path[-1], path[0]) - noise).abs().max() < 0.05 * noise.abs().max()
    again, other = (sample(ddim_step, denoise, z, path) for z in (noise, noise.roll(1, -1)))
    assert (again - x0).square().mean().sqrt() < 0.03
    assert (other - x0).square().mean().sqrt() > 0.5  # Control: another pixel's noise


def test_inversion_of_a_path_without_a_schedule_reads_at_its_own_lowest_level():
    path, asked = [NoiseLevel(5, 0.6, 0.8), NoiseLevel(2, 0.9, 0.4), NoiseLevel(0, 1.0, 0.0)], []

    def watched(x, level):
        asked.append(level.t)
        return denoise(x, level)

    invert(watched, marginal(path[-1]), path)
    assert asked == [2, 2]


# --- levels ---------------------------------------------------------------------------------------


@every
def test_float_tensors_give_the_levels_that_numbers_give(schedule):
    t = torch.tensor([0.0, 0.25, 1.0, 1.5, 250.5, 999.0, 999.5, 1000.0])
    level = schedule.level(t)
    assert level.alpha.shape == (8, 1, 1, 1) and level.alpha.dtype == torch.float32
    numbers = [schedule.level(float(one)) for one in t]
    for part in ("t", "alpha", "sigma"):
        expected = torch.tensor([float(getattr(number, part)) for number in numbers])
        torch.testing.assert_close(getattr(level, part).flatten(), expected, rtol=1e-6, atol=1e-7)
    ratios = [number.sigma / max(number.alpha, 1e-300) for number in numbers]
    assert ratios == sorted(ratios)
    if schedule.preserves_variance:
        norm = [number.alpha**2 + number.sigma**2 for number in numbers]
        assert norm == pytest.approx([1] * 8, abs=1e-12)


def test_flow_and_ve_are_their_formulas():
    flow, ve = NoiseSchedule.flow(1000), NoiseSchedule.ve(1000, 0.02, 80.0)
    for t in (0, 0.5, 1, 1.5, 250.5, 1000):
        assert tuple(flow.level(t)) == pytest.approx((t, 1 - t / 1000, t / 1000), abs=1e-12)
    assert [ve.level(t).alpha for t in (0, 1, 500.5, 1000)] == [1, 1, 1, 1]
    assert [ve.level(t).sigma for t in (0, 1, 1000)] == pytest.approx([0, 0.02, 80], abs=1e-12)
    middle = ve.level(500.5).sigma
    assert middle == pytest.approx(math.sqrt(0.02 * 80), rel=1e-4)
    with pytest.raises(ValueError, match="use alpha, sigma"):
        flow.alpha_bar  # noqa: B018


@every
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "log_snr"])
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_paths_go_down_to_the_clean_image(schedule, spacing, steps):
    path = schedule.path(steps, spacing)
    ratios = [level.sigma / max(level.alpha, 1e-300) for level in path]
    assert len(path) == steps + 1 and path[-1][1:] == (1, 0)
    assert all(a > b for a, b in pairwise(ratios))
    if spacing == "log_snr" and steps > 3:
        inner = [math.log(level.alpha / level.sigma) for level in path[1:-1]]
        gaps = [b - a for a, b in pairwise(inner)]
        assert max(gaps) / min(gaps) < 1.02


@pytest.mark.parametrize(
    ("alpha", "sigma", "words"),
    [
        ([1.0, 0.5], [0.0, 0.5, 1.0], "two tables of one length"),
        ([0.9, 0.5], [0.0, 0.5], "begin with the clean image"),
        ([1.0, 0.5], [0.1, 0.5], "begin with the clean image"),
        ([1.0, 0.5, 0.6], [0.0, 0.5, 0.5], "must rise strictly"),
        ([1.0, 0.0, 0.0], [0.0, 0.5, 1.0], "must rise strictly"),
        ([1.0, math.nan], [0.0, 1.0], "must rise strictly"),
        ([1.0, 0.5], [0.0, math.inf], "must rise strictly"),
    ],
)
def test_bad_tables_are_refused(alpha, sigma, words):
    with pytest.raises(ValueError, match=words):
        NoiseSchedule(alpha, sigma)


# --- parametrisations -----------------------------------------------------------------------------


@every
@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
def test_an_output_on_target_is_read_as_the_truth(predicts, schedule):
    x0, eps = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    for t in (1, 400, 999.5):
        level = schedule.level(t)
        read, target = PARAMETRISATIONS[predicts]
        found = read(add_noise(x0, level, eps), level, target(x0, eps, level))
        torch.testing.assert_close(found, Prediction(x0, eps), rtol=1e-9, atol=1e-7)


def test_reading_v_as_if_the_variance_were_preserved_fails():
    x0, eps = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    level = SCHEDULES["flow"].level(400)
    x, v = add_noise(x0, level, eps), level.alpha * eps - level.sigma * x0
    mutant = level.alpha * x - level.sigma * v
    assert (mutant - x0).abs().max() > 0.1


@every
@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
def test_min_snr_weights_are_those_of_the_x0_loss(predicts, schedule):
    """An error d of x0 costs min(SNR, gamma) d^2, whatever is predicted."""
    t = torch.tensor([1, 100, 500, 900])
    level = schedule.level(t)
    x0, eps = torch.randn(2, 4, 1, 3, 3)
    d = 0.1 * torch.randn(4, 1, 3, 3)
    target = PARAMETRISATIONS[predicts].target
    off = target(x0 + d, eps - level.alpha / level.sigma * d, level) - target(x0, eps, level)
    cost = min_snr_weight(level, predicts=predicts) * off.square().mean((1, 2, 3))
    snr = (level.alpha / level.sigma).flatten() ** 2
    torch.testing.assert_close(
        cost, snr.clamp(max=5) * d.square().mean((1, 2, 3)), rtol=2e-2, atol=0
    )


@every
def test_the_loss_of_the_truth_is_zero_with_continuous_times(schedule):
    x0, eps = torch.randn(2, 6, 2, 4, 4)
    level = schedule.level(torch.rand(6) * 998 + 1)
    for predicts, (_, target) in PARAMETRISATIONS.items():
        truth = target(x0, eps, level)
        loss = denoising_loss(lambda x, t, c, out=truth: out, x0, level, eps, predicts=predicts)
        assert loss == 0
        wrong = denoising_loss(lambda x, t, c, out=truth: -out, x0, level, eps, predicts=predicts)
        assert wrong > 0.1


def test_networks_are_told_fractional_times():
    x = torch.zeros(3, 1, 2, 2)
    flow = NoiseSchedule.flow()
    for t, told in ((0, 0), (0.25, -0.75), (0.5, -0.5), (1, 0), (1.5, 0.5), (1000, 999)):
        assert network_time(x, flow.level(t)).tolist() == [told] * 3
    times = torch.tensor([0.0, 0.25, 700.5])
    assert network_time(x, flow.level(times)).tolist() == [0, -0.75, 699.5]


# --- guidance, and every field of a condition -----------------------------------------------------


@every
def test_the_exact_classifier_turns_unconditional_into_conditional(schedule):
    unconditional, conditional = exact.mixture(), exact.mixture(exact.CLASS)
    for t in (1, 200, 600, 999):
        level = schedule.level(t)
        x = exact.noisy_data(200, level)
        guided = classifier(unconditional, exact.log_class, 1.0)(x, level)
        torch.testing.assert_close(guided, conditional(x, level), rtol=1e-6, atol=1e-6)
    mutant = classifier(unconditional, exact.log_class, -1.0)(x, level)
    assert (mutant.x0 - conditional(x, level).x0).abs().max() > 0.1


def test_guidance_by_a_gradient_leaves_pure_noise_alone():
    flow = SCHEDULES["flow"]
    x = exact.noise(5)
    guided = classifier(exact.mixture(), exact.log_class, 2.0)(x, flow.level(1000))
    torch.testing.assert_close(guided, exact.mixture()(x, flow.level(1000)))


WEIGHTS = torch.tensor([exact.WEIGHTS, exact.CLASS, (0.0, 0.0, 0.0, 1.0)], dtype=torch.float64)


class Modes(nn.Module):
    """The exact network of the mixture: a condition says which modes there are, by any field."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.anchor = schedule, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def weights(self, condition):
        label, vector, tokens, image = condition
        if label is not None:
            return WEIGHTS[label]  # (B,4)
        if vector is not None:
            return vector
        return tokens.sum(1) if tokens is not None else image.flatten(1)

    def forward(self, x, t, condition):
        level = self.schedule.level(t + 1)
        level = NoiseLevel(*(part.double() for part in level))
        weights = self.weights(condition)
        found = exact.mixture(weights.T)(x, level)
        return found.eps - found.x0


def as_fields(label):
    """The same condition said by each field."""
    weights = WEIGHTS[label]
    return {
        "label": Condition(label=label),
        "vector": Condition(vector=weights),
        "tokens": Condition(tokens=torch.stack([weights / 4] * 4, dim=1)),
        "image": Condition(image=weights.reshape(-1, 4, 1, 1)),
    }


@new
@pytest.mark.parametrize("field", Condition._fields)
def test_each_field_of_a_condition_asks_for_its_modes(field, schedule):
    n = 300
    label = torch.arange(n) % 3
    model = Diffusion(Modes(schedule).double(), schedule, "flow", (2, 1, 1), decoder=Raw())
    condition = as_fields(label)[field]
    drawn = model.sample(condition, steps=40, step=heun_step, batch=128)
    assert exact.within_std(drawn) == pytest.approx(exact.STD, rel=0.1)
    modes = (drawn.flatten(1)[:, None] - exact.MEANS).pow(2).sum(2).argmin(1)  # (n,)
    asked = WEIGHTS[label]
    assert (asked[torch.arange(n), modes] > 0).double().mean() > 0.98
    shares = torch.stack([(modes[label == 0] == k).double().mean() for k in range(4)])
    assert (shares - WEIGHTS[0]).abs().max() < 0.15
    exchanged = WEIGHTS[label.roll(1)]  # Mutant: another image's row
    assert (exchanged[torch.arange(n), modes] > 0).double().mean() < 0.75


class Raw:
    """A decoder that changes nothing: points of the plane are not clamped to [-1, 1]."""

    def encode(self, images):
        return images

    def decode(self, latents):
        return latents


@pytest.mark.parametrize("field", Condition._fields)
def test_weighted_conditions_are_the_mixture_of_separate_ones_in_any_field(field):
    schedule = SCHEDULES["flow"]
    network, level = Modes(schedule), schedule.level(600)
    x = exact.noisy_data(30, level)
    asked, null = (as_fields(torch.full((30,), k))[field] for k in (1, 0))
    at_once = weighted_prompts(network, [asked], [3.0], null, predicts="flow")(x, level)
    one, other = (as_denoiser(network, c, predicts="flow")(x, level) for c in (asked, null))
    expected = Prediction(*(3 * a - 2 * b for a, b in zip(one, other, strict=True)))
    torch.testing.assert_close(at_once, expected, rtol=1e-4, atol=1e-4)
    swapped = Prediction(*(3 * b - 2 * a for a, b in zip(one, other, strict=True)))  # Mutant
    assert (swapped.x0 - at_once.x0).abs().max() > 0.05
