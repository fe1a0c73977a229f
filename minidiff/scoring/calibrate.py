"""Why the settings are what they are: sweeps on development seeds, which are never graded.

    python -m minidiff.scoring.calibrate -n 24 --out calibration.md

Each sweep is drawn on the same noises; the setting in use is bold. The scorecard draws others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
from torch import Tensor

from minidiff.clip import use
from minidiff.device import keep_memory
from minidiff.editing import cut
from minidiff.files import atomic
from minidiff.scoring import attention, diffedit, guidance, masks, measures, outside
from minidiff.scoring.bench import DEVELOPMENT, Bench
from minidiff.scoring.classes import Classes
from minidiff.scoring.table import figure, written


class Sweep(NamedTuple):
    """One knob, or two, and what each setting gives."""

    title: str
    why: str  # how the setting in use follows from the figures
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]  # setting, figures
    used: str  # the setting in use


def _share(hits: Tensor) -> str:
    return written(figure(hits), "%")


def _mean(values: Tensor, unit: str = "") -> str:
    return written(figure(values), unit)


def guidance_scale(bench: Bench) -> Sweep:
    classes, rows = Classes(bench), []
    for scale in (1.0, 1.5, 2.0, 3.0, 5.0, 8.0):
        arm, drawn = classes.guided(scale), bench.of_prompts(scale).images
        named, glare = _share(classes.named(arm)), _mean(measures.saturated(arm.images), "%")
        spread, right = _mean(measures.spread(arm.images)), measures.right(bench.prompts, drawn)
        figures = (named, glare, spread, _share(right), _mean(measures.misfit(drawn)))
        rows.append((f"{scale:g}", figures))
    why = (
        "CIFAR-10's classes are named about as often as in photographs (93%), and colours are not "
        "yet glaring; the shapes need none"
    )
    columns = (
        *("scale", "class named", "values at the ends of the range", "diversity"),
        *("shapes right", "misfit of shapes"),
    )
    return Sweep("Classifier-free guidance", why, columns, rows, f"{guidance.SCALE:g}")


def negative_scale(bench: Bench) -> Sweep:
    rows = []
    for scale in (1.25, 1.5, 2.0, 3.0):
        _, _, shown, right = guidance.negative(bench, scale)
        figures = (shown.method, shown.control, right.method)
        rows.append((f"{scale:g}", [written(figure, "%") for figure in figures]))
    why = "the largest scale that leaves the thing right: larger ones leave the data"
    columns = ("scale", "unwanted background", "without a negative prompt", "right")
    return Sweep("Negative prompt", why, columns, rows, f"{guidance.AWAY:g}")


def sdedit_strength(bench: Bench) -> Sweep:
    guides, rows = masks.hand_drawn(bench), []
    for strength in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        images = masks.from_strokes(bench, guides, strength).images
        hits = measures.right(bench.captions, images)
        distance = _mean(measures.rms(images, guides))
        rows.append((f"{strength:g}", (_share(hits), _mean(measures.misfit(images)), distance)))
    why = "the largest of those with most pictures that are real and as the strokes meant"
    columns = ("strength", "real and as meant", "misfit", "distance to the strokes")
    return Sweep("SDEdit", why, columns, rows, f"{masks.STRENGTH:g}")


def repaint_jumps(bench: Bench) -> Sweep:
    keep, rows = masks.holed(bench), []
    for steps, times in ((250, 1), (25, 5), (25, 10), (50, 5)):
        arm = masks.filled(bench, keep, steps, times)
        hits = measures.right(bench.captions, arm.images)
        figures = (f"{arm.calls:.0f}", _share(hits), _mean(measures.misfit(arm.images)))
        rows.append((f"{steps} steps, {times} times", figures))
    why = "as good as twice the calls"
    columns = ("setting", "calls", "whole again", "misfit")
    return Sweep("RePaint", why, columns, rows, f"{masks.FILL_STEPS} steps, {masks.TIMES} times")


def diffedit_mask(bench: Bench) -> Sweep:
    rows, wanted = [], bench.things.maximum(diffedit.target_things(bench))
    for name, reference in (("nothing", None), ("its caption", bench.shorts)):
        gap = diffedit.differences(bench, bench.images, reference).images
        for threshold in (0.3, 0.4, 0.5, 0.6):
            for margin in (0, 1, 2):
                hole = 1 - cut(gap, threshold=threshold, margin=margin)
                covered = (hole * wanted).flatten(1).sum(1) / wanted.flatten(1).sum(1)
                area = 100 * hole.flatten(1).mean(1)
                overlap = measures.overlap(hole, bench.things)
                figures = (_mean(overlap), _mean(100 * covered, "%"), _mean(area, "%"))
                rows.append((f"{name}, {threshold:g}, {margin}", figures))
    why = (
        "against nothing the mask is the thing, against its caption a rim; the overlap is best "
        "without a margin, but edits need one, see the next table"
    )
    columns = ("against, threshold, margin", "IoU", "share of old and new covered", "area")
    used = f"nothing, {diffedit.THRESHOLD:g}, {diffedit.MARGIN}"
    return Sweep("DiffEdit's mask", why, columns, rows, used)


def diffedit_strength(bench: Bench) -> Sweep:
    gap, rows = diffedit.differences(bench, bench.images, None).images, []
    settings = [(strength, diffedit.MARGIN) for strength in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
    for strength, margin in (*settings, (diffedit.ENCODED, 0), (diffedit.ENCODED, 1)):
        keep = cut(gap, threshold=diffedit.THRESHOLD, margin=margin)
        images = diffedit.decoded(bench, bench.images, keep, strength).images
        rows.append((f"DiffEdit {strength:g}, margin {margin}", _edited(bench, images)))
    for strength in (0.3, 0.4, 0.5, 0.6, 0.7):
        images = diffedit.by_sdedit(bench, bench.images, strength).images
        rows.append((f"SDEdit {strength:g}", _edited(bench, images)))
    why = (
        "DiffEdit: the paper's strength, and the smallest margin of most new shapes; "
        f"SDEdit, its control, that of as many new shapes that keeps most: {diffedit.MATCHED:g}"
    )
    columns = ("strength", "new shape", "all else kept", "background PSNR")
    used = f"DiffEdit {diffedit.ENCODED:g}, margin {diffedit.MARGIN}"
    return Sweep("DiffEdit", why, columns, rows, used)


def _edited(bench: Bench, images: Tensor) -> tuple[str, str, str]:
    psnr = measures.psnr_where(images, bench.images, bench.background)
    changed, joint = diffedit.shape_changed(bench, images), diffedit.joint(bench, images)
    return _share(changed), _share(joint), _mean(psnr, "dB")


def injected(bench: Bench) -> Sweep:
    rows = []
    for cross in (0.0, 0.2, 0.4, 0.8):
        for self_attention in (0.0, 0.2, 0.4):
            shares = {"cross": cross, "self_attention": self_attention}
            swapped, striped = attention.swap(bench, **shares), attention.stripes(bench, **shares)
            psnr, moves = attention.stayed(swapped)
            hits = measures.right(bench.target_shorts, swapped.images[:, 1])
            more = measures.right(attention.striped(bench), striped.images[:, 1])
            kept = _mean(attention.stayed(striped)[0], "dB")
            figures = (_share(hits), _mean(psnr, "dB"), _mean(moves, "px"), _share(more), kept)
            rows.append((f"{cross:g}, {self_attention:g}", figures))
    why = (
        "the most that stays among settings with at least 80% of the edits of no injection; "
        f"refine has {attention.REFINE_CROSS:g}, {attention.REFINE_SELF:g}"
    )
    columns = ("cross, self", "another shape", "background PSNR", "moved", "stripes", "PSNR")
    used = f"{attention.CROSS:g}, {attention.SELF:g}"
    return Sweep("Prompt-to-Prompt", why, columns, rows, used)


def local_blend(bench: Bench) -> Sweep:
    rows = []
    for threshold in (0.2, 0.3, 0.4, 0.5, 0.6):
        arm = attention.blended_locally(bench, threshold)
        hits = measures.right(bench.target_shorts, arm.images[:, 1])
        psnr, _ = attention.stayed(arm)
        rows.append((f"{threshold:g}", (_share(hits), _mean(psnr, "dB"))))
    why = "the paper's, unless it costs edits"
    columns = ("threshold", "another shape", "background PSNR")
    return Sweep("Local blend", why, columns, rows, f"{attention.BLEND:g}")


def classifier_scale(bench: Bench) -> Sweep:
    wanted, rows = outside.looks(bench), []
    eye = use.encoder(outside.load_clip("shapes_judge", "Classifier guidance"))
    for scale in (0.0, 1.0, 3.0, 10.0, 30.0):
        images = outside.by_classifier(bench, scale).images
        seen = measures.spread_seen(outside.features_of(eye, images))
        figures = (_share(outside.has_look(wanted, images)), _mean(seen))
        rows.append((f"{scale:g}", figures))
    columns = ("scale", "right", "diversity to a CLIP")
    why = "the smallest scale of most right pictures"
    return Sweep("Classifier guidance", why, columns, rows, f"{outside.SCALE:g}")


def clip_scale(bench: Bench) -> Sweep:
    rows, wanted = [], outside.looks(bench)
    for scale in (0.0, 30.0, 100.0, 300.0, 1000.0):
        images = outside.by_clip(bench, scale).images
        hits = outside.has_look(wanted[: len(images)], images)
        rows.append((f"{scale:g}", (_share(hits), _mean(measures.misfit(images)))))
    columns = ("scale", "right", "misfit")
    why = "the scale of most right pictures"
    return Sweep("CLIP guidance", why, columns, rows, f"{outside.CLIP_SCALE:g}")


def blended_scale(bench: Bench) -> Sweep:
    rows = []
    for scale in (0.0, 30.0, 100.0, 300.0, 1000.0):
        images = outside.by_blending(bench, scale).images
        place = outside.boxes(bench, outside.load_clip("shapes", "Blended Diffusion"))
        seams = outside.seam(images, place.keep)
        figures = (_share(outside.has_look(place.asked, images)), _mean(seams))
        rows.append((f"{scale:g}", figures))
    columns = ("scale", "right inside", "seam")
    why = "the scale of most right pictures"
    return Sweep("Blended Diffusion", why, columns, rows, f"{outside.BLEND_SCALE:g}")


SWEEPS: Sequence[Callable[[Bench], Sweep]] = (
    guidance_scale,
    negative_scale,
    sdedit_strength,
    repaint_jumps,
    diffedit_mask,
    diffedit_strength,
    injected,
    local_blend,
    classifier_scale,
    clip_scale,
    blended_scale,
)


def as_markdown(sweep: Sweep) -> str:
    lines = [f"## {sweep.title}", "", f"In use (bold): {sweep.why}.", ""]
    lines += ["| " + " | ".join(sweep.columns) + " |", "|---" * len(sweep.columns) + "|"]
    for setting, figures in sweep.rows:
        name = f"**{setting}**" if setting == sweep.used else setting
        lines.append("| " + " | ".join([name, *figures]) + " |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("-n", "--number", default=24, show_default=True, help="Scenes, a multiple of 8.")
@click.option("--only", multiple=True, help="Sweeps by name, rather than all.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the page here.")
def main(number, only, out) -> None:
    """Sweep the settings of the scorecard's methods on development seeds."""
    keep_memory()
    bench, start, pages = Bench(number, DEVELOPMENT), time.perf_counter(), []
    known = {sweep.__name__: sweep for sweep in SWEEPS}
    for name in only:
        if name not in known:
            raise click.ClickException(f"no sweep {name!r}: expected some of {', '.join(known)}")
    for name in only or known:
        try:
            pages.append(as_markdown(known[name](bench)))
        except FileNotFoundError as missing:
            pages.append(f"## {name}\n\nLeft out: {missing}\n")
        click.echo(pages[-1])
    if out:
        minutes = (time.perf_counter() - start) / 60
        head = f"# Calibration\n\n{__doc__}\n{number} scenes of seed {DEVELOPMENT}, "
        with atomic(out) as temporary:
            temporary.write_text(f"{head}{minutes:.0f} minutes.\n\n" + "\n".join(pages))


if __name__ == "__main__":
    main()
