"""`minidiff edit`: the methods of `minidiff.editing` on a picture of one's own.

Each command brings the picture to the model's size, edits it, says what it did and draws a sheet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minidiff.cli.options import (
    ASKED,
    BOX,
    IMAGE,
    MASK,
    MODEL,
    NUMBER,
    OUT,
    PATH,
    PROMPT,
    SCALE,
    STEPS,
    begin,
    copies,
    finish,
    guided_denoiser,
    mask_cells,
    not_empty,
    percent,
    read_mask,
    result_cells,
    seeded,
    timed,
    together,
    write_sheet,
)

if TYPE_CHECKING:
    from torch import Tensor

    from minidiff.denoiser import Denoiser


@click.group()
def edit() -> None:
    """Edit a picture of your own: a PNG, JPEG or other file, of any size."""


@edit.command()
@IMAGE
@together(MODEL, PROMPT, SCALE)
@click.option("--strength", default=0.5, show_default=True, help="0 is faithful, 1 all new.")
@click.option("--repeats", default=1, show_default=True, help="Start again from the result.")
@together(MASK, BOX, NUMBER, PATH)
def sdedit(
    image, model, prompt, scale, strength, repeats, mask, box, number, steps, seed, out
) -> None:
    """SDEdit: make strokes, or any crude picture, look real.

    minidiff edit sdedit --prompt "a large red heart" drawing.png
    """
    from minidiff import editing

    trained, picture = begin(model, image)
    keep = read_mask(mask, box, image, trained, seed) if (mask, box) != (None, None) else None
    denoise, towards = guided_denoiser(trained, prompt, scale)

    def draw() -> Tensor:
        return editing.sdedit(
            denoise,
            copies(picture, number),
            trained.schedule.path(steps),
            strength=strength,
            repeats=repeats,
            mask=keep,
            generator=seeded(seed),
            progress=True,
        )

    results, seconds = timed(trained, draw)
    last = max(round(strength * steps), 1)
    did = f"SDEdit{towards}: strength {strength:g}, the last {last} of {steps} steps"
    did += f", {repeats} times" if repeats > 1 else ""
    finish(out, did, [("input", picture), *mask_cells(keep), *result_cells(results)], seconds)


@edit.command()
@IMAGE
@together(MODEL, PROMPT, SCALE, MASK, BOX)
@click.option("--length", default=1, show_default=True, help="Levels of a jump back up.")
@click.option("--times", default=10, show_default=True, help="Passes of each level; 1: no jumps.")
@together(NUMBER, PATH)
def repaint(
    image, model, prompt, scale, mask, box, length, times, number, steps, seed, out
) -> None:
    """RePaint: fill in what a mask leaves out.

    minidiff edit repaint --model butterflies --mask hole.png photograph.jpg
    """
    from minidiff import editing

    trained, picture = begin(model, image)
    keep = read_mask(mask, box, image, trained, seed)
    denoise, towards = guided_denoiser(trained, prompt, scale)

    def draw() -> Tensor:
        return editing.repaint(
            denoise,
            copies(picture, number),
            keep,
            trained.schedule.path(steps),
            length=length,
            times=times,
            generator=seeded(seed),
            progress=True,
        )

    results, seconds = timed(trained, draw)
    did = f"RePaint{towards}: {steps} steps, jumps of {length}, {times} passes"
    finish(out, did, [("input", picture), *mask_cells(keep), *result_cells(results)], seconds)


@edit.command()
@IMAGE
@together(MODEL, PROMPT, SCALE)
@click.option("--factor", default=4, show_default=True, help="Side of the pixel blocks held.")
@click.option("--until", default=0.0, show_default=True, help="Time t below which all is free.")
@together(NUMBER, PATH)
def ilvr(image, model, prompt, scale, factor, until, number, steps, seed, out) -> None:
    """ILVR: draw new images with the coarse look of the picture.

    minidiff edit ilvr --model butterflies --factor 8 butterfly.jpg
    """
    from minidiff import editing

    trained, picture = begin(model, image)
    denoise, towards = guided_denoiser(trained, prompt, scale)

    def draw() -> Tensor:
        return editing.ilvr(
            denoise,
            copies(picture, number),
            trained.schedule.path(steps),
            factor=factor,
            until=until,
            generator=seeded(seed),
            progress=True,
        )

    results, seconds = timed(trained, draw)
    held = ("what is held", editing.low_pass(picture, factor))
    did = f"ILVR{towards}: the means of {factor} x {factor} pixels held down to t = {until:g}"
    did += f", {steps} steps"
    finish(out, did, [("input", picture), held, *result_cells(results)], seconds)


@edit.command()
@IMAGE
@together(MODEL, ASKED, MASK, BOX)
@click.option("--clip", "judge", default="ViT-B/32", show_default=True, help="Its name or file.")
@click.option("--scale", default=100.0, show_default=True, help="Weight of what it says.")
@click.option("--strength", default=0.75, show_default=True, help="0 is faithful, 1 all new.")
@click.option(
    "--alone",
    is_flag=True,
    help="Show the CLIP the edited area on grey, as the paper does: better to add a thing beside "
    "others than to exchange one.",
)
@together(NUMBER, PATH)
def blended(
    image, model, prompt, mask, box, judge, scale, strength, alone, number, steps, seed, out
) -> None:
    """Blended Diffusion: edit an area until a CLIP finds the prompt there.

    The prompt is read by the CLIP alone. The results are shown in the order of its cosines.

    minidiff edit blended --prompt "a red butterfly" --model butterflies --box .2,.2,.8,.8 photo.jpg
    """
    import torch

    from minidiff import editing

    trained, picture = begin(model, image)
    keep = read_mask(mask, box, image, trained, seed)
    encode, target = _seen_by_clip(judge, prompt)
    score = editing.clip_score(encode, target, cuts=8, generator=seeded(seed + 1))
    denoise, _ = guided_denoiser(trained, None, None)

    def cosine(images: Tensor) -> Tensor:
        return encode(images) @ target[0]

    if not alone:
        score, cosine = (editing.in_place(says, picture, keep) for says in (score, cosine))

    def draw() -> Tensor:
        return editing.blended(
            denoise,
            copies(picture, number),
            keep,
            trained.schedule.path(steps),
            score,
            scale,
            strength=strength,
            generator=seeded(seed),
            progress=True,
        )

    results, seconds = timed(trained, draw)
    results = results[editing.rank(results, keep, cosine)]
    with torch.no_grad():
        before, *after = cosine(torch.cat([picture, results]) * (1 - keep)).tolist()
    shown = [(f"cosine {c:.3f}", one[None]) for c, one in zip(after, results, strict=True)]
    did = f'Blended Diffusion towards "{prompt}": scale {scale:g}, strength {strength:g}'
    did += f", {steps} steps" + (", the CLIP seeing the area alone" if alone else "")
    what = "edited area" if alone else "picture"
    click.echo(f"cosine of the {what} with the prompt: {before:.3f}, now {after[0]:.3f}")
    finish(out, did, [(f"input, {before:.3f}", picture), *mask_cells(keep), *shown], seconds)


@edit.command()
@IMAGE
@together(MODEL, ASKED)
@click.option("--source", callback=not_empty, help="What it shows now.  [default: nothing is said]")
@click.option("--scale", default=5.0, show_default=True, help="Guidance towards the prompt.")
@click.option("--strength", default=0.8, show_default=True, help="Share of the steps encoded.")
@click.option("--threshold", default=0.5, show_default=True, help="A larger one edits less.")
@PATH
def diffedit(image, model, prompt, source, scale, strength, threshold, steps, seed, out) -> None:
    """DiffEdit: edit by a prompt; the model finds by itself where.

    minidiff edit diffedit --source "a red circle" --prompt "a blue circle" picture.png
    """
    from minidiff import editing

    trained, picture = begin(model, image)
    quick, path = trained.for_sampling(), trained.schedule.path(steps)
    guided, towards = guided_denoiser(trained, prompt, scale)
    query, reference, unconditional = (quick.denoiser(said) for said in (prompt, source, None))
    halfway = trained.schedule.level(trained.schedule.T // 2)

    def draw() -> tuple[Tensor, Tensor]:
        keep = editing.edit_mask(
            query, reference, picture, halfway, threshold=threshold, generator=seeded(seed)
        )
        result = editing.diffedit(
            guided, unconditional, picture, keep, path, strength=strength, progress=True
        )
        return keep, result

    (keep, result), seconds = timed(trained, draw)
    if keep.all():
        click.echo("the captions differ nowhere by that much: nothing was edited")
    did = f"DiffEdit{towards}: strength {strength:g}, {steps} steps, threshold {threshold:g}"
    did += f", {percent(keep)} kept"
    finish(out, did, [("input", picture), *mask_cells(keep), ("result", result)], seconds)


@edit.command()
@click.argument("source", callback=not_empty)
@click.argument("target", callback=not_empty)
@click.argument("image", required=False, type=click.Path(path_type=Path))
@MODEL
@click.option("--scale", type=float, help="Guidance, 1 for none.  [default: 3, of an IMAGE 1]")
@click.option("--cross", default=0.8, show_default=True, help="Steps with the source's layout.")
@click.option("--self-attention", default=0.4, show_default=True, help="Steps with its shapes.")
@click.option("--reweight", type=(str, float), metavar="WORDS FACTOR", help="Of the target.")
@click.option("--blend", type=(str, str), metavar="OLD NEW", help="Change only these words' areas.")
@together(NUMBER, PATH)
def p2p(
    source,
    target,
    image,
    model,
    scale,
    cross,
    self_attention,
    reweight,
    blend,
    number,
    steps,
    seed,
    out,
) -> None:
    """Prompt-to-Prompt: make a drawing of SOURCE one of TARGET.

    The drawings come from the seed, or one from the noise to which IMAGE is inverted. Captions of
    as many words swap them; otherwise the words they share keep their places.

    minidiff edit p2p "a large red circle" "a large red square"
    """
    from minidiff import editing, plot, zoo
    from minidiff.guidance import clamp, classifier_free
    from minidiff.noise import per_image
    from minidiff.samplers import invert

    trained, picture = begin(model, image) if image else (zoo.load(model), None)
    if trained.encoder is None or trained.encoder.takes != "captions":
        raise ValueError(f"{model} takes no captions, whose words Prompt-to-Prompt would exchange")
    quick, path, maps = trained.for_sampling(), trained.schedule.path(steps), editing.WordMaps()
    scale = scale if scale is not None else 1.0 if image else 3.0
    swaps = len(source.split()) == len(target.split())
    change = (editing.replace if swaps else editing.refine)(source, target)
    change = editing.reweight(change, target, *reweight) if reweight else change
    local = editing.local_blend(source, blend[0], target, blend[1]) if blend else None
    n = 1 if image else number

    def denoiser(tap) -> Denoiser:
        wanted = quick.denoiser([source] * n + [target] * n, tap=tap)
        guided = wanted if scale == 1 else classifier_free(wanted, quick.denoiser(), scale)
        return guided if image else clamp(guided)  # what inverts an image is not clamped

    def draw() -> tuple[Tensor, Tensor]:
        if image:
            noise = invert(quick.denoiser(source), picture, path)
        else:
            noise = trained.noise(n, per_image(seeded(seed), n))
        held = {"cross": cross, "self_attention": self_attention, "blend": local, "maps": maps}
        return editing.prompt_to_prompt(denoiser, noise, path, change, **held, progress=True)

    (before, after), seconds = timed(trained, draw)
    if image:
        table = _inverted_row(picture, before, after)
    else:
        table = [(f"source\n{source}", before.cpu()), (f"target\n{target}", after.cpu())]
    table += _word_rows(after[:1].cpu(), maps.tokens()[n].cpu(), target.split())
    did = f'Prompt-to-Prompt, {"replace" if swaps else "refine"}: "{source}" to "{target}"'
    did += f", guidance {scale:g}, cross {cross:g}, self-attention {self_attention:g}"
    write_sheet(out, did, plot.rows(table, title=did), seconds)


@edit.command("invert")
@IMAGE
@together(MODEL, PROMPT, STEPS, OUT)
def invert_command(image, model, prompt, steps, out) -> None:
    """DDIM inversion: find the noise that makes the picture, and go back.

    What the prompt says of the picture, the noise need not.

    \b
    minidiff edit invert --model cifar10 photograph.jpg
    minidiff edit invert --prompt "a large red heart at the top on a mint background" heart.png
    """
    from minidiff.metrics import psnr
    from minidiff.samplers import ddim_step, invert, sample

    trained, picture = begin(model, image)
    denoise, path = trained.for_sampling().denoiser(prompt), trained.schedule.path(steps)

    def draw() -> tuple[Tensor, Tensor]:
        noise = invert(denoise, picture, path)
        return noise, sample(ddim_step, denoise, noise, path, progress=True)

    (noise, again), seconds = timed(trained, draw)
    did = f'DDIM inversion under "{prompt}"' if prompt else "DDIM inversion"
    did += f": {steps} steps up and {steps} down, "
    did += f"noise of standard deviation {noise.std():.2f}, "
    did += f"round trip {psnr(picture, again)[0]:.1f} dB"
    shown = ("noise / 3", noise.div(3).clamp(-1, 1))
    finish(out, did, [("input", picture), shown, ("reconstruction", again)], seconds)


def _seen_by_clip(judge: str, prompt: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A CLIP's encoder of images, and the embedding (1,D) of the prompt."""
    from minidiff import clip
    from minidiff.clip.use import text_features

    model, _ = clip.load(judge)
    return clip.encoder(model), text_features(model, [prompt])


def _inverted_row(picture: Tensor, before: Tensor, after: Tensor) -> list[tuple]:
    """A picture, what its noise gives without the edit, and with it; says how well it came back."""
    import torch

    from minidiff.metrics import psnr

    click.echo(f"the inverted picture comes back with {psnr(picture, before)[0]:.1f} dB")
    images = torch.cat([picture, before, after]).cpu()
    return [("", images, ["input", "from its noise", "edited"])]


def _word_rows(image: Tensor, maps: Tensor, words: list[str]) -> list[tuple]:
    """Where each word of a caption looks: image (1,3,H,W), maps (L,h,w)."""
    from minidiff import plot

    drawn = plot.heatmap_over(image.expand(len(words), -1, -1, -1), maps[: len(words)])
    columns = math.ceil(len(words) / math.ceil(len(words) / 8))  # rows of one length, at most 8
    starts = range(0, len(words), columns)
    labels = ["words\nwhere they look", *[""] * (len(starts) - 1)]
    return [
        (label, drawn[i : i + columns], words[i : i + columns])
        for label, i in zip(labels, starts, strict=True)
    ]
