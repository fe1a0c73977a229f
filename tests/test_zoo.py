"""Models: saving, loading, conditions, and that guidance and seeds mean what they say."""

from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
import torch
from torch import Generator, nn

from minidiff import checkpoint, zoo
from minidiff.condition import Condition
from minidiff.denoiser import as_denoiser
from minidiff.device import autocast
from minidiff.guidance import clamp, classifier_free, guide_by_x0
from minidiff.noise import per_image
from minidiff.samplers import ddim_step, ddpm_step, dpmpp_2m_step, heun_step, sample
from minidiff.schedule import NoiseSchedule
from minidiff.text import ClassLabels, TextConfig, TextEncoder
from minidiff.unet import UNet, UNetConfig

SMALL = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "groups": 8, "dropout": 0.0}
WORDS = ("a", "red", "blue", "circle", "square")


def randomised(module):
    """No zero initialisation: every weight matters."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return module.eval().requires_grad_(False)


def make(kind: str) -> zoo.Diffusion:
    torch.manual_seed(0)
    encoder, options = None, {}
    if kind == "text":
        encoder = randomised(TextEncoder(TextConfig(words=WORDS, length=6, width=16)))
        options = {"context_dim": 16, "cross_attention": (0, 1)}
    if kind == "classes":
        encoder, options = ClassLabels(("cat", "dog")), {"classes": 2}
    network = randomised(UNet(UNetConfig(**SMALL, **options)))
    card = {"data": "none"}
    return zoo.Diffusion(network, NoiseSchedule.cosine(), "v", (3, 8, 8), encoder, card=card)


def apart(x, y):
    """The largest difference of each image."""
    return (x - y).abs().amax((1, 2, 3))


ROUNDING = 0.1  # of samples: bfloat16, where it is fast, sums in another order


@pytest.mark.parametrize("kind", ["text", "classes", "plain"])
def test_what_is_saved_comes_back(kind, tmp_path):
    model = make(kind)
    model.save(tmp_path / "m.safetensors")
    again = zoo.load(tmp_path / "m.safetensors", device="cpu")
    assert again.network.config == model.network.config and again.card == model.card
    assert again.schedule == model.schedule and again.predicts == model.predicts
    assert again.shape == model.shape and again.size == 8
    assert (again.encoder is None) == (model.encoder is None)
    if kind == "classes":
        assert again.encoder == model.encoder
    weights, halves = model.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(weights[k].half().float(), halves[k]) for k in weights)
    prompt = {"text": "a red circle", "classes": "dog", "plain": None}[kind]
    one, two = (m.sample(prompt, 2, steps=3) for m in (model, again))
    assert (one - two).abs().max() < 0.1  # the weights were rounded to half precision
    assert not again.network.training
    about = checkpoint.about(tmp_path / "m.safetensors")
    types = {"text": "TextEncoder", "classes": "ClassLabels", "plain": None}
    assert about["version"] == 2 and about["network"]["type"] == "UNet"
    assert (about["encoder"] or {}).get("type") == types[kind] and about["decoder"] is None
    # halves are saved as they are: from then on samples are equal bit for bit
    again.save(tmp_path / "again.safetensors")
    third = zoo.load(tmp_path / "again.safetensors", device="cpu")
    assert torch.equal(third.sample(prompt, 2, steps=3), two)


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
    return zoo.Diffusion(randomised(UNet(config)), NoiseSchedule.cosine(), "v", (3, 8, 8))


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


def test_sampling_may_start_from_given_noise():
    model = make("classes")
    start = model.noise(3, per_image(Generator().manual_seed(5), 3))
    drawn = model.sample("cat", 3, steps=3, seed=5)
    assert torch.equal(model.sample("cat", 3, steps=3, start=start), drawn)
    assert torch.equal(model.sample("cat", steps=3, start=start), drawn)  # n is that of the start
    some = model.sample("cat", steps=3, start=start, only=[2, 0], batch=1)
    assert apart(some, drawn[[2, 0]]).max() < ROUNDING
    assert apart(model.sample("cat", 3, steps=3), drawn).min() > ROUNDING


def test_as_many_are_drawn_as_there_are_prompts_or_sixteen():
    model = make("classes")
    for prompt in (None, "cat", 1, Condition(label=torch.tensor([1]))):
        assert len(model.sample(prompt, steps=1)) == 16
    assert len(model.sample(["cat", "dog", 0], steps=1)) == 3
    assert len(model.sample(Condition(label=torch.tensor([1, 0])), steps=1)) == 2
    assert len(list(model.frames(["cat", "dog"], steps=2))[-1].x) == 2


@pytest.mark.parametrize(
    ("step", "calls"), [(ddim_step, 6), (heun_step, 11), (dpmpp_2m_step, 6)], ids=str
)
def test_a_step_is_given_the_path_that_suits_it(step, calls, monkeypatch):
    model, times = make("plain"), []
    run = zoo.Diffusion.run

    def watched(self, x, t, condition=None):
        times.append(t[0])
        return run(self, x, t, condition)

    monkeypatch.setattr(zoo.Diffusion, "run", watched)
    model.sample(n=1, steps=6, step=step)
    spacing = "trailing" if step is ddim_step else "log_snr"
    visited = {round(level.t - 1, 3) for level in model.schedule.path(6, spacing)[:-1]}
    assert {round(t.item(), 3) for t in times} == visited and len(times) == calls
    times.clear()
    model.sample(n=1, steps=6, step=step, spacing="leading")
    assert {t.item() for t in times} == {830, 664, 498, 332, 166, 0}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 16), (1, 16, 4)])
def test_any_number_of_channels_and_any_sides(shape, tmp_path):
    torch.manual_seed(0)
    channels = {"in_channels": shape[0], "out_channels": shape[0], "classes": 2}
    network = randomised(UNet(UNetConfig(**SMALL, **channels)))
    labels = ClassLabels(("cat", "dog"))
    model = zoo.Diffusion(network, NoiseSchedule.cosine(), "v", shape, labels)
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
    assert apart(again.sample("cat", 2, steps=4, scale=2), drawn).max() < ROUNDING


def test_progress_is_one_bar_over_all_batches_and_changes_nothing(capsys):
    model = make("plain")
    shown = model.sample(n=5, steps=3, batch=2, progress=True)
    assert "sampling" in (told := capsys.readouterr().err) and "9/9" in told
    assert torch.equal(shown, model.sample(n=5, steps=3, batch=2))
    assert capsys.readouterr().err == ""


def test_inversion_finds_the_noise_that_draws_the_images():
    model = make("classes")
    # an image that the model could draw, and so needs no clamping
    x0 = 0.3 * torch.randn(2, 3, 8, 8)
    noise = model.invert(x0, "cat", steps=200)
    assert noise.shape == x0.shape and not noise.requires_grad
    denoise, path = model.for_sampling().denoiser("cat"), model.schedule.path(200)
    with torch.no_grad(), autocast(model.device):
        again = sample(ddim_step, denoise, noise, path)
        other = sample(ddim_step, denoise, model.noise(2, None), path)
    assert (again - x0).square().mean() < 0.05 * (other - x0).square().mean()


# --- what a model says of itself ------------------------------------------------------------------


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


# --- parts of your own ----------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnConfig:
    width: int = 8


class OwnNetwork(nn.Module):
    """A small network that knows only the image, the time and a vector."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.first = nn.Conv2d(3, config.width, 3, padding=1)
        self.last = nn.Conv2d(config.width, 3, 3, padding=1)
        self.register_buffer("calls", torch.tensor(7))  # a whole number stays one

    def forward(self, x, t, condition=None, *, tap=None):
        h = torch.tanh(self.first(x) + (t.float() / 1000)[:, None, None, None])
        h = h if condition is None else h + condition.vector.mean(1)[:, None, None, None]
        return self.last(h if tap is None else tap("middle", h)).to(x.dtype)


class OwnEncoder(nn.Module):
    """Prompts are moods, encoded as vectors."""

    takes = "moods"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.table = nn.Embedding(3, config.width)

    def tokenize(self, prompts):
        moods = {"calm": 0, "wild": 1, "": 2, None: 2}
        if unknown := [p for p in prompts if p not in moods]:
            raise ValueError(f"unknown mood {unknown[0]!r}: expected calm or wild")
        return torch.tensor([moods[p] for p in prompts])

    def forward(self, ids):
        return Condition(vector=self.table(ids))


class OwnDecoder(nn.Module):
    """Images are latents at twice the size, brighter by a learnt number."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.gain = nn.Parameter(torch.tensor(0.5))

    def encode(self, images):
        return nn.functional.avg_pool2d(images / self.gain, 2)

    def decode(self, latents):
        return self.gain * latents.repeat_interleave(2, 2).repeat_interleave(2, 3)


OWN = {
    name: lambda config, kind=kind: kind(OwnConfig(**config))
    for name, kind in {
        "OwnNetwork": OwnNetwork,
        "OwnEncoder": OwnEncoder,
        "OwnDecoder": OwnDecoder,
    }.items()
}


def make_own():
    torch.manual_seed(0)
    network, encoder, decoder = (
        kind(OwnConfig(6)) for kind in (OwnNetwork, OwnEncoder, OwnDecoder)
    )
    for part in (network, encoder):
        part.requires_grad_(False)
    return zoo.Diffusion(
        network.eval(), NoiseSchedule.flow(), "flow", (3, 4, 4), encoder.eval(), decoder.eval()
    )


def test_networks_encoders_and_decoders_of_your_own_are_saved_and_loaded(tmp_path):
    model, path = make_own(), tmp_path / "m.safetensors"
    options = {"steps": 4, "scale": 2, "step": heun_step}
    drawn = model.sample(["calm", "wild"], **options)
    assert drawn.shape == (2, 3, 8, 8)  # decoded
    assert apart(*drawn[:, None]).max() > 1e-3 and "takes moods" in repr(model)
    *_, last = model.frames(["calm", "wild"], **options)  # which are latents
    torch.testing.assert_close(model.decoder.decode(last.x), drawn)
    with pytest.raises(ValueError, match="unknown mood 'red'"):
        model.sample("red")
    model.save(path)
    again = zoo.load(path, device="cpu", types=OWN)
    for name in ("network", "encoder", "decoder"):
        part = getattr(again, name)
        assert part.config == OwnConfig(6) and not part.training
    assert again.network.calls == 7 and again.network.calls.dtype == torch.int64
    assert apart(again.sample(["calm", "wild"], **options), drawn).max() < ROUNDING

    for missing in OWN:
        types = {name: make for name, make in OWN.items() if name != missing}
        told = (
            f"m.safetensors holds a {missing}, which minidiff does not know: expected one of UNet"
        )
        with pytest.raises(ValueError, match=told) as error:
            zoo.load(path, types=types)
        assert "\n" not in str(error.value) and "types={" in str(error.value)


def test_latents_are_not_clamped_and_images_are_encoded_before_inversion():
    model = make_own()
    *_, last = model.frames("wild", 2, steps=3)
    assert last.x.abs().max() > 0 and model.sample("wild", 2, steps=3).shape == (2, 3, 8, 8)
    huge = replace(model, network=Constant(5.0), predicts="x0")  # as latents may be
    assert torch.equal(huge.sample(n=2, steps=2), torch.full((2, 3, 8, 8), 2.5))
    pixels = replace(huge, decoder=None)
    assert torch.equal(pixels.sample(n=2, steps=2), torch.ones(2, 3, 4, 4))
    images = torch.rand(2, 3, 8, 8)
    latents, plain = model.decoder.encode(images), replace(model, decoder=None)
    torch.testing.assert_close(model.invert(images, steps=9), plain.invert(latents, steps=9))


class Constant(nn.Module):
    """Predicts one number everywhere; it has no `config`, so it cannot be saved."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value), requires_grad=False)

    def forward(self, x, t, condition=None):
        return self.value.expand_as(x)


