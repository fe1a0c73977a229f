"""Figures: sheets of images, animations, charts, all in one style."""

from minidiff.plot.charts import COLOURS, Panel, curves
from minidiff.plot.sheets import (
    GAP,
    LARGEST,
    MARGIN,
    animate,
    grid,
    heatmap_over,
    pixels,
    rows,
    save,
    trajectory,
)
from minidiff.plot.typesetting import WIDTH

__all__ = [
    "COLOURS",
    "GAP",
    "LARGEST",
    "MARGIN",
    "WIDTH",
    "Panel",
    "animate",
    "curves",
    "grid",
    "heatmap_over",
    "pixels",
    "rows",
    "save",
    "trajectory",
]
