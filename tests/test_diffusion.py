"""A model: how it draws, what it is asked, that guidance and seeds mean what they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import ROUNDING, SMALL, Constant, apart, make, make_own, randomised
from torch import Generator

from minidiff import zoo
from minidiff.condition import Condition
from minidiff.denoiser import as_denoiser
from minidiff.device import autocast
from minidiff.diffusion import Diffusion
from minidiff.guidance import clamp, classifier_free, guide_by_x0
from minidiff.noise import per_image
from minidiff.samplers import ddim_step, ddpm_step, dpmpp_2m_step, heun_step, invert, sample
from minidiff.schedule import NoiseSchedule
from minidiff.text import ClassLabels
from minidiff.unet import UNet, UNetConfig

# --- drawing --------------------------------------------------------------------------------------


def test_sample_is_the_composition_it_claims_to_be():
    model = make("text")
    generators = per_image(torch.Generator().manual_seed(0), 2)
    denoise = clamp(model.for_sampling().denoiser("a red circle", 3))
    x = sample(
        ddim_step, denoise, model.noise(2, generators), model.schedule.path(5), generator=generators
    )
    assert torch.equal(x, model.sample("a red circle", 2, scale=3, steps=5))
    *_, last = model.frames("a red circle", 2, scale=3, steps=5)
    assert torch.equal(x, last.x) and not last.x.requires_grad


def test_image_i_of_a_seed_is_the_same_alone_and_in_a_batch():
    model = make("classes")
    prompts, options = ["cat", "dog"] * 8, {"steps": 4, "scale": 2, "step": ddpm_step}
    many = model.sample(prompts, 16, seed=3, **options)
    few = model.sample(prompts[:3], 3, seed=3, **options)
    assert apart(many[:3], few).max() < ROUNDING
    other = model.sample(prompts[:3], 3, seed=4, **options)
    assert apart(many[:3], other).min() > 1
    # nor does it depend on how many are drawn at a time, and which
    for batch in (1, 5):
        assert apart(model.sample(prompts, seed=3, batch=batch, **options), many).max() < ROUNDING
    some = model.sample(prompts, seed=3, batch=2, only=[7, 0, 4], **options)
    assert apart(some, many[[7, 0, 4]]).max() < ROUNDING
    assert apart(some, many[:3]).max() > 1
    assert model.sample(prompts, seed=3, only=[], **options).shape == (0, 3, 8, 8)
    part = model.sample(prompts, seed=3, only=range(1, 16, 8), **options)  # a process's share
    assert apart(part, many[[1, 9]]).max() < ROUNDING


@pytest.mark.parametrize("step", [ddpm_step, dpmpp_2m_step], ids=["ddpm", "2m"])
def test_frames_are_those_of_sample(step):
    model, options = make("classes"), {"scale": 2.0, "negative": "dog", "steps": 5, "seed": 3}
    options |= {"guide": pulled, "step": step, "start": None}
    for options["start"] in (None, torch.randn(3, 3, 8, 8)):
        frames = list(model.frames("cat", 3, **options))
        assert torch.equal(frames[-1].x, model.sample("cat", 3, **options))
        spacing = {ddpm_step: "trailing", dpmpp_2m_step: "log_snr"}[step]
        path = model.schedule.path(5, spacing)
        assert [frame.level for frame in frames] == path[1:]
        assert [frame.before for frame in frames] == path[:-1]
        assert all(frame.prediction.x0.abs().max() <= 1 for frame in frames)


def test_the_caller_of_frames_may_use_gradients_between_them():
    weight = torch.ones(1, requires_grad=True)
    for frame in make("plain").frames(n=1, steps=2):
        assert not frame.x.requires_grad and (weight * 2).requires_grad


def test_as_many_are_drawn_as_there_are_prompts_or_sixteen():
    model = make("classes")
    for prompt in (None, "cat", 1, Condition(label=torch.tensor([1]))):
        assert len(model.sample(prompt, steps=1)) == 16
    assert len(model.sample(["cat", "dog", 0], steps=1)) == 3
    assert len(model.sample(Condition(label=torch.tensor([1, 0])), steps=1)) == 2
    assert len(list(model.frames(["cat", "dog"], steps=2))[-1].x) == 2


def test_sampling_may_start_from_given_noise():
    model = make("classes")
    start = model.noise(3, per_image(Generator().manual_seed(5), 3))
    drawn = model.sample("cat", 3, steps=3, seed=5)
    assert torch.equal(model.sample("cat", 3, steps=3, start=start), drawn)
    assert torch.equal(model.sample("cat", steps=3, start=start), drawn)  # n is that of the start
    some = model.sample("cat", steps=3, start=start, only=[2, 0], batch=1)
    assert apart(some, drawn[[2, 0]]).max() < ROUNDING
    assert apart(model.sample("cat", 3, steps=3), drawn).min() > ROUNDING


@pytest.mark.parametrize(
    ("step", "calls"), [(ddim_step, 6), (heun_step, 11), (dpmpp_2m_step, 6)], ids=str
)
def test_a_step_is_given_the_path_that_suits_it(step, calls, monkeypatch):
    model, times = make("plain"), []
    run = Diffusion.run

    def watched(self, x, t, condition=None):
        times.append(t[0])
        return run(self, x, t, condition)

    monkeypatch.setattr(Diffusion, "run", watched)
    model.sample(n=1, steps=6, step=step)
    spacing = "trailing" if step is ddim_step else "log_snr"
    visited = {round(level.t - 1, 3) for level in model.schedule.path(6, spacing)[:-1]}
    assert {round(t.item(), 3) for t in times} == visited and len(times) == calls
    times.clear()
    model.sample(n=1, steps=6, step=step, spacing="leading")
    assert {t.item() for t in times} == {830, 664, 498, 332, 166, 0}


def test_progress_is_one_bar_over_all_batches_and_changes_nothing(capsys):
    model = make("plain")
    shown = model.sample(n=5, steps=3, batch=2, progress=True)
    assert "sampling" in (told := capsys.readouterr().err) and "9/9" in told
    assert torch.equal(shown, model.sample(n=5, steps=3, batch=2))
    assert capsys.readouterr().err == ""


def pulled(denoise):
    """A guide that pulls the first channel of x0 up."""
    return guide_by_x0(denoise, lambda x0: x0[:, 0].mean((1, 2)), 30.0)


def test_a_guide_is_put_around_the_models_denoiser_and_then_clamped():
    model, unclamped = make("classes"), []

    def watched(denoise):
        def call(x, level):
            prediction = denoise(x, level)
            unclamped.append(prediction.x0.abs().max().item())
            return prediction

        return pulled(call)

    options = {"scale": 2.0, "steps": 4}
    guided = model.sample("cat", 3, guide=watched, **options)
    path, generators = model.schedule.path(4), per_image(Generator().manual_seed(0), 3)
    denoise = clamp(pulled(model.for_sampling().denoiser("cat", 2.0)))
    x = sample(ddim_step, denoise, model.noise(3, generators), path)
    assert apart(guided, x).max() < ROUNDING and max(unclamped) > 1
    plain = model.sample("cat", 3, **options)
    assert (guided[:, 0].mean((1, 2)) > plain[:, 0].mean((1, 2)) + 0.1).all()
    batched = model.sample("cat", 3, guide=pulled, batch=2, **options)
    assert apart(batched, guided).max() < ROUNDING


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 16), (1, 16, 4)])
def test_any_number_of_channels_and_any_sides(shape, tmp_path):
    torch.manual_seed(0)
    channels = {"in_channels": shape[0], "out_channels": shape[0], "classes": 2}
    network = randomised(UNet(UNetConfig(**SMALL, **channels)))
    labels = ClassLabels(("cat", "dog"))
    model = Diffusion(network, NoiseSchedule.cosine(), "v", shape, labels)
    drawn = model.sample("dog", 3, steps=3, scale=2)
    assert drawn.shape == (3, *shape) and drawn.isfinite().all() and drawn.abs().max() <= 1
    model.save(tmp_path / "m.safetensors")
    again = zoo.load(tmp_path / "m.safetensors", device="cpu")
    assert again.shape == shape
    assert apart(again.sample("dog", 3, steps=3, scale=2), drawn).max() < ROUNDING
    if shape[1] == shape[2]:
        assert model.size == 8
    else:
        with pytest.raises(ValueError, match=f"draws {shape[1]} x {shape[2]} pixels: they are not"):
            _ = model.size
    assert "<img" in model._repr_html_()


@pytest.mark.parametrize(
    ("schedule", "predicts", "std"),
    [(NoiseSchedule.flow(), "flow", 1), (NoiseSchedule.ve(), "x0", (1 + 50**2) ** 0.5)],
    ids=["flow", "ve"],
)
def test_models_of_other_schedules_are_sampled_saved_and_loaded(schedule, predicts, std, tmp_path):
    model = replace(make("classes"), schedule=schedule, predicts=predicts)
    assert model.noise(200, None).std().item() == pytest.approx(std, rel=0.02)
    drawn = model.sample("cat", 2, steps=4, scale=2)
    assert drawn.isfinite().all() and drawn.abs().max() <= 1
    model.save(tmp_path / "m.safetensors")
    again = zoo.load(tmp_path / "m.safetensors", device="cpu")
    assert again.schedule == schedule and again.predicts == predicts
    same = again.sample("cat", 2, steps=4, scale=2)
    assert (same - drawn).norm() < 0.1 * drawn.norm()  # the weights were rounded
    other = again.sample("dog", 2, steps=4, scale=2)
    assert (other - drawn).norm() > 0.2 * drawn.norm()


def test_inversion_finds_the_noise_that_draws_the_images():
    model = make("classes")
    x0, path = 0.3 * torch.randn(2, 3, 8, 8), model.schedule.path(200)
    denoise = model.denoiser("cat")  # not clamped, which would not come back
    noise = invert(denoise, x0, path)
    again = sample(ddim_step, denoise, noise, path)
    other = sample(ddim_step, denoise, model.noise(2, None), path)
    assert (again - x0).square().mean() < 0.05 * (other - x0).square().mean()


def test_latents_are_not_clamped_and_come_back_decoded():
    model = make_own()
    *_, last = model.frames("wild", 2, steps=3)
    assert last.x.abs().max() > 0 and model.sample("wild", 2, steps=3).shape == (2, 3, 8, 8)
    huge = replace(model, network=Constant(5.0), predicts="x0")  # as latents may be
    assert torch.equal(huge.sample(n=2, steps=2), torch.full((2, 3, 8, 8), 2.5))
    pixels = replace(huge, decoder=None)
    assert torch.equal(pixels.sample(n=2, steps=2), torch.ones(2, 3, 4, 4))


def test_the_copy_for_sampling_draws_the_same_and_leaves_the_model_alone():
    model = make("classes")
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    x = model.noise(2, None)
    exact = model.network(x, torch.tensor([499, 499]), model.condition(["cat", "dog"]))
    with autocast(model.device):
        fast = model.for_sampling().network(x, torch.tensor([499, 499]), model.condition([0, 1]))
    assert (fast - exact).norm() < 0.03 * exact.norm() and fast.dtype == torch.float32
    wrong = model.network(x, torch.tensor([499, 499]), model.condition(["dog", "cat"]))
    assert (wrong - exact).norm() > 0.1 * exact.norm()
    model.sample("cat", 2, steps=2)
    assert all(torch.equal(v, before[k]) for k, v in model.network.state_dict().items())


def test_a_copy_of_a_copy_samples_the_same():
    model = make("classes")
    once, twice = model.for_sampling(), model.for_sampling().for_sampling()
    assert torch.equal(once.sample(1, 2, steps=3), twice.sample(1, 2, steps=3))


# --- what it is asked -----------------------------------------------------------------------------


def test_scale_one_is_the_plain_condition_and_zero_the_null_one():
    model, level = make("text"), NoiseSchedule.cosine().level(500)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        plain = model.denoiser("a red circle")(x, level)
        null = model.denoiser(None)(x, level)
        zero = model.denoiser("a red circle", 0)(x, level)
        three = model.denoiser("a red circle", 3)(x, level)
        away = model.denoiser("a red circle", 3, negative="a blue square")(x, level)
    assert torch.allclose(zero.eps, null.eps, atol=0.02)
    assert torch.allclose(three.eps, null.eps + 3 * (plain.eps - null.eps), atol=0.1)
    paper = null.eps + (1 + 3) * (plain.eps - null.eps)  # mutant: the paper's weight
    assert (three.eps - paper).abs().max() > (three.eps - plain.eps).abs().max() / 4
    assert not torch.allclose(away.eps, three.eps, atol=1e-3)


def test_guidance_leads_away_from_a_negative_prompt():
    model, path = make("classes"), NoiseSchedule.cosine().path(3)
    network = model.for_sampling()

    def composed(negative):
        asked, away = (network.denoiser(prompt) for prompt in (["cat"] * 4, negative))
        x = model.noise(4, per_image(Generator().manual_seed(0), 4))
        with torch.no_grad(), autocast(model.device):
            return sample(ddim_step, clamp(classifier_free(asked, away, 3.0)), x, path)

    options, null = {"scale": 3.0, "steps": 3}, composed([None] * 4)
    assert apart(model.sample("cat", 4, **options), null).max() < ROUNDING
    for negative in ("dog", ["dog"], ["dog", None, "dog", "cat"]):
        each = negative if len(negative) == 4 else ["dog"] * 4
        drawn = model.sample("cat", 4, negative=negative, **options)
        assert apart(drawn, composed(each)).max() < ROUNDING
        assert apart(drawn, null)[0] > 2 * ROUNDING
        half = model.sample("cat", 4, negative=negative, batch=2, only=[3, 2], **options)
        assert apart(half, drawn[[3, 2]]).max() < ROUNDING
    # Mutant: the prompt and its negative exchanged.
    wrong = model.sample("dog", 4, negative="cat", **options)
    assert apart(wrong, composed(["dog"] * 4)).min() > 2 * ROUNDING
    # without guidance it is not asked for
    plain = model.sample("cat", 4, steps=3)
    assert torch.equal(model.sample("cat", 4, steps=3, negative="dog"), plain)


def test_prompts_reach_their_own_image():
    model, level = make("classes"), NoiseSchedule.cosine().level(500)
    x = torch.randn(1, 3, 8, 8).expand(3, -1, -1, -1)
    with torch.no_grad():
        each = model.denoiser(["cat", "dog", 0])(x, level).eps
    assert (each[0] - each[2]).abs().max() < 1e-2  # bfloat16 may sum rows in another order
    assert (each[0] - each[1]).abs().max() > 0.1


def test_numbers_of_classes_may_be_numpys_and_no_prompts_are_refused():
    model = make("classes")
    assert (
        model.condition([np.int64(1)]).label.tolist() == [1] == model.condition([1]).label.tolist()
    )
    with pytest.raises(ValueError, match="empty list of prompts"):
        model.sample([], 2)


def test_a_condition_may_be_the_prompt():
    model = make("classes")
    drawn = model.sample(["cat", "dog", "dog"], steps=3, scale=2)
    given = Condition(label=torch.tensor([0, 1, 1]))
    assert torch.equal(model.sample(given, steps=3, scale=2), drawn)
    other = model.sample(given, steps=3, scale=2, negative=Condition(label=torch.tensor([1])))
    assert torch.equal(model.sample(given, steps=3, scale=2, negative="dog"), other)
    one = Condition(label=torch.tensor([1]))
    assert torch.equal(model.sample(one, 3, steps=3), model.sample("dog", 3, steps=3))
    with pytest.raises(ValueError, match="2 rows for 3 images"):
        model.sample(Condition(label=torch.tensor([0, 1])), 3)


def make_without_encoder():
    """A network with fields that no prompt sets."""
    torch.manual_seed(0)
    config = UNetConfig(**SMALL, vector_dim=4, in_channels=5)
    return Diffusion(randomised(UNet(config)), NoiseSchedule.cosine(), "v", (3, 8, 8))


def test_a_model_without_encoder_takes_conditions(tmp_path):
    model = make_without_encoder()
    torch.manual_seed(1)
    given = Condition(vector=torch.randn(3, 4), image=torch.randn(3, 2, 8, 8))
    drawn = model.sample(given, steps=3)
    assert drawn.shape == (3, 3, 8, 8)  # as many as there are rows
    changed = given._replace(vector=given.vector.flip(0))
    each = apart(model.sample(changed, steps=3), drawn)
    assert each[[0, 2]].min() > ROUNDING > each[1]
    # each image keeps its own rows in any batch
    assert apart(model.sample(given, steps=3, batch=2), drawn).max() < ROUNDING
    assert apart(model.sample(given, steps=3, only=[2, 0]), drawn[[2, 0]]).max() < ROUNDING
    # guidance leads away from the fields that `negative` sets; the others are the prompt's
    null = Condition(vector=torch.zeros(1, 4))
    both = given._replace(vector=torch.zeros(3, 4))
    x, level = torch.randn(3, 3, 8, 8), model.schedule.level(500)
    wanted, away = (as_denoiser(model.network, c, predicts="v")(x, level) for c in (given, both))
    guided = model.denoiser(given, 3, negative=null)(x, level)
    expected = away.eps + 3 * (wanted.eps - away.eps)
    torch.testing.assert_close(guided.eps, expected, rtol=0, atol=0.1)
    with pytest.raises(ValueError, match="or a `negative` Condition"):
        model.sample(given, scale=3)

    model.save(tmp_path / "m.safetensors")
    again = zoo.load(tmp_path / "m.safetensors", device="cpu")
    assert again.network.config == model.network.config
    assert apart(again.sample(given, steps=3), drawn).max() < ROUNDING


def test_a_tap_sees_the_network():
    model, seen = make("text"), []

    def tap(level, site, value):
        seen.append(site)
        return value

    model.denoiser("a red circle", tap=tap)(torch.randn(1, 3, 8, 8), model.schedule.level(10))
    assert "mid" in seen and "up1.cross.probs" in seen


def test_a_tap_beside_guidance_sees_the_calls_of_the_prompt_alone():
    model, seen = make("text"), []

    def tap(level, site, value):
        if site == "mid":
            seen.append((level.t, len(value)))
        return value

    def changed(level, site, value):
        return value + 5 if site == "mid" else value

    x, level = torch.randn(2, 3, 8, 8), model.schedule.level(500)
    plain = model.denoiser("a red circle")(x, level).eps
    null = model.denoiser(None)(x, level).eps
    guided = model.denoiser("a red circle", 3)(x, level).eps
    tapped = model.denoiser("a red circle", 3, tap=tap)(x, level).eps
    assert seen == [(500, 2)]
    torch.testing.assert_close(tapped, guided, rtol=0, atol=0.1)
    torch.testing.assert_close(tapped, null + 3 * (plain - null), rtol=0, atol=0.1)
    # what it changes is changed in the prompt's prediction, and there alone
    edited = model.denoiser("a red circle", tap=changed)(x, level).eps
    found = model.denoiser("a red circle", 3, tap=changed)(x, level).eps
    torch.testing.assert_close(found, null + 3 * (edited - null), rtol=0, atol=0.1)
    assert (edited - plain).abs().max() > 0.3

    seen.clear()
    drawn = model.sample("a red circle", 5, scale=3, steps=2, batch=3, tap=tap)
    assert [n for _, n in seen] == [3, 3, 2, 2]
    assert apart(drawn, model.sample("a red circle", 5, scale=3, steps=2)).max() < ROUNDING
    *_, last = model.frames("a red circle", 5, scale=3, steps=2, tap=changed)
    assert apart(last.x, drawn).min() > ROUNDING


# --- what it says of itself -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "classes", "plain"])
def test_a_model_is_described_in_a_few_lines(kind):
    model = make(kind)
    model.card["description"] = "Draws <circles>."
    shown = repr(model)
    assert len(shown.splitlines()) <= 4 and max(map(len, shown.splitlines())) <= 130
    takes = {"text": "captions", "classes": "classes", "plain": "no prompt"}[kind]
    for word in (
        "UNet",
        "predicts v",
        "3 x 8 x 8",
        f"takes {takes}",
        "Draws <circles>.",
        "T = 1000",
    ):
        assert word in shown
    html = model._repr_html_()
    assert "Draws &lt;circles&gt;." in html and 'src="data:image/png;base64,' in html


def test_thumbnails_are_samples_of_seed_0():
    model = make("classes")
    image = model._thumbnails(4)
    assert image.size == (2 * 4 * 8, 2 * 8)
    names = ["cat", "dog", "cat", "dog"]
    drawn = model.sample(names, scale=2, steps=15, step=dpmpp_2m_step)
    pixels = torch.from_numpy(np.array(image))[::2, ::2].permute(2, 0, 1).float()  # (3,8,32)
    assert (pixels / 127.5 - 1 - torch.cat(list(drawn), dim=2)).abs().max() < 0.01


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "call", "told"),
    [
        ("text", lambda m: m.sample("a green circle"), "unknown word 'green'"),
        ("classes", lambda m: m.sample("cow"), "unknown class 'cow': expected one of cat, dog"),
        ("classes", lambda m: m.sample(7), "unknown class 7"),
        ("text", lambda m: m.sample(0), "takes captions, not the number 0"),
        ("plain", lambda m: m.sample("cat"), "unconditional"),
        ("plain", lambda m: m.sample("cat", scale=3), "unconditional"),
        ("plain", lambda m: m.sample(None, scale=3), "guidance needs a model with prompts"),
        ("classes", lambda m: m.sample("cat", scale=float("nan")), "finite"),
        ("classes", lambda m: m.sample(["cat", "dog"], 3), "2 rows for 3 images"),
        ("classes", lambda m: next(m.frames(["cat", "dog"], 3)), "2 rows for 3 images"),
        ("classes", lambda m: m.sample("cat", steps=1001), "1001 steps"),
        ("classes", lambda m: m.sample("cat", 0), "cannot draw 0 images"),
        ("classes", lambda m: m.sample("cat", batch=0), "batch is 0: expected at least 1"),
        ("classes", lambda m: m.sample("cat", spacing="even"), "unknown spacing 'even'"),
        ("classes", lambda m: m.sample("cat", 3, start=torch.zeros(2, 3, 8, 8)), r"\(3, 3, 8, 8\)"),
        ("classes", lambda m: m.sample("cat", start=torch.zeros(2, 3, 4, 4)), "start has shape"),
        ("classes", lambda m: m.frames("cat", start=torch.zeros(2, 3, 4, 4)), "start has shape"),
        ("classes", lambda m: m.sample("cat", 2, scale=2, negative="cow"), "unknown class 'cow'"),
        (
            "classes",
            lambda m: m.sample("cat", 4, scale=2, negative=["cat", "dog"]),
            "2 rows for 4 images",
        ),
        ("plain", lambda m: m.sample(None, negative="cat", scale=2), "a model with prompts"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(kind, call, told):
    with pytest.raises(ValueError, match=told):
        call(make(kind))
