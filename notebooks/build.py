"""Makes the lessons: NN_name.py is the source, NN_name.ipynb the executed notebook made from it.

python -m notebooks.build run [NN ...]    execute and write the notebooks, with their cards
python -m notebooks.build fast [NN ...]   execute all cells with tiny numbers, write nothing
python -m notebooks.build check [NN ...]  the limits of a lesson as a table; fails if one is broken

A card's figures are of the kernel process on one thread: CPU time, which is what one waits on an
idle core and does not depend on what else the machine does; the peak of its memory; and the
operations of networks as `minidiff.lessons.cost` counts them. The cell tagged "card" lends its
picture to the card and to the README: figures/lesson_NN.png.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode
from PIL import Image
from traitlets.config import Config

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ADDRESS = re.search(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
SLUG = ADDRESS.removeprefix("https://github.com/")  # owner/name
FAST_MINUTES = 8  # of CPU time, all lessons in fast mode

# The first code cell of every lesson. It is plain Python, so that it can be tested without Jupyter.
SETUP = f"""\
import subprocess
import sys

sys.path.append("..")  # in a clone: its own minidiff, unless one is installed
try:
    from minidiff import lessons
except ImportError:  # in Colab: installed beside the torch that is there, which stays
    minidiff = "minidiff @ git+{ADDRESS}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", minidiff], check=True)
    from minidiff import lessons

LESSON = lessons.setup(NUMBER)"""

COLAB = "https://colab.research.google.com/github/{slug}/blob/main/notebooks/{name}.ipynb"
CARD = re.compile(r"<!-- card -->.*?<!-- /card -->", re.S)
START = "from minidiff.lessons import cost\nMETER = cost.Meter().start()"
STOP = "import json\nMETER.stop()\nprint(json.dumps(METER.read()))"


class Fault(Exception):
    """What is wrong with a lesson, in one sentence."""


def sources(numbers: Sequence[str] = (), folder: Path = HERE) -> list[Path]:
    """The sources of the lessons `numbers`, or of all. Fault for a number that there is not."""
    found = {path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.py"))}
    numbers = [f"{int(n):02}" for n in numbers]
    for number in numbers:
        if number not in found:
            raise Fault(f"there is no lesson {number}: expected one of {', '.join(found)}")
    return [found[number] for number in numbers or found]


# ------------------------------------------------------------------------------------------ making


def read(source: Path) -> NotebookNode:
    """The notebook of a source, without outputs; the same source gives the same notebook."""
    made = jupytext.reads(source.read_text(), fmt="py:percent")
    cells = []
    for i, cell in enumerate(made.cells):
        new = (
            nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        )
        tags = cell.metadata.get("tags")
        metadata = {"tags": tags} if tags else {}
        cells.append(new(cell.source, id=f"{source.name[:2]}-{i:02}", metadata=metadata))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def execute(source: Path, *, fast: bool = False) -> tuple[NotebookNode, dict]:
    """The executed notebook, and what it cost: minutes, gigabytes, pflops.

    Fault where a cell fails, writes to stderr, or prints a path of this machine.
    """
    notebook = read(source)
    new = nbformat.v4.new_code_cell
    notebook.cells = [new(START), *notebook.cells, new(STOP)]
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    environment |= {
        "MINIDIFF_FAST": str(int(fast)),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a warning of the debugger, on stderr
    }
    connection = f"{tempfile.mkdtemp()}/kernel.json"  # sockets lie beside it, and go with it
    client = NotebookClient(
        notebook,
        timeout=3600,
        startup_timeout=600,
        kernel_name="python3",
        record_timing=False,
        config=Config({"KernelManager": {"transport": "ipc", "connection_file": connection}}),
        resources={"metadata": {"path": str(HERE)}},
    )
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        lines = f"{error.ename}: {error.evalue}".splitlines()
        raise Fault(f"{source.name}: {_failed_cell(notebook)}: {lines[0]}") from None
    except CellTimeoutError:
        raise Fault(f"{source.name}: {_failed_cell(notebook)} takes more than an hour") from None
    finally:
        shutil.rmtree(Path(connection).parent, ignore_errors=True)
    cost = json.loads(notebook.cells[-1].outputs[-1].text)
    notebook.cells = notebook.cells[1:-1]
    _clean(notebook)
    faults = list(output_faults(notebook))
    if faults:
        raise Fault(f"{source.name}: {faults[0]}")
    return notebook, cost


def _failed_cell(notebook: NotebookNode) -> str:
    """The last cell that was started, by its first line."""
    started = [c for c in notebook.cells if c.cell_type == "code" and c.execution_count]
    return f"cell {started[-1].execution_count - 1} (`{started[-1].source.splitlines()[0]}`)"


def _clean(notebook: NotebookNode) -> None:
    """Count cells from 1, leave out what execution adds, and store pictures as small as they go."""
    notebook.metadata.language_info = {"name": "python"}  # no version, which changes
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(codes, 1):
        cell.execution_count = count
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
            data = output.get("data", {})
            if "image/png" in data:
                data.pop("image/jpeg", None)  # Pillow offers both
                data["image/png"] = _smaller(data["image/png"])


def _smaller(png: str) -> str:
    """The same picture in fewer bytes; GIFs stay (see lessons.Animation).

    A palette of 256 colours is exact for most, and not told apart by eye in the large ones.
    """
    data = base64.b64decode(png)
    if data.startswith(b"GIF8"):
        return png
    picture, file = Image.open(BytesIO(data)).convert("RGB"), BytesIO()
    if picture.getcolors(256) or len(data) > 40_000:
        picture = picture.quantize(256, kmeans=3, dither=Image.Dither.NONE)
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(min(file.getvalue(), data, key=len)).decode()


def output_faults(notebook: NotebookNode) -> Iterator[str]:
    """What outputs must not hold: errors, stderr, absolute paths."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            where = f"cell `{cell.source.splitlines()[0]}`"
            if output.output_type == "error":
                yield f"{where} fails: {output.ename}: {output.evalue}"
            elif output.get("name") == "stderr":
                yield f"{where} writes to stderr: {output.text.strip().splitlines()[-1]}"
            texts = [output.get("text", ""), *output.get("data", {}).values()]
            words = " ".join(t for t in texts if isinstance(t, str) and len(t) < 100_000)
            path = re.search(r"(?<![\w.:/])/(home|root|tmp|usr|var|work|opt|Users)/\S*", words)
            if path or str(ROOT) in words:
                yield f"{where} prints a path of this machine: {path and path[0]}"


