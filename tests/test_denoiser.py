"""Predictions as pairs, networks as denoisers, and the loss."""

import pytest
import torch
from exact import CLASS, SCHEDULE, mixture, noise, noisy_data
from exact import network as exact_network

from minidiff.denoiser import (
    Prediction,
    as_denoiser,
    denoising_loss,
    from_eps,
    from_v,
    from_x0,
    min_snr_weight,
)
from minidiff.schedule import NoiseLevel

LEVEL = SCHEDULE.level(400)


def v_of(prediction, level):
    return level.alpha * prediction.eps - level.sigma * prediction.x0


def outputs(prediction, level):
    """What a network of each kind would return to mean this prediction."""
    return {"eps": prediction.eps, "x0": prediction.x0, "v": v_of(prediction, level)}


# --- predictions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1, 400, 1000])
def test_eps_x0_and_v_tell_the_same_pair(t):
    level = SCHEDULE.level(t)
    x0, eps = noise(20), noise(20)
    x = level.alpha * x0 + level.sigma * eps
    out = outputs(Prediction(x0, eps), level)
    for read, kind in [(from_eps, "eps"), (from_x0, "x0"), (from_v, "v")]:
        pair = read(x, level, out[kind])
        torch.testing.assert_close(pair, Prediction(x0, eps), rtol=0, atol=1e-10)
    # Mutant: the other sign of v.
    assert (from_v(x, level, -out["v"]).x0 - x0).abs().max() > 0.01


def test_a_network_is_given_t_minus_one_and_its_condition():
    calls = []

    def network(x, t, condition):
        calls.append((t, condition))
        return torch.zeros_like(x)

    denoise = as_denoiser(network, "red")
    for t in (1000, 1, 0, 500.5):
        denoise(noise(2), SCHEDULE.level(t))
    denoise(noise(3), SCHEDULE.level(torch.tensor([7, 1000, 1])))
    times, conditions = zip(*calls, strict=True)
    assert [t.tolist() for t in times] == [[999, 999], [0, 0], [0, 0], [499.5, 499.5], [6, 999, 0]]
    assert [t.dtype for t in times[:4]] == [torch.int64] * 3 + [torch.float32]
    assert set(conditions) == {"red"}


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_a_network_of_any_kind_becomes_the_same_denoiser(predicts):
    exact, x = mixture(CLASS), noisy_data(50, LEVEL)
    denoise = as_denoiser(
        lambda x, t, c: outputs(exact(x, LEVEL), LEVEL)[predicts], predicts=predicts
    )
    torch.testing.assert_close(denoise(x, LEVEL), exact(x, LEVEL), rtol=0, atol=1e-12)
    # Mutant: read as another kind of network.
    other = {"eps": "v", "x0": "eps", "v": "x0"}[predicts]
    wrong = as_denoiser(lambda x, t, c: outputs(exact(x, LEVEL), LEVEL)[predicts], predicts=other)
    assert (wrong(x, LEVEL).x0 - exact(x, LEVEL).x0).abs().max() > 0.1


def test_the_condition_goes_to_the_network():
    weights = torch.tensor([CLASS] * 50, dtype=torch.float64)
    x = noisy_data(50, LEVEL)
    prediction = as_denoiser(exact_network, weights)(x, LEVEL)
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
    alpha_bar = SCHEDULE.alpha_bar[t].reshape(-1, 1, 1, 1)
    level = NoiseLevel(t.reshape(-1, 1, 1, 1), alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    return torch.randn(n, 3, 4, 4).double(), level, torch.randn(n, 3, 4, 4).double()


def losses(weights_of):
    """The loss of one wrong prediction, told as eps, x0 and v; `weights_of` picks the weights."""
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
        assert t.tolist() == (level.t.flatten() - 1).tolist() and condition == "red"
        return z

    assert denoising_loss(network, x0, level, z, "red") < 1e-12


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


def test_min_snr_weights_make_the_three_losses_one():
    right = losses({"eps": "eps", "x0": "x0", "v": "v"})
    assert right["x0"] == pytest.approx(right["eps"], rel=1e-4)
    assert right["v"] == pytest.approx(right["eps"], rel=1e-4)
    # Mutant: the weights of another target.
    wrong = losses({"eps": "v", "x0": "eps", "v": "x0"})
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


# --- refusals -------------------------------------------------------------------------------------


def test_an_unknown_prediction_is_refused():
    message = "unknown prediction 'noise': expected one of eps, x0, v"
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
    with pytest.raises(ValueError, match="a clean image has no noise to be found"):
        from_x0(x, clean, x)
    assert torch.equal(from_x0(x, NoiseLevel(1, 0.8, 0.6), x).eps, x)
