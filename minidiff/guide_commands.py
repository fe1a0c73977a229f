"""`minidiff guide`: a trained model under a guide that knows what the model was not told.

Each command draws the same seed without its guide, too, and says what it did.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click

from minidiff.edit_commands import MODEL, NUMBER, SEED, STEPS, _png, _together, _words, _write


@click.group()
def guide() -> None:
    """Guide a trained model by a classifier, a CLIP, or a picture."""


# ------------------------------------------------------------------------------------ the options


def _all_words(context: click.Context, parameter: click.Parameter, values: tuple) -> tuple:
    return tuple(_words(context, parameter, value) for value in values)


def _scale(default: float, what: str) -> Callable:
    text = f"Weight of {what}; 0 is unguided."
    return click.option("--scale", default=default, show_default=True, help=text)


PROMPTS = click.argument("prompts", nargs=-1, required=True, callback=_all_words)
OUT = click.option("--out", default="guided.png", show_default=True, callback=_png)
PATH = _together(NUMBER, STEPS, SEED, OUT)


# ----------------------------------------------------------------------------------- the commands


@guide.command("classifier")
@PROMPTS
@MODEL
@click.option("--classifier", "judge", help="A file.  [default: the one that ships for --model]")
@_together(_scale(3.0, "the classifier"), PATH)
def classifier_command(prompts, model, judge, scale, number, steps, seed, out) -> None:
    """Classifier guidance: the model's null condition towards names that a classifier knows.

    \b
    minidiff guide classifier "green star" "small, left"
    minidiff guide classifier --model cifar10 horse ship
    """
    from minidiff import classifier_guidance, noisy_classifier, zoo

    trained = zoo.load(model)
    knows = noisy_classifier.load(judge or Path(model).stem)

    start, table = time.perf_counter(), []
    for prompt in prompts:
        knows.labels(prompt)  # refuses what it does not know, before anything is drawn
    for prompt, weight in [(prompts[0], 0.0), *((prompt, scale) for prompt in prompts)]:
        wanted = [prompt] * number
        drawn = classifier_guidance.draw(trained, knows, wanted, weight, steps=steps, seed=seed)
        right = int(classifier_guidance.shows(knows, wanted, drawn).sum())
        if table:
            click.echo(f"{prompt}: {right} of {number} by a judge that does not guide")
        table.append((f"{prompt}\n{right} of {number} right" if table else "unguided", drawn))
    did = f"Classifier guidance of {Path(model).stem}: scale {scale:g}, {steps} steps"
    _write_rows(out, did, table, start)


def _write_rows(out: str, did: str, table: list, start: float) -> None:
    """Draw rows (label, images (n,3,H,W)) under what was done; say that, too."""
    from minidiff import plot

    _write(out, did, plot.rows(table, title=did), time.perf_counter() - start)
