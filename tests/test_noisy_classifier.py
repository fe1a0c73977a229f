"""The classifier of noisy images: its words, its gradient, that it learns, and that it guides."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from torch import Generator, nn

from minidiff import checkpoint, noisy_classifier, plot, zoo
from minidiff.cli import main
from minidiff.data import shapes
from minidiff.denoiser import Prediction
from minidiff.evaluation import classifier_guidance
from minidiff.guidance import classifier
from minidiff.noisy_classifier import NoisyClassifier
from minidiff.recipes import noisy_classifier as recipes
from minidiff.recipes.noisy_classifier import HEADS, UNKNOWN, Classification, scene_labels
from minidiff.recipes.recipe import Recipe
from minidiff.samplers import ddim_step, ddpm_step, sample
from minidiff.schedule import NoiseSchedule
from minidiff.training import Column, TrainConfig, TrainingSet, fit
from minidiff.unet import UNet, UNetConfig

TINY = UNetConfig(channels=16, multipliers=(1, 2), blocks=1, groups=8, dropout=0.0)
QUARTERS = {"place": ("top left", "top right", "bottom left", "bottom right"), "tint": ("any",)}
SCHEDULE = NoiseSchedule.cosine()


def quarters():
    """Four pictures (4,3,8,8) of one bright quarter each."""
    pictures = torch.full((4, 3, 8, 8), -0.7)
    for i, picture in enumerate(pictures):
        y, x = 4 * (i // 2), 4 * (i % 2)
        picture[:, y : y + 4, x : x + 4] = 0.7
    return pictures


def of_quarters(x, level):
    """The exact denoiser of those four pictures."""
    means = quarters().to(x)
    apart = (x[:, None] - level.alpha * means).square().sum((2, 3, 4))  # (B,4)
    weights = (-apart / (2 * level.sigma**2)).softmax(1)
    x0 = torch.einsum("bk,kchw->bchw", weights, means)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def found(x):
    """Which quarter (B,) an image is nearest to."""
    return torch.cdist(x.flatten(1), quarters().flatten(1)).argmin(1)


def trained(out, *, shuffled=False):
    """A classifier of the quarters, learnt in seconds, as `train-classifier` would save it."""
    pictures = ((quarters() + 1) * 127.5).round().byte().repeat(16, 1, 1, 1)
    place = torch.arange(64) // 4 % 4 if shuffled else torch.arange(64) % 4  # every pair as often
    labels = torch.column_stack([place, torch.zeros_like(place)])
    config = TrainConfig(images=6400, batch=64, learning_rate=2e-3, warmup=640, ema=0.9)
    config = replace(config, flip=False, mixed_precision=False, log_every=6400)
    data = TrainingSet(pictures, {"labels": Column(labels)})
    card = {"description": "Tiny.", "data": "quarters", "licence": "MIT", "limits": "Four."}
    torch.manual_seed(0)
    model = NoisyClassifier(TINY, QUARTERS, SCHEDULE, 8, card)
    run = Recipe(model, data, config, (), Classification).run(out, "cpu")
    fit(run, progress=False).save(out / "model.safetensors", card | {"command": "train"})
    return noisy_classifier.load(out / "model.safetensors", "cpu")


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("quarters"))


@pytest.fixture(scope="module")
def of_scenes():
    """A classifier of random weights, none zero, with the heads of scenes."""
    torch.manual_seed(0)
    network = NoisyClassifier(TINY, HEADS, NoiseSchedule.linear(), 32).eval().requires_grad_(False)
    for p in network.parameters():
        p.add_(0.05 * torch.randn(p.shape))
    return network


# --- what it is asked ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("red star", {"things": "one", "colour": "red", "shape": "star"}),
        ("a small red star", {"things": "one", "size": "small", "colour": "red", "shape": "star"}),
        ("top left, on a mint background", {"things": "one", "position": "top left"}),
        ("mint", {"background": "mint"}),
        ("two on navy", {"things": "two", "background": "navy"}),
    ],
)
def test_names_are_found_in_words(of_scenes, prompt, said):
    said = said | ({"background": "mint"} if "mint" in prompt else {})
    labels = of_scenes.labels(prompt)
    assert {head: HEADS[head][i] for head, i in labels.items()} == said


@pytest.mark.parametrize("prompt", ["a red dog", "", "a", "red blue star", "redstar", "starred"])
def test_other_words_are_refused_in_one_sentence(of_scenes, prompt):
    with pytest.raises(ValueError, match="its names are things: one, two; background: white") as e:
        of_scenes.log_prob(["red star", prompt])
    assert "\n" not in str(e.value)


def test_a_scene_of_two_teaches_that_and_its_background():
    one = shapes.Scene(shapes.Thing("star", "green", "small"), "top", "mint")
    pair = shapes.Scene(one.thing, "top", "navy", "left of", shapes.Thing("ring", "red"))
    first, second = scene_labels(shapes.encode([one, pair])).tolist()
    named = [HEADS[h][i] for h, i in zip(HEADS, first, strict=True)]
    assert named == ["one", "mint", "top", "star", "green", "small", "plain"]
    assert second == [1, shapes.BACKGROUNDS.index("navy"), *[UNKNOWN] * 5]


# --- what it answers -----------------------------------------------------------------------------


def test_log_prob_is_the_sum_over_the_heads_that_are_named(of_scenes):
    x, level = torch.randn(2, 3, 32, 32), of_scenes.schedule.level(300)
    parts = of_scenes(x, torch.full((2,), 299))
    for head, names in HEADS.items():
        assert parts[head].shape == (2, len(names))
        torch.testing.assert_close(parts[head].exp().sum(1), torch.ones(2))
    star, navy = HEADS["shape"].index("star"), HEADS["background"].index("navy")
    expected = [
        parts["things"][0, 0] + parts["shape"][0, star],
        parts["background"][1, navy],
    ]
    answer = of_scenes.log_prob(["star", "navy"])(x, level)
    torch.testing.assert_close(answer, torch.stack(expected))
    later = of_scenes.log_prob(["star", "navy"])(x, of_scenes.schedule.level(301))
    assert not torch.equal(answer, later)  # it is told the time
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        of_scenes.log_prob(["star", "navy"])(torch.randn(3, 3, 32, 32), level)
    with pytest.raises(ValueError, match="expected \\(B, 3, 32, 32\\)"):
        of_scenes.log_prob("star")(torch.randn(2, 3, 16, 16), level)


class BatchNorm(nn.Module):
    """The mutant's normalisation: over the images of a batch."""

    def forward(self, x):
        return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


