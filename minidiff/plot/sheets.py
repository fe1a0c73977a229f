"""The look of every figure, in one place.

Pictures are shown pixel by pixel: enlarged by whole factors without smoothing, on white, with
quiet text. Everything here returns an ordinary PIL image, which notebooks display by themselves;
`save` and `animate` write files. Sheets are drawn at twice the 840 pixels a README or a notebook
gives them, so that text stays sharp on dense screens.

Images enter as `(B, 3, H, W)` or `(B, 1, H, W)` floats in [-1, 1]. Colours are those of Okabe and
Ito, which stay apart for colour-blind readers; lines are named where they end, so that no reader
has to match a legend.
"""

import math
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from minidiff.files import atomic
from minidiff.plot.charts import COLOURS, Panel, curves
from minidiff.plot.typesetting import HEADING, SMALL, WIDTH, Block, even, set_text, write

__all__ = [
    "pixels",
    "grid",
    "rows",
    "trajectory",
    "heatmap_over",
    "curves",
    "Panel",
    "save",
    "animate",
] + ["COLOURS", "WIDTH", "LARGEST", "GAP", "MARGIN"]

LARGEST = 256  # pixels of the largest cell
GAP, MARGIN = 8, 24

Row = tuple[str, Tensor] | tuple[str, Tensor, Sequence[str]]


# ---------------------------------------------------------------------------------------- pictures


