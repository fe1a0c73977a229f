"""The one place where hardware matters: which device, which precision, which attention.

The choices were measured (see benchmarks/). On CPUs with bfloat16 instructions that is the fastest
precision, with attention written out, in the plain NCHW layout to train and in channels_last to
sample; on GPUs channels_last and fused kernels.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import importlib.util
import os
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def for_sampling(network: nn.Module, device: torch.device) -> nn.Module:
    """A copy of the network that samples fastest, to be called under `autocast`: where bfloat16
    pays, its weights are cast once. The network itself where it does not."""
    if not has_fast_bfloat16(device):
        return network
    cast = {}  # deepcopy takes these for copies that it has made already: each weight moves once
    for weight in network.parameters():
        layout = torch.channels_last if weight.ndim == 4 else torch.preserve_format
        small = weight.detach().to(torch.bfloat16, copy=True, memory_format=layout)
        cast[id(weight)] = nn.Parameter(small, requires_grad=weight.requires_grad)
    fast = copy.deepcopy(network, cast)
    for whole, layer in zip(network.modules(), fast.modules(), strict=True):
        if isinstance(layer, UpsamplingConv) and device.type == "cpu":
            if layer.summed is None:  # else it is a copy of a copy
                summed = whole.sum_weights().detach().to(torch.bfloat16)
                layer.summed = summed.contiguous(memory_format=torch.channels_last)
    return fast


class GroupNorm(nn.GroupNorm):
    """Group normalisation; on CPUs torch's kernel for small images in channels_last is some ten
    times slower than the one for NCHW."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.shape[-2:].numel() < 1024:
            x = x.contiguous()
        return super().forward(x)


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


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x) of values that nothing else needs: overwritten where no gradient is wanted."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class UpsamplingConv(nn.Conv2d):
    """Every pixel repeated to 2x2, then a 3x3 convolution: (B,C,H,W) to (B,C',2H,2W).

    A 3x3 window lies on 2x2 different pixels only. On CPUs the weights that meet the same pixel are
    summed beforehand, which leaves a transposed convolution of 4/9 the multiplications, and nothing
    to repeat.
    """

    # along a side: which of three weights add up to which of the transposed convolution's four
    SUMS = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    SUMS_2D = torch.kron(SUMS, SUMS).T.contiguous()  # (9,16)

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(channels_in, channels_out, 3, padding=1)
        self.summed: Tensor | None = None  # kept where the weights do not change

    def sum_weights(self) -> Tensor:
        """The weights (C,C',4,4) of the transposed convolution."""
        summed = self.weight.flatten(2) @ self.SUMS_2D.to(self.weight.dtype)  # (C',C,16)
        return summed.unflatten(2, (4, 4)).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))
        weights = self.sum_weights() if self.summed is None else self.summed
        return F.conv_transpose2d(x, weights, self.bias, stride=2, padding=1)


def attention(q: Tensor, k: Tensor, v: Tensor, probs_tap=None) -> Tensor:
    """softmax(q^T k / sqrt(d)) v with q (B,h,d,N), k and v (B,h,d,M); returns (B,h,d,N).

    Fused on GPUs, unless `probs_tap` wants to see the probabilities (B,h,N,M). Written out on CPUs,
    where the fused kernel's bfloat16 backward is slow, and on mps, where the fused kernel of torch
    2.8 to 2.11 is wrong for few queries.
    """
    if probs_tap is None and q.device.type == "cuda":
        q, k, v = (part.transpose(-2, -1) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(-2, -1)
    scores = (q * q.shape[-2] ** -0.5).transpose(-2, -1) @ k  # (B,h,N,M)
    probs = scores.softmax(dim=-1)
    if probs_tap is not None:
        probs = probs_tap(probs)
    return v @ probs.transpose(-2, -1)
