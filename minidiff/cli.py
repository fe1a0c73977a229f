"""The command line: `minidiff train | sample | models | demo`. Try `minidiff train --help`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from minidiff.clip_commands import clip
from minidiff.edit_commands import edit
from minidiff.guide_commands import guide
from minidiff.scoring.command import score


class Group(click.Group):
    """Errors that a user can mend are told in one sentence; the rest are bugs and show where."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            click.echo(str(stop) or "stopped", err=True)
            ctx.exit(130)
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
@click.option("--seed", default=0, show_default=True, help="Image i of a seed is always the same.")
@click.option("--out", default="samples.png", show_default=True, type=click.Path(dir_okay=False))
def sample(prompts, model, number, scale, steps, seed, out) -> None:
    """Draw images of PROMPTS: captions, or names of classes.

    \b
    minidiff sample "a red circle left of a blue square"
    minidiff sample --model cifar10 horse ship
    """
    from minidiff import evaluation, plot, training, zoo

    _positive(number=number, steps=steps)
    _png(out)
    _join_processes()
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
@click.option(
    "--data", required=True, help="cifar10, butterflies, shapes, or a folder of pictures."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run.  [default: runs/DATA]",
)
@click.option("--size", type=int, help="Pixels a side.  [default: the recipe's]")
@click.option("--images", type=float, help="Images to see in all, e.g. 2e6.")
@click.option("--batch", type=int, help="Images a step, over all processes.")
@click.option(
    "--accumulate", type=int, help="Parts of a batch that are computed one after another."
)
@click.option("--learning-rate", type=float)
@click.option("--ema", type=float, help="Decay of the averaged weights, a step.")
@click.option("--channels", type=int, help="Width of the network.")
@click.option("--multipliers", help="Of the width, one a level: 1,2,2.")
@click.option("--blocks", type=int, help="Residual blocks a level.")
@click.option("--patch", type=int, help="Side of the pixel blocks that the network works on.")
@click.option("--predicts", type=click.Choice(["eps", "v", "x0"]))
@click.option("--min-snr", type=float, help="Gamma of min-SNR weighting; 0 for the plain loss.")
@click.option(
    "--drop-condition", type=float, help="Share of images that are learnt without their condition."
)
@click.option("--seed", type=int)
@click.option("--save-every", type=int, help="Images between checkpoints and previews.")
@click.option("--float32", is_flag=True, help="No mixed precision.")
@click.option(
    "--weights", help="Start from a trained model: a name of `minidiff models` or a file."
)
@click.option("--resume", is_flag=True, help="Continue the run in --out, if there is one.")
@click.option("--tensorboard", is_flag=True, help="Also write the log for TensorBoard.")
def train(
    data, out, size, float32, weights, resume, tensorboard, multipliers, predicts, **given
) -> None:
    """Train a model; everything not given is the recipe's.

    \b
    minidiff train --data shapes
    minidiff train --data ~/pictures --size 64 --images 1e6
    torchrun --nproc-per-node 8 -m minidiff train --data cifar10 --batch 1024
    """
    from minidiff import training

    _join_processes()
    with _first_process_first():
        recipe = _recipe(data, size)
    given = {name: value for name, value in given.items() if value is not None}
    if "images" in given:
        given["images"] = int(min(given["images"], 1e15))
    if "min_snr" in given:
        given["min_snr"] = given["min_snr"] or None
    if float32:
        given["mixed_precision"] = False
    if multipliers:
        given["multipliers"] = _integers(multipliers)
    network = {
        k: given.pop(k) for k in ("channels", "multipliers", "blocks", "patch") if k in given
    }
    recipe = replace(
        recipe,
        network=replace(recipe.network, **network),
        train=replace(recipe.train, **given),
        predicts=predicts or recipe.predicts,
    )
    out = out or Path("runs") / Path(data).name
    objective = recipe.objective()
    if weights:
        recipe.start_from(objective, weights)
    run = training.Run(_placed(objective), recipe.data, recipe.train, out)
    _fit(run, recipe.card["data"], resume, _Saver(recipe, _command(), out, tensorboard))


