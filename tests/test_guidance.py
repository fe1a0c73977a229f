"""Guidance, checked on data whose conditional and unconditional denoisers are both exact."""

import math

import pytest
import torch
from exact import (
    CLASS,
    MEANS,
    SCHEDULE,
    WEIGHTS,
    log_class,
    mixture,
    network,
    noise,
    noisy_data,
    within_std,
)

from minidiff.condition import Condition
from minidiff.denoiser import Prediction, as_denoiser, from_eps, from_v, from_x0
from minidiff.guidance import (
    clamp,
    classifier,
    classifier_free,
    dynamic_threshold,
    guide_by_x0,
    interval,
    mix,
    rescale,
    weighted_prompts,
)
from minidiff.samplers import ddim_step, sample

LEVEL = SCHEDULE.level(500)
COND, UNCOND = mixture(CLASS), mixture()
OTHER = (0.5, 0.0, 0.0, 0.5)


def constant(x0):
    """A denoiser that always answers this clean image."""
    return lambda x, level: Prediction(x0, (x - level.alpha * x0) / level.sigma)


def equal(a, b):
    return torch.equal(a.x0, b.x0) and torch.equal(a.eps, b.eps)


# --- mixing ---------------------------------------------------------------------------------------


def mixed_as(kind, weighted, x, level):
    """The mixture formed on the outputs of networks of one kind, with no check of the weights."""
    parts = [(w, d(x, level)) for w, d in weighted]
    if kind == "v":
        outs = [(w, level.alpha * p.eps - level.sigma * p.x0) for w, p in parts]
    else:
        outs = [(w, getattr(p, kind)) for w, p in parts]
    read = {"eps": from_eps, "x0": from_x0, "v": from_v}[kind]
    return read(x, level, sum(w * out for w, out in outs))


@pytest.mark.parametrize("t", [50, 500, 900])
def test_mixing_eps_x0_or_v_is_the_same_when_weights_sum_to_one(t):
    level = SCHEDULE.level(t)
    x = noisy_data(100, level)
    weighted = [(3.0, COND), (-0.5, mixture(OTHER)), (-1.5, UNCOND)]
    ours = mix(*weighted)(x, level)
    for kind in ("eps", "x0", "v"):
        assert (mixed_as(kind, weighted, x, level).eps - ours.eps).abs().max() < 1e-10
        assert (mixed_as(kind, weighted, x, level).x0 - ours.x0).abs().max() < 1e-10
    # Mutant: weights that sum to .9 mean something else in each.
    short = [(3.0, COND), (-0.5, mixture(OTHER)), (-1.6, UNCOND)]
    eps, x0, v = (mixed_as(kind, short, x, level).x0 for kind in ("eps", "x0", "v"))
    for a, b in [(eps, x0), (x0, v), (v, eps)]:
        assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("weights", [(0.5, 0.4), (3.0, -1.9), (), (2.0,)])
def test_weights_that_do_not_sum_to_one_are_refused(weights):
    with pytest.raises(ValueError, match="guidance weights must sum to 1"):
        mix(*((w, UNCOND) for w in weights))


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_no_number_is_refused(scale):
    null = rows(WEIGHTS, 1)
    for guide in (
        lambda: classifier_free(COND, UNCOND, scale),
        lambda: rescale(COND, UNCOND, scale),
        lambda: classifier(UNCOND, log_class, scale),
        lambda: guide_by_x0(UNCOND, lambda x0: x0.sum((1, 2, 3)), scale),
        lambda: weighted_prompts(network, [null], [scale], null),
    ):
        with pytest.raises(ValueError, match="must be .*finite"):
            guide()


# --- classifier-free guidance ---------------------------------------------------------------------


def test_scale_1_is_conditional_0_unconditional_and_a_null_negative_prompt_changes_nothing():
    x = noisy_data(100, LEVEL)
    assert equal(classifier_free(COND, UNCOND, 1)(x, LEVEL), COND(x, LEVEL))
    assert equal(classifier_free(COND, UNCOND, 0)(x, LEVEL), UNCOND(x, LEVEL))
    plain = classifier_free(COND, UNCOND, 4)(x, LEVEL)
    assert equal(plain, classifier_free(COND, mixture(WEIGHTS), 4)(x, LEVEL))
    assert not equal(plain, classifier_free(COND, mixture(OTHER), 4)(x, LEVEL))
    u, c = UNCOND(x, LEVEL).eps, COND(x, LEVEL).eps
    torch.testing.assert_close(plain.eps, u + 4 * (c - u), rtol=0, atol=1e-12)
    # Mutant: the paper's weight, which is one less, taken for the scale.
    assert (classifier_free(COND, UNCOND, 1 + 1)(x, LEVEL).eps - c).abs().max() > 0.1


