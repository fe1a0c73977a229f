"""Lesson 02, the UNet: checks of its exercises, and its longer pictures."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor, nn

from minidiff import plot
from minidiff.data import shapes
from minidiff.denoiser import as_denoiser, denoising_loss
from minidiff.lessons import exercise, expect, require
from minidiff.schedule import NoiseLevel, NoiseSchedule, add_noise
from minidiff.unet import UNetConfig
from minidiff.zoo import Diffusion, to_diffusers

# -------------------------------------------------------------------------------------- training

SCHEDULE = NoiseSchedule.cosine()


@functools.cache
def pictures() -> Tensor:
    """The small task: (512, 3, 16, 16), one thing each. The first 64 are held out."""
    scenes = shapes.random_scenes(512, torch.Generator().manual_seed(0), pairs=0.0)
    return shapes.render(scenes, size=16)[0]


def _test_noise() -> Tensor:
    return torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_loss(network: nn.Module) -> float:
    """The loss of v on the held-out pictures, at 64 levels."""
    level = SCHEDULE.level(torch.arange(64) * 1000 // 64 + 8)
    return denoising_loss(network, pictures()[:64], level, _test_noise(), predicts="v").item()


def train(network: nn.Module, seed: int, steps: int) -> list[float]:
    """Teach the network v on the small task; the held-out loss before, and every twenty steps."""
    generator, training = torch.Generator().manual_seed(seed), pictures()[64:]
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=3e-3), [test_loss(network)]
    for step in range(1, steps + 1):
        x0 = training[torch.randint(len(training), (16,), generator=generator)]
        t = torch.randint(1, SCHEDULE.T + 1, (16,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        loss = denoising_loss(network, x0, SCHEDULE.level(t), noise, predicts="v")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            losses.append(test_loss(network))
    return losses


@torch.no_grad()
def one_call_of(
    model: Diffusion, caption: str, x0: Tensor, noise: Tensor, ts: Sequence[int]
) -> Image.Image:
    """x0 (1, 3, H, W) under the noise at the times ts, and what one call makes of each."""
    levels, denoise = [model.schedule.level(t) for t in ts], model.denoiser(caption)
    noisy = [add_noise(x0, level, noise) for level in levels]
    found = [denoise(x, level).x0.clamp(-1, 1) for x, level in zip(noisy, levels, strict=True)]
    table = [("noisy x_t", torch.cat(noisy)), ("x0 by the\nnetwork", torch.cat(found))]
    return plot.rows(table, column_labels=[f"t = {t}" for t in ts]).reduce(2)


@torch.no_grad()
def told(
    model: Diffusion, caption: str, x: Tensor, level: NoiseLevel, times: Sequence[int]
) -> Image.Image:
    """x0 from x at `level`, when the network is told that it is at other times."""
    condition, found = model.condition([caption]), []
    for t in times:
        v = model.run(x, torch.tensor([t - 1], device=x.device), condition)
        found.append((level.alpha * x - level.sigma * v).clamp(-1, 1))
    label = f"x0, when\nt is {level.t}"
    columns = [f"told t = {t}" for t in times]
    return plot.rows([(label, torch.cat(found))], column_labels=columns).reduce(2)


@torch.no_grad()
def one_call(networks: Mapping[str, nn.Module], number: int = 3) -> Image.Image:
    """x0 of a held-out picture by each network, from one call at each of five times."""
    x0, noise = pictures()[number : number + 1], _test_noise()[number : number + 1]
    levels = [SCHEDULE.level(t) for t in (100, 300, 500, 700, 900)]
    noisy = [add_noise(x0, level, noise) for level in levels]
    table = [("x_t", torch.cat(noisy))]
    for name, network in networks.items():
        denoise = as_denoiser(network, predicts="v")
        found = [denoise(x, level).x0 for x, level in zip(noisy, levels, strict=True)]
        table.append((name, torch.cat(found).clamp(-1, 1)))
    table.append(("the truth", x0.expand(len(levels), -1, -1, -1)))
    return plot.rows(table, column_labels=[f"t = {level.t}" for level in levels]).reduce(2)


CONFIG = UNetConfig(  # of the library's network that the lesson writes again
    channels=16, multipliers=(1, 2), blocks=1, attention=(1,), groups=8, dropout=0.0
)


def assert_equal(mine: nn.Module, theirs: nn.Module, *inputs: object) -> None:
    """Shake their weights, so that none is zero; take them over; the outputs must agree."""
    with torch.no_grad():
        for p in theirs.parameters():
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
            p += 0.1 * noise
        mine.load_state_dict(theirs.state_dict())
        ours, wanted = mine(*inputs), theirs(*inputs)
    gap = (ours - wanted).abs().max()
    print(f"{type(mine).__name__}: values of size {wanted.std():.2f}, off by {gap:.0e}")
    assert wanted.std() > 0.05 and torch.allclose(ours, wanted, atol=1e-5, rtol=1e-4)


class Stack(nn.Sequential):
    """Layers on top of each other; called as a network is, but the time is not looked at."""

    def forward(self, x: Tensor, t: Tensor, condition: None = None) -> Tensor:
        return super().forward(x)


# ----------------------------------------------------------------------------------------- checks


@exercise
def check_attention(answer: Callable) -> str:
    """answer(q, k, v) -> (B, d, N) for q (B, d, N), k and v (B, d, M)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, n, generator=generator) for n in (6, 9, 9))
    scores = q.transpose(1, 2) @ k  # (B, N, M)

    def from_scores(scores: Tensor, axis: int = -1) -> Tensor:
        return v @ scores.softmax(axis).transpose(1, 2)

    raw = v @ (scores / 2).transpose(1, 2)
    expect(
        answer(q, k, v),
        from_scores(scores / 2),
        "scores are q^T k / sqrt(d) of shape (B, N, M), and the softmax runs over M",
        known=[
            (from_scores(scores), "the scores are not divided by sqrt(d): the softmax is too hard"),
            (from_scores(scores / 4), "divide by sqrt(d), not by d: the softmax is too soft"),
            (
                from_scores(scores / math.sqrt(6)),
                "that divides by the root of the number of pixels: d is the number of channels",
            ),
            (
                from_scores(scores / 2, axis=1),
                "the softmax runs over the queries: a pixel's weights over what it looks at must "
                "sum to 1, so it runs over the last axis of the scores",
            ),
            (raw, "the softmax is missing: weights must be positive and sum to 1"),
        ],
    )
    return "every pixel takes a weighted mean of the values"


