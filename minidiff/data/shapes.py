"""The shapes world: small captioned pictures whose truth is known.

A `Scene` says in words what is in a picture: one thing, or two with a relation, on a background.
`render` draws scenes with signed distance fields, `caption` describes them, and the oracle
`read` finds the scene in a picture by drawing candidates and comparing, or abstains (None) when
no scene explains the picture. So the claims made about a generative model can be measured:
`grade(captions, images)` says which pictures show what their captions ask for.
"""

import math
import re
from dataclasses import astuple, dataclass
from functools import cache

import torch
import torch.nn.functional as F
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
MIRRORED = {"right of": "left of", "below": "above"}  # how a caption may turn a relation around

#: The (colour, shape) pairs kept out of training: each shape and each colour is still seen.
HELD_OUT = (
    ("red", "star"),
    ("yellow", "square"),
    ("green", "heart"),
    ("blue", "triangle"),
    ("purple", "ring"),
    ("pink", "circle"),
)

#: Every word a caption can contain.
WORDS = tuple(
    dict.fromkeys(
        " ".join(
            ("a", "an", "at", "the", "on", "background", *SIZES, *TEXTURES[1:], *COLOURS, *SHAPES)
            + (*RELATIONS, *MIRRORED, *POSITIONS, *BACKGROUNDS)
        ).split()
    )
)

# Lengths are fractions of the picture's side, so that a scene looks the same at every size.
RADII = (4.0 / 32, 6.2 / 32)  # small, large
SHIFT = 0.75 / 32  # largest offset from the middle of a cell
STRETCH = 0.04  # largest relative change of radius
PERIOD = 4.5 / 32  # of stripes and dots
LIGHT = 0.03  # how much brighter the top is than the middle of the picture


@dataclass(frozen=True)
class Thing:
    """One object: a shape of SHAPES, colour of COLOURS, size of SIZES and texture of TEXTURES."""

    shape: str
    colour: str
    size: str = "large"
    texture: str = "plain"

    def __post_init__(self) -> None:
        for name, value, known in zip(THING_FIELDS, astuple(self), THING_VALUES, strict=True):
            _check_name(name, value, known)


THING_FIELDS = ("shape", "colour", "size", "texture")
THING_VALUES = (SHAPES, COLOURS, SIZES, TEXTURES)


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
            _check_name(
                f"position of a pair {self.relation!r}", self.position, PAIR_PLACES[self.relation]
            )


PAIR_PLACES = {"left of": ("top", "centre", "bottom"), "above": ("left", "centre", "right")}


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
            values = (0,) * 4 if thing is None else _thing_indices(thing)
            row.extend(values)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 11)


def _thing_indices(thing: Thing) -> tuple[int, ...]:
    return tuple(known.index(v) for known, v in zip(THING_VALUES, astuple(thing), strict=True))


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
    pairs: float = 0.4,
    held_out: bool | None = False,
) -> Tensor:
    """Like `random_scenes`, as (n, 11) indices."""
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
    pairs: float = 0.4,
    held_out: bool | None = False,
) -> list[Scene]:
    """n scenes drawn at random, of which the fraction `pairs` (0 to 1) shows two things.

    The (colour, shape) of every thing is a seen pair (`held_out=False`), one of HELD_OUT
    (`held_out=True`) or any (`held_out=None`).
    """
    return decode(random_codes(n, generator, pairs=pairs, held_out=held_out))


# -------------------------------------------------------------------------------- drawing


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _square(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs() - 0.74, y.abs() - 0.74
    return torch.hypot(x.relu(), y.relu()) + torch.maximum(x, y).clamp_max(0) - 0.14


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return _spikes(x, y - 0.3, 3, tip=1.26, notch=0.63)


def _star(x: Tensor, y: Tensor) -> Tensor:
    return _spikes(x, y - 0.08, 5, tip=1.16, notch=0.56)


def _spikes(x: Tensor, y: Tensor, count: int, tip: float, notch: float) -> Tensor:
    """A star of `count` tips, one of them up, with the outer radius tip and the inner one notch."""
    turn = math.pi / count
    angle = (torch.remainder(torch.atan2(x, -y) + turn, 2 * turn) - turn).abs()  # folds all edges
    radius = torch.hypot(x, y)  # into one, from the tip (tip, 0) along (dx, dy) to a notch
    x, y = radius * torch.cos(angle) - tip, radius * torch.sin(angle)
    dx, dy = notch * math.cos(turn) - tip, notch * math.sin(turn)
    along = ((x * dx + y * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - along * dx, y - along * dy) * (x * dy - y * dx).sign()


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """https://iquilezles.org/articles/distfunctions2d/, `sdHeart`"""
    scale = 1.8
    x, y = x.abs() / scale, 0.55 - y / scale
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    fold = 0.5 * (x + y).relu()
    flank = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - fold, y - fold)) * (x - y).sign()
    return scale * torch.where(x + y > 1, lobe, flank)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.75).abs() - 0.28


