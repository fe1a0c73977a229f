"""The command line: `minidiff train | sample | models | demo`. Try `minidiff train --help`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from minidiff.cli.clip import clip
from minidiff.cli.edit import edit
from minidiff.cli.guide import guide
from minidiff.cli.options import ANY_SEED, png_file
from minidiff.cli.score import score
from minidiff.cli.train import join_processes, train, train_classifier, train_clip


class Group(click.Group):
    """Errors that a user can mend are told in one sentence; the rest are bugs and show where."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            click.echo(str(stop) or "stopped", err=True)
            ctx.exit(130)
        except BrokenPipeError:  # `minidiff models | head`: click ends quietly
            raise
        except (ValueError, OSError, FloatingPointError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="minidiff")
def main() -> None:
    """Image diffusion from scratch: train a model, sample from one, see what there is."""
    from minidiff.device import keep_memory

    keep_memory()


main.add_command(clip)
main.add_command(edit)
main.add_command(guide)
main.add_command(score)
main.add_command(train)
main.add_command(train_clip)
main.add_command(train_classifier)


@main.command()
def models() -> None:
    """List the trained models that come with minidiff."""
    from minidiff import checkpoint, zoo

    for name, path in zoo.names().items():
        about = checkpoint.about(path)
        megabytes = path.stat().st_size / 1e6
        takes = "captions" if "text" in about else "classes" if "classes" in about else "no prompt"
        click.echo(f"{name:14} {about['size']} px  {takes:10} {megabytes:5.1f} MB  ", nl=False)
        click.echo(about["card"].get("data", ""))
        if "classes" in about:
            click.echo(f"{'':14} {', '.join(about['classes'])}")


@main.command()
@click.argument("prompts", nargs=-1)
@click.option(
    "--model", default="shapes", show_default=True, help="A name of `minidiff models`, or a file."
)
@click.option("-n", "--number", default=8, show_default=True, help="Images of each prompt.")
@click.option(
    "--scale", default=None, type=float, help="Guidance: 1 for none.  [default: 3 with prompts]"
)
@click.option("--steps", default=50, show_default=True)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=ANY_SEED,
    help="Image i of a seed is always the same.",
)
@click.option("--out", default="samples.png", show_default=True, callback=png_file)
def sample(prompts, model, number, scale, steps, seed, out) -> None:
    """Draw images of PROMPTS: captions, or names of classes.

    \b
    minidiff sample "a red circle left of a blue square"
    minidiff sample --model cifar10 horse ship
    """
    from minidiff import evaluation, plot, training, zoo

    _positive(number=number, steps=steps)
    join_processes()
    trained = zoo.load(model)
    if scale is None:
        scale = 3.0 if prompts else 1.0
    wanted = [p for p in prompts or (None,) for _ in range(number)]
    images = evaluation.sample_many(trained, wanted, scale=scale, steps=steps, seed=seed)
    if training.rank() > 0:
        return
    labels = list(prompts) or [Path(model).stem]
    rows = []
    for label, part in zip(labels, images.split(number), strict=True):
        first, *more = part.split(10)  # wider sheets are hard to see
        rows += [(label, first), *[("", row) for row in more]]
    plot.save(plot.rows(rows), out)
    click.echo(f"{len(wanted)} images: {out}")


@main.command()
@click.argument("model")
@click.option("--guides", default="shapes", show_default=True, help="The model it guides.")
@click.option("--control", help="A classifier that was trained with --shuffled.")
@click.option("--number", default=1000, show_default=True, help="Images to classify.")
@click.option("--guided", default=96, show_default=True, help="Images to draw at each scale.")
@click.option("--card", type=click.Path(dir_okay=False, path_type=Path), help="Write it here.")
def evaluate_classifier(model, guides, control, number, guided, card) -> None:
    """Measure a classifier of noisy images and its guidance: the figures of its card.

    minidiff evaluate-classifier cifar10 --guides cifar10
    """
    from minidiff import noisy_classifier, zoo
    from minidiff.evaluation import cards, classifier_guidance

    _positive(number=number, guided=guided)
    judge = noisy_classifier.load(model)
    other = noisy_classifier.load(control) if control else None
    figures = classifier_guidance.report(zoo.load(guides), judge, other, number, guided)
    if card is not None:  # first: what reads the output may close it
        command = " ".join(["minidiff", *sys.argv[1:]])
        classifier_guidance.write_card(card, judge, figures, command)
    for figure in figures:
        click.echo(cards.line(figure))


@main.command()
@click.argument("encoder")
@click.option("--clip", "eye", default="shapes", show_default=True, help="The CLIP it belongs to.")
@click.option("--number", default=48, show_default=True, help="Images of each kind.")
@click.option("--card", type=click.Path(dir_okay=False, path_type=Path), help="Write it here.")
def evaluate_semantic(encoder, eye, number, card) -> None:
    """Measure a CLIP's encoder of noisy images and its guidance: the figures of its card.

    minidiff evaluate-semantic shapes
    """
    from minidiff import clip, zoo
    from minidiff.clip import noisy
    from minidiff.evaluation import cards, semantic_guidance

    _positive(number=number)
    sees, (reads, _) = noisy.load(encoder), clip.load(eye)
    figures = semantic_guidance.report(zoo.load("shapes"), reads, sees, number)
    if card is not None:
        command = " ".join(["minidiff", *sys.argv[1:]])
        semantic_guidance.write_card(card, sees, figures, command)
    for figure in figures:
        click.echo(cards.line(figure))


@main.command()
@click.option("--out", default="figures/demo.png", show_default=True, callback=png_file)
def demo(out) -> None:
    """Draw a sheet with every trained model: words, classes, butterflies, and how they come."""
    from minidiff.cli.demo import draw

    start = time.perf_counter()
    draw(out, say=click.echo)
    click.echo(f"{time.perf_counter() - start:.0f} s: {out}")


@main.command()
@click.argument("model")
@click.option("--name", help="The report: shapes, cifar10, butterflies, emoji.  [default: MODEL]")
@click.option("--number", type=int, help="Images of each kind.  [default: the report's]")
@click.option(
    "--card", type=click.Path(dir_okay=False), help="Write the model's card here, and its sheet."
)
def evaluate(model, name, number, card) -> None:
    """Measure a trained model: the figures of its card. Under torchrun the work is shared out."""
    from minidiff import evaluation, training, zoo
    from minidiff.evaluation import cards

    if number is not None:
        _positive(number=number)
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


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"--{name} {value}: expected at least 1")
