"""Real pictures as small uint8 tensors: CIFAR-10, butterflies, and any folder.

A data set of this size needs no loader and no worker processes. It is one uint8 tensor in memory:
index it, move it to the device, crop and flip it there:

    data = cifar10().to(device)
    index = torch.randint(len(data), (64,), device=device)
    x0 = to_float(flip(data.images[index], generator))             # (64, 3, 32, 32) in [-1, 1]

Files live in `data_root()`; only what is missing there is downloaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from minidiff.data.hosts import FetchError, data_root, fetch_cifar10, hub_rows
from minidiff.data.reading import (
    CAPTIONS,
    UnreadableError,
    all_files,
    read_captions,
    read_picture,
    to_rgb,
    to_tensor,
)
from minidiff.files import atomic

log = logging.getLogger(__name__)

# ------------------------------------------------------------------------------- the set itself


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Pictures in memory.

    images: (N, 3, H, W) uint8.  labels: (N,) int64 indices into `classes`, or None.
    classes: the class names in label order, or () when nothing is known about them.
    captions: what each picture shows, in words, or () when nothing is said.
    """

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape, dtype = tuple(self.images.shape), self.images.dtype
        if len(shape) != 4 or shape[1] != 3 or dtype != torch.uint8:
            raise ValueError(f"images must be (N, 3, H, W) uint8, got {shape} {dtype}")
        if self.labels is not None and tuple(self.labels.shape) != shape[:1]:
            raise ValueError(
                f"labels must be ({shape[0]},), one for each image, got {tuple(self.labels.shape)}"
            )
        if self.captions and len(self.captions) != shape[0]:
            raise ValueError(f"{len(self.captions)} captions for {shape[0]} images")

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set with its tensors on `device`."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)


# ---------------------------------------------------------------------------------- conversions


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 in [-1, 1], any shape; `to_uint8` undoes it exactly."""
    if images.dtype != torch.uint8:
        raise ValueError(f"to_float expects uint8 images (0..255), got {images.dtype}")
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] (clamped to it) to uint8 0..255, rounded to nearest, any shape."""
    if not images.is_floating_point():
        raise ValueError(f"to_uint8 expects float images in [-1, 1], got {images.dtype}")
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """One image, (3, H, W) or (1, 3, H, W), uint8 or float in [-1, 1], as an RGB PIL image."""
    if image.ndim == 4 and len(image) == 1:
        image = image[0]  # (1, 3, H, W) -> (3, H, W)
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"to_pil expects one (3, H, W) image, got {tuple(image.shape)}")
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())  # (H, W, 3)


def from_pil(image: Image.Image) -> Tensor:
    """A PIL image of any mode as (1, 3, H, W) float in [-1, 1]; transparency lies on white."""
    return to_float(to_tensor(to_rgb(image)))[None]