@main.command()
@click.option("--data", required=True, type=click.Choice(["shapes", "cifar10"]))
@click.option("--judge", is_flag=True, help="The CLIP that only judges: another shape and seed.")
@click.option("--shuffled", is_flag=True, help="The control: every image with another's caption.")
@click.option("--weights", help="Go on from this trained CLIP: a name or a file.")
@click.option("--noisy", help="Teach this CLIP's image encoder noisy images: a name or a file.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run.  [default: runs/clip_DATA]",
)
@click.option("--images", type=float, help="Images to see in all, e.g. 2e6.")
@click.option("--batch", type=int, help="Images a step, over all processes.")
@click.option("--learning-rate", type=float)
@click.option("--seed", type=int)
@click.option("--save-every", type=int, help="Images between checkpoints.")
@click.option("--resume", is_flag=True, help="Continue the run in --out, if there is one.")
def train_clip(data, judge, shuffled, weights, noisy, out, images, resume, **given) -> None:
    """Train a small CLIP; everything not given is the recipe's.

    \b
    minidiff train-clip --data shapes
    minidiff train-clip --data shapes --noisy shapes
    """
    from minidiff import training
    from minidiff.clip import noisy as clip_noisy
    from minidiff.clip import train as clip_train

    if judge and data != "shapes":
        raise ValueError(f"--judge: the {data} CLIP has none, the classifier judges what it guides")
    if noisy and (data != "shapes" or judge or shuffled):
        raise ValueError("--noisy is for --data shapes alone, without --judge and --shuffled")
    if weights and data != "shapes":
        raise ValueError("--weights is for --data shapes alone")
    _join_processes()
    with _first_process_first():
        if noisy:
            recipe = clip_noisy.noisy_shapes(noisy)
        elif data == "shapes":
            recipe = clip_train.clip_shapes(judge, shuffled, weights)
        else:
            recipe = clip_train.clip_cifar10(shuffled)
    given = {name: value for name, value in given.items() if value is not None}
    if images is not None:
        given["images"] = int(min(images, 1e15))
    recipe = replace(recipe, train=replace(recipe.train, **given))
    out = out or Path("runs") / f"clip_{data}{'_judge' if judge else '_noisy' if noisy else ''}"
    run = training.Run(_placed(recipe.objective()), recipe.data, recipe.train, out)
    saver = (clip_noisy if noisy else clip_train).Saver(recipe, _command(), out)
    _fit(run, recipe.card["data"], resume, saver)


@main.command()
@click.option("--data", required=True, type=click.Choice(["shapes", "cifar10"]))
@click.option("--shuffled", is_flag=True, help="The control: every image with another's labels.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run.  [default: runs/noisy_DATA]",
)
@click.option("--images", type=float, help="Images to see in all, e.g. 2e6.")
@click.option("--batch", type=int, help="Images a step, over all processes.")
@click.option("--learning-rate", type=float)
@click.option("--seed", type=int)
@click.option("--save-every", type=int, help="Images between checkpoints.")
@click.option("--resume", is_flag=True, help="Continue the run in --out, if there is one.")
def train_classifier(data, shuffled, out, images, resume, **given) -> None:
    """Train a classifier of noisy images, for `minidiff guide classifier`.

    minidiff train-classifier --data shapes
    """
    from minidiff import noisy_classifier, training

    _join_processes()
    recipes = {
        "shapes": noisy_classifier.noisy_shapes,
        "cifar10": noisy_classifier.noisy_cifar10,
    }
    with _first_process_first():
        recipe = recipes[data](shuffled)
    given = {name: value for name, value in given.items() if value is not None}
    if images is not None:
        given["images"] = int(min(images, 1e15))
    recipe = replace(recipe, train=replace(recipe.train, **given))
    out = out or Path("runs") / f"noisy_{data}"
    run = training.Run(_placed(recipe.objective()), recipe.data, recipe.train, out)
    _fit(run, recipe.card["data"], resume, noisy_classifier.Saver(recipe, _command(), out))


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
    from minidiff import cards, classifier_guidance, noisy_classifier, zoo

    _positive(number=number, guided=guided)
    judge = noisy_classifier.load(model)
    other = noisy_classifier.load(control) if control else None
    figures = classifier_guidance.report(zoo.load(guides), judge, other, number, guided)
    for figure in figures:
        click.echo(cards.line(figure))
    if card is not None:
        command = " ".join(["minidiff", *sys.argv[1:]])
        classifier_guidance.write_card(card, judge, figures, command)


@main.command()
@click.argument("encoder")
@click.option("--clip", "eye", default="shapes", show_default=True, help="The CLIP it belongs to.")
@click.option("--number", default=48, show_default=True, help="Images of each kind.")
@click.option("--card", type=click.Path(dir_okay=False, path_type=Path), help="Write it here.")
def evaluate_semantic(encoder, eye, number, card) -> None:
    """Measure a CLIP's encoder of noisy images and its guidance: the figures of its card.

    minidiff evaluate-semantic shapes
    """
    from minidiff import cards, clip, semantic_guidance, zoo
    from minidiff.clip import noisy

    _positive(number=number)
    sees, (reads, _) = noisy.load(encoder), clip.load(eye)
    figures = semantic_guidance.report(zoo.load("shapes"), reads, sees, number)
    for figure in figures:
        click.echo(cards.line(figure))
    if card is not None:
        command = " ".join(["minidiff", *sys.argv[1:]])
        semantic_guidance.write_card(card, sees, figures, command)


@main.command()
@click.option(
    "--out", default="figures/demo.png", show_default=True, type=click.Path(dir_okay=False)
)
def demo(out) -> None:
    """Draw a sheet with every trained model: words, classes, butterflies, and how they come."""
    from minidiff.demo import draw

    _png(out)
    start = time.perf_counter()
    draw(out, say=click.echo)
    click.echo(f"{time.perf_counter() - start:.0f} s: {out}")


