"""The shipped models draw what they drew before: digests made by the code of version 0.1.0, before
the core was opened to general schedules.

Sums of floats depend on the processor and on torch. Where these are those of the record, on one
thread in float32, the samples are equal bit for bit; elsewhere their mean colours are.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Generator

from minidiff import zoo
from minidiff.guidance import classifier_free
from minidiff.noise import per_image
from minidiff.samplers import ddpm_step, dpmpp_2m_step, sample

STORED = json.loads((Path(__file__).parent / "stored" / "samples.json").read_text())
PROMPTS = {
    "shapes": "a red circle left of a blue square",
    "emoji": "red apple",
    "cifar10": "horse",
    "butterflies": None,
}
SAME = STORED["torch"].split("+")[0] == torch.__version__.split("+")[0]
SAME &= STORED["cpu"] == torch.backends.cpu.get_cpu_capability()

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(name: str, prompt: str | None) -> dict[str, torch.Tensor]:
    """Two images by each of three samplers, without autocast where the record had none."""
    model, drawn = zoo.load(name, "cpu"), {}
    scale = 1 if prompt is None else 3
    drawn["ddim"] = model.sample(prompt, 2, scale=scale, steps=8, seed=1)
    for sampler, step, seed, path in (
        ("dpmpp_2m", dpmpp_2m_step, 2, model.schedule.path(6, "log_snr")),
        ("ddpm", ddpm_step, 3, model.schedule.path(5)),
    ):
        own = per_image(Generator().manual_seed(seed), 2)
        x, denoise = model.noise(2, own), model.denoiser(prompt, scale)
        drawn[sampler] = sample(step, denoise, x, path, generator=own)
    return drawn


def colours(images: torch.Tensor) -> torch.Tensor:
    """The mean colours of the quarters of images (B,3,H,W)."""
    return torch.nn.functional.avg_pool2d(images.float(), images.shape[-1] // 2).flatten()


def digest(images: torch.Tensor) -> str:
    return hashlib.sha256(images.float().contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("name", PROMPTS)
def test_samples_are_those_of_before(name):
    for sampler, images in draw(name, PROMPTS[name]).items():
        stored, means = STORED["samples"][name][sampler]
        assert (colours(images) - torch.tensor(means)).abs().max() < (1e-3 if SAME else 0.1)
        if SAME and not model_is_cast():
            assert digest(images) == stored, f"{name}, {sampler}"


def model_is_cast() -> bool:
    from minidiff.device import has_fast_bfloat16

    return has_fast_bfloat16(torch.device("cpu"))


def test_levels_that_are_off_by_one_would_show():
    """Mutant: a path that is one level too low."""
    model, own = zoo.load("cifar10", "cpu"), per_image(Generator().manual_seed(3), 2)
    path = model.schedule.path([999, 799, 599, 399, 199, 0])
    denoise = classifier_free(model.denoiser("horse"), model.denoiser(), 3)
    images = sample(ddpm_step, denoise, model.noise(2, own), path, generator=own)
    assert digest(images) != STORED["samples"]["cifar10"]["ddpm"][0]
