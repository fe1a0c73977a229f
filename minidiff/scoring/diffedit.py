"""The row of DiffEdit, on given pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from minidiff.data import shapes
from minidiff.editing import cut, diffedit, difference, sdedit
from minidiff.guidance import clamp
from minidiff.scoring import measures
from minidiff.scoring.bench import STEPS, Arm, Bench
from minidiff.scoring.table import Row, above, figure, pair, rising, written

SCALE = 3.0
QUERY = 5.0  # guidance of DiffEdit
ENCODED = 0.8  # its strength
THRESHOLD, MARGIN = 0.5, 2  # of its mask, against the empty caption
MATCHED = 0.3  # strength of SDEdit that finds as many shapes and keeps the most


def differences(bench: Bench, reference: Sequence[str] | None) -> Arm:
    """How much the new caption and the reference disagree, (n,1,32,32): the reference is the
    images' own captions, or none."""
    half = bench.schedule.level(bench.schedule.T // 2)

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        query = bench.fast.denoiser(bench.target_shorts[rows])
        against = bench.fast.denoiser(reference[rows] if reference else None)
        return difference(query, against, bench.images[rows], half, generator=generators)

    return bench.arm(draw)


def decoded(bench: Bench, keep: Tensor, strength: float) -> Arm:
    """DiffEdit's images, within masks that are found."""
    path = bench.schedule.path(2 * STEPS)

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        query = clamp(bench.fast.denoiser(bench.target_shorts[rows], QUERY))
        null = bench.fast.denoiser()
        return diffedit(query, null, bench.images[rows], keep[rows], path, strength=strength)

    return bench.arm(draw)


def by_sdedit(bench: Bench, strength: float) -> Arm:
    """The same edit without a mask and without inversion."""
    path = bench.schedule.path(2 * STEPS)

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        asked = clamp(bench.fast.denoiser(bench.target_shorts[rows], SCALE))
        return sdedit(asked, bench.images[rows], path, strength=strength, generator=generators)

    return bench.arm(draw)


def shape_changed(bench: Bench, images: Tensor) -> Tensor:
    """Whether the shape is the new one, whatever else has changed."""
    pairs = zip(measures.read(images), bench.targets, strict=True)
    return torch.tensor([s is not None and s.thing.shape == t.thing.shape for s, t in pairs])


def target_things(bench: Bench) -> Tensor:
    """1 where the new thing would stand (n,1,32,32), were it where the old one is."""
    return (shapes.render(bench.targets, generator=bench.luck(1))[1] > 0.5).float()


def joint(bench: Bench, images: Tensor) -> Tensor:
    """Whether the shape is new and all else is as it was: the middle to two pixels."""
    drawn, _ = shapes.render(bench.targets, generator=bench.luck(1))
    near = measures.moved(images, drawn) <= 2
    return measures.right(bench.target_captions, images) & near


def diffedit_shapes(bench: Bench) -> Row:
    mask, plain = differences(bench, None), by_sdedit(bench, MATCHED)
    found, keep = (cut(mask.images, threshold=THRESHOLD, margin=m) for m in (0, MARGIN))
    sweep = {strength: decoded(bench, keep, strength) for strength in (0.5, ENCODED)}
    arm = sweep[ENCODED]
    effect = pair("edited, all else kept", "%", *(joint(bench, a.images) for a in (arm, plain)))
    kept = pair("background PSNR", "dB", *_background(bench, arm, plain))
    changed = [shape_changed(bench, a.images) for a in (arm, plain)]
    there = measures.overlap(1 - found, bench.things)
    aside = measures.overlap((1 - found).roll((11, 11), (2, 3)), bench.things)
    overlaps = pair("IoU", "", there, aside)
    return Row(
        *(
            "DiffEdit",
            f"strength {ENCODED:g} of {2 * STEPS} steps, scale {QUERY:g}, margin {MARGIN}",
        ),
        *(f"SDEdit with the new caption, strength {MATCHED:g}", bench.n),
        *(effect, mask.calls + arm.calls, mask.seconds + arm.seconds),
        [
            above("edited, all else kept, difference", effect.difference, 0, "%"),
            above("background PSNR", kept.method, 30, "dB", firm=True),
            above("background PSNR, difference", kept.difference, 0, "dB", firm=True),
            above("overlap of mask and thing (IoU), before the margin", overlaps.method, 0.5),
            above("more than of the same mask elsewhere", overlaps.difference, 0, firm=True),
            rising(
                "new shapes at strengths " + " ".join(map(str, sweep)),
                [shape_changed(bench, a.images).double() * 100 for a in sweep.values()],
                strictly=False,
            ),
        ],
        kept=kept,
        notes=[
            f"new shape: {written(figure(changed[0]), '%')}, control "
            f"{written(figure(changed[1]), '%')}"
        ],
        pictures={
            "image": bench.images[:4],
            "DiffEdit": arm.images[:4],
            "SDEdit": plain.images[:4],
        },
    )


def _background(bench: Bench, *arms: Arm) -> list[Tensor]:
    return [measures.psnr_where(a.images, bench.images, bench.background) for a in arms]
