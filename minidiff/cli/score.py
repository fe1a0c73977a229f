"""`minidiff score`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("-n", "--number", default=96, show_default=True, help="Scenes, a multiple of 8.")
@click.option("--quick", is_flag=True, help="Few scenes; only checks with a margin count.")
@click.option("--seed", type=int, help="Of scenes and noises.  [default: the graded one]")
@click.option("--out", default="docs", show_default=True, type=click.Path(path_type=Path))
@click.option("--figure", default="figures/scorecard.png", show_default=True)
def score(number, quick, seed, out, figure) -> None:
    """Measure every method on the same seeds, each against a control.

    Writes scorecard.md and scorecard.json, and the sheet of pictures. With --quick nothing is
    written, and the command fails if a check does that holds by a margin.
    """
    from minidiff import plot
    from minidiff.scoring import run
    from minidiff.scoring.bench import GRADED, Bench

    n = run.QUICK if quick else number
    bench = Bench(n, GRADED if seed is None else seed, quick=quick)
    (rows, left_out), seconds = run.timed(lambda: run.score(bench, click.echo))
    missed = run.failures(rows, firm=quick)
    click.echo(f"{len(rows)} methods in {seconds / 60:.1f} minutes; {len(missed)} checks miss")
    for failure in missed:
        click.echo(f"  {failure}")
    if quick:
        if missed:
            raise click.ClickException("checks that should hold by a margin do not")
        return
    written = run.write(out, rows, left_out, run.about(bench, seconds))
    written.append(plot.save(run.sheet(rows), figure))
    click.echo("wrote " + ", ".join(map(str, written)))
