"""The set-up: pins and ranges, Makefile and hooks, the wheel, and which module may import which."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(name: str) -> list[Requirement]:
    """The packages one requirements file names itself."""
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r")]


def pins(python: str) -> dict[str, str]:
    """What is installed on one Python: name -> version; every pin exact, every name once."""
    found = {}
    for wanted in requirements("requirements.txt") + requirements("requirements-dev.txt"):
        if wanted.marker and not wanted.marker.evaluate({"python_version": python}):
            continue
        assert re.fullmatch(r"==[\d.]+", str(wanted.specifier)), f"{wanted} is not an exact pin"
        assert wanted.name not in found, f"{wanted.name} is pinned twice on Python {python}"
        found[wanted.name] = str(wanted.specifier)[2:]
    return found


# --- pins and ranges -----------------------------------------------------------------------------


def test_every_python_has_the_same_packages_pinned_exactly():
    names = {python: set(pins(python)) for python in PYTHONS}
    assert len(set(map(frozenset, names.values()))) == 1, names
    assert (ROOT / "requirements-dev.txt").read_text().startswith("-r requirements.txt\n")


@pytest.mark.parametrize("python", PYTHONS)
def test_the_ranges_admit_the_pins(python):
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["dev"], *extras["notebooks"]]
    for dependency in map(Requirement, wanted):
        assert dependency.specifier.contains(pins(python)[dependency.name]), dependency


def test_the_ranges_keep_an_installed_torch():
    ranges = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    assert all(ranges["torch"].contains(v) for v in ("2.6.0", "2.6.0+cu124", "2.9.1", "2.15.0"))
    assert not any(ranges["torch"].contains(v) for v in ("2.5.1", "2.16.0"))  # not tested there
    assert all(ranges["torchvision"].contains(v) for v in ("0.21.0", "0.24.1+cu126", "0.29.2"))
    assert not {"jupyter", "pytest", "diffusers"} & set(ranges)


def test_what_the_package_imports_is_a_dependency():
    declared = {Requirement(d).name for d in PROJECT["dependencies"]}
    for extra in PROJECT["optional-dependencies"].values():
        declared |= {Requirement(d).name for d in extra}
    providers = importlib.metadata.packages_distributions()
    for path in (ROOT / "minidiff").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for name in imported_names(node):
                top = name.split(".")[0]
                if top in sys.stdlib_module_names or top == "minidiff":
                    continue
                provided = {d.replace("_", "-").lower() for d in providers.get(top, [top])}
                assert provided & declared, f"{path.name} imports {top}: name it in pyproject.toml"


# --- imports run downward only -------------------------------------------------------------------

# Each module or folder and the siblings it stands on; what those stand on it may import too.
STANDS_ON = {
    "schedule": (),
    "condition": (),
    "noise": (),
    "device": (),
    "metrics": (),
    "files": (),
    "checkpoint": ("files",),
    "data": ("files",),
    "plot": ("files",),
    "denoiser": ("schedule", "condition"),
    "samplers": ("denoiser", "noise"),
    "guidance": ("denoiser",),
    "layers": ("device",),
    "unet": ("layers", "condition"),
    "text": ("layers", "condition"),
    # the encoder of noisy images, which CLIP guidance may use, knows noise levels
    "clip": ("layers", "checkpoint", "data", "denoiser"),
    "noisy_classifier": ("unet", "clip"),
    "editing": ("samplers", "guidance", "text"),
    "diffusers_format": ("unet", "schedule", "checkpoint", "files"),
    "diffusion": ("samplers", "guidance", "text", "checkpoint"),
    "zoo": ("diffusion", "unet", "diffusers_format"),
    "training": ("data", "denoiser", "noise", "device", "checkpoint"),
    "recipes": ("training", "zoo", "noisy_classifier", "clip", "data"),
    "evaluation": ("recipes", "editing", "metrics", "plot"),
    "scoring": ("evaluation",),
}
# These may import anything.
TOP = {"__init__", "__main__", "cli", "lessons"}


def imported_names(node: ast.AST) -> list[str]:
    """Absolute dotted names that one statement imports; a relative import counts from minidiff."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = ".".join(filter(None, ["minidiff" if node.level else None, node.module]))
        return [f"{module}.{alias.name}" for alias in node.names]
    return []


