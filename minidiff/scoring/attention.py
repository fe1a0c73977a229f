"""Rows of Prompt-to-Prompt: another word, a further word, a louder word, only where words look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from minidiff.denoiser import Denoiser
from minidiff.editing import (
    WordMaps,
    local_blend,
    prompt_to_prompt,
    refine,
    replace,
    reweight,
)
from minidiff.guidance import clamp, classifier_free
from minidiff.scoring import measures
from minidiff.scoring.bench import STEPS, Arm, Bench, short
from minidiff.scoring.table import Interval, Pair, Row, above, exact, figure, pair, rising, written

SCALE = 3.0
CROSS, SELF = 0.8, 0.4  # shares of the steps that are injected
REFINE_CROSS, REFINE_SELF = 0.8, 0.4  # for a further word
BLEND = 0.3  # threshold of the local blend
FACTORS = (-1, 0, 1, 2)


def attended(
    bench: Bench,
    targets: Sequence[str],
    edit: Callable[[slice], Callable],
    *,
    cross: float = CROSS,
    self_attention: float = SELF,
    blend: Callable[[slice], Callable] | None = None,
    n: int | None = None,
) -> Arm:
    """Source and edited images (n,2,3,32,32) of the short captions and others."""
    sources = bench.shorts

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        both = [*sources[rows], *targets[rows]]

        def denoiser(tap) -> Denoiser:
            wanted = bench.fast.denoiser(both, tap=tap)
            return clamp(classifier_free(wanted, bench.fast.denoiser(), SCALE))

        pictures = prompt_to_prompt(
            denoiser,
            bench.model.noise(len(generators), generators),
            bench.path,
            edit(rows),
            cross=cross,
            self_attention=self_attention,
            blend=blend(rows) if blend else None,
        )
        return torch.stack(pictures, dim=1)

    return bench.arm(draw, n=n)


def swap(bench: Bench, **shares: float) -> Arm:
    """Another shape, by replacing the word."""
    old, new = bench.shorts, bench.target_shorts
    return attended(bench, new, lambda rows: replace(old[rows], new[rows]), **shares)


def striped(bench: Bench) -> list[str]:
    return [c.replace("a large ", "a large striped ") for c in bench.shorts]


def stripes(bench: Bench, **shares: float) -> Arm:
    """Stripes, by a further word."""
    old, new = bench.shorts, striped(bench)
    return attended(bench, new, lambda rows: refine(old[rows], new[rows]), **shares)


def stayed(arm: Arm) -> tuple[Tensor, Tensor]:
    """PSNR outside of the source's thing, in dB, and how far the middle moved, in pixels."""
    source, target = arm.images.unbind(1)
    around = F.max_pool2d(measures.foreground(source), 9, stride=1, padding=4)
    return measures.psnr_where(source, target, 1 - around), measures.moved(source, target)


def p2p_replace(bench: Bench) -> Row:
    plain = bench.shared("p2p free", lambda: swap(bench, cross=0, self_attention=0))
    arm = bench.shared("p2p swap", lambda: swap(bench))
    new = bench.target_shorts
    return _against_free(bench, "Prompt-to-Prompt, replace", "another shape", arm, plain, new)


def p2p_refine(bench: Bench) -> Row:
    shares = {"cross": REFINE_CROSS, "self_attention": REFINE_SELF}
    plain, arm = stripes(bench, cross=0, self_attention=0), stripes(bench, **shares)
    new = striped(bench)
    return _against_free(bench, "Prompt-to-Prompt, refine", "stripes", arm, plain, new)


def _against_free(
    bench: Bench, name: str, what: str, arm: Arm, plain: Arm, captions: list[str]
) -> Row:
    hits, free = (measures.right(captions, a.images[:, 1]) for a in (arm, plain))
    effect = pair("edited", "%", hits, free)
    kept, moves = _stayed(arm, plain)
    enough = figure(100 * (hits.double() - 0.8 * free.double()))
    return Row(
        *(name, f"{what}; cross {CROSS:g}, self {SELF:g}, {STEPS} steps, scale {SCALE:g}"),
        *("the same noise, nothing injected", bench.n, effect, arm.calls, arm.seconds),
        [
            above("edited, less 80% of the control's", enough, 0, "%"),
            above("background PSNR, difference", kept.difference, 0, "dB"),
            above("middle moves less than the control's by", _minus(moves.difference), 0, "px"),
        ],
        kept=kept,
        notes=[
            f"the middle moves {written(moves.method, 'px')}, the control's "
            f"{written(moves.control, 'px')}"
        ],
        pictures={
            "source": arm.images[:4, 0],
            "edited": arm.images[:4, 1],
            "nothing injected": plain.images[:4, 1],
        },
    )


