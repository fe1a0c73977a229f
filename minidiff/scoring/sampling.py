"""Rows of the samplers: DDPM, DDIM, Heun, DPM-Solver++(2M), eta, the spacing of levels.

DDPM is drawn without a prompt, the rest from the prompts of two things without guidance. Solvers
are compared with the fine solution of the same differential equation from the same noise, which 100
steps of DPM-Solver++(2M) give.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from minidiff.denoiser import Denoiser, Prediction
from minidiff.guidance import clamp
from minidiff.samplers import Step, ddim_step, ddpm_step, dpmpp_2m_step, heun_step
from minidiff.schedule import NoiseLevel
from minidiff.scoring import measures
from minidiff.scoring.bench import GROUP, STEPS, Arm, Bench
from minidiff.scoring.classes import Classes
from minidiff.scoring.table import Pair, Row, above, below, figure, pair, written

LONG = 250  # steps of DDPM
FEW = 10  # steps where eta and spacing matter


def silent_step(
    denoise: Denoiser, x: Tensor, here: NoiseLevel, there: NoiseLevel, past=(), *, generator=None
) -> tuple[Tensor, Prediction]:
    """DDPM without its noise: each step gives the mean of what the image may become."""
    prediction = denoise(x, here)
    ratio = here.alpha / there.alpha
    mean = there.alpha * (1 - ratio**2) / here.sigma**2 * prediction.x0
    return mean + ratio * there.sigma**2 / here.sigma**2 * x, prediction


def _drawn(bench: Bench, step: Step, steps: int, n: int, spacing: str = "trailing") -> Arm:
    path = bench.schedule.path(steps, spacing)
    return bench.sampled(bench.guided(bench.prompts, 1), step=step, path=path, n=n)


def ddpm(bench: Bench) -> Row:
    """Without a prompt, where nothing but noise tells one image from another."""
    n, path = bench.n // 2, bench.schedule.path(4 * STEPS if bench.quick else LONG)
    drawn, mute = (
        bench.sampled(lambda rows: bench.unconditional, step=step, path=path, n=n)
        for step in (ddpm_step, silent_step)
    )
    spread, flat = measures.spread(drawn.images), measures.spread(mute.images)
    return Row(
        *("DDPM", f"{len(path) - 1} steps, no prompt", "the same steps without their noise", n),
        *(pair("diversity", "", spread, flat), drawn.calls, drawn.seconds),
        [
            above("diversity, difference", figure(spread - flat), 0, firm=True),
            below("diversity of the control, less half of DDPM's", figure(flat - spread / 2), 0),
        ],
        kept=pair("valid", "%", *(measures.valid(a.images) for a in (drawn, mute))),
        pictures={"DDPM": drawn.images[::GROUP][:4], "without noise": mute.images[::GROUP][:4]},
    )


def ddim(bench: Bench) -> Row:
    drawn, mute = (_drawn(bench, step, 2 * STEPS, bench.n) for step in (ddim_step, silent_step))
    spreads = [measures.spread(a.images) for a in (drawn, mute)]
    effect = pair("diversity", "", *spreads)
    coarse, fine = (_error(bench, ddim_step, k * STEPS, "trailing") for k in (2, 4))
    ratio = figure(coarse / fine, torch.median)
    return Row(
        *("DDIM", f"eta 0, {2 * STEPS} steps", "DDPM's steps without their noise", bench.n),
        *(effect, drawn.calls, drawn.seconds),
        [
            above("diversity, difference", effect.difference, 0, firm=True),
            above("twice the steps divide the error by", ratio, 1.5),
            below("twice the steps divide the error by", ratio, 2.5),
        ],
        kept=_right(bench, drawn, mute),
        notes=[f"median distance to the fine solution: {written(figure(coarse, torch.median))}"],
        pictures={
            "DDIM": drawn.images[::GROUP][:4],
            "DDPM without noise": mute.images[::GROUP][:4],
        },
    )


def _right(bench: Bench, *arms: Arm) -> Pair:
    prompts = bench.prompts[: len(arms[0].images)]
    return pair("right", "%", *(measures.right(prompts, a.images) for a in arms))


def heun(bench: Bench) -> Row:
    steps = STEPS // 2 + 1
    return _solver(bench, "Heun", heun_step, steps, STEPS, f"{steps} steps of two calls")


def dpmpp_2m(bench: Bench) -> Row:
    return _solver(bench, "DPM-Solver++(2M)", dpmpp_2m_step, STEPS, STEPS, f"{STEPS} steps")


def _solver(bench: Bench, name: str, step: Step, steps: int, calls: int, setting: str) -> Row:
    """A second-order solver against DDIM with as many network calls."""
    arm, plain = _exact(bench, step, steps, "log_snr"), _exact(bench, ddim_step, calls, "trailing")
    errors = [_distance(bench, a) for a in (arm, plain)]
    effect = pair("median distance to the fine solution", "", *errors, torch.median)
    coarse = _error(bench, step, (steps + 1) // 2, "log_snr")
    twice = [_error(bench, ddim_step, s, "trailing") for s in (STEPS, 2 * STEPS)]
    ratios = pair("", "", coarse / errors[0], twice[0] / twice[1], torch.median)
    kept = _right(bench, arm, plain)
    return Row(
        *(name, f"{setting}, even in the log of signal to noise", f"DDIM, {calls} calls"),
        *(bench.few, effect, arm.calls, arm.seconds),
        [
            below("distance, difference", effect.difference, 0, firm=True),
            above("error falls for twice the steps, more than DDIM's", ratios.difference, 0),
        ],
        notes=[
            f"twice the steps divide the error by {written(ratios.method)}, DDIM's by "
            f"{written(ratios.control)}"
        ],
        kept=kept,
        pictures={name: arm.images[::GROUP][:4], f"DDIM, {calls} calls": plain.images[::GROUP][:4]},
    )


def _exact(bench: Bench, step: Step, steps: int, spacing: str) -> Arm:
    def draw() -> Arm:
        path = bench.schedule.path(steps, spacing)
        denoiser = bench.exactly(bench.prompts)
        return bench.sampled(denoiser, step=step, path=path, n=bench.few, exact=True)

    return bench.shared(f"exact {step.__name__} {steps}", draw)


def _distance(bench: Bench, arm: Arm) -> Tensor:
    return measures.rms(arm.images, _exact(bench, dpmpp_2m_step, 100, "log_snr").images)


def _error(bench: Bench, step: Step, steps: int, spacing: str) -> Tensor:
    return _distance(bench, _exact(bench, step, steps, spacing))


def eta(bench: Bench) -> Row:
    """The paper's table 1, on CIFAR-10: with few steps, noise that later ones cannot remove."""
    classes = Classes(bench)

    def drawn(step: Step) -> Arm:
        return classes.drawn(lambda rows: clamp(classes.of(rows)), step=step, steps=FEW)

    arms = {
        "eta 0": drawn(ddim_step),
        "eta 1": drawn(partial(ddim_step, eta=1.0)),
        "large variance": drawn(partial(ddpm_step, variance="large")),
    }
    none, small, large = arms.values()
    grain = [measures.grain(arm.images) for arm in arms.values()]
    effect = pair("class named", "%", classes.named(none), classes.named(large))
    return Row(
        *("DDIM's eta", f"CIFAR-10, eta 0, {FEW} steps", "DDPM with its large variance", bench.n),
        *(effect, none.calls, none.seconds),
        [
            above("class named, difference", effect.difference, 0, "%", firm=True),
            above("detail, more than with eta 1", figure(grain[0] - grain[1]), 0),
            below(
                "detail, less half of the control's", figure(grain[0] - grain[2] / 2), 0, firm=True
            ),
        ],
        diversity=pair("diversity", "", *(measures.spread(a.images) for a in (none, large))),
        notes=[
            f"eta 1, DDPM's small variance: class named "
            f"{written(figure(classes.named(small)), '%')}",
            "detail, the difference of neighbouring pixels: "
            + ", ".join(
                f"{written(figure(g))} ({name})" for name, g in zip(arms, grain, strict=True)
            ),
        ],
        pictures={name: arm.images[::GROUP][:4] for name, arm in arms.items()},
    )


