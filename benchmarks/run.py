"""Time minidiff beside diffusers on this processor: `python -m benchmarks.run [--check]`.

Three workers hold the same weights, each in a process of its own with two threads, and take turns
(A B C A B C ...), so that a machine that slows down slows all of them:

- diffusers: UNet2DModel and DDIMPipeline as their documentation uses them, eager float32;
- plain: minidiff's network and sampler in eager float32 with the same allocator, torch's own;
- minidiff: minidiff as it comes, `zoo` with the choices of `minidiff.device` (bfloat16 where the
  processor has it, attention written out on CPUs, memory kept between steps).

A ratio is diffusers' median time over ours, above 1 where minidiff is faster, with a 95% bootstrap
interval over the rounds. The full run, some ten minutes on two free cores, writes
benchmarks/RESULTS.md and the ratios to benchmarks/results.json. `--check` times a part of it in two
minutes and fails where a ratio has fallen more than a quarter below the recorded one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import platform
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff import device, diffusers_format, zoo
from minidiff.denoiser import as_denoiser
from minidiff.guidance import clamp
from minidiff.samplers import ddim_step, sample
from minidiff.schedule import NoiseSchedule
from minidiff.unet import UNet, UNetConfig

THREADS = 2
SIZE = 32  # pixels
RESULTS = Path(__file__).parent / "RESULTS.md"
RECORD = Path(__file__).parent / "results.json"
MAY_FALL = 0.25  # of a recorded ratio, before `--check` fails: shared machines are noisy
STEPS = 50
NETWORKS = {
    "small": UNetConfig(channels=64, multipliers=(1, 1, 2), blocks=1, attention=(2,), dropout=0.0),
    "ddpm": UNetConfig(dropout=0.0),
}
IMPORTS = {
    "torch": "import torch",
    "minidiff": "import minidiff, minidiff.unet, minidiff.samplers, minidiff.guidance",
    "diffusers": "from diffusers import DDIMPipeline, UNet2DModel",
}


class Case(NamedTuple):
    """A task, how often it is timed, and the ratios wanted of plain and of minidiff."""

    task: str
    network: str
    batch: int
    rounds: int
    plain: float | None
    ours: float | None


CASES = [
    Case("forward", "small", 16, 21, 0.97, 1.6),
    Case("forward", "small", 64, 11, 0.97, 1.8),
    Case("training_step", "small", 64, 9, 0.97, 1.7),
    Case("ddim", "small", 16, 7, None, 2.0),
    Case("ddim", "small", 1, 7, None, None),
    Case("forward", "ddpm", 16, 9, 0.97, 1.6),
    Case("training_step", "ddpm", 16, 7, 0.97, 1.7),
]
OVERHEAD_WANTED = {16: 0.4, 1: 1.0}  # batch: per cent of a step


class Theirs:
    """The tasks on diffusers."""

    def __init__(self, folder: Path):
        from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
        from diffusers.utils import logging

        logging.set_verbosity_error()
        self.network = UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False).eval()
        # like most published pipelines, and minidiff's `sample`, it clips x0 to [-1, 1]
        scheduler = DDIMScheduler.from_pretrained(folder, clip_sample=True)
        self.pipeline = DDIMPipeline(self.network, scheduler)
        self.pipeline.set_progress_bar_config(disable=True)
        self.autocast = contextlib.nullcontext

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t).sample

    def sampling(self, batch: int) -> None:
        self.pipeline(batch_size=batch, num_inference_steps=STEPS, output_type="pt")


class Plain:
    """The tasks on minidiff's network and sampler in float32."""

    def __init__(self, folder: Path):
        self.network, self.schedule, self.predicts = diffusers_format.read(folder)
        self.autocast = contextlib.nullcontext

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t)

    def sampling(self, batch: int) -> None:
        noise = torch.randn(batch, 3, SIZE, SIZE)
        denoise = clamp(as_denoiser(self.network, predicts=self.predicts))
        sample(ddim_step, denoise, noise, self.schedule.path(STEPS))


class Minidiff:
    """The tasks on minidiff as it comes."""

    def __init__(self, folder: Path):
        device.keep_memory()
        self.model = zoo.from_diffusers(folder, "cpu")
        self.network = self.model.network
        self.autocast = partial(device.autocast, torch.device("cpu"))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t)

    def sampling(self, batch: int) -> None:
        self.model.sample(n=batch, steps=STEPS)


