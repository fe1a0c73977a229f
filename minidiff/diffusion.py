"""A trained model: a network with its schedule, and the one way to draw from it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from html import escape
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Generator, Tensor, nn

from minidiff import checkpoint
from minidiff.condition import Condition, expand, take
from minidiff.denoiser import Denoiser, Network, Tap, as_denoiser
from minidiff.device import autocast, place
from minidiff.guidance import clamp, classifier_free, weighted_prompts
from minidiff.layers import for_sampling
from minidiff.noise import Randomness, per_image, randn
from minidiff.samplers import (
    Frame,
    Step,
    ddim_step,
    dpmpp_2m_step,
    spacing_for,
    trajectory,
)
from minidiff.schedule import NoiseSchedule
from minidiff.text import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 2  # of the files that `Diffusion.save` writes

Guide = Callable[[Denoiser], Denoiser]


class Encoder(Protocol):
    """Prompts to a Condition. `takes` says what a prompt is: "captions" or "classes"."""

    takes: str

    def tokenize(self, prompts: Sequence[Prompt]) -> Tensor:
        """ids (B, ...) on the CPU; None and "" are the null prompt. ValueError for a prompt that is
        not understood."""

    def __call__(self, ids: Tensor) -> Condition: ...


class Decoder(Protocol):
    """Images (B,3,H,W) in [-1, 1] to the latents that a latent model draws, and back."""

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


@dataclass(repr=False)
class Diffusion:
    """A network with all that sampling from it takes.

    `predicts` is a name of `denoiser.PARAMETRISATIONS`, `shape` is (channels, height, width) of
    what the network draws. `encoder` turns prompts into the network's condition (None: there are no
    prompts), `decoder` the latents of a latent model into images. `card` is what is known of the
    data and the training.
    """

    network: Network
    schedule: NoiseSchedule
    predicts: str
    shape: tuple[int, int, int]
    encoder: Encoder | None = None
    decoder: Decoder | None = None
    card: dict = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The side in pixels of square images; ValueError for others."""
        _, height, width = self.shape
        if height != width:
            raise ValueError(f"this model draws {height} x {width} pixels: they are not square")
        return height

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> Diffusion:
        device = torch.device(device)
        place(self.network, device)
        for part in (self.encoder, self.decoder):
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    # ------------------------------------------------------------------------------- denoisers

    @torch.no_grad()
    def condition(self, prompts: Sequence[Prompt]) -> Condition | None:
        """The network's condition for each prompt: None or "" is the null one.

        A prompt is a caption, or the name or number of a class. ValueError if it is not understood.
        """
        if len(prompts) == 0:
            raise ValueError("got an empty list of prompts: expected at least one")
        if self.encoder is None:
            if any(p is not None and p != "" for p in prompts):
                raise ValueError("this model is unconditional: it takes no prompt")
            return None
        return self.encoder(self.encoder.tokenize(prompts).to(self.device))

    def run(self, x: Tensor, t: Tensor, condition: Condition | None = None, **hooks) -> Tensor:
        """network(x, t, condition) in the precision that is fastest on its device.

        One row of condition serves all images.
        """
        if condition is not None:
            condition = expand(condition, len(x))
        with autocast(x.device):
            return self.network(x, t, condition, **hooks)

    def denoiser(
        self,
        prompt: Prompt | Sequence[Prompt] | Condition = None,
        scale: float = 1.0,
        *,
        negative: Prompt | Sequence[Prompt] | Condition = None,
        tap: Tap | None = None,
    ) -> Denoiser:
        """A Denoiser for one prompt, for a list of prompts, one an image, or for a Condition.

        `scale` is that of classifier-free guidance (1 for none) away from `negative`, the null
        prompt unless given. A `tap` sees the prompt's network calls, not those of `negative`.
        """
        wanted = self._wanted(prompt)
        null = None if scale == 1 else self._null(wanted, negative)
        return self._denoiser(wanted, null, scale, tap)

    def _denoiser(
        self, wanted: Condition | None, null: Condition | None, scale: float, tap: Tap | None
    ) -> Denoiser:
        if null is not None and tap is None:  # both in one batched call
            return weighted_prompts(self.run, [wanted], [scale], null, predicts=self.predicts)
        asked = as_denoiser(self.run, wanted, predicts=self.predicts, tap=tap)
        if null is None:
            return asked
        return classifier_free(asked, as_denoiser(self.run, null, predicts=self.predicts), scale)

    def _wanted(self, prompt: Prompt | Sequence[Prompt] | Condition) -> Condition | None:
        if isinstance(prompt, Condition):
            return Condition(*(part if part is None else part.to(self.device) for part in prompt))
        return self.condition(_listed(prompt))

    def _null(
        self, wanted: Condition | None, negative: Prompt | Sequence[Prompt] | Condition
    ) -> Condition:
        """What guidance leads away from: as `wanted`, but for what the negative prompt says."""
        if wanted is None or (self.encoder is None and not isinstance(negative, Condition)):
            raise ValueError(
                "guidance needs a model with prompts, or a `negative` Condition: expected scale 1"
            )
        if not isinstance(negative, Condition):
            prompts = _listed(negative)
            rows = max(len(part) for part in wanted if part is not None)
            negative = prompts * rows if len(prompts) == 1 else prompts
        said = self._wanted(negative)._asdict()
        return wanted._replace(**{name: part for name, part in said.items() if part is not None})

    def for_sampling(self) -> Diffusion:
        """The same model, to be sampled from and not trained: faster where `layers` knows how."""
        return replace(self, network=for_sampling(self.network, self.device))

    # -------------------------------------------------------------------------------- sampling

    def noise(self, n: int, generators: Randomness) -> Tensor:
        """Pure noise (n, *shape) at level T, what sampling starts from. ValueError unless n >= 1.

        Its standard deviation is that of x_T for data of unit variance.
        """
        if n < 1:
            raise ValueError(f"cannot draw {n} images: expected at least 1")
        like = next(self.network.parameters())
        noise = randn((n, *self.shape), per_image(generators, n), like=like)
        _, alpha, sigma = self.schedule.level(self.schedule.T)
        return noise * (alpha**2 + sigma**2) ** 0.5

    def frames(
        self,
        prompt: Prompt | Sequence[Prompt] | Condition = None,
        n: int | None = None,
        *,
        scale: float = 1.0,
        negative: Prompt | Sequence[Prompt] | Condition = None,
        steps: int = 50,
        seed: int = 0,
        step: Step = ddim_step,
        spacing: str | None = None,
        guide: Guide | None = None,
        start: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Iterator[Frame]:
        """The trajectory that `sample` walks, a Frame a step, with gradients off.

        The arguments are those of `sample`; a latent model's frames are not decoded.
        """
        n = _how_many(prompt, n, start)
        self._check(n, start)
        generators = per_image(Generator().manual_seed(seed), n)
        denoise = self.for_sampling().denoiser(prompt, scale, negative=negative, tap=tap)
        denoise = self._finished(denoise, guide)
        x = self.noise(n, generators) if start is None else start.to(self.device)
        path = self.schedule.path(steps, spacing or spacing_for(step))
        walk, device = trajectory(step, denoise, x, path, generator=generators), self.device

        def without_gradients() -> Iterator[Frame]:
            while True:
                with torch.no_grad(), autocast(device):  # left before the caller has its turn
                    frame = next(walk, None)
                if frame is None:
                    return
                yield frame

        return without_gradients()

    def sample(
        self,
        prompt: Prompt | Sequence[Prompt] | Condition = None,
        n: int | None = None,
        *,
        scale: float = 1.0,
        negative: Prompt | Sequence[Prompt] | Condition = None,
        steps: int = 50,
        seed: int = 0,
        step: Step = ddim_step,
        spacing: str | None = None,
        guide: Guide | None = None,
        batch: int = 64,
        start: Tensor | None = None,
        tap: Tap | None = None,
        only: Sequence[int] | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Images (n, *shape) of one prompt (n = 16 unless given) or of n prompts, on the model's
        device: in [-1, 1], or what the decoder makes of the latents.

        prompt: a caption, the name or number of a class, or None; a list of them; a Condition.
        scale, negative: classifier-free guidance, 1 for none, away from `negative`, which is the
            null prompt unless given.
        steps, step, spacing: how many, which (`minidiff.samplers`), and through which levels; the
            spacing is the one that suits the step unless given.
        guide: a function from Denoiser to Denoiser (`minidiff.guidance`), put around the model's.
        start: noise (n, *shape) at level T to start from, instead of the seed's.
        batch: images at a time. tap: sees the prompt's network calls (`denoiser.as_denoiser`).
        only: which of the n images to draw. Image i of a seed is the same whatever n, batch, only.

        ValueError for a prompt that is not understood, numbers that do not fit, unknown spacing.
        """
        n = _how_many(prompt, n, start)
        self._check(n, start)
        if batch < 1:
            raise ValueError(f"batch is {batch}: expected at least 1")
        wanted, fast = self._wanted(prompt), self.for_sampling()
        null = None if scale == 1 else self._null(wanted, negative)
        for said in (wanted, null):
            expand(said, n)  # refuses another number of rows, before anything is drawn
        generators = per_image(Generator().manual_seed(seed), n)
        path = self.schedule.path(steps, spacing or spacing_for(step))
        rows, done = list(range(n) if only is None else only), []
        with (
            torch.no_grad(),
            autocast(self.device),  # entered once, not once a step as in `frames`
            _bar(steps * -(-len(rows) // batch), progress) as bar,
        ):
            for first in range(0, len(rows), batch):
                index = rows[first : first + batch]
                own, here = [generators[i] for i in index], torch.tensor(index, device=self.device)
                denoise = fast._denoiser(take(wanted, here), take(null, here), scale, tap)
                denoise = self._finished(denoise, guide)
                x = self.noise(len(own), own) if start is None else start[index].to(self.device)
                for frame in trajectory(step, denoise, x, path, generator=own):
                    x = frame.x
                    bar.update()
                done.append(x if self.decoder is None else self.decoder.decode(x))
        return torch.cat(done) if done else torch.empty(0, *self.shape, device=self.device)

    def _finished(self, denoise: Denoiser, guide: Guide | None) -> Denoiser:
        """A denoiser as sampling uses it: guided, and of pixels its x0 clamped to [-1, 1]."""
        if guide is not None:
            denoise = guide(denoise)
        return denoise if self.decoder is not None else clamp(denoise)

    def _check(self, n: int, start: Tensor | None) -> None:
        if n < 1:
            raise ValueError(f"cannot draw {n} images: expected at least 1")
        if start is not None and tuple(start.shape) != (n, *self.shape):
            raise ValueError(
                f"start has shape {tuple(start.shape)}: expected {(n, *self.shape)}, the noise of "
                f"{n} images"
            )

    # ----------------------------------------------------------------------------- files and words

    def save(self, path: str | Path) -> None:
        """Write the model in half precision, whole or not at all; `load` reads it.

        ValueError for a part that could not be made again: it needs a `config`, a dataclass.
        """
        parts = {"network": self.network, "encoder": self.encoder, "decoder": self.decoder}
        tensors = {
            f"{name}.{key}": value.half() if value.is_floating_point() else value
            for name, part in parts.items()
            if isinstance(part, nn.Module)
            for key, value in part.state_dict().items()
        }
        about = {"kind": "diffusion", "version": VERSION, "predicts": self.predicts}
        about |= {name: _described(part, name) for name, part in parts.items()}
        about |= {"shape": list(self.shape), "card": self.card}
        checkpoint.save(path, tensors | self.schedule.tables(), about)

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.network.parameters())
        prompts = "no prompt" if self.encoder is None else self.encoder.takes
        lines = [
            f"Diffusion: {type(self.network).__name__} of {count / 1e6:.2f}M parameters on "
            f"{self.device}, predicts {self.predicts}",
            f"  draws {' x '.join(map(str, self.shape))}, takes {prompts}; {self.schedule}",
        ]
        if described := self.card.get("description"):
            lines.append(f"  {described}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """In a notebook: those lines, and thumbnails where they are drawn in a moment."""
        shown = f"<pre>{escape(repr(self))}</pre>"
        count = sum(p.numel() for p in self.network.parameters())
        if self.shape[0] not in (1, 3) or max(self.shape[1:]) > 64 or count > 20e6:
            return shown
        file = io.BytesIO()
        self._thumbnails().save(file, "PNG")
        picture = base64.b64encode(file.getvalue()).decode()
        return f'{shown}<img src="data:image/png;base64,{picture}" alt="eight samples of seed 0">'

    def _thumbnails(self, n: int = 8) -> Image:
        """Samples of seed 0 side by side."""
        from PIL import Image

        prompts = [None] * n
        if self.encoder is not None:
            examples = list(getattr(self.encoder, "names", ())) or self.card.get("examples")
            prompts = [examples[i % len(examples)] for i in range(n)] if examples else prompts
        scale = 1.0 if prompts[0] is None else 2.0
        drawn = self.sample(prompts, scale=scale, steps=15, step=dpmpp_2m_step)
        pixels = ((drawn.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
        row = torch.cat(list(pixels.expand(-1, 3, -1, -1)), dim=2).permute(1, 2, 0)  # (H, n*W, 3)
        image = Image.fromarray(row.contiguous().numpy())
        return image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)


def _described(part: Any, name: str) -> dict | None:
    """The configuration of a part of a model, as a file keeps it."""
    if part is None:
        return None
    config = getattr(part, "config", None)
    if not is_dataclass(config):
        raise ValueError(
            f"the {name}, a {type(part).__name__}, has no `config`: expected a dataclass that says "
            "how to make it again"
        )
    return {"type": type(part).__name__, **asdict(config)}


def _listed(prompt: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A prompt alone counts as a list of one."""
    return [prompt] if prompt is None or isinstance(prompt, str | Integral) else list(prompt)


def _how_many(
    prompt: Prompt | Sequence[Prompt] | Condition, n: int | None, start: Tensor | None
) -> int:
    """How many images are asked for: n, or as many as there are prompts or starts, or 16."""
    if n is not None:
        return n
    if start is not None:
        return len(start)
    if isinstance(prompt, Condition):
        rows = max((len(part) for part in prompt if part is not None), default=1)
    else:
        rows = len(_listed(prompt))
    return rows if rows > 1 else 16


def _bar(steps: int, progress: bool):
    from tqdm.auto import tqdm

    return tqdm(total=steps, desc="sampling", unit="step", disable=not progress)
