"""Predictions as pairs, networks as denoisers, and the loss."""

import pytest
import torch
from exact import CLASS, SCHEDULE, mixture, noise, noisy_data
from exact import network as exact_network

from minidiff.condition import Condition
from minidiff.denoiser import (
    PARAMETRISATIONS,
    Prediction,
    as_denoiser,
    denoising_loss,
    from_eps,
    from_flow,
    from_v,
    from_x0,
    min_snr_weight,
    parametrisation,
)
from minidiff.schedule import NoiseLevel, NoiseSchedule

LEVEL = SCHEDULE.level(400)
RED = Condition(label=torch.tensor([1]))
KINDS = ("eps", "x0", "v", "flow")
SCHEDULES = {"linear": SCHEDULE, "flow": NoiseSchedule.flow(), "ve": NoiseSchedule.ve()}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def outputs(prediction, level):
    """What a network of each kind would return to mean this prediction."""
    x0, eps = prediction
    return {
        "eps": eps,
        "x0": x0,
        "v": level.alpha * eps - level.sigma * x0,
        "flow": eps - x0,
    }


def apart(a, b):
    """The largest difference of two pairs."""
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


# --- predictions ----------------------------------------------------------------------------------


@each_schedule
@pytest.mark.parametrize("t", [1, 400, 999, 1000])
def test_eps_x0_v_and_flow_tell_the_same_pair(schedule, t):
    level = schedule.level(t)
    x0, eps = noise(20), noise(20)
    x = level.alpha * x0 + level.sigma * eps
    out = outputs(Prediction(x0, eps), level)
    readers = {"eps": from_eps, "x0": from_x0, "v": from_v, "flow": from_flow}
    if level.alpha == 0:  # eps leaves x0 open there: refused, see below
        del readers["eps"]
    for kind, read in readers.items():
        assert PARAMETRISATIONS[kind].read is read is parametrisation(kind).read
        pair = read(x, level, out[kind])
        torch.testing.assert_close(pair, Prediction(x0, eps), rtol=0, atol=1e-10)
        target = PARAMETRISATIONS[kind].target(x0, eps, level)
        torch.testing.assert_close(target, out[kind], rtol=0, atol=1e-12)
    # Mutants: the other sign of v and of the velocity.
    for kind in ("v", "flow"):
        assert apart(readers[kind](x, level, -out[kind]), Prediction(x0, eps)) > 0.01
    if t == 400:  # Mutant: v read as if alpha^2 + sigma^2 were 1.
        naive = level.alpha * x - level.sigma * out["v"]
        assert ((naive - x0).abs().max() > 0.01) != schedule.preserves_variance


def test_the_table_knows_four_kinds():
    assert tuple(PARAMETRISATIONS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_training_levels_are_read_as_numbers_are(kind):
    x, out = torch.randn(2, 2, 3, 4, 4)
    levels = SCHEDULE.level(torch.tensor([5, 900]))
    together = PARAMETRISATIONS[kind].read(x, levels, out)
    for i, t in enumerate((5, 900)):
        alone = PARAMETRISATIONS[kind].read(x[i], SCHEDULE.level(t), out[i])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-4, atol=1e-4)


def test_a_network_is_given_t_minus_one_and_its_condition():
    calls = []

    def network(x, t, condition):
        calls.append((t, condition))
        return torch.zeros_like(x)

    denoise = as_denoiser(network, RED)
    for t in (1000, 1, 0, 500.5):
        denoise(noise(2), SCHEDULE.level(t))
    denoise(noise(3), SCHEDULE.level(torch.tensor([7, 1000, 1])))
    times, conditions = zip(*calls, strict=True)
    assert [t.tolist() for t in times] == [[999, 999], [0, 0], [0, 0], [499.5, 499.5], [6, 999, 0]]
    assert [t.dtype for t in times[:4]] == [torch.int64] * 3 + [torch.float32]
    assert all(condition is RED for condition in conditions)


