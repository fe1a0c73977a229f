"""Rows of guidance from outside: by a classifier of noisy images, by a CLIP of the predicted x0.

The base is the model's null condition. The oracle grades, never what guided. Each row raises
FileNotFoundError, with its reason, where the network that guides is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from minidiff import noisy_classifier
from minidiff.clip import use, weights
from minidiff.clip.model import CLIP
from minidiff.data import shapes
from minidiff.editing import background_loss, blended, in_place
from minidiff.editing.clip_guidance import clip_guided, clip_score
from minidiff.editing.masks import grow
from minidiff.guidance import clamp, classifier
from minidiff.samplers import ddpm_step, sample
from minidiff.scoring import measures
from minidiff.scoring.bench import GROUP, STEPS, Arm, Bench
from minidiff.scoring.table import Row, above, below, exact, figure, pair, rising, written

SCALE, SCALES = 3.0, (0.0, 1.0, 3.0, 10.0)  # of the classifier
CLIP_SCALE, CUTS = 100.0, 8
BLEND_SCALE, BLEND_CUTS = 300.0, 8  # of Blended Diffusion
DRAWS = 4  # of which its CLIP picks one; the authors' are 64
HELD = (1e2, 1e3, 1e4)  # weights of its earlier variant's background


# -------------------------------------------------------------------------------------- classifier


def by_classifier(bench: Bench, scale: float) -> Arm:
    """The null condition under the classifier, each image towards its own look."""
    if "shapes" not in noisy_classifier.shipped():
        raise FileNotFoundError("Classifier guidance: no data/shapes_noisy_classifier.safetensors")
    judge, wanted = noisy_classifier.load("shapes", "cpu"), looks(bench)

    def denoiser(rows: slice):
        return clamp(classifier(bench.fast.denoiser(), judge.log_prob(wanted[rows]), scale))

    return bench.sampled(denoiser, step=ddpm_step, path=bench.schedule.path(2 * STEPS))


def classifier_guidance(bench: Bench) -> Row:
    """Pixels hardly tell images of one thing from images of any: their backgrounds differ most.
    Diversity is what a CLIP that has not guided sees."""
    wanted, eye = looks(bench), use.encoder(load_clip("shapes_judge", "Classifier guidance"))
    arms = {scale: by_classifier(bench, scale) for scale in SCALES}
    hits = {scale: has_look(wanted, arm.images) for scale, arm in arms.items()}
    spreads = {s: measures.spread_seen(features_of(eye, arm.images)) for s, arm in arms.items()}
    effect, arm = pair("right", "%", hits[SCALE], hits[0.0]), arms[SCALE]
    diversity = pair("diversity to a CLIP", "", spreads[SCALE], spreads[0.0])
    return Row(
        *("Classifier guidance", f"scale {SCALE:g}, {2 * STEPS} steps, of the null condition"),
        *("scale 0", bench.n, effect, arm.calls, arm.seconds),
        [
            above("right, difference", effect.difference, 0, "%"),
            rising(
                "right at scales 0, 1, 3, 10",
                [100 * hits[scale].double() for scale in SCALES],
                strictly=False,
            ),
            below(
                f"diversity to a CLIP, scale {SCALE:g} less scale 0",
                diversity.difference,
                0,
                firm=True,
            ),
        ],
        diversity=diversity,
        notes=[
            f"right at scale {s:g}: {written(figure(hits[s]), '%')}, diversity to a CLIP "
            f"{spreads[s].mean():.3f}, in pixels {measures.spread(a.images).mean():.3f}"
            for s, a in arms.items()
        ],
        pictures={
            f"scale {SCALE:g}": arm.images[::GROUP][:4],
            "scale 0": arms[0.0].images[::GROUP][:4],
        },
    )


def looks(bench: Bench) -> list[str]:
    """A colour and a shape, the same for GROUP images in a row."""
    scenes = bench.scenes[: bench.n : GROUP]
    return [f"{s.thing.colour} {s.thing.shape}" for s in scenes for _ in range(GROUP)]


def has_look(wanted: Sequence[str], images: Tensor) -> Tensor:
    """Whether the oracle finds one thing of that colour and shape (n,)."""
    found = measures.read(images)
    return torch.tensor(
        [
            s is not None and s.other is None and f"{s.thing.colour} {s.thing.shape}" == look
            for s, look in zip(found, wanted, strict=True)
        ]
    )


# -------------------------------------------------------------------------------------------- CLIP


def load_clip(name: str, row: str) -> CLIP:
    if name not in weights.shipped():
        raise FileNotFoundError(f"{row}: no data/clip_{name}.safetensors")
    return weights.load(name, "cpu")[0]


def clip_arm(bench: Bench, encode, targets: Tensor, scale: float, through: bool = True) -> Arm:
    """The null condition under CLIP guidance, each image towards its own target (n,D)."""

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        x = bench.model.noise(len(generators), generators)
        guided = clip_guided(
            *(bench.fast.denoiser(), encode, targets[rows], scale),
            cuts=CUTS,
            through_network=through,
            generator=generators,
        )
        return sample(ddpm_step, clamp(guided), x, bench.path, generator=generators)

    return bench.arm(draw, n=len(targets), batch=16)


def by_clip(bench: Bench, scale: float) -> Arm:
    """Half of the images, each towards the text of its own look."""
    guide = load_clip("shapes", "CLIP guidance")
    targets = use.text_features(guide, [f"a {look}" for look in looks(bench)][: bench.n // 2])
    return clip_arm(bench, use.encoder(guide), targets, scale)


def clip_guidance(bench: Bench) -> Row:
    guide, judge = load_clip("shapes", "CLIP guidance"), load_clip("shapes_judge", "CLIP guidance")
    encode, look_again = use.encoder(guide), use.encoder(judge)
    wanted = [f"a {look}" for look in looks(bench)][: bench.n // 2]
    targets = use.text_features(guide, wanted)
    arm, free = (clip_arm(bench, encode, targets, scale) for scale in (CLIP_SCALE, 0.0))
    short = clip_arm(bench, encode, targets, CLIP_SCALE, through=False)
    other = clip_arm(bench, encode, targets.roll(GROUP, 0), CLIP_SCALE)
    hits, *rest = (has_look([w[2:] for w in wanted], a.images) for a in (arm, free, other, short))
    gains = [
        _cosines(enc, use.text_features(model, wanted), arm, free)
        for enc, model in ((encode, guide), (look_again, judge))
    ]
    effect = pair("right", "%", hits, rest[0])
    astray = pair("", "%", rest[1], rest[0]).difference
    gap = figure(gains[0] - gains[1])
    return Row(
        *("CLIP guidance", f"scale {CLIP_SCALE:g}, {CUTS} cut-outs, through the network"),
        *("scale 0", len(wanted), effect, arm.calls, arm.seconds),
        [
            above("right, difference", effect.difference, 10, "%"),
            exact("guided by another's text: no gain shown", astray.low <= 0),
        ],
        diversity=pair("diversity", "", measures.spread(arm.images), measures.spread(free.images)),
        notes=[
            f"gain in the guiding CLIP's cosine {written(figure(gains[0]))}, in the judge's "
            f"{written(figure(gains[1]))}; adversarial gap {written(gap)}",
            f"right by the shortcut: {written(figure(rest[2]), '%')}, {short.seconds:.2f} s; "
            f"guided by another's text: {written(figure(rest[1]), '%')}",
        ],
        pictures={"guided": arm.images[::GROUP][:4], "scale 0": free.images[::GROUP][:4]},
    )


def _cosines(encode, targets: Tensor, arm: Arm, control: Arm) -> Tensor:
    """How much closer to the targets a CLIP finds an arm than its control (n,)."""
    seen, before = (features_of(encode, a.images) for a in (arm, control))
    return ((seen - before) * targets).sum(1)


@torch.no_grad()
def features_of(encode, images: Tensor) -> Tensor:
    return encode(images.clamp(-1, 1)).float()


# ------------------------------------------------------------------------------- Blended Diffusion


class Local(NamedTuple):
    """Half of the scenes, and what is asked for in the boxes around their things."""

    asked: list[str]
    targets: Tensor  # embeddings (n,D)
    keep: Tensor  # (n,1,32,32)


def boxes(bench: Bench, guide: CLIP) -> Local:
    n = bench.n // 2
    things = bench.things[:n].bool()
    hole = things.any(2, keepdim=True) & things.any(3, keepdim=True)  # each thing's box
    asked = [_new_look(s, t) for s, t in zip(bench.scenes[:n], bench.targets[:n], strict=True)]
    targets = use.text_features(guide, [f"a {look}" for look in asked])
    return Local(asked, targets, grow(1 - hole.float(), 2))


def by_blending(bench: Bench, scale: float, draws: int = DRAWS) -> Arm:
    """Of several draws of each edit, the one that suits CLIP best."""

    def method(denoise, image, mask, path, score, scale, *, generator) -> Tensor:
        arguments = (denoise, image, mask, path, score, scale)
        drawn = torch.stack([blended(*arguments, generator=generator) for _ in range(draws)])
        scores = torch.stack([score(x * (1 - mask)) for x in drawn])  # (draws,B)
        return drawn[scores.argmax(0), torch.arange(len(image))]

    guide = load_clip("shapes", "Blended Diffusion")
    return _local(bench, use.encoder(guide), boxes(bench, guide), scale, method)


def blended_diffusion(bench: Bench) -> Row:
    guide = load_clip("shapes", "Blended Diffusion")
    encode, n, place = use.encoder(guide), bench.n // 2, boxes(bench, guide)
    images, (asked, targets, keep) = bench.images[:n], place
    arm, unasked = by_blending(bench, BLEND_SCALE), by_blending(bench, 0.0)
    first = by_blending(bench, BLEND_SCALE, draws=1)
    whole = clip_arm(bench, encode, targets, BLEND_SCALE)
    pasted = torch.where(keep.bool(), images, whole.images)
    alone = _local(bench, encode, place, BLEND_SCALE, blended, around=False)
    earlier = {w: _local(bench, encode, place, BLEND_SCALE, _held(w)) for w in HELD}
    hits, none = (has_look(asked, a.images) for a in (arm, unasked))
    effect = pair("right inside", "%", hits, none)
    seams = [seam(x, keep) for x in (arm.images, pasted)]
    kept = pair("seam, control pasted only", "", *seams)
    usual = seam(images, keep).quantile(0.95).item()
    outside = [measures.psnr_where(a.images, images, keep) for a in earlier.values()]
    return Row(
        "Blended Diffusion",
        f"scale {BLEND_SCALE:g}, {BLEND_CUTS} cut-outs of the whole image, strength 0.75; the best "
        f"of {DRAWS} draws by CLIP",
        "scale 0, the best of as many; for the seam, a guided image pasted only",
        *(n, effect, arm.calls, arm.seconds),
        [
            above("right inside, difference", effect.difference, 0, "%"),
            exact("outside equals the image bit for bit", _equal_where(arm, images, keep)),
            below("seam, less the image's own 95%", figure(seams[0] - usual), 0),
            above("seam of what is pasted only, difference", figure(seams[1] - seams[0]), 0),
            rising("the earlier variant's background PSNR, weights 1e2 1e3 1e4", outside),
        ],
        kept=kept,
        notes=[
            f"of one draw each: right {written(figure(has_look(asked, first.images)), '%')}; where "
            "CLIP sees the edited area alone, on grey: "
            f"{written(figure(has_look(asked, alone.images)), '%')}",
            *(
                f"the earlier variant with weight {w:g}: right "
                f"{written(figure(has_look(asked, a.images)), '%')}, background PSNR "
                f"{written(figure(psnr), 'dB')}"
                for (w, a), psnr in zip(earlier.items(), outside, strict=True)
            ),
        ],
        pictures={
            "image": images[:4],
            "blended": arm.images[:4],
            "pasted only": pasted[:4],
        },
    )


def _new_look(scene: shapes.Scene, target: shapes.Scene) -> str:
    """The target's shape in another colour, of those that training has shown it in."""
    shape, start = target.thing.shape, shapes.COLOURS.index(scene.thing.colour)
    turned = [*shapes.COLOURS[start + 4 :], *shapes.COLOURS][:7]
    known = [c for c in turned if (c, shape) not in shapes.HELD_OUT and c != scene.thing.colour]
    return f"{known[0]} {shape}"