def test_guidance_sharpens_beyond_the_class_it_asks_for():
    """Classifier-free guidance does not sample p(x) p(y|x)^scale: the class mean drifts."""
    path = SCHEDULE.path(100)

    def drawn(scale):
        torch.manual_seed(1)
        x = sample(ddim_step, classifier_free(COND, UNCOND, scale), noise(3000), path)
        return x[:, 0].mean().item(), within_std(x), (x[:, 0] < 0).double().mean()

    for scale, mean, std in [(1, -0.88, 0.137), (2, -0.96, 0.137), (4, -1.06, 0.177)]:
        measured = drawn(scale)
        assert measured[0] == pytest.approx(mean, abs=0.02)
        assert measured[1] == pytest.approx(std, abs=0.01)
        assert measured[2] > 0.995  # all of them in the class, from scale 1 on
    # Mutant: the other convention, a scale of 1 + weight, drifts one column too far.
    assert abs(drawn(1 + 1)[0] - -0.88) > 0.05


# --- guidance in an interval, and without its contrast --------------------------------------------


def test_an_interval_of_all_levels_is_guidance_and_of_none_is_not():
    x, guided = noisy_data(100, LEVEL), classifier_free(COND, UNCOND, 4)
    assert equal(interval(guided, COND, 0, 1000)(x, LEVEL), guided(x, LEVEL))
    assert equal(interval(guided, COND, 600, 1000)(x, LEVEL), COND(x, LEVEL))
    assert not equal(guided(x, LEVEL), COND(x, LEVEL))


def test_an_interval_holds_its_upper_bound_and_outside_guidance_costs_nothing():
    calls = []

    def counted(name, denoise):
        def call(x, level):
            calls.append((name, level.t))
            return denoise(x, level)

        return call

    both = interval(counted("guided", COND), counted("plain", UNCOND), 100, 600)
    for t in (1000, 601, 600, 101, 100, 1):
        both(noise(2), SCHEDULE.level(t))
    guided = {t for name, t in calls if name == "guided"}
    assert len(calls) == 6 and guided == {600, 101}
    # Mutant: the lower bound in, the upper one out.
    assert guided != {t for t in (1000, 601, 600, 101, 100, 1) if 100 <= t < 600}


def test_guidance_in_an_interval_keeps_more_of_the_spread():
    def spread(denoise):
        torch.manual_seed(1)
        return within_std(sample(ddim_step, denoise, noise(3000), SCHEDULE.path(100)))

    guided = classifier_free(COND, UNCOND, 4)
    everywhere, within = spread(guided), spread(interval(guided, COND, 100, 600))
    assert everywhere == pytest.approx(0.177, abs=0.01)
    assert within == pytest.approx(0.159, abs=0.01)  # the class itself has .137
    # Mutant: guided outside, plain within.
    assert abs(spread(interval(COND, guided, 100, 600)) - 0.159) > 0.01


@pytest.mark.parametrize("bounds", [(600, 100), (100, 100), (-1, 5), (math.nan, 5), (5, math.nan)])
def test_an_interval_that_holds_no_level_is_refused(bounds):
    with pytest.raises(ValueError, match="expected 0 <= low < high"):
        interval(COND, UNCOND, *bounds)


def pictures(seed, *contrast):
    """A denoiser that always answers four images of these contrasts."""
    generator = torch.Generator().manual_seed(seed)
    contrast = torch.tensor(contrast).double().reshape(-1, 1, 1, 1)
    return constant(contrast * torch.randn(4, 3, 8, 8, generator=generator).double())


def contrasts(x0):
    return x0.flatten(1).std(dim=1)


