"""The choices that depend on hardware."""

import subprocess
import sys

import pytest
import torch

from minidiff import device

CPU = torch.device("cpu")


@pytest.mark.parametrize("cuda", [False, True])
def test_the_best_device(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.best_device() == (torch.device("cuda", 1) if cuda else CPU)


@pytest.fixture
def fresh_choice():
    device.has_fast_bfloat16.cache_clear()
    yield
    device.has_fast_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("flags : fpu avx512f avx512_bf16", True),
        ("flags : amx_bf16", True),
        ("flags : avx2", False),
    ],
)
def test_bfloat16_where_the_processor_has_it(flags, fast, tmp_path, monkeypatch, fresh_choice):
    (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr("builtins.open", lambda *_, f=open: f(tmp_path / "cpuinfo"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert device.has_fast_bfloat16(CPU) == fast
    with device.autocast(CPU):
        assert torch.is_autocast_enabled("cpu") == fast
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if fast else torch.float32)


def test_no_bfloat16_where_nothing_is_known(monkeypatch, fresh_choice):
    def missing(*_):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert not device.has_fast_bfloat16(CPU)
    assert not device.has_fast_bfloat16(torch.device("mps"))


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_on_gpus_from_ampere_on(capability, fast, monkeypatch, fresh_choice):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device.has_fast_bfloat16(torch.device("cuda", 0)) == fast


def test_a_network_is_placed():
    network = torch.nn.Conv2d(4, 4, 3)
    assert device.place(network, CPU) is network
    assert network.weight.is_contiguous()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_memory_is_kept():
    """Freed buffers of 64 MB are faulted in anew each time, unless memory is kept."""
    code = """if True:
        import resource, sys, torch
        from minidiff.device import keep_memory
        if sys.argv[1] == "keep":
            keep_memory()
        torch.set_num_threads(1)
        for _ in range(5):
            torch.ones(2**24)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(2**24)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    faults = {
        choice: int(subprocess.check_output([sys.executable, "-c", code, choice]))
        for choice in ("keep", "default")
    }
    if faults["default"] < 100:
        pytest.skip("this system keeps freed memory by itself")
    # a small object may split a freed buffer now and then, and the next one is faulted in anew
    assert faults["keep"] < 0.3 * faults["default"]


def test_networks_are_compiled_on_gpus_that_triton_knows(monkeypatch):
    called, capability = [], (6, 1)
    network = torch.nn.Linear(1, 1)
    monkeypatch.setattr(network, "compile", lambda dynamic: called.append(dynamic), raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device.compile_on_gpu(network, torch.device("cpu"))
    assert not called
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    device.compile_on_gpu(network, torch.device("cuda"))
    assert not called
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: name)
    device.compile_on_gpu(network, torch.device("cuda"))
    assert not called
    capability = (7, 5)
    device.compile_on_gpu(network, torch.device("cuda"))
    assert called == [False]
