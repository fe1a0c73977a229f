"""A small CIFAR-10 classifier that grades generated images: class accuracy, Frechet features.

It judges and never guides: no network of this project is trained or steered with it, so what it
says of their samples is independent. Recipe after Keller Jordan, "94% on CIFAR-10 in 3.29 seconds
on a single GPU" (2024, arXiv:2404.00498): a frozen whitening convolution, six dirac-initialised
convolutions, alternating flips, Nesterov momentum on a triangular schedule, lookahead.

    python -m minidiff.evaluation.classifier --out data/cifar10_classifier.safetensors
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minidiff import checkpoint, metrics
from minidiff.data.images import ImageSet, cifar10, random_crop, to_float
from minidiff.device import autocast, keep_memory

MODULE = "minidiff.evaluation.classifier"
FAINT = 0.05  # standard deviation of the noise, in [-1, 1], that the card reports on


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes of the network: channels of the three groups, and the class names in label order."""

    widths: tuple[int, int, int]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """How to train. `lr` is the peak for a loss averaged over the batch."""

    epochs: int = 9
    batch: int = 256
    lr: float = 0.375
    momentum: float = 0.85
    weight_decay: float = 1.33e-3
    bias_scale: float = 64.0  # norm biases learn this much faster and decay this much less
    label_smoothing: float = 0.2
    shift: int = 2  # pixels, random translation with reflected borders
    seed: int = 0


# --- the network -------------------------------------------------------------------------------


class Classifier(nn.Module):
    """(B, 3, 32, 32) images in [-1, 1] -> (B, classes) logits, by way of (B, D) pooled features."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.whiten = nn.Conv2d(3, 24, 2)  # all 12 principal directions of 2x2 patches, both signs
        self.whiten.weight.requires_grad_(False)
        groups, width = [], 24
        for channels in config.widths:
            groups += [_conv(width, channels), nn.MaxPool2d(2), *_norm(channels)]
            groups += [_conv(channels, channels), *_norm(channels)]
            width = channels
        self.groups = nn.Sequential(nn.GELU(), *groups)
        self.head = nn.Linear(width, len(config.classes), bias=False)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) in [-1, 1] -> (B, D), D the last width: what the head sees.

        Raises ValueError for another shape or pixel range.
        """
        _check_images(images)
        x = self.whiten(images)  # (B, 24, 31, 31)
        return self.groups(x).amax((2, 3))  # 31 -> 15 -> 7 -> 3 -> (B, D)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) in [-1, 1] -> (B, classes) logits; the same errors as `features`."""
        return self.head(self.features(images)) / 9  # small logits at first: the head is unscaled


def _conv(width: int, channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(width, channels, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:width])  # the first filters copy their input: depth is free
    return conv


