"""Speed on a GPU, beside diffusers: `python -m benchmarks.gpu --out DIR`, or one `--part` a call.

Two ceilings are measured first: copying memory, and products of bfloat16 matrices. Then DDPM's
CIFAR-10 network (35.7M parameters, 12.4 GFLOP an image forward) with the same weights:

- training, images/s and share of the matrix ceiling: minidiff as `minidiff train` does it;
  diffusers in the loop of its documentation (Accelerator with its defaults, a DataLoader, AdamW,
  clipping);
  diffusers' network in our loop, with every trick of ours (compiled, channels_last, bfloat16);
- sampling, images/s: DDIM 50 and DPM-Solver++ 15 at batches of 1 to 1024, minidiff as it comes and
  compiled with CUDA graphs, against diffusers' DDIMPipeline.

Every line is written as it is measured, so that a run that is cut short has left its figures:
DIR/gpu.md and DIR/gpu.json. Then train the large model, in as many calls as it takes:

    timeout -s INT 540 minidiff train --data cifar10 --patch 1 --channels 128 --multipliers 1,2,2 \\
        --blocks 3 --batch 512 --learning-rate 6e-4 --ema 0.9995 --images 2e7 \\
        --save-every 1000000 --resume

`--tiny` does everything with a tiny network on any device: a test of this file, not a measurement.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.run import table
from minidiff import zoo
from minidiff.data.images import to_float
from minidiff.device import autocast, best_device, compile_on_gpu, describe, place
from minidiff.files import atomic
from minidiff.layers import for_sampling
from minidiff.samplers import ddim_step, dpmpp_2m_step
from minidiff.schedule import NoiseSchedule
from minidiff.training import Objective, Run, TrainConfig, TrainingSet
from minidiff.unet import UNet, UNetConfig

DDPM = UNetConfig(dropout=0.0)
TINY = replace(DDPM, channels=32, multipliers=(1, 2), blocks=1)
SIZE = 32
SHAPE = (3, SIZE, SIZE)


class Report:
    """Rows of what was measured, on disk as soon as they are known."""

    def __init__(self, out: Path, device: torch.device):
        self.out, self.rows, self.about = out, [], f"{describe(device)}, torch {torch.__version__}"
        out.mkdir(parents=True, exist_ok=True)

    def add(self, what: str, value: float, unit: str, note: str = "") -> None:
        self.rows.append({"what": what, "value": value, "unit": unit, "note": note})
        print(f"{what}: {value:.4g} {unit} {note}", flush=True)
        cells = [[r["what"], f"{r['value']:.4g} {r['unit']}", r["note"]] for r in self.rows]
        text = f"# On a GPU\n\nWritten by `python -m benchmarks.gpu`; {self.about}.\n\n"
        with atomic(self.out / "gpu.md") as temporary:
            temporary.write_text(text + table(["", "measured", ""], cells) + "\n")
        with atomic(self.out / "gpu.json") as temporary:
            temporary.write_text(json.dumps({"about": self.about, "rows": self.rows}, indent=1))


def seconds(action: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """Median seconds of an action, the device's work included, after two that warm up."""
    times = []
    for _ in range(rounds + 2):
        begin = time.perf_counter()
        action()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - begin)
    return median(times[2:])


def ceilings(device: torch.device, n: int) -> tuple[float, float]:
    """Bytes a second of a copy (read and written), and FLOPs a second of bfloat16 products."""
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    many = torch.zeros(16 * n * n, device=device)
    copied, filled = many.clone(), 2 * many.numel() * many.element_size()
    product = seconds(lambda: a @ a, device, 15)
    return filled / seconds(lambda: copied.copy_(many), device, 15), 2 * n**3 / product


# -------------------------------------------------------------------------------------- training


def their_network(folder: Path) -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)


class AsOurs(nn.Module):
    """diffusers' network with the call of ours: network(x, t, condition) -> out."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, condition: None = None) -> Tensor:
        return self.network(x, t, return_dict=False)[0]


def our_loop(network: nn.Module, device: torch.device, batch: int) -> Callable[[], object]:
    """Ten steps of `minidiff train`; nothing waits for the device between them."""
    pictures = torch.randint(256, (4096, 3, SIZE, SIZE), dtype=torch.uint8)
    model = zoo.Diffusion(network, NoiseSchedule.linear(), "eps", SHAPE)
    objective = place(Objective(model), device)
    config = TrainConfig(images=10**9, batch=batch, warmup=1)
    batches = objective.batches(TrainingSet(pictures).to(device), config)
    run = Run(objective, batches, config, Path("unused"))
    run.objective.train()
    compile_on_gpu(run.objective.network, device)
    return lambda: [run.advance() for _ in range(10)]


def documented_loop(folder: Path, device: torch.device, batch: int) -> Callable[[], object]:
    """Ten steps of diffusers' unconditional training example, with Accelerator's defaults."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler

    accelerator = Accelerator(cpu=device.type == "cpu")
    network = their_network(folder)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    pictures = to_float(torch.randint(256, (4096, 3, SIZE, SIZE), dtype=torch.uint8))
    loader = torch.utils.data.DataLoader(pictures, batch_size=batch, shuffle=True, drop_last=True)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    scheduler = DDPMScheduler(num_train_timesteps=1000)

    def endless() -> Iterator[Tensor]:
        while True:
            yield from loader

    batches = endless()

    def steps() -> None:
        for _ in range(10):
            clean = next(batches)
            noise = torch.randn_like(clean)
            t = torch.randint(0, 1000, (len(clean),), device=clean.device)
            noisy = scheduler.add_noise(clean, noise, t)
            with accelerator.accumulate(network):
                loss = F.mse_loss(network(noisy, t, return_dict=False)[0], noise)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            loss.item()  # the example logs every step

    return steps


