"""Time from nothing to the first image, beside diffusers: `python -m benchmarks.cold_start`.

Every measurement is a fresh process; the kinds take turns. With the same weights (DDPM's small
shape of benchmarks.run), two threads, 50 DDIM steps, one 32 px image, written as a PNG:

- minidiff: the command `minidiff sample`, as a user types it;
- diffusers: DDIMPipeline.from_pretrained on a local folder, as its documentation shows.

Bare `import torch` is the floor of both. Memory is the largest resident set of the process. Writes
benchmarks/cold_start.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.run import NETWORKS, SIZE, machine, ratio, table
from minidiff import zoo
from minidiff.schedule import NoiseSchedule
from minidiff.unet import UNet

ROUNDS = 9
STEPS = 50
RESULTS = Path(__file__).parent / "cold_start.md"

PIPELINE = """
import sys
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
folder, out, steps = sys.argv[1:]
network = UNet2DModel.from_pretrained(folder)
pipeline = DDIMPipeline(network, DDIMScheduler.from_pretrained(folder))
pipeline(batch_size=1, num_inference_steps=int(steps)).images[0].save(out)
"""


def commands(folder: Path) -> dict[str, list[str]]:
    """What is started, by name, on the same weights written in both formats into `folder`."""
    torch.manual_seed(0)
    model = zoo.Diffusion(UNet(NETWORKS["small"]), NoiseSchedule.linear(), "eps", (3, SIZE, SIZE))
    model.card["data"] = "none"
    model.save(folder / "model.safetensors")
    zoo.to_diffusers(model, folder / "diffusers")
    first = ["-m", "minidiff", "sample", "--model", str(folder / "model.safetensors")]
    first += ["-n", "1", "--steps", str(STEPS), "--out", str(folder / "minidiff.png")]
    theirs = [str(folder / "diffusers"), str(folder / "diffusers.png"), str(STEPS)]
    return {
        "import torch": ["-c", "import torch"],
        "import minidiff": ["-c", "import minidiff"],
        "import minidiff.clip": ["-c", "import minidiff.clip"],
        "import diffusers' pipeline": ["-c", "from diffusers import DDIMPipeline, UNet2DModel"],
        "first image, minidiff": first,
        "first image, diffusers": ["-c", PIPELINE, *theirs],
    }


def start(arguments: list[str]) -> tuple[float, float]:
    """Seconds and megabytes of a fresh process."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise RuntimeError(f"{arguments[:3]} ended with status {status}")
    return seconds, usage.ru_maxrss / 1e3  # kilobytes on Linux


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        every = commands(Path(folder))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in every}
        for i in range(ROUNDS + 1):
            for name, arguments in every.items():
                result = start(arguments)
                if i > 0:  # the first fills the disk's cache
                    found[name].append(result)
    seconds = {name: [s for s, _ in results] for name, results in found.items()}
    floor = seconds["import torch"]
    rows = []
    for name, results in found.items():
        over, low, high = ratio(seconds[name], floor)
        rows.append(
            [
                name,
                f"{median(seconds[name]):.2f}",
                f"{over:.2f} ({low:.2f}-{high:.2f})",
                f"{max(megabytes for _, megabytes in results):.0f}",
            ]
        )
    sooner = ratio(seconds["first image, diffusers"], seconds["first image, minidiff"])
    text = (
        "# From nothing to the first image\n\nWritten by `python -m benchmarks.cold_start`; the "
        f"first lines of that file say what is compared and how. {machine('diffusers')}\n\n"
        + table(["fresh process", "seconds", "over import torch (95%)", "MB at most"], rows)
        + f"\n\nThe first image comes {sooner[0]:.2f} ({sooner[1]:.2f}-{sooner[2]:.2f}) times as "
        "soon as with diffusers (wanted: 2.5); importing minidiff is wanted within 1.1 of torch.\n"
    )
    print(text)
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
