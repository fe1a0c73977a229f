"""Rows of Semantic Diffusion Guidance: a text, or what a picture shows, where, or in what colours.

The base is the model's null condition; the control of each is the same noise without guidance, or
with the guidance that should not do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from minidiff.clip import noisy, use
from minidiff.editing import semantic
from minidiff.evaluation.semantic_guidance import WEIGHTS, agreement
from minidiff.noise import per_image
from minidiff.scoring import measures
from minidiff.scoring.bench import GROUP, STEPS, Arm, Bench
from minidiff.scoring.outside import has_look, load_clip, looks
from minidiff.scoring.table import Row, above, below, figure, pair, written

TEXT, CONTENT, STRUCTURE, STYLE = (
    WEIGHTS[aim] for aim in ("text", "content", "structure", "style")
)
NEAR = 3.0  # pixels

Aim = Callable[[Tensor, Tensor, Sequence[Generator]], semantic.LogProb]


def _drawn(bench: Bench, name: str, aim: Aim | None) -> Arm:
    """The null condition under `aim(pictures, text embeddings, generators)` of some rows."""

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        x = bench.model.noise(len(generators), generators)
        if aim is None:
            log_prob, scale = _nothing, 0.0
        else:
            own = per_image(bench.luck(6), bench.n)[rows]  # the sampler's noise stays the same
            log_prob, scale = aim(bench.images[rows], _texts(bench)[rows], own), 1.0
        path = bench.schedule.path(2 * STEPS)
        denoise = bench.fast.denoiser()
        return semantic.guide(denoise, x, path, log_prob, scale, generator=generators)

    return bench.shared(f"semantic {name}", lambda: bench.arm(draw, batch=16))


def _nothing(x: Tensor, level) -> Tensor:
    return (0 * x).flatten(1).sum(1)


def _encoder(row: str) -> noisy.NoisyEncoder:
    if "shapes" not in noisy.shipped():
        raise FileNotFoundError(f"{row}: no data/clip_shapes_noisy.safetensors")
    return noisy.load("shapes", "cpu")


def _texts(bench: Bench) -> Tensor:
    clip = load_clip("shapes", "Semantic guidance")
    return use.text_features(clip, [f"a {look}" for look in looks(bench)])


def _text(encoder) -> Aim:
    return lambda pictures, texts, _: semantic.total((TEXT, semantic.text(encoder, texts)))


def _content(encoder) -> Aim:
    return lambda pictures, _, g: semantic.total((CONTENT, semantic.content(encoder, pictures, g)))


def text(bench: Bench) -> Row:
    name = "Semantic guidance, text"
    encoder = _encoder(name)
    arm, free = _drawn(bench, "text", _text(encoder)), _drawn(bench, "none", None)
    effect = pair("right", "%", *(has_look(looks(bench), a.images) for a in (arm, free)))
    return Row(
        *(name, f"weight {TEXT:g}, {2 * STEPS} steps of DDPM", "weight 0", bench.n),
        *(effect, arm.calls, arm.seconds),
        [above("right, difference", effect.difference, 0, "%")],
        diversity=pair("diversity", "", measures.spread(arm.images), measures.spread(free.images)),
        pictures={"text": arm.images[::GROUP][:4], "no guidance": free.images[::GROUP][:4]},
    )


def content(bench: Bench) -> Row:
    name = "Semantic guidance, content"
    encoder = _encoder(name)
    arm, free = _drawn(bench, "content", _content(encoder)), _drawn(bench, "none", None)
    shares = [100 * agreement(bench.scenes, a.images) for a in (arm, free)]
    effect = pair("attributes in common", "%", *shares)
    return Row(
        *(name, f"weight {CONTENT:g}, {2 * STEPS} steps of DDPM", "weight 0", bench.n),
        *(effect, arm.calls, arm.seconds),
        [above("attributes in common, difference", effect.difference, 0, "%")],
        pictures=_pictures(bench, content=arm, free=free),
    )


def structure(bench: Bench) -> Row:
    name = "Semantic guidance, structure"
    encoder = _encoder(name)

    def aim(pictures: Tensor, texts: Tensor, generators: Sequence[Generator]):
        return semantic.total((STRUCTURE, semantic.structure(encoder, pictures, generators)))

    arm, other = _drawn(bench, "structure", aim), _drawn(bench, "content", _content(encoder))
    moves = [measures.moved(a.images, bench.images) for a in (arm, other)]
    effect = pair("middle off by", "px", *moves)
    return Row(
        *(name, f"weight {STRUCTURE:g}, {2 * STEPS} steps of DDPM", "content guidance", bench.n),
        *(effect, arm.calls, arm.seconds),
        [below("middle off, less half of the control's", figure(moves[0] - moves[1] / 2), 0, "px")],
        kept=pair("valid", "%", *(measures.valid(a.images) for a in (arm, other))),
        pictures=_pictures(bench, structure=arm, content=other),
    )


def style(bench: Bench) -> Row:
    name = "Semantic guidance, style"
    encoder = _encoder(name)

    def aim(pictures: Tensor, texts: Tensor, generators: Sequence[Generator]):
        return semantic.total((STYLE, semantic.style(encoder, pictures, generators)))

    arm, free = _drawn(bench, "style", aim), _drawn(bench, "none", None)
    effect = pair(
        "palette distance", "", *(measures.palette(a.images, bench.images) for a in (arm, free))
    )
    same = pair("same shape (chance 17)", "%", *(_same_shape(bench, a.images) for a in (arm, free)))
    return Row(
        *(name, f"weight {STYLE:g}, {2 * STEPS} steps of DDPM", "weight 0", bench.n),
        *(effect, arm.calls, arm.seconds),
        [
            below("palette distance, difference", effect.difference, 0),
            below("same shape as the picture", same.method, 50, "%"),
        ],
        kept=same,
        pictures=_pictures(bench, style=arm, free=free),
    )


def several(bench: Bench) -> Row:
    """The structure of a picture and a text that says something else."""
    name = "Semantic guidance, structure and text"
    encoder = _encoder(name)

    def aim(pictures: Tensor, texts: Tensor, generators: Sequence[Generator]):
        return semantic.total(
            (STRUCTURE / 2, semantic.structure(encoder, pictures, generators)),
            (TEXT, semantic.text(encoder, texts)),
        )

    arm, alone = _drawn(bench, "both", aim), _drawn(bench, "text", _text(encoder))
    hits = [_there(bench, a.images) for a in (arm, alone)]
    effect = pair("right, at the picture's place", "%", *hits)
    says = pair("right", "%", *(has_look(looks(bench), a.images) for a in (arm, alone)))
    return Row(
        *(name, f"weights {STRUCTURE / 2:g} and {TEXT:g}", "the text alone", bench.n),
        *(effect, arm.calls, arm.seconds),
        [above("right, at the picture's place, difference", effect.difference, 0, "%")],
        kept=says,
        notes=[f"right, wherever: {written(says.method, '%')}"],
        pictures=_pictures(bench, both=arm, text_alone=alone),
    )


def _there(bench: Bench, images: Tensor) -> Tensor:
    near = measures.moved(images, bench.images) <= NEAR
    return has_look(looks(bench), images) & near


def _same_shape(bench: Bench, images: Tensor) -> Tensor:
    pairs = zip(measures.read(images), bench.scenes, strict=True)
    return torch.tensor([s is not None and s.thing.shape == t.thing.shape for s, t in pairs])


def _pictures(bench: Bench, **arms: Arm) -> dict[str, Tensor]:
    named = {name.replace("_", " "): arm.images[:4] for name, arm in arms.items()}
    return {"picture": bench.images[:4]} | named
