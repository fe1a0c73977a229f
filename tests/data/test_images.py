"""Pictures in: real sets, mirrors, folders full of surprises. No test needs a network."""

import errno
import hashlib
import io
import os
import pickle
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from minidiff import files
from minidiff.data import hosts
from minidiff.data import images as module
from minidiff.data.images import (
    ImageSet,
    butterflies,
    cifar10,
    flip,
    from_pil,
    image_folder,
    load_image,
    random_crop,
    to_float,
    to_pil,
    to_uint8,
)

REAL = Path(os.environ.get("MINIDIFF_DATA", "/nowhere"))
needs_cifar10 = pytest.mark.skipif(
    not (REAL / "cifar-10-batches-py").is_dir(), reason="MINIDIFF_DATA holds no CIFAR-10"
)
needs_butterflies = pytest.mark.skipif(
    not (REAL / "butterflies").is_dir(), reason="MINIDIFF_DATA holds no butterflies"
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=seeded(seed), dtype=torch.uint8)


# ------------------------------------------------------------------------------- the set itself


def test_image_set_has_a_length_and_moves():
    data = ImageSet(random_images(5), torch.arange(5), tuple("abcde"))
    assert len(data) == 5
    moved = data.to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"
    assert moved.classes == data.classes
    assert ImageSet(random_images(5)).to("cpu").labels is None


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (torch.zeros(2, 3, 4, 4), None, "uint8"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), None, r"\(N, 3, H, W\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3), "one for each image"),
    ],
)
def test_image_set_refuses_what_is_not_one(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ImageSet(images, labels)


# ---------------------------------------------------------------------------------- conversions


def test_all_256_values_survive_the_round_trip():
    values = torch.arange(256, dtype=torch.uint8)
    floats = to_float(values)
    assert floats[0] == -1 and floats[255] == 1 and floats.dtype == torch.float32
    assert torch.equal(to_uint8(floats), values)
    assert torch.equal(to_uint8(floats.double()), values)
    # Mutant: truncating instead of rounding loses values.
    truncated = ((floats + 1) * 127.5).to(torch.uint8)
    assert not torch.equal(truncated, values)


def test_to_uint8_clamps_and_takes_half_precision():
    assert to_uint8(torch.tensor([-7.0, -1.0, 1.0, 7.0])).tolist() == [0, 0, 255, 255]
    assert to_uint8(torch.ones(2, dtype=torch.bfloat16)).tolist() == [255, 255]
    assert to_uint8(torch.ones(2, requires_grad=True)).tolist() == [255, 255]


def test_conversions_refuse_the_wrong_type():
    with pytest.raises(ValueError, match="uint8"):
        to_float(torch.zeros(3))
    with pytest.raises(ValueError, match="float"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))


def test_pil_round_trip_keeps_every_pixel_where_it_was():
    pixels = torch.zeros(3, 2, 4, dtype=torch.uint8)
    pixels[0, 0, 3] = 200  # red, top right
    picture = to_pil(pixels)
    assert picture.size == (4, 2) and picture.getpixel((3, 0)) == (200, 0, 0)
    assert torch.equal(to_uint8(from_pil(picture))[0], pixels)
    assert torch.equal(from_pil(to_pil(to_float(pixels)[None])), to_float(pixels)[None])
    with pytest.raises(ValueError, match=r"one \(3, H, W\) image"):
        to_pil(torch.zeros(2, 3, 4, 4))


# ----------------------------------------------------------------------------------- any picture


def save(path: Path, image: Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def plain(colour: str = "red", size: tuple[int, int] = (20, 12)) -> Image.Image:
    return Image.new("RGB", size, colour)


def middle(path: Path) -> list[int]:
    """The colour of the middle pixel as load_image sees it."""
    pixels = to_uint8(load_image(path))[0]
    return pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2].tolist()


