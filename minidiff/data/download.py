"""Where data lives, and files from the web: downloaded once, checked, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TIMEOUT = 15.0  # seconds of silence after which a server counts as dead
TRIES = 3  # attempts in a row that may bring nothing new
CHUNK = 1 << 18  # bytes


def data_root() -> Path:
    """The folder of all data: $MINIDIFF_DATA, or data/downloads of a clone, or the user's cache."""
    if chosen := os.environ.get("MINIDIFF_DATA"):
        return Path(chosen).expanduser()
    clone = Path(__file__).resolve().parents[2]
    if (clone / "pyproject.toml").is_file():
        return clone / "data" / "downloads"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minidiff"


def fetch(url: str, path: str | Path, sha256: str) -> Path:
    """The file at `path`, which is downloaded from `url` if it is not there yet.

    It appears under its name only once its SHA-256 is right. What an interrupted download brought
    stays beside it in a `.part` file, and the next call goes on from there; of two processes that
    call at once, one downloads and the other waits. ValueError for a file whose hash is wrong,
    there or downloaded; OSError, saying why, if the server does not give it all.
    """
    path = Path(path)
    if not path.is_file():
        with locked(path):
            if not path.is_file():  # a process that held the lock may have brought it
                _download(url, path, sha256)
                return path
    if (found := sha256_of(path)) != sha256:
        raise ValueError(
            f"{path} has the SHA-256 {found}, expected {sha256}: delete it to download it anew"
        )
    return path


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """What the block does for `path`, one process does at a time; the others wait.

    The lock goes with the process that holds it. On Windows there is none: two at once may fail
    there, but what they leave is still checked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(url: str, path: Path, sha256: str) -> None:
    """Bring the file, however often the line breaks, as long as it goes on growing."""
    part = path.with_name(f"{path.name}.part")
    part.touch()
    is_ours = part.stat().st_size == 0  # all of it was received by this call
    longest, idle = 0, 0
    while True:
        fault = _receive(url, part)
        # The hash decides, not the length that the server announced.
        if (found := sha256_of(part)) == sha256:
            os.replace(part, path)
            return
        if fault is None and is_ours:
            part.unlink()
            raise ValueError(f"{url} has the SHA-256 {found}, expected {sha256}: refused")
        if fault is None:  # perhaps only what lay there before was wrong
            os.truncate(part, 0)
            is_ours, longest = True, 0
            continue
        size = part.stat().st_size
        longest, idle = max(longest, size), 0 if size > longest else idle + 1
        if idle == TRIES:
            raise OSError(
                f"could not download {url}: {fault} (the {size} bytes received are kept, and the "
                "next attempt goes on from there)"
            )


def _receive(url: str, part: Path) -> str | None:
    """Append to `part` what it lacks; returns why that ended early, or None.

    OSError if the server refuses.
    """
    start = part.stat().st_size
    headers = {"User-Agent": "minidiff"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as reply:
            if reply.status != 206:  # the whole file, asked for or not
                os.truncate(part, start := 0)
            elif not reply.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                os.truncate(part, 0)
                return "the server sent another part of it than asked for"
            announced = reply.length  # None if the server does not say
            bar = tqdm(
                desc=Path(urlsplit(url).path).name,
                total=announced and start + announced,
                initial=start,
                unit="B",
                unit_scale=True,
                delay=1,
                disable=None,
            )
            with bar, part.open("ab") as file:
                while chunk := reply.read1(CHUNK):  # read() would wait to fill its buffer
                    file.write(chunk)
                    bar.update(len(chunk))
    except HTTPError as error:
        if error.code == 416:  # there is nothing after what we have
            return None
        raise OSError(f"could not download {url}: {error.code} {error.reason}") from None
    except (OSError, HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    received = part.stat().st_size - start
    if announced is not None and received < announced:
        return f"the server stopped after {received} of {announced} bytes"
    return None
