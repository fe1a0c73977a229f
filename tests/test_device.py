"""The choices that depend on hardware."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff import device

CPU = torch.device("cpu")


def qkv(n=12, m=5, d=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(6)
    shapes = [(2, 3, d, n), (2, 3, d, m), (2, 3, d, m)]
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def fused(q, k, v):
    q, k, v = (part.transpose(-2, -1) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(-2, -1)


def test_attention_equals_torchs_with_its_gradients():
    ours, theirs = qkv(), qkv()
    out, expected = device.attention(*ours), fused(*theirs)
    assert out.shape == (2, 3, 8, 12)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    weight = torch.randn(out.shape)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def test_a_wrong_scale_or_swapped_inputs_are_seen():
    q, k, v = qkv(n=5)
    expected = fused(q, k, v)
    assert (device.attention(q, k, v) - expected).abs().max() < 1e-6
    for wrong in ((k, q, v), (q, k, k), (2 * q, k, v)):
        assert (device.attention(*wrong) - expected).abs().max() > 1e-2


def test_attention_in_bfloat16_is_near():
    low = device.attention(*qkv(dtype=torch.bfloat16))
    assert low.dtype == torch.bfloat16
    assert (low.float() - device.attention(*qkv())).abs().max() < 0.05


def test_a_tap_sees_and_replaces_probabilities():
    q, k, v = qkv()
    seen = []

    def first(probs):
        seen.append(probs)
        return F.one_hot(torch.zeros(probs.shape[:-1], dtype=int), probs.shape[-1]).float()

    out = device.attention(q, k, v, first)
    assert seen[0].shape == (2, 3, 12, 5)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(2, 3, 12))
    torch.testing.assert_close(out, v[..., :1].expand(2, 3, 8, 12))


def test_large_scores_do_not_overflow():
    q, k, v = qkv()
    assert device.attention(1e3 * q, 1e3 * k, v).isfinite().all()


def enlarged(conv: nn.Module, x: Tensor) -> Tensor:
    """What UpsamplingConv stands for: pixels repeated, then the 3x3 convolution."""
    wide = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.conv2d(wide, conv.weight, conv.bias, padding=1)


def test_upsampling_equals_repeated_pixels_and_a_convolution():
    conv = device.UpsamplingConv(5, 6).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    out, expected = conv(x), enlarged(conv, x)
    assert out.shape == (2, 6, 6, 8)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    wanted = (x, conv.weight, conv.bias)
    ours = torch.autograd.grad((out * weight).sum(), wanted)
    theirs = torch.autograd.grad((expected * weight).sum(), wanted)
    torch.testing.assert_close(ours, theirs)

    with torch.no_grad():  # a transposed convolution reads its weights from the other end
        mirrored = conv.sum_weights().flip(2, 3)
        wrong = F.conv_transpose2d(x, mirrored, conv.bias, stride=2, padding=1)
    assert (wrong - expected).abs().max() > 0.1


def test_upsampling_on_other_devices_is_what_it_stands_for():
    conv = device.UpsamplingConv(5, 6).to("meta")
    assert conv(torch.empty(2, 5, 3, 4, device="meta")).shape == (2, 6, 6, 8)


@pytest.mark.skipif(not device.has_fast_bfloat16(CPU), reason="no bfloat16 instructions")
def test_a_copy_to_sample_from_sums_its_weights_once():
    conv = device.UpsamplingConv(16, 16)
    fast, x = device.for_sampling(conv, CPU), torch.randn(2, 16, 4, 4)
    assert conv.summed is None and fast.summed.dtype == torch.bfloat16
    with torch.no_grad(), device.autocast(CPU):
        off = (fast(x).float() - enlarged(conv, x).float()).std()
    assert off < 0.01 * enlarged(conv, x).std()  # bfloat16 has 8 bits
    with torch.no_grad():
        conv.weight.zero_()  # the copy has weights of its own
        assert fast.summed.any()


def test_silu_overwrites_only_where_no_gradient_is_wanted():
    x = torch.randn(3, 4)
    kept, expected = x.clone(), F.silu(x)
    assert torch.equal(device.silu(x), expected) and torch.equal(x, kept)
    with torch.no_grad():
        out = device.silu(x)
    assert torch.equal(out, expected) and out.data_ptr() == x.data_ptr()


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
def test_group_normalisation_is_torchs_in_every_layout():
    generator = torch.Generator().manual_seed(2)
    ours, theirs = device.GroupNorm(4, 8), torch.nn.GroupNorm(4, 8)
    for size in (4, 32):  # below and above what torch's kernels tell apart
        x = torch.randn(2, 8, size, size, generator=generator)
        for layout in (torch.contiguous_format, torch.channels_last):
            torch.testing.assert_close(ours(x.contiguous(memory_format=layout)), theirs(x))


def test_sampling_uses_a_copy_in_half_the_bytes_where_that_is_fast(monkeypatch):
    network = torch.nn.Conv2d(3, 8, 3)
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda _: False)
    assert device.for_sampling(network, CPU) is network
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda _: True)
    copy = device.for_sampling(network, CPU)
    assert copy.weight.dtype == torch.bfloat16 and network.weight.dtype == torch.float32
    assert copy.weight.is_contiguous(memory_format=torch.channels_last)


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
