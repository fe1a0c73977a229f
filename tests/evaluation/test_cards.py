"""Cards are written from what was measured, with sheets nobody chose."""

import pytest
import torch
from PIL import Image
from test_evaluation import tiny_model

from minidiff.evaluation import Figure, cards
from minidiff.schedule import NoiseSchedule
from minidiff.text import TextConfig, TextEncoder
from minidiff.unet import UNet, UNetConfig
from minidiff.zoo import Diffusion

CARD = {
    "description": "Draws cats and dogs.",
    "data": "none",
    "licence": "none",
    "command": "minidiff train --data pets",
    "images_seen": 1234,
    "minutes": 5.0,
    "machine": "2 threads of a CPU",
    "limits": "All of them.",
}


def test_a_card_says_what_was_measured(tmp_path):
    model = tiny_model()
    model.card = CARD
    figures = [Figure("accuracy", 91.25, 90.0, 92.5, "%"), Figure("distance", 3.14159)]
    cards.write(tmp_path / "pets.md", "pets", model, figures, "minidiff evaluate pets")
    text = (tmp_path / "pets.md").read_text()
    assert "- accuracy: 91.2 (90.0 to 92.5) %" in text and "- distance: 3.14" in text
    assert "By `minidiff evaluate pets`" in text
    assert "1,234" in text and "`minidiff train --data pets`" in text
    assert sorted(f.name for f in tmp_path.iterdir()) == ["pets.md", "pets.png"]
    with Image.open(tmp_path / "pets.png") as sheet:
        assert sheet.width > 100


def test_a_card_without_its_facts_is_refused(tmp_path):
    model = tiny_model()
    model.card = {k: v for k, v in CARD.items() if k != "licence"}
    with pytest.raises(KeyError, match="licence"):
        cards.write(tmp_path / "pets.md", "pets", model, [], "")


def test_the_sheet_of_a_captioned_model_shows_its_examples(monkeypatch):
    network = UNet(UNetConfig(channels=32, multipliers=(1,), attention=(), cross_attention=(0,),
        context_dim=16, dropout=0.0))  # fmt: skip
    encoder = TextEncoder(TextConfig(words=("apple", "red"), width=16))
    card = CARD | {"examples": ["red apple", "apple"]}
    model = Diffusion(network, NoiseSchedule.cosine(50), "v", (3, 8, 8), encoder, card=card)
    shown = []
    monkeypatch.setattr(
        cards.plot, "grid", lambda drawn, labels, **_: shown.extend([drawn, labels])
    )
    cards.sample_sheet(model)
    assert shown[1] == ["red apple", "apple"] and shown[0].shape == (2, 3, 8, 8)


def test_the_neighbour_sheet_shows_the_nearest(monkeypatch):
    """A training set that holds the samples, mirrored: both rows of the sheet are alike."""
    model, shown = tiny_model(), []
    drawn = model.sample(model.encoder.names, 2, scale=2)
    monkeypatch.setattr(cards.plot, "rows", lambda table: shown.extend(table))
    cards.neighbour_sheet(model, torch.cat([torch.zeros(5, 3, 8, 8), drawn.flip(3)]))
    (_, samples), (_, nearest) = shown
    assert torch.allclose(samples, nearest.flip(3), atol=1e-2)
    assert not torch.allclose(samples, nearest, atol=1e-2)
