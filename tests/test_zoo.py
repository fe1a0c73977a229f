"""Models: saving, loading, conditions, and that guidance and seeds mean what they say."""

import numpy as np
import pytest
import torch

from minidiff import checkpoint, zoo
from minidiff.device import autocast
from minidiff.guidance import clamp
from minidiff.noise import per_image
from minidiff.samplers import ddim_step, ddpm_step, sample
from minidiff.schedule import NoiseSchedule
from minidiff.text import TextConfig, TextEncoder
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
        encoder, options = zoo.ClassLabels(("cat", "dog")), {"classes": 2}
    network = randomised(UNet(UNetConfig(**SMALL, **options)))
    return zoo.Diffusion(network, NoiseSchedule.cosine(), "v", 8, encoder, {"data": "none"})


@pytest.mark.parametrize("kind", ["text", "classes", "plain"])
def test_what_is_saved_comes_back(kind, tmp_path):
    model = make(kind)
    zoo.save(tmp_path / "m.safetensors", model)
    again = zoo.load(tmp_path / "m.safetensors", device="cpu")
    assert again.network.config == model.network.config and again.card == model.card
    assert torch.equal(again.schedule.alpha_bar, model.schedule.alpha_bar)
    weights, halves = model.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(weights[k].half().float(), halves[k]) for k in weights)
    prompt = {"text": "a red circle", "classes": "dog", "plain": None}[kind]
    one, two = (m.sample(prompt, 2, steps=3) for m in (model, again))
    assert (one - two).abs().max() < 0.1  # the weights were rounded to half precision
    assert not again.network.training


def test_image_i_of_a_seed_is_the_same_alone_and_in_a_batch():
    model = make("classes")
    prompts = ["cat", "dog"] * 8
    many = model.sample(prompts, 16, steps=4, scale=2, seed=3, step=ddpm_step)
    few = model.sample(prompts[:3], 3, steps=4, scale=2, seed=3, step=ddpm_step)
    assert (many[:3] - few).abs().max() < 0.1  # bfloat16 sums in another order
    other = model.sample(prompts[:3], 3, steps=4, scale=2, seed=4, step=ddpm_step)
    assert (many[:3] - other).abs().amax((1, 2, 3)).min() > 1


def test_the_folder_of_a_run_is_its_model(tmp_path):
    zoo.save(tmp_path / "model.safetensors", make("classes"))
    assert zoo.load(tmp_path).encoder == zoo.load(tmp_path / "model.safetensors").encoder


def test_numbers_of_classes_may_be_numpys_and_no_prompts_are_refused():
    model = make("classes")
    assert torch.equal(model.condition([np.int64(1)]), model.condition([1]))
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
    with pytest.raises(ValueError, match="a tap sees one condition"):
        model.denoiser("a red circle", 3, tap=tap)


@pytest.mark.parametrize(
    ("kind", "call", "told"),
    [
        ("text", lambda m: m.sample("a green circle"), "unknown word 'green'"),
        ("classes", lambda m: m.sample("cow"), "unknown class 'cow': expected one of cat, dog"),
        ("classes", lambda m: m.sample(7), "unknown class 7"),
        ("text", lambda m: m.sample(0), "takes captions, not the number 0"),
        ("plain", lambda m: m.sample("cat"), "unconditional"),
        ("plain", lambda m: m.sample("cat", scale=3), "unconditional"),
        ("plain", lambda m: m.sample(None, scale=3), "guidance needs a conditional model"),
        ("classes", lambda m: m.sample("cat", scale=float("nan")), "finite"),
        ("classes", lambda m: m.sample(["cat", "dog"], 3), "2 conditions for 3 images"),
        ("classes", lambda m: m.sample("cat", steps=1001), "1001 steps"),
        ("classes", lambda m: m.sample("cat", 0), "cannot draw 0 images"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(kind, call, told):
    with pytest.raises(ValueError, match=told):
        call(make(kind))


def test_a_model_without_null_class_says_so_also_when_it_was_saved(tmp_path):
    network = UNet(UNetConfig(**SMALL, classes=2, null_class=False))
    labels = zoo.ClassLabels(("cat", "dog"), has_null=False)
    model = zoo.Diffusion(network, NoiseSchedule.cosine(), "v", 8, labels)
    zoo.save(tmp_path / "m.safetensors", model)
    for one in (model, zoo.load(tmp_path / "m.safetensors")):
        with pytest.raises(ValueError, match="needs a class"):
            one.sample(None)


def test_unknown_names_and_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model 'nothing': expected a file"):
        zoo.load("nothing")
    checkpoint.save(tmp_path / "x.safetensors", {"a": torch.ones(1)}, {"kind": "classifier"})
    with pytest.raises(ValueError, match="holds a classifier, not a diffusion model"):
        zoo.load(tmp_path / "x.safetensors")
    zoo.save(tmp_path / "m.safetensors", make("plain"))
    tensors, about = checkpoint.load(tmp_path / "m.safetensors")
    for changed in (about | {"network": {"depth": 3}}, {k: about[k] for k in ("kind", "network")}):
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
    model = zoo.Diffusion(randomised(UNet(config)), NoiseSchedule.linear(), "eps", 8)
    zoo.to_diffusers(model, tmp_path)
    again = zoo.from_diffusers(tmp_path, device="cpu")
    assert again.size == 8 and again.predicts == "eps" and len(again.encoder.names) == 3
    weights = again.network.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in model.network.state_dict().items())
    assert again.sample("2", 2, steps=2).shape == (2, 3, 8, 8)


def test_all_that_ships_is_small():
    assert sum(path.stat().st_size for path in zoo.names().values()) < 60e6
