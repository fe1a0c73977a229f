"""`minidiff edit`: the methods of `minidiff.editing` on a picture of one's own.

Each command brings the picture to the model's size, edits it, says what it did and draws a sheet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from minidiff.denoiser import Denoiser
    from minidiff.zoo import Diffusion

GREY = slice(26, 230)  # of the 256 greys: neither black nor white


@click.group()
def edit() -> None:
    """Edit a picture of your own: a PNG, JPEG or other file, of any size."""


# ------------------------------------------------------------------------------------ the options


def _words(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise ValueError(f"the {parameter.name} is empty: expected words that the model knows")
    return value


def _png(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if Path(value).suffix.lower() != ".png":
        raise ValueError(f"--out {value}: pictures are written as .png files")
    return value


def _together(*options: Callable) -> Callable:
    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


IMAGE = click.argument("image", type=click.Path(path_type=Path))
MODEL = click.option(
    "--model", default="shapes", show_default=True, help="A name of `minidiff models`, or a file."
)
PROMPT = click.option("--prompt", callback=_words, help="A caption, or the name of a class.")
ASKED = click.option("--prompt", required=True, callback=_words, help="What it should become.")
SCALE = click.option("--scale", type=float, help="Guidance towards it, 1 for none.  [default: 3]")
MASK = click.option(
    "--mask", help="A picture of the same size, white is kept; or half, lines, pixels, irregular."
)
BOX = click.option(
    "--box", metavar="X0,Y0,X1,Y1", help="Edit this box: shares of the side, from the top left."
)
NUMBER = click.option(
    "-n", "--number", default=4, show_default=True, type=click.IntRange(1), help="How many results."
)
STEPS = click.option("--steps", default=50, show_default=True, type=click.IntRange(1))
SEED = click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
OUT = click.option("--out", default="edited.png", show_default=True, callback=_png)
PATH = _together(STEPS, SEED, OUT)


# ----------------------------------------------------------------------------------- the commands


@edit.command()
@IMAGE
@_together(MODEL, PROMPT, SCALE)
@click.option("--strength", default=0.5, show_default=True, help="0 is faithful, 1 all new.")
@click.option("--repeats", default=1, show_default=True, help="Start again from the result.")
@_together(MASK, BOX, NUMBER, PATH)
def sdedit(
    image, model, prompt, scale, strength, repeats, mask, box, number, steps, seed, out
) -> None:
    """SDEdit: make strokes, or any crude picture, look real.

    minidiff edit sdedit --prompt "a large red heart" drawing.png
    """
    from minidiff import editing

    trained, picture = _begin(model, image)
    keep = _mask(mask, box, image, trained, seed) if mask or box else None
    denoise, towards = _denoiser(trained, prompt, scale)

    def draw() -> Tensor:
        return editing.sdedit(
            denoise,
            _copies(picture, number),
            trained.schedule.path(steps),
            strength=strength,
            repeats=repeats,
            mask=keep,
            generator=_generator(seed),
            progress=True,
        )

    results, seconds = _timed(trained, draw)
    walked = max(round(strength * steps), 1)
    did = f"SDEdit{towards}: strength {strength:g}, the last {walked} of {steps} steps"
    did += f", {repeats} times" if repeats > 1 else ""
    _finish(out, did, [("input", picture), *_shown(keep), *_numbered(results)], seconds)


@edit.command()
@IMAGE
@_together(MODEL, PROMPT, SCALE, MASK, BOX)
@click.option("--length", default=1, show_default=True, help="Levels of a jump back up.")
@click.option("--times", default=10, show_default=True, help="Passes of each level; 1: no jumps.")
@_together(NUMBER, PATH)
def repaint(
    image, model, prompt, scale, mask, box, length, times, number, steps, seed, out
) -> None:
    """RePaint: fill in what a mask leaves out.

    minidiff edit repaint --model butterflies --mask hole.png photograph.jpg
    """
    from minidiff import editing

    trained, picture = _begin(model, image)
    keep = _mask(mask, box, image, trained, seed)
    denoise, towards = _denoiser(trained, prompt, scale)

    def draw() -> Tensor:
        return editing.repaint(
            denoise,
            _copies(picture, number),
            keep,
            trained.schedule.path(steps),
            length=length,
            times=times,
            generator=_generator(seed),
            progress=True,
        )

    results, seconds = _timed(trained, draw)
    did = f"RePaint{towards}: {steps} steps, jumps of {length}, {times} passes"
    _finish(out, did, [("input", picture), *_shown(keep), *_numbered(results)], seconds)


@edit.command()
@IMAGE
@_together(MODEL, PROMPT, SCALE)
@click.option("--factor", default=4, show_default=True, help="Side of the pixel blocks held.")
@click.option("--until", default=0.0, show_default=True, help="Time t below which all is free.")
@_together(NUMBER, PATH)
def ilvr(image, model, prompt, scale, factor, until, number, steps, seed, out) -> None:
    """ILVR: draw new images with the coarse look of the picture.

    minidiff edit ilvr --model butterflies --factor 8 butterfly.jpg
    """
    from minidiff import editing

    trained, picture = _begin(model, image)
    denoise, towards = _denoiser(trained, prompt, scale)

    def draw() -> Tensor:
        return editing.ilvr(
            denoise,
            _copies(picture, number),
            trained.schedule.path(steps),
            factor=factor,
            until=until,
            generator=_generator(seed),
            progress=True,
        )

    results, seconds = _timed(trained, draw)
    held = ("what is held", editing.low_pass(picture, factor))
    did = f"ILVR{towards}: the means of {factor} x {factor} pixels held down to t = {until:g}"
    did += f", {steps} steps"
    _finish(out, did, [("input", picture), held, *_numbered(results)], seconds)


@edit.command()
@IMAGE
@_together(MODEL, ASKED, MASK, BOX)
@click.option("--clip", "judge", default="ViT-B/32", show_default=True, help="Its name or file.")
@click.option("--scale", default=100.0, show_default=True, help="Weight of what it says.")
@click.option("--strength", default=0.75, show_default=True, help="0 is faithful, 1 all new.")
@_together(NUMBER, PATH)
def blended(
    image, model, prompt, mask, box, judge, scale, strength, number, steps, seed, out
) -> None:
    """Blended Diffusion: edit an area until a CLIP finds the prompt there.

    The prompt is read by the CLIP alone. The results are shown in the order of its cosines.

    minidiff edit blended --prompt "a red butterfly" --model butterflies --box .2,.2,.8,.8 photo.jpg
    """
    import torch

    from minidiff import editing

    trained, picture = _begin(model, image)
    keep = _mask(mask, box, image, trained, seed)
    encode, target = _seen_by_clip(judge, prompt)
    score = editing.clip_score(encode, target, cuts=8, generator=_generator(seed + 1))
    denoise, _ = _denoiser(trained, None, None)

    def cosine(images: Tensor) -> Tensor:
        return encode(images) @ target[0]

    def draw() -> Tensor:
        return editing.blended(
            denoise,
            _copies(picture, number),
            keep,
            trained.schedule.path(steps),
            score,
            scale,
            strength=strength,
            generator=_generator(seed),
            progress=True,
        )

    results, seconds = _timed(trained, draw)
    results = results[editing.rank(results, keep, cosine)]
    with torch.no_grad():
        before, *after = cosine(torch.cat([picture, results]) * (1 - keep)).tolist()
    shown = [(f"cosine {c:.3f}", one[None]) for c, one in zip(after, results, strict=True)]
    did = f'Blended Diffusion towards "{prompt}": scale {scale:g}, strength {strength:g}'
    did += f", {steps} steps"
    click.echo(f"cosine of the edited area with the prompt: {before:.3f}, now {after[0]:.3f}")
    _finish(out, did, [(f"input, {before:.3f}", picture), *_shown(keep), *shown], seconds)


@edit.command()
@IMAGE
@_together(MODEL, ASKED)
@click.option("--source", callback=_words, help="What it shows now.  [default: nothing is said]")
@click.option("--scale", default=5.0, show_default=True, help="Guidance towards the prompt.")
@click.option("--strength", default=0.8, show_default=True, help="Share of the steps encoded.")
@click.option("--threshold", default=0.5, show_default=True, help="A larger one edits less.")
@PATH
def diffedit(image, model, prompt, source, scale, strength, threshold, steps, seed, out) -> None:
    """DiffEdit: edit by a prompt; the model finds by itself where.

    minidiff edit diffedit --source "a red circle" --prompt "a blue circle" picture.png
    """
    from minidiff import editing

    trained, picture = _begin(model, image)
    quick, path = trained.for_sampling(), trained.schedule.path(steps)
    guided, towards = _denoiser(trained, prompt, scale)
    query, reference, unconditional = (quick.denoiser(said) for said in (prompt, source, None))
    halfway = trained.schedule.level(trained.schedule.T // 2)

    def draw() -> tuple[Tensor, Tensor]:
        keep = editing.edit_mask(
            query, reference, picture, halfway, threshold=threshold, generator=_generator(seed)
        )
        result = editing.diffedit(
            guided, unconditional, picture, keep, path, strength=strength, progress=True
        )
        return keep, result

    (keep, result), seconds = _timed(trained, draw)
    if keep.all():
        click.echo("the captions differ nowhere by that much: nothing was edited")
    did = f"DiffEdit{towards}: strength {strength:g}, {steps} steps, threshold {threshold:g}"
    did += f", {_percent(keep)} kept"
    _finish(out, did, [("input", picture), *_shown(keep), ("result", result)], seconds)


@edit.command()
@click.argument("source", callback=_words)
@click.argument("target", callback=_words)
@click.argument("image", required=False, type=click.Path(path_type=Path))
@MODEL
@click.option("--scale", type=float, help="Guidance, 1 for none.  [default: 3, of an IMAGE 1]")
@click.option("--cross", default=0.8, show_default=True, help="Steps with the source's layout.")
@click.option("--self-attention", default=0.4, show_default=True, help="Steps with its shapes.")
@click.option("--reweight", type=(str, float), metavar="WORDS FACTOR", help="Of the target.")
@click.option("--blend", type=(str, str), metavar="OLD NEW", help="Change only these words' areas.")
@_together(NUMBER, PATH)
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
    import torch

    from minidiff import editing, plot, zoo
    from minidiff.guidance import clamp, classifier_free
    from minidiff.metrics import psnr
    from minidiff.noise import per_image
    from minidiff.samplers import invert

    trained, picture = _begin(model, image) if image else (zoo.load(model), None)
    quick, path, maps = trained.for_sampling(), trained.schedule.path(steps), editing.WordMaps()
    scale = scale if scale is not None else 1.0 if image else 3.0
    swaps = len(source.split()) == len(target.split())
    change = (editing.replace if swaps else editing.refine)(source, target)
    if reweight:
        change = editing.reweight(change, target, *reweight)
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
            noise = trained.noise(n, per_image(_generator(seed), n))
        return editing.prompt_to_prompt(
            denoiser,
            noise,
            path,
            change,
            cross=cross,
            self_attention=self_attention,
            blend=local,
            maps=maps,
            progress=True,
        )

    (before, after), seconds = _timed(trained, draw)
    before, after = before.cpu(), after.cpu()
    if image:
        images = torch.cat([picture.cpu(), before, after])
        table = [("", images, ["input", "from its noise", "edited"])]
        click.echo(f"the inverted picture comes back with {psnr(picture.cpu(), before)[0]:.1f} dB")
    else:
        table = [(f"source\n{source}", before), (f"target\n{target}", after)]
    table += _word_rows(after[:1], maps.tokens()[n].cpu(), target.split())
    did = f'Prompt-to-Prompt, {"replace" if swaps else "refine"}: "{source}" to "{target}"'
    did += f", guidance {scale:g}, cross {cross:g}, self-attention {self_attention:g}"
    _write(out, did, plot.rows(table, title=did), seconds)


@edit.command("invert")
@IMAGE
@MODEL
@STEPS
@OUT
def invert_command(image, model, steps, out) -> None:
    """DDIM inversion: find the noise that makes the picture, and go back.

    minidiff edit invert --model cifar10 photograph.jpg
    """
    from minidiff.metrics import psnr
    from minidiff.samplers import ddim_step, invert, sample

    trained, picture = _begin(model, image)
    denoise, path = trained.for_sampling().denoiser(), trained.schedule.path(steps)

    def draw() -> tuple[Tensor, Tensor]:
        noise = invert(denoise, picture, path)
        return noise, sample(ddim_step, denoise, noise, path, progress=True)

    (noise, again), seconds = _timed(trained, draw)
    did = f"DDIM inversion: {steps} steps up and {steps} down, "
    did += f"noise of standard deviation {noise.std():.2f}, "
    did += f"round trip {psnr(picture, again)[0]:.1f} dB"
    cells = [
        ("input", picture),
        ("noise / 3", noise.div(3).clamp(-1, 1)),
        ("reconstruction", again),
    ]
    _finish(out, did, cells, seconds)


# ------------------------------------------------------------------------------- what they share


def _begin(model: str, image: Path) -> tuple[Diffusion, Tensor]:
    """The model, and on its device the picture (1,3,size,size); says what was resized."""
    from minidiff import zoo
    from minidiff.data.images import load_image

    trained = zoo.load(model)
    picture = load_image(image, trained.size)
    upright, size = _upright(image), f"{trained.size} x {trained.size}"
    width, height = upright.size
    short = min(width, height)
    said = f"{image.name}: {width} x {height} pixels"
    if width != height:
        said += f", of which the central {short} x {short}"
    if short != trained.size:
        said += f" are resized to {size}"
    click.echo(f"{said}; {Path(model).stem} works at {size}")
    if upright.has_transparency_data and upright.convert("RGBA").getextrema()[3][0] < 255:
        click.echo(f"{image.name}: what is transparent lies on white")
    return trained, picture.to(trained.device)


def _upright(path: Path) -> Image:
    """The file as PIL reads it, turned as its camera says."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        return ImageOps.exif_transpose(file)