@pytest.mark.parametrize("name", ["network", "decoder", "encoder"])
def test_a_part_without_its_configuration_is_not_saved(name, tmp_path):
    model = replace(make("plain"), **{name: Constant(1.0)})
    told = f"the {name}, a Constant, has no `config`: expected a dataclass"
    with pytest.raises(ValueError, match=told):
        model.save(tmp_path / "m.safetensors")
    getattr(model, name).config = {"value": 1.0}  # a dictionary is none
    with pytest.raises(ValueError, match=told):
        model.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


# --- files of other versions ----------------------------------------------------------------------


def first_version(kind):
    """(model, tensors, description) of a file as version 1 wrote it."""
    model = make(kind)
    tensors = {f"network.{k}": v.half() for k, v in model.network.state_dict().items()}
    config = asdict(model.network.config)
    del config["vector_dim"]  # which it did not know
    about = {"kind": "diffusion", "network": config, "predicts": "v", "size": 8, "card": model.card}
    if kind == "text":
        tensors |= {f"encoder.{k}": v.half() for k, v in model.encoder.state_dict().items()}
        about["text"] = asdict(model.encoder.config)
    if kind == "classes":
        about["classes"] = ["cat", "dog"]
    tensors["alpha_bar"] = model.schedule.alpha_bar
    return model, tensors, about


