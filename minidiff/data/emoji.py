"""Google's Noto emoji with their names: real pictures with captions, few and small.

The pictures come with the npm package emoji-datasource-google (Noto, Apache 2.0), Unicode's names
with unicode-emoji-json (MIT).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from minidiff.data.hosts import data_root, fetch
from minidiff.data.images import ImageSet
from minidiff.data.reading import read_picture

REGISTRY = "https://registry.npmjs.org"
PICTURES = "emoji-datasource-google-16.0.0.tgz"
NAMES = "unicode-emoji-json-0.9.0.tgz"
SHA256 = {
    PICTURES: "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    NAMES: "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
}

# Of whole families of a shape in many colours: learnt from the others, or not at all.
HELD_OUT = (
    "green heart",
    "purple heart",
    "blue circle",
    "brown circle",
    "red square",
    "yellow square",
)


def noto_emoji(size: int = 32) -> ImageSet:
    """The 1,636 emoji of one skin tone that are not flags, on white, and their names as captions.

    Reads the two packages in `data_root()`; what is missing is downloaded, 74 MB. OSError if that
    fails, ValueError for a damaged file or `size` < 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    with tarfile.open(_package(NAMES)) as package:
        about = json.load(package.extractfile("package/data-by-emoji.json"))
    named = {
        _codes(f"{ord(character):x}" for character in symbol): facts["name"]
        for symbol, facts in about.items()
        if facts["group"] != "Flags"
    }
    found = {}
    with tarfile.open(_package(PICTURES)) as package:
        files = tqdm(package, desc="reading emoji", unit="file", delay=1, disable=None)
        for file in files:
            path = Path(file.name)
            name = named.get(_codes(path.stem.split("-")))
            if name is not None and path.parts[1:-1] == ("img", "google", "64"):
                picture = io.BytesIO(package.extractfile(file).read())
                found[name] = read_picture(picture, size)
    captions = [name for name in named.values() if name in found]  # in Unicode's order
    return ImageSet(torch.stack([found[name] for name in captions]), captions=tuple(captions))


def _package(name: str) -> Path:
    project = name.rsplit("-", 1)[0]
    return fetch(f"{REGISTRY}/{project}/-/{name}", data_root() / name, SHA256[name])


def _codes(hexadecimal: Iterable[str]) -> tuple[str, ...]:
    """An emoji as code points; FE0F only asks for colours, and not everybody writes it."""
    codes = (code.lower().lstrip("0") for code in hexadecimal)
    return tuple(code for code in codes if code != "fe0f")
