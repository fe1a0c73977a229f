"""The benchmarks that simulate, on cases worked out by hand; the one for GPUs, on any device."""

import json
import time
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks import gpu, run, scaling
from benchmarks.scaling import (
    BUCKET,
    FIRST_BUCKET,
    Gradient,
    Link,
    all_reduce,
    buckets,
    measured_gradients,
    step_time,
)

LINK = Link(bandwidth=1e9, latency=1e-5)


def test_buckets_hold_all_gradients_in_order():
    gradients = [Gradient(6 * 2**20, ready) for ready in (0.1, 0.2, 0.5, 0.6, 0.7, 0.8, 1.0)]
    filled = buckets(gradients)
    assert sum(b.bytes for b in filled) == sum(g.bytes for g in gradients)
    assert filled[0].bytes >= FIRST_BUCKET and filled[0].ready == 0.1
    assert filled[1].bytes >= BUCKET and filled[1].ready == 0.8
    assert filled[-1].ready == 1.0


def test_a_ring_sends_nearly_twice_the_bytes():
    free = Link(1e9, 0.0)
    assert all_reduce(10**9, 2, free) == pytest.approx(1.0)
    assert all_reduce(10**9, 64, free) == pytest.approx(2 * 63 / 64)
    assert all_reduce(0, 64, LINK) == pytest.approx(126 * LINK.latency)


def test_a_step_hides_what_it_can_and_no_more():
    early, late = [Gradient(10**6, 0.0)] * 3, [Gradient(10**6, 1.0)] * 3
    exchange = sum(all_reduce(b.bytes, 4, LINK) for b in buckets(early))
    assert step_time(1.0, early, 4, LINK) == 1.0  # ready early: hidden behind the backward pass
    assert step_time(1.0, late, 4, LINK) == pytest.approx(1.0 + exchange)  # nothing to hide behind
    assert step_time(1.0, late, 1, LINK) == 1.0
    times = [step_time(0.01, late, n, LINK) for n in (2, 4, 8, 16)]
    assert times == sorted(times) and times[0] > 0.01


def test_gradients_come_from_the_end_of_the_network_first(monkeypatch, one_thread):
    # by the time of this thread alone, which a busy machine does not lengthen
    monkeypatch.setattr(scaling, "time", SimpleNamespace(perf_counter=time.thread_time))
    config = run.NETWORKS["small"]
    gradients = measured_gradients(config, batch=2)
    assert len(gradients) == len(list(gpu.UNet(config).parameters()))
    ready = [g.ready for g in gradients]
    assert ready == sorted(ready) and 0 < ready[0] < 0.3 and 0.7 < ready[-1] <= 1


def test_check_tells_what_fell_below_its_record(monkeypatch, tmp_path):
    cases = [case for case in run.CASES if case.network == "small"]
    names = [f"{c.task}, small, batch {c.batch}, {kind}" for c in cases for kind in run.WORKERS]
    record = {"bfloat16": run.has_bfloat16(), "ratios": dict.fromkeys(names, 2.0)}
    (tmp_path / "results.json").write_text(json.dumps(record))
    speeds = {}  # of minidiff against diffusers, by task

    class Fake:
        def __init__(self, config):
            pass

        def rounds(self, task, batch, count):
            ours = 1 / speeds.get(task, 2.0)
            return {"diffusers": [1.0] * count, "plain": [0.5] * count, "minidiff": [ours] * count}

        def close(self):
            pass

    monkeypatch.setattr(run, "Workers", Fake)
    monkeypatch.setattr(run, "RECORD", tmp_path / "results.json")
    assert run.check() == []
    speeds["training_step"] = 1.6  # a fifth slower is noise
    assert run.check() == []
    speeds["training_step"] = 1.4
    assert len(run.check()) == 1 and "training_step" in run.check()[0]
    monkeypatch.setattr(run, "has_bfloat16", lambda: not record["bfloat16"])
    assert run.check() == []  # another kind of processor is no regression


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_any_device(tmp_path):
    result = CliRunner().invoke(gpu.main, ["--tiny", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert sum("training" in row["what"] for row in rows) >= 2 and all(r["value"] > 0 for r in rows)
