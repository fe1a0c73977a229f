"""Recipes: what a model is made of, from captions that are anybody's."""

import pytest
import torch

from minidiff.data.emoji import HELD_OUT
from minidiff.data.images import ImageSet
from minidiff.recipes import diffusion as recipes


def pictures(n: int, size: int = 32) -> torch.Tensor:
    return torch.randint(256, (n, 3, size, size), dtype=torch.uint8)


def test_emoji_are_learnt_with_and_without_an_article_and_some_not_at_all(monkeypatch):
    names = ("apple pie", "red apple", *HELD_OUT, *(f"thing {i}" for i in range(40)))
    data = ImageSet(pictures(len(names)), captions=names)
    monkeypatch.setattr(recipes, "noto_emoji", lambda size: data)
    recipe = recipes.emoji()
    assert len(recipe.data.images) == 2 * 42
    encoder, ids = recipe.model.encoder, recipe.data.columns["ids"].values
    told = encoder.tokenize(["apple pie", "an apple pie", "red apple", "a red apple"])
    for row, caption in ((0, told[0]), (42, told[1]), (1, told[2]), (43, told[3])):
        assert torch.equal(ids[row], caption)
        assert torch.equal(recipe.data.images[row], data.images[row % 42])
    seen = {tuple(row) for row in ids.tolist()}
    with pytest.raises(ValueError, match="unknown word 'green'"):  # no other green thing here
        encoder.tokenize(["green heart"])
    assert tuple(encoder.tokenize(["red"])[0].tolist()) not in seen
    card = recipe.model.card
    assert card["examples"][-6:] == [*HELD_OUT] and "42 emoji" in card["data"]


@pytest.mark.parametrize("size", [32, 64])
def test_captions_of_any_length_and_none(size):
    long = " ".join(f"w{i}" for i in range(100))
    captions = ["A cat, asleep.", "", long]
    recipe = recipes._captioned(pictures(3, size), captions, size, {"data": "three pictures"})
    ids, model = recipe.data.columns["ids"], recipe.model
    assert ids.values.shape == (3, recipes.LONGEST) and ids.drop == 0.1
    assert torch.equal(ids.values[1], ids.null)  # no caption: unconditional
    assert (ids.values[2] > 0).all()
    assert model.sample("a cat", 1, scale=2, steps=1).shape == (1, 3, size, size)
    assert "asleep" in model.encoder.ids and model.card["examples"][0] == "a cat asleep"
