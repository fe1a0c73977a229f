"""`minidiff score`: every method on the same seeds, one table, one sheet of pictures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL.Image import Dither, Image

from minidiff import plot
from minidiff.device import describe
from minidiff.files import atomic
from minidiff.scoring import (
    attention,
    diffedit,
    guidance,
    inversion,
    masks,
    outside,
    sampling,
    semantic,
)
from minidiff.scoring.bench import Bench
from minidiff.scoring.table import Row, as_json, line, markdown

QUICK = 16  # images of a quick run, of which only firm checks count
SHOWN = 3  # images of each method on the sheet

ROWS: Sequence[Callable[[Bench], Row]] = (
    sampling.ddpm,
    sampling.ddim,
    sampling.heun,
    sampling.dpmpp_2m,
    sampling.eta,
    sampling.spacing,
    inversion.round_trip,
    inversion.cifar10,
    inversion.butterflies,
    inversion.interpolation,
    guidance.classifier_free_guidance,
    guidance.negative_prompt,
    guidance.several_prompts,
    guidance.guidance_interval,
    guidance.rescaled_guidance,
    guidance.dynamic_thresholding,
    outside.classifier_guidance,
    outside.clip_guidance,
    semantic.text,
    semantic.content,
    semantic.structure,
    semantic.style,
    semantic.several,
    masks.sdedit_strokes,
    masks.ilvr_reference,
    masks.repaint_holes,
    outside.blended_diffusion,
    diffedit.diffedit_shapes,
    attention.p2p_replace,
    attention.p2p_refine,
    attention.p2p_reweight,
    attention.p2p_local,
)


def score(
    bench: Bench, say: Callable[[str], None] = print, methods: Sequence[Callable] = ROWS
) -> tuple[list[Row], list[str]]:
    """All rows, and a line for each that is left out because a checkpoint or data are missing."""
    rows, left_out = [], []
    for method in methods:
        try:
            rows.append(method(bench))
        except FileNotFoundError as missing:
            left_out.append(str(missing))
            say(f"left out {missing}")
            continue
        say(line(rows[-1]))
    return rows, left_out


def failures(rows: Sequence[Row], *, firm: bool = False) -> list[str]:
    """The checks that miss, a line each; with `firm` only those that hold by a margin."""
    return [
        f"{row.name}: {check.what}: {check.found}"
        for row in rows
        for check in row.checks
        if not check.holds and (check.firm or not firm)
    ]


def about(bench: Bench, seconds: float) -> dict:
    """What the page says of the run."""
    return {
        "command": " ".join(["minidiff", *sys.argv[1:]]),
        "machine": describe(bench.model.device),
        "minutes": seconds / 60,
        "seed": bench.seed,
        "n": bench.n,
    }


def write(folder: Path, rows: Sequence[Row], left_out: Sequence[str], told: dict) -> list[Path]:
    """scorecard.md and scorecard.json in the folder."""
    made = {
        "scorecard.md": markdown(rows, left_out, told),
        "scorecard.json": as_json(rows, left_out, told),
    }
    for name, text in made.items():
        with atomic(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in made]


def sheet(rows: Sequence[Row]) -> Image:
    """The first images of every method: what it was given, what it made, its control."""
    table = []
    for row in rows:
        images, words = [], []
        for label, batch in row.pictures.items():
            shown = batch[:SHOWN].clamp(-1, 1)
            images.append(shown)
            words += [label if i == len(shown) // 2 else "" for i in range(len(shown))]
        table.append((row.name, torch.cat(images), words))
    drawn = plot.rows(table, title="Every method on the first three seeds, nothing chosen")
    return drawn.quantize(256, dither=Dither.NONE)  # a third of the size


def timed(call: Callable) -> tuple:
    """What `call` returns, and the seconds it took."""
    start = time.perf_counter()
    return call(), time.perf_counter() - start
