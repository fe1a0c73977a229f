"""Rows of guidance by the model itself: classifier-free and what is made of it."""

from __future__ import annotations

import torch

from minidiff.denoiser import Denoiser
from minidiff.guidance import (
    clamp,
    classifier_free,
    dynamic_threshold,
    interval,
    rescale,
    weighted_prompts,
)
from minidiff.scoring import measures
from minidiff.scoring.bench import GROUP, Arm, Bench
from minidiff.scoring.classes import Classes
from minidiff.scoring.table import Pair, Row, above, below, exact, figure, pair, rising

SCALE, STRONG = 2.0, 8.0
BOTH = 3.0  # the weights of two prompts, together
AWAY = 1.5  # scale against a negative prompt: more leaves what the model knows
SWEEP = (1.0, 2.0, 3.0, 8.0)
LOW, HIGH = 100, 600  # where guidance by an interval is on
PHI = 0.7


def _right(bench: Bench, *arms: Arm) -> list[torch.Tensor]:
    return [measures.right(bench.prompts, arm.images) for arm in arms]


def _misfit(arm: Arm) -> torch.Tensor:
    return measures.misfit(arm.images)


def _spread(*arms: Arm) -> list[torch.Tensor]:
    return [measures.spread(arm.images) for arm in arms]


def classifier_free_guidance(bench: Bench) -> Row:
    """On CIFAR-10: shapes come out right without."""
    classes = Classes(bench)
    arms = [classes.guided(scale) for scale in SWEEP]
    at = SWEEP.index(SCALE)
    plain, drawn = arms[0], arms[at]
    named = [classes.named(arm) for arm in arms]
    shapes_drawn, shapes_strong = bench.of_prompts(SCALE), bench.of_prompts(STRONG)
    effect = pair("class named", "%", named[at], named[0])
    shares = [hits.double() * 100 for hits in named]
    return Row(
        *("Classifier-free guidance", f"CIFAR-10, scale {SCALE:g}", "scale 1", bench.n),
        *(effect, drawn.calls, drawn.seconds),
        [
            above("class named, difference", effect.difference, 0, "%"),
            rising("class named at scales 1, 2, 3, not falling", shares[:3], strictly=False),
            above(
                f"misfit of shapes, scale {STRONG:g} less scale {SCALE:g}",
                figure(_misfit(shapes_strong) - _misfit(shapes_drawn)),
                0,
            ),
            exact("scale 1 is the conditional model and 0 the other, bit for bit", _ends(bench)),
            exact("with the paper's weight for a scale they are not", not _ends(bench, off=1)),
        ],
        diversity=pair("diversity", "", *_spread(drawn, plain)),
        notes=[
            "class named at scales "
            + ", ".join(f"{s:g}: {a.mean():.0f}%" for s, a in zip(SWEEP, shares, strict=True)),
            "diversity at scales "
            + ", ".join(
                f"{s:g}: {measures.spread(a.images).mean():.3f}"
                for s, a in zip(SWEEP, arms, strict=True)
            ),
            "shapes right at scales "
            + ", ".join(
                f"{s:g}: {100 * _right(bench, bench.of_prompts(s))[0].double().mean():.0f}%"
                for s in SWEEP
            ),
        ],
        pictures={
            f"scale {SCALE:g}": drawn.images[::GROUP][:4],
            "scale 1": plain.images[::GROUP][:4],
        },
    )


def _ends(bench: Bench, off: float = 0) -> bool:
    """Whether scales 1 and 0 give the two denoisers' own predictions."""
    wanted, null = bench.exactly(bench.prompts)(slice(0, 2)), bench.exactly()(slice(0, 2))
    x, level = torch.randn(2, 3, 32, 32, generator=bench.luck(9)), bench.schedule.level(500)
    with torch.no_grad():
        pairs = [
            (classifier_free(wanted, null, scale + off)(x, level).eps, own(x, level).eps)
            for scale, own in ((1, wanted), (0, null))
        ]
    return all(torch.equal(a, b) for a, b in pairs)


def negative(bench: Bench, scale: float) -> tuple[Arm, Arm, Pair, Pair]:
    """Guidance away from the same caption on the background that the same noise gives without:
    the two arms, how often that background is shown, and what is right."""

    def away_from(said: list[str]) -> Arm:
        def denoiser(rows: slice):
            wanted, unwanted = (bench.fast.condition(c[rows]) for c in (bench.shorts, said))
            run, predicts = bench.fast.run, bench.fast.predicts
            return clamp(weighted_prompts(run, [wanted], [scale], unwanted, predicts=predicts))

        return bench.sampled(denoiser)

    def grounds(arm: Arm) -> list[str | None]:
        return [scene and scene.background for scene in measures.read(arm.images)]

    free = away_from([""] * bench.n)
    seen = grounds(free)
    away = away_from(
        [f"{c} on a {g} background" if g else c for c, g in zip(bench.shorts, seen, strict=True)]
    )
    shown = [
        torch.tensor(
            [g is not None and g == unwanted for g, unwanted in zip(own, seen, strict=True)]
        )
        for own in (grounds(away), seen)
    ]
    right = [measures.right(bench.shorts, arm.images) for arm in (away, free)]
    return away, free, pair("unwanted background", "%", *shown), pair("right", "%", *right)


