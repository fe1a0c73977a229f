"""Rows of the methods that hold pixels: SDEdit, ILVR, RePaint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from minidiff.editing import ilvr, low_pass, repaint, sdedit
from minidiff.samplers import ddpm_step
from minidiff.scoring import measures
from minidiff.scoring.bench import GROUP, STEPS, Arm, Bench
from minidiff.scoring.crude import KINDS, drawn_by_hand, holes
from minidiff.scoring.table import Row, above, below, exact, figure, pair, rising

SCALE = 3.0  # of SDEdit's caption
STRENGTH, STRENGTHS = 0.4, (0.2, 0.4, 0.6, 0.8)  # of SDEdit, with 50 steps
FACTOR, FACTORS = 4, (2, 4, 8, 16)  # of ILVR
FILL_STEPS, TIMES = 25, 10  # of RePaint


def hand_drawn(bench: Bench) -> Tensor:
    return drawn_by_hand(bench.scenes, bench.luck(4))


def from_strokes(bench: Bench, guides: Tensor, strength: float) -> Arm:
    """SDEdit of crude drawings, told what they show but not where or on what ground."""
    path, captions = bench.schedule.path(2 * STEPS), bench.shorts

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        asked = bench.guided(captions, SCALE)(rows)
        return sdedit(asked, guides[rows], path, strength=strength, generator=generators)

    return bench.arm(draw)


def sdedit_strokes(bench: Bench) -> Row:
    guides = hand_drawn(bench)
    drawn = from_strokes(bench, guides, STRENGTH)
    sweep = [from_strokes(bench, guides, strength) for strength in STRENGTHS]
    free = bench.from_shorts
    gain = figure(measures.misfit(drawn.images) - measures.misfit(guides))
    distances = [measures.rms(arm.images, guides) for arm in sweep]
    found = [measures.right(bench.captions, images) for images in (drawn.images, guides)]
    effect, strengths = pair("real and as meant", "%", *found), " ".join(map(str, STRENGTHS))
    images = (drawn.images, free.images)
    kept = pair("distance to the strokes", "", *(measures.rms(x, guides) for x in images))
    return Row(
        *("SDEdit", f"strength {STRENGTH:g} of {2 * STEPS} steps, scale {SCALE:g}"),
        *("the strokes themselves; for the distance, the caption alone", bench.n),
        *(effect, drawn.calls, drawn.seconds),
        [
            above("real and as meant, difference", effect.difference, 0, "%"),
            below("distance, difference", kept.difference, 0, firm=True),
            below("misfit, less that of the strokes", gain, 0, firm=True),
            rising(f"distance to the strokes at strengths {strengths}", distances),
        ],
        kept=kept,
        pictures={
            "strokes": guides[:4],
            "SDEdit": drawn.images[:4],
            "the caption alone": free.images[:4],
        },
    )


def like_references(bench: Bench, references: Tensor, factor: int) -> Arm:
    """ILVR, told what the reference shows but nothing of place and background."""
    path, captions = bench.schedule.path(2 * STEPS), _of_groups(bench.shorts)

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        asked = bench.guided(captions, 1)(rows)
        return ilvr(asked, references[rows], path, factor=factor, generator=generators)

    return bench.arm(draw)


def _of_groups(values: list) -> list:
    """The first of each group of GROUP, as often as there are images in it."""
    return [values[i // GROUP * GROUP] for i in range(len(values))]


def ilvr_reference(bench: Bench) -> Row:
    references = torch.stack(_of_groups(list(bench.images)))
    arms = {factor: like_references(bench, references, factor) for factor in FACTORS}
    captions = _of_groups(bench.shorts)
    path = bench.schedule.path(2 * STEPS)
    arm = arms[FACTOR]
    free = bench.sampled(bench.guided(captions, 1), step=ddpm_step, path=path)
    coarse = low_pass(references, FACTOR)
    off = [measures.rms(low_pass(a.images, FACTOR), coarse) for a in (arm, free)]
    hits = {f: measures.right(captions, a.images) for f, a in arms.items()}
    kept = pair("right", "%", hits[FACTOR], measures.right(captions, free.images))
    shares = {f: 100 * found.double().mean().item() for f, found in hits.items()}
    return Row(
        *("ILVR", f"blocks of {FACTOR} x {FACTOR} pixels, {2 * STEPS} steps of DDPM"),
        *("the same noise and caption without the reference", bench.n),
        *(pair("coarse difference to the reference", "", *off), arm.calls, arm.seconds),
        [
            exact("coarse pixels equal the reference's to 1e-5", off[0].max().item() < 1e-5),
            exact("with the authors' cubic resizing they could not", _cubic(references) > 1e-3),
            above("right, difference", kept.difference, -10, "%"),
            rising(
                f"diversity with blocks of {' '.join(map(str, FACTORS))}",
                [measures.spread(a.images) for a in arms.values()],
            ),
        ],
        kept=kept,
        diversity=pair("diversity", "", *(measures.spread(a.images) for a in (arm, free))),
        notes=[f"right with blocks of {f}: {share:.0f}%" for f, share in shares.items()],
        pictures={
            "reference": references[::GROUP][:4],
            "ILVR": arm.images[::GROUP][:4],
            "without it": free.images[::GROUP][:4],
        },
    )


def _cubic(images: Tensor) -> float:
    """How much filtering twice by cubic resizing differs from once: 0 for a projection."""

    def once(x: Tensor) -> Tensor:
        size = x.shape[-1]
        small = F.interpolate(x, size // FACTOR, mode="bicubic", antialias=True)
        return F.interpolate(small, size, mode="bicubic")

    return (once(once(images)) - once(images)).abs().mean().item()


def holed(bench: Bench) -> Tensor:
    return holes(bench.images, bench.things, bench.luck(5))


def filled(bench: Bench, keep: Tensor, steps: int, times: int) -> Arm:
    """RePaint, told nothing: what is hidden must be seen from what is kept."""
    path = bench.schedule.path(steps)

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        arguments = (bench.unconditional, bench.images[rows], keep[rows], path)
        return repaint(*arguments, times=times, generator=generators)

    return bench.arm(draw)


def repaint_holes(bench: Bench) -> Row:
    keep = holed(bench)
    arm = filled(bench, keep, FILL_STEPS, TIMES)
    naive = filled(bench, keep, round(arm.calls), 1)
    hits, plain = (measures.right(bench.captions, a.images) for a in (arm, naive))
    effect = pair("whole again", "%", hits, plain)
    misfits = pair("misfit", "", *(measures.misfit(a.images) for a in (arm, naive)))
    kinds = torch.arange(bench.n) % len(KINDS)
    return Row(
        *("RePaint", f"{FILL_STEPS} steps, each {TIMES} times, no caption; five kinds of holes"),
        *("plain replacement with as many calls", bench.n, effect, arm.calls, arm.seconds),
        [
            above("whole again, difference", effect.difference, 0, "%"),
            below("misfit, difference", misfits.difference, 0, firm=True),
            exact("as many network calls", abs(arm.calls - naive.calls) < 1),
            exact("kept pixels are the image's bit for bit", _same(arm, bench.images, keep)),
        ],
        kept=misfits,
        notes=[
            f"{name}: whole again {_share(hits[kinds == i])}, control {_share(plain[kinds == i])}"
            for i, name in enumerate(KINDS)
        ],
        pictures={
            "hole": torch.where(keep[:5].bool(), bench.images[:5], torch.ones(1)),
            "RePaint": arm.images[:5],
            "replacement": naive.images[:5],
        },
    )


def _same(arm: Arm, images: Tensor, keep: Tensor) -> bool:
    return torch.equal(torch.where(keep.bool(), arm.images, 0), torch.where(keep.bool(), images, 0))


def _share(hits: Tensor) -> str:
    return f"{int(hits.sum())} of {len(hits)}"
