"""The bench: the model, the scenes and captions of a seed, and arms drawn from the same noises."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from minidiff import zoo
from minidiff.data import shapes
from minidiff.denoiser import Denoiser, as_denoiser
from minidiff.device import autocast
from minidiff.guidance import clamp
from minidiff.noise import per_image
from minidiff.samplers import Step, ddim_step, sample

GRADED, DEVELOPMENT = 70_000, 10_000  # seeds: settings are chosen on one, graded on the other
GROUP = 4  # images of one prompt, whose differences are their diversity
STEPS = 25


class Arm(NamedTuple):
    """What a method draws: images (n,...) on the CPU, and what one of them costs."""

    images: Tensor
    calls: float
    seconds: float


class Bench:
    """n scenes, captions and noises of a seed, and the model that is asked to draw them.

    Whatever is called a scene holds one large, plain thing; `prompts` ask for two, and leave their
    sizes, place and background free. Image i is the same whatever n. A `quick` bench is for
    methods that are slow with any n: they take fewer steps. All rows are drawn on the CPU, as those
    that were published.
    """

    def __init__(self, n: int = 96, seed: int = GRADED, *, quick: bool = False):
        if n < 1 or n % (2 * GROUP):  # some rows draw half
            raise ValueError(f"n = {n}: expected a multiple of {2 * GROUP}")
        self.n, self.seed, self.quick = n, seed, quick
        self.model = zoo.load("shapes", "cpu")
        self.schedule, self.fast = self.model.schedule, self.model.for_sampling()
        self.path = self.schedule.path(STEPS)
        self._through = 0
        for network in {self.model.network, self.fast.network}:
            self.watch(network)
        self._drawn: dict[str, Arm] = {}

    def watch(self, network: nn.Module) -> None:
        """Count the images that go through a network, and freeze it: gradients are of images."""

        def seen(network: nn.Module, inputs: tuple, output: Tensor) -> None:
            self._through += len(inputs[0])

        network.register_forward_hook(seen)
        network.requires_grad_(False)

    # ------------------------------------------------------------------------------------ arms

    def arm(
        self,
        draw: Callable[[slice, list[Generator]], Tensor],
        *,
        n: int | None = None,
        batch: int = 32,
        exact: bool = False,
    ) -> Arm:
        """Draw n images: `draw(rows, generators)` gives those of some rows, each with a generator.

        Every arm gets generators of the same seeds, so that arms can be compared image by image.
        `exact` is without bfloat16, which rounds away what good solvers differ by.
        """
        n = n or self.n
        self._through, start = 0, time.perf_counter()
        generators = per_image(Generator().manual_seed(self.seed), n)
        parts = []
        device = self.model.device
        with torch.no_grad(), nullcontext() if exact else autocast(device):
            for first in range(0, n, batch):
                rows = slice(first, min(first + batch, n))
                parts.append(draw(rows, generators[rows]).float().cpu())
        seconds = time.perf_counter() - start
        return Arm(torch.cat(parts), self._through / n, seconds / n)

    def shared(self, name: str, make: Callable[[], Arm]) -> Arm:
        """An arm that several rows use is drawn once."""
        if name not in self._drawn:
            self._drawn[name] = make()
        return self._drawn[name]

    def sampled(
        self,
        denoiser: Callable[[slice], Denoiser],
        *,
        step: Step = ddim_step,
        path: Sequence | None = None,
        n: int | None = None,
        exact: bool = False,
    ) -> Arm:
        """An arm of plain sampling from noise, `denoiser(rows)` being that of some rows."""

        def draw(rows: slice, generators: list[Generator]) -> Tensor:
            x = self.model.noise(len(generators), generators)
            return sample(step, denoiser(rows), x, path or self.path, generator=generators)

        return self.arm(draw, n=n, exact=exact)

    def guided(self, captions: Sequence[str], scale: float) -> Callable[[slice], Denoiser]:
        """The clamped denoiser of some rows' captions."""
        return lambda rows: clamp(self.fast.denoiser(captions[rows], scale))

    def exactly(self, captions: Sequence[str] | None = None) -> Callable[[slice], Denoiser]:
        """The denoiser of some rows' captions, or of none, in float32 and not clamped."""

        def of(rows: slice) -> Denoiser:
            said = captions[rows] if captions else [None] * (rows.stop - rows.start)
            condition = self.model.condition(said)
            return as_denoiser(self.model.network, condition, predicts=self.model.predicts)

        return of

    @property
    def few(self) -> int:
        """The number of images of what is slow."""
        return max(self.n // 4, 8)

    @property
    def unconditional(self) -> Denoiser:
        return clamp(self.fast.denoiser())

    def of_prompts(self, scale: float) -> Arm:
        """The prompts drawn with guidance, DDIM."""
        return self.shared(
            f"prompts {scale}", lambda: self.sampled(self.guided(self.prompts, scale))
        )

    # ------------------------------------------------------------------------ what is asked for

    @cached_property
    def scenes(self) -> list[shapes.Scene]:
        drawn = shapes.random_scenes(self.n, Generator().manual_seed(self.seed), pairs=0)
        return [replace(s, thing=shapes.Thing(s.thing.shape, s.thing.colour)) for s in drawn]

    @cached_property
    def captions(self) -> list[str]:
        """All there is to say of each scene."""
        return shapes.captions(self.scenes)

    @cached_property
    def _rendered(self) -> tuple[Tensor, Tensor]:
        return shapes.render(self.scenes, generator=Generator().manual_seed(self.seed + 1))

    @cached_property
    def images(self) -> Tensor:
        """The scenes as pictures (n,3,32,32), each thing a little off the middle of its cell."""
        return self._rendered[0]

    @cached_property
    def things(self) -> Tensor:
        """1 where a picture's thing is (n,1,32,32)."""
        return (self._rendered[1] > 0.5).float()

    @cached_property
    def background(self) -> Tensor:
        """1 well outside of a picture's thing and its shadow (n,1,32,32)."""
        return 1 - F.max_pool2d((self._rendered[1] > 0).float(), 7, stride=1, padding=3)

    @cached_property
    def targets(self) -> list[shapes.Scene]:
        """The scenes with another shape each."""
        luck = torch.randint(1, len(shapes.SHAPES), (self.n,), generator=self.luck(2)).tolist()
        return [_reshaped(scene, turn) for scene, turn in zip(self.scenes, luck, strict=True)]

    @cached_property
    def target_captions(self) -> list[str]:
        return shapes.captions(self.targets)

    @cached_property
    def shorts(self) -> list[str]:
        """Captions of the scenes that leave place and background to the noise."""
        return [short(scene) for scene in self.scenes]

    @cached_property
    def target_shorts(self) -> list[str]:
        return [short(scene) for scene in self.targets]

    @property
    def from_shorts(self) -> Arm:
        """The short captions drawn with guidance of 3."""
        return self.shared("shorts", lambda: self.sampled(self.guided(self.shorts, 3.0)))

    @cached_property
    def prompts(self) -> list[str]:
        """Two things, the rest is free; GROUP images in a row have the same."""
        drawn = shapes.random_scenes(self.n // GROUP, self.luck(3), pairs=1)
        return [
            f"{_a(scene.thing)} {scene.relation} {_a(scene.other)}"
            for scene in drawn
            for _ in range(GROUP)
        ]

    def luck(self, which: int) -> Generator:
        return Generator().manual_seed(self.seed + which)


def short(scene: shapes.Scene) -> str:
    return f"a large {scene.thing.colour} {scene.thing.shape}"


def _a(thing: shapes.Thing) -> str:
    return f"{'an' if thing.colour == 'orange' else 'a'} {thing.colour} {thing.shape}"


def _reshaped(scene: shapes.Scene, turn: int) -> shapes.Scene:
    """The scene with a shape `turn` places further on, or the next that training has seen."""
    start = shapes.SHAPES.index(scene.thing.shape) + turn
    for k in range(len(shapes.SHAPES)):
        shape = shapes.SHAPES[(start + k) % len(shapes.SHAPES)]
        if shape != scene.thing.shape and (scene.thing.colour, shape) not in shapes.HELD_OUT:
            return replace(scene, thing=replace(scene.thing, shape=shape))
    raise AssertionError("every colour has several shapes")