class Bench:
    """What a worker can be asked for: seconds of a task, unless it says otherwise."""

    def __init__(self, side: type, folder: Path):
        self.subject, self.learner = side(folder), side(folder)
        self.learner.network.train().requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.learner.network.parameters(), lr=1e-4, fused=True)

    def output(self, batch: int) -> np.ndarray:
        """The network's output itself."""
        with torch.no_grad():
            return self.subject.forward(*fixed_input(batch)).numpy()

    def forward(self, batch: int) -> float:
        x, t = fixed_input(batch)
        start = time.perf_counter()
        with torch.no_grad(), self.subject.autocast():
            self.subject.forward(x, t)
        return time.perf_counter() - start

    def training_step(self, batch: int) -> float:
        x, t = fixed_input(batch)
        noise = torch.randn_like(x)
        start = time.perf_counter()
        with self.learner.autocast():
            loss = F.mse_loss(self.learner.forward(x, t).float(), noise)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start

    def ddim(self, batch: int) -> float:
        start = time.perf_counter()
        self.subject.sampling(batch)
        return time.perf_counter() - start

    def outside(self, batch: int) -> float:
        """Per cent of a DDIM step that is spent outside the network (medians over the steps)."""
        kind, entered, left = type(self.subject.network), [], []
        forward = kind.forward

        def timed(*args, **kwargs):
            entered.append(time.perf_counter())
            out = forward(*args, **kwargs)
            left.append(time.perf_counter())
            return out

        kind.forward = timed  # of the class: minidiff samples on a copy of the network
        self.subject.sampling(batch)
        kind.forward = forward
        inside = median(b - a for a, b in zip(entered, left, strict=True))
        between = median(b - a for a, b in zip(left[:-1], entered[1:], strict=True))
        return 100 * between / (inside + between)


def fixed_input(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 3, SIZE, SIZE, generator=generator)
    return x, torch.randint(1000, (batch,), generator=generator)


def work(side: type, folder: Path, pipe) -> None:
    """A worker's life: do what the pipe asks for until it says None."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    bench = Bench(side, folder)
    while (order := pipe.recv()) is not None:
        task, batch = order
        pipe.send(getattr(bench, task)(batch))


WORKERS = {"diffusers": Theirs, "plain": Plain, "minidiff": Minidiff}


class Workers:
    """The three processes on one network's weights."""

    def __init__(self, config: UNetConfig):
        self.folder = tempfile.TemporaryDirectory()
        torch.manual_seed(0)
        network = UNet(config)
        for p in network.parameters():  # nothing left at zero, or attention would have no effect
            if p.ndim > 1 and not p.any():
                torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
        schedule = NoiseSchedule.linear()
        diffusers_format.write(network, schedule, "eps", self.folder.name, size=SIZE)
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = {}, []
        for name, side in WORKERS.items():
            self.pipes[name], far = context.Pipe()
            arguments = (side, Path(self.folder.name), far)
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            self.processes.append(process)

    def ask(self, name: str, task: str, batch: int):
        self.pipes[name].send((task, batch))
        return self.pipes[name].recv()

    def rounds(self, task: str, batch: int, count: int) -> dict[str, list]:
        """`count` results of each worker, taken in turns after one that warms up."""
        results = {name: [] for name in WORKERS}
        for i in range(count + 1):
            for name in WORKERS:
                result = self.ask(name, task, batch)
                if i > 0:
                    results[name].append(result)
        return results

    def close(self) -> None:
        for pipe in self.pipes.values():
            pipe.send(None)
        for process in self.processes:
            process.join()
        self.folder.cleanup()


def ratio(theirs: list[float], ours: list[float]) -> tuple[float, float, float]:
    """The ratio of the medians and its 95% interval, by resampling the rounds 2,000 times."""
    pairs = np.array([theirs, ours])  # (2, rounds)
    draws = np.random.default_rng(0).integers(pairs.shape[1], size=(2000, pairs.shape[1]))
    a, b = np.median(pairs[:, draws], axis=2)
    low, high = np.percentile(a / b, [2.5, 97.5])
    return np.median(pairs[0]) / np.median(pairs[1]), low, high


def time_imports(rounds: int) -> dict[str, list[float]]:
    """Seconds of a fresh process that imports, in turns."""
    results = {name: [] for name in IMPORTS}
    for _ in range(rounds):
        for name, code in IMPORTS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            results[name].append(time.perf_counter() - start)
    return results


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def described(value: tuple[float, float, float], wanted: float | None) -> list[str]:
    r, low, high = value
    return [f"{r:.2f} ({low:.2f}-{high:.2f})", f">= {wanted}" if wanted else ""]