def _mask(mask: str | None, box: str | None, image: Path, model: Diffusion, seed: int) -> Tensor:
    """The mask (1,1,size,size), 1 = keep, on the model's device, of --mask or of --box."""
    from minidiff.editing import masks

    if (mask is None) == (box is None):
        raise ValueError("expected --mask or --box, one of them, to say what is edited")
    made = {"half": masks.half, "lines": masks.lines, "pixels": masks.every_other_pixel}
    if box is not None:
        keep = masks.box(model.size, *_box(box))
    elif mask in made:
        keep = made[mask](model.size)
    elif mask == "irregular":
        keep = masks.irregular(model.size, generator=_generator(seed))
    else:
        keep = _mask_file(Path(mask), image, model.size)
    if keep.all():
        raise ValueError("the mask keeps every pixel: expected black where the picture is edited")
    click.echo(f"mask: {_percent(keep)} kept")
    return keep.to(model.device)


def _box(text: str) -> tuple[float, float, float, float]:
    """top, left, bottom, right of "x0,y0,x1,y1"."""
    try:
        left, top, right, bottom = map(float, text.split(","))
    except ValueError:
        raise ValueError(
            f"--box {text!r}: expected four shares of the side like .25,.25,.75,.75"
        ) from None
    return top, left, bottom, right


