"""How good are generated images, and how sure are we?

Distances between sets of images are taken between their features, `(N, D)` matrices from any
network: `features(network, images)`. A distance means little by itself, so print it beside its
floor, the same distance from real images to real images: `with_floor(frechet_distance, ...)`.
A share gets a `wilson` interval, a mean a `bootstrap` interval.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")


# ---------------------------------------------------------------------------------------- features


@torch.no_grad()
def features(network: Callable[[Tensor], Tensor], images: Tensor, batch: int = 256) -> Tensor:
    """What `network` makes of images `(N, 3, H, W)` in [-1, 1]: `(N, D)` on the CPU.

    Images go to the network's device `batch` at a time. A module is put in evaluation mode
    meanwhile. Raises ValueError when there are no images or the network's output is not `(B, D)`.
    """
    if not len(images):
        raise ValueError("features need at least one image, got none")
    module = getattr(network, "__self__", network)  # of a method, the module it belongs to
    module = module if isinstance(module, nn.Module) else nn.Identity()
    device = next((p.device for p in module.parameters()), images.device)
    training = module.training
    module.eval()
    try:
        found = [network(part.to(device)).float().cpu() for part in images.split(batch)]
    finally:
        module.train(training)
    if found[0].ndim != 2:
        raise ValueError(f"a feature network must return (B, D), got {tuple(found[0].shape)}")
    return torch.cat(found)  # (N, D)


def inception(device: str | torch.device = "cpu") -> nn.Module:
    """The Inception-v3 of published FIDs: images `(B, 3, H, W)` in [-1, 1] -> `(B, 2048)`.

    It is the network converted from the TensorFlow original by torch-fidelity, which resizes as
    that did; 96 MB of weights are downloaded once into torch's hub folder and must match their
    SHA-256. Raises ModuleNotFoundError without the `eval` extra, ConnectionError when
    the weights cannot be had, RuntimeError on a foreign file.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Inception features need torch-fidelity: pip install "minidiff[eval]"'
        ) from error
    weights = str(_inception_weights())
    return _Inception(FeatureExtractorInceptionV3("inception", ["2048"], weights)).to(device)