@pytest.mark.parametrize("phi", [0.3, 0.7, 1])
def test_rescaling_brings_back_the_contrast_of_each_image(phi):
    cond, uncond = pictures(0, 0.1, 0.4, 1.0, 2.0), pictures(1, 2.0, 1.0, 1.0, 2.0)
    x = torch.randn(4, 3, 8, 8).double()
    guided, rescaled = classifier_free(cond, uncond, 8)(x, LEVEL), rescale(cond, uncond, 8, phi)
    found = rescaled(x, LEVEL)
    before, wanted = contrasts(guided.x0), contrasts(cond(x, LEVEL).x0)
    assert (before > 4 * wanted).all()
    torch.testing.assert_close(contrasts(found.x0), phi * wanted + (1 - phi) * before)
    shares = (contrasts(found.x0) / before).reshape(4, 1, 1, 1)
    torch.testing.assert_close(found.x0, shares * guided.x0)  # nothing else is changed
    belongs_to(x, LEVEL, found)
    # Mutant: one contrast for the whole batch.
    ratio = cond(x, LEVEL).x0.std() / guided.x0.std()
    batch_wide = contrasts((phi * ratio + 1 - phi) * guided.x0)
    assert not torch.allclose(batch_wide, contrasts(found.x0), rtol=0.01)


def test_rescaling_eps_leaves_most_of_the_contrast_at_high_noise():
    """The mutant that published code has: eps times std(eps_cond) / std(eps), and x0 from that."""
    level = SCHEDULE.level(900)
    cond, uncond = (pictures(seed, 0.1, 0.4, 1.0, 1.0) for seed in (0, 1))
    x0 = cond(0, level).x0
    x = level.alpha * x0 + level.sigma * torch.randn(4, 3, 8, 8).double()
    guided = classifier_free(cond, uncond, 4)(x, level)
    ratio = contrasts(cond(x, level).eps) / contrasts(guided.eps)
    usual = contrasts(from_eps(x, level, guided.eps * ratio.reshape(4, 1, 1, 1)).x0)
    ours = contrasts(rescale(cond, uncond, 4, 1)(x, level).x0)
    before, wanted = contrasts(guided.x0), contrasts(x0)
    torch.testing.assert_close(ours, wanted)
    assert (before > 4 * wanted).all() and (usual > 2.5 * wanted).all()


def test_rescaling_that_has_nothing_to_do_changes_nothing():
    x = noisy_data(100, LEVEL)
    plain = classifier_free(COND, UNCOND, 4)(x, LEVEL)
    assert equal(rescale(COND, UNCOND, 4, 0)(x, LEVEL), plain)
    same = rescale(COND, UNCOND, 1)(x, LEVEL)
    torch.testing.assert_close(same, COND(x, LEVEL), rtol=0, atol=1e-10)
    flat = constant(torch.zeros(2, 3, 8, 8))  # no contrast at all
    assert rescale(flat, flat, 4)(torch.randn(2, 3, 8, 8), LEVEL).x0.eq(0).all()


@pytest.mark.parametrize("phi", [-0.1, 1.1, math.nan])
def test_a_share_of_rescaling_out_of_range_is_refused(phi):
    with pytest.raises(ValueError, match="expected 0 <= phi <= 1"):
        rescale(COND, UNCOND, 4, phi)


# --- weighted prompts -----------------------------------------------------------------------------


def rows(weights, n):
    """The condition of n points that come from the modes with these weights."""
    return Condition(vector=torch.tensor([weights] * n, dtype=torch.float64))


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_weighted_prompts_are_the_mixture_of_the_separate_denoisers(predicts):
    x, n = noisy_data(30, LEVEL), 30

    def net(x, t, condition):
        eps = network(x, t, condition)
        x0 = (x - LEVEL.sigma * eps) / LEVEL.alpha
        return {"eps": eps, "x0": x0, "v": LEVEL.alpha * eps - LEVEL.sigma * x0}[predicts]

    conditions, weights = [rows(CLASS, n), rows(OTHER, n)], [1.5, -0.75]
    # every image of the batch may have conditions of its own
    conditions[0].vector[:10] = torch.tensor((0.1, 0.9, 0.0, 0.0)).double()
    batched = weighted_prompts(net, conditions, weights, rows(WEIGHTS, n), predicts=predicts)
    separate = mix(
        (0.25, as_denoiser(net, rows(WEIGHTS, n), predicts=predicts)),
        (1.5, as_denoiser(net, conditions[0], predicts=predicts)),
        (-0.75, as_denoiser(net, conditions[1], predicts=predicts)),
    )
    torch.testing.assert_close(batched(x, LEVEL), separate(x, LEVEL), rtol=0, atol=1e-10)
    # One row of a condition serves all images.
    one_row = weighted_prompts(
        net, [conditions[0], rows(OTHER, 1)], weights, rows(WEIGHTS, 1), predicts=predicts
    )
    torch.testing.assert_close(one_row(x, LEVEL), separate(x, LEVEL), rtol=0, atol=1e-10)
    # Mutant: the null share given to the last prompt.
    swapped = weighted_prompts(net, conditions[::-1], weights, rows(WEIGHTS, n), predicts=predicts)
    assert (swapped(x, LEVEL).x0 - separate(x, LEVEL).x0).abs().max() > 0.1


