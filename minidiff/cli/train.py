"""`minidiff train`, `train-clip`, `train-classifier`: everything that is trained here."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from minidiff.cli.options import ANY_SEED, join_processes, together

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
@click.option("--predicts", type=click.Choice(["eps", "v", "x0", "flow"]))
@click.option(
    "--schedule",
    type=click.Choice(["linear", "cosine", "flow"]),
    help="Of the noise levels.  [default: the recipe's; flow for --predicts flow]",
)
@click.option("--min-snr", type=float, help="Gamma of min-SNR weighting; 0 for the plain loss.")
@click.option(
    "--drop-condition", type=float, help="Share of images that are learnt without their condition."
)
@click.option("--float32", is_flag=True, help="No mixed precision.")
@click.option(
    "--weights", help="Start from a trained model: a name of `minidiff models` or a file."
)
@click.option("--tensorboard", is_flag=True, help="Also write the log for TensorBoard.")
def train(data, out, float32, weights, resume, tensorboard, **options) -> None:
    """Train a model; everything not given is the recipe's.

    \b
    minidiff train --data shapes
    minidiff train --data ~/pictures --size 64 --images 1e6
    torchrun --nproc-per-node 8 -m minidiff train --data cifar10 --batch 1024
    """
    from minidiff import zoo
    from minidiff.recipes import start_from
    from minidiff.training.processes import first_process_first

    out = out or Path("runs") / Path(data).resolve().name
    join_processes()
    with first_process_first():
        recipe = _recipe(data, options.pop("size"), out)
    given = _given(options)
    if float32:
        given["mixed_precision"] = False
    recipe = _changed(recipe, given)
    if weights:
        start_from(recipe.model, weights)
    before = _card(zoo.names(), weights) if weights else None
    preview = _Preview(recipe.previews, out, tensorboard)
    _fit(recipe.run(out), recipe.model.card, resume, before, preview)


def _changed(recipe, given: dict):
    """The recipe with what was typed in the place of its own."""
    from minidiff.recipes.diffusion import reset
    from minidiff.schedule import NoiseSchedule
    from minidiff.training import Objective

    model, data, network = recipe.model, recipe.data, recipe.model.network.config
    changes = {k: given.pop(k) for k in ("channels", "blocks", "patch") if k in given}
    if "multipliers" in given:
        levels = changes["multipliers"] = _integers(given.pop("multipliers"))
        for kind in ("attention", "cross_attention"):  # at those of the recipe's levels that exist
            changes[kind] = tuple(i for i in getattr(network, kind) if i < len(levels))
    if "predicts" in given:
        model = replace(model, predicts=given.pop("predicts"))
        if model.predicts == "flow":
            given.setdefault("schedule", "flow")
    if "schedule" in given:
        model = replace(model, schedule=getattr(NoiseSchedule, given.pop("schedule"))())
    if model.predicts == "eps" and model.schedule.alpha[-1] == 0:
        raise ValueError(
            "--predicts eps: this schedule ends at pure noise, where eps leaves the image open: "
            "expected v, x0 or flow"
        )
    if "min_snr" in given:
        objective = partial(Objective, min_snr=given.pop("min_snr") or None)
        recipe = replace(recipe, objective=objective)
    if "drop_condition" in given:
        data = data.dropping(given.pop("drop_condition"))
    config = replace(recipe.train, **given)
    model = reset(model, replace(network, **changes), config.seed)
    return replace(recipe, model=model, data=data, train=config)


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
    from minidiff.clip import weights as clip_weights
    from minidiff.recipes import clip as clip_recipes
    from minidiff.recipes import noisy_clip
    from minidiff.training.processes import first_process_first

    if judge and data != "shapes":
        raise ValueError(f"--judge: the {data} CLIP has none, the classifier judges what it guides")
    if noisy and (data != "shapes" or judge or shuffled):
        raise ValueError("--noisy is for --data shapes alone, without --judge and --shuffled")
    if weights and data != "shapes":
        raise ValueError("--weights is for --data shapes alone")
    join_processes()
    given = _given(options)
    seed = {"seed": given["seed"]} if "seed" in given else {}
    with first_process_first():
        if noisy:
            recipe = noisy_clip.noisy_shapes(noisy, **seed)
        elif data == "shapes":
            recipe = clip_recipes.clip_shapes(judge, shuffled, weights, **seed)
        else:
            recipe = clip_recipes.clip_cifar10(shuffled, **seed)
    recipe = replace(recipe, train=replace(recipe.train, **given))
    out = out or Path("runs") / f"clip_{data}{'_judge' if judge else '_noisy' if noisy else ''}"
    before = _card(clip_weights.shipped(), weights) if weights else None
    _fit(recipe.run(out), recipe.model.card, resume, before)


@click.command()
@click.option("--data", required=True, type=click.Choice(["shapes", "cifar10"]))
@click.option("--shuffled", is_flag=True, help="The control: every image with another's labels.")
@_out("runs/noisy_DATA")
@RUN
def train_classifier(data, shuffled, out, resume, **options) -> None:
    """Train a classifier of noisy images, for `minidiff guide classifier`.

    minidiff train-classifier --data shapes
    """
    from minidiff.recipes import noisy_classifier
    from minidiff.training.processes import first_process_first

    join_processes()
    recipes = {
        "shapes": noisy_classifier.noisy_shapes,
        "cifar10": noisy_classifier.noisy_cifar10,
    }
    given = _given(options)
    with first_process_first():
        recipe = recipes[data](shuffled, **({"seed": given["seed"]} if "seed" in given else {}))
    recipe = replace(recipe, train=replace(recipe.train, **given))
    out = out or Path("runs") / f"noisy_{data}"
    _fit(recipe.run(out), recipe.model.card, resume)


class _Preview:
    """After each save of a run: a preview sheet, and TensorBoard if it is wanted."""

    def __init__(self, prompts, out: Path, tensorboard: bool):
        from minidiff import training

        self.prompts, self.board = list(prompts), None
        if tensorboard and training.rank() == 0:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError("--tensorboard needs `pip install tensorboard`") from error
            self.board = SummaryWriter(out)

    def __call__(self, run) -> None:
        from minidiff import plot
        from minidiff.training.log import last_row

        model = run.average.model
        scale, n = 2.0 if model.encoder else 1.0, len(self.prompts)
        images = model.sample(self.prompts, n, scale=scale, steps=25)
        labels = [str(p) for p in self.prompts] if model.encoder else None
        plot.save(plot.grid(images.cpu(), labels), run.out / f"preview_{run.seen:09d}.png")
        if self.board is not None:
            for name, value in last_row(run.out).items():
                self.board.add_scalar(name, float(value), run.seen)
            self.board.add_images("preview", (images.cpu() + 1) / 2, run.seen)


def _fit(run, card: dict, resume: bool, before: dict | None = None, preview=None) -> None:
    """Say what will be done, and do it; each save also writes the trained model with its card.

    `card` says what the data are, `before` is the card of the model whose weights the run began
    with.
    """
    from minidiff import training
    from minidiff.training.estimate import estimate

    if resume and run.state_file.exists():
        run.resume()
    elif not resume and run.state_file.exists():
        raise ValueError(f"{run.out} holds a run already: add --resume, or choose another --out")
    if training.rank() == 0:
        click.echo(f"{card['data']}: {run.data_about['data']} images, on {run.device}")
        click.echo(f"estimate: {estimate(run)}")
    model = run.out / "model.safetensors"

    def on_save(run) -> None:
        run.average.save(model, card | _history(run, before))
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


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--multipliers {text!r}: expected whole numbers like 1,2,2") from None