@pytest.mark.parametrize("predicts", KINDS)
def test_a_network_of_any_kind_becomes_the_same_denoiser(predicts):
    exact, x = mixture(CLASS), noisy_data(50, LEVEL)
    denoise = as_denoiser(
        lambda x, t, c: outputs(exact(x, LEVEL), LEVEL)[predicts], predicts=predicts
    )
    torch.testing.assert_close(denoise(x, LEVEL), exact(x, LEVEL), rtol=0, atol=1e-12)
    # Mutant: read as another kind of network.
    other = {"eps": "v", "x0": "eps", "v": "flow", "flow": "x0"}[predicts]
    wrong = as_denoiser(lambda x, t, c: outputs(exact(x, LEVEL), LEVEL)[predicts], predicts=other)
    assert (wrong(x, LEVEL).x0 - exact(x, LEVEL).x0).abs().max() > 0.1


def test_the_condition_goes_to_the_network():
    weights = torch.tensor([CLASS] * 50, dtype=torch.float64)
    x = noisy_data(50, LEVEL)
    prediction = as_denoiser(exact_network, Condition(vector=weights))(x, LEVEL)
    torch.testing.assert_close(prediction, mixture(CLASS)(x, LEVEL), rtol=0, atol=1e-10)


def test_a_tap_sees_the_level_and_changes_the_output():
    def network(x, t, condition, tap=lambda site, value: value):
        return tap("mid", x)

    seen = []

    def double(level, site, value):
        seen.append((level, site))
        return 2 * value

    x = noise(4)
    assert torch.equal(as_denoiser(network)(x, LEVEL).eps, x)
    assert torch.equal(as_denoiser(network, tap=double)(x, LEVEL).eps, 2 * x)
    assert seen == [(LEVEL, "mid")]


# --- the loss -------------------------------------------------------------------------------------


def batch(n=64):
    """(x0, levels, noise) of n images at n levels, in float64."""
    t = torch.randint(1, 1001, (n,))
    parts = (part.reshape(-1, 1, 1, 1) for part in (t, SCHEDULE.alpha[t], SCHEDULE.sigma[t]))
    return torch.randn(n, 3, 4, 4).double(), NoiseLevel(*parts), torch.randn(n, 3, 4, 4).double()


def losses(weights_of):
    """The loss of one wrong prediction, told as each kind; `weights_of` picks the weights."""
    torch.manual_seed(1)
    x0, level, z = batch()
    x = level.alpha * x0 + level.sigma * z
    told = outputs(from_eps(x, level, z + 0.3 * torch.randn_like(z)), level)
    return {
        kind: denoising_loss(
            lambda x, t, c, out=told[kind]: out,
            x0,
            level,
            z,
            predicts=kind,
            weight=min_snr_weight(level, predicts=weights_of[kind]),
        ).item()
        for kind in told
    }


def test_the_loss_is_zero_for_the_truth_and_the_mean_square_otherwise():
    x0, level, z = batch(8)
    for kind, truth in outputs(Prediction(x0, z), level).items():
        assert denoising_loss(lambda x, t, c, o=truth: o, x0, level, z, predicts=kind) < 1e-12
        loss = denoising_loss(lambda x, t, c, o=truth: o + 0.5, x0, level, z, predicts=kind)
        assert loss.item() == pytest.approx(0.25, rel=1e-5)
    # Mutant: a network trained on another target is wrong.
    assert denoising_loss(lambda x, t, c: z, x0, level, z, predicts="v") > 0.5


def test_the_network_sees_the_noisy_image_its_time_and_its_condition():
    x0, level, z = batch(8)

    def network(x, t, condition):
        torch.testing.assert_close(x, level.alpha * x0 + level.sigma * z)
        assert t.tolist() == (level.t.flatten() - 1).tolist() and condition is RED
        return z

    assert denoising_loss(network, x0, level, z, RED) < 1e-12


def test_the_loss_keeps_double_precision():
    x0 = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    off = torch.full_like(x0, 1e-9)  # lost if the loss were in single precision
    level, ones = SCHEDULE.level(torch.tensor([5, 900])), torch.ones_like(x0)
    loss = denoising_loss(lambda x, t, condition: ones + off, x0, level, ones)
    assert loss.item() == pytest.approx(1e-18, rel=1e-6)