def training(report: Report, folder: Path, device, batches: list[int], peak: float) -> None:
    network, _, _ = zoo.diffusers_format.read(folder)
    counted = copy.deepcopy(network).to("meta")  # CPUs upsample with fewer multiplications
    with FlopCounterMode(display=False) as flops, torch.no_grad(), torch.device("meta"):
        counted(torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1, dtype=torch.long))
    an_image = 3 * flops.get_total_flops()  # forward, and twice that backward
    for batch in batches:
        loops = {
            "minidiff": lambda *how: our_loop(copy.deepcopy(network).train(), *how),
            "diffusers, every trick of ours": lambda *how: our_loop(
                AsOurs(their_network(folder)).train(), *how
            ),
            "diffusers, as documented": partial(documented_loop, folder),
        }
        for name, make in loops.items():
            try:
                speed = 10 * batch / seconds(make(device, batch), device, 3)
            except (ImportError, torch.OutOfMemoryError) as error:
                print(f"left out, {name}, batch {batch}: {str(error).splitlines()[0]}", flush=True)
            else:
                share = f"{an_image * speed / peak:.1%} of the matrix ceiling"
                report.add(f"training, {name}, batch {batch}", speed, "images/s", share)
            torch._dynamo.reset()  # lets go of the compiled network
            if device.type == "cuda":
                torch.cuda.empty_cache()


# -------------------------------------------------------------------------------------- sampling


def sampling(report: Report, folder: Path, device, batches: list[int]) -> None:
    model = zoo.from_diffusers(folder, device)
    graphs = replace(model, network=for_sampling(model.network, device))
    if device.type == "cuda":
        # for any size, graphs would be slower than those of each size
        graphs.network = torch.compile(graphs.network, mode="reduce-overhead", dynamic=False)
    theirs = their_sampler(folder, device)
    for batch in batches:
        ways = theirs | {
            "minidiff, DDIM 50": lambda n: model.sample(n=n, steps=50, step=ddim_step),
            "minidiff with graphs, DDIM 50": lambda n: drawn(graphs, n, 50, ddim_step),
            "minidiff with graphs, 2M 15": lambda n: drawn(graphs, n, 15, dpmpp_2m_step),
        }
        for name, way in ways.items():
            took = seconds(partial(way, batch), device, 3)
            report.add(f"sampling, {name}, batch {batch}", batch / took, "images/s")


def their_sampler(folder: Path, device: torch.device) -> dict[str, Callable[[int], object]]:
    try:
        from diffusers import DDIMPipeline, DDIMScheduler
    except ImportError as missing:
        print(f"left out, diffusers' sampling: {missing}")
        return {}
    scheduler = DDIMScheduler.from_pretrained(folder, clip_sample=True)
    pipeline = DDIMPipeline(their_network(folder).to(device), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 50, "output_type": "pt"}
    return {"diffusers, DDIM 50": lambda n: pipeline(n, **how)}


def drawn(model: zoo.Diffusion, n: int, steps: int, step) -> Tensor:
    """Samples of a model whose network is already what it shall be: no copy is made."""
    from minidiff.guidance import clamp
    from minidiff.samplers import sample

    x = torch.randn(n, *SHAPE, device=model.device)
    with autocast(model.device):
        return sample(step, clamp(model.denoiser()), x, model.schedule.path(steps))


@click.command(help=__doc__)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--part", type=click.Choice(["training", "sampling"]), help="One of the two alone.")
@click.option("--tiny", is_flag=True, help="A test of this file on any device.")
def main(out: Path, part: str | None, tiny: bool) -> None:
    torch.manual_seed(0)
    device = best_device()
    report = Report(out, device)
    bandwidth, peak = ceilings(device, 256 if tiny else 8192)
    report.add("ceiling: copying memory", bandwidth / 1e12, "TB/s", "read and written")
    report.add("ceiling: products of bfloat16 matrices", peak / 1e12, "TFLOP/s")
    with TemporaryDirectory() as folder:
        model = zoo.Diffusion(UNet(TINY if tiny else DDPM), NoiseSchedule.linear(), "eps", SHAPE)
        zoo.to_diffusers(model, folder)
        if part != "sampling":
            training(report, Path(folder), device, [2] if tiny else [128, 512, 1024], peak)
        if part != "training":
            sampling(report, Path(folder), device, [1, 2] if tiny else [1, 16, 256, 1024])


if __name__ == "__main__":
    main()
