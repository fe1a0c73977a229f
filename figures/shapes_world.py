"""Draw figures/shapes_world.png: the shapes world at a glance, pictures above their captions.

python figures/shapes_world.py [FILE]
"""

import sys
import textwrap
from pathlib import Path

import matplotlib
import torch

from minidiff.data.shapes import Scene, Thing, caption, render

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of backend

SCENES = [
    Scene(Thing("heart", "red"), "centre", "cream"),
    Scene(Thing("star", "yellow", "small"), "top right", "navy"),
    Scene(Thing("ring", "blue"), "bottom left", "white"),
    Scene(Thing("triangle", "green", texture="striped"), "bottom", "lavender"),
    Scene(Thing("circle", "orange", texture="dotted"), "left", "mint"),
    Scene(Thing("square", "purple", "small"), "right", "grey"),
    Scene(Thing("circle", "red"), "centre", "white", "left of", Thing("square", "blue")),
    Scene(Thing("star", "pink"), "bottom", "navy", "left of", Thing("ring", "cyan", "small")),
    Scene(Thing("circle", "yellow"), "right", "lavender", "above", Thing("heart", "purple")),
    Scene(Thing("triangle", "orange", "small"), "top", "mint", "left of", Thing("heart", "blue")),
    Scene(Thing("ring", "green"), "left", "cream", "above", Thing("star", "red", "small")),
    Scene(
        *(Thing("square", "cyan", texture="striped"), "centre", "grey"),
        *("above", Thing("circle", "pink", texture="dotted")),
    ),
]


def main(path: Path) -> None:
    images, _ = render(SCENES, generator=torch.Generator().manual_seed(1))
    figure, axes = plt.subplots(2, 6, figsize=(12, 5.5))
    for axis, image, scene in zip(axes.flat, images, SCENES, strict=True):
        axis.imshow((image.permute(1, 2, 0) + 1) / 2, interpolation="nearest")
        text = "\n".join(textwrap.wrap(caption(scene), 30))
        axis.text(
            *(0, -0.05, text),
            **dict(transform=axis.transAxes, va="top", fontsize=8.5, color="#333333"),
        )
        axis.axis("off")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.13, wspace=0.06, hspace=0.3)
    figure.savefig(path, dpi=130, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