def test_weights_count_image_by_image():
    x0, level, z = batch(4)
    error = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1, 1)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0])
    loss = denoising_loss(lambda x, t, c: z + error, x0, level, z, weight=weight)
    assert loss.item() == pytest.approx((1 * 1 + 2 * 9) / 4, rel=1e-5)


def test_min_snr_weights_make_the_four_losses_one():
    right = losses({kind: kind for kind in KINDS})
    for kind in KINDS:
        assert right[kind] == pytest.approx(right["eps"], rel=1e-4)
    # Mutant: the weights of another target.
    wrong = losses({"eps": "v", "x0": "eps", "v": "flow", "flow": "x0"})
    for kind in right:
        assert abs(wrong[kind] / right[kind] - 1) > 0.1


def test_min_snr_weights_are_those_of_the_paper():
    level = SCHEDULE.level(torch.tensor([1, 200, 400, 1000]))
    snr = (level.alpha / level.sigma).flatten() ** 2
    capped = snr.clamp(max=5)
    assert snr[0] > 5 > snr[-1]
    torch.testing.assert_close(min_snr_weight(level, predicts="eps"), capped / snr)
    torch.testing.assert_close(min_snr_weight(level, predicts="x0"), capped)
    torch.testing.assert_close(min_snr_weight(level, predicts="v"), capped / (snr + 1))
    carried = (snr.sqrt() + 1) ** 2  # an error d of x0 is one of d * (alpha/sigma + 1) here
    torch.testing.assert_close(min_snr_weight(level, predicts="flow"), capped / carried)
    assert min_snr_weight(level, predicts="x0", gamma=1).max() == 1


def test_min_snr_weights_of_other_schedules_make_the_losses_one_too():
    """Each weight times the squared error of its target is the capped weight of the x0 error."""
    x0, z = torch.randn(2, 6, 3, 4, 4)
    off = 0.3 * torch.randn_like(x0)
    for schedule in (SCHEDULES["flow"], SCHEDULES["ve"]):
        level = schedule.level(torch.tensor([1, 100, 300, 500, 800, 999]))
        snr = (level.alpha / level.sigma).flatten() ** 2
        capped = snr.clamp(max=5) * (off**2).mean((1, 2, 3))
        eps_off = -level.alpha / level.sigma * off
        for kind in KINDS:
            target = PARAMETRISATIONS[kind].target
            error = target(x0 + off, z + eps_off, level) - target(x0, z, level)
            found = min_snr_weight(level, predicts=kind) * (error**2).mean((1, 2, 3))
            torch.testing.assert_close(found, capped, rtol=1e-3, atol=1e-6)


# --- refusals -------------------------------------------------------------------------------------


def test_an_unknown_prediction_is_refused():
    message = "unknown prediction 'noise': expected one of eps, x0, v, flow"
    x0, level, z = batch(2)
    with pytest.raises(ValueError, match=message):
        as_denoiser(exact_network, predicts="noise")
    with pytest.raises(ValueError, match=message):
        denoising_loss(lambda x, t, c: x, x0, level, z, predicts="noise")
    with pytest.raises(ValueError, match=message):
        min_snr_weight(level, predicts="noise")


def test_a_network_that_returns_another_shape_is_refused():
    x0, level, z = batch(2)
    with pytest.raises(ValueError, match=r"returned \(2, 1, 4, 4\) for images of .*\(2, 3, 4, 4\)"):
        denoising_loss(lambda x, t, c: x[:, :1], x0, level, z)


def test_a_clean_image_has_no_eps():
    x, clean = torch.zeros(1, 3, 2, 2), NoiseLevel(0, 1.0, 0.0)
    with pytest.raises(ValueError, match="a clean image contains no noise: expected a level of si"):
        from_x0(x, clean, x)
    assert torch.equal(from_x0(x, NoiseLevel(1, 0.8, 0.6), x).eps, x)


def test_eps_of_pure_noise_tells_no_x0():
    x, top = torch.zeros(1, 3, 2, 2), SCHEDULES["flow"].level(1000)
    with pytest.raises(
        ValueError, match=r't = 1000 is pure noise .*: expected a network that .*"v"'
    ):
        from_eps(x, top, x)
    for read in (from_v, from_flow, from_x0):
        assert all(part.isfinite().all() for part in read(x, top, x))
