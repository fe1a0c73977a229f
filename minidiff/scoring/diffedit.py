"""The row of DiffEdit, on given pictures: as they are, and with a mark that no model knows.

Any method paints a plain background as it was; it is what the model would not have drawn that tells
a picture that was kept from one that was drawn again. The mark counts in the row's effect alone:
its masks, backgrounds and new shapes are those of the pictures as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
FAINT = 0.5  # how far a mark's grey is from its background's, of a range of 2
LEGIBLE = 20.0  # dB, of a mark that was kept


def marked(bench: Bench) -> tuple[Tensor, Tensor]:
    """The pictures with a small faint cross each on their background, and where it is (n,1,H,W)."""
    room = 1 - F.max_pool2d(1 - bench.background, 7, stride=1, padding=3)
    room[..., :3, :], room[..., -3:, :], room[..., :3], room[..., -3:] = 0, 0, 0, 0
    chosen = torch.multinomial(room.flatten(1), 1, generator=bench.luck(7))
    middles = torch.zeros_like(room).flatten(1).scatter(1, chosen, 1.0).view_as(room)
    cross = torch.eye(5).maximum(torch.eye(5).flip(0))
    where = F.conv2d(middles, cross[None, None], padding=2)
    ground = bench.images.flatten(2).median(2).values[..., None, None]  # (n,3,1,1)
    ink = ground - FAINT * ground.mean(1, keepdim=True).sign()
    return torch.where(where.bool(), ink, bench.images), where


def differences(bench: Bench, images: Tensor, reference: Sequence[str] | None) -> Arm:
    """How much the new caption and the reference disagree, (n,1,32,32): the reference is the
    images' own captions, or none."""
    half = bench.schedule.level(bench.schedule.T // 2)

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        query = bench.fast.denoiser(bench.target_shorts[rows])
        against = bench.fast.denoiser(reference[rows] if reference else None)
        return difference(query, against, images[rows], half, generator=generators)

    return bench.arm(draw)


def decoded(bench: Bench, images: Tensor, keep: Tensor, strength: float) -> Arm:
    """DiffEdit's images, within masks that are found."""
    path = bench.schedule.path(2 * STEPS)

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        query = clamp(bench.fast.denoiser(bench.target_shorts[rows], QUERY))
        null = bench.fast.denoiser()
        return diffedit(query, null, images[rows], keep[rows], path, strength=strength)

    return bench.arm(draw)


def by_sdedit(bench: Bench, images: Tensor, strength: float) -> Arm:
    """The same edit without a mask and without inversion."""
    path = bench.schedule.path(2 * STEPS)

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        asked = clamp(bench.fast.denoiser(bench.target_shorts[rows], SCALE))
        return sdedit(asked, images[rows], path, strength=strength, generator=generators)

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


def joint_with_mark(bench: Bench, images: Tensor, given: Tensor, where: Tensor) -> Tensor:
    """`joint`, and the mark is still there; the oracle is shown the pictures without it."""
    unmarked = torch.where(where.bool(), bench.images, images)
    return joint(bench, unmarked) & (measures.psnr_where(images, given, where) > LEGIBLE)


def diffedit_shapes(bench: Bench) -> Row:
    mask, plain = differences(bench, bench.images, None), by_sdedit(bench, bench.images, MATCHED)
    found, keep = (cut(mask.images, threshold=THRESHOLD, margin=m) for m in (0, MARGIN))
    sweep = {s: decoded(bench, bench.images, keep, s) for s in (0.5, ENCODED)}
    arm = sweep[ENCODED]
    unmarked = [joint(bench, a.images) for a in (arm, plain)]

    given, where = marked(bench)
    area = cut(differences(bench, given, None).images, threshold=THRESHOLD, margin=MARGIN)
    both = decoded(bench, given, area, ENCODED), by_sdedit(bench, given, MATCHED)
    effect = pair(
        *("edited, all else and a mark kept", "%"),
        *(joint_with_mark(bench, a.images, given, where) for a in both),
    )
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
            above("edited, all else and a mark kept, difference", effect.difference, 0, "%"),
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
            f"{written(figure(changed[1]), '%')}",
            f"without the mark: edited and all else kept "
            f"{written(figure(unmarked[0]), '%')}, control {written(figure(unmarked[1]), '%')}",
        ],
        pictures={
            "marked image": given[:4],
            "DiffEdit": both[0].images[:4],
            "SDEdit": both[1].images[:4],
        },
    )


def _background(bench: Bench, *arms: Arm) -> list[Tensor]:
    return [measures.psnr_where(a.images, bench.images, bench.background) for a in arms]
