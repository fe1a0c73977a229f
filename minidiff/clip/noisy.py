"""CLIP's image encoder for noisy images, of Semantic Diffusion Guidance (Liu et al. 2023, arXiv
2112.05744, section 3.3): a copy of the encoder, told the time, learns without any text to embed a
noisy image where CLIP embeds the clean one.

from minidiff.clip import noisy

encoder = noisy.load("shapes")
embedding, maps = encoder(x, level)

minidiff train-clip --data shapes --noisy shapes
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff import checkpoint
from minidiff.clip.model import CLIP, CLIPConfig, VisionTransformer
from minidiff.denoiser import network_time
from minidiff.device import best_device
from minidiff.layers import TimeEmbedding, zeros
from minidiff.schedule import NoiseLevel, NoiseSchedule


class Features(NamedTuple):
    """What the encoder sees: embedding (B,embed), and maps (B,width,h,w), one a block but the last,
    whose tokens are not needed."""

    embedding: Tensor
    maps: list[Tensor]


class NoisyEncoder(nn.Module):
    """encoder(x, level) -> Features, of noisy images (B,3,size,size) at a level of `schedule`.

    Before each block, and after the last, the tokens are scaled and shifted by the time: by nothing
    at the start, when it is CLIP's own image encoder at every t. A vision transformer only.
    """

    def __init__(self, config: CLIPConfig, schedule: NoiseSchedule, card: dict | None = None):
        super().__init__()
        if config.is_resnet:
            raise ValueError("expected a CLIP with a vision transformer, got one with a ResNet")
        self.config, self.schedule, self.card = config, schedule, card or {}
        self.visual = VisionTransformer(config)
        self.time = TimeEmbedding(32)  # (B,128)
        self.scale_shift = nn.ModuleList(
            zeros(nn.Linear(128, 2 * config.width)) for _ in range(config.layers + 1)
        )

    @property
    def device(self) -> torch.device:
        return self.visual.proj.device

    def forward(self, x: Tensor, level: NoiseLevel) -> Features:
        v, size = self.visual, self.config.size
        if x.ndim != 4 or x.shape[1:] != (3, size, size):
            raise ValueError(
                f"got images of shape {tuple(x.shape)}: expected (B, 3, {size}, {size})"
            )
        emb = F.silu(self.time(network_time(x, level)))[:, None]  # (B,1,128)
        mean, std = (x.new_tensor(c)[:, None, None] for c in (self.config.mean, self.config.std))
        h = v.conv1(((x + 1) / 2 - mean) / std)  # (B,width,rows,columns)
        grid = h.shape[2:]
        whole = v.class_embedding.to(h.dtype).expand(len(h), 1, -1)
        h = torch.cat([whole, h.flatten(2).transpose(1, 2)], dim=1)  # (B,1+patches,width)
        h = v.ln_pre(h + v.positional_embedding)
        first, maps = torch.zeros(len(x), dtype=torch.long, device=x.device), []
        *blocks, last = v.transformer.resblocks
        *timed, before_last, after = (layer(emb).chunk(2, dim=-1) for layer in self.scale_shift)
        for block, (scale, shift) in zip(blocks, timed, strict=True):
            h = block(h * (1 + scale) + shift, None)
            maps.append(h[:, 1:].transpose(1, 2).unflatten(2, grid))  # (B,width,rows,columns)
        h = last(h * (1 + before_last[0]) + before_last[1], None, first)  # (B,1,width)
        h = (h * (1 + after[0]) + after[1])[:, 0]
        return Features(v.ln_post(h) @ v.proj, maps)


def of_clip(model: CLIP, schedule: NoiseSchedule) -> NoisyEncoder:
    """CLIP's image encoder with what will tell it the time, before any training."""
    encoder = NoisyEncoder(model.config, schedule)
    encoder.visual = copy.deepcopy(model.visual).float()
    return encoder.to(model.logit_scale.device)


# --------------------------------------------------------------------------------------- the files


def save(path: str | Path, encoder: NoisyEncoder) -> None:
    """Write an encoder in half precision, whole or not at all."""
    tensors = {name: value.half() for name, value in encoder.state_dict().items()}
    tensors |= encoder.schedule.tables()
    about = {"kind": "noisy encoder", "clip": asdict(encoder.config), "card": encoder.card}
    checkpoint.save(path, tensors, about)


def shipped() -> dict[str, Path]:
    """The noise-aware encoders that come with minidiff: the CLIP they belong to -> file."""
    found = checkpoint.shipped("noisy encoder")
    return {name.removeprefix("clip_").removesuffix("_noisy"): file for name, file in found.items()}


def load(name_or_path: str | Path, device: str | torch.device | None = None) -> NoisyEncoder:
    """The encoder that ships for a CLIP ("shapes"), or one that training has saved.

    In eval mode and frozen; its input may have gradients. FileNotFoundError for an unknown name,
    ValueError for a damaged or foreign file.
    """
    path = checkpoint.find(name_or_path, shipped, "noise-aware encoder")
    tensors, about = checkpoint.load(path)
    if about.get("kind") != "noisy encoder":
        raise ValueError(f"{path} holds a {about.get('kind')}, not a noise-aware encoder")
    schedule = NoiseSchedule.take_tables(tensors)
    encoder = NoisyEncoder(CLIPConfig(**about["clip"]), schedule, about["card"])
    checkpoint.fill(encoder, tensors, str(path))  # copies half precision into float32
    return encoder.eval().requires_grad_(False).to(device or best_device())
