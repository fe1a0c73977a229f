"""Interpolation on the sphere of noises, and between images whose denoiser is exact."""

import math

import pytest
import torch
from exact import SCHEDULE, gaussian

from minidiff.editing.interpolation import interpolate, slerp
from minidiff.samplers import ddim_step, invert, sample

PATH = SCHEDULE.path(200)
WIDE = (4, 3, 32, 32)


def lerp(first, second, weight):
    """The mutant: along the straight line."""
    return (1 - weight) * first + weight * second


def lengths(z):
    """Of each image, as a share of the length that noise has."""
    return z.flatten(1).norm(dim=1) / math.sqrt(z[0].numel())


def test_slerp_ends_at_its_noises_bit_for_bit():
    a, b = torch.randn(WIDE), torch.randn(WIDE)
    assert torch.equal(slerp(a, b, 0), a) and torch.equal(slerp(a, b, 1), b)
    torch.testing.assert_close(slerp(a, b, 0.3), slerp(b, a, 0.7))


def test_halfway_slerp_is_as_long_as_noise_and_lerp_is_not():
    a, b = torch.randn(WIDE), torch.randn(WIDE)
    assert lengths(slerp(a, b, 0.5)).tolist() == pytest.approx([1.0] * 4, abs=0.03)
    # Mutant: the straight line is shorter by the square root of 2.
    assert lengths(lerp(a, b, 0.5)).tolist() == pytest.approx([0.707] * 4, abs=0.03)


def test_slerp_by_hand():
    a, b = torch.zeros(2, 1, 1, 2).double(), torch.zeros(2, 1, 1, 2).double()
    a[:, 0, 0, 0], b[0, 0, 0, 1] = 1, 1  # 90 degrees apart; the second pair is 60 apart
    b[1, 0, 0] = torch.tensor([math.cos(math.pi / 3), math.sin(math.pi / 3)])
    third = [[math.cos(angle), math.sin(angle)] for angle in (math.pi / 6, math.pi / 9)]
    torch.testing.assert_close(slerp(a, b, 1 / 3).flatten(1), torch.tensor(third).double())


class OnMps(torch.Tensor):
    """Refuses float64 until it is on the CPU, as Apple's GPUs do."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.Tensor.cpu:
            return out.as_subclass(torch.Tensor)
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
            raise TypeError("no float64 here")
        return out


def test_slerp_goes_where_there_is_no_float64():
    a, b = torch.randn(WIDE), torch.randn(WIDE)
    there = slerp(a.as_subclass(OnMps), b.as_subclass(OnMps), 0.3)
    assert torch.equal(there.as_subclass(torch.Tensor), slerp(a, b, 0.3))


def test_each_image_has_an_angle_of_its_own():
    a, b = torch.randn(WIDE), torch.randn(WIDE)
    b[0] = a[0]  # the same noise: nothing lies between
    together = slerp(a, b, 0.25)
    torch.testing.assert_close(together[0], a[0])
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], slerp(a[i : i + 1], b[i : i + 1], 0.25))
    # Mutant: one angle for the batch.
    flat = slerp(a.reshape(1, -1, 1, 1), b.reshape(1, -1, 1, 1), 0.25).reshape(WIDE)
    assert (flat - together).abs().max() > 0.01


def test_interpolation_goes_from_the_first_image_to_the_second():
    denoise = gaussian(0.5)
    first, second = 0.5 * torch.randn(WIDE).double(), 0.5 * torch.randn(WIDE).double()
    between = interpolate(denoise, first, second, PATH, [0, 0.5, 1])
    assert between.shape == (3, *WIDE)
    for image, end in ((first, between[0]), (second, between[2])):
        assert torch.equal(end, sample(ddim_step, denoise, invert(denoise, image, PATH), PATH))
        assert (end - image).abs().max() < 0.1
    # The image between is a draw of the data; lerp's, the mutant, has too little contrast.
    assert between[1].std().item() == pytest.approx(between[0].std().item(), rel=0.02)
    z = lerp(invert(denoise, first, PATH), invert(denoise, second, PATH), 0.5)
    assert sample(ddim_step, denoise, z, PATH).std() < 0.75 * between[1].std()


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match="expected 0 <= weight <= 1"):
        slerp(torch.randn(WIDE), torch.randn(WIDE), weight)


def test_pairs_that_have_nothing_between_them_are_refused():
    z = torch.randn(WIDE)
    with pytest.raises(ValueError, match="expected two of the same shape"):
        slerp(z, z[:1], 0.5)
    with pytest.raises(ValueError, match="expected two of the same shape"):
        interpolate(gaussian(1), z, z[:1], PATH, [0.5])
    for other in (-z, 0 * z):
        with pytest.raises(ValueError, match="opposite, or zero"):
            slerp(z, other, 0.5)
    with pytest.raises(ValueError, match="first image has four channels"):
        interpolate(gaussian(1), torch.zeros(1, 4, 8, 8), z, PATH, [0.5])
