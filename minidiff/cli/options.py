"""What commands share: options, reading a picture and a mask, drawing a sheet."""

from __future__ import annotations

import os
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

# ------------------------------------------------------------------------------------ the options


def not_empty(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise ValueError(f"the {parameter.name} is empty: expected words that the model knows")
    return value


def png_file(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Refuse what cannot be written before anything is drawn."""
    path = Path(value).absolute()
    if path.suffix.lower() != ".png":
        raise ValueError(f"--out {value}: pictures are written as .png files")
    there = next(folder for folder in path.parents if folder.exists())
    if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"--out {value}: no file can be written there")
    return value


def together(*options: Callable) -> Callable:
    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


IMAGE = click.argument("image", type=click.Path(path_type=Path))
MODEL = click.option(
    "--model", default="shapes", show_default=True, help="A name of `minidiff models`, or a file."
)
PROMPT = click.option("--prompt", callback=not_empty, help="A caption, or the name of a class.")
ASKED = click.option("--prompt", required=True, callback=not_empty, help="What it should become.")
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
CARD = click.option(
    "--card",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the model's card here, and its sheet.",
)
ANY_SEED = click.IntRange(-(2**63), 2**63 - 1)  # what a torch.Generator takes
STEPS = click.option("--steps", default=50, show_default=True, type=click.IntRange(1))
SEED = click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1))
OUT = click.option("--out", default="edited.png", show_default=True, callback=png_file)
PATH = together(STEPS, SEED, OUT)


# ---------------------------------------------------------------------------------- what they do


def join_processes() -> None:
    """Under torchrun: meet the other processes, and part from them when the command ends."""
    if "RANK" not in os.environ:
        return
    import torch.distributed as dist

    from minidiff.training.processes import join

    join()
    click.get_current_context().call_on_close(dist.destroy_process_group)


def positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"--{name} {value}: expected at least 1")


def begin(model: str, image: Path) -> tuple[Diffusion, Tensor]:
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


def read_mask(
    mask: str | None, box: str | None, image: Path, model: Diffusion, seed: int
) -> Tensor:
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
        keep = masks.irregular(model.size, generator=seeded(seed))
    elif not Path(mask).is_file():
        names = ", ".join([*made, "irregular"])
        raise ValueError(f"no picture at {mask}: expected a file, or one of {names}")
    else:
        keep = _mask_file(Path(mask), image, model.size)
    if keep.all():
        raise ValueError("the mask keeps every pixel: expected black where the picture is edited")
    click.echo(f"mask: {percent(keep)} kept")
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


def guided_denoiser(
    model: Diffusion, prompt: str | None, scale: float | None
) -> tuple[Denoiser, str]:
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


def seeded(seed: int):
    from torch import Generator

    return Generator().manual_seed(seed)


def copies(picture: Tensor, number: int) -> Tensor:
    return picture.repeat(number, 1, 1, 1)  # (number,3,H,W)


def timed(model: Diffusion, draw: Callable) -> tuple:
    """What `draw` returns, in the precision that is fastest, and the seconds it took."""
    from minidiff.device import autocast

    start = time.perf_counter()
    with autocast(model.device):
        drawn = draw()
    return drawn, time.perf_counter() - start


def percent(keep: Tensor) -> str:
    return f"{keep.mean():.0%} of the pixels"


def mask_cells(keep: Tensor | None) -> list[tuple[str, Tensor]]:
    """The mask as a picture (1,3,H,W)."""
    if keep is None:
        return []
    shown = keep.expand(-1, 3, -1, -1) * 1.7 - 1  # light grey stands out from the sheet
    return [("mask, black is edited", shown)]


def result_cells(results: Tensor) -> list[tuple[str, Tensor]]:
    return [(f"result {i}", one[None]) for i, one in enumerate(results, start=1)]


def finish(out: str, did: str, cells: list[tuple[str, Tensor]], seconds: float) -> None:
    """Draw pictures (1,3,H,W), each with what it is, under what was done; say that, too."""
    import torch

    from minidiff import plot

    images = torch.cat([image.cpu() for _, image in cells])
    write_sheet(out, did, plot.grid(images, [name for name, _ in cells], title=did), seconds)


def write_sheet(out: str, did: str, sheet: Image, seconds: float) -> None:
    from minidiff import plot

    plot.save(sheet, out)
    click.echo(f"{did}; {seconds:.0f} s\nwrote {out}")