def _mask_file(path: Path, image: Path, size: int) -> Tensor:
    """A black and white picture, brought to the model's size as the image is: (1,1,size,size)."""
    from minidiff.data.images import load_image
    from minidiff.data.reading import to_rgb

    pixels = load_image(path, size).mean(1, keepdim=True)  # (1,1,size,size)
    drawn, wanted = _upright(path), _upright(image)
    if drawn.size != wanted.size:
        sizes = ["{} x {}".format(*picture.size) for picture in (drawn, wanted)]
        raise ValueError(f"the mask has {sizes[0]} pixels: expected {sizes[1]}, as the picture has")
    counts = to_rgb(drawn).convert("L").histogram()
    if sum(counts[GREY]) > 0.1 * sum(counts):  # the rims of a soft brush may be grey
        raise ValueError(f"{path} is grey: expected a mask of white, kept, and black, edited")
    return (pixels > 0).float()


def _denoiser(model: Diffusion, prompt: str | None, scale: float | None) -> tuple[Denoiser, str]:
    """The clamped denoiser of a prompt, or of none, and the words for what it is guided to."""
    from minidiff.guidance import clamp

    quick = model.for_sampling()
    if prompt is None:
        if scale is not None:
            raise ValueError("--scale is the guidance towards a prompt: expected --prompt, too")
        return clamp(quick.denoiser()), ""
    model.condition([prompt])  # refuses what it does not know
    scale = 3.0 if scale is None else scale
    return clamp(quick.denoiser(prompt, scale)), f' towards "{prompt}", guidance {scale:g}'