@exercise
def check_join(answer: Callable) -> str:
    """answer(h, skips) -> h with the last of skips behind it, which leaves the list."""
    h = torch.full((2, 3, 4, 4), 5.0)
    skips = [torch.full((2, 2, 4, 4), float(i)) for i in range(3)]
    left = list(skips)
    found = answer(h, left)
    joined = {i: torch.cat([h, skip], dim=1) for i, skip in enumerate(skips)}
    expect(
        found,
        joined[2],
        "concatenate along the channels, axis 1",
        known=[
            (
                joined[0],
                "that is the first skip: the way up begins where the way down ended, so the one "
                "kept last is the one of the same size",
            ),
            (
                torch.cat([skips[2], h], dim=1),
                "h comes first: the order is part of what the weights have learnt",
            ),
        ],
    )
    require(
        len(left) == 2 and left[0] is skips[0] and left[1] is skips[1],
        "the skip is still in the list: the next block would be given the same one again",
    )
    return "skips are a stack: the last one kept is the first one used"


@exercise
def check_reach(answer: Callable) -> str:
    """answer(layers) -> how many pixels to each side, for layers (kernel, stride) in order."""
    layers = [(3, 1), (3, 2), (5, 1), (3, 2), (3, 1)]
    every, after, flat, wide, step = 0.0, 0.0, 0.0, 0.0, 1
    for kernel, stride in layers:
        every += (kernel - 1) / 2 * step
        wide += (kernel - 1) * step
        flat += (kernel - 1) / 2
        step *= stride
        after += (kernel - 1) / 2 * step
    expect(
        answer(layers),
        every,
        "add (kernel - 1)/2 times the strides of all the layers before",
        known=[
            (flat, "after a layer of stride 2 a step is two pixels wide: strides are left out"),
            (after, "a layer's own stride counts only for the layers that come after it"),
            (wide, "that is the full width: to one side it is (kernel - 1)/2"),
            (2 * every + 1, "that is the full width: asked is the number of pixels to one side"),
            (
                sum((k - 1) / 2 * s for k, s in layers),
                "strides multiply up: take the product over all the layers before",
            ),
        ],
    )
    return "each halving doubles what every later layer reaches"


# --------------------------------------------------------------------------------------- pictures


def loss_curves(losses: Mapping[str, Sequence[Sequence[float]]], every: int = 20) -> None:
    """A line for each name: the mean over its runs, and a band from the least to the greatest."""
    figure, axis = plt.subplots(figsize=(8, 3.4))
    for name, runs in losses.items():
        y = torch.tensor(runs)  # (seeds, points)
        x = range(0, every * y.shape[1], every)
        line = axis.plot(x, y.mean(0), label=name)[0]
        axis.fill_between(x, y.amin(0), y.amax(0), color=line.get_color(), alpha=0.2, lw=0)
    title = f"loss on held-out pictures: mean and range of {len(y)} seeds"
    axis.set(title=title, xlabel="step", yscale="log")
    axis.legend(fontsize=9)
    plt.show()


