"""Safe files of weights: safetensors with everything needed to use them as JSON beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minidiff.files import atomic

HERE = Path(__file__).parent
FOLDERS = (HERE / "checkpoints", HERE.parent / "data")  # of what ships: in a wheel, in a clone
KEY = "minidiff"  # the metadata entry that holds our JSON


def save(path: str | Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and their JSON description, whole or not at all.

    The file appears under its name only once it is complete on the disk. OSError in one sentence if
    it cannot be written; what stood there before is then untouched.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        with atomic(path) as temporary:
            save_file(tensors, temporary, metadata={KEY: json.dumps(about)})
            temporary.chmod(0o644)  # safetensors makes files that nobody else can read
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not save {path}: {error}; an earlier file there is intact") from error


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict]:
    """The tensors of a file and its description.

    FileNotFoundError, or ValueError for a file that is damaged or was not written by minidiff.
    """
    described = about(path)
    with safe_open(path, framework="pt", device=str(device)) as f:
        return {name: f.get_tensor(name) for name in f.keys()}, described


def find(name_or_path: str | Path, shipped: Callable[[], dict[str, Path]], what: str) -> Path:
    """A file as it is, or a shipped one by its name; FileNotFoundError if there is neither."""
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    known = shipped()
    if str(name_or_path) not in known:
        raise FileNotFoundError(
            f"there is no {what} {str(name_or_path)!r}: expected a file or one of "
            f"{', '.join(known)}"
        )
    return known[str(name_or_path)]


def shipped(kind: str) -> dict[str, Path]:
    """The files of a kind ("diffusion", ...) that ship with minidiff: name -> file."""
    found = [file for folder in FOLDERS for file in folder.glob("*.safetensors")]
    return {file.stem: file for file in sorted(found) if _kind(file) == kind}


def _kind(path: Path) -> str | None:
    try:
        return about(path).get("kind")
    except ValueError:  # a foreign or damaged file in the folder is none of ours
        return None


def about(path: str | Path) -> dict[str, Any]:
    """The description of a file alone, without reading its tensors. Raises as `load` does."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as f:
            described = (f.metadata() or {}).get(KEY)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if described is None:
        raise ValueError(f"{path} holds weights, but was not written by minidiff")
    try:
        return dict(json.loads(described))
    except (ValueError, TypeError) as error:
        raise ValueError(f"the description in {path} is damaged: {error}") from error


def fill(wanted: torch.nn.Module | dict, tensors: dict[str, Tensor], what: str) -> None:
    """Load `tensors` into a module, or into other tensors of the same names; ValueError says in one
    sentence how the two differ."""
    if isinstance(wanted, torch.nn.Module):
        wanted = wanted.state_dict()
    missing, foreign = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    other = [n for n in wanted.keys() & tensors.keys() if wanted[n].shape != tensors[n].shape]
    if missing or foreign or other:
        raise ValueError(
            f"{what} does not fit: {len(missing)} tensors are missing {sorted(missing)[:2]}, "
            f"{len(foreign)} are foreign {sorted(foreign)[:2]}, "
            f"{len(other)} have another shape {sorted(other)[:2]}"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)
