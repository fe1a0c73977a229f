"""Files of models: what is saved comes back, files of version 1 are read, others are refused."""

from dataclasses import asdict, replace

import pytest
import torch
from small_models import (
    OWN,
    SMALL,
    WORDS,
    Constant,
    OwnConfig,
    apart,
    make,
    make_own,
    randomised,
)

from minidiff import checkpoint, zoo
from minidiff.diffusion import Diffusion
from minidiff.samplers import heun_step
from minidiff.schedule import NoiseSchedule
from minidiff.text import ClassLabels
from minidiff.unet import UNet, UNetConfig


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


def test_the_folder_of_a_run_is_its_model(tmp_path):
    make("classes").save(tmp_path / "model.safetensors")
    assert zoo.load(tmp_path).encoder == zoo.load(tmp_path / "model.safetensors").encoder


def test_a_model_without_null_class_says_so_also_when_it_was_saved(tmp_path):
    network = UNet(UNetConfig(**SMALL, classes=2, null_class=False))
    labels = ClassLabels(("cat", "dog"), has_null=False)
    model = Diffusion(network, NoiseSchedule.cosine(), "v", (3, 8, 8), labels)
    model.save(tmp_path / "m.safetensors")
    for one in (model, zoo.load(tmp_path / "m.safetensors")):
        with pytest.raises(ValueError, match="needs a class"):
            one.sample(None)


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
    assert again.network.calls == 2**24 + 1 and again.network.calls.dtype == torch.int64
    same = again.sample(["calm", "wild"], **options)
    assert (same - drawn).norm() < 0.1 * drawn.norm()  # the weights were rounded
    again.save(path)
    third = zoo.load(path, device="cpu", types=OWN)
    assert torch.equal(third.sample(["calm", "wild"], **options), same)

    for missing in OWN:
        types = {name: make for name, make in OWN.items() if name != missing}
        told = (
            f"m.safetensors holds a {missing}, which minidiff does not know: expected one of UNet"
        )
        with pytest.raises(ValueError, match=told) as error:
            zoo.load(path, types=types)
        assert "\n" not in str(error.value) and "types={" in str(error.value)


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


# --- what ships, and what others publish ----------------------------------------------------------


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


def test_all_that_ships_is_small():
    assert sum(path.stat().st_size for path in zoo.names().values()) < 60e6


def test_diffusers_folders_go_both_ways(tmp_path):
    torch.manual_seed(0)
    config = UNetConfig(**SMALL, classes=3, null_class=False, pad_both_sides=True)
    model = Diffusion(randomised(UNet(config)), NoiseSchedule.linear(), "eps", (3, 8, 8))
    zoo.to_diffusers(model, tmp_path)
    again = zoo.from_diffusers(tmp_path, device="cpu")
    assert again.shape == (3, 8, 8) and again.predicts == "eps" and len(again.encoder.names) == 3
    weights = again.network.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in model.network.state_dict().items())
    assert again.sample("2", 2, steps=2).shape == (2, 3, 8, 8)
