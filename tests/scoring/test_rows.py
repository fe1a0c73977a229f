"""Rows on the shipped model: broken methods miss their checks, and a quick run holds."""

import pytest
import torch
from click.testing import CliRunner

from minidiff.cli import main
from minidiff.data import shapes
from minidiff.editing import ilvr
from minidiff.guidance import clamp, classifier_free, rescale
from minidiff.samplers import ddpm_step
from minidiff.scoring import bench, diffedit, guidance, inversion, masks, outside, run, sampling
from minidiff.scoring.bench import DEVELOPMENT, Bench


@pytest.fixture
def small(monkeypatch):
    """A bench of few images and very few steps: not good pictures, but the same algebra. CIFAR-10
    and what guides from outside keep their steps: they must draw something."""
    for module in (bench, masks):
        monkeypatch.setattr(module, "STEPS", 2)
    return Bench(8, DEVELOPMENT)


def held(row, words):
    (check,) = [check for check in row.checks if words in check.what]
    return check.holds


def test_image_i_is_the_same_whatever_the_number_of_scenes():
    few, many = Bench(8, 7), Bench(16, 7)
    assert many.captions[:8] == few.captions
    assert many.target_captions[:8] == few.target_captions
    assert many.prompts[:8] == few.prompts
    assert torch.equal(many.images[:8], few.images)
    assert Bench(8, 8).captions != few.captions
    assert all(a != b for a, b in zip(few.captions, few.target_captions, strict=True))


@pytest.mark.parametrize("n", [0, 4, 12])
def test_a_bench_needs_whole_groups(n):
    with pytest.raises(ValueError, match="expected a multiple of 8"):
        Bench(n)


def test_arms_are_paired_and_their_calls_are_counted(small):
    one, two = small.of_prompts(1.0), small.of_prompts(2.0)
    assert one.images.shape == (8, 3, 32, 32)
    assert (one.calls, two.calls) == (2, 4)  # a step calls once, with guidance twice
    again = small.sampled(small.guided(small.prompts, 1.0))
    assert torch.equal(again.images, one.images)
    assert small.of_prompts(1.0) is one


def test_ilvr_that_stops_a_level_early_misses(small, monkeypatch):
    good = masks.ilvr_reference(small)
    assert held(good, "coarse pixels equal") and held(good, "cubic")

    def early(denoise, reference, path, **options):
        return ilvr(denoise, reference, path, until=path[-2].t, **options)

    monkeypatch.setattr(masks, "ilvr", early)
    assert not held(masks.ilvr_reference(small), "coarse pixels equal")


def test_a_mark_is_small_faint_and_off_the_thing():
    scenes = Bench(32, DEVELOPMENT)
    images, where = diffedit.marked(scenes)
    assert where.flatten(1).sum(1).tolist() == [9.0] * 32
    assert not (where * (1 - scenes.background)).any()
    change = (images - scenes.images).abs().mean(1, keepdim=True)
    assert not change[where == 0].any() and (change[where == 1] - 0.5).abs().max() < 0.1


def test_an_edit_that_loses_the_mark_or_the_thing_does_not_count():
    scenes = Bench(8, DEVELOPMENT)
    given, where = diffedit.marked(scenes)
    drawn, _ = shapes.render(scenes.targets, generator=scenes.luck(1))
    perfect = torch.where(where.bool(), given, drawn)
    hits = [
        diffedit.joint_with_mark(scenes, images, given, where).sum().item()
        for images in (perfect, drawn, given)
    ]
    assert hits == [8, 0, 0]


def test_guidance_by_the_papers_weight_misses(small, monkeypatch):
    assert held(guidance.classifier_free_guidance(small), "bit for bit")

    def off_by_one(cond, uncond, scale):
        return classifier_free(cond, uncond, scale + 1)

    monkeypatch.setattr(guidance, "classifier_free", off_by_one)
    assert not held(guidance.classifier_free_guidance(small), "bit for bit")


def test_rescaling_that_does_nothing_misses(small, monkeypatch):
    less = "values at the ends, less half of the control's"
    assert held(guidance.rescaled_guidance(small), less)

    def idle(cond, uncond, scale, phi):
        return rescale(cond, uncond, scale, 0.0)

    monkeypatch.setattr(guidance, "rescale", idle)
    assert not held(guidance.rescaled_guidance(small), less)


def test_thresholding_that_is_static_misses(small, monkeypatch):
    less = "values at the ends, less half of the control's"
    assert held(guidance.dynamic_thresholding(small), less)
    monkeypatch.setattr(guidance, "dynamic_threshold", clamp)
    assert not held(guidance.dynamic_thresholding(small), less)


def test_guidance_that_is_lost_misses(small, monkeypatch):
    same = "class named, difference"
    assert held(guidance.rescaled_guidance(small), same)
    monkeypatch.setattr(guidance, "rescale", lambda cond, uncond, scale, phi: uncond)
    assert not held(guidance.rescaled_guidance(small), same)


def test_noise_that_few_steps_cannot_remove_misses(small, monkeypatch):
    checks = ("class named, difference", "less half of the control's")
    row = sampling.eta(small)
    assert all(held(row, words) for words in checks)

    def noisy(*arguments, eta=0.0, **options):
        return ddpm_step(*arguments, variance="large", **options)

    monkeypatch.setattr(sampling, "ddim_step", noisy)
    assert not any(held(sampling.eta(small), words) for words in checks)


def test_the_straight_line_misses(small, monkeypatch):
    checks = ("class named, difference", "diversity, difference")
    row = inversion.interpolation(small)
    assert all(held(row, words) for words in checks)
    monkeypatch.setattr(inversion, "slerp", lambda a, b, w: (1 - w) * a + w * b)
    assert not any(held(inversion.interpolation(small), words) for words in checks)


def test_a_classifier_that_guides_nothing_keeps_the_diversity(small, monkeypatch):
    fewer = "diversity to a CLIP"
    assert held(outside.classifier_guidance(small), fewer)
    unguided = outside.by_classifier(small, 0.0)
    monkeypatch.setattr(outside, "by_classifier", lambda bench, scale: unguided)
    assert not held(outside.classifier_guidance(small), fewer)


def test_what_is_missing_is_left_out_in_a_line(small):
    def lacking(bench):
        raise FileNotFoundError("Some guidance: no data/some.safetensors")

    said = []
    rows, left_out = run.score(small, said.append, [lacking])
    assert rows == [] and left_out == ["Some guidance: no data/some.safetensors"]
    assert said == ["left out Some guidance: no data/some.safetensors"]


@pytest.mark.slow
def test_a_quick_run_holds():
    done = CliRunner().invoke(main, ["score", "--quick"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