@main.command()
@click.argument("model")
@click.option("--name", help="Which report: shapes, cifar10 or butterflies.  [default: MODEL]")
@click.option("--number", type=int, help="Images of each kind.  [default: the report's]")
@click.option(
    "--card", type=click.Path(dir_okay=False), help="Write the model's card here, and its sheet."
)
def evaluate(model, name, number, card) -> None:
    """Measure a trained model: the figures of its card. Under torchrun the work is shared out."""
    from minidiff import cards, evaluation, training, zoo

    _join_processes()
    reports = {
        "shapes": evaluation.report_shapes,
        "cifar10": evaluation.report_cifar10,
        "butterflies": evaluation.report_butterflies,
    }
    name = name or Path(model).stem
    if name not in reports:
        raise ValueError(f"there is no report {name!r}: expected one of {', '.join(reports)}")
    trained = zoo.load(model)
    figures = reports[name](trained, **({} if number is None else {"n": number}))
    if training.rank() > 0:
        return
    for figure in figures:
        click.echo(cards.line(figure))
    if card:
        cards.write(card, name, trained, figures, " ".join(["minidiff", *sys.argv[1:]]))
        click.echo(f"card: {card}")


class _Saver:
    """After each save of a run: the model to sample from, a preview sheet, TensorBoard."""

    def __init__(self, recipe, command: str, out: Path, tensorboard: bool):
        self.recipe, self.command, self.out, self.board = recipe, command, out, None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError("--tensorboard needs `pip install tensorboard`") from error
            self.board = SummaryWriter(out)

    def __call__(self, run) -> None:
        from minidiff import plot, zoo
        from minidiff.device import describe
        from minidiff.log import last_row

        model = self.recipe.model(run.average)
        model.card |= {
            "command": self.command,
            "images_seen": run.seen,
            "minutes": round(run.seconds / 60, 1),
            "machine": describe(run.device),
        }
        zoo.save(self.out / "model.safetensors", model)
        prompts = list(self.recipe.previews)
        scale = 2.0 if model.encoder else 1.0
        images = model.sample(prompts, len(prompts), scale=scale, steps=25)
        labels = [str(p) for p in prompts] if model.encoder else None
        plot.save(plot.grid(images.cpu(), labels), self.out / f"preview_{run.seen:09d}.png")
        if self.board is not None:
            for name, value in last_row(run.out).items():
                self.board.add_scalar(name, float(value), run.seen)
            self.board.add_images("preview", (images.cpu() + 1) / 2, run.seen)


def _command() -> str:
    """What was typed: a run that was continued is made by the command that began it."""
    return " ".join(["minidiff", *(word for word in sys.argv[1:] if word != "--resume")])


def _fit(run, data: str, resume: bool, on_save) -> None:
    """Say what will be done, and do it."""
    from minidiff import training
    from minidiff.estimate import estimate

    if resume and run.state_file.exists():
        run.resume()
    elif not resume and run.state_file.exists():
        raise ValueError(f"{run.out} holds a run already: add --resume, or choose another --out")
    if training.rank() == 0:
        click.echo(f"{data}: {len(run.data.images)} images, on {run.device}")
        click.echo(f"estimate: {estimate(run)}")
    training.fit(run, on_save=on_save)
    if training.rank() == 0:
        click.echo(f"trained: {run.out / 'model.safetensors'}, log beside it")


def _recipe(data: str, size: int | None):
    from minidiff import recipes

    named = {
        "shapes": recipes.captioned_shapes,
        "cifar10": recipes.cifar10,
        "butterflies": recipes.butterflies,
    }
    sizes = {} if size is None else {"size": size}
    if data in named:
        return named[data](**sizes)
    if not Path(data).is_dir():
        raise ValueError(f"there is no data {data!r}: expected {', '.join(named)}, or a folder")
    return recipes.folder(data, **sizes)


def _join_processes() -> None:
    """Under torchrun: meet the other processes, over nccl on GPUs and gloo on CPUs."""
    if "RANK" not in os.environ:
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    click.get_current_context().call_on_close(dist.destroy_process_group)


@contextmanager
def _first_process_first() -> Iterator[None]:
    """What is downloaded is downloaded once, by the first process; the others then find it."""
    import torch.distributed as dist

    from minidiff import training

    if training.rank() > 0:
        dist.barrier()
    yield
    if training.world() > 1 and training.rank() == 0:
        dist.barrier()


def _placed(objective):
    from minidiff.device import best_device, place

    return place(objective, best_device())


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--multipliers {text!r}: expected whole numbers like 1,2,2") from None


def _png(out: str) -> None:
    if Path(out).suffix.lower() != ".png":
        raise ValueError(f"--out {out}: pictures are written as .png files")


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"--{name} {value}: expected at least 1")