def write(source: Path, notebook: NotebookNode, cost: dict) -> None:
    """The notebook beside its source, with `cost` and the picture on its card."""
    minutes = max(cost["minutes"], 0.1)
    card = (
        f"**{minutes:.1f} minutes** on one CPU core, {cost['gigabytes']:.1f} GB of memory, "
        f"{_operations(cost['pflops'])} in networks"
    )
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = CARD.sub(f"<!-- card -->{card}<!-- /card -->", cell.source)
    for cell in notebook.cells:
        pngs = [p for kind, p in pictures(cell) if kind == "picture"]
        if "card" in cell.metadata.get("tags", ()) and pngs:
            picture = Image.open(BytesIO(pngs[-1])).convert("RGB")
            picture.thumbnail((840, 840))
            small = picture.quantize(256, kmeans=3, dither=Image.Dither.NONE)
            figure = source.parent.parent / f"figures/lesson_{source.name[:2]}.png"
            small.save(figure, optimize=True)
    nbformat.validate(notebook)
    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    source.with_suffix(".ipynb").write_text(text)


def _operations(pflops: float) -> str:
    if pflops == 0:
        return "no operations"
    return f"{pflops:.2g} PFLOPs" if pflops >= 0.1 else f"{1000 * pflops:.2g} TFLOPs"


# ---------------------------------------------------------------------------------------- measuring


class Limit(NamedTuple):
    """A measure of a lesson, and the range it must lie in."""

    name: str
    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


LIMITS = (
    Limit("cells", 35, 50),
    Limit("lines", 150, 220),
    Limit("longest", 1, 30),
    Limit("median", 1, 8),
    Limit("words", 1500, 2200),
    Limit("pictures", 9, 14),
    Limit("animations", 1, 1),
    Limit("kB", 1, 1000),
    Limit("minutes", 0, 10),
    Limit("GB", 0, 6),
)