class _Inception(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(((images.clamp(-1, 1) + 1) * 127.5).round().byte())[0]


_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
_WEIGHTS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{_WEIGHTS}"
_WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def _inception_weights() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / _WEIGHTS
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(_WEIGHTS_URL, str(path), hash_prefix=_WEIGHTS_SHA256)
        except OSError as error:
            raise ConnectionError(f"{_WEIGHTS_URL} was not reached: put it at {path}") from error
    # torch-fidelity unpickles this file, so nothing but the published one may reach it.
    if hashlib.sha256(path.read_bytes()).hexdigest() != _WEIGHTS_SHA256:
        raise RuntimeError(f"{path} is not the published file of Inception weights: delete it")
    return path


# --------------------------------------------------------------------------------------- distances


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the normal distributions fitted to features `(N, D)`, `(M, D)`.

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64; with Inception features it
    is the FID (Heusel et al. 2017, arXiv:1706.08500, eq. 6). It falls with the number of images:
    compare only at equal numbers. Raises ValueError when D differs or N or M is not above D, as
    the covariance then is singular.
    """
    a, b = _two_sets(a, b)
    if min(len(a), len(b)) <= a.shape[1]:
        raise ValueError(
            f"a Frechet distance in {a.shape[1]} dimensions needs more images than that in both "
            f"sets, got {len(a)} and {len(b)}; kernel_distance works with fewer"
        )
    cov_a, cov_b = (torch.atleast_2d(torch.cov(x.T)) for x in (a, b))  # (D, D)
    # tr (C_a C_b)^(1/2) = tr (R C_b R)^(1/2) with R = C_a^(1/2): symmetric, so eigh will do.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T  # (D, D)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    apart = (a.mean(0) - b.mean(0)).square().sum()
    return (apart + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def kernel_distance(
    a: Tensor, b: Tensor, *, size: int = 1000, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """Unbiased squared MMD of features `(N, D)`, `(M, D)`, and its standard error.

    The kernel is (x.y/D + 1)^3; with Inception features it is the KID (Binkowski et al. 2018,
    arXiv:1801.01401, section 3). Its expectation is the same for any number of images, and 0 for
    equal distributions, so a single value may be negative. Both sets are shuffled and cut into
    blocks of `size`, each used once: unlike overlapping subsets they are independent, so the
    spread of their values gives an honest standard error. What does not fill a block is left out.
    Raises ValueError when D differs or there are fewer than two blocks.
    """
    a, b = _two_sets(a, b)
    blocks = min(len(a), len(b)) // size if size > 1 else 0
    if blocks < 2:
        raise ValueError(
            f"a kernel distance needs at least two blocks of size > 1 from both sets, "
            f"got {len(a)} and {len(b)} images for size {size}"
        )
    values = [
        _squared_mmd(a[i], b[j])
        for i, j in zip(
            _shuffled(len(a), generator)[: blocks * size].view(blocks, size),
            _shuffled(len(b), generator)[: blocks * size].view(blocks, size),
            strict=True,
        )
    ]
    values = torch.stack(values)  # (blocks,)
    return values.mean().item(), (values.std() / blocks**0.5).item()


def _squared_mmd(a: Tensor, b: Tensor) -> Tensor:
    n, d = a.shape
    within = 0
    for x in (a, b):
        kernel = (x @ x.T / d + 1) ** 3  # (n, n)
        # Without the pairs of an image with itself: they would add a bias.
        within = within + (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))
    return within - 2 * ((a @ b.T / d + 1) ** 3).mean()


def precision_recall(
    real: Tensor, fake: Tensor, k: int = 3, chunk: int = 1024
) -> tuple[float, float]:
    """Precision and recall of generated features `(M, D)` against real `(N, D)`, in [0, 1].

    A set's manifold is the union of balls around its points that reach to their k-th neighbours.
    Precision is the share of fakes on the real manifold, recall the share of reals on the fakes'
    (Kynkaanniemi et al. 2019, arXiv:1904.06991, eqs. 1-2). Both depend on the numbers of images.
    Raises ValueError when D differs or a set has no more than k points.
    """
    real, fake = _two_sets(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(
            f"precision and recall need more than k images in both sets and k >= 1, "
            f"got {len(real)} and {len(fake)} for k = {k}"
        )

    def covered(points: Tensor, centres: Tensor) -> float:
        radii = [  # the nearest neighbour of all is the point itself
            torch.cdist(part, centres).kthvalue(k + 1).values for part in centres.split(chunk)
        ]
        radii = torch.cat(radii)  # (centres,)
        inside = [(torch.cdist(part, centres) <= radii).any(1) for part in points.split(chunk)]
        return torch.cat(inside).double().mean().item()

    return covered(fake, real), covered(real, fake)


def with_floor(
    distance: Callable[[Tensor, Tensor], Result],
    real: Tensor,
    fake: Tensor,
    generator: torch.Generator | None = None,
) -> tuple[Result, Result]:
    """A distance and its floor: `(distance(reference, fake), distance(reference, held_out))`.

    The real features `(N, D)` are shuffled and divided into a held-out part, as many as the fakes
    but at most half, and the reference. Fakes beyond that number are left out: both values compare
    equal numbers with one reference, and perfect fakes would score the floor. Raises ValueError
    for fewer than two real images or no fakes, and what `distance` raises.
    """
    if len(real) < 2 or not len(fake):
        raise ValueError(
            f"a floor needs two real images and a fake one, got {len(real)} and {len(fake)}"
        )
    n = min(len(fake), len(real) // 2)
    order = _shuffled(len(real), generator).to(real.device)
    held_out, reference = real[order[:n]], real[order[n:]]
    return distance(reference, fake[:n]), distance(reference, held_out)


def _two_sets(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features must be (N, D) and (M, D), got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features must be finite, got NaN or infinite values")
    return _float64(a), _float64(b)


def _float64(values: Tensor) -> Tensor:
    """In double precision, on the CPU where the device (mps) has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _shuffled(n: int, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator else None
    return torch.randperm(n, generator=generator, device=device)


# ------------------------------------------------------------------------------------------ images


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images `(B, C, H, W)` in [-1, 1], one each: `(B,)` in decibels.

    10 log10(4 / mean squared error), the range being 2; infinite for equal images. Raises
    ValueError when the shapes differ.
    """
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"psnr compares images of one shape (B, C, H, W), "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError(f"psnr takes floats in [-1, 1], got {a.dtype} and {b.dtype}: use to_float")
    error = (_float64(a) - _float64(b)).square().mean((1, 2, 3))  # (B,)
    return 10 * torch.log10(4 / error)


def nearest_neighbours(
    queries: Tensor, images: Tensor, k: int = 1, *, flip: bool = False, chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """The k nearest `images` `(N, ...)` of every query `(Q, ...)`: distances and indices `(Q, k)`.

    Euclidean distances between images or feature rows, nearest first. With `flip`, an image's
    mirror image counts as the image. Raises ValueError when shapes differ, k is not in 1..N, or
    `flip` is asked for anything but `(N, C, H, W)`.
    """
    if queries.shape[1:] != images.shape[1:] or queries.ndim < 2:
        raise ValueError(
            f"queries and images must agree in all but their number, "
            f"got {tuple(queries.shape)} and {tuple(images.shape)}"
        )
    if not 1 <= k <= len(images):
        raise ValueError(f"k must lie in 1..{len(images)}, the number of images, got {k}")
    if flip and images.ndim != 4:
        raise ValueError(f"flip needs images (N, C, H, W), got {tuple(images.shape)}")
    flat = images.flatten(1).float()  # (N, P)
    norms = flat.square().sum(1)  # (N,)
    distances, indices = [], []
    for part in queries.split(chunk):
        # The mirror image of the query is as far from an image as the query from its mirror image.
        sides = [part, part.flip(-1)] if flip else [part]
        sides = torch.stack([side.flatten(1).float() for side in sides])  # (sides, q, P)
        # |q - x|^2 less |q|^2 ranks by one product; the few that win are then measured exactly.
        rank = (norms - 2 * sides @ flat.T).amin(0)  # (q, N)
        best = rank.topk(k, largest=False).indices  # (q, k)
        exact = (sides[:, :, None] - flat[best]).square().sum(-1).amin(0).sqrt()  # (q, k)
        order = exact.argsort(1)
        distances.append(exact.gather(1, order))
        indices.append(best.gather(1, order))
    return torch.cat(distances), torch.cat(indices)


def memorisation(samples: Tensor, held_out: Tensor, train: Tensor, *, flip: bool = False) -> float:
    """Median distance of samples to their nearest training image, over that of held-out images.

    All three are images `(N, C, H, W)` or features `(N, D)`. About 1: samples are as far from the
    training set as new real images are. Well below 1: they are copies, or smoother than real ones,
    which the nearest neighbours will show. Raises ValueError as `nearest_neighbours` does, and when
    held-out images are themselves in the training set.
    """
    near = nearest_neighbours(samples, train, flip=flip)[0].median()
    usual = nearest_neighbours(held_out, train, flip=flip)[0].median()
    if usual == 0:
        raise ValueError("held_out must hold images that are not in train, got copies")
    return (near / usual).item()


# --------------------------------------------------------------------------------------- intervals


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for a share, from `successes` out of `n`; sensible even at 0 and n (Wilson 1927).

    Raises ValueError unless 0 <= successes <= n, n >= 1 and 0 < confidence < 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = NormalDist().inv_cdf(0.5 + _confidence(confidence) / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    low = 0.0 if successes == 0 else centre - half  # exactly, whatever the rounding
    return low, 1.0 if successes == n else centre + half


def bootstrap(
    values: Tensor,
    statistic: Callable[[Tensor], Tensor] = torch.mean,
    *,
    generator: torch.Generator | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Percentile interval for a statistic of `values` `(N, ...)` (Efron 1979).

    Rows are drawn again with replacement. For two methods on the same seeds or images, pass their
    differences: the pairing removes what both have in common. A little narrow below N = 30. Raises
    ValueError for fewer than two values, NaN, or confidence outside (0, 1).
    """
    _confidence(confidence)
    values = torch.as_tensor(values)
    if values.ndim < 1 or len(values) < 2 or not values.isfinite().all():
        raise ValueError(
            f"bootstrap needs at least two finite values, got shape {tuple(values.shape)}"
        )
    values = _float64(values)
    device = generator.device if generator else None
    drawn: list[Any] = []
    for _ in range(resamples):
        rows = torch.randint(len(values), (len(values),), generator=generator, device=device)
        drawn.append(statistic(values[rows.to(values.device)]))
    tails = torch.tensor([0.5 - confidence / 2, 0.5 + confidence / 2], dtype=torch.float64)
    low, high = torch.stack(drawn).double().cpu().quantile(tails).tolist()
    return low, high


def _confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return confidence
