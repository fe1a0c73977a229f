"""The example that the README leads to runs as it is, and is as short as it says."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

import minidiff

EXAMPLE = Path(__file__).parents[1] / "examples" / "train.py"


def test_the_example_trains_saves_and_samples(tmp_path):
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    environment = os.environ | {"STEPS": "2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "step     0  loss" in done.stdout
    model = minidiff.load(tmp_path / "runs" / "example", "cpu")
    assert model.encoder.names[0] == "circle" and model.shape == (3, 32, 32)
    with Image.open(tmp_path / "runs" / "example" / "samples.png") as sheet:
        assert sheet.width > 300
