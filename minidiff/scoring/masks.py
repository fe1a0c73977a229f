"""Rows of the methods that hold pixels: SDEdit, ILVR, RePaint. None of them is told a caption."""

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
from minidiff.scoring.table import Row, above, below, exact, pair, rising

STRENGTH, STRENGTHS = 0.5, (0.2, 0.4, 0.6, 0.8)  # of SDEdit, with 50 steps
FACTOR, FACTORS = 4, (2, 4, 8, 16)  # of ILVR
FILL_STEPS, TIMES = 25, 10  # of RePaint


def sdedit_strokes(bench: Bench) -> Row:
    guides = drawn_by_hand(bench.scenes, bench.luck(4))
    path = bench.schedule.path(2 * STEPS)

    def edited(strength: float) -> Arm:
        def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
            return sdedit(
                bench.unconditional, guides[rows], path, strength=strength, generator=generators
            )

        return bench.arm(draw)

    drawn, sweep = edited(STRENGTH), [edited(strength) for strength in STRENGTHS]
    misfits = [-measures.misfit(arm.images) for arm in sweep]
    distances = [measures.rms(arm.images, guides) for arm in sweep]
    found = [measures.right(bench.captions, images) for images in (drawn.images, guides)]
    effect, strengths = pair("valid and as meant", "%", *found), " ".join(map(str, STRENGTHS))
    free = bench.shared("no reference", lambda: _unguided(bench))
    kept = pair(
        *("distance to the strokes", ""),
        *(measures.rms(images, guides) for images in (drawn.images, free.images)),
    )
    return Row(
        *("SDEdit", f"strength {STRENGTH:g} of {2 * STEPS} steps, no caption"),
        *("the strokes themselves; for the distance, images from noise", bench.n),
        *(effect, drawn.calls, drawn.seconds),
        [
            above("valid and as meant, difference", effect.difference, 0, "%", firm=True),
            below("distance, difference", kept.difference, 0, firm=True),
            rising(f"realism (less misfit) at strengths {strengths}", misfits),
            rising(f"distance to the strokes at strengths {strengths}", distances),
        ],
        kept=kept,
        pictures={"strokes": guides[:4], "SDEdit": drawn.images[:4]},
    )


def _unguided(bench: Bench) -> Arm:
    path = bench.schedule.path(2 * STEPS)
    return bench.sampled(lambda rows: bench.unconditional, step=ddpm_step, path=path)


def ilvr_reference(bench: Bench) -> Row:
    references = bench.images[torch.arange(bench.n) // GROUP * GROUP]  # GROUP images of each
    path = bench.schedule.path(2 * STEPS)

    def drawn(factor: int) -> Arm:
        def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
            wanted = references[rows]
            return ilvr(bench.unconditional, wanted, path, factor=factor, generator=generators)

        return bench.arm(draw)

    arms = {factor: drawn(factor) for factor in FACTORS}
    arm, free = arms[FACTOR], bench.shared("no reference", lambda: _unguided(bench))
    coarse = low_pass(references, FACTOR)
    off = [measures.rms(low_pass(a.images, FACTOR), coarse) for a in (arm, free)]
    valid = pair("valid", "%", *(measures.valid(a.images) for a in (arm, free)))
    shares = {f: measures.valid(a.images).float().mean().item() for f, a in arms.items()}
    return Row(
        *("ILVR", f"blocks of {FACTOR} x {FACTOR} pixels, {2 * STEPS} steps of DDPM"),
        *("the same noise without the reference", bench.n),
        *(pair("coarse difference to the reference", "", *off), arm.calls, arm.seconds),
        [
            exact("coarse pixels equal the reference's to 1e-5", off[0].max().item() < 1e-5),
            exact("with the authors' cubic resizing they could not", _cubic(references) > 1e-3),
            above("valid, difference", valid.difference, -10, "%"),
            rising(
                f"diversity with blocks of {' '.join(map(str, FACTORS))}",
                [measures.spread(a.images) for a in arms.values()],
            ),
        ],
        kept=valid,
        diversity=pair("diversity", "", *(measures.spread(a.images) for a in (arm, free))),
        notes=[f"valid with blocks of {f}: {100 * v:.0f}%" for f, v in shares.items()],
        pictures={
            "reference": references[:4],
            "ILVR": arm.images[:4],
            "without it": free.images[:4],
        },
    )


def _cubic(images: Tensor) -> float:
    """How much filtering twice by cubic resizing differs from once: 0 for a projection."""

    def once(x: Tensor) -> Tensor:
        size = x.shape[-1]
        small = F.interpolate(x, size // FACTOR, mode="bicubic", antialias=True)
        return F.interpolate(small, size, mode="bicubic")

    return (once(once(images)) - once(images)).abs().mean().item()


def repaint_holes(bench: Bench) -> Row:
    keep = holes(bench.images, bench.things, bench.luck(5))

    def filled(steps: int, times: int) -> Arm:
        def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
            path, hole = bench.schedule.path(steps), keep[rows]
            images = bench.images[rows]
            return repaint(
                bench.unconditional, images, hole, path, times=times, generator=generators
            )

        return bench.arm(draw)

    arm = filled(FILL_STEPS, TIMES)
    naive = filled(round(arm.calls), 1)
    hits, plain = (measures.right(bench.captions, a.images) for a in (arm, naive))
    effect = pair("whole again", "%", hits, plain)
    misfits = pair("misfit", "", *(measures.misfit(a.images) for a in (arm, naive)))
    kinds = torch.arange(bench.n) % len(KINDS)
    return Row(
        *("RePaint", f"{FILL_STEPS} steps, each {TIMES} times, no caption; five kinds of holes"),
        *("plain replacement with as many calls", bench.n, effect, arm.calls, arm.seconds),
        [
            above("whole again, difference", effect.difference, 0, "%", firm=True),
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