def test_one_prompt_of_weight_3_is_guidance_of_scale_3_in_one_call():
    calls = []

    def counted(x, t, condition):
        calls.append(len(x))
        return network(x, t, condition)

    x = noisy_data(20, LEVEL)
    prompt = weighted_prompts(counted, [rows(CLASS, 20)], [3.0], rows(WEIGHTS, 20))
    guided = classifier_free(COND, UNCOND, 3)(x, LEVEL)
    torch.testing.assert_close(prompt(x, LEVEL), guided, rtol=0, atol=1e-10)
    assert calls == [40]


def test_prompts_are_refused_unless_they_match_the_weights_and_the_batch():
    null = rows(WEIGHTS, 2)
    with pytest.raises(ValueError, match="2 conditions but 1 weights"):
        weighted_prompts(network, [null, null], [1.0], null)
    with pytest.raises(ValueError, match="2 rows for 3 images: expected one"):
        weighted_prompts(network, [null], [1.0], null)(noise(3), LEVEL)
    with pytest.raises(ValueError, match="one condition has label and another has none"):
        weighted_prompts(network, [Condition(label=torch.ones(2))], [1.0], null)(noise(2), LEVEL)


# --- classifier guidance --------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1, 100, 500, 900, 1000])
def test_the_exact_classifier_turns_unconditional_into_conditional(t):
    level = SCHEDULE.level(t)
    x = noisy_data(500, level)
    guided, exact = classifier(UNCOND, log_class, 1.0)(x, level), COND(x, level)
    assert (guided.eps - exact.eps).abs().max() < 4e-8
    assert (guided.x0 - exact.x0).abs().max() < 1e-5  # x0 is sigma/alpha <= 157 times as far
    if t < 900:  # Mutant: eps -= gradient, without sigma; sigma is about 1 later and hides it.
        pushed = guided.eps - UNCOND(x, level).eps
        assert (UNCOND(x, level).eps + pushed / level.sigma - exact.eps).abs().max() > 1e-5


def test_classifier_scales_and_leaves_no_graph():
    x = noisy_data(50, LEVEL)
    plain, once, thrice = (classifier(UNCOND, log_class, s)(x, LEVEL) for s in (0, 1, 3))
    assert equal(plain, UNCOND(x, LEVEL))
    push = once.eps - plain.eps
    torch.testing.assert_close(thrice.eps - plain.eps, 3 * push, rtol=0, atol=1e-12)
    assert push.abs().max() > 0.1 and not x.requires_grad and not thrice.eps.requires_grad
    with torch.no_grad():  # the sampler's loop has no gradients; guidance takes its own
        assert equal(classifier(UNCOND, log_class, 3)(x, LEVEL), thrice)


# --- guidance by a score of x0 --------------------------------------------------------------------


def gradients(through_network, level, x):
    """The gradient that guide_by_x0 used, of the scores x0[0] and x0[1], each along its axis."""
    plain = UNCOND(x, level).eps
    columns = []
    for axis in (0, 1):
        guide = guide_by_x0(
            UNCOND, lambda x0, a=axis: x0[:, a, 0, 0], 1.0, through_network=through_network
        )
        columns.append((plain - guide(x, level).eps)[:, axis] / level.sigma)
    return torch.stack(columns)