def test_every_mode_becomes_the_right_rgb(tmp_path):
    grey16 = Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16))
    palette = plain("blue").convert("P")
    see_through = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    grey_alpha = Image.new("LA", (4, 4), (0, 0))
    indexed = Image.new("P", (4, 4), 0)
    indexed.putpalette([0, 255, 0])
    expected = {
        save(tmp_path / "grey.png", Image.new("L", (4, 4), 77)): [77, 77, 77],
        save(tmp_path / "grey16.png", grey16): [156, 156, 156],  # 40000 / 256
        save(tmp_path / "bit.png", Image.new("1", (4, 4), 1)): [255, 255, 255],
        save(tmp_path / "palette.png", palette): [0, 0, 255],
        save(tmp_path / "clear.png", see_through): [255, 255, 255],
        save(tmp_path / "half.png", half): [255, 127, 127],
        save(tmp_path / "grey_alpha.png", grey_alpha): [255, 255, 255],
        save(tmp_path / "clear_index.png", indexed, transparency=0): [255, 255, 255],
        save(tmp_path / "cmyk.tiff", Image.new("CMYK", (4, 4), (0, 255, 255, 0))): [255, 0, 0],
    }
    assert {path.name: middle(path) for path in expected} == {
        path.name: colour for path, colour in expected.items()
    }
    # Mutant: without compositing, a clear picture shows the red that hides under its alpha.
    assert see_through.convert("RGB").getpixel((2, 2)) == (255, 0, 0)


def test_exif_orientation_turns_the_picture(tmp_path):
    picture = plain("white", (8, 4))
    picture.paste("black", (0, 0, 2, 4))  # a bar at the left; upright it is at the top
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me 90 degrees clockwise"
    path = save(tmp_path / "turned.png", picture, exif=exif)
    seen = to_uint8(load_image(path))[0]
    assert seen.shape == (3, 8, 4)
    assert (seen[:, :2] == 0).all() and (seen[:, 2:] == 255).all()


def test_centre_square_is_cut_and_resized_with_antialiasing(tmp_path):
    wide = plain("white", (300, 100))
    wide.paste("red", (100, 0, 200, 100))  # the centre square
    seen = to_uint8(load_image(save(tmp_path / "wide.png", wide), 10))[0]
    assert (seen[0] == 255).all() and (seen[1:, :, 1:-1] == 0).all()
    assert seen[1:].max() < 40  # at the cut the filter sees a little of the white beyond it

    checks = Image.fromarray((np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8))
    small = to_uint8(load_image(save(tmp_path / "checks.png", checks), 32)).int()
    assert (small - 128).abs().max() <= 2
    # Mutant: picking every eighth pixel instead gives plain black.
    assert np.asarray(checks)[::8, ::8].max() == 0


def test_load_image_keeps_the_size_unless_told_and_says_what_is_wrong(tmp_path):
    path = save(tmp_path / "a.png", plain(size=(20, 12)))
    assert load_image(path).shape == (1, 3, 12, 20)
    assert load_image(path, 16).shape == (1, 3, 16, 16)
    assert load_image(path).min() == -1 and load_image(path).max() == 1
    with pytest.raises(FileNotFoundError, match="no picture at"):
        load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="text.png as a picture: not a picture"):
        load_image(tmp_path / "text.png")


# ------------------------------------------------------------------------------------ any folder


def test_sub_folders_become_classes(tmp_path):
    for name, colour, count in (("cats", "red", 2), ("birds", "blue", 3)):
        for i in range(count):
            save(tmp_path / name / "deep" / f"{i}.png", plain(colour))
    (tmp_path / "empty").mkdir()
    data = image_folder(tmp_path, 8)
    assert data.classes == ("birds", "cats") and data.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.labels.dtype == torch.int64 and data.images.shape == (5, 3, 8, 8)
    assert (data.images[data.labels == 0, 2] == 255).all()  # birds are blue
    assert (data.images[data.labels == 1, 0] == 255).all()  # cats are red


