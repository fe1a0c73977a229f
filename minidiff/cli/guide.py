"""`minidiff guide`: a trained model under a guide that knows what the model was not told.

Each command draws the same seed without its guide, too, and says what it did.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minidiff.cli.options import (
    MODEL,
    NUMBER,
    SEED,
    STEPS,
    not_empty,
    png_file,
    together,
    write_sheet,
)

if TYPE_CHECKING:
    from torch import Tensor

    from minidiff.clip import CLIP
    from minidiff.denoiser import Denoiser
    from minidiff.zoo import Diffusion


@click.group()
def guide() -> None:
    """Guide a trained model by a classifier, a CLIP, or a picture."""


# ------------------------------------------------------------------------------------ the options


def _all_words(context: click.Context, parameter: click.Parameter, values: tuple) -> tuple:
    return tuple(not_empty(context, parameter, value) for value in values)


def _scale(default: float, what: str) -> Callable:
    text = f"Weight of {what}; 0 is unguided."
    return click.option("--scale", default=default, show_default=True, help=text)


PROMPTS = click.argument("prompts", nargs=-1, required=True, callback=_all_words)
OUT = click.option("--out", default="guided.png", show_default=True, callback=png_file)
PATH = together(NUMBER, STEPS, SEED, OUT)


# ----------------------------------------------------------------------------------- the commands


@guide.command("classifier")
@PROMPTS
@MODEL
@click.option("--classifier", "judge", help="A file.  [default: the one that ships for --model]")
@together(_scale(3.0, "the classifier"), PATH)
def classifier_command(prompts, model, judge, scale, number, steps, seed, out) -> None:
    """Classifier guidance: the model's null condition towards names that a classifier knows.

    \b
    minidiff guide classifier "green star" "small, left"
    minidiff guide classifier --model cifar10 horse ship
    """
    from minidiff import noisy_classifier, zoo
    from minidiff.evaluation import classifier_guidance

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


@guide.command("clip")
@click.argument("targets", nargs=-1, required=True, callback=_all_words, metavar="TEXT|IMAGE...")
@MODEL
@click.option("--clip", "eye", help="Its name or file.  [default: that of --model, or ViT-B/32]")
@click.option("--judge", help="A CLIP that only judges.  [default: the one that ships, if any]")
@click.option("--cuts", default=16, show_default=True, help="Random cut-outs that it looks at.")
@click.option("--shortcut", is_flag=True, help="Skip the network's derivative: cheaper, cruder.")
@together(_scale(100.0, "the CLIP"), PATH)
def clip_command(
    targets, model, eye, judge, cuts, shortcut, scale, number, steps, seed, out
) -> None:
    """CLIP guidance: the model's null condition towards texts, or towards what pictures show.

    \b
    minidiff guide clip "a red star" "a blue ring at the top" drawing.png
    minidiff guide clip --clip ViT-B/32 --model google/ddpm-celebahq-256 "a smiling man"
    """
    from minidiff import clip, zoo
    from minidiff.clip import weights

    trained, name, ours = zoo.load(model), Path(model).stem, weights.shipped()
    eye = eye or (name if name in ours else "ViT-B/32")
    judge = judge or (f"{eye}_judge" if f"{eye}_judge" in ours else None)
    eyes = [clip.load(file, trained.device)[0] for file in filter(None, (eye, judge))]
    wanted = [[_target(seer, target) for seer in eyes] for target in targets]

    def draw(target: Tensor, weight: float) -> Tensor:
        how = {"cuts": cuts, "through_network": not shortcut}
        return _drawn_by_clip(trained, eyes[0], target, weight, how, number, steps, seed)

    start, plain = time.perf_counter(), draw(wanted[0][0], 0.0)
    table = [("unguided", plain.cpu())]
    for target, embeddings in zip(targets, wanted, strict=True):
        drawn, said = draw(embeddings[0], scale), []
        for role, seer, embedding in zip(("the CLIP", "its judge"), eyes, embeddings, strict=False):
            before, after = (_fit(seer, images, embedding) for images in (plain, drawn))
            said.append(f"{role} {before:.3f} to {after:.3f}")
        label = Path(target).name if os.path.isfile(target) else target
        click.echo(f"{label}: mean cosine by {', by '.join(said)}")
        table.append((label + "".join(f"\n{line}" for line in said), drawn.cpu()))
    did = f"CLIP guidance of {name} by {Path(eye).stem}: scale {scale:g}, {cuts} cut-outs"
    did += f"{', shortcut' if shortcut else ''}, {steps} steps"
    _write_rows(out, did, table, start)


@guide.command("semantic")
@click.option("--text", callback=not_empty, help="Towards what it says.")
@click.option("--content", type=click.Path(path_type=Path), help="Towards what a picture shows.")
@click.option("--structure", type=click.Path(path_type=Path), help="Towards what is where in it.")
@click.option("--style", type=click.Path(path_type=Path), help="Towards its colours and textures.")
@click.option("--weight", type=(str, float), multiple=True, metavar="AIM WEIGHT", help="Of an aim.")
@MODEL
@click.option("--encoder", help="Its file.  [default: the one that ships for --clip]")
@click.option("--clip", "eye", default="shapes", show_default=True, help="That reads the text.")
@together(_scale(1.0, "all aims together"), PATH)
def semantic_command(weight, model, encoder, eye, scale, number, steps, seed, out, **asked) -> None:
    """Semantic Diffusion Guidance: towards a text, a picture's content, structure or style.

    Several aims are added up, each with its weight.

    \b
    minidiff guide semantic --structure drawing.png
    minidiff guide semantic --text "a green star" --style photo.jpg --weight style 10
    """
    from torch import Generator

    from minidiff import clip, zoo
    from minidiff.clip import noisy
    from minidiff.clip.use import text_features
    from minidiff.data.images import load_image
    from minidiff.editing import semantic
    from minidiff.evaluation import semantic_guidance

    wanted = {aim: value for aim, value in asked.items() if value is not None}
    if not wanted:
        raise ValueError("expected an aim: --text, --content, --structure or --style")
    weights = semantic_guidance.WEIGHTS | dict(weight)
    if unknown := set(weights) - set(asked):
        raise ValueError(f"--weight {unknown.pop()}: expected one of {', '.join(asked)}")
    trained = zoo.load(model)
    sees = noisy.load(encoder or eye, trained.device)
    if sees.schedule != trained.schedule:
        raise ValueError("the encoder was trained on another schedule than the model's")
    aims, table = [], []
    for aim, value in wanted.items():
        if aim == "text":
            texts = text_features(clip.load(eye, trained.device)[0], [value])
            aims.append((weights[aim], semantic.text(sees, texts)))
            continue
        picture = load_image(value, trained.size)
        table.append((f"{aim}\n{value.name}", picture))
        own = Generator().manual_seed(seed + 1)  # of the picture's noise
        aims.append((weights[aim], getattr(semantic, aim)(sees, picture.to(trained.device), own)))
    start, how = time.perf_counter(), {"steps": steps, "seed": seed}
    for label, strength in (("unguided", 0.0), ("guided", scale)):
        drawn = semantic_guidance.draw(trained, semantic.total(*aims), number, strength, **how)
        table.append((label, drawn))
    said = [f"{aim} {weights[aim]:g}" for aim in wanted]
    said += [f'"{wanted["text"]}"'] if "text" in wanted else []
    did = f"Semantic guidance of {Path(model).stem}: {', '.join(said)}; scale {scale:g}"
    _write_rows(out, f"{did}, {steps} steps", table, start)


def _drawn_by_clip(
    model: Diffusion,
    seer: CLIP,
    target: Tensor,
    scale: float,
    how: dict,
    number: int,
    steps: int,
    seed: int,
) -> Tensor:
    """Images (number,3,H,W) of the model's null condition, drawn to the target (1,D)."""
    from torch import Generator

    from minidiff import clip
    from minidiff.editing import clip_guided
    from minidiff.samplers import ddpm_step

    model.network.requires_grad_(False)  # gradients are of images
    how = how | {"generator": Generator().manual_seed(seed + 1)}  # of the cut-outs

    def guide(denoise: Denoiser) -> Denoiser:
        return clip_guided(denoise, clip.encoder(seer), target, scale, **how)

    return model.sample(
        None,
        number,
        steps=steps,
        seed=seed,
        step=ddpm_step,
        guide=guide,
        batch=number,  # the cut-outs of an image depend on the batch it is drawn in
        progress=True,
    )


def _target(seer: CLIP, target: str) -> Tensor:
    """The embedding (1,D) of what is wanted: of a picture, if there is such a file, or a text."""
    from minidiff import clip
    from minidiff.clip.use import text_features
    from minidiff.data.images import load_image

    named = target.lower().endswith((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff"))
    if not named and not os.path.isfile(target):  # which a text of any length may be asked
        return text_features(seer, [target])
    picture = load_image(target, seer.config.size)
    return clip.encoder(seer)(picture.to(seer.logit_scale.device))


def _fit(seer: CLIP, images: Tensor, embedding: Tensor) -> float:
    """The mean cosine of images (B,3,H,W) with what was wanted (1,D)."""
    from minidiff import clip

    return (clip.encoder(seer)(images.clamp(-1, 1)) @ embedding.T).mean().item()


def _write_rows(out: str, did: str, table: list, start: float) -> None:
    """Draw rows (label, images (n,3,H,W)) under what was done; say that, too."""
    from minidiff import plot

    write_sheet(out, did, plot.rows(table, title=did), time.perf_counter() - start)
