"""A tiny training run in a process of its own, for tests that kill or multiply it."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from test_training import TINY, tiny_run

from minidiff.training import fit
from minidiff.training.processes import meet

if __name__ == "__main__":
    out, options = Path(sys.argv[1]), sys.argv[2:]
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if dist.is_torchelastic_launched():
        meet("gloo")
    network = replace(TINY, dropout=0.0) if "--no-dropout" in options else TINY
    run = tiny_run(out, network, **({"save_every": 32} if "--slow" in options else {}))
    if "--resume" in options and run.state_file.exists():
        run.resume()
    if "RANK" in os.environ:
        (out / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    if "--slow" in options:  # to be caught in the middle: before its end it waits for `go`
        advance = run.advance

        def slow():
            time.sleep(0.1)
            while run.step == run.steps - 4 and not (out / "go").exists():
                time.sleep(0.02)
            return advance()

        run.advance = slow
    fit(run, progress=False)
    if dist.is_initialized():
        dist.destroy_process_group()
