"""make publish OWNER=name [NAME=minidiff]: say where the repository lives.

The address stands in pyproject.toml, [project.urls]. This writes it there and into whatever repeats
it: badges, install cells, CITATION.cff, links to the course. Needs no environment.
"""

import re
import subprocess
import sys
from pathlib import Path

ADDRESS = re.compile(r'^Repository = "https://github\.com/([\w.-]+)/([\w.-]+)"$', re.M)
TEXT = {".py", ".md", ".toml", ".ipynb", ".cff", ".yml", ".yaml", ".html", ".txt"}


def stamp(text: str, old: tuple[str, str], new: tuple[str, str]) -> str:
    """`text` with each form of the address of `old` (owner, name) turned into that of `new`."""
    for form in (
        "github.com/{}/{}",
        "colab.research.google.com/github/{}/{}",
        "raw.githubusercontent.com/{}/{}",
        "{}.github.io/{}",
    ):
        was, becomes = form.format(*old), form.format(*new)
        text = re.sub(rf"(?<![\w-]){re.escape(was)}(?![\w-])", becomes, text)
    return text


def publish(root: Path, owner: str, name: str) -> list[Path]:
    """Stamp the files that git tracks or would add; returns those that changed."""
    found = ADDRESS.search((root / "pyproject.toml").read_text())
    if found is None:
        raise SystemExit('pyproject.toml has no line Repository = "https://github.com/owner/name"')
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    changed = []
    for path in sorted(root / line for line in set(listed.split("\0")) if line):
        if path.suffix not in TEXT or not path.is_file():
            continue
        text = path.read_bytes().decode()
        stamped = stamp(text, found.groups(), (owner, name))
        if stamped != text:
            path.write_bytes(stamped.encode())
            changed.append(path)
    return changed


if __name__ == "__main__":
    words = sys.argv[1:]
    if not 1 <= len(words) <= 2 or not all(re.fullmatch(r"\w[\w.-]*", word) for word in words):
        sys.exit("usage: make publish OWNER=name [NAME=repository]")
    root = Path(__file__).resolve().parent.parent
    for path in publish(root, words[0], (words[1:] or ["minidiff"])[0]):
        print(path.relative_to(root))
