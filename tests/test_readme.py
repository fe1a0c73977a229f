"""The README is true: its Python runs, its files are there, its commands exist."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import minidiff
from minidiff import zoo
from minidiff.cli import main
from notebooks import readme

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    for target in targets:
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), f"README links to {target}, which is not there"


def test_the_tables_are_those_of_the_lessons_and_of_the_scorecard():
    """After a change: python -m notebooks.readme"""
    assert readme.fill(README) == README


def test_a_marker_that_lacks_is_named():
    with pytest.raises(ValueError, match="lacks the markers <!-- lessons -->"):
        readme.fill(README.replace("<!-- lessons -->", ""))


def test_the_scorecard_is_shortened(tmp_path):
    (tmp_path / "docs").mkdir()
    names = ["method", "effect", "its control", "stayed", "its control", "diversity"]
    names += ["its control", "calls", "s", "check"]
    cells = ["[SDEdit](#sdedit)", *map(str, range(1, 9)), "holds"]
    table = "\n".join("| " + " | ".join(row) + " |" for row in (names, ["---"] * 10, cells))
    (tmp_path / "docs/scorecard.md").write_text(f"# Scorecard\n\n{table}\n\nLeft out: none\n")
    *_, row = readme.scorecard(tmp_path).splitlines()
    assert row == "| [SDEdit](docs/scorecard.md#sdedit) | 1 | 2 | 3 | 4 | holds |"


def test_the_version_to_cite_is_this_one():
    assert f"version: {minidiff.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_commands_are_the_command_lines():
    for command, options in re.findall(
        r"minidiff ((?:edit |clip )?\w+)((?: .*)?)", re.findall(r"```\n(.*?)```", README, re.S)[1]
    ):
        told = CliRunner().invoke(main, [*command.split(), "--help"])
        assert told.exit_code == 0, f"README shows `minidiff {command}`"
        for option in re.findall(r"(--[a-z-]+)", options.split("#")[0]):
            assert option in told.output, f"README shows `minidiff {command} {option}`"


@pytest.mark.skipif("shapes" not in zoo.names(), reason="the shapes model is not there")
def test_the_library_example_runs(monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    code = "\n".join(line for line in code.splitlines() if "from_diffusers" not in line)
    code = (
        code.replace("n=16", "n=2").replace("randn(16,", "randn(2,").replace("path(200)", "path(5)")
    )
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 20
