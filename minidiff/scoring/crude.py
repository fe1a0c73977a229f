"""Crude pictures of scenes, as a hand might draw them, and holes that cut things in two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from minidiff.data import shapes
from minidiff.editing import masks, strokes
from minidiff.scoring.measures import centre

RADIUS = 6.2 / 32  # of a large thing
KINDS = ("box", "half", "lines", "every other pixel", "irregular")


def drawn_by_hand(scenes: Sequence[shapes.Scene], generator: Generator) -> Tensor:
    """Flat polygons (n,3,32,32): corners, place and colours are off, there is no shadow."""
    return torch.cat([_drawn(scene, generator) for scene in scenes])


def _drawn(scene: shapes.Scene, generator: Generator) -> Tensor:
    luck = torch.randn(32, 2, generator=generator)
    ground, ink = (
        (torch.tensor(_rgb(value)) + 0.08 * luck[i, 0]).clamp(-1, 1)
        for i, value in enumerate(
            (
                shapes.BACKGROUND_VALUES[scene.background],
                shapes.COLOUR_VALUES[scene.thing.colour],
            )
        )
    )
    cell = shapes.POSITIONS.index(scene.position)
    middle = torch.tensor([(1 + cell % 3) / 4, (1 + cell // 3) / 4])
    middle = middle + (luck[2] * 0.03).clamp(-0.05, 0.05)
    corners = torch.tensor(_outline(scene.thing.shape))
    corners = middle + RADIUS * (corners + 0.12 * luck[3 : 3 + len(corners)].clamp(-2, 2))
    flat = ground.reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    picture, _ = strokes.paint(flat, [(corners.tolist(), tuple(ink.tolist()))])
    if scene.thing.shape == "ring":
        hole = middle + 0.45 * RADIUS * torch.tensor(_ngon(6))
        picture, _ = strokes.paint(picture, [(hole.tolist(), tuple(ground.tolist()))])
    return picture


def _rgb(value: str) -> list[float]:
    return [int(value[i : i + 2], 16) / 127.5 - 1 for i in (1, 3, 5)]


def _ngon(corners: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """Corners of a regular polygon, the first on top; every second one at `inner`."""
    turns = [2 * math.pi * k / corners for k in range(corners)]
    radii = [1.0 if k % 2 == 0 else inner for k in range(corners)]
    return [(r * math.sin(a), -r * math.cos(a)) for a, r in zip(turns, radii, strict=True)]


def _outline(shape: str) -> list[tuple[float, float]]:
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0, -1.0), (1.05, 0.9), (-1.05, 0.9)]
    if shape == "star":
        return _ngon(10, 0.5)
    if shape == "heart":
        return [(0, 1), (-1, -0.1), (-0.6, -0.8), (0, -0.45), (0.6, -0.8), (1, -0.1)]
    return _ngon(7)  # circles and rings


def holes(images: Tensor, things: Tensor, generator: Generator) -> Tensor:
    """Masks (n,1,32,32), 1 = keep, of the KINDS in turn; each hides about half of the thing."""
    middles = (centre(images) + 0.5) / 32
    rows = zip(things, middles.tolist(), strict=True)
    return torch.cat([_hole(i % len(KINDS), *row, generator) for i, row in enumerate(rows)])


def _hole(kind: int, thing: Tensor, middle: list[float], generator: Generator) -> Tensor:
    x, y = middle
    if kind == 0:
        return masks.box(32, max(y - 0.25, 0), x, min(y + 0.25, 1), min(x + 0.3, 1))
    if kind == 1:
        return masks.box(32, 0, x, 1, 1)
    if kind == 2:
        return masks.lines(32)
    if kind == 3:
        return masks.every_other_pixel(32)
    tried = masks.irregular(32, 30, generator=generator)
    hidden = ((1 - tried) * thing).flatten(1).sum(1) / thing.sum()
    return tried[(hidden - 0.5).abs().argmin()][None]
