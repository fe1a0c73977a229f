"""Sampling under Semantic Diffusion Guidance in the shapes world, and what it is worth, measured.

The oracle judges. Every arm starts from the same noise, and each reference is a picture of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from minidiff import metrics
from minidiff.clip.model import CLIP
from minidiff.clip.noisy import NoisyEncoder, of_clip
from minidiff.clip.preprocess import Preprocess
from minidiff.clip.use import image_features, text_features
from minidiff.data import shapes
from minidiff.editing import semantic
from minidiff.evaluation.cards import write_page
from minidiff.evaluation.figure import Figure, share
from minidiff.guidance import classifier
from minidiff.samplers import ddpm_step
from minidiff.schedule import add_noise
from minidiff.zoo import Diffusion

#: Weights of the aims, chosen on seeds that the report does not use.
WEIGHTS = {"text": 1000.0, "content": 4000.0, "structure": 240.0, "style": 20.0}
TIMES = (250, 500, 750, 1000)


def draw(
    model: Diffusion,
    log_prob: semantic.LogProb,
    n: int,
    scale: float = 1.0,
    *,
    steps: int = 50,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """n images (n,3,size,size) on the CPU of the model's null condition, DDPM, towards an aim.

    Image i of a seed starts from the same noise whatever n and the aim; scale 0 is unguided.
    """
    guide = partial(classifier, log_prob=log_prob, scale=scale)
    return model.sample(
        None, n, steps=steps, seed=seed, step=ddpm_step, guide=guide, batch=n, progress=progress
    ).cpu()


# ------------------------------------------------------------------------------------- the figures


def report(model: Diffusion, clip: CLIP, encoder: NoisyEncoder, n: int = 48) -> list[Figure]:
    """The encoder against CLIP's own on noisy images; then each aim against its control."""
    figures = retrieval(clip, encoder)
    scenes = shapes.random_scenes(n, Generator().manual_seed(4000), pairs=0.0)
    pictures, _ = shapes.render(scenes, generator=Generator().manual_seed(4001))
    pictures = pictures.to(encoder.device)
    words = [f"a {s.thing.colour} {s.thing.shape}" for s in scenes]
    arms = {"unguided": draw(model, lambda x, level: x.flatten(1).sum(1), n, 0, seed=4002)}
    for name in ("content", "structure", "style"):
        arms[name] = draw(model, _aim(name, encoder, pictures), n, seed=4002)
    arms["text"] = draw(model, _of_text(encoder, clip, words), n, seed=4002)
    arms["other's"] = draw(model, _aim("content", encoder, pictures.roll(1, 0)), n, seed=4002)
    shared = {name: agreement(scenes, drawn) for name, drawn in arms.items()}
    figures += [
        _difference("content: attributes of the reference", shared, "content", "unguided", 100),
        _difference("control, content of another", shared, "other's", "unguided", 100),
    ]
    off = {name: misplacement(scenes, drawn) for name, drawn in arms.items()}
    for name in ("structure", "content"):
        both = ~(off[name].isnan() | off["unguided"].isnan())
        ratio = off[name][both].mean() / off["unguided"][both].mean()
        note = f"of the unguided distance between the things' cells, {int(both.sum())} read pairs"
        figures.append(Figure(f"{name}: position error", ratio.item(), note=note))
    colours = {name: palette_distance(drawn, pictures.cpu()) for name, drawn in arms.items()}
    figures.append(_difference("style: distance of colours", colours, "style", "unguided", 1))
    for name in ("style", "unguided"):
        same = torch.tensor(
            [
                scene is not None and scene.thing.shape == wanted.thing.shape
                for scene, wanted in zip(shapes.read(arms[name]), scenes, strict=True)
            ]
        )
        figures.append(share(f"{name}: shape of the reference", same, "% of all"))
    said = {name: says(words, drawn) for name, drawn in arms.items()}
    figures.append(_difference("text: colour and shape", said, "text", "unguided", 100))
    return figures


