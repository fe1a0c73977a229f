"""Charts: panels of lines that are named where they end. `plot.curves` is the door to them."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from minidiff.plot.typesetting import BODY, CONDENSED, GREY, INK, RULE, SMALL, WIDTH

COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"


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
    for (name, line), colour in zip(panel.series.items(), cycle(COLOURS)):
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
        low, high = line.get_view_interval()
        if log:  # over more than three decades the powers of ten alone
            steps = LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,))
        else:
            steps = MaxNLocator(ticks, steps=(1, 2, 2.5, 5, 10))
        line.set_major_locator(steps)
        line.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if panel.log_y:
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _name_lines(axis: Any, panel: Panel) -> None:
    """Write each name at the right edge, at the height where its line ends, none over another."""
    names = list(panel.series) + list(panel.references)
    colours = [c for _, c in zip(panel.series, cycle(COLOURS))]
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
