"""Emoji and their names, from packages made here; the real ones where they are."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from minidiff.data import emoji as module
from minidiff.data.emoji import HELD_OUT, NAMES, PICTURES, noto_emoji
from minidiff.data.hosts import sha256_of

REAL = Path(os.environ.get("MINIDIFF_DATA", "/nowhere"))


def package(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste(colour, (16, 16, 48, 48))
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    names = {
        "\u2764\ufe0f": {"name": "red heart", "group": "Smileys & Emotion"},
        "\U0001f499": {"name": "blue heart", "group": "Smileys & Emotion"},
        "\U0001f1e6\U0001f1fd": {"name": "flag: Åland Islands", "group": "Flags"},
        "\U0001fac8": {"name": "hairy creature", "group": "Animals & Nature"},  # without a picture
    }
    folder = "img/google/64/"
    pictures = {
        f"{folder}1f499.png": picture("blue"),
        f"{folder}2764-FE0F.png": picture("red"),
        f"{folder}1f1e6-1f1fd.png": picture("white"),
        f"{folder}1f44b-1f3fb.png": picture("pink"),  # a skin tone: it has no name of its own
        "img/google/sheets/1f499.png": picture("black"),
    }
    package(tmp_path / NAMES, {"data-by-emoji.json": json.dumps(names).encode()})
    package(tmp_path / PICTURES, pictures)
    monkeypatch.setenv("MINIDIFF_DATA", str(tmp_path))
    sums = {name: sha256_of(tmp_path / name) for name in (NAMES, PICTURES)}
    monkeypatch.setattr(module, "SHA256", sums)


def test_pictures_find_their_names(packages):
    data = noto_emoji(32)
    assert data.captions == ("red heart", "blue heart") and data.images.shape == (2, 3, 32, 32)
    assert data.images[0, :, 16, 16].tolist() == [255, 0, 0]
    assert data.images[1, :, 16, 16].tolist() == [0, 0, 255]
    assert (data.images[:, :, 0, 0] == 255).all()  # what is transparent is white


def test_a_damaged_package_is_named_and_kept(packages, tmp_path):
    (tmp_path / NAMES).write_bytes(b"x")
    with pytest.raises(ValueError, match="unicode-emoji-json.* delete it to download it again"):
        noto_emoji()
    assert (tmp_path / NAMES).read_bytes() == b"x"
    with pytest.raises(ValueError, match="at least 1 pixel"):
        noto_emoji(0)


def test_what_is_missing_is_asked_of_the_registry(packages, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "fetch", lambda url, path, sum: asked.append(url) or path)
    noto_emoji(8)
    assert asked == [
        f"https://registry.npmjs.org/unicode-emoji-json/-/{NAMES}",
        f"https://registry.npmjs.org/emoji-datasource-google/-/{PICTURES}",
    ]


@pytest.mark.skipif(not (REAL / PICTURES).is_file(), reason="MINIDIFF_DATA holds no emoji packages")
def test_the_real_emoji():
    data = noto_emoji(32)
    assert len(data) == len(set(data.captions)) == 1636
    assert data.captions[0] == "grinning face" and set(HELD_OUT) < set(data.captions)
    heart = data.images[data.captions.index("green heart")].float().mean((1, 2))
    assert heart[1] > heart[0] and heart[1] > heart[2]
    corners = data.images[:, :, 0, 0].float().mean(1)
    assert torch.median(corners) == 255
