"""Lesson 03, training: checks of its exercises, and the pictures it is trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from PIL import Image
from torch import Generator, Tensor, nn

from minidiff import plot
from minidiff.data import shapes
from minidiff.denoiser import as_denoiser
from minidiff.device import autocast
from minidiff.guidance import clamp
from minidiff.lessons import exercise, expect, require
from minidiff.metrics import bootstrap
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


def judge(images: Tensor) -> str:
    """How far pictures are from the nearest scene that could be drawn, by the oracle: the median
    misfit with its 95% interval, and how many are read."""
    _, misfit = shapes.explain(images.cpu())
    low, high = bootstrap(misfit, lambda m: m.median(), generator=torch.Generator().manual_seed(0))
    read = int((misfit <= shapes.TOLERANCE).sum())
    return f"misfit {misfit.median():.2f} ({low:.2f} to {high:.2f}), {read} of {len(misfit)} read"


# -------------------------------------------------------------------------------------- pictures


def strip(previews: Mapping[int, Mapping[float, Tensor]], batch: int) -> Image.Image:
    """previews[step][decay]: two seeds at some eight moments, as trained above averaged."""
    steps, columns = list(previews), min(8, len(previews))
    moments = [steps[round(i * (len(steps) - 1) / max(columns - 1, 1))] for i in range(columns)]
    table = []
    for i in range(2):
        for decay in previews[steps[-1]]:
            name = "averaged" if decay else "as trained"
            found = torch.stack([previews[step][decay][i] for step in moments])
            table.append((f"seed {i}\n{name}", found))
    return plot.rows(table, column_labels=[f"{step * batch:,}" for step in moments]).reduce(2)


def loss_curves(title: str, lines: Mapping[str, tuple], x: str) -> Image.Image:
    return plot.curves(plot.Panel(title, lines, x=x, log_y=True)).reduce(2)


def error_curves(t: Tensor, errors: Mapping[str, Tensor]) -> Image.Image:
    """Mean squared errors against t, each of 16 neighbouring levels."""
    middles = t.float().cpu().reshape(-1, 16).mean(1).tolist()
    lines = {}
    for name, error in errors.items():
        each = error.square().mean((1, 2, 3)).cpu().reshape(-1, 16).mean(1)
        lines[f"error of {name}"] = (middles, each.tolist())
    return loss_curves("mean squared error of one network", lines, "t")


def weights_picture(schedule: NoiseSchedule, weight: Tensor) -> Image.Image:
    """The weight of each level, beside the plain loss's."""
    t = list(range(1, schedule.T + 1))
    lines = {"min-SNR": (t, weight.tolist()), "plain": (t, [1.0] * len(t))}
    return plot.curves(plot.Panel("weight of the error of v", lines, x="t")).reduce(2)


# ----------------------------------------------------------------------------------------- checks


@exercise
def check_noising(answer: Callable) -> str:
    """answer(x0, alpha_bar, generator) -> (t, noise, x_t): lines 3 to 5 of algorithm 1."""
    B, T = 6000, 4
    alpha_bar = torch.tensor([1.0, 0.9, 0.5, 0.2, 0.04])  # of t = 0, 1, ..., T
    x0 = torch.linspace(-1, 1, B).reshape(B, 1, 1, 1).expand(B, 3, 1, 2)
    found = answer(x0, alpha_bar, torch.Generator().manual_seed(0))
    require(
        isinstance(found, tuple) and len(found) == 3,
        "three things are asked for, in this order: return t, noise, x_t",
    )
    t, noise, x_t = found
    require(
        isinstance(t, Tensor) and t.shape == (B,) and not t.is_floating_point(),
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
    require(seen == {1, 2, 3, 4}, f"of t = 1, 2, 3, 4 only {sorted(seen)} are drawn")
    shares = [(t == i).float().mean().item() for i in sorted(seen)]
    require(max(shares) < 0.3, f"all t are equally likely, but yours have the shares {shares}")
    require(noise.shape == x0.shape, f"noise has the shape of x0: expected {tuple(x0.shape)}")
    require(
        abs(noise.mean().item()) < 0.05,
        f"noise has mean {noise.mean():.2f}: torch.rand is uniform, torch.randn is normal",
    )
    a = alpha_bar[t].reshape(-1, 1, 1, 1)
    shifted = alpha_bar[t - 1].reshape(-1, 1, 1, 1)
    expect(
        x_t,
        a.sqrt() * x0 + (1 - a).sqrt() * noise,
        "x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise",
        known=[
            (
                a * x0 + (1 - a) * noise,
                "both square roots are missing: alpha = sqrt(alpha_bar)",
            ),
            (
                a * x0 + (1 - a).sqrt() * noise,
                "x0 is multiplied by alpha_bar: its square root is missing",
            ),
            (
                a.sqrt() * x0 + (1 - a) * noise,
                "the noise is multiplied by 1 - alpha_bar: the square root is missing",
            ),
            (
                shifted.sqrt() * x0 + (1 - shifted).sqrt() * noise,
                "that is the level of t - 1: only the network counts from 0, alpha_bar has the "
                "clean picture at index 0",
            ),
        ],
    )
    return "lines 3 to 5 of algorithm 1, a level of its own for every picture"


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
    loss = answer(lambda part: (model.w * part).mean(), list(batch.reshape(2, 2)))
    gradient = model.w.grad
    require(gradient is not None, "no gradient is there: call backward() for every part")
    expect(
        gradient,
        3.0,
        "the gradient must be that of the mean over the whole batch",
        known=[
            (
                6.0,
                "the gradient is as many times too large as there are parts: each part's loss is a "
                "mean, so divide it by len(parts) before backward()",
            ),
            (2.25, "only the last part counts: gradients add up, do not set them to zero between"),
            (4.5, "only the last part counts, and it is not divided by len(parts)"),
            (0.75, "only the first part counts: call backward() for every part"),
        ],
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
            (
                0.1 * average + 0.9 * weights,
                "decay and 1 - decay are exchanged: an average that forgets nine tenths in a step "
                "is no average",
            ),
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
    require(isinstance(resumed, _Session), "restore must return the run it was given")

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
    require(same(resumed.average, whole.average), "the average goes on differently")
    return "bit for bit the run that was never interrupted"
