"""Files of trained models, and published ones: one file holds everything needed to sample.

model = load("shapes")
images = model.sample("a red circle left of a blue square", n=16, scale=3)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minidiff import checkpoint, diffusers_format
from minidiff.device import best_device
from minidiff.diffusion import VERSION, Diffusion
from minidiff.schedule import NoiseSchedule
from minidiff.text import ClassLabels, TextConfig, TextEncoder
from minidiff.unet import UNet, UNetConfig

# The parts that a file may name: how each is made from its configuration.
TYPES: dict[str, Callable[[dict], Any]] = {
    "UNet": lambda config: UNet(UNetConfig(**config)),
    "TextEncoder": lambda config: TextEncoder(TextConfig(**config)),
    "ClassLabels": lambda config: ClassLabels(**config),
}


def load(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    *,
    types: Mapping[str, Callable[[dict], Any]] | None = None,
) -> Diffusion:
    """A shipped model by its name (see `names`), or one that training has saved, by its file or
    its folder; or, with `from_diffusers`, a folder or a hub id like google/ddpm-celebahq-256.

    A file with a network of your own needs `types`, which says how to make it from its saved
    configuration: {"MyNet": lambda config: MyNet(MyConfig(**config))}.
    FileNotFoundError for an unknown name; ValueError for a damaged or foreign file.
    """
    text = str(name_or_path)
    is_hub_id = text.count("/") == 1 and not text.endswith(".safetensors")
    if (trained := Path(text) / "model.safetensors").is_file():  # the folder of a run
        return load(trained, device, types=types)
    if Path(text).is_dir() or (is_hub_id and not Path(text).exists()):
        return from_diffusers(text, device)
    path = checkpoint.find(name_or_path, names, "model")
    tensors, about = checkpoint.load(path)
    if about.get("kind") != "diffusion":
        raise ValueError(f"{path} holds a {about.get('kind')}, not a diffusion model")
    try:
        return _built(tensors, upgrade(about), str(path), types or {}).to(device or best_device())
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} was written by another version of minidiff: {error}") from error


def upgrade(about: dict) -> dict:
    """The description of a version 1 file as version 2 has it; a later one as it is.

    Version 1 knew one network, a text encoder or class names as encoder, and square images.
    """
    if about.get("version", 1) >= 2:
        return about
    network, encoder = {"type": "UNet", **about["network"]}, None
    if "text" in about:
        encoder = {"type": "TextEncoder", **about["text"]}
    elif "classes" in about:
        has_null = network.get("null_class", True)
        encoder = {"type": "ClassLabels", "names": about["classes"], "has_null": has_null}
    shape = [network.get("out_channels", 3), about["size"], about["size"]]
    parts = {"network": network, "encoder": encoder, "decoder": None, "shape": shape}
    return {"version": 2, "predicts": about["predicts"], "card": about["card"], **parts}


def _built(
    tensors: dict[str, Tensor], about: dict, what: str, types: Mapping[str, Callable[[dict], Any]]
) -> Diffusion:
    """The model of a file's contents, on the CPU."""
    if about["version"] > VERSION:
        raise ValueError(
            f"{what} is of version {about['version']}, and this minidiff reads up to {VERSION}: "
            "update minidiff"
        )
    parts = {}
    for name in ("network", "encoder", "decoder"):
        parts[name] = part = _made(about[name], what, TYPES | dict(types))
        if isinstance(part, nn.Module):
            checkpoint.fill(part, _part(tensors, f"{name}."), what)
            part.eval()
    schedule, shape = NoiseSchedule.take_tables(tensors), tuple(about["shape"])
    return Diffusion(
        schedule=schedule, predicts=about["predicts"], shape=shape, card=about["card"], **parts
    )


def _made(config: dict | None, what: str, types: Mapping[str, Callable[[dict], Any]]) -> Any:
    if config is None:
        return None
    config = dict(config)
    kind = config.pop("type")
    if kind not in types:
        raise ValueError(
            f"{what} holds a {kind}, which minidiff does not know: expected one of "
            f"{', '.join(types)}, or load(..., types={{{kind!r}: ...}})"
        )
    return types[kind](config)


def names() -> dict[str, Path]:
    """The models that ship with minidiff: name -> file."""
    return checkpoint.shipped("diffusion")


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
    shape = (network.config.out_channels, size, size)
    card = {"description": f"diffusers checkpoint {folder_or_hub_id}"}
    model = Diffusion(network, schedule, predicts, shape, encoder, card=card)
    return model.to(device or best_device())


def to_diffusers(model: Diffusion, folder: str | Path) -> None:
    """Write a model as a folder that `diffusers.UNet2DModel.from_pretrained` loads."""
    diffusers_format.write(model.network, model.schedule, model.predicts, folder, size=model.size)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