def test_an_images_gradient_does_not_depend_on_its_neighbours(judge):
    level = judge.schedule.level(400)
    images = torch.randn(3, 3, 8, 8, generator=Generator().manual_seed(0))

    def gradient(model, x):
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(model.log_prob("top left")(x, level).sum(), x)
        return g

    together = gradient(judge, images)
    alone = torch.cat([gradient(judge, x[None]) for x in images])
    assert together.abs().max() > 1e-3
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)
    # Mutant: with batch normalisation the sum over the batch mixes the images.
    mutant = NoisyClassifier(TINY, QUARTERS, SCHEDULE, 8)
    mutant.load_state_dict(judge.state_dict())
    mutant.encoder.norm = BatchNorm()
    alone = torch.cat([gradient(mutant, images[[i, i]])[:1] for i in range(3)])
    assert (gradient(mutant, images) - alone).abs().max() > 1e-2 * together.abs().max()


# --- that it learns and guides -------------------------------------------------------------------


def test_it_knows_clean_images_and_nothing_of_pure_noise(judge):
    x0 = quarters().repeat(50, 1, 1, 1)
    noise = torch.randn(x0.shape, generator=Generator().manual_seed(2))

    def right(t, told=None):
        level = judge.schedule.level(t)
        x = level.alpha * x0 + level.sigma * noise
        says = judge(x, torch.full((200,), (told or t) - 1))["place"].argmax(1)
        return (says == torch.arange(200) % 4).float().mean()

    assert right(50) > 0.98 and right(500) > 0.9
    assert 0.1 < right(1000) < 0.45


def test_it_guides_to_what_is_asked_and_one_of_exchanged_labels_does_not(judge, tmp_path):
    path = SCHEDULE.path(20)
    noise = torch.randn(64, 3, 8, 8, generator=Generator().manual_seed(3))

    def hits(model, scale):
        guided = classifier(of_quarters, model.log_prob("bottom left"), scale)
        return (found(sample(ddim_step, guided, noise, path)) == 2).float().mean().item()

    base = (found(sample(ddim_step, of_quarters, noise, path)) == 2).float().mean().item()
    assert hits(judge, 0) == base and 0.1 < base < 0.4
    assert hits(judge, 1) > 0.85
    assert hits(trained(tmp_path, shuffled=True), 1) < base + 0.15


def test_exchanged_labels_are_only_that():
    drawn = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(6)[:, None]
    plain, shuffled = (
        recipes._recipe(drawn, labels, QUARTERS, recipes.TRAIN, SCHEDULE, {}, exchanged).data
        for exchanged in (False, True)
    )
    assert torch.equal(plain.images, shuffled.images)
    one, two = (data.columns["labels"].values for data in (plain, shuffled))
    assert torch.equal(one, labels)
    assert sorted(two.tolist()) == sorted(labels.tolist()) and (two != labels).all()


def test_what_is_unknown_teaches_nothing(of_scenes):
    network = NoisyClassifier(TINY, HEADS, NoiseSchedule.linear(), 32)
    objective = Classification(network)
    labels = scene_labels(shapes.random_codes(4, Generator().manual_seed(0), pairs=0.0))
    labels = torch.cat([labels, labels])
    labels[4:, 2:] = UNKNOWN
    x0, noise = torch.randn(2, 8, 3, 32, 32)
    objective(x0, torch.full((8,), 500), noise, labels).backward()
    parts = network.pool.c_proj.weight.grad.split([len(n) for n in HEADS.values()])
    assert all(part.abs().max() > 0 for part in parts)
    first = objective(x0, torch.full((8,), 500), noise, labels)
    labels[4:, :2] = 1 - labels[4:, :2].clamp(max=1)
    assert not torch.equal(first, objective(x0, torch.full((8,), 500), noise, labels))


