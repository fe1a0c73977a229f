"""The oracle: it finds the scene in a picture by drawing candidates and comparing."""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data.shapes.captions import holds
from minidiff.data.shapes.drawing import compose, light, paint, rgb
from minidiff.data.shapes.scenes import BACKGROUND_VALUES, THING_VALUES, Scene, decode

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
    if images.device.type == "mps":  # which lacks the solver that fitting needs
        images = images.cpu()
    scenes: list[Scene | None] = []
    for batch in images.split(64) if len(images) else ():  # bounds the memory
        codes, misfit = explain(F.avg_pool2d(batch.detach().float(), shape[-1] // _SIDE))
        found = zip(decode(codes), misfit.tolist(), strict=True)
        scenes += [scene if error <= TOLERANCE else None for scene, error in found]
    return scenes


def grade(captions: list[str], images: Tensor) -> Tensor:
    """Which pictures (B, 3, H, W) show what their captions say: (B,) bool. A picture that the
    oracle cannot read does not."""
    if len(captions) != len(images):
        raise ValueError(f"expected a caption per image, got {len(captions)} for {len(images)}")
    scenes = read(images)
    pairs = zip(captions, scenes, strict=True)
    return torch.tensor([scene is not None and holds(text, scene) for text, scene in pairs])


@torch.no_grad()
def explain(images: Tensor) -> tuple[Tensor, Tensor]:
    """The scenes that explain (B, 3, 32, 32) best, as codes (B, 11), and their misfits (B,): the
    largest root mean square difference between picture and scene over any 4 x 4 pixels."""
    device = images.device
    flat = images - light(_SIDE).to(images)
    background = _vote(flat)  # (B,)
    ground = rgb(BACKGROUND_VALUES).to(images)[background][:, :, None, None]  # (B, 3, 1, 1)
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

    error = (images - compose(codes, jitter, _SIDE)[0]).square().mean(dim=1)  # (B, H, W)
    return codes, F.avg_pool2d(error, 4, stride=2).flatten(1).amax(dim=1).sqrt()


def _vote(flat: Tensor) -> Tensor:
    """The background (B,) that most pixels are close to."""
    colours = rgb(BACKGROUND_VALUES).to(flat)
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
    canvas = rgb(BACKGROUND_VALUES).to(things.device)[background][:, :, None, None]
    canvas = canvas.expand(-1, -1, _HALF, _HALF)
    cell = torch.full((1, 2), 0.25, device=things.device)
    return paint(canvas, things, jitter, cell, axis, 1 / _SIDE)[0].flatten(1)


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
