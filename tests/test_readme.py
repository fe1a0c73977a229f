"""The README is true: its Python runs, its files are there, its commands exist."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from minidiff import zoo
from minidiff.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), f"README links to {target}, which is not there"


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
