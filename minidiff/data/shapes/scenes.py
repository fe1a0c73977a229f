"""Scenes: what is in a picture, as words (`Scene`) and as indices, and scenes drawn at random."""

from dataclasses import astuple, dataclass

import torch
from torch import Tensor

COLOUR_VALUES = {
    "red": "#cf2338",
    "orange": "#f58a1f",
    "yellow": "#fad03c",
    "green": "#2f9e57",
    "cyan": "#2cc3d6",
    "blue": "#2a5fd0",
    "purple": "#7a3aa5",
    "pink": "#f57fb8",
}
BACKGROUND_VALUES = {
    "white": "#f6f4ef",
    "grey": "#8f97a3",
    "cream": "#f3dfb0",
    "mint": "#c0e8d2",
    "lavender": "#cdbdf2",
    "navy": "#222a4c",
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")
COLOURS = tuple(COLOUR_VALUES)
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = tuple(BACKGROUND_VALUES)
POSITIONS = (
    *("top left", "top", "top right"),
    *("left", "centre", "right"),
    *("bottom left", "bottom", "bottom right"),
)
RELATIONS = ("left of", "above")

THING_VALUES = (SHAPES, COLOURS, SIZES, TEXTURES)  # in the order of the fields of Thing
PAIR_PLACES = {"left of": ("top", "centre", "bottom"), "above": ("left", "centre", "right")}

#: The (colour, shape) pairs kept out of training: each shape and each colour is still seen.
HELD_OUT = (
    ("red", "star"),
    ("yellow", "square"),
    ("green", "heart"),
    ("blue", "triangle"),
    ("purple", "ring"),
    ("pink", "circle"),
)


@dataclass(frozen=True)
class Thing:
    """One object: a shape of SHAPES, colour of COLOURS, size of SIZES and texture of TEXTURES."""

    shape: str
    colour: str
    size: str = "large"
    texture: str = "plain"

    def __post_init__(self) -> None:
        for (name, value), known in zip(vars(self).items(), THING_VALUES, strict=True):
            _check_name(name, value, known)


@dataclass(frozen=True)
class Scene:
    """What a picture shows: a thing at a position on a background, or a pair.

    In a pair the thing stands left of (or above) the `other` one, in the two outer cells of the
    row (or column) whose middle cell is `position`.
    """

    thing: Thing
    position: str = "centre"
    background: str = "white"
    relation: str | None = None
    other: Thing | None = None

    def __post_init__(self) -> None:
        _check_name("position", self.position, POSITIONS)
        _check_name("background", self.background, BACKGROUNDS)
        if (self.relation is None) != (self.other is None):
            raise ValueError("a scene has both a relation and an other thing, or neither")
        if self.relation is not None:
            _check_name("relation", self.relation, RELATIONS)
            places = PAIR_PLACES[self.relation]
            _check_name(f"position of a pair {self.relation!r}", self.position, places)


def _check_name(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}: expected one of {', '.join(known)}")


# ---------------------------------------------------------------- scenes as tensors of indices


def encode(scenes: list[Scene]) -> Tensor:
    """Scenes as indices, (N, 11) int64: background, position, relation (0: none), then shape,
    colour, size and texture of the thing and of the other one (zeros where there is none)."""
    rows = []
    for scene in scenes:
        row = [BACKGROUNDS.index(scene.background), POSITIONS.index(scene.position)]
        row.append(0 if scene.relation is None else 1 + RELATIONS.index(scene.relation))
        for thing in (scene.thing, scene.other):
            row += [0] * 4 if thing is None else _thing_indices(thing)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 11)


def _thing_indices(thing: Thing) -> list[int]:
    return [known.index(v) for known, v in zip(THING_VALUES, astuple(thing), strict=True)]


def decode(codes: Tensor) -> list[Scene]:
    """The scenes of (N, 11) indices: the inverse of `encode`."""

    def thing(indices: list[int]) -> Thing:
        return Thing(*(known[i] for known, i in zip(THING_VALUES, indices, strict=True)))

    scenes = []
    for background, position, relation, *things in codes.tolist():
        scene = thing(things[:4]), POSITIONS[position], BACKGROUNDS[background]
        pair = (RELATIONS[relation - 1], thing(things[4:])) if relation else ()
        scenes.append(Scene(*scene, *pair))
    return scenes


def random_codes(
    n: int,
    generator: torch.Generator | None = None,
    *,
    pairs: float = 0.5,
    held_out: bool | None = False,
) -> Tensor:
    """Like `random_scenes`, but as (n, 11) indices."""
    if n < 0 or not 0 <= pairs <= 1:
        raise ValueError(f"expected n >= 0 and pairs in [0, 1], got n={n} and pairs={pairs}")
    allowed = torch.tensor(
        [
            (SHAPES.index(shape), COLOURS.index(colour))
            for shape in SHAPES
            for colour in COLOURS
            if held_out is None or ((colour, shape) in HELD_OUT) == held_out
        ]
    )
    device = generator.device if generator is not None else None
    u = torch.rand(n, 9, generator=generator, device=device).cpu()  # row i is scene i's luck

    def pick(column: int, count: int) -> Tensor:
        return (u[:, column] * count).long().clamp_max(count - 1)

    relation = (u[:, 0] < pairs).long() + (u[:, 0] < pairs / 2)
    place = pick(1, 9)
    row_or_column = pick(1, 3)
    place = torch.where(relation == 1, 1 + 3 * row_or_column, place)  # a row's middle cell
    place = torch.where(relation == 2, 3 + row_or_column, place)  # a column's middle cell
    things = []
    for first in (3, 6):
        size = pick(first + 1, 2)
        texture = (pick(first + 2, 4) - 1).clamp_min(0) * size  # small things are plain, as they
        thing = [allowed[pick(first, len(allowed))], size, texture]  # show no texture at 32 px
        things.append(torch.column_stack(thing))  # (n, 4)
    things[1] *= (relation > 0)[:, None]
    return torch.column_stack([pick(2, len(BACKGROUNDS)), place, relation, *things])  # (n, 11)


def random_scenes(
    n: int,
    generator: torch.Generator | None = None,
    *,
    pairs: float = 0.5,
    held_out: bool | None = False,
) -> list[Scene]:
    """n scenes drawn at random, of which the fraction `pairs` (0 to 1) shows two things.

    The (colour, shape) of every thing is a seen pair (`held_out=False`), one of HELD_OUT
    (`held_out=True`) or any (`held_out=None`).
    """
    return decode(random_codes(n, generator, pairs=pairs, held_out=held_out))
