"""How the shipped models were trained, and how to train one on your own pictures."""

from minidiff.recipes.diffusion import butterflies, captioned_shapes, cifar10, emoji, folder
from minidiff.recipes.recipe import SMALL, Recipe, start_from

__all__ = [
    "SMALL",
    "Recipe",
    "butterflies",
    "captioned_shapes",
    "cifar10",
    "emoji",
    "folder",
    "start_from",
]
