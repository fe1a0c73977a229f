"""Lesson 03, training: checks of its exercises, and the pictures it is trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor, nn

from minidiff import plot
from minidiff.data import shapes
from minidiff.denoiser import as_denoiser
from minidiff.device import autocast
from minidiff.guidance import clamp
from minidiff.lessons import exercise, expect, require
from minidiff.metrics import bootstrap, nearest_neighbours
from minidiff.samplers import ddim_step, sample
from minidiff.schedule import NoiseSchedule, add_noise

# ------------------------------------------------------------------------------------------ data


def pictures(n: int, generator: Generator) -> Tensor:
    """uint8 pictures (n, 3, 32, 32) of one large thing each: four shapes, four colours, nine places
    and two backgrounds."""

    def pick(names: tuple[str, ...]) -> list[str]:
        return [names[i] for i in torch.randint(len(names), (n,), generator=generator)]

    kinds = pick(("circle", "square", "triangle", "star")), pick(("red", "yellow", "green", "blue"))
    places = pick(shapes.POSITIONS), pick(("white", "navy"))
    scenes = [
        shapes.Scene(shapes.Thing(shape, colour), position, background)
        for shape, colour, position, background in zip(*kinds, *places, strict=True)
    ]
    return ((shapes.render(scenes, generator=generator)[0] + 1) * 127.5).round().to(torch.uint8)


class Exam:
    """The same questions for every network: held-out pictures (256, 3, H, W) under fixed noise at
    fixed levels, and 64 fixed noises to make pictures of."""

    def __init__(self, x0: Tensor, schedule: NoiseSchedule, device: torch.device):
        generator = torch.Generator().manual_seed(7)
        self.schedule, self.device, self.x0 = schedule, device, x0.to(device)
        self.start = torch.randn(64, *x0.shape[1:], generator=generator).to(device)
        self.noise = torch.randn(x0.shape, generator=generator).to(device)
        self.t = (torch.arange(len(x0)) * schedule.T // len(x0) + 1).to(device)

    @torch.no_grad()
    def loss(self, network: nn.Module, n: int = 128) -> float:
        """The plain loss of v, without weights, on n of the pictures."""
        few = slice(0, None, max(1, len(self.x0) // n))
        level = self.schedule.level(self.t[few])
        with autocast(self.device):
            out = network(add_noise(self.x0[few], level, self.noise[few]), self.t[few] - 1)
        target = level.alpha * self.noise[few] - level.sigma * self.x0[few]
        return (out - target).square().mean().item()

    def pictures(self, network: nn.Module, n: int, steps: int = 12) -> Tensor:
        """What the network draws of the first n noises, by DDIM: (n, 3, H, W)."""
        with autocast(self.device):
            denoise = clamp(as_denoiser(network, predicts="v"))
            x = sample(ddim_step, denoise, self.start[:n], self.schedule.path(steps))
        return x.float().clamp(-1, 1)


def distance(images: Tensor, drawn: Tensor) -> Tensor:
    """How far pictures (n, 3, H, W) are from the nearest of those drawn (N, 3, H, W), all seen at
    8 x 8 pixels: (n,), the root of the mean square over these pixels."""
    seen, known = (F.adaptive_avg_pool2d(x, 8) for x in (images, drawn))
    return nearest_neighbours(seen, known)[0][:, 0] / seen[0].numel() ** 0.5


def interval(values: Tensor) -> str:
    """The mean of values (n,) with its 95% bootstrap interval, in words."""
    low, high = bootstrap(values, generator=Generator().manual_seed(0))
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


# -------------------------------------------------------------------------------------- pictures


def strip(previews: Mapping[int, Mapping[float, Tensor]], batch: int) -> Image.Image:
    """previews[step][decay]: two seeds at every second moment, as trained above averaged."""
    steps, table = list(previews)[1::2], []
    for i in range(2):
        for decay in previews[steps[-1]]:
            name = "averaged" if decay else "as trained"
            table.append((f"seed {i}\n{name}", torch.stack([previews[s][decay][i] for s in steps])))
    return plot.rows(table, column_labels=[f"{step * batch:,}" for step in steps]).reduce(2)


def curves(title: str, lines: Mapping[str, tuple], x: str, log: bool = True) -> Image.Image:
    return plot.curves(plot.Panel(title, lines, x=x, log_y=log)).reduce(2)


def error_curves(t: Tensor, errors: Mapping[str, Tensor]) -> Image.Image:
    """Mean squared errors against t, each of 16 neighbouring levels."""
    middles = t.float().cpu().reshape(-1, 16).mean(1).tolist()
    lines = {}
    for name, error in errors.items():
        each = error.square().mean((1, 2, 3)).cpu().reshape(-1, 16).mean(1)
        lines[f"error of {name}"] = (middles, each.tolist())
    return curves("mean squared error of one network", lines, "t")


# ----------------------------------------------------------------------------------------- checks


@exercise
def check_noising(answer: Callable) -> str:
    """answer(x0, alpha_bar, generator) -> (t, noise, x_t): lines 3 to 5 of algorithm 1."""
    B = 6000
    alpha_bar = torch.tensor([1.0, 0.9, 0.5, 0.2, 0.04])  # of t = 0, 1, ..., T
    x0 = torch.linspace(-1, 1, B).reshape(B, 1, 1, 1).expand(B, 3, 1, 2)
    found = answer(x0, alpha_bar, torch.Generator().manual_seed(0))
    require(
        isinstance(found, tuple | list) and len(found) == 3,
        "three things are asked for, in this order: return t, noise, x_t",
    )
    t, noise, x_t = found
    _require_levels(t, B, len(alpha_bar) - 1)
    _require_normal(noise, x0)
    a = alpha_bar[t].reshape(-1, 1, 1, 1)
    shifted = alpha_bar[t - 1].reshape(-1, 1, 1, 1)
    expect(
        x_t,
        a.sqrt() * x0 + (1 - a).sqrt() * noise,
        "x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise",
        known=[
            (a * x0 + (1 - a) * noise, "both square roots are missing: alpha = sqrt(alpha_bar)"),
            (a * x0 + (1 - a).sqrt() * noise, "x0 is multiplied by alpha_bar: its root is missing"),
            (a * x0 + (1 - a**2).sqrt() * noise, "alpha_bar is alpha squared: take its root first"),
            (a.sqrt() * x0 + (1 - a) * noise, "the noise is multiplied by 1 - alpha_bar: no root"),
            (
                shifted.sqrt() * x0 + (1 - shifted).sqrt() * noise,
                "that is the level of t - 1: alpha_bar has the clean picture at index 0",
            ),
        ],
    )
    again = answer(x0, alpha_bar, torch.Generator().manual_seed(0))
    require(
        torch.equal(again[0], t) and torch.equal(again[1], noise),
        "one generator, two answers: hand generator=generator to randint and to randn",
    )
    return "lines 3 to 5 of algorithm 1, a level of its own for every picture"


def _require_levels(t: Tensor, B: int, T: int) -> None:
    """Wrong unless t is a level for each of B pictures, and all of 1 to T are equally likely."""
    require(
        not isinstance(t, Tensor) or not t.is_floating_point(),
        "the first thing returned must be t, whole numbers: return t, noise, x_t, in this order",
    )
    require(
        isinstance(t, Tensor) and t.shape == (B,),
        f"t must be one whole number for each picture, of shape ({B},): with one t for the whole "
        "batch the gradient jumps about with it",
    )
    seen = set(t.tolist())
    require(
        0 not in seen,
        "t = 0 is drawn, which is the clean picture: there is nothing to predict; begin at 1",
    )
    require(
        T in seen,
        "the noisiest level, t = T, is never drawn, and sampling begins there: the upper end of "
        "torch.randint is left out, so it must be T + 1",
    )
    require(
        max(seen) == T,
        f"t = {max(seen)} is drawn, beyond T = {T}: alpha_bar has the clean picture at index 0, "
        "so its last index is len(alpha_bar) - 1",
    )
    shares = [round((t == i).float().mean().item(), 2) for i in range(1, T + 1)]
    require(max(shares) < 1.2 / T, f"all t are equally likely, but yours have the shares {shares}")


def _require_normal(noise: Tensor, x0: Tensor) -> None:
    """Wrong unless noise looks like standard normal noise of the shape of x0."""
    require(
        isinstance(noise, Tensor) and noise.shape == x0.shape,
        f"noise has the shape of x0: expected {tuple(x0.shape)}",
    )
    mean, deviation = noise.mean().item(), noise.std().item()
    require(
        abs(mean) < 0.05 and abs(deviation - 1) < 0.05,
        f"noise has mean {mean:.2f} and deviation {deviation:.2f}, expected 0 and 1: torch.rand is "
        "uniform, torch.randn is normal",
    )


class _Line(nn.Module):
    """y = w x, which learns from two numbers what can go wrong in a step."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))


