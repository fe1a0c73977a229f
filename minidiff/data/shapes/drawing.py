"""Drawing: signed distances to six shapes, and scenes painted with them."""

import math

import torch
from torch import Tensor

from minidiff.data.shapes.scenes import BACKGROUND_VALUES, COLOUR_VALUES, Scene, encode

# Lengths are fractions of the picture's side, so that a scene looks the same at every size.
RADII = (4.0 / 32, 6.2 / 32)  # small, large
SHIFT = 0.75 / 32  # largest offset from the middle of a cell
STRETCH = 0.04  # largest relative change of radius
PERIOD = 4.5 / 32  # of stripes and dots
LIGHT = 0.03  # how much brighter the top is than the middle of the picture


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


def rgb(values: dict[str, str]) -> Tensor:
    """Hexadecimal colours as (N, 3) in [-1, 1]."""
    rows = [[int(text[i : i + 2], 16) / 127.5 - 1 for i in (1, 3, 5)] for text in values.values()]
    return torch.tensor(rows)


def paint(
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
    ink = rgb(COLOUR_VALUES).to(canvas)[colour][:, :, None, None]  # (M, 3, 1, 1)
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


def compose(codes: Tensor, jitter: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, size, size) in [-1, 1] and coverages (N, 2, size, size) of codes (N, 11)
    with jitter (N, 2, 3)."""
    axis = (torch.arange(size, device=codes.device) + 0.5) / size
    canvas = rgb(BACKGROUND_VALUES).to(codes.device)[codes[:, 0]][:, :, None, None]
    canvas = canvas.expand(-1, -1, size, size)
    things, cells = codes[:, 3:].view(-1, 2, 4), _cells(codes)
    canvas, first = paint(canvas, things[:, 0], jitter[:, 0], cells[:, 0], axis, 1 / size)
    coverage = torch.cat([first, torch.zeros_like(first)], dim=1)  # (N, 2, H, W)
    two = (codes[:, 2] > 0).nonzero()[:, 0]
    canvas[two], second = paint(
        canvas[two], things[two, 1], jitter[two, 1], cells[two, 1], axis, 1 / size
    )
    coverage[two, 1:] = second
    return canvas + light(size).to(canvas), coverage


def light(size: int) -> Tensor:
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

    Returns images (B, 3, size, size) in [-1, 1] and masks (B, 1, size, size) in [0, 1]: how much
    of each pixel is covered by things. The generator moves each thing a little within its cell
    and changes its radius a little; without one, things stand in the middle of their cells.
    Picture i of a seed is the same whatever B is.
    """
    images, each = render_things(scenes, size, generator, device=device)
    return images, each.amax(dim=1, keepdim=True)


def render_things(
    scenes: list[Scene] | Tensor,
    size: int = 32,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """As `render`, with the mask of each thing: (B, 2, size, size), the thing's and the other's
    (all zeros where there is no other)."""
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
    return compose(codes, jitter.to(codes.device), size)