def spacing(bench: Bench) -> Row:
    """Levels as a list, against a rule that only holds for some lists."""
    stride = bench.schedule.T // FEW

    def stray_step(denoise: Denoiser, x: Tensor, here: NoiseLevel, there: NoiseLevel, past=(), **k):
        return ddim_step(denoise, x, here, bench.schedule.level(max(here.t - stride, 0)), past, **k)

    listed, strayed, leading = arms = (
        _drawn(bench, ddim_step, FEW, bench.n, "linspace"),
        _drawn(bench, stray_step, FEW, bench.n, "linspace"),
        _drawn(bench, ddim_step, FEW, bench.n, "leading"),
    )
    misfits = [measures.misfit(arm.images) for arm in arms]
    effect = pair("misfit", "", *misfits[:2])
    start = bench.schedule.path(FEW, "leading")[0].t
    return Row(
        *("Spacing of levels", f"linspace, {FEW} steps, each to the next of the list"),
        *(f"each step {stride} levels down, as diffusers does", bench.n),
        *(effect, listed.calls, listed.seconds),
        [below("misfit, difference", effect.difference, 0)],
        kept=_right(bench, listed, strayed),
        notes=[f"leading, pure noise taken for t = {start}: misfit {written(figure(misfits[2]))}"],
        pictures={
            name: arm.images[::GROUP][:4]
            for name, arm in (("listed", listed), ("strayed", strayed), ("leading", leading))
        },
    )
