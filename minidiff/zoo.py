"""Trained models: one file holds everything needed to sample from it.

model = load("shapes")
images = model.sample("a red circle left of a blue square", n=16, scale=3)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from minidiff import checkpoint, diffusers_format
from minidiff.denoiser import Denoiser, Tap, as_denoiser
from minidiff.device import autocast, best_device, for_sampling, place
from minidiff.guidance import clamp, for_batch, weighted_prompts
from minidiff.noise import Randomness, per_image, randn
from minidiff.samplers import Frame, Step, ddim_step, trajectory
from minidiff.schedule import NoiseSchedule
from minidiff.text import TextConfig, TextEncoder
from minidiff.unet import UNet, UNetConfig

Prompt = str | int | None

HERE = Path(__file__).parent
FOLDERS = (HERE / "checkpoints", HERE.parent / "data")  # in a wheel, in a clone


@dataclass(frozen=True)
class ClassLabels:
    """Names of classes; the label after the last one stands for "no class", if there is one."""

    names: tuple[str, ...]
    has_null: bool = True

    def label(self, prompt: Prompt) -> int:
        if prompt is None or prompt == "":
            if not self.has_null:
                raise ValueError(f"this model needs a class: one of {', '.join(self.names)}")
            return len(self.names)
        if prompt in self.names:
            return self.names.index(prompt)
        if isinstance(prompt, Integral) and 0 <= prompt < len(self.names):  # numpy's, too
            return int(prompt)
        raise ValueError(f"unknown class {prompt!r}: expected one of {', '.join(self.names)}")


@dataclass
class Diffusion:
    """A network with all that sampling from it takes.

    `encoder` turns prompts into the network's condition: a TextEncoder, ClassLabels, or None for an
    unconditional network. `card` says what it was trained on; `size` is its images' side in pixels.
    """

    network: nn.Module
    schedule: NoiseSchedule
    predicts: str
    size: int
    encoder: TextEncoder | ClassLabels | None = None
    card: dict = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> Diffusion:
        device = torch.device(device)
        place(self.network, device)
        if isinstance(self.encoder, nn.Module):
            self.encoder.to(device)
        return self

    @torch.no_grad()
    def condition(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """The network's condition for each prompt: None or "" is the null one.

        A prompt is a caption, or the name or number of a class. ValueError if it is not understood.
        """
        if len(prompts) == 0:
            raise ValueError("got an empty list of prompts: expected at least one")
        if self.encoder is None:
            if any(p is not None and p != "" for p in prompts):
                raise ValueError("this model is unconditional: it takes no prompt")
            return None
        if isinstance(self.encoder, ClassLabels):
            return torch.tensor([self.encoder.label(p) for p in prompts], device=self.device)
        captions = ["" if p is None else p for p in prompts]
        if numbers := [p for p in captions if not isinstance(p, str)]:
            raise ValueError(f"this model takes captions, not the number {numbers[0]}")
        return self.encoder(self.encoder.tokenize(captions).to(self.device))

    def run(self, x: Tensor, t: Tensor, condition: Tensor | None = None, **hooks) -> Tensor:
        """network(x, t, condition) in the precision that is fastest on its device.

        One row of condition serves all images.
        """
        if condition is not None:
            condition = for_batch(condition, len(x))
        with autocast(x.device):
            return self.network(x, t, condition, **hooks)

    def denoiser(
        self,
        prompt: Prompt | Sequence[Prompt] = None,
        scale: float = 1.0,
        *,
        negative: Prompt = None,
        tap: Tap | None = None,
    ) -> Denoiser:
        """A Denoiser for one prompt, or for a list of prompts, one an image.

        `scale` is that of classifier-free guidance (1 for none) away from `negative`, the null
        condition unless given.
        """
        prompts = [prompt] if prompt is None or isinstance(prompt, str | Integral) else list(prompt)
        wanted = self.condition(prompts)
        if scale != 1 and self.encoder is None:
            raise ValueError("guidance needs a conditional model: expected scale 1")
        if scale != 1 and tap is not None:
            raise ValueError("a tap sees one condition: use classifier_free on two denoisers")
        if scale != 1:
            null = self.condition([negative] * len(prompts))
            return weighted_prompts(self.run, [wanted], [scale], null, predicts=self.predicts)
        return as_denoiser(self.run, wanted, predicts=self.predicts, tap=tap)

    def for_sampling(self) -> Diffusion:
        """The same model, to be sampled from and not trained: faster where `device` knows how."""
        return replace(self, network=for_sampling(self.network, self.device))

    def noise(self, n: int, generators: Randomness) -> Tensor:
        """Pure noise (n, 3, size, size), what sampling starts from. ValueError unless n >= 1."""
        if n < 1:
            raise ValueError(f"cannot draw {n} images: expected at least 1")
        like = next(self.network.parameters())
        return randn((n, 3, self.size, self.size), per_image(generators, n), like=like)

    def frames(
        self,
        prompt: Prompt | Sequence[Prompt] = None,
        n: int = 16,
        *,
        scale: float = 1.0,
        steps: int = 50,
        seed: int = 0,
        step: Step = ddim_step,
    ) -> Iterator[Frame]:
        """The trajectory of n images from noise, x0 clamped to [-1, 1], with gradients off.

        Image i of a seed is the same whatever n.
        """
        walk, device = self._walk(prompt, n, scale, steps, seed, step), self.device

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
        prompt: Prompt | Sequence[Prompt] = None,
        n: int = 16,
        *,
        scale: float = 1.0,
        steps: int = 50,
        seed: int = 0,
        step: Step = ddim_step,
        progress: bool = False,
    ) -> Tensor:
        """n images (n, 3, size, size) in [-1, 1] of one prompt, or of n prompts."""
        walk = self._walk(prompt, n, scale, steps, seed, step)
        if progress:
            from tqdm.auto import tqdm

            walk = tqdm(walk, total=steps, desc="sampling", unit="step")
        with torch.no_grad(), autocast(self.device):  # entered once, not once a step as in `frames`
            for frame in walk:
                x = frame.x
        return x

    def _walk(self, prompt, n, scale, steps, seed, step) -> Iterator[Frame]:
        generators = per_image(Generator().manual_seed(seed), n)
        denoise = clamp(self.for_sampling().denoiser(prompt, scale))
        x, path = self.noise(n, generators), self.schedule.path(steps)
        return trajectory(step, denoise, x, path, generator=generators)


def save(path: str | Path, model: Diffusion) -> None:
    """Write a model in half precision, whole or not at all."""
    tensors = {f"network.{k}": v.half() for k, v in model.network.state_dict().items()}
    about = {
        "kind": "diffusion",
        "network": asdict(model.network.config),
        "predicts": model.predicts,
        "size": model.size,
        "card": model.card,
    }
    if isinstance(model.encoder, TextEncoder):
        tensors |= {f"encoder.{k}": v.half() for k, v in model.encoder.state_dict().items()}
        about["text"] = asdict(model.encoder.config)
    if isinstance(model.encoder, ClassLabels):
        about["classes"] = model.encoder.names
    tensors["alpha_bar"] = model.schedule.alpha_bar
    checkpoint.save(path, tensors, about)


def load(name_or_path: str | Path, device: str | torch.device | None = None) -> Diffusion:
    """A shipped model by its name (see `names`), or one that training has saved, by its file or
    its folder; or, with `from_diffusers`, a folder or a hub id like google/ddpm-celebahq-256.

    FileNotFoundError for an unknown name; ValueError for a damaged or foreign file.
    """
    text = str(name_or_path)
    is_hub_id = text.count("/") == 1 and not text.endswith(".safetensors")
    if (trained := Path(text) / "model.safetensors").is_file():  # the folder of a run
        return load(trained, device)
    if Path(text).is_dir() or (is_hub_id and not Path(text).exists()):
        return from_diffusers(text, device)
    path = checkpoint.find(name_or_path, names, "model")
    tensors, about = checkpoint.load(path)
    if about.get("kind") != "diffusion":
        raise ValueError(f"{path} holds a {about.get('kind')}, not a diffusion model")
    try:
        return _built(tensors, about, str(path)).to(device or best_device())
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} was written by another version of minidiff: {error}") from error


def _built(tensors: dict[str, Tensor], about: dict, what: str) -> Diffusion:
    """The model of a file's contents, on the CPU."""
    network = UNet(UNetConfig(**about["network"]))
    checkpoint.fill(network, _part(tensors, "network."), what)
    encoder = None
    if "text" in about:
        encoder = TextEncoder(TextConfig(**about["text"]))
        checkpoint.fill(encoder, _part(tensors, "encoder."), what)
        encoder.eval()
    elif "classes" in about:
        encoder = ClassLabels(tuple(about["classes"]), network.config.null_class)
    network.eval()
    schedule = NoiseSchedule(tensors["alpha_bar"])
    return Diffusion(network, schedule, about["predicts"], about["size"], encoder, about["card"])


