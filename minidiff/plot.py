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
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

WIDTH = 1680  # pixels of the widest sheet, shown at half of that
LARGEST = 256  # pixels of the largest cell
GAP, MARGIN = 8, 24
BODY, SMALL, HEADING = 26, 22, 30  # text sizes
INK, GREY, RULE = "#24292f", "#6e7781", "#d8dee4"
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
CONDENSED = 0.9  # DejaVu Sans, the one font at hand everywhere, is handsomer a tenth narrower

Row = tuple[str, Tensor] | tuple[str, Tensor, Sequence[str]]


class Panel(NamedTuple):
    """One plot of `curves`: named lines, each `(x, y)` or `(x, y, low, high)` with its band.

    `references` are named horizontal lines, such as the distance of real images to real images.
    """

    title: str
    series: Mapping[str, tuple[Sequence[float], ...]]
    x: str = ""
    y: str = ""
    references: Mapping[str, float] = {}
    log_x: bool = False
    log_y: bool = False


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
    blocks = [_block(label, 300) for label in labels]
    left = MARGIN + max((block.width + MARGIN for block in blocks if block.lines), default=0)
    cell = _cell_width((WIDTH - left - MARGIN + GAP) // columns - GAP, pictures)
    heading = _block(title or "", WIDTH - 2 * MARGIN, HEADING, bold=True)
    width = left + columns * (cell + GAP) - GAP + MARGIN
    width = max(width, heading.width + 2 * MARGIN)

    # First the places of everything, then one canvas as high as they need.
    stamps: list[tuple[Image.Image, int, int]] = []
    texts: list[tuple[_Block, int, int, bool]] = []  # block, x, y, centred on x
    y = MARGIN
    if heading.lines:
        texts.append((heading, MARGIN, y, False))
        y += heading.height + 2 * GAP
    if column_labels:
        above = [_block(text, cell, SMALL, grey=True) for text in column_labels]
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
        below = [_block(text, cell, SMALL, grey=True) for text in words]
        for i, caption in enumerate(below):
            texts.append((caption, left + i * (cell + GAP) + cell // 2, y + height + 4, True))
        space = max((caption.height + 4 + GAP for caption in below), default=0)
        y += max(height + space, block.height) + GAP
    canvas = Image.new("RGB", (width, _even(y - GAP + MARGIN)), "white")
    for picture, x, y in stamps:
        canvas.paste(picture, (x, y))
    for block, x, y, centred in texts:
        _write(canvas, block, x, y, centred)
    return canvas


def trajectory(
    frames: Iterable[Any], *, images: int = 1, columns: int = 8, title: str | None = None
) -> Image.Image:
    """How images come about: `columns` moments of a trajectory, evenly spaced, named by their t.

    `frames` have `.x`, `.level.t` and `.prediction.x0`. One image is shown as two rows, the noisy
    image above the x0 predicted from it; several images as one row of predicted x0 each.
    Predictions beyond [-1, 1] are clipped, as they are large where there is mostly noise.
    """
    frames = list(frames)
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


# ------------------------------------------------------------------------------------------ curves


def curves(*panels: Panel) -> Image.Image:
    """Small multiples, at most three beside each other; every line is named where it ends.

    Raises ValueError when a line's x, y, low and high differ in length or are empty.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not panels:
        raise ValueError("curves needs at least one Panel, got none")
    columns = min(len(panels), 3)
    lines = math.ceil(len(panels) / columns)
    width = WIDTH if columns > 1 else WIDTH * 2 // 3
    height = lines * (420 if columns == 3 else 480)
    # Drawn twice as large and wider by 1/CONDENSED, then reduced: the text comes out as elsewhere.
    size = width / CONDENSED / 100, height / 100
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=size, dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.2, h_pad=0.2, wspace=0.02, hspace=0.02)
        axes = [figure.add_subplot(lines, columns, i + 1) for i in range(len(panels))]
        for axis, panel in zip(axes, panels, strict=True):
            _draw_panel(axis, panel)
        figure.draw_without_rendering()  # the scales are settled: now names can be kept apart
        for axis, panel in zip(axes, panels, strict=True):
            _name_lines(axis, panel)
        figure.canvas.draw()
        drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    return drawn.resize((width, height), Image.Resampling.BOX)


_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": SMALL * 0.72,  # pixels to points at 100 dots an inch
    "text.color": INK,
    "text.hinting": "none",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlesize": BODY * 0.72,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 34,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 1.2,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2.6,
    "lines.solid_capstyle": "round",
}


def _draw_panel(axis: Any, panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    axis.set_xscale("log" if panel.log_x else "linear")
    axis.set_yscale("log" if panel.log_y else "linear")
    for (name, line), colour in zip(panel.series.items(), _cycle(COLOURS), strict=False):
        line = [[float(value) for value in values] for values in line]
        if len(line) not in (2, 4) or len({len(values) for values in line}) != 1 or not line[0]:
            raise ValueError(
                f"line {name!r} must be (x, y) or (x, y, low, high) of one length, "
                f"got lengths {[len(values) for values in line]}"
            )
        if len(line) == 4:
            axis.fill_between(line[0], line[2], line[3], color=colour, alpha=0.16, linewidth=0)
        axis.plot(line[0], line[1], color=colour)
    for value in panel.references.values():
        axis.axhline(float(value), color=GREY, linewidth=1.8, linestyle=(0, (4, 3)), zorder=1)
    axis.margins(x=0.02)
    axis.set_title(panel.title, loc="left")
    axis.set_xlabel(panel.x)
    above = dict(xycoords="axes fraction", textcoords="offset points", va="bottom", color=GREY)
    axis.annotate(panel.y, (0, 1), xytext=(0, 9), **above)
    for line, log, ticks in ((axis.xaxis, panel.log_x, 4), (axis.yaxis, panel.log_y, 5)):
        steps = LogLocator(subs=(1, 2, 5)) if log else MaxNLocator(ticks, steps=(1, 2, 2.5, 5, 10))
        line.set_major_locator(steps)
        line.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if panel.log_y:
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _name_lines(axis: Any, panel: Panel) -> None:
    """Write each name at the right edge, at the height where its line ends, none over another."""
    names = list(panel.series) + list(panel.references)
    colours = [c for _, c in zip(panel.series, _cycle(COLOURS), strict=False)]
    colours += [GREY] * len(panel.references)
    ends = [np.asarray(line.get_ydata()) for line in axis.lines]  # in the order they were drawn
    ends = [float(y[np.isfinite(y)][-1]) if np.isfinite(y).any() else math.nan for y in ends]
    named = [i for i, end in enumerate(ends) if math.isfinite(end)]
    ends = [axis.transData.transform((1, ends[i]))[1] for i in named]
    line_height = axis.figure.dpi / 72 * _STYLE["font.size"] * 1.15
    for i, end, height in zip(named, ends, _spread(ends, line_height), strict=True):
        fraction = axis.transAxes.inverted().transform((0, end))[1]
        shift = (height - end) * 72 / axis.figure.dpi
        axis.annotate(
            names[i],
            (1, fraction),
            xytext=(6, shift),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            color=colours[i],
            annotation_clip=False,
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved as little as it takes to lie `gap` apart, in the same order."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = list(heights)
    for _ in range(200):
        for low, high in pairwise(order):
            overlap = gap - (moved[high] - moved[low])
            if overlap > 0:
                moved[low], moved[high] = moved[low] - overlap / 2, moved[high] + overlap / 2
    return moved


# ------------------------------------------------------------------------------------------- files


def save(picture: Image.Image, path: str | Path) -> Path:
    """Write a PNG, whole or not at all; the same picture always gives the same bytes.

    Folders are made as needed. Raises ValueError on other endings than .png.
    """
    path = _ending(path, ".png")
    plain = Image.fromarray(np.asarray(picture.convert("RGB")))  # leaves metadata behind
    return _write_whole(path, lambda file: plain.save(file, "PNG", optimize=True))


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
    pictures = [_frame_picture(frame) for frame in frames]
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
    return _write_whole(path, lambda file: file.write(gif))


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


def _write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> Path:
    """Write beside the target and move there at the end, so that no half-written file is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            write(file)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


# -------------------------------------------------------------------------------- text and measure


class _Block(NamedTuple):
    """Wrapped text: lines of (words, size, colour, bold)."""

    lines: list[tuple[str, int, str, bool]]
    width: int
    height: int


def _block(text: str, width: int, size: int = BODY, *, bold: bool = False, grey: bool = False):
    lines = []
    for i, paragraph in enumerate(text.split("\n") if text else []):
        look = (SMALL, GREY, False) if i else (size, GREY if grey else INK, bold)
        lines += [(line, *look) for line in _wrap(paragraph, width, look[0], look[2])]
    widest = max((_length(words, size, bold) for words, size, _, bold in lines), default=0)
    return _Block(lines, _even(widest), _even(sum(_leading(line[1]) for line in lines)))


def _wrap(text: str, width: int, size: int, bold: bool) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and _length(longer, size, bold) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _length(text: str, size: int, bold: bool) -> float:
    return _font(4 * size, bold).getlength(text) / 4 * CONDENSED


def _leading(size: int) -> int:
    return round(size * 1.3)


def _write(canvas: Image.Image, block: _Block, x: int, y: int, centred: bool) -> None:
    for words, size, colour, bold in block.lines:
        # Drawn four times larger and reduced: even strokes, free of the pixel grid, and condensed.
        large = Image.new("L", (int(4 * _length(words, size, bold) / CONDENSED) + 8, 6 * size))
        ImageDraw.Draw(large).text((4, 4 * size), words, 255, _font(4 * size, bold), anchor="ls")
        small = (max(1, round(large.width / 4 * CONDENSED)), large.height // 4)
        mask = large.resize(small, Image.Resampling.LANCZOS)
        canvas.paste(colour, (x - mask.width // 2 if centred else x, y), mask)
        y += _leading(size)


def _cell_width(room: int, pictures: Sequence[np.ndarray]) -> int:
    """The widest cell that enlarges all images by whole factors, if there is one."""
    room = max(2, min(room, LARGEST))
    whole = math.lcm(2, *{images.shape[2] for images in pictures})
    return room // whole * whole if whole <= room else room // 2 * 2


def _resized(image: np.ndarray, width: int, height: int) -> Image.Image:
    smaller = image.shape[1] > width
    how = Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST
    return Image.fromarray(image).resize((width, height), how)


def _even(value: float) -> int:
    return math.ceil(value / 2) * 2  # so that animations can be halved exactly


def _cycle(colours: Sequence[str]) -> Iterable[str]:
    while True:
        yield from colours


def _same_length(name: str, values: Sequence[str] | None, others: str, n: int) -> None:
    if values and len(values) != n:
        raise ValueError(f"{name} must be as many as the {others} ({n}), got {len(values)}")