def below(module: str) -> set[str]:
    """All modules that ``module`` stands on, directly or not."""
    direct = STANDS_ON[module]
    return set(direct).union(*(below(name) for name in direct))


def upward_imports(module: str, source: str) -> set[str]:
    """Siblings that ``module`` imports, anywhere in the file, without standing on them."""
    names = [name for node in ast.walk(ast.parse(source)) for name in imported_names(node)]
    siblings = {name.split(".")[1] for name in names if name.startswith("minidiff.")}
    siblings |= {"__init__" for name in names if name == "minidiff"}
    return siblings - below(module) - {module}


def modules() -> list[tuple[str, Path]]:
    """(sibling name, file): files of a folder such as data/ count as the folder."""
    files = sorted((ROOT / "minidiff").rglob("*.py"))
    return [
        (path.relative_to(ROOT / "minidiff").parts[0].removesuffix(".py"), path) for path in files
    ]


def test_imports_run_downward_only():
    for module, path in modules():
        if module in TOP:
            continue
        assert module in STANDS_ON, f"{path.name} is new: say in STANDS_ON what it stands on"
        assert not upward_imports(module, path.read_text()), path


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("samplers", "from minidiff.schedule import NoiseLevel", set()),  # by way of denoiser
        ("data", "from minidiff.data.shapes import render", set()),
        ("schedule", "from minidiff.denoiser import Prediction", {"denoiser"}),
        ("schedule", "from minidiff import denoiser", {"denoiser"}),
        ("schedule", "def f():\n    from .denoiser import Prediction", {"denoiser"}),
        ("guidance", "import minidiff.clip.model", {"clip"}),
        ("plot", "import minidiff", {"__init__"}),
    ],
)
def test_the_import_rule_sees_each_way_to_import(module, source, wrong):
    assert upward_imports(module, source) == wrong


def too_long(path: Path) -> list[str]:
    """What is longer than the house rules allow: a file of 400 lines, a function of 60."""
    text = path.read_text(encoding="utf-8")
    long = [f"{path.name}: {n} lines"] if (n := len(text.splitlines())) > 400 else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
            long.append(f"{path.name}: {node.name}")
    return long


def test_files_and_functions_are_short(tmp_path):
    assert not [long for _, path in modules() for long in too_long(path)]
    (tmp_path / "long.py").write_text("def f():\n" + 60 * "    x = 1\n" + 340 * "\n")
    assert too_long(tmp_path / "long.py") == ["long.py: 401 lines", "long.py: f"]


def test_import_minidiff_is_light():
    heavy = {"torchvision", "matplotlib", "diffusers", "huggingface_hub"}
    script = "import minidiff, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "minidiff" in loaded
    assert not heavy & set(loaded)


# --- Makefile and hooks --------------------------------------------------------------------------


