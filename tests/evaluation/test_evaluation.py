"""Evaluation: samples are shared out without changing them, and the reports can fail."""

import os
import subprocess

import pytest
import torch
from torchrun import __file__ as torchrun_file
from torchrun import torchrun

from minidiff import zoo
from minidiff.data import shapes
from minidiff.data.emoji import HELD_OUT
from minidiff.data.images import ImageSet, split, to_float
from minidiff.evaluation import Figure, share
from minidiff.evaluation import diffusion as evaluation
from minidiff.evaluation.cards import line
from minidiff.evaluation.diffusion import (
    levelled,
    report_emoji,
    report_shapes,
    sample_many,
    texture,
)
from minidiff.schedule import NoiseSchedule
from minidiff.text import ClassLabels
from minidiff.unet import UNet, UNetConfig


def tiny_model() -> zoo.Diffusion:
    torch.manual_seed(0)
    config = UNetConfig(channels=16, multipliers=(1, 2), blocks=1, groups=8, dropout=0.0, classes=2)
    network = UNet(config)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    labels = ClassLabels(("cat", "dog"))
    network.eval().requires_grad_(False)
    return zoo.Diffusion(network, NoiseSchedule.cosine(), "v", (3, 8, 8), labels)


def test_samples_do_not_depend_on_the_batch():
    prompts = ["cat", "dog", "cat", "cat", "dog"]
    whole = sample_many(tiny_model(), prompts, steps=3, progress=False)
    parts = tiny_model().sample(prompts, steps=3, batch=2)
    assert whole.shape == (5, 3, 8, 8)
    assert (whole - parts).abs().max() < 0.1  # bfloat16 sums in another order
    assert (whole[0] - whole[2]).abs().max() > 1  # each image has noise of its own


def test_two_processes_draw_the_same_samples(tmp_path):
    code = f"""
import sys, torch, torch.distributed as dist
sys.path[:0] = [{os.path.dirname(__file__)!r}, {os.path.dirname(torchrun_file)!r}]
from test_evaluation import tiny_model
from minidiff.evaluation.diffusion import sample_many
dist.init_process_group("gloo")
images = sample_many(tiny_model(), ["cat", "dog", "cat"], steps=3, progress=False)
torch.save(images, {str(tmp_path)!r} + f"/{{dist.get_rank()}}.pt")
dist.destroy_process_group()
"""
    (tmp_path / "two.py").write_text(code)
    subprocess.run(torchrun(2, tmp_path / "two.py"), check=True, capture_output=True)
    alone = sample_many(tiny_model(), ["cat", "dog", "cat"], steps=3, progress=False)
    for rank in range(2):
        assert (torch.load(tmp_path / f"{rank}.pt") - alone).abs().max() < 0.1


def test_the_shapes_report_passes_the_truth_and_fails_noise(monkeypatch):
    def truth(model, captions, **_):
        return shapes.render([by_caption[c] for c in captions])[0]

    by_caption = {}
    captions = shapes.captions

    def remember(scenes):
        told = captions(scenes)
        by_caption.update(zip(told, scenes, strict=True))
        return told

    monkeypatch.setattr(shapes, "captions", remember)
    monkeypatch.setattr(evaluation, "sample_many", truth)
    *kinds, _, _ = report_shapes(None, n=64)
    control = kinds.pop(1)
    assert "control" in control.what and control.value < 10
    assert len(kinds) == 4 and all(figure.value > 99 for figure in kinds)

    monkeypatch.setattr(evaluation, "sample_many", lambda m, c, **_: torch.randn(len(c), 3, 32, 32))
    assert all(figure.value == 0 for figure in report_shapes(None, n=16)[:-2])


def test_the_emoji_report_passes_the_truth_and_fails_noise(monkeypatch):
    names = [f"thing {i}" for i in range(50)] + list(HELD_OUT)
    data = ImageSet(torch.randint(256, (56, 3, 8, 8), dtype=torch.uint8), captions=tuple(names))
    monkeypatch.setattr(evaluation, "noto_emoji", lambda size: data)
    real = to_float(data.images)

    def truth(model, prompts, **_):
        return torch.stack([real[names.index(prompt)] for prompt in prompts])

    monkeypatch.setattr(evaluation, "sample_many", truth)
    learnt, control, new, new_control = report_emoji(tiny_model(), n=50)
    assert learnt.value == new.value == 100 and control.value == new_control.value == 0
    assert "of 50 pictures" in learnt.note and "of 48 pictures" in new.note

    monkeypatch.setattr(evaluation, "sample_many", lambda m, c, **_: torch.randn(len(c), 3, 8, 8))
    assert all(figure.value < 20 for figure in report_emoji(tiny_model(), n=50))


def test_texture_sees_a_pattern_of_two_pixels():
    noise = 0.01 * torch.randn(64, 3, 8, 8)
    assert 0.8 < texture(noise) < 1.2
    stripes = 0.01 * torch.tensor([1.0, -1.0]).repeat(4)
    assert texture(noise + stripes) > 2
    assert texture(noise + stripes[:, None]) > 2
    assert texture(noise + stripes * stripes[:, None] / 0.01) > 2


def test_grain_is_what_a_linear_shading_leaves():
    noise = 0.01 * torch.randn(64, 3, 8, 8)
    shading = 0.3 * torch.linspace(-1, 1, 8) + 0.2 * torch.linspace(-1, 1, 8)[:, None]
    assert levelled(shading.expand(2, 3, 8, 8)).abs().max() < 1e-5
    torch.testing.assert_close(levelled(noise + shading), levelled(noise), atol=1e-5, rtol=0)
    assert 0.009 < levelled(noise).std() < 0.011
    assert levelled(noise + shading**2).std() > 0.02


def test_every_tenth_is_held_out():
    train, held_out = split(torch.arange(25))
    assert held_out.tolist() == [9, 19] and len(train) == 23


def test_figures_read_well():
    told = line(share("right", torch.tensor([True] * 99 + [False]), "% of 100"))
    assert told == "right: 99.0 (94.6 to 99.8) % of 100"
    assert line(Figure("distance", 1.234)) == "distance: 1.23"


@pytest.mark.skipif("shapes" not in zoo.names(), reason="the shapes model is not there")
def test_the_shipped_shapes_model_follows_its_captions():
    """A quick look at what the card measures: far above chance, and a control far below."""
    scenes = shapes.random_scenes(24, torch.Generator().manual_seed(77), pairs=0.0)
    told = shapes.captions(scenes)
    drawn = sample_many(zoo.load("shapes"), told, scale=3, steps=25, progress=False)
    assert shapes.grade(told, drawn).float().mean() > 0.7
    assert shapes.grade(told[1:] + told[:1], drawn).float().mean() < 0.2