@pytest.mark.parametrize("kind", ["text", "classes", "plain"])
def test_files_of_version_1_are_read(kind, tmp_path):
    model, tensors, about = first_version(kind)
    checkpoint.save(tmp_path / "old.safetensors", tensors, about)
    old = zoo.load(tmp_path / "old.safetensors", device="cpu")
    model.save(tmp_path / "new.safetensors")
    new = zoo.load(tmp_path / "new.safetensors", device="cpu")
    assert old.network.config == new.network.config and old.shape == new.shape == (3, 8, 8)
    assert type(old.encoder) is type(new.encoder) and old.card == new.card
    torch.testing.assert_close(old.schedule.sigma, new.schedule.sigma, rtol=0, atol=1e-12)
    prompt = {"text": "a red circle", "classes": "dog", "plain": None}[kind]
    assert apart(old.sample(prompt, 2, steps=3), new.sample(prompt, 2, steps=3)).max() < 1e-4


def test_the_description_of_version_1_is_upgraded():
    _, _, about = first_version("classes")
    about["network"] |= {"null_class": False, "out_channels": 1}
    new = zoo.upgrade(about)
    assert new["version"] == 2 and new["shape"] == [1, 8, 8] and new["decoder"] is None
    assert new["encoder"] == {"type": "ClassLabels", "names": ["cat", "dog"], "has_null": False}
    assert new["network"] == {"type": "UNet", **about["network"]}
    assert (new["predicts"], new["card"]) == ("v", {"data": "none"})
    assert zoo.upgrade(new) is new  # a later one is taken as it is
    assert zoo.upgrade(first_version("text")[2])["encoder"]["words"] == WORDS
    assert zoo.upgrade(first_version("plain")[2])["encoder"] is None


def test_a_file_of_a_later_version_asks_for_an_update(tmp_path):
    make("plain").save(tmp_path / "m.safetensors")
    tensors, about = checkpoint.load(tmp_path / "m.safetensors")
    checkpoint.save(tmp_path / "m.safetensors", tensors, about | {"version": 3})
    told = "is of version 3, and this minidiff reads up to 2: update minidiff"
    with pytest.raises(ValueError, match=told):
        zoo.load(tmp_path / "m.safetensors")


def test_the_folder_of_a_run_is_its_model(tmp_path):
    make("classes").save(tmp_path / "model.safetensors")
    assert zoo.load(tmp_path).encoder == zoo.load(tmp_path / "model.safetensors").encoder


def test_numbers_of_classes_may_be_numpys_and_no_prompts_are_refused():
    model = make("classes")
    assert (
        model.condition([np.int64(1)]).label.tolist() == [1] == model.condition([1]).label.tolist()
    )
    with pytest.raises(ValueError, match="empty list of prompts"):
        model.sample([], 2)


def test_a_copy_of_a_copy_samples_the_same():
    model = make("classes")
    once, twice = model.for_sampling(), model.for_sampling().for_sampling()
    assert torch.equal(once.sample(1, 2, steps=3), twice.sample(1, 2, steps=3))


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


def test_prompts_reach_their_own_image():
    model, level = make("classes"), NoiseSchedule.cosine().level(500)
    x = torch.randn(1, 3, 8, 8).expand(3, -1, -1, -1)
    with torch.no_grad():
        each = model.denoiser(["cat", "dog", 0])(x, level).eps
    assert (each[0] - each[2]).abs().max() < 1e-2  # bfloat16 may sum rows in another order
    assert (each[0] - each[1]).abs().max() > 0.1


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
        ("classes", lambda m: m.sample("cat", batch=0), "batch is 0: expected at least 1 image"),
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


def test_a_model_without_null_class_says_so_also_when_it_was_saved(tmp_path):
    network = UNet(UNetConfig(**SMALL, classes=2, null_class=False))
    labels = ClassLabels(("cat", "dog"), has_null=False)
    model = zoo.Diffusion(network, NoiseSchedule.cosine(), "v", (3, 8, 8), labels)
    model.save(tmp_path / "m.safetensors")
    for one in (model, zoo.load(tmp_path / "m.safetensors")):
        with pytest.raises(ValueError, match="needs a class"):
            one.sample(None)


def test_unknown_names_and_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model 'nothing': expected a file"):
        zoo.load("nothing")
    checkpoint.save(tmp_path / "x.safetensors", {"a": torch.ones(1)}, {"kind": "classifier"})
    with pytest.raises(ValueError, match="holds a classifier, not a diffusion model"):
        zoo.load(tmp_path / "x.safetensors")
    make("plain").save(tmp_path / "m.safetensors")
    tensors, about = checkpoint.load(tmp_path / "m.safetensors")
    networks = [{"depth": 3}, about["network"] | {"depth": 3}]
    other = [about | {"network": network} for network in networks]
    other += [{k: about[k] for k in ("kind", "network")}]
    other += [{k: v for k, v in about.items() if k != "shape"}]
    for changed in other:
        checkpoint.save(tmp_path / "x.safetensors", tensors, changed)
        with pytest.raises(ValueError, match="written by another version of minidiff"):
            zoo.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", sorted(zoo.names()))
def test_shipped_models_draw_and_say_what_they_are(name):
    path = zoo.names()[name]
    assert path.stat().st_size < 16e6
    assert path.with_suffix(".md").is_file()
    model = zoo.load(name, device="cpu")
    assert model.card["data"] and model.card["images_seen"] > 0
    x = model.sample(n=2, steps=8)
    assert x.shape == (2, 3, model.size, model.size) and x.isfinite().all()
    assert x.std() > 0.1  # a picture, not mud


def test_diffusers_folders_go_both_ways(tmp_path):
    torch.manual_seed(0)
    config = UNetConfig(**SMALL, classes=3, null_class=False, pad_both_sides=True)
    model = zoo.Diffusion(randomised(UNet(config)), NoiseSchedule.linear(), "eps", (3, 8, 8))
    zoo.to_diffusers(model, tmp_path)
    again = zoo.from_diffusers(tmp_path, device="cpu")
    assert again.shape == (3, 8, 8) and again.predicts == "eps" and len(again.encoder.names) == 3
    weights = again.network.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in model.network.state_dict().items())
    assert again.sample("2", 2, steps=2).shape == (2, 3, 8, 8)


def test_all_that_ships_is_small():
    assert sum(path.stat().st_size for path in zoo.names().values()) < 60e6
