"""How the shipped models were trained, and how to train one on your own pictures."""

from minidiff.recipes.diffusion import (
    SMALL,
    Recipe,
    butterflies,
    captioned_shapes,
    cifar10,
    emoji,
    folder,
)

__all__ = ["SMALL", "Recipe", "butterflies", "captioned_shapes", "cifar10", "emoji", "folder"]
