"""Whole trajectories equal those of diffusers, in float32, for one network and the same noise."""

import warnings
from functools import partial

import pytest
import torch
from torch import Generator

from minidiff.denoiser import as_denoiser
from minidiff.noise import per_image, randn
from minidiff.samplers import ddim_step, ddpm_step, dpmpp_2m_step, invert, trajectory
from minidiff.schedule import NoiseSchedule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # those of diffusers and of what it imports
    diffusers = pytest.importorskip("diffusers")
    from diffusers import (
        DDIMInverseScheduler,
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
    )

LINEAR, COSINE = NoiseSchedule.linear(), NoiseSchedule.cosine()
SHAPE = (3, 3, 8, 8)
SETTINGS = [(steps, spacing) for steps in (10, 50) for spacing in ("trailing", "leading")]
each_setting = pytest.mark.parametrize("steps, spacing", SETTINGS)


@pytest.fixture
def network():
    """A fixed network, eps = sigma * x + alpha * v, with two convolutions that heed the time as v.

    That keeps the predicted images bounded, as a trained network does.
    """
    torch.manual_seed(0)
    first, last = torch.nn.Conv2d(4, 16, 3, padding=1), torch.nn.Conv2d(16, 3, 3, padding=1)

    @torch.no_grad()
    def network(x, t, condition=None):
        level = LINEAR.level(t + 1)
        time = (t.float() / 1000).reshape(-1, 1, 1, 1).expand(len(x), 1, 8, 8)
        v = torch.tanh(2 * last(torch.tanh(2 * first(torch.cat([x, time], 1)))))
        return level.sigma * x + level.alpha * v

    return network


def generators():
    return per_image(Generator().manual_seed(7), SHAPE[0])


def start():
    return randn(SHAPE, per_image(Generator().manual_seed(1), SHAPE[0]))


def theirs(scheduler, network, x, **options):
    """Every x of a run of a diffusers scheduler, and its last predicted x0 where it has one."""
    frames = []
    for t in scheduler.timesteps:
        out = scheduler.step(network(x, t.expand(len(x))), t, x, **options)
        x = out.prev_sample
        frames.append(x)
    return frames, getattr(out, "pred_original_sample", None)


def ours(step, network, x, path):
    denoise = as_denoiser(network)
    return [frame.x for frame in trajectory(step, denoise, x, path, generator=generators())]


def gap(a, b):
    """The largest difference over two trajectories of one length."""
    assert len(a) == len(b)
    r = max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))
    print("GAP", r, max(x.abs().max().item() for x in a))
    return r


def scheduled(kind, steps, spacing, table=LINEAR.alpha_bar[1:], **options):
    """A scheduler of diffusers, its table of alpha_bar in float64 as ours is (None: its own).

    In float32, 1 - alpha_bar and beta lose up to 3e-4 of themselves near the clean image.
    """
    scheduler = kind(timestep_spacing=spacing, **options)
    if table is not None:
        scheduler.alphas_cumprod = table
    scheduler.set_timesteps(steps)
    return scheduler


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule, other, name",
    [(LINEAR, COSINE, "linear"), (COSINE, LINEAR, "squaredcos_cap_v2")],
    ids=["linear", "cosine"],
)
def test_schedules_are_those_of_diffusers(schedule, other, name):
    alphas_cumprod = DDPMScheduler(beta_schedule=name).alphas_cumprod  # float32
    torch.testing.assert_close(schedule.alpha_bar[1:].float(), alphas_cumprod, rtol=2e-5, atol=1e-7)
    assert (other.alpha_bar[1:].float() - alphas_cumprod).abs().max() > 0.1


@each_setting
def test_paths_are_those_of_diffusers(steps, spacing):
    scheduler = scheduled(DDPMScheduler, steps, spacing)
    path = LINEAR.path(steps, spacing)
    assert [level.t - 1 for level in path[:-1]] == scheduler.timesteps.tolist()


# --- samplers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["small", "large"])
@each_setting
def test_ddpm(network, steps, spacing, variance):
    options = {"variance_type": f"fixed_{variance}", "clip_sample": False}
    scheduler = scheduled(DDPMScheduler, steps, spacing, **options)
    expected, x0 = theirs(scheduler, network, start(), generator=generators())
    step = partial(ddpm_step, variance=variance)
    found = ours(step, network, start(), LINEAR.path(steps, spacing))
    assert gap(found[:-1], expected[:-1]) < 1e-5
    if variance == "large" and spacing == "trailing":
        # diffusers leaves beta's noise on its last image unless the last network index is 0
        assert gap(found[-1:], expected[-1:]) > 0.1
        expected[-1] = x0
    assert gap(found[-1:], expected[-1:]) < 1e-5
    # Mutant: the other variance.
    mutant = partial(ddpm_step, variance={"small": "large", "large": "small"}[variance])
    assert gap(ours(mutant, network, start(), LINEAR.path(steps, spacing)), expected) > 0.01