@exercise
def check_step(answer: Callable) -> str:
    """answer(optimizer, loss) -> the loss as a number: one step of gradient descent."""
    model = _Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for factor in (3.0, 2.0):  # the loss is 3 w, then 2 w: its gradient is the factor
        loss = factor * model.w
        returned = answer(optimizer, loss)
        seen.append(model.w.item())
        require(
            not isinstance(returned, Tensor) or not returned.requires_grad,
            "a tensor keeps its whole graph in memory: return a number, loss.item()",
        )
        expect(returned, loss.item(), "return loss.item()")
    first, second = seen
    require(
        first != 1.0,
        "the weights do not move: the gradient must be there when optimizer.step() is called, so "
        "zero_grad() stands before backward() or after step(), and not between",
    )
    require(
        abs(first - 0.1) > 1e-6,
        "the gradient is multiplied by the loss: backward(loss) takes its argument as the gradient "
        "that comes from above; write loss.backward()",
    )
    expect(first, 0.7, "call loss.backward() once, then optimizer.step() once")
    require(
        abs(second - 0.2) > 1e-6,
        "the second step used the first one's gradient too: backward() adds to what is there, so "
        "call optimizer.zero_grad() in every step",
    )
    require(
        abs(second - 0.4) > 1e-6,
        "the second step used the first one's gradient: step() comes after backward()",
    )
    expect(second, 0.5, "zero_grad, backward, step")
    return "zero_grad, backward, step"