def dry_make(*arguments: str) -> str:
    """The commands that make would run."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS")}
    command = ["make", "-n", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_makefile_targets_run_what_they_say():
    python = ".venv/bin/python"
    assert f"{python} -m minidiff demo" in dry_make("demo")
    assert f"{python} -m pytest -q\n" in dry_make("test")
    assert f"{python} -m pytest -q -m slow" in dry_make("slow")
    assert f"{python} -m benchmarks.run" in dry_make("bench")
    assert "figures/*.py" in dry_make("figures")
    assert "requirements-dev.txt" not in dry_make("demo")
    assert ".venv" not in dry_make("clean").replace("-name .venv -prune", "")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_alone_lists_every_target():
    text = (ROOT / "Makefile").read_text().replace("\\\n", "")
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE).group(1).split()
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS")}
    shown = subprocess.run(["make"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert {"lint", "test", "demo", "bench", "figures", "slow", "clean", "help"} <= set(targets)
    assert all(f"make {target} " in shown.stdout for target in targets)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_lint_runs_every_hook():
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    lint = dry_make("lint").splitlines()
    assert len(hooks) == 3
    for hook in hooks:
        command = hook.removesuffix(" --force-exclude")
        assert any(line.startswith(command) for line in lint), command


def test_check_files_names_each_fault(tmp_path):
    good, endless, blank, large = (tmp_path / n for n in ("a.py", "b.py", "c.md", "d.bin"))
    good.write_text("x = 1\n")
    endless.write_text("x = 1")
    blank.write_text("x\n\n")
    large.touch()
    os.truncate(large, 20_000_001)
    check = [sys.executable, ROOT / ".ci/check_files.py"]
    assert subprocess.run([*check, good]).returncode == 0
    found = subprocess.run([*check, *tmp_path.iterdir()], capture_output=True, text=True)
    assert found.returncode == 1
    assert [name in found.stderr for name in ("a.py", "b.py", "c.md", "d.bin")] == [False] + [
        True
    ] * 3


# --- .ci/setup, with an interpreter that only writes down what it is asked -----------------------

FAKE_PYTHON = """#!/bin/sh
echo "$@" >> calls
case "$*" in
  *version_info*) exit {unsuitable} ;;
  *ensurepip*) exit {without_venv} ;;
  "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
esac
"""


def set_up(folder: Path, *, unsuitable: int = 0, without_venv: int = 0):
    """Run ``.ci/setup requirements.txt`` in ``folder``; returns the finished process."""
    (folder / ".ci").mkdir(exist_ok=True)
    shutil.copy(ROOT / ".ci/setup", folder / ".ci/setup")
    for name in ("requirements.txt", "pyproject.toml"):
        if not (folder / name).exists():
            shutil.copy(ROOT / name, folder / name)
    fake = folder / "fake-python"
    fake.write_text(FAKE_PYTHON.format(unsuitable=unsuitable, without_venv=without_venv))
    fake.chmod(0o755)
    return subprocess.run(
        [folder / ".ci/setup", "requirements.txt"],
        env={**os.environ, "PYTHON": str(fake)},
        capture_output=True,
        text=True,
    )


def installs(folder: Path) -> int:
    """How often pip was asked to install the list."""
    return (folder / "calls").read_text().count("-r requirements.txt")


def test_setup_installs_once_and_again_only_after_a_change(tmp_path):
    assert set_up(tmp_path).returncode == 0
    assert installs(tmp_path) == 1
    assert "--no-deps --editable ." in (tmp_path / "calls").read_text()
    assert set_up(tmp_path).stdout == ""
    assert installs(tmp_path) == 1
    with open(tmp_path / "requirements.txt", "a") as file:
        file.write("einops==0.8.1\n")
    assert set_up(tmp_path).returncode == 0
    assert installs(tmp_path) == 2
    shutil.copytree(tmp_path, moved := tmp_path / "moved")  # an editable install has its old place
    assert set_up(moved).returncode == 0
    assert installs(moved) == 3


def test_setup_makes_a_broken_environment_anew(tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(tmp_path / "gone")
    assert set_up(tmp_path).returncode == 0
    assert "-m venv --clear .venv" in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(
    ("lacking", "words"),
    [({"unsuitable": 1}, "Python 3.10 to 3.13"), ({"without_venv": 1}, "python3-venv")],
)
def test_setup_says_in_one_sentence_what_is_missing(tmp_path, lacking, words):
    done = set_up(tmp_path, **lacking)
    assert done.returncode == 1
    assert words in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / ".venv").exists()


# --- the wheel -----------------------------------------------------------------------------------


def test_the_wheel_holds_the_package_and_the_checkpoints(tmp_path):
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "minidiff", tmp_path / "minidiff", ignore=ignored)
    for name in ("data/a.safetensors", "data/a.md", "data/downloads/b.safetensors", "tests/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(build, cwd=tmp_path, capture_output=True, check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {path.relative_to(ROOT).as_posix() for _, path in modules()}
    assert held == package | {"minidiff/checkpoints/a.safetensors", "minidiff/checkpoints/a.md"}
