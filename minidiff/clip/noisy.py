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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from minidiff import checkpoint
from minidiff.clip.model import CLIP, CLIPConfig, VisionTransformer
from minidiff.clip.preprocess import Preprocess
from minidiff.clip.use import image_features
from minidiff.clip.weights import load as load_clip
from minidiff.data import images, shapes
from minidiff.denoiser import network_time
from minidiff.device import best_device
from minidiff.recipes.clip import contrastive_loss
from minidiff.schedule import NoiseLevel, NoiseSchedule, add_noise
from minidiff.training import TrainConfig, TrainingSet, draw_batch
from minidiff.unet import TimeEmbedding, UNetConfig, zeros
from minidiff.zoo import FOLDERS

SCALE = 100.0  # of the logits, the authors'


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
        self.time = TimeEmbedding(UNetConfig(channels=32))  # (B,128)
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


# ---------------------------------------------------------------------------------------- training


class NoisyAgainstClean(nn.Module):
    """What `training.Run` needs: among the clean images of a batch each noisy one finds its own,
    and each clean one its noisy one. The clean embeddings are the data's conditions."""

    def __init__(self, network: NoisyEncoder):
        super().__init__()
        self.network = network

    def about(self) -> dict:
        return {"predicts": "which clean image belongs to which noisy one", "scale": SCALE}

    def batch(self, data: TrainingSet, config: TrainConfig, step: int) -> Sequence[Tensor]:
        """x0 (B,3,H,W), t (B,) from 1, noise, and CLIP's embeddings (B,embed) of x0."""
        return draw_batch(data, config, self.network.schedule.T, step)

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor, clean: Tensor) -> Tensor:
        level = self.network.schedule.level(t)
        seen = self.network(add_noise(x0, level, noise), level).embedding.float()
        own = torch.eye(len(x0), dtype=torch.bool, device=x0.device)
        with torch.autocast(x0.device.type, enabled=False):  # cosines need their digits
            return contrastive_loss(seen, clean, torch.tensor(SCALE), own)


@dataclass(frozen=True)
class Recipe:
    """All that a noise-aware encoder is made of."""

    data: TrainingSet
    clip: CLIP
    schedule: NoiseSchedule
    train: TrainConfig
    card: dict

    def objective(self) -> NoisyAgainstClean:
        """The encoder with CLIP's weights, and its loss."""
        torch.manual_seed(self.train.seed)
        return NoisyAgainstClean(of_clip(self.clip, self.schedule).train().requires_grad_())

    def save(self, trained: NoisyAgainstClean, path: Path, card: dict) -> None:
        """Write the encoder itself, for `load`."""
        trained.network.card = card
        save(path, trained.network)


TRAIN = TrainConfig(
    images=150_000, batch=128, learning_rate=5e-4, drop_condition=0.0, flip=False, ema=0.99
)


def noisy_shapes(name_or_path: str) -> Recipe:
    """A CLIP's encoder on scenes of the shapes world, on the schedule of the shapes model."""
    model, _ = load_clip(name_or_path, "cpu")
    generator = Generator().manual_seed(400)
    codes = shapes.random_codes(20_000, generator)
    drawn = torch.cat([shapes.render(part, 32, generator)[0] for part in codes.split(256)])
    clean = image_features(model, Preprocess(model.config).normalise((drawn + 1) / 2))
    return Recipe(
        TrainingSet(images.to_uint8(drawn), clean),
        model,
        NoiseSchedule.linear(),
        TRAIN,
        {
            "description": "Embeds noisy pictures of shapes where CLIP embeds the clean ones.",
            "data": "20,000 scenes drawn by minidiff.data.shapes, without captions",
            "licence": "MIT, as this project",
            "limits": "It knows the scenes and the schedule of the shapes model alone.",
        },
    )


# --------------------------------------------------------------------------------------- the files


def save(path: str | Path, encoder: NoisyEncoder) -> None:
    """Write an encoder in half precision, whole or not at all."""
    tensors = {name: value.half() for name, value in encoder.state_dict().items()}
    tensors["alpha_bar"] = encoder.schedule.alpha_bar
    about = {"kind": "noisy encoder", "clip": asdict(encoder.config), "card": encoder.card}
    checkpoint.save(path, tensors, about)


def shipped() -> dict[str, Path]:
    """The noise-aware encoders that come with minidiff: the CLIP they belong to -> file."""
    found = [file for folder in FOLDERS for file in folder.glob("clip_*_noisy.safetensors")]
    return {file.stem.removeprefix("clip_").removesuffix("_noisy"): file for file in sorted(found)}


def load(name_or_path: str | Path, device: str | torch.device | None = None) -> NoisyEncoder:
    """The encoder that ships for a CLIP ("shapes"), or one that training has saved.

    In eval mode and frozen; its input may have gradients. FileNotFoundError for an unknown name,
    ValueError for a damaged or foreign file.
    """
    path = checkpoint.find(name_or_path, shipped, "noise-aware encoder")
    tensors, about = checkpoint.load(path)
    if about.get("kind") != "noisy encoder":
        raise ValueError(f"{path} holds a {about.get('kind')}, not a noise-aware encoder")
    schedule = NoiseSchedule(tensors.pop("alpha_bar"))
    encoder = NoisyEncoder(CLIPConfig(**about["clip"]), schedule, about["card"])
    checkpoint.fill(encoder, tensors, str(path))  # copies half precision into float32
    return encoder.eval().requires_grad_(False).to(device or best_device())
