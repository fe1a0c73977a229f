"""Time minidiff beside diffusers on this processor: `python -m benchmarks.run [--quick]`.

Three workers hold the same weights, each in a process of its own with two threads, and take turns
(A B C A B C ...), so that a machine that slows down slows all of them:

- diffusers: UNet2DModel and DDIMPipeline as their documentation uses them, eager float32;
- plain: minidiff's network in eager float32, nothing else changed;
- minidiff: minidiff as it comes, with the choices of `minidiff.device` (bfloat16 autocast where the
  processor has it, attention written out on CPUs, memory kept between steps).

A ratio is diffusers' median time over ours, above 1 where minidiff is faster, with a 95% bootstrap
interval over the rounds. The full run (about half an hour) also writes benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

from minidiff import device, diffusers_format
from minidiff.denoiser import as_denoiser
from minidiff.samplers import ddim_step, sample
from minidiff.schedule import NoiseSchedule
from minidiff.unet import UNet, UNetConfig

THREADS = 2
SIZE = 32  # pixels
CPU = torch.device("cpu")
RESULTS = Path(__file__).parent / "RESULTS.md"
WORKERS = ("diffusers", "plain", "minidiff")
NETWORKS = {
    "small": UNetConfig(channels=64, multipliers=(1, 1, 2), blocks=1, attention=(2,), dropout=0.0),
    "ddpm": UNetConfig(dropout=0.0),
}
IMPORTS = {
    "torch": "import torch",
    "minidiff": "import minidiff, minidiff.unet, minidiff.samplers, minidiff.guidance",
    "diffusers": "from diffusers import DDIMPipeline, UNet2DModel",
}
# what is timed, network, batch, rounds; and the ratios that we want
NETWORK_CASES = [
    ("forward", "small", 16, 21),
    ("forward", "small", 64, 11),
    ("training step", "small", 64, 9),
    ("DDIM-50", "small", 16, 5),
    ("DDIM-50", "small", 1, 7),
    ("forward", "ddpm", 16, 9),
    ("training step", "ddpm", 16, 7),
]
PLAIN_TARGET = {"forward": 0.97, "training step": 0.97}
TARGETS = {("forward", 16): 1.6, ("forward", 64): 1.8, "training step": 1.7, ("DDIM-50", 16): 2.0}
OVERHEAD_TARGETS = {16: 0.4, 1: 1.0}  # per cent


class Theirs:
    """The tasks on diffusers."""

    def __init__(self, folder: Path):
        from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
        from diffusers.utils import logging

        logging.set_verbosity_error()
        self.network = UNet2DModel.from_pretrained(folder).eval()
        scheduler = DDIMScheduler.from_pretrained(folder)
        self.pipeline = DDIMPipeline(self.network, scheduler)
        self.pipeline.set_progress_bar_config(disable=True)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.network(x, t).sample

    def sampling(self, batch: int, steps: int) -> None:
        self.pipeline(batch_size=batch, num_inference_steps=steps, output_type="pt")

    def autocast(self):
        return torch.autocast("cpu", enabled=False)


class Plain:
    """The tasks on minidiff's network in float32."""

    def __init__(self, folder: Path):
        self.network, self.schedule, self.predicts = diffusers_format.read(folder)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.network(x, t)

    def sampling(self, batch: int, steps: int) -> None:
        noise = torch.randn(batch, 3, SIZE, SIZE)
        with self.autocast():
            denoise = as_denoiser(self.network, predicts=self.predicts)
            sample(ddim_step, denoise, noise, self.schedule.path(steps))

    def autocast(self):
        return torch.autocast("cpu", enabled=False)


class Minidiff(Plain):
    """The tasks on minidiff as it comes."""

    def __init__(self, folder: Path):
        device.keep_memory()
        super().__init__(folder)
        device.place(self.network, CPU)

    def autocast(self):
        return device.autocast(CPU)


class Timed(torch.nn.Module):
    """A network that notes when it is entered and left."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network, self.entered, self.left = network, [], []

    def __getattr__(self, name: str):  # diffusers' pipelines ask their network for its sizes
        return (
            getattr(super().__getattr__("network"), name)
            if name in ("config", "dtype")
            else (super().__getattr__(name))
        )

    def forward(self, *args, **kwargs):
        self.entered.append(time.perf_counter())
        out = self.network(*args, **kwargs)
        self.left.append(time.perf_counter())
        return out


def tasks(side, folder: Path) -> dict[str, Callable]:
    """What a worker can be asked to do, by name."""
    subject = side(folder)
    training = side(folder)
    training.network.train()
    optimizer = torch.optim.AdamW(training.network.parameters(), lr=1e-4)

    def fixed(batch: int):
        generator = torch.Generator().manual_seed(batch)
        x = torch.randn(batch, 3, SIZE, SIZE, generator=generator)
        return x, torch.randint(1000, (batch,), generator=generator)

    @torch.no_grad()
    def output(batch: int) -> np.ndarray:
        return subject.forward(*fixed(batch)).numpy()

    @torch.no_grad()
    def forward(batch: int) -> float:
        x, t = fixed(batch)
        start = time.perf_counter()
        with subject.autocast():
            subject.forward(x, t)
        return time.perf_counter() - start

    def training_step(batch: int) -> float:
        x, t = fixed(batch)
        noise = torch.randn_like(x)
        start = time.perf_counter()
        with training.autocast():
            loss = F.mse_loss(training.forward(x, t).float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    def sampling(batch: int, steps: int = 50) -> float:
        start = time.perf_counter()
        subject.sampling(batch, steps)
        return time.perf_counter() - start

    def outside(batch: int) -> float:
        """The share of a DDIM step spent outside the network, in per cent, from medians."""
        network = subject.network
        subject.network = timed = Timed(network)
        if isinstance(subject, Theirs):
            subject.pipeline.unet = timed
        subject.sampling(batch, 50)
        subject.network = network
        if isinstance(subject, Theirs):
            subject.pipeline.unet = network
        inside = median(b - a for a, b in zip(timed.entered, timed.left, strict=True))
        between = median(b - a for a, b in zip(timed.left, timed.entered[1:], strict=False))
        return 100 * between / (inside + between)

    return {
        "output": output,
        "forward": forward,
        "training step": training_step,
        "DDIM-50": sampling,
        "outside": outside,
    }


def work(name: str, folder: Path, pipe) -> None:
    """A worker's life: do what the pipe asks for until it is closed."""
    torch.set_num_threads(THREADS)
    sides = {"diffusers": Theirs, "plain": Plain, "minidiff": Minidiff}
    able = tasks(sides[name], folder)
    while (order := pipe.recv()) is not None:
        task, batch = order
        pipe.send(able[task](batch))


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
        for name in WORKERS:
            self.pipes[name], far = context.Pipe()
            process = context.Process(target=work, args=(name, Path(self.folder.name), far))
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


def described(value: tuple[float, float, float], target: float | None) -> list[str]:
    r, low, high = value
    return [f"{r:.2f} ({low:.2f}-{high:.2f})", f">= {target}" if target else ""]


def report(quick: bool) -> str:
    speed, overhead, equal = [], [], []
    for name, config in NETWORKS.items():
        if quick and name != "small":
            continue
        workers = Workers(config)
        out = {worker: workers.ask(worker, "output", 4) for worker in WORKERS}
        apart = np.abs(out["plain"] - out["diffusers"]).max() / out["diffusers"].std()
        equal.append(f"{name} {apart:.1e}")
        for task, of, batch, rounds in NETWORK_CASES:
            if of != name:
                continue
            seconds = workers.rounds(task, batch, 3 if quick else rounds)
            plain = ratio(seconds["diffusers"], seconds["plain"])
            ours = ratio(seconds["diffusers"], seconds["minidiff"])
            target = TARGETS.get(task, TARGETS.get((task, batch)))
            speed.append(
                [
                    f"{task}, {name}, batch {batch}",
                    *[f"{1000 * median(seconds[worker]):.1f}" for worker in WORKERS],
                    *described(plain, PLAIN_TARGET.get(task)),
                    *described(ours, target),
                ]
            )
            print(" ".join(speed[-1]), flush=True)
        if name == "small":
            for batch, target in OVERHEAD_TARGETS.items():
                shares = workers.rounds("outside", batch, 1 if quick else 3)
                overhead.append(
                    [
                        f"batch {batch}",
                        *[f"{median(shares[worker]):.2f}" for worker in WORKERS],
                        f"<= {target}",
                    ]
                )
        workers.close()

    imports = time_imports(3 if quick else 7)
    baseline = median(imports["torch"])
    bf16 = "with" if device.has_fast_bfloat16(CPU) else "without"
    return f"""\
Written by `python -m benchmarks.run`, whose first lines say what is compared and how.

Python {platform.python_version()}, torch {torch.__version__}, diffusers {version("diffusers")}; \
{platform.machine()} processor, {torch.backends.cpu.get_cpu_capability()}, {bf16} bfloat16 \
instructions, {THREADS} threads. Outputs of plain and diffusers on the same weights differ by \
{", ".join(equal)} of their standard deviation.

Milliseconds (medians), and diffusers' time over ours:

{
        table(
            [*["", "diffusers", "plain", "minidiff"]]
            + ["diffusers/plain", "wanted", "diffusers/minidiff", "wanted"],
            speed,
        )
    }

Time of a DDIM step outside the network, per cent, small network:

{table(["", "diffusers", "plain", "minidiff", "wanted of minidiff"], overhead)}

Importing, in a fresh process:

{
        table(
            ["", "seconds", "over torch alone"],
            [
                [f"`{IMPORTS[name]}`", f"{median(s):.2f}", f"{median(s) / baseline:.2f}"]
                for name, s in imports.items()
            ],
        )
    }
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="small network, few rounds, no RESULTS.md"
    )
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    text = report(quick)
    print("\n" + text)
    if not quick:
        RESULTS.write_text(f"# Speed beside diffusers\n\n{text}", encoding="utf-8")
        print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