def measured(case: Case, workers: Workers, rounds: int) -> tuple[list[str], dict[str, float]]:
    """A row of the table, and its ratios by name."""
    seconds = workers.rounds(case.task, case.batch, rounds)
    name = f"{case.task}, {case.network}, batch {case.batch}"
    plain = ratio(seconds["diffusers"], seconds["plain"])
    ours = ratio(seconds["diffusers"], seconds["minidiff"])
    row = [name, *(f"{1000 * median(seconds[worker]):.1f}" for worker in WORKERS)]
    row += described(plain, case.plain) + described(ours, case.ours)
    print(" ".join(row), flush=True)
    return row, {f"{name}, plain": round(plain[0], 3), f"{name}, minidiff": round(ours[0], 3)}


def machine(*packages: str) -> str:
    """What the figures were measured with, in a sentence."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    bf16 = "with" if has_bfloat16() else "without"
    return (
        f"Python {platform.python_version()}, {versions}; {platform.machine()} processor, "
        f"{torch.backends.cpu.get_cpu_capability()}, {bf16} bfloat16 instructions, "
        f"{torch.get_num_threads()} threads."
    )


def has_bfloat16() -> bool:
    return device.has_fast_bfloat16(torch.device("cpu"))


def check() -> list[str]:
    """Time the small network's cases in few rounds; what fell below its record, in words."""
    record = json.loads(RECORD.read_text())
    if record["bfloat16"] != has_bfloat16():
        print("not compared: the record is of another kind of processor")
        return []
    recorded = record["ratios"]
    workers = Workers(NETWORKS["small"])
    fallen = []
    for case in (case for case in CASES if case.network == "small"):
        for name, now in measured(case, workers, 3)[1].items():
            as_it_comes = name.endswith("minidiff")  # plain float32 varies with the machine's state
            if as_it_comes and now < (1 - MAY_FALL) * recorded[name]:
                again = measured(case, workers, 5)[1][name]  # a busy moment is no regression
                if again < (1 - MAY_FALL) * recorded[name]:
                    fallen.append(f"{name}: {again:.2f}, recorded {recorded[name]:.2f}")
    workers.close()
    return fallen


def report() -> tuple[str, dict[str, float]]:
    """Everything measured, as Markdown, and the ratios by name."""
    speed, overhead, equal, ratios = [], [], [], {}
    for name in NETWORKS:
        workers = Workers(NETWORKS[name])
        theirs, plain = workers.ask("diffusers", "output", 4), workers.ask("plain", "output", 4)
        equal.append(f"{np.abs(plain - theirs).max() / theirs.std():.1e} ({name})")
        for case in (case for case in CASES if case.network == name):
            row, found = measured(case, workers, case.rounds)
            speed.append(row)
            ratios |= found
        for batch, wanted in OVERHEAD_WANTED.items() if name == "small" else ():
            shares = workers.rounds("outside", batch, 5)
            row = [f"batch {batch}", *(f"{median(shares[worker]):.2f}" for worker in WORKERS)]
            overhead.append([*row, f"<= {wanted}"])
        workers.close()

    imports = time_imports(7)
    alone = median(imports["torch"])
    cold = [
        [f"`{IMPORTS[name]}`", f"{median(seconds):.2f}", f"{median(seconds) / alone:.2f}"]
        for name, seconds in imports.items()
    ]
    columns = ["diffusers/plain", "wanted", "diffusers/minidiff", "wanted"]
    text = f"""\
Written by `python -m benchmarks.run`; the first lines of that file say what is compared and how.

{machine("diffusers")} With the same weights, the outputs of plain and diffusers differ \
by at most {", ".join(equal)} of their standard deviation.

Milliseconds (medians), and diffusers' time over ours (95% interval):

{table(["", *WORKERS, *columns], speed)}

Time of a DDIM step outside the network, per cent, small network:

{table(["", *WORKERS, "wanted"], overhead)}

Seconds of a fresh process that only imports:

{table(["", "seconds", "over torch alone"], cold)}
"""
    return text, ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="a part of it, against the record")
    torch.set_num_threads(THREADS)
    if parser.parse_args().check:
        fallen = check()
        sys.exit("slower than recorded: " + "; ".join(fallen) if fallen else 0)
    text, ratios = report()
    print("\n" + text)
    RESULTS.write_text(f"# Speed beside diffusers\n\n{text}", encoding="utf-8")
    record = {"bfloat16": has_bfloat16(), "ratios": ratios}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RESULTS} and {RECORD}")


if __name__ == "__main__":
    main()
