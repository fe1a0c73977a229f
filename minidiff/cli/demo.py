"""`minidiff demo`."""

from __future__ import annotations

import time

import click

from minidiff.cli.options import png_file


@click.command()
@click.option("--out", default="figures/demo.png", show_default=True, callback=png_file)
def demo(out) -> None:
    """Draw a sheet with every trained model: words, classes, butterflies, and how they come."""
    from minidiff.evaluation.demo import draw

    start = time.perf_counter()
    draw(out, say=click.echo)
    click.echo(f"{time.perf_counter() - start:.0f} s: {out}")
