"""The word vocabulary, the text encoder, and names of classes as an encoder."""

import copy

import numpy as np
import pytest
import torch

from minidiff.condition import Condition
from minidiff.data import shapes
from minidiff.text import ClassLabels, TextConfig, TextEncoder, vocabulary

CONFIG = TextConfig(
    words=("a", "red", "blue", "circle", "square", "of", "left"), length=8, width=32
)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return TextEncoder(CONFIG).eval()


def test_words_to_ids(encoder):
    ids = encoder.tokenize(["a red circle", "", "A  RED square "])
    assert ids.tolist() == [[1, 2, 4, 0, 0, 0, 0, 0], [0] * 8, [1, 2, 5, 0, 0, 0, 0, 0]]


def test_the_null_caption_may_be_none_and_numbers_are_refused(encoder):
    assert torch.equal(encoder.tokenize([None, "a"]), encoder.tokenize(["", "a"]))
    with pytest.raises(ValueError, match="takes captions, not the number 3"):
        encoder.tokenize(["a circle", 3])


def test_a_caption_becomes_tokens_and_nothing_else(encoder):
    condition = encoder(encoder.tokenize(["a red circle", ""]))
    assert isinstance(condition, Condition) and condition.tokens.shape == (2, 8, 32)
    assert condition == Condition(tokens=condition.tokens) and encoder.takes == "captions"


def test_unknown_words_and_long_captions_are_refused(encoder):
    with pytest.raises(ValueError, match="unknown word 'green' .*known are a, red, blue"):
        encoder.tokenize(["a green circle"])
    with pytest.raises(ValueError, match="has 9 words: expected 8 at most"):
        encoder.tokenize(["a " * 9])
    with pytest.raises(ValueError, match="names a word twice"):
        TextConfig(words=("a", "a"))


def test_punctuation_is_no_word(encoder):
    ids = encoder.tokenize(["A red-blue circle, left of a square!"])
    assert ids.tolist() == [[1, 2, 3, 4, 7, 6, 1, 5]]
    told = vocabulary(["A cat's café, again.", "", "again: 8 cats"])
    assert told == ("8", "a", "again", "café", "cat", "cats", "s")


def test_of_a_large_vocabulary_only_words_alike_are_named():
    words = tuple(f"word{i}" for i in range(1000)) + ("apple",)
    encoder = TextEncoder(TextConfig(words=words, width=16))
    with pytest.raises(ValueError, match="word 'aple' .*; 1001 words are known, such as apple$"):
        encoder.tokenize(["aple"])
    with pytest.raises(ValueError, match="; 1001 words are known, none like it$"):
        encoder.tokenize(["xyzzy"])


def test_order_matters_to_every_token(encoder):
    """Control: a mean of word embeddings cannot tell who is red."""
    swapped = encoder.tokenize(["a blue circle left of a red square"])
    ids = encoder.tokenize(["a red circle left of a blue square"])
    one, two = encoder(ids).tokens, encoder(swapped).tokens
    assert one.shape == (1, 8, 32)
    assert (one - two).abs().mean(dim=2).min() > 1e-4
    means = [encoder.embedding(i).mean(1) for i in (ids, swapped)]
    assert torch.allclose(*means, atol=1e-6)


def bound_after(encoder: TextEncoder, steps: int = 250) -> float:
    """How often two learnt queries read the right colours of both things of real captions."""
    codes = shapes.random_codes(5000, torch.Generator().manual_seed(0), pairs=1.0)
    ids = encoder.tokenize(shapes.captions(shapes.decode(codes), torch.Generator().manual_seed(0)))
    colours = codes[:, [4, 8]]
    torch.manual_seed(1)
    queries = torch.nn.Parameter(0.1 * torch.randn(2, 128))
    kv, head = torch.nn.Linear(128, 256), torch.nn.Linear(128, len(shapes.COLOURS))
    learnt = [*encoder.parameters(), queries, *kv.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=1e-3, betas=(0.9, 0.99))
    right = []
    for _ in range(steps):
        pick = torch.randint(len(codes), (64,))
        k, v = kv(encoder(ids[pick]).tokens).chunk(2, dim=2)  # (64, 20, 128)
        read = head((queries @ k.transpose(1, 2) * 128**-0.5).softmax(2) @ v)  # (64, 2, colours)
        loss = torch.nn.functional.cross_entropy(read.flatten(0, 1), colours[pick].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right.append((read.argmax(2) == colours[pick]).all(1).float().mean())
    return torch.stack(right[-20:]).mean().item()


def test_colours_are_soon_bound_to_their_things():
    """And the mutant, small positions as is customary, still mixes them up after as long."""
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(words=shapes.WORDS, length=20))
    small = copy.deepcopy(encoder)
    with torch.no_grad():
        small.positions.mul_(0.02)
    assert bound_after(encoder) > 0.8
    assert bound_after(small) < 0.5


def test_captions_of_a_batch_do_not_mix(encoder):
    ids = encoder.tokenize(["a red circle", "a blue square", ""])
    together = encoder(ids).tokens
    for i in range(3):
        assert torch.allclose(together[i], encoder(ids[i : i + 1]).tokens[0], atol=1e-6)


def test_every_weight_is_used(encoder):
    ids = encoder.tokenize(["a red circle left of a blue square"])
    encoder(ids).tokens.square().sum().backward()
    idle = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


# --- names of classes -----------------------------------------------------------------------------


def test_names_and_numbers_of_classes_become_labels():
    pets = ClassLabels(("cat", "dog"))
    ids = pets.tokenize(["dog", 0, np.int64(1), None, ""])
    assert ids.tolist() == [1, 0, 1, 2, 2] and ids.dtype == torch.int64  # 2 is "no class"
    condition = pets(ids)
    assert isinstance(condition, Condition) and condition[1:] == (None, None, None)
    assert torch.equal(condition.label, ids)
    assert pets.takes == "classes" and pets.config is pets


@pytest.mark.parametrize("prompt", ["cow", 2, -1, 1.0, np.int64(7)])
def test_unknown_classes_are_refused(prompt):
    with pytest.raises(ValueError, match="unknown class .*: expected one of cat, dog"):
        ClassLabels(("cat", "dog")).tokenize(["cat", prompt])


@pytest.mark.parametrize("prompt", [None, ""])
def test_without_a_null_class_a_class_must_be_named(prompt):
    with pytest.raises(ValueError, match="this model needs a class: one of cat, dog"):
        ClassLabels(("cat", "dog"), has_null=False).tokenize([prompt])


def test_a_list_of_names_will_do():
    """A file holds them as a list."""
    assert ClassLabels(["cat", "dog"]) == ClassLabels(("cat", "dog"))
    assert ClassLabels(["cat"]) != ClassLabels(["cat"], has_null=False)
