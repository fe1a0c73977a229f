"""Training: the loop of DDPM's algorithm 1 with what every real run needs.

All randomness of a step is drawn from (seed, step), so a run that is stopped and resumed, split
over processes or accumulated over smaller batches sees exactly the same numbers.
"""

from __future__ import annotations

import copy
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from minidiff import checkpoint
from minidiff.data.images import flip, to_float
from minidiff.denoiser import denoising_loss, min_snr_weight
from minidiff.device import autocast, compile_on_gpu
from minidiff.schedule import NoiseSchedule
from minidiff.training.log import Log


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
    min_snr: float | None = None  # gamma of the min-SNR weighting, None for the plain loss
    drop_condition: float = 0.1  # share of images whose condition becomes the null one
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
        if self.min_snr is not None and not self.min_snr > 0:
            raise ValueError(f"min_snr is {self.min_snr}: expected a gamma above 0, or None")
        if self.batch % (self.accumulate * world()):
            raise ValueError(
                f"a batch of {self.batch} does not divide into {world()} processes "
                f"times {self.accumulate} parts"
            )
        if not 0 <= self.drop_condition <= 1:
            raise ValueError(f"drop_condition is {self.drop_condition}: expected a share in 0..1")


@dataclass(frozen=True)
class TrainingSet:
    """What is learnt from: uint8 images (N,3,H,W), and a condition for each or None.

    `null` is the condition that replaces a dropped one, of a row's shape: needed where
    `drop_condition` is above 0.
    """

    images: Tensor
    conditions: Tensor | None = None
    null: Tensor | None = None

    def __post_init__(self):
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or len(self.images) == 0:
            raise ValueError(
                f"training images must be uint8 (N,3,H,W), got {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if self.conditions is not None and len(self.conditions) != len(self.images):
            raise ValueError(f"{len(self.images)} images but {len(self.conditions)} conditions")

    def to(self, device: torch.device) -> TrainingSet:
        move = [part if part is None else part.to(device) for part in vars(self).values()]
        return TrainingSet(*move)


class Objective(nn.Module):
    """The denoising loss of a network and, if the condition is text, its encoder.

    `Run` trains any module like it: `batch(data, config, step)` draws what `forward` takes for one
    whole batch, image by image; `forward` gives the loss; `about()` says what is learnt.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        encoder: nn.Module | None = None,
        *,
        predicts: str = "v",
        min_snr: float | None = None,
    ):
        super().__init__()
        self.network, self.encoder, self.schedule = network, encoder, schedule
        self.predicts, self.min_snr = predicts, min_snr

    def about(self) -> dict:
        levels = self.schedule.alpha_bar
        schedule = [len(levels), round(levels.sum().item(), 6)]
        return {"predicts": self.predicts, "schedule": schedule}

    def batch(self, data: TrainingSet, config: TrainConfig, step: int) -> Sequence[Tensor | None]:
        return draw_batch(data, config, self.schedule.T, step)

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None) -> Tensor:
        level = self.schedule.level(t)
        weight = None
        if self.min_snr is not None:
            weight = min_snr_weight(level, predicts=self.predicts, gamma=self.min_snr)
        if self.encoder is not None:
            condition = self.encoder(condition)
        return denoising_loss(
            self.network, x0, level, noise, condition, predicts=self.predicts, weight=weight
        )


def draw_batch(data: TrainingSet, config: TrainConfig, T: int, step: int) -> tuple:
    """x0, t, noise and condition of one whole batch, a function of (seed, step) alone.

    ValueError if conditions are to be dropped and there is no null one.
    """
    device, B = data.images.device, config.batch
    generator = Generator(device).manual_seed(mixed(config.seed, step))
    index = draw_index(data, config, step)
    x0 = to_float(data.images[index])  # (B,3,H,W) in [-1,1]
    if config.flip:
        x0 = flip(x0, generator)
    t = torch.randint(1, T + 1, (B,), generator=generator, device=device)
    noise = torch.randn(x0.shape, generator=generator, device=device)
    condition = None
    if data.conditions is not None:
        condition = data.conditions[index]
    if condition is not None and config.drop_condition > 0:
        if data.null is None:
            raise ValueError(
                f"drop_condition = {config.drop_condition}, but the training set has no null "
                "condition to learn instead: pass TrainingSet its `null`, or drop none"
            )
        dropped = torch.rand(B, generator=generator, device=device) < config.drop_condition
        dropped = dropped.reshape(-1, *[1] * (condition.ndim - 1))
        condition = torch.where(dropped, data.null, condition)
    return x0, t, noise, condition


def draw_index(data: TrainingSet, config: TrainConfig, step: int) -> Tensor:
    """Which images (B,) a step sees: every epoch all of them, in an order of its own."""
    n, B, parts = len(data.images), config.batch, []
    at, end = step * B, (step + 1) * B  # positions in an endless row of epochs
    while at < end:
        epoch, first = divmod(at, n)
        order = _order(n, config.seed, epoch, data.images.device)
        parts.append(order[first : first + end - at])
        at += len(parts[-1])
    return torch.cat(parts)


def mixed(seed: int, n: int) -> int:
    """A seed of 32 bits, all that CPU generators look at, for number n of a run's seed."""
    return (seed * 0x9E3779B1 + n) % 2**32


@functools.lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    """The order in which epoch number `epoch` visits n images."""
    order = torch.randperm(n, generator=Generator().manual_seed(mixed(seed, epoch)))
    return order.to(device)  # once an epoch: a copy from the host waits for the device


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


class Run:
    """A training run: weights, their average, the optimizer, and where it stands."""

    def __init__(self, objective: Objective, data: TrainingSet, config: TrainConfig, out: Path):
        self.device = next(objective.parameters()).device
        self.objective, self.config, self.out = objective, config, Path(out)
        self.data = data.to(self.device)
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

    def learning_rate(self) -> float:
        c = self.config
        rise = (self.seen + c.batch) / max(c.warmup, 1)
        fall = (c.images - self.seen) / max(c.cooldown * c.images, 1)
        return c.learning_rate * max(0.0, min(1.0, rise, fall))

    def advance(self) -> tuple[Tensor, Tensor]:
        """One optimizer step; returns the loss and the gradient's norm, still on the device."""
        c = self.config
        batch = self.objective.batch(self.data, c, self.step)
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
                loss = self.parallel(*(p if p is None else p[s] for p in batch))
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
            changed = [k for k in ours if ours[k] != theirs.get(k)]
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
        return self.objective.about() | {"data": len(self.data.images)}

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
            stop = _any_process(interrupted(), run.device)  # several processes stop together
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


def _any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up in any process: all of them stop at the same step."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags)
    return flags.item() > 0


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
