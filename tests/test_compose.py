"""Systems that the core did not know of, each written here without a change of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, nn

from minidiff import Condition, Diffusion, NoiseSchedule, UNet, UNetConfig, denoising_loss, load
from minidiff.samplers import ddim_step, heun_step, trajectory
from minidiff.training import Batches, Run, TrainConfig, TrainingSet, fit
from minidiff.training.loop import Objective

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = TrainConfig(
    images=12_800, batch=64, warmup=640, learning_rate=3e-3, ema=0.98, mixed_precision=False
)
SMALL = UNetConfig(channels=16, multipliers=(1, 2), blocks=1, groups=8, dropout=0.0)


def quarters(n: int, seed: int = 0) -> torch.Tensor:
    """Pictures (n,3,8,8) uint8 of four flat quarters, each of any colour."""
    colours = torch.randint(30, 226, (n, 3, 2, 2), generator=Generator().manual_seed(seed))
    return F.interpolate(colours.float(), scale_factor=4).byte()


def blurred(images: torch.Tensor) -> torch.Tensor:
    """What super-resolution is given: half the size, enlarged again without detail."""
    return F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return (10 * torch.log10(4 / (a - b).square().mean())).item()


def test_super_resolution_is_a_condition_made_of_the_batch(tmp_path):
    """SR3: the low resolution is made after augmentation and concatenated to the noisy image."""
    torch.manual_seed(0)
    network = UNet(UNetConfig(**{**vars(SMALL), "in_channels": 6}))
    model = Diffusion(network, NoiseSchedule.flow(), "flow", (3, 8, 8))
    plain = Batches(TrainingSet(quarters(2000)), CONFIG.batch, 1000, mirror=True)

    def batches(step):
        batch = plain(step)
        return batch | {"image": blurred(batch["x0"])}

    fit(run := Run(Objective(model), batches, CONFIG, tmp_path), progress=False)
    trained = run.average.model
    wanted = quarters(64, seed=1).float() / 127.5 - 1
    low = blurred(wanted)
    drawn = trained.sample(Condition(image=low), steps=20)
    exchanged = trained.sample(Condition(image=low.roll(1, 0)), steps=20)  # Control
    assert psnr(drawn, wanted) > psnr(low, wanted) + 2  # sharper than what it was given
    assert psnr(exchanged, wanted) < psnr(low, wanted) - 5
    trained.save(tmp_path / "sr.safetensors")
    again = load(tmp_path / "sr.safetensors", "cpu")
    assert psnr(again.sample(Condition(image=low), steps=20), drawn) > 30


class Flat(nn.Module):
    """A decoder of latents (B,3,2,2): each value is the colour of a quarter."""

    def encode(self, images):
        return F.avg_pool2d(images, 4)

    def decode(self, latents):
        return F.interpolate(latents, scale_factor=4)


@pytest.mark.slow
def test_a_latent_model_has_a_decoder(tmp_path):
    torch.manual_seed(0)
    network = UNet(UNetConfig(**{**vars(SMALL), "multipliers": (1,), "attention": (0,)}))
    decoder, schedule = Flat(), NoiseSchedule.flow()
    model = Diffusion(network, schedule, "flow", (3, 2, 2), decoder=decoder)
    plain = Batches(TrainingSet(quarters(2000)), CONFIG.batch, 1000)

    def batches(step):
        batch = plain(step)
        latents = decoder.encode(batch["x0"])
        return batch | {"x0": latents, "noise": torch.randn(latents.shape)}

    fit(run := Run(Objective(model), batches, CONFIG, tmp_path), progress=False)
    drawn = run.average.model.sample(n=200, steps=20, step=heun_step)
    assert drawn.shape == (200, 3, 8, 8)
    real = quarters(2000).float() / 127.5 - 1
    assert drawn.mean() == pytest.approx(real.mean().item(), abs=0.08)
    assert drawn.std() == pytest.approx(real.std().item(), rel=0.15)
    assert (drawn[..., :4, :4] == drawn[..., :1, :1]).all()


def test_gradients_flow_through_the_sampler():
    """DiffusionCLIP: fine-tune a network by a score of what it draws."""
    torch.manual_seed(0)
    network = UNet(SMALL)
    model = Diffusion(network, NoiseSchedule.cosine(), "v", (3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    for frame in trajectory(ddim_step, model.denoiser(), x, model.schedule.path(3)):
        x = frame.x
    x.mean().backward()
    assert network.head.weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_a_semantic_code_is_a_vector(tmp_path):
    """Diffusion Autoencoder: an encoder of images is trained with the network, by its code."""
    torch.manual_seed(0)
    network = UNet(UNetConfig(**{**vars(SMALL), "vector_dim": 12}))
    schedule = NoiseSchedule.cosine()

    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.encode = network, nn.Linear(3 * 8 * 8, 12)

        def about(self):
            return {}

        def forward(self, x0, t, noise):
            told = Condition(vector=self.encode(x0.flatten(1)))
            level = schedule.level(t)
            return denoising_loss(self.network, x0, level, noise, told, predicts="v")

    plain = Batches(TrainingSet(quarters(2000)), CONFIG.batch, 1000)
    run = Run(Autoencoder(), plain, CONFIG, tmp_path)
    fit(run, progress=False)
    images = quarters(64, seed=1).float() / 127.5 - 1
    code = run.average.encode(images.flatten(1)).detach()
    model = Diffusion(run.average.network, schedule, "v", (3, 8, 8))
    drawn = model.sample(Condition(vector=code), steps=20)
    other = model.sample(Condition(vector=code.roll(1, 0)), steps=20)  # Control
    assert psnr(drawn, images) > psnr(other, images) + 4