def pixels(images: Tensor) -> np.ndarray:
    """Images `(B, 3 or 1, H, W)` in [-1, 1] as uint8 `(B, H, W, 3)` in 0..255.

    Values a little outside (overshoot, noise) are clipped. Raises ValueError on other shapes, on
    NaN, and beyond +-8, where no image or standard noise is found but 0..255 pixels are.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a tensor of shape (B, 3, H, W), got {found}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in [-1, 1], got {images.dtype}")
    images = images.detach().float().cpu()
    if not images.isfinite().all():
        raise ValueError("images must be finite, got NaN or infinite values")
    if images.numel() and images.abs().max() > 8:
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"images must lie in [-1, 1], got values from {low:.4g} to {high:.4g}")
    images = images.expand(-1, 3, -1, -1)  # (B, 3, H, W)
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def grid(
    images: Tensor,
    labels: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
) -> Image.Image:
    """Images `(B, 3, H, W)` in reading order, each with its label below.

    Without `columns`, up to eight images make one row and more make a landscape sheet. Raises
    ValueError when the number of labels does not fit the number of images, rows or columns.
    """
    n = len(pixels(images))
    columns = columns or (max(n, 1) if n <= 8 else next(c for c in (8, 10, 16, n) if c * c >= n))
    starts = range(0, n, columns)
    _same_length("labels", labels, "images", n)
    _same_length("row_labels", row_labels, "rows", len(starts))
    _same_length("column_labels", column_labels, "columns", min(columns, n))
    table = [
        (
            row_labels[i] if row_labels else "",
            images[start : start + columns],
            labels[start : start + columns] if labels else (),
        )
        for i, start in enumerate(starts)
    ]
    return rows(table, column_labels=column_labels, title=title)


def rows(
    table: Sequence[Row],
    *,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
) -> Image.Image:
    """A sheet of rows `(label, images)` or `(label, images, captions)`.

    A label or title may have further lines, which are set smaller and grey. Rows may hold images
    of different sizes and numbers; cells are equally wide. Raises ValueError on an empty table or
    row, and when captions and images differ in number.
    """
    if not table:
        raise ValueError("a sheet needs at least one row (label, images), got none")
    labels = [row[0] for row in table]
    pictures = [pixels(row[1]) for row in table]  # each (B, H, W, 3)
    captions = [row[2] if len(row) > 2 else () for row in table]
    for label, images, words in zip(labels, pictures, captions, strict=True):
        if not len(images):
            raise ValueError(f"every row needs at least one image, row {label!r} has none")
        _same_length("captions", words, f"images of row {label!r}", len(images))

    columns = max(map(len, pictures))
    blocks = [set_text(label, 300) for label in labels]
    left = MARGIN + max((block.width + MARGIN for block in blocks if block.lines), default=0)
    cell = _cell_width((WIDTH - left - MARGIN + GAP) // columns - GAP, pictures)
    heading = set_text(title or "", WIDTH - 2 * MARGIN, HEADING, bold=True)
    width = left + columns * (cell + GAP) - GAP + MARGIN
    width = max(width, heading.width + 2 * MARGIN)

    # First the places of everything, then one canvas as high as they need.
    stamps: list[tuple[Image.Image, int, int]] = []
    texts: list[tuple[Block, int, int, bool]] = []  # block, x, y, centred on x
    y = MARGIN
    if heading.lines:
        texts.append((heading, MARGIN, y, False))
        y += heading.height + 2 * GAP
    if column_labels:
        above = [set_text(text, cell, SMALL, grey=True) for text in column_labels]
        tallest = max(block.height for block in above)
        for i, block in enumerate(above):
            middle = left + i * (cell + GAP) + cell // 2
            texts.append((block, middle, y + tallest - block.height, True))
        y += tallest + GAP // 2
    for block, images, words in zip(blocks, pictures, captions, strict=True):
        height = max(1, round(cell * images.shape[1] / images.shape[2] / 2)) * 2
        texts.append((block, MARGIN, y + max(0, height - block.height) // 2, False))
        for i, image in enumerate(images):
            stamps.append((_resized(image, cell, height), left + i * (cell + GAP), y))
        below = [set_text(text, cell, SMALL, grey=True) for text in words]
        for i, caption in enumerate(below):
            texts.append((caption, left + i * (cell + GAP) + cell // 2, y + height + 4, True))
        space = max((caption.height + 4 + GAP for caption in below), default=0)
        y += max(height + space, block.height) + GAP
    canvas = Image.new("RGB", (width, even(y - GAP + MARGIN)), "white")
    for picture, x, y in stamps:
        canvas.paste(picture, (x, y))
    for block, x, y, centred in texts:
        write(canvas, block, x, y, centred)
    return canvas


def trajectory(
    frames: Iterable[Any], *, images: int = 1, columns: int = 8, title: str | None = None
) -> Image.Image:
    """How images come about: `columns` moments of a trajectory, evenly spaced, named by their t.

    `frames` have `.x`, `.level.t` and `.prediction.x0`. One image is shown as two rows, the noisy
    image above the x0 predicted from it; several images as one row of predicted x0 each.
    Predictions beyond [-1, 1] are clipped, as they are large where there is mostly noise.
    """
    frames = [frame for frame in frames if frame.prediction is not None]  # climbs have none
    if not frames:
        raise ValueError("a trajectory needs at least one frame, got none")
    if images < 1 or columns < 1:
        raise ValueError(f"images and columns must be at least 1, got {images} and {columns}")
    last = len(frames) - 1
    picked = sorted({round(i * last / max(columns - 1, 1)) for i in range(columns)})
    frames = [frames[i] for i in picked]
    times = [f"t = {_time(frame)}" for frame in frames]
    noisy = torch.stack([frame.x.detach()[:images] for frame in frames], 1)  # (n, frames, 3, H, W)
    clean = torch.stack([frame.prediction.x0.detach()[:images] for frame in frames], 1)
    noisy, clean = noisy.clamp(-1, 1), clean.clamp(-1, 1)
    if len(clean) == 1:
        table = [("noisy xₜ", noisy[0]), ("predicted x₀", clean[0])]
    else:
        table = [("predicted x₀" if i == 0 else "", strip) for i, strip in enumerate(clean)]
    return rows(table, column_labels=times, title=title)


def heatmap_over(images: Tensor, maps: Tensor, opacity: float = 0.8) -> Tensor:
    """Images `(B, 3, H, W)` in grey under maps `(B, h, w)`, each scaled to its own maximum.

    Returns images `(B, 3, H, W)` in [-1, 1], to be shown by `grid`. Raises ValueError when the
    numbers of images and maps differ or a map has negative values.
    """
    import matplotlib

    if maps.ndim != 3 or len(maps) != len(images) or maps.min() < 0:
        raise ValueError(
            f"maps must be non-negative and of shape ({len(images)}, h, w), one for each image, "
            f"got {tuple(maps.shape)} with minimum {maps.min().item():.3g}"
        )
    maps = interpolate(maps[:, None].float(), images.shape[-2:], mode="bilinear")[:, 0]  # (B, H, W)
    maps = maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
    table = torch.tensor(matplotlib.colormaps["inferno"](np.arange(256))[:, :3])  # (256, 3)
    colour = table.to(images)[(maps * 255).round().long()].permute(0, 3, 1, 2) * 2 - 1
    grey = images.clamp(-1, 1).mean(1, keepdim=True)  # (B, 1, H, W)
    return torch.lerp(grey.expand_as(colour), colour, opacity * maps[:, None])


def _cell_width(room: int, pictures: Sequence[np.ndarray]) -> int:
    """The widest cell that enlarges all images by whole factors, if there is one."""
    room = max(2, min(room, LARGEST))
    whole = math.lcm(2, *{images.shape[2] for images in pictures})
    return room // whole * whole if whole <= room else room // 2 * 2


def _resized(image: np.ndarray, width: int, height: int) -> Image.Image:
    smaller = image.shape[1] > width
    how = Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST
    return Image.fromarray(image).resize((width, height), how)


def _same_length(name: str, values: Sequence[str] | None, others: str, n: int) -> None:
    if values and len(values) != n:
        raise ValueError(f"{name} must be as many as the {others} ({n}), got {len(values)}")


# ------------------------------------------------------------------------------------------- files


def save(picture: Image.Image, path: str | Path) -> Path:
    """Write a PNG, whole or not at all; the same picture always gives the same bytes.

    Folders are made as needed. Raises ValueError on other endings than .png.
    """
    path = _ending(path, ".png")
    plain = Image.fromarray(np.asarray(picture.convert("RGB")))  # leaves metadata behind
    with atomic(path) as temporary:
        plain.save(temporary, "PNG", optimize=True)
    return path


def animate(frames: Iterable[Any], path: str | Path, fps: float = 12) -> Path:
    """Write a GIF of at most 1 MB that loops and rests on its last frame for two seconds.

    `frames` are pictures of one size, image batches `(B, 3, H, W)`, single images `(3, H, W)`, or
    the frames of a trajectory, shown as noisy image above predicted x0 for the first four images.
    Noise hardly compresses: where the file would be larger, only every second, third, ... frame is
    kept, each shown longer. Raises ValueError on no frames, unequal sizes, or fps outside (0, 50].
    """
    path = _ending(path, ".gif")
    if not 0 < fps <= 50:
        raise ValueError(f"fps must lie in (0, 50], the speeds a GIF can show, got {fps}")
    pictures = [
        _frame_picture(frame) for frame in frames if getattr(frame, "prediction", 0) is not None
    ]
    if len({picture.size for picture in pictures}) != 1:
        sizes = sorted({picture.size for picture in pictures})
        raise ValueError(f"an animation needs frames of one size, got sizes {sizes}")
    plain = Image.Dither.NONE
    flat = [picture.quantize(128, dither=plain) for picture in pictures[:-1]]
    flat.append(pictures[-1].quantize(256, dither=plain))  # the frame that is looked at
    every, gif = 1, _gif(flat, fps)
    while len(gif) > 1_000_000 and every < len(flat):
        every = max(every + 1, math.ceil(every * len(gif) / 1_000_000))
        gif = _gif(flat[::-every][::-1], fps / every)  # counted from the end: the last one stays
    with atomic(path) as temporary:
        temporary.write_bytes(gif)
    return path


def _gif(frames: Sequence[Image.Image], fps: float) -> bytes:
    times = [round(1000 / fps)] * (len(frames) - 1) + [2000]
    options = dict(save_all=True, append_images=frames[1:], duration=times, loop=0)
    file = BytesIO()
    frames[0].save(file, "GIF", **options)
    return file.getvalue()


def _frame_picture(frame: Any) -> Image.Image:
    if isinstance(frame, Image.Image):
        return frame.convert("RGB")
    if isinstance(frame, Tensor):
        return grid(frame if frame.ndim == 4 else frame[None]).reduce(2)
    noisy, clean = frame.x[:4].clamp(-1, 1), frame.prediction.x0[:4].clamp(-1, 1)
    label = f"noisy xₜ\nt = {_time(frame)}".ljust(18)
    return rows([(label, noisy), ("predicted x₀", clean)]).reduce(2)


def _time(frame: Any) -> int:
    return int(torch.as_tensor(frame.level.t).flatten()[0])


def _ending(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"the file name must end in {suffix}, got {path.name!r}")
    return path
