"""Cards: what stands beside a shipped model, written by `minidiff evaluate NAME --card FILE`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Generator, Tensor

from minidiff import metrics, plot
from minidiff.data import images, shapes
from minidiff.evaluation.figure import Figure
from minidiff.files import atomic
from minidiff.zoo import Diffusion

TRAINING_IMAGES = {
    "cifar10": lambda: images.to_float(images.cifar10().images),
    "butterflies": lambda: images.split(images.to_float(images.butterflies().images))[0],
}


def line(figure: Figure) -> str:
    """A figure in words: what, value, interval, note."""
    value = f"{figure.value:.3g}" if abs(figure.value) < 10 else f"{figure.value:.1f}"
    if figure.low is not None and figure.high is not None:
        value += f" ({figure.low:.1f} to {figure.high:.1f})"
    return f"{figure.what}: {value} {figure.note}".rstrip()


def write(
    path: str | Path, name: str, model: Diffusion, figures: list[Figure], command: str
) -> None:
    """Write the card as Markdown, and a sheet of samples beside it; `command` measured them."""
    path = Path(path)
    sheet = plot.save(sample_sheet(model), path.with_suffix(".png"))
    millions = sum(p.numel() for p in model.network.parameters()) / 1e6
    network = f"UNet, {millions:.2f}M parameters, {model.size} px, predicts {model.predicts}"
    above = f"""
![samples]({sheet.name})

The sheet is drawn from seed 0; nothing in it is chosen.
"""
    below = ""
    if name in TRAINING_IMAGES:
        nearest = path.with_name(f"{path.stem}_neighbours.png")
        plot.save(neighbour_sheet(model, TRAINING_IMAGES[name]()), nearest)
        below = f"\n![samples and their nearest training images]({nearest.name})\n"
    write_page(path, name, network, model.card, figures, command, above, below)


def write_page(
    path: Path,
    name: str,
    network: str,
    card: dict,
    figures: list[Figure],
    command: str,
    above: str = "",
    below: str = "",
) -> None:
    """The Markdown that all cards share; `above` the table and `below` the figures stand pictures.

    `card` is what training wrote down, `network` its sizes in words.
    """
    rows = "\n".join(f"- {line(figure)}" for figure in figures)
    text = f"""# {name}

{card["description"]}
{above}
| | |
|---|---|
| network | {network} |
| data | {card["data"]} |
| licence of the data | {card["licence"]} |
| trained by | `{card["command"]}` |
| images seen | {card["images_seen"]:,} |
| time | {card["minutes"]:.0f} minutes on {card["machine"]} |

## Measured

By `{command}`; intervals are 95%.

{rows}
{below}
## Limits

{card["limits"]}
"""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def neighbour_sheet(model: Diffusion, train: Tensor) -> Image.Image:
    """Samples of seed 0, above the training images (N,3,H,W) nearest to them in pixels."""
    names = getattr(model.encoder, "names", None)
    drawn = model.sample(names[:8], scale=2) if names else model.sample([None] * 8)
    drawn = drawn.cpu()
    _, index = metrics.nearest_neighbours(drawn, train, flip=True)
    return plot.rows([("samples", drawn), ("nearest\ntraining images", train[index[:, 0]])])


def sample_sheet(model: Diffusion) -> Image.Image:
    """Samples of seed 0: a row a class, captions (the card's examples, or random ones of the shapes
    world), or just images."""
    if names := getattr(model.encoder, "names", None):
        drawn = model.sample([n for n in names for _ in range(8)], scale=2)
        return plot.grid(drawn.cpu(), columns=8, row_labels=names)
    if model.encoder is None:
        return plot.grid(model.sample(n=32).cpu(), columns=8)
    captions = model.card.get("examples")
    if captions is None:
        captions = shapes.captions(shapes.random_scenes(32, Generator().manual_seed(0)))
    drawn = model.sample(captions, scale=3)
    return plot.grid(drawn.cpu(), captions, columns=8)
