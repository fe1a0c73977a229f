"""Layers that the networks share: each equals what it stands for."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff import layers
from minidiff.device import autocast, has_fast_bfloat16

CPU = torch.device("cpu")


# --- attention ------------------------------------------------------------------------------------


def qkv(n=12, m=5, d=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(6)
    shapes = [(2, 3, d, n), (2, 3, d, m), (2, 3, d, m)]
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def fused(q, k, v):
    q, k, v = (part.transpose(-2, -1) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(-2, -1)


def test_attention_equals_torchs_with_its_gradients():
    ours, theirs = qkv(), qkv()
    out, expected = layers.attention(*ours), fused(*theirs)
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
    assert (layers.attention(q, k, v) - expected).abs().max() < 1e-6
    for wrong in ((k, q, v), (q, k, k), (2 * q, k, v)):
        assert (layers.attention(*wrong) - expected).abs().max() > 1e-2


def test_attention_in_bfloat16_is_near():
    low = layers.attention(*qkv(dtype=torch.bfloat16))
    assert low.dtype == torch.bfloat16
    assert (low.float() - layers.attention(*qkv())).abs().max() < 0.05


def test_a_tap_sees_and_replaces_probabilities():
    q, k, v = qkv()
    seen = []

    def first(probs):
        seen.append(probs)
        return F.one_hot(torch.zeros(probs.shape[:-1], dtype=int), probs.shape[-1]).float()

    out = layers.attention(q, k, v, first)
    assert seen[0].shape == (2, 3, 12, 5)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(2, 3, 12))
    torch.testing.assert_close(out, v[..., :1].expand(2, 3, 8, 12))


def test_large_scores_do_not_overflow():
    q, k, v = qkv()
    assert layers.attention(1e3 * q, 1e3 * k, v).isfinite().all()


# --- convolutions, activation, normalisation ------------------------------------------------------


def enlarged(conv: nn.Module, x: Tensor) -> Tensor:
    """What UpsamplingConv stands for: pixels repeated, then the 3x3 convolution."""
    wide = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.conv2d(wide, conv.weight, conv.bias, padding=1)


def test_upsampling_equals_repeated_pixels_and_a_convolution():
    conv = layers.UpsamplingConv(5, 6).double()
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
    conv = layers.UpsamplingConv(5, 6).to("meta")
    assert conv(torch.empty(2, 5, 3, 4, device="meta")).shape == (2, 6, 6, 8)


@pytest.mark.skipif(not has_fast_bfloat16(CPU), reason="no bfloat16 instructions")
def test_a_copy_to_sample_from_sums_its_weights_once():
    conv = layers.UpsamplingConv(16, 16)
    fast, x = layers.for_sampling(conv, CPU), torch.randn(2, 16, 4, 4)
    assert conv.summed is None and fast.summed.dtype == torch.bfloat16
    with torch.no_grad(), autocast(CPU):
        off = (fast(x).float() - enlarged(conv, x).float()).std()
    assert off < 0.01 * enlarged(conv, x).std()  # bfloat16 has 8 bits
    with torch.no_grad():
        conv.weight.zero_()  # the copy has weights of its own
        assert fast.summed.any()


def test_silu_overwrites_only_where_no_gradient_is_wanted():
    x = torch.randn(3, 4)
    kept, expected = x.clone(), F.silu(x)
    assert torch.equal(layers.silu(x), expected) and torch.equal(x, kept)
    with torch.no_grad():
        out = layers.silu(x)
    assert torch.equal(out, expected) and out.data_ptr() == x.data_ptr()


def test_group_normalisation_is_torchs_in_every_layout():
    generator = torch.Generator().manual_seed(2)
    ours, theirs = layers.GroupNorm(4, 8), torch.nn.GroupNorm(4, 8)
    for size in (4, 32):  # below and above what torch's kernels tell apart
        x = torch.randn(2, 8, size, size, generator=generator)
        for layout in (torch.contiguous_format, torch.channels_last):
            torch.testing.assert_close(ours(x.contiguous(memory_format=layout)), theirs(x))


def test_sampling_uses_a_copy_in_half_the_bytes_where_that_is_fast(monkeypatch):
    network = torch.nn.Conv2d(3, 8, 3)
    monkeypatch.setattr(layers, "has_fast_bfloat16", lambda _: False)
    assert layers.for_sampling(network, CPU) is network
    monkeypatch.setattr(layers, "has_fast_bfloat16", lambda _: True)
    copy = layers.for_sampling(network, CPU)
    assert copy.weight.dtype == torch.bfloat16 and network.weight.dtype == torch.float32
    assert copy.weight.is_contiguous(memory_format=torch.channels_last)


# --- the time embedding ---------------------------------------------------------------------------


def waves_of(**options):
    """The sines and cosines alone (B, channels), for 8 channels and the time 30."""
    embedding = layers.TimeEmbedding(8, **options)
    embedding.linear1 = embedding.linear2 = nn.Identity()
    return embedding


def test_the_time_embedding_is_ddpms():
    angles = 30 * torch.tensor([1, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4])
    waves = torch.cat([angles.sin(), angles.cos()])
    assert torch.allclose(waves_of()(torch.tensor([30])), F.silu(waves)[None])
    cosine_first = torch.cat([angles.cos(), angles.sin()])
    found = waves_of(cosine_first=True)(torch.tensor([30]))
    assert torch.allclose(found, F.silu(cosine_first)[None])
    angles = 30 * torch.tensor([1, 10**-1, 10**-2, 10**-3])  # the last is not 1/10000
    found = waves_of(frequency_shift=0)(torch.tensor([30]))
    assert torch.allclose(found, F.silu(torch.cat([angles.sin(), angles.cos()]))[None])


def test_times_are_embedded_each_by_itself_and_may_be_fractions():
    embedding = layers.TimeEmbedding(8)
    t = torch.tensor([0.0, 30, 30.5, 31])
    together = embedding(t)
    assert together.shape == (4, 32)
    torch.testing.assert_close(together, torch.cat([embedding(one[None]) for one in t]))
    assert torch.equal(embedding(torch.tensor([30])), embedding(torch.tensor([30.0])))
    low, between, high = together[1:]
    assert 0 < (between - low).norm() < (high - low).norm()


def test_a_layer_of_zeros_gives_zero():
    layer = nn.Conv2d(3, 4, 1)
    assert layers.zeros(layer) is layer
    assert not layer(torch.randn(2, 3, 4, 4)).any()
