"""Time CLIP beside open_clip and transformers on this processor: `python -m benchmarks.clip`.

Each holds a ViT-B/32 of random weights, in one process, and they take turns (A B C A B C ...), so
that a machine that slows down slows all of them. Images, texts of 77 tokens, and captions, which
end after 12; in float32, in bfloat16 under autocast and with the weights cast, and as each library
comes: open_clip in float32, minidiff in what `minidiff.device` finds fastest. transformers runs
twice, with its fused attention and with attention written out. All keep the memory they free.

A ratio is the fastest other library's median time over minidiff's, above 1 where minidiff is
faster, with a 95% bootstrap interval over the rounds; for the defaults, open_clip's. Loading is
from safetensors, minidiff's as it converts OpenAI's archives. --threads and --batch for others
than 2 and 32. Writes benchmarks/clip.md.
"""

from __future__ import annotations

import argparse
import copy
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.run import machine, ratio, table
from minidiff import clip, device
from minidiff.clip import CLIP, CLIPConfig

RESULTS = Path(__file__).parent / "clip.md"
IMPORTS = {
    "torch": "import torch",
    "minidiff": "import minidiff.clip",
    "open_clip": "import open_clip",
    "transformers": "from transformers import CLIPModel",
}
WANTED = {"float32": 1.0, "autocast": 1.0, "bfloat16": 1.0, "default": 2.5}


def libraries() -> dict[str, nn.Module]:
    """A model of each; those of transformers under open_clip's names of the calls."""
    import open_clip
    import transformers

    torch.manual_seed(0)
    models: dict[str, nn.Module] = {"minidiff": CLIP(CLIPConfig())}
    models["open_clip"] = open_clip.create_model("ViT-B-32-quickgelu")
    for attention in ("sdpa", "eager"):
        config = transformers.CLIPConfig(attn_implementation=attention)
        model = transformers.CLIPModel(config)
        assert model.vision_model.config._attn_implementation == attention
        model.encode_image, model.encode_text = model.get_image_features, model.get_text_features
        models[f"transformers {attention}"] = model
    return {name: model.eval() for name, model in models.items()}


def inputs(batch: int) -> dict[str, tuple[str, Tensor]]:
    """What is encoded: name -> method and its argument."""
    texts = torch.randint(1, 49406, (batch, 77))
    texts[:, 0], texts[:, -1] = 49406, 49407
    captions = texts.clone()
    captions[:, 11], captions[:, 12:] = 49407, 0
    images = torch.randn(batch, 3, 224, 224)
    return {
        "images": ("encode_image", images),
        "texts": ("encode_text", texts),
        "captions": ("encode_text", captions),
    }


def in_turns(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each task, taken in turns after one round that warms up."""
    seconds = {name: [] for name in tasks}
    for i in range(rounds + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if i > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def encoding(batch: int, rounds: int) -> str:
    """The table of encode_image and encode_text."""
    models, rows = libraries(), []
    halved = {name: copy.deepcopy(model).bfloat16() for name, model in models.items()}
    default = {name: copy.deepcopy(models[name]) for name in ("minidiff", "open_clip")}
    default["minidiff"].fast = True  # as `clip.load` sets it
    used = {"float32": models, "autocast": models, "bfloat16": halved, "default": default}
    for what, (method, x) in inputs(batch).items():
        for mode, wanted in WANTED.items():

            def encode(model: nn.Module, method=method, x=x, mode=mode) -> None:
                if mode == "bfloat16" and x.is_floating_point():
                    x = x.bfloat16()
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, mode == "autocast"):
                    getattr(model, method)(x)

            tasks = {name: partial(encode, model) for name, model in used[mode].items()}
            seconds = in_turns(tasks, rounds)
            best = min((n for n in tasks if n != "minidiff"), key=lambda n: median(seconds[n]))
            r, low, high = ratio(seconds[best], seconds["minidiff"])
            times = [f"{1000 * median(seconds[n]):.0f}" if n in seconds else "" for n in models]
            row = [f"{what}, {mode}", *times, f"{r:.2f} ({low:.2f}-{high:.2f})", f">= {wanted}"]
            print(*row, flush=True)
            rows.append(row)
    return table(["milliseconds", *models, "ratio", "wanted"], rows)


def loading(rounds: int) -> str:
    """The table of loading a ViT-B/32 from the disk."""
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours.safetensors"), Path(folder, "theirs.safetensors")
        model = CLIP(CLIPConfig())
        save_file(model.state_dict(), theirs)
        clip.save(model.half(), ours)
        del model
        seconds = in_turns(
            {
                "minidiff": lambda: clip.load(ours, "cpu"),
                "open_clip": lambda: open_clip.create_model(
                    "ViT-B-32-quickgelu", pretrained=str(theirs)
                ),
            },
            rounds,
        )
    r, low, high = ratio(seconds["open_clip"], seconds["minidiff"])
    times = [f"{median(times):.2f}" for times in seconds.values()]
    rows = [["load ViT-B/32", *times, f"{r:.1f} ({low:.1f}-{high:.1f})", ">= 3"]]
    return table(["seconds", *seconds, "ratio", "wanted"], rows)


def importing(rounds: int) -> str:
    """The table of fresh processes that only import."""
    tasks = {
        name: (lambda code=code: subprocess.run([sys.executable, "-c", code], check=True))
        for name, code in IMPORTS.items()
    }
    seconds = in_turns(tasks, rounds)
    alone = median(seconds["torch"])
    rows = [
        [f"`{IMPORTS[n]}`", f"{median(s):.2f}", f"{median(s) / alone:.2f}"]
        for n, s in seconds.items()
    ]
    return table(["", "seconds", "over torch alone (wanted of minidiff: <= 1.1)"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # open_clip's, about random weights
    torch.set_num_threads(given.threads)
    device.keep_memory()
    text = f"""\
# CLIP beside open_clip and transformers

Written by `python -m benchmarks.clip`; the first lines of that file say what is compared and how. \
{machine("open_clip_torch", "transformers")} Batches of {given.batch}.

{encoding(given.batch, given.rounds)}

{loading(given.rounds)}

{importing(given.rounds)}
"""
    print("\n" + text)
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