@pytest.mark.parametrize("eta", [0.0, 1.0])
@each_setting
def test_ddim(network, steps, spacing, eta):
    scheduler = scheduled(DDIMScheduler, steps, spacing, clip_sample=False)
    expected, _ = theirs(scheduler, network, start(), eta=eta, generator=generators())
    path = LINEAR.path(steps, spacing)
    assert gap(ours(partial(ddim_step, eta=eta), network, start(), path), expected) < 1e-5
    # Mutant: another eta.
    assert gap(ours(partial(ddim_step, eta=0.5), network, start(), path), expected) > 0.01


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.parametrize("steps, spacing", [*SETTINGS, (10, "linspace"), (50, "linspace")])
def test_dpmpp_2m(network, steps, spacing):
    scheduler = scheduled(
        DPMSolverMultistepScheduler,
        steps,
        spacing,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
    )
    expected, _ = theirs(scheduler, network, start())
    # on leading and linspace this scheduler has lists of its own (of T // (S + 1), and of S + 1)
    path = LINEAR.path([*(scheduler.timesteps + 1).tolist(), 0])
    if spacing == "trailing":
        assert path == LINEAR.path(steps)
    assert gap(ours(dpmpp_2m_step, network, start(), path), expected) < 1e-5
    # Mutant: first order.
    assert gap(ours(ddim_step, network, start(), path), expected) > 1e-3


@each_setting
def test_inversion(network, steps, spacing):
    scheduler = scheduled(DDIMInverseScheduler, steps, spacing, clip_sample=False)
    path = LINEAR.path(steps, spacing)
    x0 = x = torch.rand(SHAPE, generator=Generator().manual_seed(2)) * 2 - 1
    reached = scheduler.timesteps.tolist()
    assert reached == [level.t - 1 for level in path[-2::-1]]
    for here, there in zip([0, *reached[:-1]], reached, strict=True):
        out = network(x, torch.full((len(x),), here))  # eps at the level that x is on
        x = scheduler.step(out, there, x).prev_sample
    assert gap([invert(as_denoiser(network), x0, path)], [x]) < 1e-5
    # Mutant: eps at the level that x moves to.
    mutant = x0
    for there in reached:
        out = network(mutant, torch.full((len(x),), there))
        mutant = scheduler.step(out, there, mutant).prev_sample
    assert gap([mutant], [x]) > 1e-3


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@each_setting
def test_the_float32_table_of_diffusers_is_the_same_but_for_rounding(network, steps, spacing, kind):
    step = {DDPMScheduler: ddpm_step, DDIMScheduler: ddim_step}[kind]
    scheduler = scheduled(kind, steps, spacing, table=None, clip_sample=False)
    expected, _ = theirs(scheduler, network, start(), generator=generators())
    assert gap(ours(step, network, start(), LINEAR.path(steps, spacing)), expected) < 3e-5


# --- linspace -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [10, 50])
def test_on_linspace_ours_follows_the_list_and_diffusers_does_not(network, steps):
    """DDIMScheduler visits the list but steps back by T // S each time, so x is off its level."""
    scheduler = scheduled(DDIMScheduler, steps, "linspace", clip_sample=False)
    expected, _ = theirs(scheduler, network, start())
    path = LINEAR.path(steps, "linspace")
    assert [level.t - 1 for level in path[:-1]] == scheduler.timesteps.tolist()
    found = ours(ddim_step, network, start(), path)
    assert gap(found, expected) > 0.01

    # Its result, from our step: `there` is the level T // S below, not the next of the list.
    x, frames = start(), []
    for here in path[:-1]:
        there = LINEAR.level(max(here.t - 1000 // steps, 0))
        x, _ = ddim_step(as_denoiser(network), x, here, there)
        frames.append(x)
    assert gap(frames, expected) < 1e-5

    # Ours along the list is what diffusers does where it takes the list: DDPM.
    ddpm = scheduled(DDPMScheduler, steps, "linspace", clip_sample=False)
    expected, _ = theirs(ddpm, network, start(), generator=generators())
    assert gap(ours(ddpm_step, network, start(), path), expected) < 1e-5
    assert gap(ours(partial(ddim_step, eta=1.0), network, start(), path), expected) < 1e-5
