"""Type: the measures and colours that all figures share, and text set in blocks on a picture."""

import math
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

WIDTH = 1680  # pixels of the widest sheet, shown at half of that
BODY, SMALL, HEADING = 26, 22, 30  # text sizes
INK, GREY, RULE = "#24292f", "#6e7781", "#d8dee4"
CONDENSED = 0.9  # DejaVu Sans, the one font at hand everywhere, is handsomer a tenth narrower


class Block(NamedTuple):
    """Wrapped text: lines of (words, size, colour, bold)."""

    lines: list[tuple[str, int, str, bool]]
    width: int
    height: int


def set_text(
    text: str, width: int, size: int = BODY, *, bold: bool = False, grey: bool = False
) -> Block:
    """Set a text in lines of at most `width` pixels; paragraphs after the first: small and grey."""
    lines = []
    for i, paragraph in enumerate(text.split("\n") if text else []):
        look = (SMALL, GREY, False) if i else (size, GREY if grey else INK, bold)
        lines += [(line, *look) for line in _wrap(paragraph, width, look[0], look[2])]
    widest = max((_length(words, size, bold) for words, size, _, bold in lines), default=0)
    return Block(lines, even(widest), even(sum(_leading(line[1]) for line in lines)))


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
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    matplotlib = Path(find_spec("matplotlib").origin).parent  # whose import takes .1 s
    path = matplotlib / "mpl-data" / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _length(text: str, size: int, bold: bool) -> float:
    return _font(4 * size, bold).getlength(text) / 4 * CONDENSED


def _leading(size: int) -> int:
    return round(size * 1.3)


def write(canvas: Image.Image, block: Block, x: int, y: int, centred: bool) -> None:
    """Write a block on the canvas: its top is at y, its left side or its middle at x."""
    for words, size, colour, bold in block.lines:
        # Drawn four times larger and reduced: even strokes, free of the pixel grid, and condensed.
        large = Image.new("L", (int(4 * _length(words, size, bold) / CONDENSED) + 8, 6 * size))
        ImageDraw.Draw(large).text((4, 4 * size), words, 255, _font(4 * size, bold), anchor="ls")
        small = (max(1, round(large.width / 4 * CONDENSED)), large.height // 4)
        mask = large.resize(small, Image.Resampling.LANCZOS)
        canvas.paste(colour, (x - mask.width // 2 if centred else x, y), mask)
        y += _leading(size)


def even(value: float) -> int:
    """The next even number, so that animations can be halved exactly."""
    return math.ceil(value / 2) * 2
