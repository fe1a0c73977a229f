"""Checkpoints: whole or not at all, and nothing foreign is loaded."""

import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from minidiff import checkpoint


def test_what_is_saved_comes_back(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "strided": torch.randn(4, 4).T}
    checkpoint.save(tmp_path / "new" / "x.safetensors", tensors, {"kind": "test", "n": [1, 2]})
    loaded, about = checkpoint.load(tmp_path / "new" / "x.safetensors")
    assert all(torch.equal(loaded[k], tensors[k]) for k in tensors) and len(loaded) == 3
    assert (
        about == {"kind": "test", "n": [1, 2]} == checkpoint.about(tmp_path / "new/x.safetensors")
    )


def test_truncated_foreign_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        checkpoint.load(path)
    checkpoint.save(path, {"a": torch.randn(100)}, {})
    whole = path.read_bytes()
    for cut in (0, 7, 50, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            checkpoint.load(path)
    save_file({"a": torch.randn(2)}, path)
    with pytest.raises(ValueError, match="not written by minidiff"):
        checkpoint.load(path)
    for broken in ("{oops", "7"):
        save_file({"a": torch.randn(2)}, path, metadata={checkpoint.KEY: broken})
        with pytest.raises(ValueError, match="the description in .* is damaged"):
            checkpoint.load(path)
    torch.save({"a": torch.randn(2)}, path)  # a pickle is never opened
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoint.load(path)


def test_a_full_disk_loses_nothing(tmp_path):
    """The process may write no file above 64 kB: the large save fails, the earlier file stays."""
    code = f"""
import resource, signal, torch
from minidiff import checkpoint
path = {str(tmp_path / "x.safetensors")!r}
checkpoint.save(path, {{"a": torch.ones(10)}}, {{}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    checkpoint.save(path, {{"a": torch.ones(100_000)}}, {{}})
except OSError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "could not save" in told.stdout and "intact" in told.stdout
    assert torch.equal(checkpoint.load(tmp_path / "x.safetensors")[0]["a"], torch.ones(10))
    assert [f.name for f in tmp_path.iterdir()] == ["x.safetensors"]  # no half-written file
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 65536  # this process is not limited


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="could not save"):
        checkpoint.save(tmp_path / "file" / "x.safetensors", {"a": torch.ones(1)}, {})


def test_fill_names_what_differs():
    layer = nn.Linear(2, 3)
    good = {k: torch.zeros_like(v) for k, v in layer.state_dict().items()}
    checkpoint.fill(layer, good, "x")
    assert not layer.weight.any()
    for bad in (
        {"weight": good["weight"]},
        good | {"extra": torch.zeros(1)},
        good | {"weight": torch.zeros(3, 3)},
    ):
        with pytest.raises(ValueError, match="x does not fit"):
            checkpoint.fill(layer, bad, "x")