DISTANCES = (_circle, _square, _triangle, _star, _heart, _ring)  # in the order of SHAPES


def _distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance (M, H, W) to the outlines of unit shapes; x (M, 1, W), y (M, H, 1) down."""
    out = x.new_empty(len(x), y.shape[1], x.shape[2])
    for index, distance in enumerate(DISTANCES):
        which = (shape == index).nonzero()[:, 0]
        if len(which):
            out[which] = distance(*torch.broadcast_tensors(x[which], y[which]))
    return out


def _rgb(values: dict[str, str]) -> Tensor:
    """Hexadecimal colours as (N, 3) in [-1, 1]."""
    rows = [[int(text[i : i + 2], 16) / 127.5 - 1 for i in (1, 3, 5)] for text in values.values()]
    return torch.tensor(rows)


def _paint(
    canvas: Tensor, things: Tensor, jitter: Tensor, cell: Tensor, axis: Tensor, pixel: float
) -> tuple[Tensor, Tensor]:
    """Paint one thing with its soft shadow on each canvas.

    canvas (M, 3, H, W); things (M, 4) indices; jitter (M, 3) in [-1, 1]: x, y, radius; cell
    (M, 2): x, y of the middle of its cell; axis (H,): the coordinates of pixels; pixel: their
    side. Returns the canvas and the coverage (M, 1, H, W) of the thing in [0, 1].
    """
    shape, colour, size, texture = things.unbind(1)
    radius = torch.tensor(RADII, device=canvas.device)[size] * (1 + STRETCH * jitter[:, 2])
    radius = radius[:, None, None]  # (M, 1, 1)
    centre = cell + SHIFT * jitter[:, :2]
    x = axis[None, None, :] - centre[:, 0, None, None]  # (M, 1, W)
    y = axis[None, :, None] - centre[:, 1, None, None]  # (M, H, 1)

    shadow = _distance(shape, (x - 0.015) / radius, (y - 0.035) / radius) * radius  # (M, H, W)
    shadow = (0.5 - shadow / (3 / 32)).clamp(0, 1)[:, None]  # (M, 1, H, W)
    canvas = canvas - 0.22 * shadow * (canvas + 1)

    coverage = _distance(shape, x / radius, y / radius) * (radius / pixel)  # in pixels
    coverage = (0.5 - coverage).clamp(0, 1)[:, None]  # (M, 1, H, W)
    ink = _rgb(COLOUR_VALUES).to(canvas)[colour][:, :, None, None]  # (M, 3, 1, 1)
    pale = 0.7 * _pattern(texture, x, y, pixel)[:, None]  # (M, 1, H, W)
    return torch.lerp(canvas, torch.lerp(ink, torch.full_like(ink, 0.95), pale), coverage), coverage


def _pattern(texture: Tensor, x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """How pale each point is, (M, H, W) in [0, 1]: 0 for plain things, 1 in stripes and dots."""
    out = x.new_zeros(len(x), y.shape[1], x.shape[2])
    striped, dotted = ((texture == index).nonzero()[:, 0] for index in (1, 2))
    across = (x[striped] + y[striped]) / math.sqrt(2)
    stripe = ((across / PERIOD).remainder(1) - 0.5).abs() * PERIOD - 0.25 * PERIOD
    out[striped] = (0.5 - stripe / pixel).clamp(0, 1)
    column = ((x[dotted] / PERIOD).remainder(1) - 0.5) * PERIOD
    row = ((y[dotted] / PERIOD).remainder(1) - 0.5) * PERIOD
    out[dotted] = (0.5 - (torch.hypot(column, row) - 0.3 * PERIOD) / pixel).clamp(0, 1)
    return out


def _cells(codes: Tensor) -> Tensor:
    """The middles (N, 2, 2) of the cells of both things, as x, y."""
    row, column = codes[:, 1] // 3, codes[:, 1] % 3
    middle = torch.stack([column, row], dim=1)[:, None].expand(-1, 2, -1)
    step = torch.tensor(
        [[[0, 0], [0, 0]], [[-1, 0], [1, 0]], [[0, -1], [0, 1]]], device=codes.device
    )
    return (1 + middle + step[codes[:, 2]]) / 4  # cells are centred on 1/4, 1/2 and 3/4


def _compose(codes: Tensor, jitter: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, size, size) in [-1, 1] and coverages (N, 2, size, size) of codes (N, 11)
    with jitter (N, 2, 3)."""
    axis = (torch.arange(size, device=codes.device) + 0.5) / size
    canvas = _rgb(BACKGROUND_VALUES).to(codes.device)[codes[:, 0]][:, :, None, None]
    canvas = canvas.expand(-1, -1, size, size)
    things, cells = codes[:, 3:].view(-1, 2, 4), _cells(codes)
    canvas, first = _paint(canvas, things[:, 0], jitter[:, 0], cells[:, 0], axis, 1 / size)
    coverage = torch.cat([first, torch.zeros_like(first)], dim=1)  # (N, 2, H, W)
    two = (codes[:, 2] > 0).nonzero()[:, 0]
    canvas[two], second = _paint(
        canvas[two], things[two, 1], jitter[two, 1], cells[two, 1], axis, 1 / size
    )
    coverage[two, 1:] = second
    return canvas + _light(size).to(canvas), coverage