@torch.no_grad()
def retrieval(clip: CLIP, encoder: NoisyEncoder, n: int = 256) -> list[Figure]:
    """How often a noisy image finds its clean one among n, by the encoder, by one that was not
    trained, and by the encoder when it is told another t."""
    codes = shapes.random_codes(n, Generator().manual_seed(4003))
    x0, _ = shapes.render(codes, generator=Generator().manual_seed(4004))
    clean = image_features(clip, Preprocess(clip.config).normalise((x0 + 1) / 2))
    untrained, noise = (
        of_clip(clip, encoder.schedule),
        torch.randn(x0.shape, generator=Generator().manual_seed(4005)),
    )
    figures = []
    for t in TIMES:
        level, wrong = encoder.schedule.level(t), encoder.schedule.level(1)
        x = add_noise(x0, level, noise).to(encoder.device)
        right, before, misled = (
            (F.normalize(see(x, told).embedding.float(), dim=1) @ clean.T).argmax(1).cpu()
            == torch.arange(n)
            for see, told in ((encoder, level), (untrained, level), (encoder, wrong))
        )
        low, high = metrics.bootstrap(right.double() - before.double(), generator=_seeded())
        note = f"% of {n}; not trained {before.double().mean() * 100:.0f} (difference "
        note += f"{100 * low:.0f} to {100 * high:.0f}), told t = 1 "
        note += f"{misled.double().mean() * 100:.0f}"
        figures.append(share(f"noisy images that find their clean one, t = {t}", right, note))
    return figures


def agreement(scenes: Sequence[shapes.Scene], drawn: Tensor) -> Tensor:
    """The share (n,) of background, position, shape, colour and size that pictures have in common
    with scenes of one thing; none where the oracle cannot read or sees two things."""
    wanted, found = shapes.encode(list(scenes)), shapes.read(drawn)
    shared = torch.zeros(len(drawn))
    for i, scene in enumerate(found):
        if scene is not None and scene.other is None:
            code = shapes.encode([scene])[0]
            shared[i] = (code == wanted[i])[[0, 1, 3, 4, 5]].float().mean()
    return shared


def misplacement(scenes: Sequence[shapes.Scene], drawn: Tensor) -> Tensor:
    """How many cells (n,) the things of pictures are from those of scenes; NaN where not read."""
    found = shapes.read(drawn)
    cells = [
        [shapes.POSITIONS.index(s.position) if s else 0 for s in part] for part in (scenes, found)
    ]
    here, there = (torch.tensor(part) for part in cells)
    apart = torch.stack([here // 3 - there // 3, here % 3 - there % 3]).float().norm(dim=0)
    return apart.masked_fill(torch.tensor([s is None for s in found]), torch.nan)


def palette_distance(drawn: Tensor, pictures: Tensor) -> Tensor:
    """How different the colours of pictures (n,3,H,W) are, wherever they stand: (n,), the sliced
    Wasserstein distance of their pixels."""
    directions = F.normalize(torch.randn(16, 3, generator=_seeded()), dim=1)
    along = [(directions @ x.flatten(2)).sort(dim=2).values for x in (drawn, pictures)]
    return (along[0] - along[1]).abs().mean((1, 2))


def says(words: Sequence[str], drawn: Tensor) -> Tensor:
    """Which pictures (n,) show one thing, of the colour and shape in their words; any texture."""
    return torch.tensor(
        [
            scene is not None
            and scene.other is None
            and text == f"a {scene.thing.colour} {scene.thing.shape}"
            for text, scene in zip(words, shapes.read(drawn), strict=True)
        ]
    ).float()


def _aim(name: str, encoder: NoisyEncoder, pictures: Tensor) -> semantic.LogProb:
    return semantic.total((WEIGHTS[name], getattr(semantic, name)(encoder, pictures, _seeded())))


def _of_text(encoder: NoisyEncoder, clip: CLIP, words: Sequence[str]) -> semantic.LogProb:
    return semantic.total((WEIGHTS["text"], semantic.text(encoder, text_features(clip, words))))


def _difference(what: str, values: dict, arm: str, control: str, unit: float) -> Figure:
    """How much more an arm has than its control, seed by seed, with the interval of that."""
    apart = unit * (values[arm] - values[control])
    low, high = metrics.bootstrap(apart, generator=_seeded())
    means = [unit * values[name].mean().item() for name in (arm, control)]
    note = "{:.3g} against {:.3g} unguided".format(*means)
    return Figure(f"{what}, difference", apart.mean().item(), low, high, note)


def _seeded() -> Generator:
    return Generator().manual_seed(4006)


def write_card(path: Path, encoder: NoisyEncoder, figures: list[Figure], command: str) -> None:
    """The card of a noise-aware encoder as Markdown; `command` measured the figures."""
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    network = f"CLIP's image encoder that is told the time, {millions:.2f}M parameters"
    write_page(path, path.stem, network, encoder.card, figures, command)
