"""Sampling under a classifier of noisy images, and what that is worth, measured.

The base is a model's null condition. What judges never guides: of shapes it is the oracle, of
CIFAR-10 the classifier of sharp pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from minidiff.data import images, shapes
from minidiff.denoiser import network_time
from minidiff.evaluation.cards import write_page
from minidiff.evaluation.classifier import load_classifier
from minidiff.evaluation.figure import Figure, share
from minidiff.guidance import classifier
from minidiff.noisy_classifier import NoisyClassifier
from minidiff.recipes.noisy_classifier import HEADS, UNKNOWN, scene_labels
from minidiff.samplers import Step, ddpm_step
from minidiff.schedule import add_noise
from minidiff.zoo import Diffusion

TIMES = (1, 100, 250, 500, 750, 1000)
SCALES = (0, 1, 3, 10)


def draw(
    model: Diffusion,
    judge: NoisyClassifier,
    prompts: Sequence[str],
    scale: float = 3.0,
    *,
    steps: int = 50,
    step: Step = ddpm_step,
    seed: int = 0,
    batch: int = 32,
    progress: bool = True,
) -> Tensor:
    """One image for each prompt, (n, 3, size, size) on the CPU, of the model's null condition
    guided by the classifier (Dhariwal and Nichol 2021, algorithm 1).

    Image i of a seed is the same whatever the batch; scale 0 is unguided. ValueError for a prompt
    that the classifier does not know, and for one of another schedule or size than the model's.
    """
    from tqdm.auto import tqdm

    if model.schedule != judge.schedule or model.size != judge.size:
        raise ValueError("the classifier was trained on another schedule or size than the model's")
    judge.log_prob(prompts)  # refuses what it does not know
    n, done = len(prompts), []
    for first in tqdm(range(0, n, batch), desc="sampling", unit="batch", disable=not progress):
        rows = range(first, min(first + batch, n))
        log_prob = judge.log_prob([prompts[i] for i in rows])
        guide = partial(classifier, log_prob=log_prob, scale=scale)
        how = {"steps": steps, "seed": seed, "step": step, "guide": guide}
        done.append(model.sample(None, n, **how, batch=batch, only=rows).cpu())
    return torch.cat(done)


def shows(judge: NoisyClassifier, prompts: Sequence[str], drawn: Tensor) -> Tensor:
    """Which images (n,3,H,W) show what their prompts say, by the independent judge: (n,) bool."""
    wanted = [judge.labels(prompt) for prompt in prompts]
    if "class" in judge.heads:
        says = load_classifier()(drawn.clamp(-1, 1)).argmax(1).tolist()
        return torch.tensor([w["class"] == found for w, found in zip(wanted, says, strict=True)])
    hits = []
    for said, scene in zip(wanted, shapes.read(drawn), strict=True):
        found = [UNKNOWN] * len(HEADS)  # what the oracle cannot read shows nothing
        if scene is not None:
            found = scene_labels(shapes.encode([scene]))[0].tolist()
        has = dict(zip(HEADS, found, strict=True))
        hits.append(all(has[head] == value for head, value in said.items()))
    return torch.tensor(hits)


def spread(drawn: Tensor, groups: Sequence[str]) -> float:
    """How different images (n,3,H,W) of one prompt are: mean root mean square distance of two."""
    apart = []
    for group in dict.fromkeys(groups):
        own = drawn[[i for i, g in enumerate(groups) if g == group]].flatten(1)
        apart.append(torch.pdist(own).mean() / own.shape[1] ** 0.5)
    return torch.stack(apart).mean().item()


# ------------------------------------------------------------------------------------- the figures


def report(
    model: Diffusion,
    judge: NoisyClassifier,
    control: NoisyClassifier | None = None,
    n: int = 1000,
    guided: int = 96,
) -> list[Figure]:
    """Accuracy against the noise level, then guidance at SCALES: target rate and diversity.

    Everything on pictures and seeds that neither training nor calibration has seen; `control` is a
    classifier that was trained on exchanged labels.
    """
    figures = accuracy(judge, n)
    prompts = targets(judge, guided)
    how = f"{guided} images, DDPM, 50 steps"
    for name, guide in (("", judge), ("control, labels exchanged in training: ", control)):
        for scale in SCALES if guide is judge else SCALES[-1:]:
            if guide is None:
                continue
            drawn = draw(model, guide, prompts, scale, seed=3000)
            what = f"{name}target rate at scale {scale}"
            figures.append(share(what, shows(judge, prompts, drawn), f"% by the judge; {how}"))
            note = "mean distance of two images of one target"
            figures.append(
                Figure(f"{name}diversity at scale {scale}", spread(drawn, prompts), note=note)
            )
    return figures


def targets(judge: NoisyClassifier, n: int) -> list[str]:
    """n prompts to aim at, twelve of each: classes, or a colour and a shape of the seen pairs."""
    if "class" in judge.heads:
        names = judge.heads["class"]
    else:
        scenes = shapes.random_scenes(max(n // 12, 1), Generator().manual_seed(3001), pairs=0.0)
        names = [f"{scene.thing.colour} {scene.thing.shape}" for scene in scenes]
    return [names[i % len(names)] for i in range(n)]


@torch.no_grad()
def accuracy(judge: NoisyClassifier, n: int) -> list[Figure]:
    """How often each head is right on n unseen images, at t = 500 and in the note at all TIMES;
    beside it a blind copy, that is always told t = 1."""
    x0, labels = _unseen(judge, n)
    noise = torch.randn(x0.shape, generator=Generator().manual_seed(3003))
    levels = [judge.schedule.level(t) for t in TIMES]
    noisy = [add_noise(x0, level, noise).to(judge.device) for level in levels]
    told = torch.stack([_says(judge, *pair) for pair in zip(noisy, levels, strict=True)])
    blind = torch.stack([_says(judge, x, levels[0]) for x in noisy])  # (times, n, heads)
    figures = []
    for i, head in enumerate(judge.heads):
        known = labels[:, i] != UNKNOWN
        wanted = labels[known, i]
        right, blindly = ((says[:, known, i] == wanted) for says in (told, blind))
        most = 100 * wanted.bincount().max() / len(wanted)
        note = f"%; at t = {', '.join(map(str, TIMES))}: {_percents(right)}; a blind copy: "
        note += f"{_percents(blindly)}; the most common class: {most:.0f}"
        figures.append(share(f"{head} right at t = 500", right[TIMES.index(500)], note))
    return figures


def _percents(right: Tensor) -> str:
    return ", ".join(f"{100 * share:.0f}" for share in right.float().mean(1).tolist())


def _says(judge: NoisyClassifier, x: Tensor, level) -> Tensor:
    """The classes (n, heads) that are found likeliest at a level, whichever the images have."""
    parts = [judge(part, network_time(part, level)) for part in x.split(250)]
    return torch.cat(
        [torch.stack([p.argmax(1) for p in part.values()], dim=1) for part in parts]
    ).cpu()


def _unseen(judge: NoisyClassifier, n: int) -> tuple[Tensor, Tensor]:
    """n images (n,3,H,W) that training has not seen, and their labels (n, heads)."""
    if "class" in judge.heads:
        test = images.cifar10(train=False)
        return images.to_float(test.images[:n]), test.labels[:n, None]
    generator = Generator().manual_seed(3002)
    codes = shapes.random_codes(n, generator)
    return shapes.render(codes, judge.size, generator)[0], scene_labels(codes)


def write_card(path: Path, judge: NoisyClassifier, figures: list[Figure], command: str) -> None:
    """The card of a noisy classifier as Markdown; `command` measured the figures."""
    millions = sum(p.numel() for p in judge.parameters()) / 1e6
    network = f"UNet's way down and attention pooling, {millions:.2f}M parameters, {judge.size} px"
    write_page(path, path.stem, network, judge.card, figures, command)