def _norm(channels: int) -> tuple[nn.Module, nn.Module]:
    norm = nn.BatchNorm2d(channels, momentum=0.4)  # short runs: statistics must follow quickly
    norm.weight.requires_grad_(False)  # scale is redundant between homogeneous layers
    return norm, nn.GELU()


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1:] != (3, 32, 32):
        raise ValueError(f"expected images of shape (B, 3, 32, 32), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"expected float images in [-1, 1], got {images.dtype}: use x / 127.5 - 1")
    if len(images) == 0:
        return
    low, high = torch.stack(images.detach().aminmax()).tolist()
    if not (low >= -1.001 and high <= 1.001):  # also catches NaN
        raise ValueError(
            f"expected pixels in [-1, 1], got [{low:.3g}, {high:.3g}]: clamp or rescale them first"
        )
    if len(images) >= 8 and low >= 0:
        raise ValueError(
            f"expected pixels in [-1, 1], got none below 0 in {len(images)} images: "
            "images in [0, 1] need 2 * x - 1"
        )


# --- training ----------------------------------------------------------------------------------


def train(data: ImageSet, widths: tuple[int, int, int], recipe: Recipe) -> Classifier:
    """Train from scratch on labelled 32x32 pictures with named classes, on the CPU.

    Returns the network in eval mode, in float32. Deterministic for a seed and a thread count.
    Raises ValueError for pictures without labels, of another size, or fewer than one batch.
    """
    images, labels = data.images, data.labels
    if labels is None or not data.classes:
        raise ValueError("expected pictures with labels and class names, got none")
    if images.shape[2:] != (32, 32) or len(images) < recipe.batch:
        raise ValueError(
            f"expected at least {recipe.batch} (one batch) pictures of 32x32, "
            f"got {len(images)} of {images.shape[3]}x{images.shape[2]}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = Classifier(ClassifierConfig(widths, data.classes))
    model = model.to(memory_format=torch.channels_last)  # max pooling is 3x faster so, on CPU
    _whiten(model.whiten, images)
    optimizer = _optimizer(model, recipe)
    total = recipe.epochs * (len(images) // recipe.batch)
    lookahead = Lookahead(model)
    bar = tqdm(_batches(images, labels, recipe), total=total, unit="step", mininterval=1)
    for step, (x, y) in enumerate(bar):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * triangle(step / total)
        with autocast(x.device):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 4 or step == total - 1:
            lookahead.pull(0.95**5 * ((step + 1) / total) ** 3)
        if step % 20 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f}")
    return model.eval()


def triangle(progress: float) -> float:
    """Learning rate as a fraction of its peak: 0.2 -> 1 over the first 23%, then down to 0.07."""
    if progress < 0.23:
        return 0.2 + 0.8 * progress / 0.23
    return 1 - 0.93 * (progress - 0.23) / 0.77


class Lookahead:
    """A slow copy of the network that the fast one is pulled back to (arXiv:1907.08610)."""

    def __init__(self, model: nn.Module):
        self.fast = [v for v in model.state_dict().values() if v.is_floating_point()]
        self.slow = [v.clone() for v in self.fast]

    def pull(self, decay: float) -> None:
        """slow <- decay * slow + (1 - decay) * fast, then fast <- slow."""
        for slow, fast in zip(self.slow, self.fast, strict=True):
            fast.copy_(slow.lerp_(fast, 1 - decay))


def _optimizer(model: Classifier, recipe: Recipe) -> torch.optim.Optimizer:
    biases = [p for n, p in model.groups.named_parameters() if n.endswith("bias")]
    others = [p for p in model.parameters() if p.requires_grad and all(p is not b for b in biases)]
    fast, decay = recipe.lr * recipe.bias_scale, recipe.weight_decay
    return torch.optim.SGD(
        [
            {"params": others, "peak": recipe.lr, "weight_decay": decay},
            {"params": biases, "peak": fast, "weight_decay": decay / recipe.bias_scale},
        ],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=True,
    )


@torch.no_grad()
def _whiten(conv: nn.Conv2d, images: Tensor) -> None:
    """Set `conv` to the principal directions of the data's 2x2 patches, each to unit variance."""
    patches = F.unfold(to_float(images[:5000]), 2)  # (N, 12, 961)
    patches = patches.transpose(1, 2).reshape(-1, 12)  # (N * 961, 12)
    variance, directions = torch.linalg.eigh(patches.T.cov())
    weight = (directions / (variance + 1e-4).sqrt()).T  # (12, 12), a row per direction
    bias = -weight @ patches.mean(0)
    conv.weight.copy_(torch.cat([weight, -weight]).view_as(conv.weight))
    conv.bias.copy_(torch.cat([bias, -bias]))


def _batches(images: Tensor, labels: Tensor, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches, shifted at random; an image is flipped in every second epoch."""
    generator = torch.Generator().manual_seed(recipe.seed)
    flipped = torch.rand(len(images), generator=generator) < 0.5
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order.split(recipe.batch):
            if len(chosen) < recipe.batch:
                break
            x = to_float(random_crop(images[chosen], recipe.shift, generator))
            flip = flipped[chosen] ^ bool(epoch % 2)
            x = torch.where(flip[:, None, None, None], x.flip(3), x)
            yield x.contiguous(memory_format=torch.channels_last), labels[chosen]


# --- grading, saving, loading ------------------------------------------------------------------


@torch.inference_mode()
def predict(model: Classifier, images: Tensor, batch: int = 500) -> Tensor:
    """uint8 images (N, 3, 32, 32) -> predicted labels (N,)."""
    return torch.cat([model(to_float(x)).argmax(1) for x in images.split(batch)])


def grade(model: Classifier, test: ImageSet) -> dict:
    """Accuracy over all, of each class, and under faint Gaussian noise, as shares in 0..1."""
    right = (predict(model, test.images) == test.labels).float()
    noise = torch.randn(test.images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (test.images + FAINT * 127.5 * noise).round().clamp(0, 255).byte()
    return {
        "test_images": len(test),
        "accuracy": right.mean().item(),
        "class_accuracy": [right[test.labels == c].mean().item() for c in range(len(test.classes))],
        "noisy_accuracy": (predict(model, noisy) == test.labels).float().mean().item(),
    }


def save_classifier(model: Classifier, path: str | os.PathLike, report: dict) -> None:
    """Write weights in half precision, with the configuration and `report` as JSON metadata.

    The file appears complete or not at all; OSError in one sentence when it cannot be written.
    """
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    about = {"kind": "classifier", "config": asdict(model.config), **report}
    checkpoint.save(Path(path), weights, about)


def load_classifier(path: str | os.PathLike | None = None) -> Classifier:
    """The shipped CIFAR-10 classifier, or the one at `path`: float32, eval mode, frozen.

    Its parameters need no gradients; its input may have them. Raises FileNotFoundError, or
    ValueError for a file that is damaged or holds something else.
    """
    path = shipped_path() if path is None else Path(path)
    weights, about = checkpoint.load(path)
    model = Classifier(_config(about, path))
    checkpoint.fill(model, weights, str(path))  # copies half precision into float32
    model.to(memory_format=torch.channels_last)  # 1.6x faster on CPU
    return model.eval().requires_grad_(False)


def shipped_path() -> Path:
    """Where the shipped weights are: in minidiff/checkpoints of a wheel, in data/ of a clone."""
    here = Path(__file__).parents[1]
    in_wheel = here / "checkpoints" / "cifar10_classifier.safetensors"
    return in_wheel if in_wheel.exists() else here.parent / "data" / in_wheel.name


def _config(about: dict, path: Path) -> ClassifierConfig:
    if about.get("kind") != "classifier":
        raise ValueError(
            f"{path} is not a classifier: expected a file of minidiff.evaluation.classifier"
        )
    return ClassifierConfig(**{name: tuple(value) for name, value in about["config"].items()})


# --- the command -------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m minidiff.evaluation.classifier", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", help="folder that holds cifar-10-batches-py [MINIDIFF_DATA]")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    args = parser.parse_args()
    if args.data:
        os.environ["MINIDIFF_DATA"] = args.data
    keep_memory()
    data, test = cifar10(train=True), cifar10(train=False)
    recipe = Recipe(epochs=args.epochs, seed=args.seed)
    start, cpu_start = time.perf_counter(), time.process_time()
    model = train(data, (64, 256, 256), recipe)
    report = {
        "recipe": asdict(recipe),
        "images_seen": recipe.epochs * (len(data) // recipe.batch) * recipe.batch,
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "cpu_minutes": round((time.process_time() - cpu_start) / 60, 1),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    report |= grade(model.half().float(), test)  # as the weights are saved
    save_classifier(model, args.out, report)
    args.out.with_suffix(".md").write_text(card(args.out))
    print(f"test accuracy {report['accuracy']:.2%}: wrote {args.out} and its card")


def card(path: Path) -> str:
    """The Markdown card of a classifier file, from its metadata alone."""
    report = checkpoint.about(path)
    config, recipe = _config(report, path), report["recipe"]
    command = "python -m minidiff.evaluation.classifier --epochs {epochs} --seed {seed}".format(
        **recipe
    )
    n = report["test_images"]
    low, high = metrics.wilson(round(report["accuracy"] * n), n)
    rows = "\n".join(
        f"| {name} | {accuracy:.1%} |"
        for name, accuracy in zip(config.classes, report["class_accuracy"], strict=True)
    )
    return f"""# {path.stem}

A small classifier of 32x32 pictures that grades generated images: class accuracy through its
logits, Frechet and kernel distances through its {config.widths[-1]} pooled features.

- **Use**: `minidiff.evaluation.classifier.load_classifier()`; images (B, 3, 32, 32) in [-1, 1].
- **Data**: the 50,000 training images of CIFAR-10 (Krizhevsky, 2009; collected from the web for
  research, published without a licence). The 10,000 test images graded it after training; 2,000 of
  them had decided between two batch sizes in short trials.
- **Command**: `{command} --out data/{path.name}`
- **Training**: {report["images_seen"]:,} images seen ({recipe["epochs"]} epochs), bfloat16
  autocast where the processor has it, on {report["threads"]} of {report["cores"]} CPU cores:
  {report["cpu_minutes"]} minutes of processor time within {report["minutes"]} minutes by the clock.
  The rest of the recipe is in the file's metadata.
- **Weights**: half precision, {path.stat().st_size / 1e6:.1f} MB, from scratch.

## Test accuracy

**{report["accuracy"]:.2%}** of {n:,} test images, one look at each (95% Wilson
interval {low:.1%} to {high:.1%}), with the weights as they are in the file.

| class | accuracy |
|---|---|
{rows}

## Limits

For evaluation only. It was trained on sharp photographs. Faint noise misleads it, for its
whitening layer amplifies the finest detail: with Gaussian noise of standard deviation {FAINT:g} in
[-1, 1] it is right on {report["noisy_accuracy"]:.1%}, and Frechet distances in its feature space
weigh such noise heavily too. A low class accuracy may therefore mean noisy samples rather than
wrong ones: look at them. On what is no photograph its answer means little, and it never abstains.

Distances compare models of this project with each other and with the real-against-real floor; they
are not Inception FIDs and must not be set beside published ones.
"""


if __name__ == "__main__":
    main()
