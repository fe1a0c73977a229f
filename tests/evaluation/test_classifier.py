import os

import pytest
import torch

from minidiff import checkpoint
from minidiff.data.images import ImageSet, cifar10, to_float
from minidiff.evaluation import classifier
from minidiff.evaluation.classifier import (
    Classifier,
    ClassifierConfig,
    Lookahead,
    Recipe,
    _whiten,
    card,
    grade,
    load_classifier,
    predict,
    save_classifier,
    shipped_path,
    train,
    triangle,
)
from minidiff.metrics import wilson

with_data = pytest.mark.skipif("MINIDIFF_DATA" not in os.environ, reason="MINIDIFF_DATA is not set")
TINY = (8, 16, 16)
QUICK = Recipe(epochs=5, batch=32, label_smoothing=0.0)


def stripes(n: int, seed: int) -> ImageSet:
    """Three classes that no single pixel and no mean colour tells apart: |, -, and / stripes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    phase = 6.28 * torch.rand(n, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    along = torch.stack([x, y, (x + y) / 2])[labels]  # (n, 32, 32)
    wave = torch.sin(along + phase)[:, None] * 90 + 128  # (n, 1, 32, 32)
    noise = 30 * torch.randn(n, 3, 32, 32, generator=generator)
    return ImageSet((wave + noise).clamp(0, 255).byte(), labels, ("|", "-", "/"))


@pytest.fixture(scope="module")
def shipped() -> Classifier:
    return load_classifier()


@pytest.fixture(scope="module")
def tiny() -> Classifier:
    return train(stripes(256, seed=0), TINY, QUICK)


# --- the shipped weights -----------------------------------------------------------------------


def test_shipped_file_keeps_its_promises(shipped):
    path = shipped_path()
    report = checkpoint.about(path)
    assert report["accuracy"] >= 0.88 and report["test_images"] == 10_000
    assert len(report["class_accuracy"]) == len(shipped.config.classes) == 10
    assert path.stat().st_size <= 5e6
    assert path.with_suffix(".md").read_text() == card(path)
    assert not shipped.training and not any(p.requires_grad for p in shipped.parameters())


@with_data
def test_shipped_accuracy_on_real_images(shipped):
    test = cifar10(train=False)
    images, labels = test.images[:1000], test.labels[:1000]
    assert test.classes == shipped.config.classes
    stated = checkpoint.about(shipped_path())["accuracy"]

    def accuracy(x, y):
        return (predict(shipped, x) == y).float().mean().item()

    low, high = wilson(round(1000 * accuracy(images, labels)), 1000)
    assert low <= stated <= high
    # what the grader must notice: wrong colours, images upside down, images of other classes
    some, names = images[:200], labels[:200]
    assert accuracy(some.flip(1), names) < stated - 0.05
    assert accuracy(some.flip(2), names) < stated - 0.15
    assert accuracy(some.roll(1, 0), names) < 0.25


@with_data
def test_features_tell_real_images_from_broken_ones(shipped):
    """A Frechet distance is only as good as its features: damage must move their mean."""
    x = to_float(cifar10(train=False).images[:200])
    with torch.inference_mode():
        one, two = (shipped.features(half).mean(0) for half in x.split(100))
        noise = torch.randn(100, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        noisy = shipped.features((x[:100] + 0.2 * noise).clamp(-1, 1)).mean(0)
        small = torch.nn.functional.avg_pool2d(x[:100], 2).repeat_interleave(2, 2)
        blurred = shipped.features(small.repeat_interleave(2, 3)).mean(0)
    floor = (one - two).norm()
    assert (two - noisy).norm() > 2 * floor
    assert (two - blurred).norm() > 2 * floor


def test_features_are_deterministic_and_independent_of_the_batch(shipped):
    x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = shipped.features(x)
    assert features.shape == (16, 256) and features.isfinite().all()
    assert torch.equal(features, shipped.features(x))
    alone = torch.cat([shipped.features(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, features[:3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shipped(x), shipped.head(features) / 9)
    # control: batch statistics, as in training, would make an image depend on its neighbours
    forgot_eval = load_classifier().train()
    assert (forgot_eval.features(x[:3]) - forgot_eval.features(x)[:3]).abs().max() > 0.01


def test_gradients_reach_the_images(shipped):
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    shipped(x).logsumexp(1).sum().backward()
    assert x.grad.abs().max() > 0


# --- bad images --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 32, 32), r"shape \(B, 3, 32, 32\), got \(3, 32, 32\)"),
        (torch.zeros(2, 3, 64, 64), r"got \(2, 3, 64, 64\)"),
        (torch.zeros(2, 1, 32, 32), r"got \(2, 1, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"expected float images .* got torch.uint8"),
        (torch.full((2, 3, 32, 32), 255.0), r"pixels in \[-1, 1\], got \[255, 255\]"),
        (torch.full((2, 3, 32, 32), -1.2), r"clamp or rescale"),
        (torch.full((2, 3, 32, 32), 1.2), r"clamp or rescale"),
        (torch.full((2, 3, 32, 32), float("nan")), r"got \[nan, nan\]"),
        (torch.rand(8, 3, 32, 32), r"images in \[0, 1\] need 2 \* x - 1"),
    ],
)
@pytest.mark.parametrize("method", ["features", "forward"])
def test_wrong_images_are_refused_in_one_sentence(images, message, method):
    model = Classifier(ClassifierConfig(TINY, ("a", "b")))
    with pytest.raises(ValueError, match=message) as error:
        getattr(model, method)(images)
    assert "\n" not in str(error.value)


def test_unusual_but_right_images_pass():
    model = Classifier(ClassifierConfig(TINY, ("a", "b"))).eval()
    assert model(torch.ones(1, 3, 32, 32)).shape == (1, 2)  # a white picture is a picture
    assert model(torch.rand(8, 3, 32, 32) * 2 - 1).shape == (8, 2)
    assert model.features(torch.zeros(0, 3, 32, 32)).shape == (0, 16)


# --- training ----------------------------------------------------------------------------------


def test_training_learns_and_shuffled_labels_teach_nothing(tiny):
    test = stripes(300, seed=1)
    assert (predict(tiny, test.images) == test.labels).float().mean() > 0.9
    data = stripes(256, seed=0)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(2))
    fooled = train(ImageSet(data.images, data.labels[order], data.classes), TINY, QUICK)
    assert (predict(fooled, test.images) == test.labels).float().mean() < 0.6


def test_grades_are_shares_of_right_answers(tiny):
    test = stripes(300, seed=1)
    wrong = grade(tiny, ImageSet(test.images, (test.labels + 1) % 3, test.classes))
    right = grade(tiny, test)
    assert right["accuracy"] > 0.9 > 0.1 > wrong["accuracy"]
    counts = test.labels.bincount() / len(test)
    mean = (torch.tensor(right["class_accuracy"]) * counts).sum().item()
    assert right["accuracy"] == pytest.approx(mean, abs=1e-6)
    assert right["noisy_accuracy"] > 0.9  # these stripes are noisy already


def test_training_repeats_for_a_seed_and_leaves_the_global_generator_alone():
    data, short = stripes(64, seed=0), Recipe(epochs=1, batch=32)
    before = torch.get_rng_state()
    one = train(data, TINY, short)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(123)  # must not matter
    two = train(data, TINY, short)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other = train(data, TINY, Recipe(epochs=1, batch=32, seed=1))
    assert not torch.equal(one.head.weight, other.head.weight)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ImageSet(stripes(40, 0).images), "with labels and class names"),
        (stripes(10, 0), r"at least 32 \(one batch\) pictures of 32x32, got 10 of 32x32"),
        (
            ImageSet(torch.zeros(40, 3, 16, 8).byte(), torch.zeros(40).long(), ("a",)),
            "got 40 of 8x16",
        ),
    ],
)
def test_training_refuses_unsuitable_data(data, message):
    with pytest.raises(ValueError, match=message):
        train(data, TINY, QUICK)


def test_first_layer_whitens():
    images = stripes(200, seed=0).images // 2  # dark: the mean must be taken off, too
    model = Classifier(ClassifierConfig(TINY, ("a",)))

    def moments():
        out = model.whiten(to_float(images)).detach()[:, :12]  # the other 12 are their negatives
        out = out.transpose(0, 1).flatten(1)  # (12, N * 961)
        return torch.cat([out.mean(1, keepdim=True), out.cov()], dim=1)  # (12, 13)

    white = torch.cat([torch.zeros(12, 1), torch.eye(12)], dim=1)
    unset = (moments() - white).abs().max()
    _whiten(model.whiten, images)
    assert (moments() - white).abs().max() < 0.02 < unset


def test_schedule_and_lookahead():
    assert [triangle(p) for p in (0, 0.23, 1)] == pytest.approx([0.2, 1, 0.07])
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    lookahead = Lookahead(model)
    torch.nn.init.ones_(model.weight)
    lookahead.pull(0.75)
    assert model.weight.item() == pytest.approx(0.25)


# --- files -------------------------------------------------------------------------------------


def test_file_gives_back_the_same_classifier(tiny, tmp_path):
    path = tmp_path / "new" / "c.safetensors"
    save_classifier(tiny, path, {"accuracy": 0.5})
    assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]
    loaded = load_classifier(path)
    assert loaded.config == tiny.config and checkpoint.about(path)["accuracy"] == 0.5
    x = to_float(stripes(8, seed=3).images)
    torch.testing.assert_close(loaded(x), tiny(x), atol=0.02, rtol=0.01)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())


def test_bad_files_are_refused_in_one_sentence(tiny, tmp_path):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_classifier(tiny, good, {})
    weights, about = checkpoint.load(good)

    def refused(message):
        with pytest.raises(ValueError, match=message) as error:
            load_classifier(bad)
        assert str(bad) in str(error.value) and "\n" not in str(error.value)

    with pytest.raises(FileNotFoundError, match="bad.safetensors"):
        load_classifier(bad)
    bad.write_bytes(good.read_bytes()[:-100])
    refused("not a whole safetensors file")
    checkpoint.save(bad, weights, about | {"kind": "diffusion"})
    refused("not a classifier")
    del weights["head.weight"]
    checkpoint.save(bad, weights, about)
    refused("1 tensors are missing")


def test_a_failed_save_keeps_the_old_file(tiny, tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    save_classifier(tiny, path, {"accuracy": 0.5})

    def disk_full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(OSError, match="could not save"):
        save_classifier(tiny, path, {"accuracy": 0.9})
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]
    assert checkpoint.about(path)["accuracy"] == 0.5


def test_command_trains_grades_and_writes_the_card(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(classifier, "cifar10", lambda train: stripes(260 if train else 60, 0))
    out = tmp_path / "c.safetensors"
    monkeypatch.setattr("sys.argv", ["classifier", "--out", str(out), "--epochs", "1"])
    classifier.main()
    about = checkpoint.about(out)
    assert f"test accuracy {about['accuracy']:.2%}" in capsys.readouterr().out
    assert about["images_seen"] == 256 and about["recipe"]["epochs"] == 1
    assert f"**{about['accuracy']:.2%}** of 60 test images" in out.with_suffix(".md").read_text()
    assert grade(load_classifier(out), stripes(60, 0))["accuracy"] == about["accuracy"]