def _seen_by_clip(judge: str, prompt: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A CLIP's encoder of images, and the embedding (1,D) of the prompt."""
    from minidiff import clip
    from minidiff.clip.use import text_features

    model, _ = clip.load(judge)
    return clip.encoder(model), text_features(model, [prompt])


def _generator(seed: int):
    from torch import Generator

    return Generator().manual_seed(seed)


def _copies(picture: Tensor, number: int) -> Tensor:
    return picture.repeat(number, 1, 1, 1)  # (number,3,H,W)


def _timed(model: Diffusion, draw: Callable) -> tuple:
    """What `draw` returns, in the precision that is fastest, and the seconds it took."""
    from minidiff.device import autocast

    start = time.perf_counter()
    with autocast(model.device):
        drawn = draw()
    return drawn, time.perf_counter() - start


def _percent(keep: Tensor) -> str:
    return f"{keep.mean():.0%} of the pixels"


def _shown(keep: Tensor | None) -> list[tuple[str, Tensor]]:
    """The mask as a picture (1,3,H,W)."""
    if keep is None:
        return []
    shown = keep.expand(-1, 3, -1, -1) * 1.7 - 1  # light grey stands out from the sheet
    return [("mask, black is edited", shown)]


def _numbered(results: Tensor) -> list[tuple[str, Tensor]]:
    return [(f"result {i}", one[None]) for i, one in enumerate(results, start=1)]


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


def _finish(out: str, did: str, cells: list[tuple[str, Tensor]], seconds: float) -> None:
    """Draw pictures (1,3,H,W), each with what it is, under what was done; say that, too."""
    import torch

    from minidiff import plot

    images = torch.cat([image.cpu() for _, image in cells])
    _write(out, did, plot.grid(images, [name for name, _ in cells], title=did), seconds)


def _write(out: str, did: str, sheet: Image, seconds: float) -> None:
    from minidiff import plot

    plot.save(sheet, out)
    click.echo(f"{did}; {seconds:.0f} s\nwrote {out}")
