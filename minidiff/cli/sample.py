"""`minidiff sample` and `minidiff models`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from minidiff.cli.options import ANY_SEED, MODEL, join_processes, png_file, positive

SPACINGS = ("trailing", "leading", "linspace", "log_snr")


@click.command()
def models() -> None:
    """List the trained models that come with minidiff."""
    from minidiff import checkpoint, zoo

    takes = {None: "no prompt", "TextEncoder": "captions", "ClassLabels": "classes"}
    for name, path in zoo.names().items():
        about = zoo.upgrade(checkpoint.about(path))
        encoder, megabytes = about["encoder"] or {}, path.stat().st_size / 1e6
        kind = takes[encoder.get("type")]
        click.echo(f"{name:14} {about['shape'][-1]} px  {kind:10} {megabytes:5.1f} MB  ", nl=False)
        click.echo(about["card"].get("data", ""))
        if "names" in encoder:
            click.echo(f"{'':14} {', '.join(encoder['names'])}")


@click.command()
@click.argument("prompts", nargs=-1)
@MODEL
@click.option("-n", "--number", default=8, show_default=True, help="Images of each prompt.")
@click.option(
    "--scale", default=None, type=float, help="Guidance: 1 for none.  [default: 3 with prompts]"
)
@click.option("--negative", help="What to guide away from.  [default: the empty prompt]")
@click.option("--steps", default=50, show_default=True)
@click.option(
    "--sampler",
    default="ddim",
    show_default=True,
    type=click.Choice(["ddim", "ddpm", "heun", "2m"]),
    help="2m is DPM-Solver++(2M).",
)
@click.option(
    "--spacing", type=click.Choice(SPACINGS), help="Of the levels.  [default: the sampler's]"
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=ANY_SEED,
    help="Image i of a seed is always the same.",
)
@click.option("--out", default="samples.png", show_default=True, callback=png_file)
def sample(prompts, model, number, scale, negative, steps, sampler, spacing, seed, out) -> None:
    """Draw images of PROMPTS: captions, or names of classes.

    \b
    minidiff sample "a red circle left of a blue square"
    minidiff sample --model cifar10 horse ship --sampler 2m --steps 15
    """
    from minidiff import plot, samplers, training, zoo
    from minidiff.evaluation.diffusion import sample_many

    positive(number=number, steps=steps)
    join_processes()
    trained = zoo.load(model)
    if scale is None:
        scale = 3.0 if prompts else 1.0
    if negative is not None and scale == 1:
        raise ValueError("--negative is what guidance leads away from: expected --scale, not 1")
    step = {
        "ddim": samplers.ddim_step,
        "ddpm": samplers.ddpm_step,
        "heun": samplers.heun_step,
        "2m": samplers.dpmpp_2m_step,
    }[sampler]
    wanted = [p for p in prompts or (None,) for _ in range(number)]
    draw = partial(sample_many, trained, wanted, scale=scale, negative=negative)
    images = draw(steps=steps, seed=seed, step=step, spacing=spacing)
    if training.rank() > 0:
        return
    labels = list(prompts) or [Path(model).stem]
    rows = []
    for label, part in zip(labels, images.split(number), strict=True):
        first, *more = part.split(10)  # wider sheets are hard to see
        rows += [(label, first), *[("", row) for row in more]]
    plot.save(plot.rows(rows), out)
    click.echo(f"{len(wanted)} images: {out}")
