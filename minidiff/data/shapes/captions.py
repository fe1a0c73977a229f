"""Captions: what is said of a scene, and whether it is true of one."""

import re

import torch
from torch import Tensor
from tqdm import tqdm

from minidiff.data.shapes.drawing import render
from minidiff.data.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    decode,
    random_codes,
)

MIRRORED = {"right of": "left of", "below": "above"}  # how a caption may turn a relation around
TURNED = {there: here for here, there in MIRRORED.items()}

#: Every word a caption can contain.
WORDS = tuple(
    dict.fromkeys(
        " ".join(
            ("a", "an", "at", "the", "on", "background", *SIZES, *TEXTURES[1:], *COLOURS, *SHAPES)
            + (*RELATIONS, *MIRRORED, *POSITIONS, *BACKGROUNDS)
        ).split()
    )
)


def caption(scene: Scene, generator: torch.Generator | None = None) -> str:
    """Describe a scene. Colours, shapes, textures and the relation are always said (a thing
    without a texture word is plain); without a generator all the rest too: then the caption
    determines the scene. The generator leaves out sizes, position and background at random and
    may name the other thing first."""
    return captions([scene], generator)[0]


def captions(scenes: list[Scene], generator: torch.Generator | None = None) -> list[str]:
    """One caption for each scene, as `caption` gives it."""
    if generator is None:
        return [_describe(scene, (0, 0, 0, 0, 1)) for scene in scenes]
    luck = torch.rand(len(scenes), 5, generator=generator, device=generator.device).tolist()
    return [_describe(scene, row) for scene, row in zip(scenes, luck, strict=True)]


def _describe(scene: Scene, luck: tuple[float, ...] | list[float]) -> str:
    said = [value < 0.65 for value in luck]
    words = _name(scene.thing, said[0])
    if scene.other is not None:
        other = _name(scene.other, said[1])
        if luck[4] < 0.5:
            words = f"{other} {TURNED[scene.relation]} {words}"
        else:
            words = f"{words} {scene.relation} {other}"
    if said[2]:
        words += f" at the {scene.position}"
    if said[3]:
        words += f" on a {scene.background} background"
    return words


def _name(thing: Thing, with_size: bool) -> str:
    texture = thing.texture if thing.texture != "plain" else ""
    words = " ".join(filter(None, [with_size and thing.size, texture, thing.colour, thing.shape]))
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


_A_THING = (
    rf"an? (?:({'|'.join(SIZES)}) )?(?:({'|'.join(TEXTURES[1:])}) )?"
    rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
)
_CAPTION = re.compile(
    rf"{_A_THING}(?: ({'|'.join((*RELATIONS, *MIRRORED))}) {_A_THING})?"
    rf"(?: at the ({'|'.join(POSITIONS)}))?(?: on a ({'|'.join(BACKGROUNDS)}) background)?"
)


def holds(caption: str, scene: Scene) -> bool:
    """Whether all that a caption says is true of a scene. What it leaves out is free, but it
    names every thing, and a thing without a texture word is plain."""
    match = _CAPTION.fullmatch(caption)
    if match is None:
        raise ValueError(f"not a caption of the shapes world: {caption!r}")
    *_, position, background = said = match.groups()
    first, relation, second = said[:4], said[4], said[5:9]
    if relation in MIRRORED:
        first, relation, second = second, MIRRORED[relation], first
    return (
        relation == scene.relation
        and position in (None, scene.position)
        and background in (None, scene.background)
        and _is(scene.thing, first)
        and (scene.other is None or _is(scene.other, second))
    )


def _is(thing: Thing, said: tuple[str | None, ...]) -> bool:
    size, texture, colour, shape = said
    exact = thing == Thing(shape, colour, thing.size, texture or "plain")
    return exact and size in (None, thing.size)


def captioned(
    n: int, generator: torch.Generator, size: int = 32, seen_only: bool = True
) -> tuple[Tensor, list[str]]:
    """A training set: images (n, 3, size, size) uint8 and one random caption for each.

    With `seen_only` no thing has a (colour, shape) of HELD_OUT.
    """
    codes = random_codes(n, generator, held_out=False if seen_only else None)
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    starts = range(0, n, 256)
    for start in tqdm(starts, desc="drawing scenes", unit="batch", delay=1, disable=None):
        drawn, _ = render(codes[start : start + 256], size, generator)
        images[start : start + 256] = ((drawn + 1) * 127.5).round().to(torch.uint8)
    return images, captions(decode(codes), generator)
