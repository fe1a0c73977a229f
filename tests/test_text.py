"""The word vocabulary and the text encoder."""

import pytest
import torch

from minidiff.text import TextConfig, TextEncoder

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


def test_unknown_words_and_long_captions_are_refused(encoder):
    with pytest.raises(ValueError, match="unknown word 'green' .*known are a, red, blue"):
        encoder.tokenize(["a green circle"])
    with pytest.raises(ValueError, match="has 9 words: expected 8 at most"):
        encoder.tokenize(["a " * 9])
    with pytest.raises(ValueError, match="names a word twice"):
        TextConfig(words=("a", "a"))


def test_order_matters_to_every_token(encoder):
    """Control: a mean of word embeddings cannot tell who is red."""
    swapped = encoder.tokenize(["a blue circle left of a red square"])
    ids = encoder.tokenize(["a red circle left of a blue square"])
    one, two = encoder(ids), encoder(swapped)
    assert one.shape == (1, 8, 32)
    assert (one - two).abs().mean(dim=2).min() > 1e-4
    means = [encoder.embedding(i).mean(1) for i in (ids, swapped)]
    assert torch.allclose(*means, atol=1e-6)


def test_captions_of_a_batch_do_not_mix(encoder):
    ids = encoder.tokenize(["a red circle", "a blue square", ""])
    together = encoder(ids)
    for i in range(3):
        assert torch.allclose(together[i], encoder(ids[i : i + 1])[0], atol=1e-6)


def test_every_weight_is_used(encoder):
    encoder(encoder.tokenize(["a red circle left of a blue square"])).square().sum().backward()
    idle = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle
