"""How training scales over many GPUs, simulated: `python -m benchmarks.scaling`.

Data-parallel training exchanges every gradient once a step. DistributedDataParallel starts to
exchange a bucket of gradients as soon as the backward pass has made them, so the exchange hides
behind the rest of the backward pass, all but the last bucket. What is simulated is that overlap:

- when each gradient is ready is measured: hooks in one real backward pass of the network, as shares
  of its time;
- a ring over N processes takes 2 (N-1) messages a bucket, each of latency + bytes / N / bandwidth;
- one bucket is exchanged after the other; the step ends when both the backward pass and the last
  exchange have.

The time of a step on one GPU is an assumption until measured (`python -m benchmarks.gpu`): give it
with --images-per-second. The simulation itself is compared with real training in two processes of
one thread each over gloo. Writes benchmarks/scaling.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import click
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.run import NETWORKS, table
from minidiff.device import keep_memory
from minidiff.schedule import NoiseSchedule
from minidiff.training import Objective, Run, TrainConfig, TrainingSet
from minidiff.unet import UNet, UNetConfig
from minidiff.zoo import Diffusion

RESULTS = Path(__file__).parent / "scaling.md"
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes, DistributedDataParallel's own
FORWARD = 1 / 3  # of the time of a step; the backward pass takes the rest
GPUS = (1, 2, 4, 8, 16, 32, 64)


class Link(NamedTuple):
    """What joins two neighbours of the ring: bytes a second one way, and seconds a message."""

    bandwidth: float
    latency: float


LINKS = {  # stated by their makers; what is left after protocol overheads, about 80%
    "NVLink 4 (450 GB/s)": Link(0.8 * 450e9, 5e-6),
    "InfiniBand NDR (50 GB/s)": Link(0.8 * 50e9, 10e-6),
    "Ethernet 25 Gbit/s (3.1 GB/s)": Link(0.8 * 3.1e9, 50e-6),
}


@dataclass(frozen=True)
class Gradient:
    """`bytes` of one parameter's gradient, ready after this share of the backward pass."""

    bytes: int
    ready: float


def buckets(gradients: list[Gradient]) -> list[Gradient]:
    """Gradients in the order they come, together up to a bucket's size; ready with their last."""
    filled, size, cap = [], 0, FIRST_BUCKET
    for gradient in gradients:
        size += gradient.bytes
        if size >= cap:
            filled.append(Gradient(size, gradient.ready))
            size, cap = 0, BUCKET
    return filled + ([Gradient(size, gradients[-1].ready)] if size else [])


def all_reduce(size: int, n: int, link: Link) -> float:
    """Seconds of a ring over n processes: 2 (n-1) messages of size / n bytes."""
    return 2 * (n - 1) * (link.latency + size / n / link.bandwidth)


def step_time(alone: float, gradients: list[Gradient], n: int, link: Link) -> float:
    """Seconds of a training step of n processes that takes one `alone` seconds."""
    forward, backward = FORWARD * alone, (1 - FORWARD) * alone
    free = 0.0  # when the link is free again
    for bucket in buckets(gradients):
        free = max(free, forward + bucket.ready * backward) + all_reduce(bucket.bytes, n, link)
    return max(alone, free)


def measured_gradients(config: UNetConfig, batch: int = 8) -> list[Gradient]:
    """The gradients of a network in the order and at the shares of the backward pass they come."""
    network, found = UNet(config).train(), []
    for p in network.parameters():
        p.register_post_accumulate_grad_hook(
            lambda p: found.append((p.numel() * p.element_size(), time.perf_counter()))
        )
    x, t = torch.randn(batch, 3, 32, 32), torch.zeros(batch, dtype=torch.long)
    for _ in range(2):  # the first warms up
        found.clear()
        loss = network(x, t).square().mean()
        begin = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
    return [Gradient(size, (at - begin) / (end - begin)) for size, at in found]


# ------------------------------------------------------------------------ compared with real runs


def tiny_run(out: Path, config: UNetConfig, batch: int) -> Run:
    data = TrainingSet(torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8))
    objective = Objective(Diffusion(UNet(config), NoiseSchedule.linear(), "eps", (3, 32, 32)))
    train = TrainConfig(images=10**6, batch=batch, mixed_precision=False)
    return Run(objective, objective.batches(data, train), train, out)


def worker(name: str, batch: int, steps: int) -> None:
    """Median seconds of a step under torchrun, and of one exchange of 25 MiB and of 4 bytes."""
    torch.set_num_threads(1)
    keep_memory()
    dist.init_process_group("gloo")
    run = tiny_run(Path(os.devnull), NETWORKS[name], batch * dist.get_world_size())
    run.parallel = nn.parallel.DistributedDataParallel(run.objective)

    def timed(action, count: int) -> float:
        times = []
        for _ in range(count + 1):
            dist.barrier()
            begin = time.perf_counter()
            action()
            times.append(time.perf_counter() - begin)
        return median(times[1:])

    big, small = torch.zeros(BUCKET // 4), torch.zeros(1)
    found = [timed(run.advance, steps)]
    found += [timed(lambda tensor=tensor: dist.all_reduce(tensor), 15) for tensor in (big, small)]
    if dist.get_rank() == 0:
        print("found", *found)
    dist.destroy_process_group()


def compared(name: str = "small", batch: int = 16, steps: int = 15) -> list[str]:
    """Real steps of one and two processes, and what the simulation says of two."""
    found = {}
    for n in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n)]
        command += ["--standalone", "-m", "benchmarks.scaling", "--worker", name, str(batch)]
        done = subprocess.run(
            [*command, str(steps)], capture_output=True, text=True, check=True, env=_one_thread()
        )
        line = next(row for row in done.stdout.splitlines() if row.startswith("found"))
        found[n] = [float(word) for word in line.split()[1:]]
    alone, _, _ = found[1]
    real, big, small = found[2]
    latency = small / 2
    link = Link(BUCKET / 2 / max(big / 2 - latency, 1e-9), latency)
    simulated = step_time(alone, measured_gradients(NETWORKS[name]), 2, link)
    return [
        f"{name}, batch {batch} a process",
        f"{1e3 * alone:.0f}",
        f"{1e3 * real:.0f}",
        f"{1e3 * simulated:.0f}",
        f"{alone / real:.2f}",
        f"{alone / simulated:.2f}",
        f"{link.bandwidth / 1e9:.2f} GB/s, {1e6 * link.latency:.0f} us",
    ]


def _one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


# ------------------------------------------------------------------------------------- the report


def efficiencies(gradients: list[Gradient], batch: int, speed: float) -> list[list[str]]:
    """A row a link: the efficiency of N GPUs with `batch` images each."""
    return [
        [name, str(batch)]
        + [f"{batch / speed / step_time(batch / speed, gradients, n, link):.1%}" for n in GPUS]
        for name, link in LINKS.items()
    ]


def report(speed: float, is_measured: bool) -> str:
    gradients = measured_gradients(NETWORKS["ddpm"])
    size = sum(g.bytes for g in gradients)
    rows = [row for batch in (128, 32) for row in efficiencies(gradients, batch, speed)]
    source = "as measured" if is_measured else "an assumption, not a measurement"
    header = ["link", "images a GPU", *(f"{n} GPUs" for n in GPUS)]
    sent = table(
        ["GPUs", "MB sent by each in a step"],
        [[str(n), f"{2 * (n - 1) / n * size / 1e6:.0f}"] for n in GPUS],
    )
    real = table(
        [
            "network",
            "alone, ms",
            "two, ms",
            "simulated",
            "efficiency",
            "simulated",
            "link measured",
        ],
        [compared()],
    )
    return f"""# Many GPUs

Written by `python -m benchmarks.scaling --images-per-second {speed:g}`; the first lines of that
file say what is simulated. DDPM's CIFAR-10 network, {size / 4e6:.1f}M gradients in float32, \
{size / 1e6:.0f} MB in {len(buckets(gradients))} buckets; {speed:g} images/s on one GPU ({source}).

{sent}

Efficiency, the speed of N GPUs over N times that of one:

{table(header, rows)}

The simulation beside real training on this processor, one thread a process, over gloo (the two
processes also share memory and caches, which the simulation does not know):

{real}

## How to run it

One machine with 8 GPUs; a worker that dies is restarted with the others, from the last checkpoint:

```
torchrun --standalone --nproc-per-node 8 --max-restarts 3 \\
    -m minidiff train --data cifar10 --batch 1024 --resume
```

Several machines under SLURM (`--requeue`: a job that is preempted goes on where it was):

```
#!/bin/bash
#SBATCH --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=32 --requeue
srun bash -c 'torchrun --nnodes $SLURM_NNODES --nproc-per-node 8 --max-restarts 3 \\
    --rdzv-backend c10d --rdzv-id $SLURM_JOB_ID \\
    --rdzv-endpoint $(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1):29500 \\
    -m minidiff train --data cifar10 --batch 4096 --resume --out $HOME/runs/cifar10'
```
"""


@click.command(help=__doc__)
@click.option("--images-per-second", default=None, type=float, help="Training speed of one GPU.")
@click.option("--worker", "as_worker", nargs=3, default=None, hidden=True)
def main(images_per_second: float | None, as_worker: tuple[str, str, str] | None) -> None:
    if as_worker:
        worker(as_worker[0], int(as_worker[1]), int(as_worker[2]))
        return
    torch.manual_seed(0)
    text = report(images_per_second or 4000, images_per_second is not None)
    print(text)
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
