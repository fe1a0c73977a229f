"""Contrastive training: the loss, its batches, and that a tiny CLIP learns shapes by it."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minidiff import clip
from minidiff.clip.model import CLIP, CLIPConfig
from minidiff.clip.tokenizer import Tokenizer, train_bpe
from minidiff.clip.train import Contrastive, Recipe, Saver, contrastive_loss
from minidiff.data import shapes
from minidiff.training import Run, TrainConfig, TrainingSet

SCALE = torch.tensor(10.0)


def features(n=6, d=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, d, generator=generator)


def distinct(n):
    return torch.eye(n, dtype=torch.bool)


# --- the loss ------------------------------------------------------------------------------------


def test_the_loss_is_the_papers():
    x, y = features()
    cosines = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    labels = torch.arange(6)
    expected = F.cross_entropy(10 * cosines, labels) + F.cross_entropy(10 * cosines.T, labels)
    torch.testing.assert_close(contrastive_loss(x, y, SCALE, distinct(6)), expected / 2)
    assert (contrastive_loss(x, y.flip(0), SCALE, distinct(6)) - expected / 2).abs() > 0.01
    lengths = torch.rand(6, 1) + 0.5  # only directions count
    torch.testing.assert_close(contrastive_loss(lengths * x, y, SCALE, distinct(6)), expected / 2)


def test_embeddings_that_say_nothing_lose_the_logarithm_of_the_batch():
    same = torch.ones(16, 4)
    assert contrastive_loss(same, same, SCALE, distinct(16)).item() == pytest.approx(math.log(16))


def test_the_same_caption_twice_is_no_wrong_answer():
    x = torch.eye(4)[[0, 0, 1, 2]]  # the first two images and captions are the same
    same = (x[:, None] == x).all(dim=-1)
    scale = torch.tensor(100.0)
    kind = contrastive_loss(x, x, scale, same)
    naive = contrastive_loss(x, x, scale, distinct(4))
    torch.testing.assert_close(kind, naive)  # half of the answers is all that can be known ...
    x = x.clone().requires_grad_()
    apart = x + torch.tensor([[0, 0, 0, 0.3], [0, 0, 0, -0.3], [0, 0, 0, 0], [0, 0, 0, 0]])
    (together,) = torch.autograd.grad(contrastive_loss(apart, apart, SCALE, same), x)
    (pushed,) = torch.autograd.grad(contrastive_loss(apart, apart, SCALE, distinct(4)), x)
    # ... but only the naive loss drives the twins apart
    assert together[0, 3] > together[1, 3] and pushed[0, 3] < pushed[1, 3]


# --- batches and runs ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe():
    generator = torch.Generator().manual_seed(0)
    codes = shapes.random_codes(512, generator, pairs=0.0)
    codes[:, 5:7] = torch.tensor([1, 0])  # large and plain
    codes[:, :2] = torch.tensor([0, 4])  # on white, in the centre: colours and shapes are left
    drawn, _ = shapes.render(codes, 32, generator)
    captions = [f"a {s.thing.colour} {s.thing.shape}" for s in shapes.decode(codes)]
    tokenizer = Tokenizer(train_bpe(captions, 200))
    network = CLIPConfig(
        embed=32,
        size=32,
        patch=8,
        width=64,
        layers=2,
        heads=4,
        context=8,
        vocabulary=len(tokenizer),
        end=tokenizer.end,
        merges=tuple(tokenizer.merges),
        text_width=64,
        text_layers=1,
        text_heads=4,
        quick_gelu=False,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    pictures = ((drawn + 1) * 127.5).round().to(torch.uint8)
    data = TrainingSet(pictures, tokenizer.tokenize(captions, network.context))
    train = TrainConfig(images=10_000, batch=64, learning_rate=2e-3, warmup=1_000, ema=0.9)
    return Recipe(data, network, replace(train, flip=False), {"description": "tiny"})


def test_batches_are_shifted_images_with_their_own_captions(recipe):
    objective = recipe.objective()
    x, text = objective.batch(recipe.data, recipe.train, 0)
    assert x.shape == (64, 3, 32, 32) and x.min() >= -1 and x.max() <= 1
    still = Contrastive(objective.network, shift=0).batch(recipe.data, recipe.train, 0)
    assert torch.equal(text, still[1]) and not torch.equal(x, still[0])
    again = objective.batch(recipe.data, recipe.train, 0)
    assert torch.equal(x, again[0])
    other = objective.batch(recipe.data, recipe.train, 1)
    assert not torch.equal(text, other[1])


def test_the_temperature_stays_below_its_limit(recipe):
    objective = recipe.objective()
    batch = objective.batch(recipe.data, recipe.train, 0)
    with torch.no_grad():
        objective.network.logit_scale.fill_(math.log(100))
        limit = objective(*batch)
        objective.network.logit_scale.fill_(math.log(1000))
        assert torch.equal(objective(*batch), limit)
        objective.network.logit_scale.fill_(math.log(50))
        assert not torch.equal(objective(*batch), limit)


def colours_and_shapes_read(recipe, out) -> list[float]:
    """Train, save, load; the shares of colours and of shapes told by zero-shot."""
    run = Run(recipe.objective(), recipe.data, recipe.train, out)
    while run.step < run.steps:
        run.advance()
    Saver(recipe, "minidiff train-clip", out)(run)
    model, _ = clip.load(out / "model.safetensors", "cpu")
    codes = torch.zeros(48, 11, dtype=int)  # every shape in every colour
    codes[:, 1], codes[:, 5] = 4, 1
    codes[:, 3], codes[:, 4] = torch.arange(48) // 8, torch.arange(48) % 8
    drawn, _ = shapes.render(codes, 32, torch.Generator().manual_seed(9))
    shares = []
    for names, column, templates in (
        (shapes.COLOURS, 4, [f"a {{}} {shape}" for shape in shapes.SHAPES]),
        (shapes.SHAPES, 3, [f"a {colour} {{}}" for colour in shapes.COLOURS]),
    ):
        says = clip.zero_shot(model, drawn, names, templates).argmax(dim=1)
        shares.append((says == codes[:, column]).float().mean().item())
    return shares


def test_a_tiny_clip_learns_shapes_and_comes_back_from_its_file(recipe, tmp_path):
    assert min(colours_and_shapes_read(recipe, tmp_path)) > 0.7


def test_captions_of_other_images_teach_nothing(recipe, tmp_path):
    shuffled = replace(recipe.data, conditions=recipe.data.conditions.roll(1, 0))
    assert max(colours_and_shapes_read(replace(recipe, data=shuffled), tmp_path)) < 0.5


def test_a_clip_is_not_a_run_of_something_else(recipe, tmp_path):
    run = Run(recipe.objective(), recipe.data, replace(recipe.train, images=64), tmp_path)
    run.advance()
    run.save()
    other = Run(Contrastive(CLIP(recipe.network), shift=0), recipe.data, recipe.train, tmp_path)
    with pytest.raises(ValueError, match="trained with another shift"):
        other.resume()
