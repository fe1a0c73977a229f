"""The checks of lesson 07 accept its solutions and tell known mistakes apart."""

from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from minidiff.data.shapes import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing, captions, holds
from minidiff.lessons import lesson_07 as lesson


def my_merge(parts, pair):
    out = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def my_loss(images, texts, scale):
    logits = scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    right = torch.arange(len(logits))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def my_prepare(images, preprocess):
    return preprocess.normalise((images + 1) / 2)


def test_solutions_are_right():
    for check, answer in (
        (lesson.check_merge, my_merge),
        (lesson.check_loss, my_loss),
        (lesson.check_prepare, my_prepare),
    ):
        assert check.verdict(answer).startswith("right: ")
        assert check.verdict(lambda *args: ...).startswith("not done yet")


def merges_the_first_only(parts, pair):
    for i in range(len(parts) - 1):
        if (parts[i], parts[i + 1]) == pair:
            return [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
    return parts


def merges_both_orders(parts, pair):
    out = []
    for part in parts:
        if out and {out[-1], part} == set(pair):
            out[-1] += part
        else:
            out.append(part)
    return out


def merges_overlapping(parts, pair):
    out = [parts[0]]
    for before, part in zip(parts[:-1], parts[1:], strict=True):
        if (before, part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (merges_the_first_only, "only the first pair"),
        (merges_both_orders, "order within a pair"),
        (merges_overlapping, "do not overlap"),
        (lambda parts, pair: [p for p in parts if p not in pair], "nothing may be lost"),
        (lambda parts, pair: parts, "expected r ed r ed d e"),
        (lambda parts, pair: "".join(parts), "expected a list"),
    ],
)
def test_merge_slips(answer, told):
    assert told in lesson.check_merge.verdict(answer)


RIGHT = torch.arange(6)


def cosines(images, texts):
    return F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T


def both(logits):
    return F.cross_entropy(logits, RIGHT) + F.cross_entropy(logits.T, RIGHT)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda i, t, s: F.cross_entropy(s * cosines(i, t), RIGHT), "only images look"),
        (lambda i, t, s: F.cross_entropy(s * cosines(i, t).T, RIGHT), "only texts look"),
        (lambda i, t, s: both(s * cosines(i, t)), "are added"),
        (lambda i, t, s: both(s * i @ t.T) / 2, "not normalised"),
        (lambda i, t, s: both(cosines(i, t)) / 2, "scale is missing"),
        (lambda i, t, s: both(cosines(i, t) / s) / 2, "divided by the scale"),
        (lambda i, t, s: 1 - cosines(i, t).diagonal().mean(), "only attracts"),
        (lambda i, t, s: both(s * cosines(i, t)) / 2 + 0.01 * (i == 1).all(), "must be ln(B)"),
        (lambda i, t, s: cosines(i, t), "expected shape ()"),
    ],
)
def test_loss_slips(answer, told):
    assert told in lesson.check_loss.verdict(answer)


def published(preprocess):
    config = preprocess.config
    return (torch.tensor(x).double()[:, None, None] for x in (config.mean, config.std))


def feeds_minus_one_to_one(images, preprocess):
    mean, std = published(preprocess)
    return (images - mean) / std


def feeds_bytes(images, preprocess):
    mean, std = published(preprocess)
    return (127.5 * (images + 1) - mean) / std


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (feeds_minus_one_to_one, "fed where [0, 1] is due"),
        (feeds_bytes, "0..255"),
        (lambda x, preprocess: (x + 1) / 2, "not normalised"),
        (lambda x, preprocess: preprocess.normalise(x), "fails at"),
        (lambda x, preprocess: preprocess.normalise(x.clamp(0, 1)), "off by"),
    ],
)
def test_prepare_slips(answer, told):
    assert told in lesson.check_prepare.verdict(answer)


def test_grading_counts(capsys):
    scenes = [Scene(Thing("star", colour)) for colour in ("red", "orange", "orange", "green")]
    right = lesson.correct(torch.eye(8)[[0, 1, 1, 1]], scenes, "colour")
    assert right.tolist() == [True, True, True, False]
    assert lesson.correct(torch.eye(6)[[SHAPES.index("star")] * 4], scenes, "shape").all()
    low, high = lesson.told("colour", right, 8)
    assert 0.25 < low < 0.5 and 0.9 < high < 1
    assert capsys.readouterr().out == f"colour: 75.0% ({low:.1%} to {high:.1%}), chance 12.5%\n"


def test_slips_have_one_word_of_their_own_or_none():
    scenes = lesson.two_things(40, torch.Generator().manual_seed(0))
    true = captions(scenes)
    assert len(scenes) == len(set(true)) == 40
    slips = lesson.slips(scenes)
    for name, wrong in slips.items():
        for scene, right, slip in zip(scenes, true, captions(wrong), strict=True):
            assert not holds(slip, scene)
            new = Counter(slip.split()) - Counter(right.split()) - Counter(["a", "an"])
            assert sum(new.values()) == (0 if name.endswith("exchanged") else 1)
    assert [scene.thing for scene in slips["places exchanged"]] == [s.other for s in scenes]


def test_twins_differ_in_one_column():
    columns = {0: BACKGROUNDS, 3: SHAPES, 4: COLOURS}
    before, after, changed = lesson.twins(30, columns, torch.Generator().manual_seed(0))
    assert ((before != after).sum(1) == 1).all()
    for row, (column, value) in enumerate(changed):
        assert after[row, column] == value != before[row, column]
    assert {column for column, _ in changed} == set(columns)


def test_pictures_are_drawn():
    assert len(lesson.similarity(torch.eye(3), ["a", "b", "c"]).axes) == 2  # and its bar
    assert lesson.losses({"a": [2.0, 1.0]}, 1.5, "floor").axes
    assert lesson.bars([("a", 0.5), ("b", 0.1)], "title").axes
    picture = lesson.matrix(torch.tensor([[1.0, -0.5], [0.25, -1.0]]))
    assert picture.shape == (1, 3, 2, 2)
    assert torch.allclose(picture[0, 0], torch.tensor([[1.0, -1.0], [0.0, -1.0]]), atol=1e-6)
