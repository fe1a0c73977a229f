"""Several processes that train or sample together, started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def join() -> None:
    """Under torchrun: meet the other processes, over nccl on GPUs and gloo on CPUs."""
    if "RANK" not in os.environ:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    meet("nccl" if torch.cuda.is_available() else "gloo")


def meet(backend: str) -> None:
    """Join the processes that torchrun has started. Each start has names of its own in their common
    store: started again, they would otherwise find the addresses of those that died, and wait.
    """
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://"))
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = dist.PrefixStore(f"start {start}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world)


@contextmanager
def first_process_first() -> Iterator[None]:
    """What is downloaded is downloaded once, by the first process; the others then find it."""
    if rank() > 0:
        dist.barrier()
    yield
    if world() > 1 and rank() == 0:
        dist.barrier()


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up in any process: all of them stop at the same step."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags)
    return flags.item() > 0
