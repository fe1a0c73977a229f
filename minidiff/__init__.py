"""minidiff: image diffusion from scratch, small enough to read and fast enough to use.

Five nouns: a `NoiseLevel` on a `NoiseSchedule`, the `Prediction` (x0, eps) of a denoiser, the
`Condition` it is given, and a path, a plain list of levels. Three verbs: wrap a denoiser
(`minidiff.guidance`), step between two levels (`minidiff.samplers`), edit x at a level.
`load(name)` gives a trained model.
"""

from minidiff.condition import Condition
from minidiff.denoiser import Denoiser, Prediction, as_denoiser, denoising_loss
from minidiff.samplers import (
    Frame,
    ddim_step,
    ddpm_step,
    dpmpp_2m_step,
    heun_step,
    invert,
    sample,
    trajectory,
)
from minidiff.schedule import (
    NoiseLevel,
    NoiseSchedule,
    add_noise,
    jumps,
    renoise,
    transition,
)
from minidiff.unet import UNet, UNetConfig
from minidiff.zoo import Diffusion, from_diffusers, load, to_diffusers

__version__ = "0.1.0"

__all__ = [
    "Condition",
    "Denoiser",
    "Diffusion",
    "Frame",
    "NoiseLevel",
    "NoiseSchedule",
    "Prediction",
    "UNet",
    "UNetConfig",
    "add_noise",
    "as_denoiser",
    "ddim_step",
    "ddpm_step",
    "denoising_loss",
    "dpmpp_2m_step",
    "from_diffusers",
    "heun_step",
    "invert",
    "jumps",
    "load",
    "renoise",
    "sample",
    "to_diffusers",
    "trajectory",
    "transition",
]