def time_pattern(table: Tensor) -> None:
    """The table (T, d) of waves, and the likeness of every time to three of them."""
    unit = torch.nn.functional.normalize(table, dim=1)
    times = [len(table) // 10, len(table) // 2, 9 * len(table) // 10]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.8), width_ratios=(3, 2))
    left.imshow(table.T, aspect="auto", cmap="RdBu", interpolation="none")
    left.set(title="waves(t): sines above, cosines below", xlabel="t", ylabel="channel")
    right.plot(unit @ unit[times].T, label=[f"t = {t}" for t in times])
    right.set(title="likeness (cosine) to one time", xlabel="t", ylim=(0, 1.35))
    right.legend(fontsize=9, ncols=3, loc="upper center")
    plt.show()


def who_looks_where(probs: Tensor, x0: Tensor) -> Image.Image:
    """Self-attention (N, N) of an 8 x 8 map, for six pixels that ask, over the picture x0."""
    asking = [(2, 2), (3, 3), (4, 4), (5, 5), (6, 2), (2, 6)]  # row, column
    looks = probs.reshape(8, 8, 8, 8)  # (row, column) looks at (row, column)
    looks = torch.stack([looks[row, column] for row, column in asking])
    under = x0.repeat(len(asking), 1, 1, 1)
    for image, (row, column) in zip(under, asking, strict=True):
        square = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        square[:] = torch.tensor([1.0, 1.0, -1.0], device=x0.device)[:, None, None]
    over = plot.heatmap_over(x0.expand(len(asking), -1, -1, -1), looks)
    return plot.rows([("who asks\n(yellow)", under), ("where it looks", over)]).reduce(2)


SILENT = ("a", "an", "at", "the", "on", "of")  # words that say nothing by themselves


def word_maps(probs: Tensor, words: Sequence[str], x0: Tensor) -> Image.Image:
    """Cross-attention (N, L) of a square map: where each word that says something is looked for."""
    said = [word for word in words if word not in SILENT]
    return plot.grid(_maps(probs, words, x0, said), said, columns=6).reduce(2)


def frame(probs: Tensor, words: Sequence[str], x0: Tensor, noisy: Tensor) -> Image.Image:
    """The noisy picture, and where five of the words are looked for in what it implies."""
    said = [word for word in dict.fromkeys(words) if word not in SILENT]
    said = [said[i * (len(said) - 1) // 4] for i in range(5)]
    shown = torch.cat([noisy.clamp(-1, 1), _maps(probs, words, x0, said)])
    return plot.grid(shown, ["x_t", *said]).reduce(3)


def _maps(probs: Tensor, words: Sequence[str], x0: Tensor, said: Sequence[str]) -> Tensor:
    """Pictures (len(said), 3, H, W): x0 in grey under the attention to each word of `said`."""
    left, at = list(words), []
    for word in said:  # a word said twice is two tokens
        at.append(left.index(word))
        left[at[-1]] = ""
    side = math.isqrt(len(probs))
    maps = probs.T[at].reshape(-1, side, side)
    return plot.heatmap_over(x0.expand(len(said), -1, -1, -1), maps)


def self_off(level: NoiseLevel, site: str, value: Tensor) -> Tensor:
    """A tap: every pixel looks at itself alone."""
    itself = torch.eye(value.shape[-1], device=value.device, dtype=value.dtype)
    return itself.expand_as(value) if site.endswith("self.probs") else value


def cross_off(level: NoiseLevel, site: str, value: Tensor) -> Tensor:
    """A tap: every pixel looks at all words alike."""
    return torch.full_like(value, 1 / value.shape[-1]) if site.endswith("cross.probs") else value


def influence_maps(maps: Mapping[str, Tensor]) -> None:
    """Influences (H, W), each on a scale of powers of ten below its maximum."""
    figure, axes = plt.subplots(1, len(maps), figsize=(9, 2.9))
    for axis, (name, influence) in zip(axes, maps.items(), strict=True):
        powers = (influence / influence.max() + 1e-12).log10()
        drawn = axis.imshow(powers, vmin=-6, vmax=0, cmap="inferno")
        axis.set(title=name, xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes, label="power of ten")
    plt.show()


def diffusers_gap(network: nn.Module, x: Tensor, t: Tensor) -> float | None:
    """The largest difference of diffusers' UNet2DModel with the same weights; None without it."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        to_diffusers(Diffusion(network, SCHEDULE, "v", tuple(x.shape[1:])), folder)
        other = UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)
        return (other(x, t).sample - network(x, t)).abs().max().item()
