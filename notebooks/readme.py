"""Fills what the README repeats: the table of lessons, and the scorecard.

python -m notebooks.readme

Each stands between its own markers, <!-- lessons --> or <!-- scorecard -->. Minutes are from the
lessons' cards, pictures from figures/; the scorecard is the table of docs/scorecard.md, without
its columns of cost.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat

from notebooks.build import COLAB, ROOT, SLUG, sources

BADGE = "[![Open in Colab](figures/colab.svg)]"
SHOWN = ("method", "effect", "its control", "stayed", "its control", "check")


def lessons(root: Path = ROOT) -> str:
    """A row a lesson: thumbnail, title, minutes, badge."""
    rows = ["| | lesson | minutes | |", "|---|---|---|---|"]
    for source in sources(folder=root / "notebooks"):
        number, made = source.name[:2], source.with_suffix(".ipynb")
        title = re.search(r"^# # (.+)$", source.read_text(), re.M)[1]
        where = (made if made.exists() else source).relative_to(root).as_posix()
        picture = f"figures/lesson_{number}.png"
        thumbnail = f'<img src="{picture}" width="150" alt="">' if (root / picture).exists() else ""
        badge = f"{BADGE}({COLAB.format(slug=SLUG, name=source.stem)})"
        rows.append(f"| {thumbnail} | [{title}]({where}) | {_minutes(made)} | {badge} |")
    return "\n".join(rows)


def _minutes(made: Path) -> str:
    """What the executed lesson's card says, or nothing."""
    if not made.exists():
        return ""
    first = nbformat.read(made, as_version=4).cells[0].source
    found = re.search(r"\*\*([\d.]+) minutes\*\*", first)
    return found[1] if found else ""


def scorecard(root: Path = ROOT) -> str:
    """The first table of docs/scorecard.md, its rows linked to their sections there."""
    page = root / "docs/scorecard.md"
    if not page.exists():
        return "`minidiff score` measures every method against a control, and writes the card here."
    lines = page.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| method |"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    keep = [i for i, name in enumerate(table[0]) if name in SHOWN]
    keep = keep[: len(SHOWN) - 1] + keep[-1:]  # the third "its control" is diversity's
    rows = ["| " + " | ".join(row[i] for i in keep) + " |" for row in table]
    return "\n".join(rows).replace("](#", "](docs/scorecard.md#")


def fill(text: str, root: Path = ROOT) -> str:
    """The README's text with both tables as they are now. ValueError where a marker lacks."""
    for name, make in (("lessons", lessons), ("scorecard", scorecard)):
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        if not marked.search(text):
            raise ValueError(f"the README lacks the markers <!-- {name} --> and <!-- /{name} -->")
        content = make(root) + "\n"
        text = marked.sub(lambda found, content=content: found[1] + content + found[2], text)
    return text


def main() -> int:
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
