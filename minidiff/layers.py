"""Layers that the networks share, each in the form that is fastest on its hardware.

The choices were measured (see benchmarks/).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.device import has_fast_bfloat16

SiteTap = Callable[[str, Tensor], Tensor]  # tap(site, value) -> value, inside one network call


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


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time at geometric frequencies, then a small network: t (B,), from 0
    on, to (B, 4*channels).

    `frequency_shift` 1 makes the last frequency exactly 1/10000; `cosine_first` is the order.
    """

    def __init__(self, channels: int, *, cosine_first: bool = False, frequency_shift: int = 1):
        super().__init__()
        self.half, self.cosine_first, self.shift = channels // 2, cosine_first, frequency_shift
        self.linear1 = nn.Linear(channels, 4 * channels)
        self.linear2 = nn.Linear(4 * channels, 4 * channels)

    def forward(self, t: Tensor) -> Tensor:
        steps = torch.arange(self.half, device=t.device) / (self.half - self.shift)
        angles = t.float()[:, None] * torch.exp(-math.log(10000) * steps)  # (B, half)
        waves = [angles.sin(), angles.cos()][:: -1 if self.cosine_first else 1]
        return self.linear2(F.silu(self.linear1(torch.cat(waves, dim=1))))  # (B, 4*channels)


def zeros(layer: nn.Module) -> nn.Module:
    """The layer with all weights zero: a block then starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