def test_one_folder_or_a_mixture_has_no_labels(tmp_path, caplog):
    save(tmp_path / "only" / "a.png", plain())
    assert image_folder(tmp_path, 8).labels is None
    save(tmp_path / "other" / "a.png", plain())
    assert image_folder(tmp_path, 8).labels is not None
    assert caplog.text == ""
    save(tmp_path / "loose.png", plain())
    data = image_folder(tmp_path, 8)
    assert len(data) == 3 and data.labels is None and data.classes == ()
    assert "1 pictures lie outside the sub-folders" in caplog.text


def test_a_table_gives_captions(tmp_path, caplog):
    for name, colour in (("b.png", "red"), ("a.png", "blue"), ("deep/c.png", "white")):
        save(tmp_path / "set" / name, plain(colour))
    table = tmp_path / "set" / "metadata.csv"
    table.write_text(
        'text,file_name,seen\n"a red, plain square",b.png,1\nblue ,a.png,2\nwhite,deep/c.png,\n',
        encoding="utf-8-sig",  # as spreadsheets write it
    )
    data = image_folder(tmp_path / "set", 8)
    assert data.captions == ("blue", "a red, plain square", "white") and data.labels is None
    assert (data.images[0, 2] == 255).all() and (data.images[1, 0] == 255).all()
    assert data.to("cpu").captions == data.captions and caplog.text == ""

    table.write_text("file_name,text\nb.png,red\nnone.png,nothing\n", encoding="utf-8")
    assert image_folder(tmp_path / "set", 8).captions == ("", "red", "")
    assert "2 of 3 pictures have no caption" in caplog.text
    assert "1 captions have no picture, such as none.png" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"file,caption\na.png,red\n",
            "has the columns file, caption: expected file_name and text",
        ),
        (b"", "has the columns nothing: expected file_name and text"),
        (b"file_name,text\na.png,caf\xe9\n", "is not a table in UTF-8"),
    ],
)
def test_a_table_of_something_else_is_refused(tmp_path, content, message):
    save(tmp_path / "a.png", plain())
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        image_folder(tmp_path, 8)


