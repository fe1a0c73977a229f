"""Lesson 09: each check accepts the solution and rejects each known wrong answer by a hint."""

import pytest
import torch

from minidiff.data import shapes
from minidiff.editing import low_pass
from minidiff.lessons import lesson_09 as lesson
from minidiff.lessons import mixture
from minidiff.schedule import add_noise

LEVEL = lesson.SCHEDULE.level


def start(guide, path, strength, noise):
    k = round(strength * (len(path) - 1))
    levels = path[-1 - k :]
    return add_noise(guide, levels[0], noise), levels


def started(change):
    """`start` with the noisy guide made by change(guide, level, noise, path)."""

    def wrong(guide, path, strength, noise):
        _, levels = start(guide, path, strength, noise)
        return change(guide, levels[0], noise, path), levels

    return wrong


WRONG_STARTS = {
    "has no noise yet": started(lambda g, at, z, p: g),
    "scaled but has no noise": started(lambda g, at, z, p: at.alpha * g),
    "keeps its full size": started(lambda g, at, z, p: g + at.sigma * z),
    "pure noise": started(lambda g, at, z, p: z),
    "square roots are missing": started(lambda g, at, z, p: at.alpha**2 * g + at.sigma**2 * z),
    "the path's first level": started(lambda g, at, z, p: add_noise(g, p[0], z)),
    "off by up to": started(lambda g, at, z, p: at.alpha * g - at.sigma * z),
    "the first levels of the path": lambda g, p, s, z: (
        add_noise(g, p[0], z),
        p[: round(s * (len(p) - 1)) + 1],
    ),
    "one level is missing": lambda g, p, s, z: (g, p[-round(s * (len(p) - 1)) :]),
    "the walk visits": lambda g, p, s, z: (g, p[5:]),
    "expected two things": lambda g, p, s, z: g,
}


def test_start_accepts_the_solution():
    assert lesson.check_start.verdict(start).startswith("right")


@pytest.mark.parametrize(("hint", "wrong"), WRONG_STARTS.items(), ids=WRONG_STARTS)
def test_start_rejects(hint, wrong):
    assert hint in lesson.check_start.verdict(wrong)


def keep(x, guide, mask, level, noise):
    return torch.where(mask.bool(), add_noise(guide, level, noise), x)


WRONG_KEEPS = {
    "turned around": lambda x, g, m, at, z: torch.where(m.bool(), x, add_noise(g, at, z)),
    "kept pixels are clean": lambda x, g, m, at, z: torch.where(m.bool(), g, x),
    "everything is the guide": lambda x, g, m, at, z: add_noise(g, at, z),
    "bit for bit": lambda x, g, m, at, z: keep(x, g, m, LEVEL(max(at.t, 1)), z),
    "off by up to": lambda x, g, m, at, z: keep(x, g, m, LEVEL(max(at.t - 1, 0)), z),
}


def test_keep_accepts_the_solution():
    assert lesson.check_keep.verdict(keep).startswith("right")


@pytest.mark.parametrize(("hint", "wrong"), WRONG_KEEPS.items(), ids=WRONG_KEEPS)
def test_keep_rejects(hint, wrong):
    assert hint in lesson.check_keep.verdict(wrong)


def refine(x, reference, here, there, factor, draw, low=low_pass):
    y = add_noise(reference, there, draw())
    return x - low(x, factor) + low(y, factor)


def frozen():
    """One noise for all levels."""
    held = []

    def wrong(x, reference, here, there, factor, draw):
        held.append(draw())
        return refine(x, reference, here, there, factor, lambda: held[0])

    return wrong


WRONG_REFINES = {
    "noised to the level the step came from": lambda x, r, here, there, n, draw: refine(
        x, r, there, here, n, draw
    ),
    "reference is clean": lambda x, r, here, there, n, draw: (
        x - low_pass(x, n) + low_pass(r + 0 * draw(), n)
    ),
    "low frequencies of its own": lambda x, r, here, there, n, draw: (
        x + low_pass(add_noise(r, there, draw()), n)
    ),
    "only the low frequencies": lambda x, r, here, there, n, draw: low_pass(
        add_noise(r, there, draw()), n
    ),
    "no projection": lambda *a: refine(*a, low=lesson.cubic),
    "fresh draw()": frozen(),
}


def test_refine_accepts_the_solution():
    assert lesson.check_refine.verdict(refine).startswith("right")


@pytest.mark.parametrize(("hint", "wrong"), WRONG_REFINES.items(), ids=WRONG_REFINES)
def test_refine_rejects(hint, wrong):
    assert hint in lesson.check_refine.verdict(wrong)


def test_blanks_are_not_done_yet():
    for check in (lesson.check_start, lesson.check_keep, lesson.check_refine):
        assert check.verdict(lambda *a: ...).startswith("not done yet")


def test_the_exact_posterior_has_the_exact_mean():
    generator = torch.Generator().manual_seed(0)
    level = LEVEL(300)
    x = torch.tensor([0.2, 0.1], dtype=torch.float64).reshape(1, 2, 1, 1).expand(20_000, 2, 1, 1)
    found = lesson.posterior(x, level, generator).mean(0).flatten()
    wanted = mixture.denoise(x[:1], level).x0.flatten()
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)


def test_guides_are_crude_and_name_only_shape_and_colour():
    guides, captions, scenes = lesson.blobs(6, torch.Generator().manual_seed(1))
    assert guides.shape == (6, 3, 32, 32)
    for caption, scene in zip(captions, scenes, strict=True):
        assert scene.thing.colour in caption and scene.thing.shape in caption
    assert shapes.read(guides) == [None] * 6  # the oracle finds no scene in them


def test_seams_are_seen_where_blocks_differ():
    smooth = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32).contiguous()
    assert lesson.seams(smooth, 8).item() == pytest.approx(1, abs=1e-3)
    assert lesson.seams(low_pass(smooth, 8) + 0.1 * smooth, 8).item() > 3
