"""Seeded noise: image i of a seed does not depend on the batch it is in."""

import pytest
import torch
from torch import Generator

from minidiff.noise import per_image, randn


def seeded(seed=7):
    return Generator().manual_seed(seed)


def test_an_image_has_the_same_noise_alone_and_in_a_batch_of_16():
    many = randn((16, 3, 8, 8), per_image(seeded(), 16))
    alone = randn((1, 3, 8, 8), per_image(seeded(), 1))
    assert torch.equal(many[:1], alone)
    assert len({image.sum().item() for image in many}) == 16  # and no two images share theirs
    # Mutant: one generator for the whole batch, second draw.
    together, single = seeded(), seeded()
    randn((16, 3, 8, 8), together), randn((1, 3, 8, 8), single)
    assert not torch.equal(randn((16, 3, 8, 8), together)[:1], randn((1, 3, 8, 8), single))


def test_consecutive_draws_of_one_seed_differ():
    generator = seeded()
    first, second = per_image(generator, 2), per_image(generator, 2)
    assert not torch.equal(randn((2, 3, 4, 4), first), randn((2, 3, 4, 4), second))


def test_a_list_of_generators_is_taken_as_it_is_and_none_stays_none():
    generators = [seeded(1), seeded(2)]
    assert per_image(generators, 2) is generators
    assert per_image(None, 2) is None
    expected = torch.stack([torch.randn(3, 4, 4, generator=seeded(s)) for s in (1, 2)])
    assert torch.equal(randn((2, 3, 4, 4), generators), expected)


def test_noise_is_standard_normal_with_the_dtype_of_like():
    noise = randn((64, 3, 16, 16), per_image(seeded(), 64), like=torch.zeros(1).double())
    assert noise.dtype == torch.float64
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    neighbours = noise.flatten(1)
    correlation = (neighbours[1:] * neighbours[:-1]).mean()
    assert abs(correlation) < 0.02  # neighbouring seeds are independent


@pytest.mark.parametrize("draw", [per_image, lambda g, n: randn((n, 3, 2, 2), g)])
def test_a_wrong_number_of_generators_is_refused(draw):
    with pytest.raises(ValueError, match="2 generators for 3 images: expected one an image"):
        draw([seeded(1), seeded(2)], 3)


def test_a_seed_is_no_generator():
    with pytest.raises(ValueError, match=r"generator is 3: expected a torch.Generator.*seed"):
        per_image(3, 2)