def test_what_cannot_be_read_is_named_counted_and_skipped(tmp_path, caplog):
    good = save(tmp_path / "good.png", plain())
    save(tmp_path / "really_a_png.jpg", plain("blue"), format="PNG")
    noise = Image.fromarray(random_images(1, 64)[0].permute(1, 2, 0).numpy())
    whole = save(tmp_path / "truncated.jpg", noise).read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "captions.csv").write_text("a,b\n")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    flipped = bytearray(good.read_bytes())
    flipped[len(flipped) // 2] ^= 255
    (tmp_path / "bad_checksum.png").write_bytes(flipped)
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "dead.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    os.mkfifo(tmp_path / "pipe.png")
    save(tmp_path / "strip.png", plain("green", (30000, 1)))

    data = image_folder(tmp_path, 8)
    assert len(data) == 3  # good, really_a_png, strip
    assert len(caplog.records) == 1
    line = caplog.records[0].getMessage()
    assert "skipped 9 of 12" in line and "\n" not in line
    for name in ("truncated.jpg", "zero.png", "text.png", "captions.csv"):
        assert name in line
    for name in ("bad_checksum.png", "dead.png", "itself.png", "pipe.png"):
        assert name in line
    assert "drawing.eps (not a picture)" in line  # no other program was started to draw it
    assert "good.png" not in line and "hidden" not in line


def test_a_decompression_bomb_is_skipped(tmp_path, caplog, monkeypatch):
    save(tmp_path / "good.png", plain(size=(10, 10)))
    save(tmp_path / "big.png", plain(size=(40, 40)))  # Pillow warns
    save(tmp_path / "huge.png", plain(size=(80, 80)))  # Pillow refuses
    assert len(image_folder(tmp_path, 8)) == 3  # the control: none is too big as it stands
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert len(image_folder(tmp_path, 8)) == 1
    assert caplog.text.count("too many pixels") == 2


def test_forbidden_files_and_folders_are_skipped(tmp_path, caplog, monkeypatch):
    for name in ("good.png", "locked.png", "room/inside.png"):
        save(tmp_path / name, plain())
    assert len(image_folder(tmp_path, 8)) == 3 and caplog.text == ""

    def forbid(call, name):  # not chmod: it does not stop the superuser, who may run this test
        def guarded(path, *args, **options):
            if str(path).endswith(name):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return call(path, *args, **options)

        return guarded

    monkeypatch.setattr("builtins.open", forbid(open, "locked.png"))
    monkeypatch.setattr(os, "scandir", forbid(os.scandir, "room"))
    assert len(image_folder(tmp_path, 8)) == 1
    assert "skipped 2 of 3: room (Permission denied), locked.png (no permission)" in caplog.text


def test_only_ten_bad_files_are_named(tmp_path, caplog):
    save(tmp_path / "good.png", plain())
    for i in range(25):
        (tmp_path / f"{i}.txt").write_text("x")
    image_folder(tmp_path, 8)
    assert "skipped 25 of 26" in caplog.text and "and 15 more" in caplog.text
    assert caplog.text.count("(not a picture)") == 10


def test_linked_folders_are_followed_once(tmp_path):
    save(tmp_path / "elsewhere" / "a.png", plain())
    (tmp_path / "set").mkdir()
    for name in ("one", "two"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(image_folder(tmp_path / "set", 8)) == 1


def test_folder_errors_are_one_sentence(tmp_path):
    with pytest.raises(NotADirectoryError, match="no folder of pictures at"):
        image_folder(tmp_path / "none", 8)
    with pytest.raises(ValueError, match="no readable picture in .*: 0 files"):
        image_folder(tmp_path, 8)
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(ValueError, match="no readable picture in .*: 1 files"):
        image_folder(tmp_path, 8)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        image_folder(tmp_path, 0)


# ------------------------------------------------------------------------------------ augmentation


def test_flip_mirrors_half_of_the_images_and_repeats_by_seed():
    images = random_images(400)
    once = flip(images, seeded(1))
    mirrored = (once == images.flip(-1)).flatten(1).all(1)
    untouched = (once == images).flatten(1).all(1)
    assert (mirrored ^ untouched).all() and 160 <= mirrored.sum() <= 240
    assert torch.equal(once, flip(images, seeded(1)))
    assert not torch.equal(once, flip(images, seeded(2)))
    assert once.dtype == torch.uint8
    assert torch.equal(to_float(once), flip(to_float(images), seeded(1)))


def test_random_crop_is_a_window_of_the_reflect_padded_image():
    images, padding = random_images(300, 6), 2
    padded = F.pad(images.float(), (padding,) * 4, mode="reflect").to(torch.uint8)
    crops = random_crop(images, padding, seeded(3))
    windows = torch.stack(
        [padded[:, :, y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
    )  # (25, B, 3, 6, 6)
    hits = (windows == crops).flatten(2).all(2)  # (25, B)
    assert (hits.sum(0) == 1).all()  # each crop is exactly one window
    assert (hits.sum(1) > 0).all()  # and every window is drawn
    assert torch.equal(crops, random_crop(images, padding, seeded(3)))
    assert torch.equal(random_crop(images, 0, seeded()), images)
    # Mutant: wrapping round instead of reflecting is no such window.
    rolled = images.roll((1, 1), (-2, -1))
    assert not (windows == rolled).flatten(2).all(2).any()
    for wrong in (-1, 6):
        with pytest.raises(ValueError, match=r"padding must be in 0\.\.5"):
            random_crop(images, wrong, seeded())


# ------------------------------------------------------------------------------ where files live


def test_importing_costs_no_torchvision_and_no_hub_client():
    code = (
        "import sys, minidiff.data.images; "
        "print([n for n in ('torchvision', 'huggingface_hub', 'pyarrow') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "cache.bin"
    target.write_text("old")
    with pytest.raises(OSError, match="disk full"), files.atomic(target) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


# --------------------------------------------------------------------------- the published CIFAR-10


@needs_cifar10
def test_the_real_cifar10():
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    for train, count in ((True, 50_000), (False, 10_000)):
        data = cifar10(train)
        assert data.images.shape == (count, 3, 32, 32) and data.images.is_contiguous()
        assert data.images.nelement() == count * 3072
        assert data.labels.bincount().tolist() == [count // 10] * 10
        assert list(data.classes) == names == list(module.CIFAR10_CLASSES)
    # The planes of the first test image, straight from the file: red, green, blue rows.
    raw = (REAL / "cifar-10-batches-py" / "test_batch").read_bytes()
    assert data.images[0].numpy().tobytes() in raw


@needs_cifar10
def test_the_hub_copy_of_cifar10_is_known_by_its_pixels(tmp_path, monkeypatch):
    real = cifar10(train=False)
    rows = [
        {"img": {"bytes": png(image)}, "label": label}
        for image, label in zip(real.images, real.labels.tolist(), strict=True)
    ][::-1]  # the hub's order is another
    monkeypatch.setenv("MINIDIFF_DATA", str(tmp_path))
    monkeypatch.setattr(hosts, "CIFAR10_HOSTS", ())
    monkeypatch.setattr(module, "hub_rows", lambda repo, split, columns: rows)
    copy = cifar10(train=False)
    assert torch.equal(copy.images, real.images.flip(0)) and copy.classes == real.classes
    assert torch.equal(copy.labels, real.labels.flip(0)) and copy.labels.dtype == torch.int64
    monkeypatch.setattr(module, "hub_rows", None)  # from now on it is read from the disk
    assert torch.equal(cifar10(train=False).images, copy.images)
    # Mutant: one label changed is another data set.
    wrong = real.labels.clone()
    wrong[7] = (wrong[7] + 1) % 10
    assert module._digest(real.images, real.labels) == module.CIFAR10_SHA256["test"]
    assert module._digest(real.images, wrong) != module.CIFAR10_SHA256["test"]


def png(image: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


# ---------------------------------------------------------------- hosts that fail, on this machine


def tiny_archive() -> tuple[bytes, dict[str, str]]:
    """A CIFAR-10 archive of 6 files with 10 images each, and the MD5 of each file."""
    files = {}
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        pixels = random_images(10, 32, seed=i).reshape(10, -1).numpy()
        files[name] = pickle.dumps({"data": pixels, "labels": list(range(10))})
    files["batches.meta"] = pickle.dumps({"label_names": list(module.CIFAR10_CLASSES)})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    return buffer.getvalue(), md5


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A server at .url with pages good, odd, wrong, short, missing, stall, endless, trickle; an
    empty data root; and torchvision told to expect the tiny archive."""
    from torchvision.datasets import CIFAR10

    content, md5 = tiny_archive()
    batches = [[name, digest] for name, digest in md5.items() if name.startswith("data_batch")]
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", batches)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    monkeypatch.setenv("MINIDIFF_DATA", str(tmp_path / "root"))
    monkeypatch.setenv("no_proxy", "*")
    asked, over, answers = [], threading.Event(), threading.Event()
    answers.set()

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self):
            page = self.path.split("/")[1]
            asked.append(page)
            answers.wait(30)
            if page == "missing":
                return self.send_error(404)
            self.send_response(200)
            length = {"odd": "abc", "endless": 10**9}.get(page, len(content))
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if page in ("good", "odd"):
                self.wfile.write(content)
            elif page == "wrong":
                self.wfile.write(content[:-1] + bytes([content[-1] ^ 1]))
            elif page == "short":
                self.wfile.write(content[:1000])
            elif page in ("stall", "endless"):
                self.wfile.write(content[:1000])
                over.wait(60)
            elif page == "trickle":  # 10 bytes each 20 ms: never silent, never done
                for i in range(0, len(content), 10):
                    if over.wait(0.02):
                        return
                    try:
                        self.wfile.write(content[i : i + 10])
                    except OSError:  # the reader has left
                        return

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    yield SimpleNamespace(url=url, asked=asked, root=tmp_path / "root", answers=answers)
    over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port where nobody listens, kept from everybody else meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def left(root: Path) -> list[str]:
    """What lies in the folder, but for locks."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


def try_hosts(monkeypatch, *urls: str) -> None:
    """Each with the speed, in bytes a second, below which the next is tried; as in life."""
    speeds = (100e3, 1e3)[: len(urls)]
    monkeypatch.setattr(hosts, "CIFAR10_HOSTS", tuple(zip(urls, speeds, strict=True)))


def test_a_good_host_is_asked_once_and_nothing_is_left_over(host, monkeypatch):
    try_hosts(monkeypatch, f"{host.url}/good/a.tar.gz", f"{host.url}/good/b.tar.gz")
    train, test = cifar10(), cifar10(train=False)
    assert host.asked == ["good"]
    assert len(train) == 50 and len(test) == 10
    assert torch.equal(train.images[10:20], random_images(10, 32, seed=1))
    assert left(host.root) == ["cifar-10-batches-py"]
    monkeypatch.setattr(hosts, "CIFAR10_HOSTS", ())  # offline: the files are enough
    assert torch.equal(cifar10().images, train.images)


@pytest.mark.parametrize(
    "page, fault",
    [
        ("missing", "Not Found"),
        ("wrong", "wrong MD5"),
        ("short", r"4 requests, the last: the server stopped after 1000 of \d+ bytes"),
        ("endless", "sends more than the 170498071 bytes expected"),
        ("stall", "timed out"),
        ("trickle", "too slow, [01] kB/s"),
        ("refused", "3 requests, the last: .*refused"),
    ],
)
def test_a_bad_host_gives_way_to_the_mirror(host, closed_port, monkeypatch, caplog, page, fault):
    bad = f"http://127.0.0.1:{closed_port}/" if page == "refused" else f"{host.url}/{page}/"
    try_hosts(monkeypatch, bad, f"{host.url}/good/")
    if page in ("stall", "trickle"):
        monkeypatch.setattr(hosts, "TIMEOUT", 2.0)
    start = time.monotonic()
    assert len(cifar10()) == 50
    assert time.monotonic() - start < 45  # the stalled page would take 60
    assert host.asked[-1] == "good"
    (record,) = caplog.records
    assert record.getMessage().startswith("CIFAR-10: 127.0.0.1: ")
    assert re.search(fault, record.getMessage())
    assert left(host.root) == ["cifar-10-batches-py"]


def test_without_the_checks_a_bad_archive_would_be_taken(host, monkeypatch):
    """The control of the test above: it is the MD5 and the speed limit that turn hosts away."""
    from torchvision.datasets import CIFAR10

    target = host.root / "archive"
    host.root.mkdir()

    def download(page: str, slowest: float) -> str:
        url, md5 = f"{host.url}/{page}/", CIFAR10.tgz_md5
        return hosts._download(url, target, "md5", md5, slowest=slowest, most=10**6)

    assert download("wrong", 0) == hashlib.md5(target.read_bytes()).hexdigest() != CIFAR10.tgz_md5
    monkeypatch.setattr(hosts, "TIMEOUT", 0.5)
    with pytest.raises(hosts.FetchError, match="too slow"):
        download("trickle", 1e5)
    # The same page at no minimum speed is read on and on, until the deadline.
    monkeypatch.setattr(hosts, "DEADLINE", 2.5)
    with pytest.raises(hosts.FetchError, match="not complete after"):
        download("trickle", 0)


def test_a_length_that_is_no_number_does_no_harm(host, monkeypatch):
    try_hosts(monkeypatch, f"{host.url}/odd/")
    assert len(cifar10()) == 50


@pytest.mark.parametrize("with_lock", [True, False])
def test_of_two_processes_one_brings_cifar10(host, with_lock):
    """Both find the folder missing; one brings it while the other waits. Without the lock, both
    download, and the second dies because the folder exists."""
    from torchvision.datasets import CIFAR10

    known = {name: getattr(CIFAR10, name) for name in ("tgz_md5", "filename", "base_folder")}
    code = f"""
import contextlib, pathlib, sys, types

sys.path.append({str(Path(hosts.__file__).parent)!r})  # without torch, to start fast
sys.modules["torchvision"] = types.SimpleNamespace()
cifar10 = types.SimpleNamespace(**{known!r})
sys.modules["torchvision.datasets"] = types.SimpleNamespace(CIFAR10=cifar10)
import hosts

if not {with_lock}:
    hosts.FileLock = lambda path: contextlib.nullcontext()
hosts.CIFAR10_HOSTS = [("{host.url}/good/", 0)]
print("here", flush=True)
hosts.fetch_cifar10(pathlib.Path({str(host.root / CIFAR10.base_folder)!r}))
"""
    host.answers.clear()
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    workers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for worker in workers:
        worker.stdout.readline()
    patience = time.monotonic() + 10
    while len(host.asked) < 2 - with_lock and time.monotonic() < patience:
        time.sleep(0.02)
    time.sleep(0.5)
    host.answers.set()
    for worker in workers:
        worker.communicate()
    codes = sorted(worker.returncode for worker in workers)
    assert (codes, host.asked) == (([0, 0], ["good"]) if with_lock else ([0, 1], ["good"] * 2))
    assert left(host.root) == ["cifar-10-batches-py"] and len(cifar10()) == 50


def test_when_all_is_dead_one_sentence_says_where_to_put_a_copy(host, closed_port, monkeypatch):
    try_hosts(monkeypatch, f"{host.url}/missing/", f"http://127.0.0.1:{closed_port}/")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    with pytest.raises(ConnectionError) as caught:
        cifar10()
    message = str(caught.value)
    for part in ("could not fetch CIFAR-10", "Not Found", "refused", "pip install pyarrow"):
        assert part in message
    assert str(host.root / "cifar-10-batches-py") in message and "MINIDIFF_DATA" in message
    assert "\n" not in message and left(host.root) == []


def test_a_hub_copy_with_other_pixels_is_refused(host, monkeypatch):
    monkeypatch.setattr(hosts, "CIFAR10_HOSTS", ())
    rows = [{"img": {"bytes": png(image)}, "label": 0} for image in random_images(4, 32)]
    monkeypatch.setattr(module, "hub_rows", lambda *_: rows)
    with pytest.raises(ConnectionError, match="differ from the published ones"):
        cifar10()
    assert left(host.root) == []
    # The control: with the digest of these very images they are taken, and kept.
    digest = module._digest(random_images(4, 32), torch.zeros(4))
    monkeypatch.setitem(module.CIFAR10_SHA256, "train", digest)
    assert torch.equal(cifar10().images, random_images(4, 32))
    assert left(host.root) == ["cifar10-train.safetensors"]


def test_damaged_local_files_are_named(host, monkeypatch):
    try_hosts(monkeypatch, f"{host.url}/good/")
    cifar10()
    batch = host.root / "cifar-10-batches-py" / "data_batch_3"
    content = bytearray(batch.read_bytes())
    content[-9] ^= 1
    batch.write_bytes(content)
    with pytest.raises(ValueError, match="damaged .*: delete it"):
        cifar10()


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("../../evil", "/evil-absolute", "fine"):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            tar.addfile(entry, io.BytesIO(b"x"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    hosts._unpack(archive, tmp_path / "in")
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"evil", "evil-absolute", "fine"}
    assert {path.name for path in tmp_path.iterdir()} == {"evil.tar.gz", "in"}


# ------------------------------------------------------------------------------------ butterflies


@needs_butterflies
def test_the_real_butterflies():
    data = butterflies(64)
    files = sorted((REAL / "butterflies").glob("*/*.png"))
    assert len(data) == len(files) > 500
    assert data.classes == tuple(sorted({file.parent.name for file in files}))
    first = np.asarray(Image.open(files[0]).convert("RGB"))
    if first.shape == (64, 64, 3):  # at its own size a picture is not touched
        assert np.array_equal(data.images[0].permute(1, 2, 0).numpy(), first)
    assert butterflies(32).images.shape[1:] == (3, 32, 32)


def test_butterflies_come_from_the_hub_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIFF_DATA", str(tmp_path))
    asked = []

    def rows(repo, split, columns):
        asked.append((repo, split, columns))
        return [{"image": {"bytes": png(image), "path": None}} for image in random_images(3, 24)]

    monkeypatch.setattr(module, "hub_rows", rows)
    first, again = butterflies(24), butterflies(24)
    assert asked == [("huggan/smithsonian_butterflies_subset", "train", ["image"])]
    assert torch.equal(first.images, random_images(3, 24)) and first.labels is None
    assert torch.equal(first.images, again.images) and again.labels is None
    assert butterflies(16).images.shape == (3, 3, 16, 16)
    assert {path.name for path in tmp_path.iterdir()} == {
        "butterflies-24.safetensors",
        "butterflies-16.safetensors",
    }
    (tmp_path / "butterflies-16.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="damaged: delete it"):
        butterflies(16)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        butterflies(0)


def test_local_butterflies_need_no_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIFF_DATA", str(tmp_path))
    monkeypatch.setattr(module, "hub_rows", None)
    for species in ("monarch", "atala"):
        save(tmp_path / "butterflies" / species / "0.png", plain())
    assert butterflies(8).classes == ("atala", "monarch")


def test_absent_butterflies_and_no_network_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIFF_DATA", str(tmp_path))

    def dead(repo, split, columns):
        raise hosts.FetchError("huggingface.co: ConnectError")

    monkeypatch.setattr(module, "hub_rows", dead)
    with pytest.raises(ConnectionError, match="could not fetch the butterflies .*MINIDIFF_DATA"):
        butterflies()
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- the hub


def test_hub_rows_read_the_parquet_files_in_order(tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    import huggingface_hub

    for i, split in ((0, "train"), (1, "train"), (0, "test")):
        pictures = [{"bytes": bytes([i, n]), "path": ""} for n in range(3)]
        table = arrow.table({"img": pictures, "label": [i] * 3, "unused": ["x"] * 3})
        parquet.write_table(table, tmp_path / f"{split}-0000{i}-of-00002.parquet")
    calls = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *args, **options: calls.append((args, options)) or str(tmp_path),
    )
    rows = hosts.hub_rows("some/set", "train", ["img", "label"])
    assert [row["img"]["bytes"] for row in rows] == [
        bytes([i, n]) for i in (0, 1) for n in (0, 1, 2)
    ]
    assert [row["label"] for row in rows] == [0, 0, 0, 1, 1, 1] and set(rows[0]) == {"img", "label"}
    assert calls[0][0] == ("some/set",) and calls[0][1]["token"] is False
    with pytest.raises(hosts.FetchError, match="no valid files"):
        hosts.hub_rows("some/set", "valid", ["img"])


def test_hub_faults_are_a_few_words(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", SimpleNamespace())

    def dead(*_, **__):
        raise RuntimeError("a page of text")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", dead)
    with pytest.raises(hosts.FetchError, match=r"^huggingface.co: no download \(RuntimeError\)$"):
        hosts.hub_rows("some/set", "train", ["img"])
