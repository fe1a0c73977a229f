"""Contrastive training: the loss, its batches, and that a tiny CLIP learns shapes by it."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from minidiff import clip
from minidiff.clip.loss import contrastive_loss
from minidiff.clip.model import CLIP, CLIPConfig
from minidiff.clip.tokenizer import Tokenizer, train_bpe
from minidiff.data import images, shapes
from minidiff.data.shapes.captions import MIRRORED
from minidiff.recipes import clip as module
from minidiff.recipes.clip import (
    TEMPLATES,
    Contrastive,
    clip_cifar10,
    recolour,
)
from minidiff.recipes.recipe import Recipe
from minidiff.training import Column, TrainConfig, TrainingSet

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
    text = Column(tokenizer.tokenize(captions, network.context))
    train = TrainConfig(images=10_000, batch=64, learning_rate=2e-3, warmup=1_000, ema=0.9)
    data, train = TrainingSet(pictures, {"text": text}), replace(train, flip=False)
    return begun(Recipe(CLIP(network), data, train, (), Contrastive))


def begun(recipe):
    """The recipe with a CLIP of fresh weights, those of seed 0."""
    torch.manual_seed(0)
    model = CLIP(recipe.model.config)
    model.card = {"description": "tiny"}
    return replace(recipe, model=model)


def batch_of(recipe, step=0, data=None, **options):
    """Images and texts of a step."""
    batches = Contrastive(recipe.model, **options).batches(data or recipe.data, recipe.train)
    batch = batches(step)
    assert batch.keys() == {"x", "text"}
    return batch["x"], batch["text"]


def test_batches_are_shifted_images_with_their_own_captions(recipe):
    x, text = batch_of(recipe)
    assert x.shape == (64, 3, 32, 32) and x.min() >= -1 and x.max() <= 1
    still = batch_of(recipe, shift=0)
    assert torch.equal(text, still[1]) and not torch.equal(x, still[0])
    assert torch.equal(x, batch_of(recipe)[0])
    assert not torch.equal(text, batch_of(recipe, 1)[1])
    # the unshifted images are those of the data, beside the texts of their rows
    index = module.draw_index(512, 64, recipe.train.seed, 0)
    assert torch.equal(still[0], images.to_float(recipe.data.images[index]))
    assert torch.equal(text, recipe.data.columns["text"].values[index])


def test_in_a_batch_all_texts_are_of_one_template(recipe):
    """So that the same class is the same text: another template of it would be a wrong answer."""
    captions = [f"a photo of a {c}" for c in "abc"] + [f"the {c}" for c in "abc"]
    tokens = Tokenizer(train_bpe(captions, 50)).tokenize(captions, 12).reshape(2, 3, 12)
    labels = torch.arange(512) % 3
    columns = {"text": Column(tokens.transpose(0, 1)[labels])}
    data = TrainingSet(recipe.data.images, columns)
    seen = []
    for step in range(2):
        text = batch_of(recipe, step, data)[1]
        assert len(text.unique(dim=0)) == 3
        seen.append(text)
    one_step = module.draw_index(len(data), recipe.train.batch, recipe.train.seed, 1)
    assert torch.equal(seen[1], tokens[1][labels[one_step]])
    mixed = tokens.transpose(0, 1)[labels, torch.arange(512) % 2]  # Mutant: a template an image
    assert len(mixed[one_step].unique(dim=0)) == 6


def test_the_classes_of_cifar10_are_named_in_every_template(monkeypatch):
    labels = torch.arange(20) % 10
    drawn = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    small = images.ImageSet(drawn, labels, images.CIFAR10_CLASSES)
    monkeypatch.setattr(images, "cifar10", lambda: small)
    recipe = clip_cifar10()
    tokens, model = recipe.data.columns["text"].values, recipe.model
    assert tokens.shape == (20, len(TEMPLATES), model.config.context)
    for i, template in enumerate(TEMPLATES):
        named = [template.format(images.CIFAR10_CLASSES[label]) for label in labels]
        assert torch.equal(tokens[:, i], model.tokenize(named))
    shuffled = clip_cifar10(shuffled=True).data.columns["text"].values
    assert torch.equal(shuffled, tokens[labels.roll(1)]) and not torch.equal(shuffled, tokens)
    assert sum(p.numel() for p in model.parameters()) < 4e6  # 8 MB in half precision


# --- pictures in other colours -------------------------------------------------------------------


PALETTE = tuple(shapes.COLOUR_VALUES.values())


def test_recoloured_pictures_show_no_held_out_pair_and_their_captions_no_colour(monkeypatch):
    codes = shapes.random_codes(1500, torch.Generator().manual_seed(3), pairs=0.0)
    codes[:, 5:7] = torch.tensor([1, 0])  # large and plain
    drawn, things = shapes.render(codes, 32, torch.Generator().manual_seed(4))
    drawn = ((drawn + 1) * 127.5).round().to(torch.uint8)
    captions = shapes.captions(shapes.decode(codes))
    palette = torch.tensor([[int(v[i : i + 2], 16) for i in (1, 3, 5)] for v in PALETTE]).float()

    def pairs_shown():
        """The (colour, shape) that the changed pictures show, by their pixels. Many of the new
        colours are between those of the palette; what is 45 of 255 away from one has its name."""
        new, texts = recolour(drawn, captions, 0.5, torch.Generator().manual_seed(5))
        changed = (new != drawn).flatten(1).any(1)
        assert [a != b for a, b in zip(captions, texts, strict=True)] == changed.tolist()
        for i in changed.nonzero().flatten().tolist():
            assert not set(texts[i].split()) & {*shapes.COLOURS, *shapes.BACKGROUNDS}, texts[i]
            shape, place = shapes.decode(codes[i : i + 1])[0].thing.shape, texts[i]
            assert place.startswith(f"a large {shape} at the ")
        assert all(a == b for a, b, c in zip(captions, texts, changed, strict=True) if not c)
        inside = (things.squeeze(1) > 0.99)[:, None]
        means = (new * inside).sum((2, 3)) / inside.sum((2, 3))
        near, nearest = torch.cdist(means, palette).min(1)
        named = changed & (near < 45)
        shown = zip(nearest[named].tolist(), codes[named, 3].tolist(), strict=True)
        return {(shapes.COLOURS[c], shapes.SHAPES[s]) for c, s in shown}, changed.double().mean()

    shown, share = pairs_shown()
    assert not shown & set(shapes.HELD_OUT) and len(shown) > 15 and 0.35 < share < 0.5
    held_out = set(shapes.HELD_OUT)
    monkeypatch.setattr(module.shapes, "HELD_OUT", ())  # Mutant: nothing is held out
    assert len(pairs_shown()[0] & held_out) >= 3


def test_captions_without_colours_are_good_english():
    luck = torch.Generator().manual_seed(6)
    drawn, captions = shapes.captioned(300, luck)
    _, texts = recolour(drawn, captions, 1.0, luck)
    changed = [t for t, c in zip(texts, captions, strict=True) if t != c]
    assert len(changed) > 200 and any(" of a " in t for t in changed)
    for text in changed:
        assert not set(text.split()) & {*shapes.COLOURS, "background", "an"}, text


def test_short_captions_say_colours_shapes_and_relations():
    says = {
        "a large striped orange star at the top left on a mint background": "an orange star",
        "an orange ring above a small dotted orange heart": "an orange ring above an orange heart",
        "a large heart left of a small ring at the top": "a heart left of a ring",
        "a blue star on a navy background": "a blue star",
        "a star": "a star",
    }
    assert {text: module.short(text) for text in says} == says
    generator = torch.Generator().manual_seed(8)
    scenes = shapes.random_scenes(300, generator)
    full = shapes.captions(scenes, generator)
    kept = {*shapes.COLOURS, *shapes.SHAPES, *shapes.RELATIONS, *MIRRORED}
    for caption, scene in zip(full, scenes, strict=True):
        text = module.short(caption)
        assert not set(text.split()) & {*shapes.SIZES, *shapes.TEXTURES, *shapes.BACKGROUNDS}
        assert all((f" {word}" in caption) == (f" {word}" in text) for word in kept), text
        plain = [scene.thing, scene.other]
        assert shapes.holds(text, scene) == all(t is None or t.texture == "plain" for t in plain)


def test_the_temperature_stays_below_its_limit(recipe):
    objective, batch = Contrastive(begun(recipe).model), batch_of(recipe)
    with torch.no_grad():
        objective.network.logit_scale.fill_(math.log(100))
        limit = objective(*batch)
        objective.network.logit_scale.fill_(math.log(1000))
        assert torch.equal(objective(*batch), limit)
        objective.network.logit_scale.fill_(math.log(50))
        assert not torch.equal(objective(*batch), limit)


def colours_and_shapes_read(recipe, out) -> list[float]:
    """Train, save, load; the shares of colours and of shapes told by zero-shot."""
    run = begun(recipe).run(out, "cpu")
    while run.step < run.steps:
        run.advance()
    run.average.save(out / "model.safetensors", recipe.model.card)
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
    text = Column(recipe.data.columns["text"].values.roll(1, 0))
    shuffled = TrainingSet(recipe.data.images, {"text": text})
    assert max(colours_and_shapes_read(replace(recipe, data=shuffled), tmp_path)) < 0.5


def test_a_trained_clip_goes_on_with_its_own_vocabulary(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "GUIDE", replace(module.GUIDE, width=32, layers=1, text_layers=1))
    captioned = shapes.captioned
    monkeypatch.setattr(module.shapes, "captioned", lambda n, g: captioned(300, g))
    first = module.clip_shapes()
    trained = first.model
    with torch.no_grad():
        trained.logit_scale.fill_(3.0)
    clip.save(trained, tmp_path / "clip.safetensors")
    monkeypatch.setattr(module, "train_bpe", None)  # no vocabulary is made
    on = module.clip_shapes(weights=tmp_path / "clip.safetensors")
    assert on.model.config == first.model.config
    told = [recipe.data.columns["text"].values for recipe in (on, first)]
    assert torch.equal(*told)
    going_on = on.model
    assert going_on.logit_scale.item() == 3.0
    pairs = zip(going_on.parameters(), trained.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    monkeypatch.setattr(module, "GUIDE", replace(module.GUIDE, width=64))
    with pytest.raises(ValueError, match="has other sizes than the recipe's"):
        module.clip_shapes(weights=tmp_path / "clip.safetensors")


def test_a_clip_is_not_a_run_of_something_else(recipe, tmp_path):
    recipe = begun(recipe)
    run = replace(recipe, train=replace(recipe.train, images=64)).run(tmp_path, "cpu")
    run.advance()
    run.save()
    other = replace(recipe, objective=partial(Contrastive, shift=0)).run(tmp_path, "cpu")
    with pytest.raises(ValueError, match="trained with another shift"):
        other.resume()
