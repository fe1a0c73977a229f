"""The one place where hardware matters: which device, which precision, which attention.

The choices were measured (see benchmarks/). On CPUs with bfloat16 instructions that is the fastest
precision, with attention written out, in the plain NCHW layout to train and in channels_last to
sample; on GPUs channels_last and fused kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import sys

import torch
from torch import nn


def best_device() -> torch.device:
    """cuda if there is one, else mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@functools.cache
def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run on instructions of their own."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        with open("/proc/cpuinfo") as f:
            flags = f.read(20_000)
    except OSError:  # not Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def describe(device: torch.device) -> str:
    """The hardware in words, for cards and logs."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' * (threads > 1)} of a {device.type.upper()}"


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Mixed precision where it pays: bfloat16 autocast, else plain float32.

    Held around a whole sampling loop it casts each weight once, not once a step.
    """
    if torch.is_autocast_enabled(device.type) or not has_fast_bfloat16(device):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on its device, in the memory layout that is fastest there."""
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return network.to(device, memory_format=layout)


def compile_on_gpu(network: nn.Module, device: torch.device) -> None:
    """Compile the network in place where that pays: in long runs on a GPU with Triton.

    On CPUs it takes half a minute and gains nothing over eager bfloat16.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return
    if torch.cuda.get_device_capability(device) >= (7, 0):  # Triton knows no older ones
        network.compile(dynamic=False)  # a batch of another size is compiled anew, not for any size


def keep_memory() -> None:
    """Ask glibc to keep freed memory: large buffers are otherwise unmapped and faulted in anew at
    every layer, a third of a small network's time. A few per cent more memory; no-op elsewhere."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