def load_image(path: str | os.PathLike, size: int | None = None) -> Tensor:
    """One picture file as (1, 3, H, W) float in [-1, 1].

    With `size` its shorter side is resized to it and the centre square cut out; without, it keeps
    its own size. Raises FileNotFoundError, or ValueError when it cannot be read as a picture.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no picture at {path}")
    try:
        return to_float(read_picture(path, size))[None]
    except UnreadableError as error:
        raise ValueError(f"cannot read {path} as a picture: {error}") from None


def split(images: Tensor) -> tuple[Tensor, Tensor]:
    """Training and held-out images (N, ...): every tenth is held out."""
    held = torch.arange(len(images)) % 10 == 9
    return images[~held], images[held]


# ------------------------------------------------------------------------ augmentation, on device


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2; (B, 3, H, W) of any dtype."""
    coin = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
    mirrored = coin.to(images.device)[:, None, None, None]  # (B, 1, 1, 1)
    return torch.where(mirrored, images.flip(-1), images)


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `padding` pixels both ways; what comes in is its reflection.

    (B, 3, H, W) of any dtype -> the same shape; the same as reflect-padding by `padding` and
    cutting out a random (H, W) window, without ever making the padded copy.
    """
    height, width = images.shape[-2:]
    if not 0 <= padding < min(height, width):
        raise ValueError(f"padding must be in 0..{min(height, width) - 1}, got {padding}")
    shape = (2, len(images), 1)
    shift = torch.randint(
        -padding, padding + 1, shape, generator=generator, device=generator.device
    ).to(images.device)
    rows = _reflect(torch.arange(height, device=images.device) + shift[0], height)  # (B, H)
    columns = _reflect(torch.arange(width, device=images.device) + shift[1], width)  # (B, W)
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return images[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _reflect(index: Tensor, length: int) -> Tensor:
    """Fold indices just outside 0..length-1 back inside, the edge pixel not repeated."""
    last = length - 1
    return last - (last - index.abs()).abs()


# ----------------------------------------------------------------------------------- any folder


def image_folder(path: str | os.PathLike, size: int) -> ImageSet:
    """All pictures under `path` (and its sub-folders) as a set of (size, size) images.

    The shorter side is resized to `size` (antialiased) and the centre square cut out; EXIF
    orientation is applied; transparency lies on white. Files are known by content, not by name.
    Those that cannot be read are counted, named in one logged line, and skipped. When all pictures
    lie in two or more sub-folders, these are the classes, in alphabetical order. A table
    metadata.csv of `file_name` and `text`, as the Hugging Face hub has it, gives captions; a
    picture that it does not name has the empty one.

    Raises NotADirectoryError, or ValueError when there is no readable picture, the table is not
    such a table, or `size` < 1.
    """
    root = Path(path)
    if not root.is_dir():
        raise NotADirectoryError(f"no folder of pictures at {root}")
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    captions = read_captions(root / CAPTIONS)
    skipped: dict[str, str] = {}  # file -> why
    files = [file for file in all_files(root, skipped) if file != root / CAPTIONS]
    images, inside_root = [], []
    for file in tqdm(files, desc=f"reading {root.name}", unit="file", delay=1, disable=None):
        inside = file.relative_to(root)
        try:
            images.append(read_picture(file, size))
            inside_root.append(inside)
        except UnreadableError as error:
            skipped[str(inside)] = str(error)
    if skipped:
        named = [f"{name} ({why})" for name, why in skipped.items()]
        more = f", and {len(named) - 10} more" if len(named) > 10 else ""
        tried = len(images) + len(skipped)
        log.warning(
            "%s: skipped %d of %d: %s%s", root, len(named), tried, ", ".join(named[:10]), more
        )
    if not images:
        raise ValueError(f"no readable picture in {root}: {len(skipped)} files tried and skipped")
    if captions:
        told = [captions.pop(inside.as_posix(), "") for inside in inside_root]
        if untold := told.count(""):
            log.warning("%s: %d of %d pictures have no caption", root, untold, len(told))
        if captions:
            name = next(iter(captions))
            log.warning("%s: %d captions have no picture, such as %s", root, len(captions), name)
        return ImageSet(torch.stack(images), captions=tuple(told))
    folders = [inside.parts[0] if len(inside.parts) > 1 else "" for inside in inside_root]
    return _labelled(torch.stack(images), folders, root)


def _labelled(images: Tensor, folders: list[str], root: Path) -> ImageSet:
    """Label each image by its top sub-folder ("" = none) if that tells classes apart."""
    classes = sorted(set(folders) - {""})
    if len(classes) < 2:
        return ImageSet(images)
    if loose := folders.count(""):
        log.warning("%s: %d pictures lie outside the sub-folders, so no labels", root, loose)
        return ImageSet(images)
    number = {name: i for i, name in enumerate(classes)}
    return ImageSet(images, torch.tensor([number[name] for name in folders]), tuple(classes))


# --------------------------------------------------------------------------------- published sets

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR10_HUB = "uoft-cs/cifar10"
# `_digest` of the published images and labels, in any order: the hub orders its batches otherwise.
CIFAR10_SHA256 = {
    "train": "72083841cd0fa633f09b24c0833cf6d6a1809caff400317117334e0aa6b0ed46",
    "test": "f1bbb931260cda782c84c1948c82d910e2c193cb1d56756293f445027090946b",
}
BUTTERFLIES_HUB = "huggan/smithsonian_butterflies_subset"


def cifar10(train: bool = True) -> ImageSet:
    """CIFAR-10 (Krizhevsky 2009): (50000 or 10000, 3, 32, 32), ten classes in equal parts.

    Reads `data_root()/cifar-10-batches-py`. When that is missing the archive is downloaded: from
    its published host; if that is dead or slow, from a mirror (either way its MD5 is checked); and
    last from the Hugging Face hub, which needs pyarrow (SHA-256 of images and labels checked).

    Raises ConnectionError when nothing could be fetched, ValueError when local files are damaged.
    """
    from torchvision.datasets import CIFAR10

    root, split = data_root(), "train" if train else "test"
    folder, hub_cache = root / CIFAR10.base_folder, root / f"cifar10-{split}.safetensors"
    if not folder.is_dir() and not hub_cache.is_file():
        try:
            fetch_cifar10(folder)
        except FetchError as error:
            _save(_cifar10_from_hub(split, folder, f"{error}, "), hub_cache)
    if not folder.is_dir():
        return _load(hub_cache)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy >= 2.4 objects to how these old files were pickled
        try:
            files = CIFAR10(str(root), train=train)  # checks every MD5 before it unpickles
        except RuntimeError:
            raise ValueError(
                f"{folder} is incomplete or damaged (MD5): delete it, and it is downloaded again"
            ) from None
    images = torch.from_numpy(files.data).permute(0, 3, 1, 2).contiguous()  # (N, 3, 32, 32)
    return ImageSet(images, torch.tensor(files.targets), tuple(files.classes))


def _cifar10_from_hub(split: str, folder: Path, faults: str) -> ImageSet:
    try:
        rows = hub_rows(CIFAR10_HUB, split, ["img", "label"])
        images = torch.stack([read_picture(io.BytesIO(row["img"]["bytes"]), None) for row in rows])
        labels = torch.tensor([row["label"] for row in rows])
        if _digest(images, labels) != CIFAR10_SHA256[split]:
            raise FetchError("huggingface.co: the images differ from the published ones")
    except (FetchError, UnreadableError) as error:
        raise _not_fetched("CIFAR-10", f"{faults}{error}", folder) from None
    return ImageSet(images, labels, CIFAR10_CLASSES)


def _digest(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of the rows (label byte, pixel bytes) in sorted order."""
    rows = torch.cat([labels.to(torch.uint8)[:, None], images.flatten(1)], dim=1)  # (N, 1 + 3HW)
    return hashlib.sha256(b"".join(sorted(row.tobytes() for row in rows.numpy()))).hexdigest()


