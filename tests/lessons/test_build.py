"""Building lessons: executed as written, measured, checked; installed in Colab and in a clone."""

import importlib.util
import os
import shutil
import subprocess
import venv
from pathlib import Path

import nbformat
import pytest

from notebooks import build

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = [path for path in build.sources() if path.with_suffix(".ipynb").exists()]

LESSON = f"""\
# %% [markdown]
# # 07 Small
# <!-- card --><!-- /card -->
# [Open in Colab]({build.COLAB.format(slug=build.SLUG, name="07_small")})

# %%
{build.SETUP.replace("NUMBER", "7")}

# %% tags=["card"]
import torch

from minidiff import plot

image = torch.zeros(1, 3, 8, 8)
plot.grid(image)

# %%
lessons.animation([image, image + 1])
"""


def lesson(folder: Path, text: str = LESSON) -> Path:
    for name in ("notebooks", "figures"):
        (folder / name).mkdir(exist_ok=True)
    source = folder / "notebooks/07_small.py"
    source.write_text(text)
    return source


# --- executing -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One small lesson, executed and written: its source, and the notebook in its file."""
    source = lesson(tmp_path_factory.mktemp("lesson"))
    notebook, cost = build.execute(source, fast=True)
    build.write(source, notebook, cost)
    return source, nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def test_the_notebook_is_the_source_with_outputs(made):
    source, notebook = made
    assert list(build.form_faults(source, notebook)) == []
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == [1, 2, 3]
    assert "lesson 07" in codes[0].outputs[0].text and "fast mode" in codes[0].outputs[0].text
    kinds = [kind for cell in notebook.cells for kind, _ in build.pictures(cell)]
    assert kinds == ["picture", "animation"]
    assert source.parents[1].joinpath("figures/lesson_07.png").stat().st_size > 100


def test_the_file_holds_nothing_that_changes_by_itself(made):
    source, notebook = made
    assert notebook.metadata == build.read(source).metadata
    assert [cell.id for cell in notebook.cells] == ["07-00", "07-01", "07-02", "07-03"]
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert "image/jpeg" not in source.with_suffix(".ipynb").read_text()


def test_the_card_holds_what_it_cost(made):
    source, notebook = made
    values = build.measure(source, notebook, 1234)
    assert 0 < values["minutes"] < 5 and 0.1 < values["GB"] < 6 and values["kB"] == 2
    assert values["lines"] == 15 and values["longest"] == 10 and values["words"] == 16


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("1 / 0", "cell 2 (`1 / 0`): ZeroDivisionError"),
        ("import warnings\nwarnings.warn('so')", "writes to stderr"),
        ("print('/home/someone/x.py')", "prints a path of this machine: /home/someone/x.py"),
    ],
)
def test_a_faulty_cell_is_named(tmp_path, cell, words):
    text = LESSON.split("# %% tags")[0] + f"# %%\n{cell}\n"
    with pytest.raises(build.Fault) as fault:
        build.execute(lesson(tmp_path, text), fast=True)
    assert words in str(fault.value) and "07_small.py" in str(fault.value)


# --- checking ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("image + 1", "image + 0.5", "differs from 07_small.py"),
        ("# # 07 Small", "# # 07 Tiny", "differs from 07_small.py"),
        ("lessons.setup(7)", "lessons.setup(8)", "first code cell"),
        ("<!-- card -->", "", "card's markers"),
        ("[Open in Colab](", "![Open in Colab](", "is not shown offline"),
        ("07_small.ipynb", "06_small.ipynb", "link to Colab"),
        ("# %%\nlessons.animation", "lessons.animation", "its cells are not those"),
    ],
)
def test_the_check_sees_each_fault_of_form(made, tmp_path, old, new, words):
    _, notebook = made
    assert old in LESSON
    faults = list(build.form_faults(lesson(tmp_path, LESSON.replace(old, new)), notebook))
    assert any(words in fault for fault in faults), faults


def test_the_check_fails_outside_the_limits(made, capsys):
    source, _ = made
    faults = build.report([source])
    assert any(fault.startswith("07_small: cells 4, expected 35 to 50") for fault in faults)
    assert "4!" in capsys.readouterr().out
    assert "there is no 08_gone.ipynb" in build.report([source.with_name("08_gone.py")])[0]


@pytest.mark.parametrize(
    ("markdown", "count"),
    [
        ("Three small words", 3),
        ("the level's `alpha_bar` is\n\n$$x_t = \\alpha x_0$$\n\nhere", 5),
        ("[one two](https://a.b/c) ![no](x.png) <summary>three</summary>", 3),
        ("```python\nno words here\n```\n<!-- nor here -->", 0),
    ],
)
def test_words_are_those_of_prose(markdown, count):
    assert build.words(markdown) == count


def test_unknown_lessons_are_refused(capsys):
    assert build.main(["check", "77"]) == 1
    assert "there is no lesson 77" in capsys.readouterr().err


@pytest.mark.parametrize("source", WRITTEN, ids=lambda path: path.stem)
def test_what_is_committed_is_what_runs(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert list(build.form_faults(source, notebook)) == []


# --- the first cell, in Colab and in a clone -----------------------------------------------------

PROBE = """
import torch, minidiff
print("torch", torch.__version__, torch.__file__)
print("minidiff", minidiff.__file__)
"""


@pytest.fixture
def bare(tmp_path):
    """A Python that has torch and pip but no minidiff, and where nothing can be downloaded."""
    venv.create(tmp_path / "env", symlinks=True)
    (there,) = (tmp_path / "env").glob("lib/python*/site-packages")
    packages = Path(importlib.util.find_spec("torch").origin).parents[1]
    (there / "base.pth").write_text(f"{packages}\n")  # packages, but not the .pth of minidiff
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "OMP_NUM_THREADS": "1"}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(code: str, folder: Path) -> str:
        folder.mkdir(exist_ok=True)
        (folder / "cell.py").write_text(code)
        # the folder of a notebook is on its path as "", not as the script's own
        command = [tmp_path / "env/bin/python", "-c", "exec(open('cell.py').read())"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def repository(folder: Path) -> Path:
    """A git repository of what this checkout holds, without the large files."""
    folder.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "minidiff", folder / "minidiff", ignore=ignored)
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data/shapes.md", folder / "data")
    (folder / "notebooks").mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], cwd=folder, check=True, capture_output=True)
    return folder


def test_colab_installs_beside_the_torch_that_is_there(tmp_path, bare):
    import torch

    made = repository(tmp_path / "repository")
    cell = build.SETUP.replace("NUMBER", "4").replace(build.ADDRESS, f"file://localhost{made}")
    assert f"git+file://localhost{made}" in cell
    told = bare(cell + PROBE, tmp_path / "content")  # one process: no restart
    assert "lesson 04" in told
    assert f"torch {torch.__version__} {torch.__file__}\n" in told
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    assert f"minidiff {site}/minidiff/__init__.py" in told
    assert (site / "minidiff/checkpoints/shapes.md").exists()
    assert not list(site.glob("torch*"))  # nothing but minidiff came


def test_a_clone_uses_its_own_minidiff(tmp_path, bare):
    clone = repository(tmp_path / "clone")
    told = bare(build.SETUP.replace("NUMBER", "4") + PROBE, clone / "notebooks")
    assert "lesson 04" in told
    assert (clone / "minidiff/__init__.py").samefile(told.split("minidiff ")[-1].strip())
