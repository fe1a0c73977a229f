"""`minidiff clip`: a trained CLIP, published or our own, on one's own pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from minidiff.cli.options import CARD, png_file, positive

MODEL = click.option("--model", default="ViT-B/32", show_default=True, help="Its name or file.")


@click.group()
def clip() -> None:
    """Use a trained CLIP: one that is published, or one of our own."""


@clip.command("search")
@click.argument("text")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@MODEL
@click.option("--best", default=16, show_default=True, help="How many to show.")
@click.option("--out", default="found.png", show_default=True, callback=png_file)
def clip_search(text, folder, model, best, out) -> None:
    """Print, and draw, the pictures of a folder that fit a text best.

    minidiff clip search "a red butterfly" ~/pictures
    """
    import torch

    from minidiff import clip, plot
    from minidiff.data.images import load_image

    positive(best=best)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found = clip.search(*clip.load(model), text, files, best)
    for cosine, path in found:
        click.echo(f"{cosine:.3f}  {path}")
    drawn = torch.cat([load_image(path, 96) for _, path in found])
    plot.save(plot.grid(drawn, [f"{cosine:.3f} {path.name}" for cosine, path in found]), out)
    click.echo(f"wrote {out}")


@clip.command("look")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, required=True)
@MODEL
@click.option("--out", default="looked.png", show_default=True, callback=png_file)
def clip_look(image, texts, model, out) -> None:
    """Draw where a CLIP looks in a picture for each of some texts; print how well they fit.

    minidiff clip look photograph.jpg "a dog" "a ball"
    """
    import torch

    from minidiff import clip, plot
    from minidiff.clip.use import image_features, text_features
    from minidiff.data.images import load_image, to_pil

    picture = load_image(image, 224)  # refuses what is no picture
    seer, preprocess = clip.load(model)
    upright = to_pil(load_image(image))  # as it is drawn: turned, on white
    pixels = preprocess(upright)[None].to(seer.logit_scale.device)
    cosines = (text_features(seer, texts) @ image_features(seer, pixels)[0]).tolist()
    maps = clip.looks_at(seer, pixels.expand(len(texts), -1, -1, -1), texts).cpu()
    seen = plot.heatmap_over(picture.expand(len(texts), -1, -1, -1), maps)
    labels = [f"{text}\n{cosine:.3f}" for text, cosine in zip(texts, cosines, strict=True)]
    for text, cosine in zip(texts, cosines, strict=True):
        click.echo(f"{cosine:.3f}  {text}")
    plot.save(plot.grid(torch.cat([picture, seen]), [image.name, *labels]), out)
    click.echo(f"wrote {out}")


@clip.command("evaluate")
@click.argument("model")
@click.option("--data", default="shapes", type=click.Choice(["shapes", "cifar10"]))
@click.option("--number", type=int, help="Images of each kind.  [default: the report's]")
@CARD
def clip_evaluate(model, data, number, card) -> None:
    """Measure a small CLIP of our own: the figures of its card."""
    from minidiff import checkpoint, clip
    from minidiff.clip import weights
    from minidiff.evaluation import cards
    from minidiff.evaluation import clip as report

    if number is not None:
        positive(number=number)
    trained, _ = clip.load(model)
    reports = {"shapes": report.report_shapes, "cifar10": report.report_cifar10}
    figures = reports[data](trained, **({} if number is None else {"n": number}))
    for figure in figures:
        click.echo(cards.line(figure))
    if card is not None:
        about = checkpoint.about(weights.shipped().get(model, Path(model)))
        command = " ".join(["minidiff", *sys.argv[1:]])
        report.write_card(card, card.stem, trained, about["card"], figures, command)