def butterflies(size: int = 64) -> ImageSet:
    """Butterflies on white, (N, 3, size, size): shorter side resized, centre square cut out.

    Reads `data_root()/butterflies/<species>/*.png` (labels: the species) when there is such a
    folder; else the 1,000 of the Smithsonian subset on the Hugging Face hub (CC0, no labels), which
    needs pyarrow and 240 MB once, and is kept as one small file afterwards.

    Raises ConnectionError when nothing could be fetched, ValueError when `size` < 1.
    """
    folder, cache = data_root() / "butterflies", data_root() / f"butterflies-{size}.safetensors"
    if folder.is_dir():
        return image_folder(folder, size)
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if not cache.is_file():
        try:
            rows = hub_rows(BUTTERFLIES_HUB, "train", ["image"])
            images = [read_picture(io.BytesIO(row["image"]["bytes"]), size) for row in rows]
        except (FetchError, UnreadableError) as error:
            raise _not_fetched("the butterflies", str(error), folder) from None
        _save(ImageSet(torch.stack(images)), cache)
    return _load(cache)


def _not_fetched(what: str, why: str, folder: Path) -> ConnectionError:
    return ConnectionError(
        f"could not fetch {what} ({why}); put a copy at {folder}, "
        f"or set MINIDIFF_DATA to a folder that holds {folder.name}"
    )


def _save(data: ImageSet, path: Path) -> None:
    tensors = {"images": data.images} | ({} if data.labels is None else {"labels": data.labels})
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"classes": json.dumps(data.classes)})


def _load(path: Path) -> ImageSet:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return ImageSet(**tensors, classes=tuple(json.loads(file.metadata()["classes"])))
    except SafetensorError:
        raise ValueError(f"{path} is damaged: delete it, and it is made again") from None