@pytest.mark.parametrize(
    "t, shortcut, true", [(1000, 157, 0.005), (701, 12, 0.06), (501, 3.6, 0.22), (101, 1.1, 0.3)]
)
def test_the_shortcut_gradient_is_too_large(t, shortcut, true):
    """Without the network's Jacobian dx0/dx_t is 1/alpha: 30,000 times too large at the start."""
    level = SCHEDULE.level(t)
    x = noisy_data(2000, level)
    short, full = gradients(False, level, x), gradients(True, level, x)
    torch.testing.assert_close(short, torch.full_like(short, 1 / level.alpha), rtol=1e-7, atol=0)
    assert short.mean().item() == pytest.approx(shortcut, rel=0.05)
    assert full.mean().item() == pytest.approx(true, rel=0.1)
    # The whole gradient is the diagonal of the Jacobian, here by finite differences.
    h = 1e-4
    for axis in (0, 1):
        e = torch.eye(2).double()[axis].reshape(1, 2, 1, 1) * h
        slope = (UNCOND(x + e, level).x0 - UNCOND(x - e, level).x0)[:, axis] / (2 * h)
        torch.testing.assert_close(full[axis], slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("through_network", [True, False])
def test_a_guide_by_x0_at_scale_0_is_unguided_bit_for_bit_and_pulls_otherwise(through_network):
    x = noisy_data(50, LEVEL)

    def redness(x0):
        return -((x0[:, 0] - 1) ** 2).sum((1, 2))

    with torch.no_grad():
        guided = [
            guide_by_x0(UNCOND, redness, s, through_network=through_network)(x, LEVEL)
            for s in (0, 0.02)
        ]
    assert equal(guided[0], UNCOND(x, LEVEL))
    nowhere = guide_by_x0(
        UNCOND, lambda x0: (x0 - x0).sqrt().sum((1, 2, 3)), 0
    )  # its gradient is NaN
    assert equal(nowhere(x, LEVEL), UNCOND(x, LEVEL))
    assert redness(guided[1].x0).mean() > redness(guided[0].x0).mean() + 0.005
    # the pair still belongs to x
    torch.testing.assert_close(LEVEL.alpha * guided[1].x0 + LEVEL.sigma * guided[1].eps, x)
    # Mutant: the opposite sign.
    away = guide_by_x0(UNCOND, redness, -0.02, through_network=through_network)(x, LEVEL)
    assert redness(away.x0).mean() < redness(guided[0].x0).mean()


def test_guidance_of_x0_reaches_what_it_asks_for():
    """Asked for the right-hand side, samples come from it; scale 0 gives the base rate of .5."""

    def rate(scale):
        torch.manual_seed(0)
        guided = guide_by_x0(UNCOND, lambda x0: x0[:, 0, 0, 0], scale)
        x = sample(ddim_step, guided, noise(500), SCHEDULE.path(50))
        return (x[:, 0] > 0).double().mean().item()

    assert rate(0) == pytest.approx(0.5, abs=0.06)
    assert rate(0) + 0.1 < rate(3) < rate(10)
    assert rate(-3) < rate(0) - 0.1


def right_squared(x0):
    return -((x0[:, 0] - 1) ** 2).sum((1, 2))


INNER = {
    "through the network": lambda d: guide_by_x0(d, right_squared, 0.3),
    "shortcut": lambda d: guide_by_x0(d, right_squared, 0.3, through_network=False),
    "classifier": lambda d: classifier(d, log_class, 2.0),
}


@pytest.mark.parametrize("name", INNER)
def test_a_guide_around_a_guide_differentiates_all_of_it(name):
    x = noisy_data(20, LEVEL)

    def score(x0):
        return x0.sum((1, 2, 3)) ** 2

    inner, scale = INNER[name](UNCOND), 0.7
    # inside a mixture, whose other part has a gradient of its own
    both = mix((2.0, inner), (-1.0, mixture(CLASS)))
    for denoise in (inner, both):
        with torch.no_grad():
            guided = guide_by_x0(denoise, score, scale)(x, LEVEL)
            h, slopes = 1e-4, []
            for axis in (0, 1):
                e = torch.eye(2).double()[axis].reshape(1, 2, 1, 1) * h
                there, back = (score(denoise(x + s * e, LEVEL).x0) for s in (1, -1))
                slopes.append((there - back) / (2 * h))
            slope = torch.stack(slopes, dim=1)[..., None, None]  # (B,2,1,1)
            plain = denoise(x, LEVEL)
        expected = plain.eps - scale * LEVEL.sigma * slope
        torch.testing.assert_close(guided.eps, expected, rtol=1e-4, atol=1e-6)

        # Mutant: the inner guide's own answer a constant.
        def constant_inside(x, level):
            kept = UNCOND(x, level)
            pull = [p.detach() - k.detach() for p, k in zip(inner(x, level), kept, strict=True)]
            return Prediction(*(k + p for k, p in zip(kept, pull, strict=True)))

        if denoise is inner:
            wrong = guide_by_x0(constant_inside, score, scale)(x, LEVEL)
            assert (wrong.eps - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "score, told",
    [
        (
            lambda x0: x0.mean(),
            r"of 3 images: shape \(\), expected a tensor \(3,\), one number an image",
        ),
        (lambda x0: x0.sum((1, 2)), r"of 3 images: shape \(3, 1\), expected"),
        (lambda x0: x0.flatten(1), r"of 3 images: shape \(3, 2\), expected"),
        (lambda x0: 1.0, "of 3 images: float, expected"),
        (lambda x0: x0.detach().sum((1, 2, 3)), "log_prob has no gradient"),
    ],
)
def test_a_score_that_is_not_one_number_an_image_is_refused(score, told):
    x = noisy_data(3, LEVEL)
    for guided in (guide_by_x0(UNCOND, score, 1.0), classifier(UNCOND, lambda x, _: score(x), 1.0)):
        with pytest.raises(ValueError, match=told):
            guided(x, LEVEL)


def test_gradients_are_refused_in_inference_mode():
    guided = guide_by_x0(UNCOND, right_squared, 1.0)
    with torch.inference_mode():
        x = noisy_data(3, LEVEL)
        with pytest.raises(ValueError, match="inference_mode"):
            guided(x, LEVEL)
    with pytest.raises(ValueError, match="inference_mode"):
        guided(x, LEVEL)


# --- clamping and thresholding --------------------------------------------------------------------


def belongs_to(x, level, prediction):
    torch.testing.assert_close(level.alpha * prediction.x0 + level.sigma * prediction.eps, x)


def test_clamp_cuts_x0_and_recomputes_eps():
    x = noise(2)
    x0 = torch.tensor([[3.0, -2.0], [0.5, -0.25]]).double()[:, :, None, None]
    clamped = clamp(constant(x0))(x, LEVEL)
    assert clamped.x0.flatten().tolist() == [1, -1, 0.5, -0.25]
    belongs_to(x, LEVEL, clamped)
    narrow = clamp(constant(x0), 0, 2)(x, LEVEL)
    assert narrow.x0.flatten().tolist() == [2, 0, 0.5, 0]
    # Mutant: the old eps kept beside the new x0.
    stale = constant(x0)(x, LEVEL).eps
    assert (LEVEL.alpha * clamped.x0 + LEVEL.sigma * stale - x).abs().max() > 0.1


def test_dynamic_threshold_by_hand():
    x0 = torch.linspace(-4, 4, 9).double().reshape(1, 1, 3, 3)  # |x0|: 0 1 1 2 2 3 3 4 4
    x = torch.randn(1, 1, 3, 3).double()
    by_hand = {1.0: x0 / 4, 0.5: x0.clamp(-2, 2) / 2, 0.75: x0.clamp(-3, 3) / 3}
    for percentile, expected in by_hand.items():
        got = dynamic_threshold(constant(x0), percentile)(x, LEVEL)
        torch.testing.assert_close(got.x0, expected)
        belongs_to(x, LEVEL, got)


def test_within_range_dynamic_thresholding_is_static_clipping():
    x0, x = (torch.rand(4, 3, 8, 8).double() * 2 - 1), torch.randn(4, 3, 8, 8).double()
    x0[:, 0, 0, 0] = 5  # one value in 192: the percentile .99 stays below 1
    got = dynamic_threshold(constant(x0), 0.99)(x, LEVEL)
    torch.testing.assert_close(got, clamp(constant(x0))(x, LEVEL))


def batch_wide(x0, percentile):
    """The mutant: one percentile for the whole batch."""
    s = torch.quantile(x0.abs(), percentile).clamp(min=1)
    return x0.clamp(-s, s) / s


def test_dynamic_threshold_treats_each_image_by_itself():
    x0, x = torch.randn(4, 3, 8, 8).double(), torch.randn(4, 3, 8, 8).double()
    x0[3] *= 10  # one wild image must not dim the others
    together = dynamic_threshold(constant(x0))(x, LEVEL).x0
    for i in range(4):
        alone = dynamic_threshold(constant(x0[i : i + 1]))(x[i : i + 1], LEVEL).x0
        assert torch.equal(together[i : i + 1], alone)
    assert (batch_wide(x0, 0.995)[:1] - batch_wide(x0[:1], 0.995)).abs().max() > 0.1


@pytest.mark.parametrize("percentile", [0, -0.1, 1.1, math.nan])
def test_a_percentile_out_of_range_is_refused(percentile):
    with pytest.raises(ValueError, match="expected 0 < percentile <= 1"):
        dynamic_threshold(UNCOND, percentile)


def test_the_modes_asked_for_are_those_on_the_left():
    """A check of the rig: CLASS is the left-hand half of the mixture, in its own proportions."""
    left = [w if m[0] < 0 else 0.0 for w, m in zip(WEIGHTS, MEANS, strict=True)]
    assert [w / sum(left) for w in left] == pytest.approx(CLASS)