@exercise
def check_accumulate(answer: Callable) -> str:
    """answer(loss_of, parts) -> the whole batch's mean loss, its gradient left in the weights."""
    model, batch = _Line(), torch.tensor([1.0, 2.0, 3.0, 6.0])
    there = []  # at each part, whether a gradient was there already

    def loss_of(part: Tensor) -> Tensor:
        there.append(model.w.grad is not None)
        return (model.w * part).mean()

    loss = answer(loss_of, list(batch.reshape(2, 2)))
    gradient = model.w.grad
    require(gradient is not None, "no gradient is there: call backward() for every part")
    expect(
        gradient,
        3.0,
        "the gradient must be that of the mean over the whole batch",
        known=[
            (6.0, "the gradient is twice too large: a loss is a mean, divide it by len(parts)"),
            (2.25, "only the last part counts: gradients add up, do not set them to zero between"),
            (4.5, "only the last part counts, and it is not divided by len(parts)"),
            (0.75, "only the first part counts: call backward() for every part"),
        ],
    )
    require(
        there == [False, True],
        "the gradient is right, but all parts are in memory at once: call loss_of and then "
        "backward() for one part before the next",
    )
    expect(loss, 3.0, "return the mean of the parts' losses, for the log")
    return "two halves of a batch give the gradient of the whole"


