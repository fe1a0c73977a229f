"""Small models of random weights, and parts of a model that minidiff does not know."""

from dataclasses import dataclass

import torch
from torch import nn

from minidiff.condition import Condition
from minidiff.diffusion import Diffusion
from minidiff.schedule import NoiseSchedule
from minidiff.text import ClassLabels, TextConfig, TextEncoder
from minidiff.unet import UNet, UNetConfig

SMALL = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "groups": 8, "dropout": 0.0}
WORDS = ("a", "red", "blue", "circle", "square")


def randomised(module):
    """No zero initialisation: every weight matters."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return module.eval().requires_grad_(False)


def make(kind: str) -> Diffusion:
    """A model of captions ("text"), of cats and dogs ("classes"), or without prompts ("plain")."""
    torch.manual_seed(0)
    encoder, options = None, {}
    if kind == "text":
        encoder = randomised(TextEncoder(TextConfig(words=WORDS, length=6, width=16)))
        options = {"context_dim": 16, "cross_attention": (0, 1)}
    if kind == "classes":
        encoder, options = ClassLabels(("cat", "dog")), {"classes": 2}
    network = randomised(UNet(UNetConfig(**SMALL, **options)))
    card = {"data": "none"}
    return Diffusion(network, NoiseSchedule.cosine(), "v", (3, 8, 8), encoder, card=card)


def apart(x, y):
    """The largest difference of each image."""
    return (x - y).abs().amax((1, 2, 3))


ROUNDING = 0.1  # of samples: bfloat16, where it is fast, sums in another order


# --- parts of your own ----------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnConfig:
    width: int = 8


class OwnNetwork(nn.Module):
    """A small network that knows only the image, the time and a vector."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.first = nn.Conv2d(3, config.width, 3, padding=1)
        self.last = nn.Conv2d(config.width, 3, 3, padding=1)
        self.register_buffer("calls", torch.tensor(2**24 + 1))  # a whole number stays one

    def forward(self, x, t, condition=None, *, tap=None):
        h = torch.tanh(self.first(x) + (t.float() / 1000)[:, None, None, None])
        h = h if condition is None else h + condition.vector.mean(1)[:, None, None, None]
        return self.last(h if tap is None else tap("middle", h)).to(x.dtype)


class OwnEncoder(nn.Module):
    """Prompts are moods, encoded as vectors."""

    takes = "moods"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.table = nn.Embedding(3, config.width)

    def tokenize(self, prompts):
        moods = {"calm": 0, "wild": 1, "": 2, None: 2}
        if unknown := [p for p in prompts if p not in moods]:
            raise ValueError(f"unknown mood {unknown[0]!r}: expected calm or wild")
        return torch.tensor([moods[p] for p in prompts])

    def forward(self, ids):
        return Condition(vector=self.table(ids))


class OwnDecoder(nn.Module):
    """Images are latents at twice the size, brighter by a learnt number."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.gain = nn.Parameter(torch.tensor(0.5))

    def encode(self, images):
        return nn.functional.avg_pool2d(images / self.gain, 2)

    def decode(self, latents):
        return self.gain * latents.repeat_interleave(2, 2).repeat_interleave(2, 3)


OWN = {
    name: lambda config, kind=kind: kind(OwnConfig(**config))
    for name, kind in {
        "OwnNetwork": OwnNetwork,
        "OwnEncoder": OwnEncoder,
        "OwnDecoder": OwnDecoder,
    }.items()
}


def make_own():
    """A latent model of these parts, on a flow schedule."""
    torch.manual_seed(0)
    network, encoder, decoder = (
        kind(OwnConfig(6)) for kind in (OwnNetwork, OwnEncoder, OwnDecoder)
    )
    for part in (network, encoder):
        part.requires_grad_(False)
    return Diffusion(
        network.eval(), NoiseSchedule.flow(), "flow", (3, 4, 4), encoder.eval(), decoder.eval()
    )


class Constant(nn.Module):
    """Predicts one number everywhere; it has no `config`, so it cannot be saved."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value), requires_grad=False)

    def forward(self, x, t, condition=None):
        return self.value.expand_as(x)