# --- drawing, judging, files ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = UNet(replace(TINY, multipliers=(1, 2)))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    card = {"description": "tiny"}
    return zoo.Diffusion(network.eval(), SCHEDULE, "v", (3, 8, 8), card=card)


def test_draw_starts_from_the_models_seed_whatever_the_batch(model, judge):
    prompts = ["top left", "bottom right", "top left"]
    plain = model.sample(None, 3, steps=4, seed=5, step=ddpm_step)
    drawn = classifier_guidance.draw(model, judge, prompts, 0, steps=4, seed=5, progress=False)
    assert torch.equal(drawn, plain.cpu())
    one, all_ = (
        classifier_guidance.draw(
            model, judge, prompts, 100, steps=4, seed=5, batch=batch, progress=False
        )
        for batch in (1, 3)
    )
    torch.testing.assert_close(one, all_, rtol=0, atol=0.1)  # bfloat16 where it is fast
    assert (all_ - plain).abs().amax((1, 2, 3)).min() > 0.3  # each image is guided
    many = ["top left"] * 70  # more than a model draws at a time by itself
    drawn = classifier_guidance.draw(model, judge, many, steps=1, batch=70, progress=False)
    assert drawn.shape == (70, 3, 8, 8)
    other = replace(model, schedule=NoiseSchedule.linear())
    with pytest.raises(ValueError, match="another schedule"):
        classifier_guidance.draw(other, judge, prompts, steps=4, progress=False)
    with pytest.raises(ValueError, match="scale .* must be a finite number"):
        classifier_guidance.draw(model, judge, prompts, float("nan"), steps=4, progress=False)


def test_the_oracle_judges_not_the_guide(of_scenes):
    scenes = shapes.random_scenes(12, Generator().manual_seed(4), pairs=0.0)
    drawn, _ = shapes.render(scenes, generator=Generator().manual_seed(5))
    prompts = [f"{s.thing.colour} {s.thing.shape} at the {s.position}" for s in scenes]
    assert classifier_guidance.shows(of_scenes, prompts, drawn).float().mean() > 0.9
    assert classifier_guidance.shows(of_scenes, prompts, drawn.roll(1, 0)).sum() <= 2
    assert not classifier_guidance.shows(of_scenes, prompts, torch.randn(12, 3, 32, 32)).any()


def test_spread_compares_images_of_one_prompt():
    x = torch.zeros(4, 3, 2, 2)
    x[1], x[3] = 0.5, 0.5
    assert classifier_guidance.spread(x, ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert classifier_guidance.spread(x[[0, 2, 1, 3]], ["a", "a", "b", "b"]) == 0


def test_files_hold_all_and_others_are_refused(judge, tmp_path, model):
    noisy_classifier.save(tmp_path / "again.safetensors", judge)
    again = noisy_classifier.load(tmp_path / "again.safetensors", "cpu")
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([5, 900])
    assert all(
        torch.equal(a, b) for a, b in zip(judge(x, t).values(), again(x, t).values(), strict=True)
    )
    assert again.heads == judge.heads and again.card["command"] == "train"
    assert again.schedule == SCHEDULE
    assert checkpoint.about(tmp_path / "again.safetensors")["kind"] == "noisy classifier"
    model.save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds a diffusion, not a noisy classifier"):
        noisy_classifier.load(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="no noisy classifier 'nothing'"):
        noisy_classifier.load("nothing")


def test_guide_classifier_draws_a_row_a_prompt_below_the_unguided(
    judge, model, tmp_path, monkeypatch
):
    noisy_classifier.save(tmp_path / "judge.safetensors", judge)
    model.save(tmp_path / "model.safetensors")
    tables, draw = [], plot.rows
    monkeypatch.setattr(plot, "rows", lambda t, **o: tables.append(t) or draw(t, **o))
    monkeypatch.setattr(classifier_guidance, "shows", lambda j, p, x: found(x) == 0)
    options = ["--model", "model.safetensors", "--classifier", "judge.safetensors", "-n", 2]
    options += ["--steps", 4, "--out", "out.png"]

    def call(*words):
        monkeypatch.chdir(tmp_path)
        return CliRunner().invoke(main, ["guide", "classifier", *map(str, (*words, *options))])

    told = call("top left", "bottom right")
    assert told.exit_code == 0, told.output
    assert (tmp_path / "out.png").exists() and "scale 3" in told.output
    labels, drawn = zip(*tables[0], strict=True)
    assert labels[0] == "unguided" and [text.split("\n")[0] for text in labels[1:]] == [
        "top left",
        "bottom right",
    ]
    plain = zoo.load(tmp_path / "model.safetensors").sample(
        None, 2, steps=4, seed=0, step=ddpm_step
    )
    assert torch.equal(drawn[0], plain.cpu()) and not torch.equal(drawn[1], drawn[2])
    told = call("middle")
    assert told.exit_code == 1 and "its names are place: top left" in told.output