@exercise
def check_drop(answer: Callable) -> str:
    """answer(labels, null, share, generator) -> labels, each replaced by null with that chance."""
    n, null, share = 20_000, 10, 0.1
    labels = torch.arange(n) % 10
    before = labels.clone()
    found = answer(labels, null, share, torch.Generator().manual_seed(0))
    require(torch.equal(labels, before), "the labels given were overwritten: return a new tensor")
    require(
        isinstance(found, Tensor) and found.shape == labels.shape,
        f"expected one label for each picture, a tensor of shape {tuple(labels.shape)}",
    )
    dropped = found == null
    require(
        bool((found == labels)[~dropped].all()),
        "labels that are not dropped must stay as they are",
    )
    rate = dropped.float().mean().item()
    require(
        abs(rate - 0.9) > 0.02,
        f"{rate:.0%} of the labels are dropped instead of 10%: the comparison is the wrong way "
        "round; torch.rand(...) < share is true for a tenth",
    )
    require(
        rate not in (0.0, 1.0),
        f"{rate:.0%} of the labels are dropped: draw a number for each label, not one for all",
    )
    require(abs(rate - share) < 0.01, f"{rate:.1%} of the labels are dropped instead of 10%")
    late = dropped[n // 2 :].float().mean().item()
    require(abs(late - share) < 0.02, f"of the second half of the labels {late:.0%} are dropped")
    return f"{rate:.1%} of the labels are dropped"


@exercise
def check_ema(answer: Callable) -> str:
    """answer(average, weights, decay) -> the new average."""
    average, weights = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 6.0])
    expect(
        answer(average.clone(), weights, 0.9),
        torch.tensor([1.1, 2.4]),
        "decay times the average, and 1 - decay times the weights",
        known=[
            (0.1 * average + 0.9 * weights, "decay and 1 - decay are exchanged: it forgets 90%"),
            (weights, "that is a copy of the weights"),
            (average, "the average does not move"),
            (average + 0.1 * weights, "the old average is not scaled by decay: it grows for ever"),
        ],
    )
    return "a tenth of the way towards the new weights"


class _Session:
    """A run of ten numbers whose every part matters to how it goes on."""

    def __init__(self, seed: int):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network, self.average = nn.Linear(3, 1), nn.Linear(3, 1)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.05)
        self.step = 0

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            generator = torch.Generator().manual_seed(self.step)  # a step's data: of its number
            x = torch.randn(8, 3, generator=generator)
            loss = (self.network(x) - x.sum(1, keepdim=True)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            with torch.no_grad():
                pairs = zip(self.average.parameters(), self.network.parameters(), strict=True)
                for a, p in pairs:
                    a.lerp_(p, 0.1)


@exercise
def check_resume(save: Callable, restore: Callable) -> str:
    """save(run) -> state, and restore(run, state) -> run, which then goes on as if nothing were."""
    lost = _Session(0)
    lost.advance(5)
    state = save(lost)
    lost.advance(3)  # the session goes on for a while after the save, then it is lost
    whole = _Session(0)
    whole.advance(5)
    new = _Session(1)  # a new session begins with other weights
    resumed = restore(new, state)
    require(
        resumed is new,
        "restore must fill the new session's run, which it was given, and return it",
    )

    def same(a: nn.Module, b: nn.Module) -> bool:
        return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))

    require(
        not same(resumed.network, lost.network),
        "the weights are those of the lost session's end, not of the save: state_dict() holds the "
        "tensors themselves, which training goes on to change; copy.deepcopy it",
    )
    require(same(resumed.network, whole.network), "the network's weights are not restored")
    require(
        not same(resumed.average, resumed.network),
        "the average is a copy of the restored weights: a thousand steps of averaging are lost. "
        "Save the average and restore it as well",
    )
    require(
        same(resumed.average, whole.average),
        "the average is not restored: it starts from the new session's fresh weights",
    )
    require(
        resumed.step == whole.step,
        f"the run thinks it is at step {resumed.step}, but it is at {whole.step}: it would see the "
        "same pictures again, and the learning rate would rise again",
    )
    resumed.advance(5)
    whole.advance(5)
    require(
        same(resumed.network, whole.network),
        "the weights are right at first, but the next steps differ: the optimizer's moments are "
        "not restored",
    )
    return "bit for bit the run that was never interrupted"
