"""Rows of DDIM inversion, to an image's noise and back, and of interpolation between noises."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from minidiff import zoo
from minidiff.data import images as real
from minidiff.data.hosts import data_root
from minidiff.denoiser import Denoiser, as_denoiser, network_time, parametrisation
from minidiff.editing import slerp
from minidiff.guidance import clamp
from minidiff.metrics import psnr
from minidiff.samplers import ddim_step, invert, sample
from minidiff.scoring import measures
from minidiff.scoring.bench import GROUP, Arm, Bench
from minidiff.scoring.classes import Classes
from minidiff.scoring.table import Check, Row, above, figure, pair, written

SHIFT = 20  # levels by which the broken inversion mistakes the time
STEPS, QUICK = (50, 200), (25, 50)
ENOUGH = {50: 26, 200: 32}  # dB, of DDIM's table 2
PHOTOGRAPHS = 24
HALFWAY = 50  # steps of interpolation


def round_trip(bench: Bench) -> Row:
    """Shapes; the control is inversion that tells the network a wrong time."""
    pictures, null = bench.images[: bench.n // 2], _null(bench.model)
    steps = QUICK if bench.quick else STEPS
    arms = _trips(bench, bench.model, pictures, null, steps)
    broken = _trips(bench, bench.model, pictures, _null(bench.model, SHIFT), steps)
    gains = [found[-1] - found[0] for found in (_psnrs(arms, pictures), _psnrs(broken, pictures))]
    gain = pair("", "dB", *gains)
    more = f"{steps[-1] // steps[0]} times the steps gain"
    notes = [f"{more} {written(gain.method, 'dB')}, the control {written(gain.control, 'dB')}"]
    return _row(
        *(bench, "DDIM inversion", steps, arms, pictures, broken[-1]),
        f"the network is told a time {SHIFT} levels late on the way up",
        above(f"{more}, more than the control's", gain.difference, 0, "dB", firm=True),
        notes,
    )


def cifar10(bench: Bench) -> Row:
    if bench.quick or not (data_root() / "cifar-10-batches-py").is_dir():
        raise FileNotFoundError("DDIM inversion of CIFAR-10: no CIFAR-10 in MINIDIFF_DATA")
    pictures = real.to_float(real.cifar10(train=False).images[:PHOTOGRAPHS])
    return _of_photographs(bench, "DDIM inversion, CIFAR-10", zoo.load("cifar10", "cpu"), pictures)


def butterflies(bench: Bench) -> Row:
    if bench.quick or not (data_root() / "butterflies").is_dir():
        raise FileNotFoundError("DDIM inversion of butterflies: none in MINIDIFF_DATA")
    model = zoo.load("butterflies", "cpu")
    pictures = real.to_float(real.butterflies(model.size).images)[9::10]  # held out of training
    return _of_photographs(bench, "DDIM inversion, butterflies", model, pictures[:PHOTOGRAPHS])


def _of_photographs(bench: Bench, name: str, model: zoo.Diffusion, pictures: Tensor) -> Row:
    """The control starts from noise that has nothing to do with the picture."""
    arms = _trips(bench, model, pictures, _null(model), STEPS)

    def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
        x = model.noise(len(generators), generators)
        path = model.schedule.path(STEPS[0])
        return torch.stack([sample(ddim_step, _null(model), x, path), x], dim=1)

    other = bench.arm(draw, n=len(pictures), exact=True)
    found = figure(_psnrs([arms[-1]], pictures)[0] - _psnrs([other], pictures)[0])
    check = above("PSNR, difference", found, 10, "dB", firm=True)
    each = " ".join(f"{p:.0f}" for p in _psnrs(arms, pictures)[-1].sort().values)
    notes = [f"PSNR picture by picture, {STEPS[-1]} steps, in dB: {each}"]
    return _row(bench, name, STEPS, arms, pictures, other, "any other noise", check, notes)


def _trips(
    bench: Bench, model: zoo.Diffusion, pictures: Tensor, up: Denoiser, sweep: Sequence[int]
) -> list[Arm]:
    """Up each path and down again: pictures and noises (n,2,3,H,W)."""
    down = _null(model)

    def trip(steps: int) -> Arm:
        def draw(rows: slice, generators: Sequence[Generator]) -> Tensor:
            path = model.schedule.path(steps)
            noise = invert(up, pictures[rows], path)
            return torch.stack([sample(ddim_step, down, noise, path), noise], dim=1)

        return bench.arm(draw, n=len(pictures), exact=True, batch=8)

    return [trip(steps) for steps in sweep]


def _psnrs(arms: Sequence[Arm], pictures: Tensor) -> list[Tensor]:
    return [psnr(pictures, arm.images[:, 0]) for arm in arms]


def _row(
    bench: Bench,
    name: str,
    sweep: Sequence[int],
    arms: Sequence[Arm],
    pictures: Tensor,
    control: Arm,
    what: str,
    check: Check,
    notes: Sequence[str],
) -> Row:
    found = _psnrs(arms, pictures)
    effect = pair("PSNR", "dB", found[-1], _psnrs([control], pictures)[0])
    medians = {s: figure(f, torch.median) for s, f in zip(sweep, found, strict=True)}
    widths = ", ".join(
        f"{arm.images[:, 1].std().item():.2f} at {s} steps"
        for s, arm in zip(sweep, arms, strict=True)
    )
    return Row(
        *(name, f"{sweep[-1]} steps up, {sweep[-1]} down, no prompt, float32", what),
        *(len(pictures), effect, 2 * sweep[-1], arms[-1].seconds),
        [
            *(
                above(f"median PSNR, {s} steps", m, ENOUGH[s], "dB")
                for s, m in medians.items()
                if s in ENOUGH
            ),
            check,
        ],
        notes=[*notes, f"standard deviation of the noises found: {widths}"],
        pictures={
            "image": pictures[:4],
            "there and back": arms[-1].images[:4, 0],
            "control": control.images[:4, 0],
        },
    )


def _null(model: zoo.Diffusion, shift: int = 0) -> Denoiser:
    """The denoiser of no prompt in float32; with a shift the network is told a later time."""
    read, last = parametrisation(model.predicts).read, model.schedule.T - 1

    def denoise(x: Tensor, level):
        condition = model.condition([None] * len(x))
        if not shift:
            return as_denoiser(model.network, condition, predicts=model.predicts)(x, level)
        t = (network_time(x, level) + shift).clamp(max=last)
        return read(x, level, model.network(x, t, condition))

    return denoise


def interpolation(bench: Bench) -> Row:
    """On CIFAR-10: the middle of a straight line is too short for noise, and photographs fade."""
    classes = Classes(bench)

    def between(mean: Callable[[Tensor, Tensor], Tensor]) -> Arm:
        def noise(generators: Sequence[Generator]) -> Tensor:
            return mean(classes.noise(generators), classes.noise(generators))

        return classes.drawn(lambda rows: clamp(classes.of(rows)), steps=HALFWAY, noise=noise)

    round_, straight = between(lambda a, b: slerp(a, b, 0.5)), between(lambda a, b: (a + b) / 2)
    effect = pair("class named", "%", classes.named(round_), classes.named(straight))
    diversity = pair("diversity", "", *(measures.spread(a.images) for a in (round_, straight)))
    detail = pair("detail", "", *(measures.grain(a.images) for a in (round_, straight)))
    return Row(
        *("Interpolation", f"CIFAR-10, slerp halfway between two noises, {HALFWAY} steps"),
        *("the straight line's middle", bench.n, effect, round_.calls, round_.seconds),
        [
            above("class named, difference", effect.difference, 0, "%", firm=True),
            above("diversity, difference", diversity.difference, 0, firm=True),
        ],
        diversity=diversity,
        notes=[
            f"detail, the difference of neighbouring pixels: {written(detail.method)}, control "
            f"{written(detail.control)}"
        ],
        pictures={
            "slerp": round_.images[::GROUP][:4],
            "straight line": straight.images[::GROUP][:4],
        },
    )