def _local(bench: Bench, encode, place: Local, scale: float, method, around: bool = True) -> Arm:
    path = bench.schedule.path(2 * STEPS)

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        score = clip_score(encode, place.targets[rows], cuts=BLEND_CUTS, generator=generators)
        where = (bench.images[rows], place.keep[rows])
        seen = in_place(score, *where) if around else score
        arguments = (bench.unconditional, *where, path, seen, scale)
        return method(*arguments, generator=generators)

    return bench.arm(draw, n=len(place.targets), batch=16)


def _held(background: float) -> Callable:
    """Blended Diffusion's earlier variant, with that weight of the background."""

    def method(denoise, image, mask, path, score, scale, *, generator):
        arguments = (denoise, image, mask, path, score, scale, background)
        return background_loss(*arguments, generator=generator)

    return method


def seam(images: Tensor, keep: Tensor) -> Tensor:
    """Mean difference of neighbours on both sides of the rim of masks (n,1,H,W): (n,)."""
    total, count = 0, 0
    for x, m in ((images, keep), (images.mT, keep.mT)):
        rim = m[..., 1:] != m[..., :-1]
        steps = (x[..., 1:] - x[..., :-1]).abs().mean(1, keepdim=True)
        total, count = total + (steps * rim).flatten(1).sum(1), count + rim.flatten(1).sum(1)
    return total / count.clamp(min=1)


def _equal_where(arm: Arm, images: Tensor, keep: Tensor) -> bool:
    where = keep.bool().expand_as(images)
    return torch.equal(arm.images[where], images[where])
