"""Train a diffusion model from scratch and sample from it, in one page: python examples/train.py

A plain loop on the shapes world with the public functions; `minidiff train` adds resumption,
averaging over processes and previews.
"""

import copy
import os

import torch

from minidiff import Diffusion, NoiseSchedule, UNet, UNetConfig, denoising_loss, plot
from minidiff.data import shapes
from minidiff.device import autocast, best_device, place
from minidiff.text import ClassLabels

STEPS, BATCH = int(os.environ.get("STEPS", 3000)), 64
device = best_device()
generator = torch.Generator().manual_seed(0)
torch.manual_seed(0)

# data: pictures of one thing each, labelled by its shape; one label in ten is dropped
scenes = shapes.random_scenes(5000, generator, pairs=0.0)
pictures = shapes.render(scenes, 32, generator)[0].to(device)  # (N,3,32,32) in [-1, 1]
labels = torch.tensor([shapes.SHAPES.index(scene.thing.shape) for scene in scenes], device=device)
encoder = ClassLabels(shapes.SHAPES)  # the label after the last one is "no class"

# model: a small UNet that predicts v on the cosine schedule
config = UNetConfig(
    channels=64, multipliers=(1, 2, 2), blocks=1, head_dim=32, patch=2, classes=len(shapes.SHAPES)
)
network = place(UNet(config), device)
schedule = NoiseSchedule.cosine()
average = copy.deepcopy(network).eval().requires_grad_(False)
optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4)

for step in range(STEPS):
    index = torch.randint(len(pictures), (BATCH,), generator=generator)
    x0, label = pictures[index], labels[index]
    label = torch.where(torch.rand(BATCH, device=device) < 0.1, len(shapes.SHAPES), label)
    t = torch.randint(1, schedule.T + 1, (BATCH,), device=device)
    noise = torch.randn_like(x0)
    with autocast(device):
        loss = denoising_loss(network, x0, schedule.level(t), noise, encoder(label), predicts="v")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    decay = min(0.999, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    if step % 100 == 0:
        print(f"step {step:5}  loss {loss.item():.4f}", flush=True)

model = Diffusion(average, schedule, "v", (3, 32, 32), encoder)
model.save("runs/example/model.safetensors")  # minidiff sample --model runs/example star
names = [name for name in shapes.SHAPES for _ in range(4)]
plot.save(
    plot.grid(model.sample(names, scale=2, steps=30).cpu(), names), "runs/example/samples.png"
)
