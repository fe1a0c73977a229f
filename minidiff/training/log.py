"""The log of a training run: a CSV that grows line by line and survives a kill."""

from __future__ import annotations

import csv
from pathlib import Path


def last_row(folder: Path) -> dict[str, str]:
    """The latest line of the log of the run in `folder`."""
    with open(folder / "log.csv", newline="") as f:
        return list(csv.DictReader(f))[-1]


def _images(row: dict[str, str]) -> float:
    """How many images a row was written after: no end of them if a crash has damaged it."""
    number = row.get("images") or ""
    return int(number) if number.isdecimal() else float("inf")


class Log:
    """A CSV of the run. Rows after `seen` images, left by a run that was killed, are dropped."""

    columns = ("images", "loss", "gradient_norm", "learning_rate", "images_per_second")

    def __init__(self, path: Path, seen: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = []
        if seen and path.is_file():
            with open(path, newline="") as f:
                table = csv.DictReader(line.replace("\0", "") for line in f)
                rows = [r for r in table if _images(r) <= seen]
        self.file = open(path, "w", newline="")
        self.writer = csv.DictWriter(self.file, self.columns, extrasaction="ignore")
        self.writer.writeheader()
        self.writer.writerows(rows)
        self.file.flush()

    def write(self, seen: int, loss: float, norm: float, rate: float, speed: float) -> None:
        values = (seen, f"{loss:.6f}", f"{norm:.4f}", f"{rate:.3e}", f"{speed:.1f}")
        self.writer.writerow(dict(zip(self.columns, values, strict=True)))
        self.file.flush()

    def close(self) -> None:
        self.file.close()