def measure(source: Path, notebook: NotebookNode, size: int) -> dict[str, float]:
    """The measures of LIMITS; `size` is the file's in bytes."""
    codes = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    lines = [sum(map(_is_code, code.splitlines())) for code in codes]
    kinds = [kind for cell in notebook.cells for kind, _ in pictures(cell)]
    card = re.search(r"\*\*([\d.]+) minutes\*\* .*?, ([\d.]+) GB", " ".join(prose))
    return {
        "cells": len(notebook.cells),
        "lines": sum(lines),
        "longest": max(lines, default=0),
        "median": statistics.median(lines or [0]),
        "words": sum(map(words, prose)),
        "pictures": kinds.count("picture"),
        "animations": kinds.count("animation"),
        "kB": -(-size // 1000),
        "minutes": float(card[1]) if card else float("inf"),
        "GB": float(card[2]) if card else float("inf"),
    }


def _is_code(line: str) -> bool:
    return bool(line.strip()) and not line.strip().startswith("#")


def words(markdown: str) -> int:
    """The words of prose: without code, formulas, addresses, pictures and HTML."""
    for left_out in (
        r"```.*?```",
        r"\$\$.*?\$\$",
        r"<!--.*?-->",
        r"<[^>]+>",
        r"!\[[^]]*\]\([^)]*\)",
        r"(?<=\])\([^)]*\)",
    ):
        markdown = re.sub(left_out, " ", markdown, flags=re.S)
    return len(re.findall(r"[\w'’-]*[^\W\d_][\w'’-]*", markdown))


def pictures(cell: NotebookNode) -> Iterator[tuple[str, bytes]]:
    """("picture" or "animation", bytes) of each output picture; bytes are empty for a link."""
    if cell.cell_type == "markdown":
        for _ in re.findall(r"!\[[^]]*\]\((?!http)[^)]*figures/lesson_[^)]*\)", cell.source):
            yield "picture", b""
    for output in cell.get("outputs", ()):
        if png := output.get("data", {}).get("image/png"):
            data = base64.b64decode(png)
            yield "animation" if data.startswith(b"GIF8") else "picture", data
        elif "image/svg+xml" in output.get("data", {}):
            yield "picture", b""


def form_faults(source: Path, notebook: NotebookNode) -> Iterator[str]:
    """What is wrong with the notebook beside its numbers."""
    wanted = read(source)
    number = int(source.name[:2])
    if [c.cell_type for c in wanted.cells] != [c.cell_type for c in notebook.cells]:
        yield f"its cells are not those of {source.name}: run it again"
    for ours, theirs in zip(wanted.cells, notebook.cells, strict=False):
        a, b = (CARD.sub("", cell.source) for cell in (ours, theirs))
        if a != b:
            yield f"the cell `{b.splitlines()[0]}` differs from {source.name}: run it again"
            break
    codes = [cell.source for cell in wanted.cells if cell.cell_type == "code"]
    if not codes or codes[0] != SETUP.replace("NUMBER", str(number)):
        yield "its first code cell is not notebooks.build.SETUP"
    first = wanted.cells[0].source if wanted.cells else ""
    if remote := re.search(
        r"!\[[^]]*\]\((https?:[^)]*)\)", " ".join(c.source for c in wanted.cells)
    ):
        yield f"the picture {remote[1]} is not shown offline: use one of figures/"
    if not CARD.search(first) or COLAB.format(slug=SLUG, name=source.stem) not in first:
        yield "its first cell lacks the card's markers or the link to Colab"
    yield from output_faults(notebook)


def report(found: Sequence[Path]) -> list[str]:
    """Print the table of LIMITS; returns what is wrong, one sentence each."""
    faults = []
    print(f"{'lesson':<22}" + "".join(f"{limit.name:>11}" for limit in LIMITS))
    ranges = [f"{limit.low:g}-{limit.high:g}" for limit in LIMITS]
    print(f"{'':<22}" + "".join(f"{text:>11}" for text in ranges))
    for source in found:
        path = source.with_suffix(".ipynb")
        if not path.exists():
            print(f"{source.stem:<22} not made yet")
            faults.append(f"{source.stem}: there is no {path.name}: make notebooks")
            continue
        notebook = nbformat.read(path, as_version=4)
        values = measure(source, notebook, path.stat().st_size)
        row = ""
        for limit in LIMITS:
            good = limit.holds(values[limit.name])
            row += f"{values[limit.name]:g}{'' if good else '!'}".rjust(11)
            if not good:
                faults.append(
                    f"{source.stem}: {limit.name} {values[limit.name]:g}, "
                    f"expected {limit.low:g} to {limit.high:g}"
                )
        print(f"{source.stem:<22}{row}")
        faults += [f"{source.stem}: {fault}" for fault in form_faults(source, notebook)]
    return faults


# ------------------------------------------------------------------------------------- command line


def run_all(found: Sequence[Path]) -> list[str]:
    """Execute and write, one after the other."""
    faults = []
    for source in found:
        try:
            notebook, cost = execute(source)
        except Fault as fault:
            print(fault, flush=True)
            faults.append(str(fault))
            continue
        write(source, notebook, cost)
        print(
            f"{source.stem}: {cost['minutes']:.2f} CPU minutes, {cost['gigabytes']:.2f} GB, "
            f"{cost['pflops']:.3g} PFLOPs",
            flush=True,
        )
    return faults


def run_fast(found: Sequence[Path]) -> list[str]:
    """Execute with tiny numbers, two lessons at a time on one thread each."""

    used = []

    def one(source: Path) -> str | None:
        start = time.perf_counter()
        try:
            _, cost = execute(source, fast=True)
        except Fault as fault:
            print(fault, flush=True)
            return str(fault)
        seconds = time.perf_counter() - start
        cpu = 60 * cost["minutes"]
        used.append(cost["minutes"])
        print(f"{source.stem}: {seconds:.0f} s, {cpu:.0f} s of CPU time", flush=True)
        return None

    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        faults = [fault for fault in pool.map(one, found) if fault]
    waited, minutes = (time.perf_counter() - start) / 60, sum(used)
    print(f"{waited:.1f} minutes, {minutes:.1f} of CPU time; the limit is {FAST_MINUTES}")
    if minutes > FAST_MINUTES:
        faults.append(f"the fast mode takes {minutes:.1f} CPU minutes: at most {FAST_MINUTES}")
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m notebooks.build", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=("run", "fast", "check"))
    parser.add_argument("lesson", nargs="*", help="numbers, such as 04; all unless given")
    given = parser.parse_args(arguments)
    command = {"run": run_all, "fast": run_fast, "check": report}[given.command]
    try:
        faults = command(sources(given.lesson))
    except Fault as fault:
        faults = [str(fault)]
    if faults:
        print(f"\n{len(faults)} faults", *faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
