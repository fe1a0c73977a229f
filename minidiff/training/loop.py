"""Training: the loop of DDPM's algorithm 1 with what every real run needs.

All randomness of a step is drawn from (seed, step), so a run that is stopped and resumed, split
over processes or accumulated over smaller batches sees exactly the same numbers.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minidiff import checkpoint
from minidiff.condition import Condition
from minidiff.denoiser import denoising_loss, min_snr_weight
from minidiff.device import autocast, compile_on_gpu
from minidiff.training.batches import Batch, Batches, TrainingSet, mixed
from minidiff.training.log import Log
from minidiff.training.processes import any_process, rank, world


@dataclass(frozen=True)
class TrainConfig:
    images: int  # how many to see in all
    batch: int = 64  # over all processes and accumulated parts
    accumulate: int = 1  # parts that a process splits its share of the batch into
    learning_rate: float = 6e-4
    weight_decay: float = 0.01
    warmup: int = 30_000  # images over which the learning rate rises
    cooldown: float = 0.3  # last part of the run, over which it falls to 0
    ema: float = 0.999  # decay of the averaged weights, a step
    clip: float = 1.0  # largest norm of the gradient
    flip: bool = True  # mirror half of the images
    mixed_precision: bool = True  # bfloat16 where the hardware is fast in it
    seed: int = 0
    log_every: int = 5_000  # images
    save_every: int = 50_000

    def __post_init__(self):
        for name in ("images", "batch", "accumulate", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 1")
        if not self.learning_rate >= 0 or not 0 <= self.ema < 1 or not 0 <= self.cooldown <= 1:
            raise ValueError(
                f"learning_rate {self.learning_rate}, ema {self.ema}, cooldown {self.cooldown}: "
                "expected a rate from 0, a decay in [0, 1) and a share in [0, 1]"
            )
        if not self.clip > 0 or not self.warmup >= 0:
            raise ValueError(
                f"clip {self.clip}, warmup {self.warmup}: expected a norm above 0, images from 0"
            )
        if self.batch % (self.accumulate * world()):
            raise ValueError(
                f"a batch of {self.batch} does not divide into {world()} processes "
                f"times {self.accumulate} parts"
            )


class Objective(nn.Module):
    """The denoising loss of a model: of its network and, if it has weights, of its encoder.

    `Run` trains any module like it: `forward` takes the columns of a batch by their names and gives
    the loss; `network` is what is compiled; `about()` says what is learnt; `batches(data, config)`
    draws the batches; `save(path, card)` writes the model. `model` is a `Diffusion` or has the same
    fields.
    """

    def __init__(self, model: Any, *, min_snr: float | None = None):
        super().__init__()
        if min_snr is not None and not min_snr > 0:
            raise ValueError(f"min_snr is {min_snr}: expected a gamma above 0, or None")
        self.model, self.network, self.min_snr = model, model.network, min_snr
        self.encoder = model.encoder  # registered as a part of this module if it has weights

    def about(self) -> dict:
        schedule = self.model.schedule
        tables = [round(table.sum().item(), 6) for table in (schedule.alpha, schedule.sigma)]
        about = {"predicts": self.model.predicts, "schedule": [schedule.T, *tables]}
        return about | {"min_snr": self.min_snr}

    def batches(self, data: TrainingSet, config: TrainConfig) -> Batches:
        T = self.model.schedule.T
        return Batches(data, config.batch, T, config.seed, mirror=config.flip)

    def forward(
        self, x0: Tensor, t: Tensor, noise: Tensor, ids: Tensor | None = None, **fields: Tensor
    ) -> Tensor:
        """The loss of a batch: `ids` go through the encoder, `fields` are those of a Condition."""
        level, predicts = self.model.schedule.level(t), self.model.predicts
        weight = None
        if self.min_snr is not None:
            weight = min_snr_weight(level, predicts=predicts, gamma=self.min_snr)
        condition = None if ids is None else self.encoder(ids)
        if unknown := fields.keys() - set(Condition._fields):
            raise ValueError(
                f"the batch has a column {unknown.pop()!r}: expected ids, or a field of a "
                f"Condition ({', '.join(Condition._fields)})"
            )
        if fields:
            condition = (condition or Condition())._replace(**fields)
        return denoising_loss(
            self.network, x0, level, noise, condition, predicts=predicts, weight=weight
        )

    def save(self, path: Path, card: dict) -> None:
        """Write the model with its card, for `zoo.load`."""
        replace(self.model, card=card).save(path)


class Run:
    """A training run: weights, their average, the optimizer, and where it stands.

    `batches(step)` gives the whole batch of a step, a function of the step alone. `about` says what
    the batches are made of: a run is only resumed with the same.
    """

    def __init__(
        self,
        objective: Objective,
        batches: Callable[[int], Batch],
        config: TrainConfig,
        out: str | Path,
        *,
        about: dict | None = None,
    ):
        self.device = next(objective.parameters()).device
        self.objective, self.batches, self.config = objective, batches, config
        self.out, self.data_about = Path(out), about or {}
        self.average = copy.deepcopy(objective).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            objective.parameters(), betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        self.step = 0
        self.seconds = 0.0  # of work, over all the sessions of a run
        self.parallel = objective  # wrapped by `fit` when there are several processes

    @property
    def seen(self) -> int:
        return self.step * self.config.batch

    @property
    def steps(self) -> int:
        return math.ceil(self.config.images / self.config.batch)

    def precision(self) -> AbstractContextManager:
        return autocast(self.device) if self.config.mixed_precision else nullcontext()

    def batch(self, step: int) -> Batch:
        """The whole batch of a step, on the run's device; ValueError for another number of rows."""
        batch = self.batches(step)
        lengths = {name: len(values) for name, values in batch.items()}
        if set(lengths.values()) != {self.config.batch}:
            raise ValueError(
                f"the batch of step {step} has rows {lengths}: expected {self.config.batch} of each"
            )
        return {name: values.to(self.device) for name, values in batch.items()}

    def learning_rate(self) -> float:
        c = self.config
        rise = (self.seen + c.batch) / max(c.warmup, 1)
        fall = (c.images - self.seen) / max(c.cooldown * c.images, 1)
        return c.learning_rate * max(0.0, min(1.0, rise, fall))

    def advance(self) -> tuple[Tensor, Tensor]:
        """One optimizer step; returns the loss and the gradient's norm, still on the device."""
        c = self.config
        batch = self.batch(self.step)
        torch.manual_seed(mixed(c.seed, self.step * world() + rank()))  # for dropout layers
        parts = world() * c.accumulate
        mine = range(rank() * c.accumulate, (rank() + 1) * c.accumulate)
        total = torch.zeros((), device=self.device)
        for part in mine:
            s = slice(part * c.batch // parts, (part + 1) * c.batch // parts)
            last = part == mine[-1]
            if dist.is_initialized():  # gradients are exchanged once, with the last part
                self.parallel.require_backward_grad_sync = last
            with self.precision():
                loss = self.parallel(**{name: values[s] for name, values in batch.items()})
            (loss / c.accumulate).backward()
            total += loss.detach() / c.accumulate
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), c.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        decay = min(c.ema, (1 + self.step) / (10 + self.step))  # short memory at the start
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.objective.parameters()), 1 - decay
        )
        for kept, now in zip(self.average.buffers(), self.objective.buffers(), strict=True):
            kept.copy_(now)  # a BatchNorm's statistics are averages already
        if dist.is_initialized():
            dist.all_reduce(total)
            total /= world()
        return total, norm

    def save(self) -> None:
        """Everything that resuming needs, in one file of plain tensors."""
        if rank() > 0:
            return
        tensors = {f"weights.{n}": p for n, p in _state(self.objective).items()}
        tensors |= {f"average.{n}": p for n, p in _state(self.average).items()}
        for name, p in self.objective.named_parameters():
            for key, value in self.optimizer.state[p].items():
                tensors[f"optimizer.{key}.{name}"] = value
        about = {"kind": "training state", "step": self.step, "seconds": self.seconds}
        about["config"] = asdict(self.config) | self._what()
        checkpoint.save(self.state_file, tensors, about)

    def resume(self) -> None:
        """Continue where `save` left off (ValueError if the file belongs to another run)."""
        tensors, about = checkpoint.load(self.state_file)
        if about.get("kind") != "training state":
            raise ValueError(f"{self.state_file} is not the state of a training run")
        ours, theirs = asdict(self.config) | self._what(), about["config"]
        for free in ("images", "accumulate", "log_every", "save_every"):
            theirs[free] = ours[free]
        if ours != theirs:
            changed = sorted(k for k in ours | theirs if ours.get(k) != theirs.get(k))
            raise ValueError(f"{self.state_file} was trained with another {', '.join(changed)}")
        named = dict(self.objective.named_parameters())
        for module, prefix in ((self.objective, "weights."), (self.average, "average.")):
            part = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            checkpoint.fill(_state(module), part, str(self.state_file))
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, kind, name = key.split(".", 2)
                p = named[name]  # its moments lie in memory as it does: fused AdamW insists on it
                like = p if value.shape == p.shape else value.to(p.device)
                self.optimizer.state[p][kind] = torch.empty_like(like).copy_(value)
        self.step, self.seconds = about["step"], about.get("seconds", 0.0)

    def _what(self) -> dict:
        """What is learnt from what: a run is only resumed with the same."""
        return self.objective.about() | self.data_about

    @property
    def state_file(self) -> Path:
        return self.out / "state.safetensors"


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each once, by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def fit(
    run: Run, *, on_save: Callable[[Run], None] | None = None, progress: bool = True
) -> Objective:
    """Train until `run.config.images` have been seen; returns the objective with averaged weights.

    `run.out` receives state.safetensors (to resume from) and log.csv. `on_save(run)` is called
    after each save, for previews. Ctrl-C saves first. FileExistsError if a run that begins would
    overwrite another; FloatingPointError if the loss is not finite; the last good state is then
    still there.
    """
    config = run.config
    if run.step == 0 and run.state_file.exists():
        raise FileExistsError(
            f"{run.out} holds a run already: resume() it first, or choose another folder"
        )
    log = Log(run.out / "log.csv", run.seen) if rank() == 0 else None
    bar = _bar(run, progress)
    run.objective.train()
    compile_on_gpu(run.objective.network, run.device)
    if dist.is_initialized():
        run.parallel = nn.parallel.DistributedDataParallel(run.objective)
    every = {"log": config.log_every, "save": config.save_every}
    losses, started = [], time.perf_counter()
    with _finish(bar, log), _whole_steps() as interrupted:
        while run.step < run.steps:
            loss, norm = run.advance()
            losses.append(loss)
            bar.update(config.batch)
            crossed = {
                k for k, n in every.items() if run.seen // n > (run.seen - config.batch) // n
            }
            last = run.step == run.steps
            if not (crossed or last or (interrupted() and world() == 1)):
                continue
            stop = any_process(interrupted(), run.device)  # several processes stop together
            done = last or stop
            value = torch.stack(losses).mean().item()
            _refuse_nan(value + 0 * norm.item(), run)
            if "log" in crossed or done:
                seconds = time.perf_counter() - started
                run.seconds += seconds
                speed = len(losses) * config.batch / seconds
                if log is not None:
                    log.write(run.seen, value, norm.item(), run.learning_rate(), speed)
                bar.set_postfix(loss=f"{value:.4f}", images_s=f"{speed:.0f}")
                losses, started = [], time.perf_counter()
            if "save" in crossed or done:
                run.save()
                if on_save is not None and rank() == 0:
                    on_save(run)
            if stop:
                raise KeyboardInterrupt(f"stopped after {run.seen} images; all is saved")
    if dist.is_initialized():  # none leaves while another still saves
        dist.barrier()
    return run.average


@contextmanager
def _finish(bar, log: Log | None) -> Iterator[None]:
    try:
        yield
    finally:
        bar.close()
        if log is not None:
            log.close()


@contextmanager
def _whole_steps() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for the end of a step; the function yielded tells whether it was pressed."""
    pressed = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _refuse_nan(loss: float, run: Run) -> None:
    if not math.isfinite(loss):
        good = run.state_file if run.state_file.is_file() else "none yet"
        raise FloatingPointError(
            f"the loss became {loss} by step {run.step} ({run.seen} images); "
            f"the last good state is {good}. Begin anew with a smaller learning rate"
        )


def _bar(run: Run, progress: bool):
    from tqdm.auto import tqdm

    return tqdm(
        total=run.config.images,
        initial=run.seen,
        unit="img",
        unit_scale=True,
        desc="training",
        disable=not progress or rank() > 0,
    )
