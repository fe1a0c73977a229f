"""Rows of DDIM inversion, to an image's noise and back, and of interpolation between noises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff import zoo
from minidiff.data import images as real
from minidiff.denoiser import Denoiser, as_denoiser, network_time, reader
from minidiff.downloads import data_root
from minidiff.editing import slerp
from minidiff.metrics import psnr
from minidiff.samplers import ddim_step, invert, sample
from minidiff.scoring import measures
from minidiff.scoring.bench import STEPS, Arm, Bench
from minidiff.scoring.table import Row, above, below, figure, pair, written

SHIFT = 20  # levels by which the broken inversion mistakes the time
SWEEP = (50, 100, 200)


def round_trip(bench: Bench) -> Row:
    return _round_trip(bench, "DDIM inversion", bench.model, bench.images[: bench.few])


def cifar10(bench: Bench) -> Row:
    if not (data_root() / "cifar-10-batches-py").is_dir():
        raise FileNotFoundError("DDIM inversion of CIFAR-10: there is no CIFAR-10 in MINIDIFF_DATA")
    pictures = real.to_float(real.cifar10(train=False).images[: bench.few])
    return _round_trip(bench, "DDIM inversion, CIFAR-10", zoo.load("cifar10"), pictures)


def butterflies(bench: Bench) -> Row:
    if not (data_root() / "butterflies").is_dir():
        raise FileNotFoundError("DDIM inversion of butterflies: there are none in MINIDIFF_DATA")
    model = zoo.load("butterflies")
    pictures = real.to_float(real.butterflies(model.size).images)
    pictures = pictures[9::10][:8]  # held out of training
    return _round_trip(bench, "DDIM inversion, butterflies", model, pictures)


def _round_trip(bench: Bench, name: str, model: zoo.Diffusion, pictures: Tensor) -> Row:
    """Up the path and down again, against inversion that tells the network a wrong time."""

    def there_and_back(steps: int, up: Denoiser, down: Denoiser) -> Arm:
        def draw(rows: slice, generators) -> Tensor:
            path = model.schedule.path(steps)
            noise = invert(up, pictures[rows], path)
            return torch.stack([sample(ddim_step, down, noise, path), noise], dim=1)

        return bench.arm(draw, n=len(pictures), exact=True, batch=8 if model.size > 32 else 32)

    plain, late = _null(model), _null(model, SHIFT)
    arms = [there_and_back(steps, plain, plain) for steps in SWEEP]
    broken = [there_and_back(steps, late, plain) for steps in (SWEEP[0], SWEEP[-1])]
    found = [psnr(pictures, arm.images[:, 0]) for arm in arms]
    wrong = [psnr(pictures, arm.images[:, 0]) for arm in broken]
    effect = pair("PSNR", "dB", found[-1], wrong[-1])
    gain = pair("", "dB", found[-1] - found[0], wrong[-1] - wrong[0])
    spreads = [arm.images[:, 1].std().item() for arm in arms]
    bounds = " / ".join(map(str, SWEEP))
    levels = " / ".join(f"{figure(f, torch.median).value:.1f}" for f in found)
    noises = " / ".join(f"{s:.2f}" for s in spreads)
    return Row(
        *(name, f"{SWEEP[-1]} steps up, {SWEEP[-1]} down, no guidance, float32"),
        *(f"the network is told a time {SHIFT} levels late on the way up", len(pictures)),
        *(effect, 2 * SWEEP[-1], arms[-1].seconds),
        [
            above(f"median PSNR, {SWEEP[0]} steps", figure(found[0], torch.median), 26, "dB"),
            above(f"median PSNR, {SWEEP[-1]} steps", figure(found[-1], torch.median), 32, "dB"),
            above("four times the steps gain, more than the control's", gain.difference, 0, "dB"),
        ],
        notes=[
            f"median PSNR at {bounds} steps: {levels} dB; standard deviation of noises: {noises}",
            f"four times the steps gain {written(gain.method, 'dB')}, the control "
            f"{written(gain.control, 'dB')}",
        ],
        pictures={
            "image": pictures[:4],
            "there and back": arms[0].images[:4, 0],
            "late by 20": broken[0].images[:4, 0],
        },
    )


def _null(model: zoo.Diffusion, shift: int = 0) -> Denoiser:
    """The denoiser of no prompt in float32; with a shift the network is told a later time."""
    read, last = reader(model.predicts), model.schedule.T - 1

    def denoise(x: Tensor, level):
        condition = model.condition([None] * len(x))
        if not shift:
            return as_denoiser(model.network, condition, predicts=model.predicts)(x, level)
        t = (network_time(x, level) + shift).clamp(max=last)
        return read(x, level, model.network(x, t, condition))

    return denoise


def interpolation(bench: Bench) -> Row:
    def between(mean) -> Arm:
        def draw(rows: slice, generators: Sequence) -> Tensor:
            first, second = (bench.model.noise(len(generators), generators) for _ in range(2))
            path = bench.schedule.path(2 * STEPS)
            return sample(
                ddim_step, bench.guided(bench.prompts, 1)(rows), mean(first, second), path
            )

        return bench.arm(draw)

    round_, straight = between(lambda a, b: slerp(a, b, 0.5)), between(lambda a, b: (a + b) / 2)
    effect = pair("valid", "%", *(measures.valid(a.images) for a in (round_, straight)))
    misfits = pair("misfit", "", *(measures.misfit(a.images) for a in (round_, straight)))
    return Row(
        *("Interpolation", f"slerp halfway between two noises, {2 * STEPS} steps"),
        *("the straight line's middle", bench.n, effect, round_.calls, round_.seconds),
        [
            above("valid, difference", effect.difference, 0, "%", firm=True),
            below("misfit, difference", misfits.difference, 0, firm=True),
        ],
        kept=misfits,
        pictures={"slerp": round_.images[:4], "straight line": straight.images[:4]},
    )
