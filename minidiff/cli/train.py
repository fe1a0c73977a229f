"""`minidiff train`, `train-clip`, `train-classifier`: everything that is trained here."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from minidiff.cli.options import ANY_SEED, together

RUN = together(
    click.option("--images", type=float, help="Images to see in all, e.g. 2e6."),
    click.option("--batch", type=int, help="Images a step, over all processes."),
    click.option("--learning-rate", type=float),
    click.option("--seed", type=ANY_SEED),
    click.option("--save-every", type=int, help="Images between checkpoints."),
    click.option("--resume", is_flag=True, help="Continue the run in --out, if there is one."),
)


def _out(default: str):
    text = f"Folder of the run.  [default: {default}]"
    return click.option("--out", type=click.Path(file_okay=False, path_type=Path), help=text)


def _given(options: dict) -> dict:
    """What was typed, as TrainConfig wants it."""
    given = {name: value for name, value in options.items() if value is not None}
    if "images" in given:
        if math.isnan(given["images"]):
            raise ValueError("images is nan: expected at least 1")
        given["images"] = int(min(given["images"], 1e15))
    return given


@click.command()
@click.option(
    "--data", required=True, help="cifar10, butterflies, emoji, shapes, or a folder of pictures."
)
@_out("runs/DATA")
@RUN
@click.option("--size", type=int, help="Pixels a side.  [default: the recipe's]")
@click.option(
    "--accumulate", type=int, help="Parts of a batch that are computed one after another."
)
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
@click.option("--float32", is_flag=True, help="No mixed precision.")
@click.option(
    "--weights", help="Start from a trained model: a name of `minidiff models` or a file."
)
@click.option("--tensorboard", is_flag=True, help="Also write the log for TensorBoard.")
def train(
    data, out, size, float32, weights, resume, tensorboard, multipliers, predicts, **options
) -> None:
    """Train a model; everything not given is the recipe's.

    \b
    minidiff train --data shapes
    minidiff train --data ~/pictures --size 64 --images 1e6
    torchrun --nproc-per-node 8 -m minidiff train --data cifar10 --batch 1024
    """
    from minidiff import training, zoo

    out = out or Path("runs") / Path(data).resolve().name
    join_processes()
    with _first_process_first():
        recipe = _recipe(data, size, out)
    given = _given(options)
    if "min_snr" in given:
        given["min_snr"] = given["min_snr"] or None
    if float32:
        given["mixed_precision"] = False
    network = {k: given.pop(k) for k in ("channels", "blocks", "patch") if k in given}
    if multipliers:
        levels = network["multipliers"] = _integers(multipliers)
        for kind in ("attention", "cross_attention"):  # at those of the recipe's levels that exist
            network[kind] = tuple(i for i in getattr(recipe.network, kind) if i < len(levels))
    recipe = replace(
        recipe,
        network=replace(recipe.network, **network),
        train=replace(recipe.train, **given),
        predicts=predicts or recipe.predicts,
    )
    objective = recipe.objective()
    if weights:
        recipe.start_from(objective, weights)
    before = _card(zoo.names(), weights) if weights else None
    run = training.Run(_placed(objective), recipe.data, recipe.train, out)
    _fit(run, recipe, resume, before, _Preview(recipe, out, tensorboard))


@click.command()
@click.option("--data", required=True, type=click.Choice(["shapes", "cifar10"]))
@click.option("--judge", is_flag=True, help="The CLIP that only judges: another shape and seed.")
@click.option("--shuffled", is_flag=True, help="The control: every image with another's caption.")
@click.option("--weights", help="Go on from this trained CLIP: a name or a file.")
@click.option("--noisy", help="Teach this CLIP's image encoder noisy images: a name or a file.")
@_out("runs/clip_DATA")
@RUN
def train_clip(data, judge, shuffled, weights, noisy, out, resume, **options) -> None:
    """Train a small CLIP; everything not given is the recipe's.

    \b
    minidiff train-clip --data shapes
    minidiff train-clip --data shapes --noisy shapes
    """
    from minidiff import training
    from minidiff.clip import noisy as clip_noisy
    from minidiff.clip import weights as clip_weights
    from minidiff.recipes import clip as clip_train

    if judge and data != "shapes":
        raise ValueError(f"--judge: the {data} CLIP has none, the classifier judges what it guides")
    if noisy and (data != "shapes" or judge or shuffled):
        raise ValueError("--noisy is for --data shapes alone, without --judge and --shuffled")
    if weights and data != "shapes":
        raise ValueError("--weights is for --data shapes alone")
    join_processes()
    with _first_process_first():
        if noisy:
            recipe = clip_noisy.noisy_shapes(noisy)
        elif data == "shapes":
            recipe = clip_train.clip_shapes(judge, shuffled, weights)
        else:
            recipe = clip_train.clip_cifar10(shuffled)
    recipe = replace(recipe, train=replace(recipe.train, **_given(options)))
    out = out or Path("runs") / f"clip_{data}{'_judge' if judge else '_noisy' if noisy else ''}"
    before = _card(clip_weights.shipped(), weights) if weights else None
    run = training.Run(_placed(recipe.objective()), recipe.data, recipe.train, out)
    _fit(run, recipe, resume, before)


@click.command()
@click.option("--data", required=True, type=click.Choice(["shapes", "cifar10"]))
@click.option("--shuffled", is_flag=True, help="The control: every image with another's labels.")
@_out("runs/noisy_DATA")
@RUN
def train_classifier(data, shuffled, out, resume, **options) -> None:
    """Train a classifier of noisy images, for `minidiff guide classifier`.

    minidiff train-classifier --data shapes
    """
    from minidiff import noisy_classifier, training

    join_processes()
    recipes = {
        "shapes": noisy_classifier.noisy_shapes,
        "cifar10": noisy_classifier.noisy_cifar10,
    }
    with _first_process_first():
        recipe = recipes[data](shuffled)
    recipe = replace(recipe, train=replace(recipe.train, **_given(options)))
    out = out or Path("runs") / f"noisy_{data}"
    run = training.Run(_placed(recipe.objective()), recipe.data, recipe.train, out)
    _fit(run, recipe, resume)


class _Preview:
    """After each save of a run: a preview sheet, and TensorBoard if it is wanted."""

    def __init__(self, recipe, out: Path, tensorboard: bool):
        from minidiff import training

        self.recipe, self.board = recipe, None
        if tensorboard and training.rank() == 0:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError("--tensorboard needs `pip install tensorboard`") from error
            self.board = SummaryWriter(out)

    def __call__(self, run) -> None:
        from minidiff import plot
        from minidiff.training.log import last_row

        model, prompts = self.recipe.model(run.average), list(self.recipe.previews)
        scale = 2.0 if model.encoder else 1.0
        images = model.sample(prompts, len(prompts), scale=scale, steps=25)
        labels = [str(p) for p in prompts] if model.encoder else None
        plot.save(plot.grid(images.cpu(), labels), run.out / f"preview_{run.seen:09d}.png")
        if self.board is not None:
            for name, value in last_row(run.out).items():
                self.board.add_scalar(name, float(value), run.seen)
            self.board.add_images("preview", (images.cpu() + 1) / 2, run.seen)


def _fit(run, recipe, resume: bool, before: dict | None = None, preview=None) -> None:
    """Say what will be done, and do it; each save also writes the trained model with its card.

    `before` is the card of the model whose weights the run began with.
    """
    from minidiff import training
    from minidiff.training.estimate import estimate

    if resume and run.state_file.exists():
        run.resume()
    elif not resume and run.state_file.exists():
        raise ValueError(f"{run.out} holds a run already: add --resume, or choose another --out")
    if training.rank() == 0:
        click.echo(f"{recipe.card['data']}: {len(run.data.images)} images, on {run.device}")
        click.echo(f"estimate: {estimate(run)}")
    model = run.out / "model.safetensors"

    def on_save(run) -> None:
        recipe.save(run.average, model, recipe.card | _history(run, before))
        if preview is not None:
            preview(run)

    if run.step >= run.steps and training.rank() == 0:
        on_save(run)  # it may have been killed between its last state and its model
    training.fit(run, on_save=on_save)
    if training.rank() == 0:
        click.echo(f"trained: {model}, log beside it")


def _history(run, before: dict | None) -> dict:
    """What a card says of the training, that of the model it began with included."""
    from minidiff.device import describe

    # a run that was continued is made by the command that began it
    command = " ".join(["minidiff", *(word for word in sys.argv[1:] if word != "--resume")])
    seen, minutes = run.seen, run.seconds / 60
    if before is not None:
        command = f"{before['command']}; then {command}"
        seen, minutes = seen + before["images_seen"], minutes + before["minutes"]
    return {
        "command": command,
        "images_seen": seen,
        "minutes": round(minutes, 1),
        "machine": describe(run.device),
    }


def _card(shipped: dict[str, Path], name_or_path: str) -> dict | None:
    """The card of a trained model; None if it does not say how that was trained."""
    from minidiff import checkpoint

    card = checkpoint.about(shipped.get(name_or_path, Path(name_or_path))).get("card", {})
    return card if card.keys() >= {"command", "images_seen", "minutes"} else None


def _recipe(data: str, size: int | None, out: Path):
    from minidiff import recipes

    named = {
        "shapes": recipes.captioned_shapes,
        "cifar10": recipes.cifar10,
        "butterflies": recipes.butterflies,
        "emoji": recipes.emoji,
    }
    sizes = {} if size is None else {"size": size}
    if data in named:
        return named[data](**sizes)
    if not Path(data).is_dir():
        raise ValueError(f"there is no data {data!r}: expected {', '.join(named)}, or a folder")
    if out.resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(f"--out {out} lies among the pictures, and its previews would join them")
    return recipes.folder(data, **sizes)


def join_processes() -> None:
    """Under torchrun: meet the other processes, over nccl on GPUs and gloo on CPUs."""
    if "RANK" not in os.environ:
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    meet("nccl" if torch.cuda.is_available() else "gloo")
    click.get_current_context().call_on_close(dist.destroy_process_group)


def meet(backend: str) -> None:
    """Join the processes that torchrun has started. Each start has names of its own in their common
    store: else, started again, they may find the addresses of those that died, and wait for them.
    """
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://"))
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = dist.PrefixStore(f"start {start}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world)


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
