"""How the CLIP that reads noisy images was trained: Semantic Diffusion Guidance (Liu et al. 2023,
arXiv 2112.05744, section 3.3).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from minidiff.clip.loss import contrastive_loss
from minidiff.clip.noisy import NoisyEncoder, of_clip, save
from minidiff.clip.preprocess import Preprocess
from minidiff.clip.use import image_features
from minidiff.clip.weights import load
from minidiff.data import images, shapes
from minidiff.recipes.recipe import Recipe
from minidiff.schedule import NoiseSchedule, add_noise
from minidiff.training import Batches, Column, TrainConfig, TrainingSet

SCALE = 100.0  # of the logits, the authors'


class NoisyAgainstClean(nn.Module):
    """What `training.Run` needs: among the clean images of a batch each noisy one finds its own,
    and each clean one its noisy one. The clean embeddings are the data's conditions."""

    def __init__(self, network: NoisyEncoder):
        super().__init__()
        self.network = network

    def about(self) -> dict:
        return {"predicts": "which clean image belongs to which noisy one", "scale": SCALE}

    def batches(self, data: TrainingSet, config: TrainConfig) -> Batches:
        """x0 (B,3,H,W), t (B,) from 1, noise, and CLIP's embeddings (B,embed) of x0, `clean`."""
        T = self.network.schedule.T
        return Batches(data, config.batch, T, config.seed, mirror=config.flip)

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor, clean: Tensor) -> Tensor:
        level = self.network.schedule.level(t)
        seen = self.network(add_noise(x0, level, noise), level).embedding.float()
        own = torch.eye(len(x0), dtype=torch.bool, device=x0.device)
        with torch.autocast(x0.device.type, enabled=False):  # cosines need their digits
            return contrastive_loss(seen, clean, torch.tensor(SCALE), own)

    def save(self, path: Path, card: dict) -> None:
        """Write the encoder itself, for `clip.noisy.load`."""
        self.network.card = card
        save(path, self.network)


TRAIN = TrainConfig(images=150_000, batch=128, learning_rate=5e-4, flip=False, ema=0.99)


def noisy_shapes(name_or_path: str, seed: int = 0) -> Recipe:
    """A CLIP's encoder on scenes of the shapes world, on the schedule of the shapes model."""
    model, _ = load(name_or_path, "cpu")
    generator = Generator().manual_seed(400)
    codes = shapes.random_codes(20_000, generator)
    drawn = torch.cat([shapes.render(part, 32, generator)[0] for part in codes.split(256)])
    clean = image_features(model, Preprocess(model.config).normalise((drawn + 1) / 2))
    torch.manual_seed(seed)
    encoder = of_clip(model, NoiseSchedule.linear()).train().requires_grad_()
    encoder.card = {
        "description": "Embeds noisy pictures of shapes where CLIP embeds the clean ones.",
        "data": "20,000 scenes drawn by minidiff.data.shapes, without captions",
        "licence": "MIT, as this project",
        "limits": "It knows the scenes and the schedule of the shapes model alone.",
    }
    data = TrainingSet(images.to_uint8(drawn), {"clean": Column(clean)})
    return Recipe(encoder, data, replace(TRAIN, seed=seed), (), NoisyAgainstClean)
