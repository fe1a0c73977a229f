"""Training in several processes: the same numbers as in one, also after a worker was killed."""

import importlib
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist
from test_training import TINY, rows, same_state, script, tiny_run
from torchrun import torchrun

from minidiff import checkpoint
from minidiff.training import fit
from minidiff.training.processes import meet

pytestmark = pytest.mark.usefixtures("one_thread")


def several(processes: int, out: Path, *options: str, restarts: int = 0) -> list[str]:
    return torchrun(processes, *script(out, "--no-dropout", *options)[1:], restarts=restarts)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The folder of a run of two processes that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "two"
    subprocess.run(several(2, out), check=True, stdout=subprocess.DEVNULL)
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    subprocess.run(script(out, "--no-dropout"), check=True)
    return out


def assert_equal_runs(one: Path, several: Path) -> None:
    """Losses to 1e-5 and averaged weights to 1e-4: sums of gradients in another order."""
    a, b = ([float(r["loss"]) for r in rows(out)] for out in (one, several))
    assert len(a) == len(b) == 10
    assert a == pytest.approx(b, abs=1e-5)
    a, b = (checkpoint.load(out / "state.safetensors")[0] for out in (one, several))
    assert all((a[k] - b[k]).abs().max() < 1e-4 for k in a if k.startswith("average."))


def test_two_processes_equal_one(one, two):
    assert_equal_runs(one, two)


def test_four_processes_equal_one(one, tmp_path):
    subprocess.run(several(4, tmp_path), check=True, stdout=subprocess.DEVNULL)
    assert_equal_runs(one, tmp_path)


def test_gradients_that_are_not_shared_would_show(one, tmp_path):
    """Mutant: a process that learns from its half of each batch alone."""
    half = tiny_run(tmp_path, replace(TINY, dropout=0.0), batch=8, images=160, log_every=16)
    fit(half, progress=False)
    with pytest.raises(AssertionError):
        assert_equal_runs(one, tmp_path)


def test_each_start_has_names_of_its_own_in_the_common_store(monkeypatch):
    """The next test cannot tell: with luck, the addresses of the dead are overwritten in time."""
    common, stores = dist.HashStore(), []
    module = importlib.import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(module, "rendezvous", lambda url: iter([(common, 0, 2)]))
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, *, store, rank, world_size: stores.append(store)
    )
    for start in ("0", "1", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        meet("gloo")
    dead, again, fellow = stores
    dead.set("address", "of the dead")
    assert common.num_keys() == 1 and not again.check(["address"])
    again.set("address", "anew")
    assert fellow.get("address") == b"anew"


def test_a_killed_worker_is_restarted_from_the_last_checkpoint(two, tmp_path):
    command = several(2, tmp_path, "--slow", "--resume", restarts=1)
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log, victim = tmp_path / "log.csv", tmp_path / "1.pid"
    while not log.exists() or not any(int(row["images"]) >= 160 for row in rows(tmp_path)):
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.02)
    at, first = checkpoint.about(tmp_path / "state.safetensors")["step"], victim.read_text()
    assert 0 < at < 20
    os.kill(int(first), signal.SIGKILL)
    (tmp_path / "go").touch()
    _, errors = job.communicate(timeout=600)
    assert job.returncode == 0, errors
    assert victim.read_text() != first  # another process has finished its work
    assert same_state(two, tmp_path)  # bit for bit