def _light(size: int) -> Tensor:
    """Light from above, (size, 1): LIGHT at the top, -LIGHT at the bottom."""
    return LIGHT * (1 - 2 * (torch.arange(size) + 0.5) / size)[:, None]


def render(
    scenes: list[Scene] | Tensor,
    size: int = 32,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw scenes (or their codes, (B, 11)) as pictures of `size` pixels.

    Returns images (B, 3, size, size) in [-1, 1] and masks (B, 2, size, size) in [0, 1]: how much
    of each pixel the thing and the other thing cover (all zeros where there is no other). The
    generator moves each thing a little within its cell and changes its radius a little; without
    one, things stand in the middle of their cells. Picture i of a seed is the same whatever B is.
    """
    if size < 8:
        raise ValueError(f"a picture has at least 8 pixels a side, got size={size}")
    codes = scenes if isinstance(scenes, Tensor) else encode(scenes)
    if codes.ndim != 2 or codes.shape[1] != 11 or codes.dtype != torch.int64:
        shape = f"{codes.dtype} {tuple(codes.shape)}"
        raise ValueError(f"expected a list of scenes or int64 codes (B, 11), got {shape}")
    jitter = torch.zeros(len(codes), 2, 3)
    if generator is not None:
        jitter = torch.rand(len(codes), 2, 3, generator=generator, device=generator.device) * 2 - 1
    codes = codes.to(device)
    return _compose(codes, jitter.to(codes.device), size)


# -------------------------------------------------------------------------------- captions


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
    thing, relation, other = _name(scene.thing, said[0]), scene.relation, scene.other
    words = thing
    if relation is not None and other is not None:
        words = f"{thing} {relation} {_name(other, said[1])}"
        if luck[4] < 0.5:
            mirrored = {there: here for here, there in MIRRORED.items()}[relation]
            words = f"{_name(other, said[1])} {mirrored} {thing}"
    if said[2]:
        words += f" at the {scene.position}"
    if said[3]:
        words += f" on a {scene.background} background"
    return words


def _name(thing: Thing, with_size: bool) -> str:
    texture = thing.texture if thing.texture != "plain" else ""
    words = " ".join(filter(None, [with_size and thing.size, texture, thing.colour, thing.shape]))
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def captioned(
    n: int, generator: torch.Generator, size: int = 32, seen_only: bool = True
) -> tuple[Tensor, list[str]]:
    """A training set: images (n, 3, size, size) uint8 and one random caption for each.

    With `seen_only` no thing has a (colour, shape) of HELD_OUT.
    """
    codes = random_codes(n, generator, held_out=False if seen_only else None)
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    for start in range(0, n, 256):
        drawn, _ = render(codes[start : start + 256], size, generator)
        images[start : start + 256] = ((drawn + 1) * 127.5).round().to(torch.uint8)
    return images, captions(decode(codes), generator)


# ------------------------------------------------------------------------------ the oracle

# The oracle looks at 32 x 32 pixels. Each cell is judged in its own window of half the side,
# which holds any thing in the cell; the windows of a pair do not overlap.
_SIDE, _HALF = 32, 16
_CANDIDATES, _STEPS = 4, 3  # things per window that are fitted, and drawings of each
_PLACES = F.pad(torch.cartesian_prod(*[torch.tensor([-0.8, 0.0, 0.8])] * 2), (0, 1))  # (9, 3)
_LAYOUTS = (  # position, relation, the cells of both things
    *((cell, 0, cell, cell) for cell in range(9)),
    *((middle, 1, middle - 1, middle + 1) for middle in (1, 4, 7)),
    *((middle, 2, middle - 3, middle + 3) for middle in (3, 4, 5)),
)
#: The largest misfit (see `explain`) of a picture that the oracle accepts as explained.
TOLERANCE = 0.2


def read(images: Tensor) -> Scene | None | list[Scene | None]:
    """The scene in a picture (3, H, W) in [-1, 1], or None if no scene explains it; for a batch
    (B, 3, H, W) the list of its scenes. H = W is a multiple of 32."""
    shape = tuple(images.shape)
    if images.ndim not in (3, 4) or shape[-3] != 3 or not images.is_floating_point():
        raise ValueError(
            f"expected float images (3, H, W) or (B, 3, H, W), got {images.dtype} {shape}"
        )
    if shape[-1] != shape[-2] or shape[-1] % _SIDE or shape[-1] == 0:
        raise ValueError(f"expected square images of 32, 64, 96, ... pixels, got {shape[-2:]}")
    if images.ndim == 3:
        return read(images[None])[0]
    scenes: list[Scene | None] = []
    for batch in images.split(64):  # bounds the memory
        codes, misfit = explain(F.avg_pool2d(batch.detach().float(), shape[-1] // _SIDE))
        found = zip(decode(codes), misfit.tolist(), strict=True)
        scenes += [scene if error <= TOLERANCE else None for scene, error in found]
    return scenes


@torch.no_grad()
def explain(images: Tensor) -> tuple[Tensor, Tensor]:
    """The scenes that explain (B, 3, 32, 32) best, as codes (B, 11), and their misfits (B,): the
    largest root mean square difference between picture and scene over any 4 x 4 pixels."""
    device = images.device
    flat = images - _light(_SIDE).to(images)
    background = _vote(flat)  # (B,)
    ground = _rgb(BACKGROUND_VALUES).to(images)[background][:, :, None, None]  # (B, 3, 1, 1)
    windows = _windows(flat)  # (B, 9, D)
    errors, places = _compare(windows, background)  # (B, 9, 288) each
    gain = _windows((flat - ground).square()).sum(dim=2) - errors.amin(dim=2)
    layout = _choose_layout(gain)  # (B, 4)

    codes = torch.zeros(len(images), 11, dtype=torch.int64, device=device)
    codes[:, 0] = background
    codes[:, 1:3] = layout[:, :2]
    jitter = torch.zeros(len(images), 2, 3, device=device)
    for slot in (0, 1):
        rows = (layout[:, 1] >= slot).nonzero()[:, 0]  # those with a thing in this slot: R
        cell = layout[rows, 2 + slot]
        best = errors[rows, cell].topk(_CANDIDATES, largest=False).indices  # (R, K)
        place = _PLACES.to(device)[places[rows, cell].gather(1, best)]  # (R, K, 3)
        things = _all_things(device)[best]  # (R, K, 4)
        found = _fit(windows[rows, cell], background[rows], things, place)
        codes[rows, 3 + 4 * slot : 7 + 4 * slot], jitter[rows, slot] = found

    error = (images - _compose(codes, jitter, _SIDE)[0]).square().mean(dim=1)  # (B, H, W)
    return codes, F.avg_pool2d(error, 4, stride=2).flatten(1).amax(dim=1).sqrt()


def _vote(flat: Tensor) -> Tensor:
    """The background (B,) that most pixels are close to."""
    colours = _rgb(BACKGROUND_VALUES).to(flat)
    errors = [(flat - c[:, None, None]).square().mean(dim=1) for c in colours]
    return torch.stack([e.clamp_max(0.05).mean(dim=(1, 2)) for e in errors], dim=1).argmin(dim=1)


def _windows(images: Tensor) -> Tensor:
    """The windows (B, 9, D) around the nine cells of (B, 3, 32, 32); D = 3 * 16 * 16."""
    parts = images.unfold(2, _HALF, _HALF // 2).unfold(3, _HALF, _HALF // 2)
    return parts.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # from (B, 3, 3, 3, 16, 16)


def _all_things(device: torch.device) -> Tensor:
    """Indices of the 288 things, (288, 4)."""
    ranges = [torch.arange(len(known), device=device) for known in THING_VALUES]
    return torch.cartesian_prod(*ranges)


def _draw_windows(things: Tensor, jitter: Tensor, background: Tensor) -> Tensor:
    """Windows (M, D), each around one thing (M, 4) with its jitter (M, 3) on a background (M,)."""
    axis = (torch.arange(_HALF, device=things.device) + 0.5) / _SIDE
    canvas = _rgb(BACKGROUND_VALUES).to(things.device)[background][:, :, None, None]
    canvas = canvas.expand(-1, -1, _HALF, _HALF)
    cell = torch.full((1, 2), 0.25, device=things.device)
    return _paint(canvas, things, jitter, cell, axis, 1 / _SIDE)[0].flatten(1)


@cache
def _templates(background: int, device: torch.device) -> Tensor:
    """Windows (288 * 9, D) of every thing at nine places on one background."""
    things = _all_things(device).repeat_interleave(9, dim=0)
    ground = torch.full((len(things),), background, device=device)
    return _draw_windows(things, _PLACES.to(device).repeat(288, 1), ground)


def _compare(windows: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """The squared errors (B, 9, 288) of each thing in each window (B, 9, D) at the best of the
    nine places, and which place that is."""
    errors = windows.new_empty(*windows.shape[:2], 288)
    places = torch.empty_like(errors, dtype=torch.int64)
    for index in background.unique().tolist():
        rows = background == index
        mine, templates = windows[rows], _templates(index, windows.device)
        squares = templates.square().sum(dim=1) - 2 * mine @ templates.T  # (R, 9, 288 * 9)
        least = squares.unflatten(2, (288, 9)).min(dim=3)
        errors[rows] = least.values + mine.square().sum(dim=2, keepdim=True)
        places[rows] = least.indices
    return errors, places


def _choose_layout(gain: Tensor) -> Tensor:
    """The layout (B, 4) that leaves the least error, given how much less error the best thing in
    each window leaves than the bare background does (B, 9)."""
    layouts = torch.tensor(_LAYOUTS, device=gain.device)
    _, relation, first, second = layouts.unbind(1)
    gains = gain[:, first] + torch.where(relation > 0, gain[:, second], 0)  # (B, 15)
    return layouts[gains.argmax(dim=1)]


def _fit(
    windows: Tensor, background: Tensor, things: Tensor, jitter: Tensor
) -> tuple[Tensor, Tensor]:
    """Of candidate things (R, K, 4) the one (R, 4), with its jitter (R, 3), that fits the windows
    (R, D) best after Gauss-Newton steps from the jitters (R, K, 3)."""
    rows, count, _ = things.shape
    things, jitter = things.flatten(0, 1), jitter.flatten(0, 1)  # (M, 4), (M, 3)
    target = windows.repeat_interleave(count, dim=0)
    ground = background.repeat_interleave(count)
    best, least = jitter, windows.new_full((rows * count,), math.inf)
    nudges = 0.2 * torch.eye(3, device=windows.device)
    for _ in range(_STEPS):
        drawn = _draw_windows(things, jitter, ground)
        error = (drawn - target).square().sum(dim=1)
        best = torch.where((error < least)[:, None], jitter, best)
        least = torch.minimum(error, least)
        slopes = [_draw_windows(things, jitter + n, ground) - drawn for n in nudges]
        jacobian = torch.stack(slopes, dim=1) / 0.2  # (M, 3, D)
        normal = jacobian @ jacobian.mT + 0.1 * torch.eye(3, device=windows.device)
        step = torch.linalg.solve(normal, jacobian @ (drawn - target)[:, :, None])
        jitter = (jitter - step[:, :, 0]).clamp(-1.3, 1.3)
    winner = least.view(rows, count).argmin(dim=1) + count * torch.arange(rows).to(background)
    return things[winner], best[winner]


# -------------------------------------------------------------------------------- grading

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


def grade(captions: list[str], images: Tensor) -> Tensor:
    """Which pictures (B, 3, H, W) show what their captions say: (B,) bool. A picture that the
    oracle cannot read does not."""
    if len(captions) != len(images):
        raise ValueError(f"expected a caption per image, got {len(captions)} for {len(images)}")
    scenes = read(images)
    pairs = zip(captions, scenes, strict=True)
    return torch.tensor([scene is not None and holds(text, scene) for text, scene in pairs])
