"""Seeded noise: image i of a seed gets the same noise whatever the batch size and the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

Randomness = Generator | Sequence[Generator] | None


def per_image(generator: Randomness, n: int) -> Sequence[Generator] | None:
    """One generator for each of `n` images, all derived from a single draw of `generator`.

    Because generator i depends on the draw and on i alone, image i is the same alone or in a batch.
    A list is returned as it is (ValueError unless it holds `n`), and None, torch's own state, too.
    """
    if generator is None:
        return None
    if isinstance(generator, Generator):
        base = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        return [Generator(generator.device).manual_seed(base + i) for i in range(n)]
    if not isinstance(generator, Sequence):
        raise ValueError(
            f"generator is {generator!r}: expected a torch.Generator, one an image, or None; of a "
            "seed, torch.Generator().manual_seed(seed)"
        )
    if len(generator) != n:
        raise ValueError(f"{len(generator)} generators for {n} images: expected one an image")
    return generator


def randn(shape: Sequence[int], generator: Randomness = None, like: Tensor | None = None) -> Tensor:
    """Standard normal noise of `shape` (B, ...), with the dtype and on the device of `like`.

    A list of generators draws image by image. Noise is drawn where its generator lives, then moved,
    so a CPU generator gives the same image on every device.
    """
    device = like.device if like is not None else None
    dtype = like.dtype if like is not None else None
    if generator is None:
        return torch.randn(shape, device=device, dtype=dtype)
    if isinstance(generator, Generator):
        noise = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    else:
        rows = [
            torch.randn(shape[1:], generator=g, device=g.device, dtype=dtype)
            for g in per_image(generator, shape[0])
        ]
        noise = torch.stack(rows)
    return noise.to(device)