def negative_prompt(bench: Bench) -> Row:
    away, free, effect, kept = negative(bench, AWAY)
    return Row(
        *("Negative prompt", f"the background of the same noise without, scale {AWAY:g}"),
        *("no negative prompt", bench.n, effect, away.calls, away.seconds),
        [
            below("unwanted background, difference", effect.difference, 0, "%"),
            above("right", kept.method, 80, "%"),
        ],
        kept=kept,
        pictures={"negative": away.images[:4], "without": free.images[:4]},
    )


def several_prompts(bench: Bench) -> Row:
    """One prompt says where the thing is and the other on what; each of half the weight."""
    both_known = list(zip(bench.shorts, bench.scenes, strict=True))
    where = [f"{thing} at the {s.position}" for thing, s in both_known]
    on = [f"{thing} on a {s.background} background" for thing, s in both_known]

    def both(rows: slice):
        conditions = [bench.fast.condition(said[rows]) for said in (where, on)]
        null = bench.fast.condition([None] * len(where[rows]))
        run, predicts = bench.fast.run, bench.fast.predicts
        weights = [BOTH / 2, BOTH / 2]
        return clamp(weighted_prompts(run, conditions, weights, null, predicts=predicts))

    joint = bench.sampled(both)
    alone = [bench.sampled(bench.guided(said, BOTH)) for said in (where, on)]
    hits, *single = (measures.right(bench.captions, a.images) for a in (joint, *alone))
    better = max(single, key=lambda found: found.sum())
    effect = pair("both right", "%", hits, better)
    return Row(
        *("Weighted prompts", f"two prompts of weight {BOTH / 2:g}, place and background"),
        *(f"the better one alone, weight {BOTH:g}", bench.n, effect, joint.calls, joint.seconds),
        [above("both right, difference", effect.difference, 0, "%", firm=True)],
        pictures={
            "both": joint.images[:4],
            "place alone": alone[0].images[:4],
            "background alone": alone[1].images[:4],
        },
    )


def guidance_interval(bench: Bench) -> Row:
    def denoiser(rows: slice):
        guided = bench.fast.denoiser(bench.prompts[rows], STRONG)
        plain = bench.fast.denoiser(bench.prompts[rows])
        return clamp(interval(guided, plain, LOW, HIGH))

    part, full = bench.sampled(denoiser), bench.of_prompts(STRONG)
    effect = pair("right", "%", *_right(bench, part, full))
    kept = pair("misfit", "", *(measures.misfit(a.images) for a in (part, full)))
    return Row(
        *("Guidance interval", f"scale {STRONG:g} where {LOW} < t <= {HIGH}"),
        *(f"scale {STRONG:g} everywhere", bench.n, effect, part.calls, part.seconds),
        [
            above("right, difference", effect.difference, 0, "%"),
            below("misfit, difference", kept.difference, 0, firm=True),
            exact("fewer calls than everywhere", part.calls < full.calls),
        ],
        kept=kept,
        diversity=pair("diversity", "", *_spread(part, full)),
        pictures={"interval": part.images[::GROUP][:4], "everywhere": full.images[::GROUP][:4]},
    )


def rescaled_guidance(bench: Bench) -> Row:
    classes = Classes(bench)

    def denoiser(rows: slice) -> Denoiser:
        return clamp(rescale(classes.of(rows), classes.fast.denoiser(), STRONG, PHI))

    setting, control = f"phi {PHI:g}", f"scale {STRONG:g} without it"
    return _tamed(classes, "Guidance rescale", setting, classes.drawn(denoiser), control)


def dynamic_thresholding(bench: Bench) -> Row:
    classes = Classes(bench)
    arm = classes.drawn(lambda rows: dynamic_threshold(classes.of(rows, STRONG)))
    control = f"scale {STRONG:g}, clipped to [-1, 1]"
    return _tamed(classes, "Dynamic thresholding", "percentile 0.995", arm, control)


def _tamed(classes: Classes, name: str, setting: str, arm: Arm, control: str) -> Row:
    """Strong guidance without its glare: values at the ends of the range, against plain."""
    plain = classes.guided(STRONG)
    effect = pair("class named", "%", classes.named(arm), classes.named(plain))
    glare, usual = (measures.saturated(a.images) for a in (arm, plain))
    kept = pair("values at the ends of the range", "%", glare, usual)
    less = figure(glare - usual / 2)
    return Row(
        *(name, f"CIFAR-10, scale {STRONG:g}, {setting}", control, classes.bench.n),
        *(effect, arm.calls, arm.seconds),
        [
            below("values at the ends, less half of the control's", less, 0, "%", firm=True),
            above("class named, difference", effect.difference, -2, "%"),
        ],
        kept=kept,
        diversity=pair("diversity", "", *_spread(arm, plain)),
        pictures={name: arm.images[::GROUP][:4], control: plain.images[::GROUP][:4]},
    )
