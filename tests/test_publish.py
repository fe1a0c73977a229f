"""The repository's address: in pyproject.toml, and everywhere else stamped from it."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PUBLISH = ROOT / ".ci/publish.py"


def publish(*words):
    return subprocess.run([sys.executable, PUBLISH, *words], capture_output=True, text=True)


def copy(folder: Path) -> Path:
    """A small repository that repeats the address in each form."""
    (folder / ".ci").mkdir()
    (folder / ".ci/publish.py").write_text(PUBLISH.read_text())
    address = "https://github.com/minidiff/minidiff"
    texts = {
        "pyproject.toml": f'[project.urls]\nRepository = "{address}"\n',
        "README.md": f"[course](https://minidiff.github.io/minidiff/) and {address}/issues\n",
        "a.ipynb": '"https://colab.research.google.com/github/minidiff/minidiff/blob/main/a.ipynb"\n',
        "b.py": f'"minidiff @ git+{address}"\n',
        "other.md": f"{address}-data and https://github.com/openai/CLIP\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def run(folder: Path, *words: str) -> list[str]:
    command = [sys.executable, folder / ".ci/publish.py", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_every_form_is_stamped_and_nothing_else(tmp_path):
    root = copy(tmp_path)
    before = {path: path.read_text() for path in root.glob("*.*") if path.is_file()}
    assert run(root, "ada", "pictures") == ["README.md", "a.ipynb", "b.py", "pyproject.toml"]
    assert "https://ada.github.io/pictures/" in (root / "README.md").read_text()
    assert "https://github.com/ada/pictures/issues" in (root / "README.md").read_text()
    assert "github/ada/pictures/blob" in (root / "a.ipynb").read_text()
    assert '"minidiff @ git+https://github.com/ada/pictures"' in (root / "b.py").read_text()
    assert (root / "other.md").read_text() == before[root / "other.md"]
    assert run(root, "minidiff") == ["README.md", "a.ipynb", "b.py", "pyproject.toml"]
    assert all(path.read_text() == text for path, text in before.items())
    assert run(root, "minidiff") == []


def test_it_says_how_it_is_called():
    for words in ((), ("a b",), ("a", "b", "c")):
        done = publish(*words)
        assert done.returncode == 1 and "make publish OWNER=name" in done.stderr


def test_no_file_says_another_address():
    (slug,) = re.findall(
        r'^Repository = "https://github.com/(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M
    )
    ours = re.compile(r"github(?:\.com)?/([\w.-]+/minidiff)\b")
    files = [*ROOT.glob("*.*"), *ROOT.glob("notebooks/*.*"), *ROOT.glob("minidiff/**/*.py")]
    for path in files:
        if path.is_file():
            assert set(ours.findall(path.read_text(errors="ignore"))) <= {slug}, path
