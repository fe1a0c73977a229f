"""`minidiff evaluate`, `evaluate-classifier`, `evaluate-semantic`: the figures of the cards."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from minidiff.cli.options import CARD, join_processes, positive


@click.command()
@click.argument("model")
@click.option("--name", help="The report: shapes, cifar10, butterflies, emoji.  [default: MODEL]")
@click.option("--number", type=int, help="Images of each kind.  [default: the report's]")
@CARD
def evaluate(model, name, number, card) -> None:
    """Measure a trained model: the figures of its card. Under torchrun the work is shared out."""
    from minidiff import training, zoo
    from minidiff.evaluation import cards
    from minidiff.evaluation import diffusion as evaluation

    if number is not None:
        positive(number=number)
    join_processes()
    reports = {
        "shapes": evaluation.report_shapes,
        "cifar10": evaluation.report_cifar10,
        "butterflies": evaluation.report_butterflies,
        "emoji": evaluation.report_emoji,
    }
    name = name or Path(model).stem
    if name not in reports:
        raise ValueError(f"there is no report {name!r}: expected one of {', '.join(reports)}")
    trained = zoo.load(model)
    figures = reports[name](trained, **({} if number is None else {"n": number}))
    if training.rank() > 0:
        return
    if card:
        cards.write(card, name, trained, figures, " ".join(["minidiff", *sys.argv[1:]]))
    for figure in figures:
        click.echo(cards.line(figure))
    if card:
        click.echo(f"card: {card}")


@click.command()
@click.argument("model")
@click.option("--guides", default="shapes", show_default=True, help="The model it guides.")
@click.option("--control", help="A classifier that was trained with --shuffled.")
@click.option("--number", default=1000, show_default=True, help="Images to classify.")
@click.option("--guided", default=96, show_default=True, help="Images to draw at each scale.")
@CARD
def evaluate_classifier(model, guides, control, number, guided, card) -> None:
    """Measure a classifier of noisy images and its guidance: the figures of its card.

    minidiff evaluate-classifier cifar10 --guides cifar10
    """
    from minidiff import noisy_classifier, zoo
    from minidiff.evaluation import cards, classifier_guidance

    positive(number=number, guided=guided)
    judge = noisy_classifier.load(model)
    other = noisy_classifier.load(control) if control else None
    figures = classifier_guidance.report(zoo.load(guides), judge, other, number, guided)
    if card is not None:  # first: what reads the output may close it
        command = " ".join(["minidiff", *sys.argv[1:]])
        classifier_guidance.write_card(card, judge, figures, command)
    for figure in figures:
        click.echo(cards.line(figure))


@click.command()
@click.argument("encoder")
@click.option("--clip", "eye", default="shapes", show_default=True, help="The CLIP it belongs to.")
@click.option("--number", default=48, show_default=True, help="Images of each kind.")
@CARD
def evaluate_semantic(encoder, eye, number, card) -> None:
    """Measure a CLIP's encoder of noisy images and its guidance: the figures of its card.

    minidiff evaluate-semantic shapes
    """
    from minidiff import clip, zoo
    from minidiff.clip import noisy
    from minidiff.evaluation import cards, semantic_guidance

    positive(number=number)
    sees, (reads, _) = noisy.load(encoder), clip.load(eye)
    figures = semantic_guidance.report(zoo.load("shapes"), reads, sees, number)
    if card is not None:
        command = " ".join(["minidiff", *sys.argv[1:]])
        semantic_guidance.write_card(card, sees, figures, command)
    for figure in figures:
        click.echo(cards.line(figure))