def names() -> dict[str, Path]:
    """The models that ship with minidiff: name -> file."""
    found = [f for folder in FOLDERS if folder.is_dir() for f in folder.glob("*.safetensors")]
    return {f.stem: f for f in sorted(found) if _is_model(f)}


def _is_model(path: Path) -> bool:
    try:
        return checkpoint.about(path).get("kind") == "diffusion"
    except ValueError:  # a foreign or damaged file in the folder is no model of ours
        return False


def from_diffusers(
    folder_or_hub_id: str | Path, device: str | torch.device | None = None
) -> Diffusion:
    """A published unconditional or class-conditional `UNet2DModel`, e.g. google/ddpm-cifar10-32.

    A folder is read where it is; a hub id is downloaded once, without an account. Note that
    google/ddpm-cifar10-32 holds the weights without averaging: its FID is about 12, not 3.17.
    """
    folder = Path(folder_or_hub_id)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )

        patterns = ["*.json", "*.safetensors"]
        try:
            found = snapshot_download(str(folder_or_hub_id), allow_patterns=patterns, token=False)
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise FileNotFoundError(
                f"{str(folder_or_hub_id)!r} is not a folder here, and was not fetched from the "
                f"Hugging Face hub: {str(error).splitlines()[0]}"
            ) from error
        folder = Path(found)
    network, schedule, predicts = diffusers_format.read(folder)
    network.eval()
    names = tuple(str(i) for i in range(network.config.classes))
    encoder = ClassLabels(names, has_null=False) if names else None
    size = diffusers_format.image_size(folder)
    card = {"description": f"diffusers checkpoint {folder_or_hub_id}"}
    model = Diffusion(network, schedule, predicts, size, encoder, card)
    return model.to(device or best_device())


def to_diffusers(model: Diffusion, folder: str | Path) -> None:
    """Write a model as a folder that `diffusers.UNet2DModel.from_pretrained` loads."""
    diffusers_format.write(model.network, model.schedule, model.predicts, folder, size=model.size)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v.float() for k, v in tensors.items() if k.startswith(prefix)}
