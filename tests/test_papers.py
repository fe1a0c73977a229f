"""docs/papers.md is true: every file, function, test and lesson that it names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(
    r"^\| (?:\[.+?\]\((?P<link>\S+)\), .+?)? ?\| (?P<where>[^|]+) "
    r"\| \[`(?P<name>[\w.]+)`\]\(\.\./(?P<file>\S+?)\) "
    r"\| \[`(?P<test>\w+)`\]\(\.\./(?P<tests>\S+?)\) \| (?P<lesson>\d\d)? ?\|$"
)
TABLE = [
    line
    for line in (ROOT / "docs/papers.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| paper |")
]


def defined(path: Path) -> set[str]:
    """Names a file defines: functions, classes, and methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        for inner in getattr(node, "body", ()) if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef):
                found.add(f"{node.name}.{inner.name}")
    return found


def faults(row: str) -> list[str]:
    """What one row names that is not there."""
    match = ROW.match(row)
    if match is None:
        return ["not a row: expected paper, where, function, test, lesson"]
    said = match.groupdict()
    module = said["file"].removeprefix("minidiff/").removesuffix(".py").replace("/", ".")
    name, found = said["name"].removeprefix(module).removeprefix("."), []
    if said["link"] and not re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", said["link"]):
        found.append(f"no address of a paper: {said['link']}")
    if not (ROOT / said["file"]).is_file():
        found.append(f"no file {said['file']}")
    elif name and name not in defined(ROOT / said["file"]):
        found.append(f"no {name} in {said['file']}")
    if not (ROOT / said["tests"]).is_file() or said["test"] not in defined(ROOT / said["tests"]):
        found.append(f"no test {said['test']}")
    if said["lesson"] and not list((ROOT / "notebooks").glob(f"{said['lesson']}_*.py")):
        found.append(f"no lesson {said['lesson']}")
    return found


@pytest.mark.parametrize("row", TABLE)
def test_what_a_row_names_exists(row):
    assert faults(row) == []


def test_every_editing_paper_has_a_row():
    files = {path.name for path in (ROOT / "minidiff/editing").glob("*.py")}
    tools = {"__init__.py", "attention.py", "checks.py", "masks.py", "strokes.py"}
    table = "\n".join(TABLE)
    assert {name for name in files - tools if f"minidiff/editing/{name}" not in table} == set()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("sdedit.sdedit`", "sdedit.sdedits`", "no sdedits in"),
        ("editing/sdedit.py", "editing/sdedits.py", "no file"),
        ("`test_the_result", "`test_no_result", "no test"),
        ("| 09 |", "| 99 |", "no lesson"),
        ("arxiv.org/abs", "arxiv.org", "no address"),
        ("| 09 |", "|", "not a row"),
    ],
)
def test_a_wrong_row_is_seen(old, new, fault):
    (row,) = [row for row in TABLE if "[SDEdit]" in row]
    assert old in row
    assert any(fault in found for found in faults(row.replace(old, new)))