def _stayed(arm: Arm, plain: Arm) -> tuple[Pair, Pair]:
    (psnr, move), (free_psnr, free_move) = stayed(arm), stayed(plain)
    return (
        pair("background PSNR", "dB", psnr, free_psnr),
        pair("moved", "px", move, free_move),
    )


def _minus(interval: Interval) -> Interval:
    return Interval(-interval.value, -interval.high, -interval.low)


def weighted(bench: Bench, words: Sequence[str], factor: float) -> Arm:
    """Half of the images, with a factor for the attention to a word of each."""
    captions = bench.shorts

    def edit(rows: slice) -> Callable:
        said = list(zip(captions[rows], words[rows], strict=True))

        def each(source: Tensor, target: Tensor) -> Tensor:
            parts = [
                reweight(replace(c, c), c, word, factor)(s[None], t[None])
                for (c, word), s, t in zip(said, source, target, strict=True)
            ]
            return torch.cat(parts)

        return each

    return attended(bench, captions, edit, n=bench.n // 2)


def p2p_reweight(bench: Bench) -> Row:
    colours, n = [scene.thing.colour for scene in bench.scenes], bench.n // 2
    arms = [weighted(bench, colours, factor) for factor in FACTORS]
    other = [weighted(bench, ["a"] * bench.n, factor) for factor in (0, 2)]
    where = measures.foreground(arms[2].images[:, 0])
    seen = [measures.saturation(a.images[:, 1], where) for a in arms]
    control = [measures.saturation(a.images[:, 1], where) for a in other]
    gains = (seen[3] - seen[1], control[1] - control[0])
    effect = pair("saturation, factor 2 less factor 0", "", *gains)
    kept = pair("background PSNR", "dB", stayed(arms[3])[0], stayed(other[1])[0])
    return Row(
        *("Prompt-to-Prompt, reweight", f"the colour's word; cross {CROSS:g}, self {SELF:g}"),
        *('the same factors of the word "a"', n, effect, arms[3].calls, arms[3].seconds),
        [
            rising("saturation at factors -1 0 1 2", seen),
            above("saturation gained, difference", effect.difference, 0),
            exact("factor 1 changes nothing", torch.equal(*arms[2].images.unbind(1))),
        ],
        kept=kept,
        pictures={
            f"factor {f}": a.images[:4, 1] for f, a in zip(FACTORS[1:], arms[1:], strict=True)
        },
    )


def blend_each(bench: Bench, rows: slice, threshold: float) -> Callable:
    """Local blend of each image by its own words, those of its shapes."""
    both = list(zip(bench.scenes[rows], bench.targets[rows], strict=True))

    def blend(x: Tensor, maps: WordMaps) -> Tensor:
        tokens, n = maps.tokens(), len(both)
        parts = []
        for i, (old, new) in enumerate(both):
            own = SimpleNamespace(tokens=lambda i=i: tokens[[i, n + i]])
            a, b = short(old), short(new)
            words = local_blend(a, old.thing.shape, b, new.thing.shape, threshold=threshold)
            parts.append(words(x[[i, n + i]], own))
        return torch.stack(parts, dim=1).flatten(0, 1)

    return blend


def blended_locally(bench: Bench, threshold: float) -> Arm:
    """Another shape, and change only where the shapes' words look."""
    old, new = bench.shorts, bench.target_shorts
    return attended(
        *(bench, new, lambda rows: replace(old[rows], new[rows])),
        blend=lambda rows: blend_each(bench, rows, threshold),
    )


def p2p_local(bench: Bench) -> Row:
    plain = bench.shared("p2p swap", lambda: swap(bench))
    arm = blended_locally(bench, BLEND)
    hits, usual = (measures.right(bench.target_shorts, a.images[:, 1]) for a in (arm, plain))
    effect, (kept, _) = pair("edited", "%", hits, usual), _stayed(arm, plain)
    enough = figure(100 * (hits.double() - 0.8 * usual.double()))
    return Row(
        *("Prompt-to-Prompt, local blend", f"threshold {BLEND:g} of the maximum"),
        *("replace without it", bench.n, effect, arm.calls, arm.seconds),
        [
            above("edited, less 80% of the control's", enough, 0, "%"),
            above("background PSNR, difference", kept.difference, 0, "dB", firm=True),
        ],
        kept=kept,
        pictures={
            "source": arm.images[:4, 0],
            "blended": arm.images[:4, 1],
            "without": plain.images[:4, 1],
        },
    )
