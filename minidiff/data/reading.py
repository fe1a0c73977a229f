"""Reading picture files: any format, mode and damage, to RGB pixels or to a reason why not; and
the captions beside them."""

import csv
import io
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

CAPTIONS = "metadata.csv"  # the table of captions in a folder

# Formats decoded by Pillow itself: no helper program is started, no vector file is run.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


class UnreadableError(Exception):
    """Why a file could not be read as a picture, in a few words."""


def read_picture(source: str | os.PathLike | io.BytesIO, size: int | None) -> Tensor:
    """A picture file, or its bytes, as (3, H, W) uint8; raises nothing but UnreadableError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # over 89 megapixels
            with Image.open(source, formats=FORMATS) as image:
                image = to_rgb(ImageOps.exif_transpose(image))
                if size is not None:  # fit() cuts, then resizes: a 100000 x 1 strip stays small
                    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
                return to_tensor(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnreadableError("too many pixels") from None
    except Image.UnidentifiedImageError:
        raise UnreadableError("not a picture") from None
    except PermissionError:
        raise UnreadableError("no permission") from None
    # Damaged files make decoders raise almost anything: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise UnreadableError(f"damaged: {str(error) or type(error).__name__}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit grey scaled to 8, transparency composited on white."""
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip it at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype("u1"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as (3, H, W) uint8."""
    array = np.array(image)  # (H, W, 3), a copy: torch wants it writable
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()  # (3, H, W)


def all_files(root: Path, skipped: dict[str, str]) -> list[Path]:
    """Every regular, not hidden file under `root`, sorted; linked folders are followed once.

    What cannot be opened is written to `skipped`: its path from `root`, and why.
    """

    def unreadable(error: OSError) -> None:
        skipped[os.path.relpath(error.filename, root)] = error.strerror or "unreadable"

    found, seen = [], {os.path.realpath(root)}
    for folder, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        descend = []
        for name in sorted(subfolders):
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and real not in seen:  # a link may lead back up: a loop
                seen.add(real)
                descend.append(name)
        subfolders[:] = descend
        for name in sorted(names):
            file = Path(folder, name)
            if name.startswith("."):
                continue
            if os.path.isfile(file):
                found.append(file)
            else:  # a dead link, or a pipe that would block its reader for ever
                skipped[str(file.relative_to(root))] = "not a regular file"
    return found


def read_captions(table: Path) -> dict[str, str]:
    """file -> caption of a folder's table, {} if there is none; ValueError if it is another one."""
    if not table.is_file():
        return {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not {"file_name", "text"} <= set(rows.fieldnames or ()):
                found = ", ".join(rows.fieldnames or ()) or "nothing"
                raise ValueError(f"{table} has the columns {found}: expected file_name and text")
            return {row["file_name"]: (row["text"] or "").strip() for row in rows}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} is not a table in UTF-8: {error}") from None
