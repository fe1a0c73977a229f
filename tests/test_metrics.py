"""Metrics against closed forms, brute force and known coverage; each check has a failing mutant."""

import math
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from minidiff import metrics
from minidiff.metrics import (
    bootstrap,
    features,
    frechet_distance,
    kernel_distance,
    memorisation,
    nearest_neighbours,
    precision_recall,
    psnr,
    wilson,
    with_floor,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def normal(n, mean, cov, generator):
    """Points whose sample mean and covariance are exactly `mean` and `cov`."""
    z = torch.randn(n, len(mean), generator=generator, dtype=torch.float64)
    z = z - z.mean(0)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(z.T)), z.T, upper=False).T
    return z @ torch.linalg.cholesky(cov).T + mean


# ------------------------------------------------------------------------------------ Frechet

MEANS = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64)
COVS = torch.tensor([[[2.0, 0.9], [0.9, 1.0]], [[0.5, -0.3], [-0.3, 3.0]]], dtype=torch.float64)


def frechet_of_plane():
    # In two dimensions tr (AB)^(1/2) = (tr AB + 2 (det AB)^(1/2))^(1/2): both eigenvalues at once.
    a, b = COVS
    cross = ((a @ b).trace() + 2 * (a.det() * b.det()).sqrt()).sqrt()
    return ((MEANS[0] - MEANS[1]).square().sum() + a.trace() + b.trace() - 2 * cross).item()


def without_cross_term(a, b):
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace()).item()


def with_separate_roots(a, b):
    roots = []
    for x in (a, b):
        values, vectors = torch.linalg.eigh(torch.cov(x.T))
        roots.append(vectors * values.sqrt() @ vectors.T)
    return without_cross_term(a, b) - 2 * (roots[0] @ roots[1]).trace().item()


def test_frechet_of_two_normals(generator):
    a = normal(50, MEANS[0], COVS[0], generator)
    b = normal(70, MEANS[1], COVS[1], generator)
    expected = frechet_of_plane()
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, abs=1e-10)
    for mutant in (without_cross_term, with_separate_roots):
        assert abs(mutant(a, b) - expected) > 1e-2


def test_frechet_of_one_dimension():
    a, b = torch.tensor([[-1.0], [1.0], [0.0]]), torch.tensor([[0.0], [4.0], [2.0]])
    expected = 2**2 + (2 - 1) ** 2  # means 0 and 2, deviations 1 and 2
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_of_commuting_normals(generator):
    basis = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0]
    va, vb = torch.rand(2, 20, generator=generator, dtype=torch.float64) * 4 + 0.01
    mean = torch.randn(20, generator=generator, dtype=torch.float64)
    a = normal(100, mean, basis * va @ basis.T, generator)
    b = normal(100, 0 * mean, basis * vb @ basis.T, generator)
    expected = (mean.square().sum() + (va.sqrt() - vb.sqrt()).square().sum()).item()
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-9)


def test_frechet_of_equal_sets_is_zero_even_with_dead_features(generator):
    a = torch.randn(300, 64, generator=generator)
    a[:, 10:40] = 0
    a[:, 50] = a[:, 51]
    assert abs(frechet_distance(a, a)) < 1e-6


def test_frechet_refuses_singular_covariances(generator):
    a = torch.randn(64, 64, generator=generator)
    with pytest.raises(ValueError, match="64 dimensions needs more images .* 64 and 65"):
        frechet_distance(a, torch.randn(65, 64, generator=generator))
    with pytest.raises(ValueError, match=r"got \(64, 64\) and \(65, 63\)"):
        frechet_distance(a, torch.randn(65, 63, generator=generator))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(torch.full((5, 2), math.nan), torch.zeros(5, 2))


def test_published_implementation_agrees(generator):
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kernel_mmd
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    real = torch.randn(700, 12, generator=generator, dtype=torch.float64)
    fake = torch.randn(600, 12, generator=generator, dtype=torch.float64) * 0.8 + 0.2
    statistics = [fid_features_to_statistics(x) for x in (real, fake)]
    theirs = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert frechet_distance(real, fake) == pytest.approx(theirs, abs=1e-9)
    kernel = {"degree": 3, "gamma": None, "coef0": 1}
    kernel = {f"kid_kernel_poly_{name}": value for name, value in kernel.items()}
    theirs = kernel_mmd(real[:600].numpy(), fake.numpy(), kid_kernel="poly", **kernel)
    ours = metrics._squared_mmd(real[:600], fake).item()
    assert ours == pytest.approx(theirs, abs=1e-12)
    theirs = calculate_precision_recall_full(fake, real, 3)
    assert precision_recall(real, fake, k=3) == pytest.approx(theirs, abs=1e-6)


# ------------------------------------------------------------------------------------- kernel


def biased_mmd(a, b):
    def mean(x, y):
        return ((x @ y.T / x.shape[1] + 1) ** 3).mean()

    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


def mmd_is_right(mmd, generator):
    """One feature: E(xy + 1)^3 is made of moments, so the distance is known exactly."""
    for mean, scale in ((0.0, 1.0), (0.3, 1.2)):
        a = torch.randn(400, 30, 1, generator=generator, dtype=torch.float64)
        b = torch.randn(400, 30, 1, generator=generator, dtype=torch.float64) * scale + mean
        values = torch.stack([mmd(x, y) for x, y in zip(a, b, strict=True)])
        second, third = mean**2 + scale**2, mean**3 + 3 * mean * scale**2
        expected = 3 * mean**2 + 3 * (second - 1) ** 2 + third**2
        error = values.std() / len(values) ** 0.5
        if abs(values.mean() - expected) > 4 * error:
            return False
    return True


def test_squared_mmd_is_unbiased(generator):
    assert mmd_is_right(metrics._squared_mmd, generator)
    assert not mmd_is_right(biased_mmd, generator)


def overlapping_subsets(a, b, *, size, generator):
    values = [
        metrics._squared_mmd(
            a[torch.randperm(len(a), generator=generator)[:size]],
            b[torch.randperm(len(b), generator=generator)[:size]],
        )
        for _ in range(100)
    ]
    return torch.stack(values).mean().item(), torch.stack(values).std().item() / 10


def error_is_honest(estimate, generator):
    """Over repeated experiments, the values scatter as much as the standard errors say."""
    results = []
    for _ in range(60):
        a, b = torch.randn(2, 240, 4, generator=generator, dtype=torch.float64)
        results.append(estimate(a, b + 0.3, size=20, generator=generator))
    values, errors = torch.tensor(results).T
    return 0.7 < values.std() / errors.square().mean().sqrt() < 1.4


def test_kernel_distance_has_an_honest_error(generator):
    assert error_is_honest(kernel_distance, generator)
    assert not error_is_honest(overlapping_subsets, generator)


def test_kernel_distance_repeats_with_the_generator(generator):
    a, b = torch.randn(2, 200, 3, generator=generator)
    first = kernel_distance(a, b, size=50, generator=torch.Generator().manual_seed(1))
    again = kernel_distance(a, b, size=50, generator=torch.Generator().manual_seed(1))
    other = kernel_distance(a, b, size=50, generator=torch.Generator().manual_seed(2))
    assert first == again != other
    with pytest.raises(ValueError, match="two blocks .* 200 and 99 images for size 50"):
        kernel_distance(a, b[:99], size=50)


# --------------------------------------------------------------------------- precision, recall


def brute_precision(real, fake, k):
    def distance(x, y):
        return math.dist(x.tolist(), y.tolist())

    radii = [sorted(distance(x, y) for y in real)[k] for x in real]  # [0] is the point itself
    inside = [any(distance(f, x) <= r for x, r in zip(real, radii, strict=True)) for f in fake]
    return sum(inside) / len(inside)


def test_precision_and_recall_by_brute_force(generator):
    real = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    fake = torch.randn(30, 3, generator=generator, dtype=torch.float64) * 0.7 + 0.4
    expected = brute_precision(real, fake, 3), brute_precision(fake, real, 3)
    assert precision_recall(real, fake) == precision_recall(real, fake, chunk=7) == expected
    assert precision_recall(fake, real) == expected[::-1] != expected
    assert precision_recall(real, fake, k=2) != expected  # as if the point were its own neighbour


def test_lost_modes_cost_recall_and_junk_costs_precision(generator):
    modes = torch.tensor([[-10.0, 0.0], [10.0, 0.0]])
    real = torch.cat([modes + 0.5 * torch.randn(2, generator=generator) for _ in range(200)])
    one = modes[:1] + 0.5 * torch.randn(400, 2, generator=generator)
    precision, recall = precision_recall(real, one)
    assert precision > 0.9 and 0.4 < recall <= 0.5
    junk = torch.cat([real[:200] + 0.01, torch.randn(200, 2, generator=generator) + 100])
    precision, recall = precision_recall(real, junk)
    assert precision == 0.5 and recall > 0.9
    with pytest.raises(ValueError, match="more than k images"):
        precision_recall(real, one[:3], k=3)


# -------------------------------------------------------------------------------------- floor


def test_perfect_fakes_score_the_floor(generator):
    draw = torch.randn(3000, 8, generator=generator)
    real, perfect, shifted = draw[:2000], draw[2000:], draw[2000:] + 0.5
    value, floor = with_floor(frechet_distance, real, perfect, generator)
    assert 0.3 < value / floor < 3
    value, floor = with_floor(frechet_distance, real, shifted, generator)
    assert value > 20 * floor and value == pytest.approx(8 * 0.5**2, rel=0.2)
    (value, error), (floor, _) = with_floor(
        lambda a, b: kernel_distance(a, b, size=100, generator=generator), real, shifted, generator
    )
    assert value > floor + 5 * error


@pytest.mark.parametrize("fakes, n", [(30, 30), (500, 50)])
def test_both_values_compare_equal_numbers_with_one_reference(fakes, n, generator):
    pairs = []
    real, fake = torch.arange(100.0)[:, None], torch.full((fakes, 1), -1.0)
    with_floor(lambda a, b: pairs.append((a, b)), real, fake, generator)
    (reference, compared), (same, held_out) = pairs
    assert torch.equal(reference, same) and len(compared) == len(held_out) == n
    assert (compared == -1).all()
    assert torch.equal(torch.cat([reference, held_out]).sort(0).values, real)  # nothing twice


# ----------------------------------------------------------------------------------- features


def test_features_do_not_depend_on_the_batch(generator):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    images = torch.rand(10, 3, 8, 8, generator=generator) * 2 - 1
    alone, together = features(network, images, batch=1), features(network, images, batch=10)
    assert alone.shape == (10, 4)
    torch.testing.assert_close(alone, together)
    assert network.training and not together.requires_grad
    network.eval()
    assert torch.equal(features(network, images), together) and not network.training
    network.train()
    assert torch.equal(features(network.forward, images), together)  # a method is its module's
    assert network.training  # the mutant that forgets evaluation mode sees its batch
    assert not torch.allclose(network(images[:5]), network(images)[:5], atol=1e-3)
    with pytest.raises(ValueError, match=r"\(B, D\), got \(10, 3, 8, 8\)"):
        features(lambda x: x, images)
    with pytest.raises(ValueError, match="at least one image"):
        features(network, images[:0])


def test_inception_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    name = "torch_fidelity.feature_extractor_inceptionv3"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "minidiff\[eval\]"'):
        metrics.inception()


def test_inception_never_unpickles_a_foreign_file(monkeypatch, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / metrics._WEIGHTS
    file.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(RuntimeError, match="not the published file"):
        metrics._inception_weights()
    assert not (tmp_path / "sprung").exists()


def test_inception_is_given_bytes():
    network = metrics._Inception(nn.Identity())
    network.network.forward = lambda images: (images,)
    images = torch.tensor([-1.0, -0.999, 0.0, 1.0, 1.5]).view(1, 1, 1, 5)
    assert network(images).dtype == torch.uint8
    assert network(images).flatten().tolist() == [0, 0, 128, 255, 255]


# ------------------------------------------------------------------------------------- images


def test_psnr_of_known_errors():
    a = torch.zeros(3, 3, 4, 4)
    b = torch.stack([a[0], a[0] + 2, a[0] + 0.02])
    assert psnr(a, b).tolist() == pytest.approx([math.inf, 0.0, 40.0], abs=1e-5)
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, b[:1])
    with pytest.raises(ValueError, match="got torch.uint8 .*: use to_float"):
        psnr(a.byte(), a)  # whose differences would be taken in [0, 255]


def test_neighbours_by_brute_force(generator):
    images = torch.rand(60, 3, 4, 4, generator=generator) * 2 - 1
    queries = torch.rand(25, 3, 4, 4, generator=generator) * 2 - 1
    for flip in (False, True):
        table = torch.cdist(queries.flatten(1).double(), images.flatten(1).double())
        if flip:
            mirrored = images.flip(-1).flatten(1).double()
            table = torch.minimum(table, torch.cdist(queries.flatten(1).double(), mirrored))
        expected = table.sort(1)
        for chunk in (4, 256):
            distances, indices = nearest_neighbours(queries, images, k=5, flip=flip, chunk=chunk)
            torch.testing.assert_close(
                distances.double(), expected.values[:, :5], rtol=0, atol=1e-5
            )
            assert torch.equal(indices, expected.indices[:, :5])


def test_a_copy_is_at_distance_exactly_zero(generator):
    images = torch.rand(50, 3, 8, 8, generator=generator) * 2 - 1
    copies = images[[7, 31]]
    distances, indices = nearest_neighbours(copies, images)
    assert distances.tolist() == [[0.0], [0.0]] and indices.tolist() == [[7], [31]]
    # Close by, the mutant that trusts the ranking formula |x|^2 - 2xy + |y|^2 loses all digits.
    near = (copies + 1e-4).flatten(1)
    true = (near.double() - copies.flatten(1)).norm(dim=1)
    found = nearest_neighbours(copies + 1e-4, images)[0][:, 0].double()
    torch.testing.assert_close(found, true, rtol=1e-3, atol=0)
    y = copies.flatten(1)
    ranked = near.square().sum(1) - 2 * (near * y).sum(1) + y.square().sum(1)
    assert not torch.allclose(ranked.clamp_min(0).sqrt().double(), true, rtol=1e-1, atol=0)
    flipped = copies.flip(-1)
    assert nearest_neighbours(flipped, images, flip=True)[0].tolist() == [[0.0], [0.0]]
    assert nearest_neighbours(flipped, images)[0].min() > 1


def test_neighbours_refuse_bad_input():
    images = torch.zeros(4, 3, 8, 8)
    with pytest.raises(ValueError, match="agree in all but their number"):
        nearest_neighbours(torch.zeros(2, 3, 4, 4), images)
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.4"):
        nearest_neighbours(images, images, k=5)
    with pytest.raises(ValueError, match="flip needs images"):
        nearest_neighbours(torch.zeros(2, 5), torch.zeros(3, 5), flip=True)


def test_memorisation_tells_copies_from_new_images(generator):
    train, held_out, fresh = torch.randn(3, 200, 3, 4, 4, generator=generator)
    near_copies = train[:100].flip(-1) + 0.05 * torch.randn(100, 3, 4, 4, generator=generator)
    assert memorisation(fresh, held_out, train, flip=True) == pytest.approx(1, abs=0.05)
    assert memorisation(near_copies, held_out, train, flip=True) < 0.1
    assert memorisation(near_copies, held_out, train) > 0.8  # mirrored copies hide without flip
    with pytest.raises(ValueError, match="not in train"):
        memorisation(fresh, train[:10], train)


@pytest.mark.skipif("MINIDIFF_DATA" not in os.environ, reason="needs MINIDIFF_DATA")
def test_memorisation_on_real_images(generator):
    file = Path(os.environ["MINIDIFF_DATA"]) / "cifar-10-batches-py" / "test_batch"
    if not file.exists():
        pytest.skip("needs CIFAR-10")
    with open(file, "rb") as opened:
        batch = pickle.load(opened, encoding="latin1")
    images = torch.tensor(batch["data"]).view(-1, 3, 32, 32)[:1500] / 127.5 - 1
    train, held_out, fresh = images[:1000], images[1000:1250], images[1250:]
    assert memorisation(fresh, held_out, train, flip=True) == pytest.approx(1, abs=0.1)
    copies = (train[:200] + 0.1 * torch.randn(200, 3, 32, 32, generator=generator)).flip(-1)
    assert memorisation(copies, held_out, train, flip=True) < 0.7


# ---------------------------------------------------------------------------------- intervals


def wald(successes, n, confidence=0.95):
    share, z = successes / n, 1.959964
    half = z * (share * (1 - share) / n) ** 0.5
    return share - half, share + half


def mean_coverage(interval, n=30):
    """Exact, from the binomial distribution, averaged over true shares."""
    bounds = [interval(k, n) for k in range(n + 1)]
    covered = 0.0
    for i in range(1, 200):
        p = i / 200
        for k, (low, high) in enumerate(bounds):
            if low <= p <= high:
                covered += math.comb(n, k) * p**k * (1 - p) ** (n - k)
    return covered / 199


def test_wilson_covers_as_promised():
    assert mean_coverage(wilson) == pytest.approx(0.95, abs=0.01)
    assert mean_coverage(wald) < 0.9
    assert mean_coverage(lambda k, n: wilson(k, n, 0.8)) == pytest.approx(0.8, abs=0.02)


def test_wilson_gives_the_values_of_newcombe():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    table = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605)}
    table |= {(0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (k, n), expected in table.items():
        assert wilson(k, n) == pytest.approx(expected, abs=5e-5)
        assert wilson(n - k, n) == pytest.approx([1 - e for e in expected][::-1], abs=5e-5)
    assert wilson(0, 20)[0] == 0 and wilson(20, 20)[1] == 1
    assert wald(0, 20) == (0, 0)  # the mutant: certain of nothing after twenty trials


@pytest.mark.parametrize("successes, n, confidence", [(3, 2, 0.9), (-1, 5, 0.9), (0, 0, 0.9)])
def test_wilson_refuses_impossible_counts(successes, n, confidence):
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        wilson(successes, n, confidence)
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        wilson(1, 2, 95)


def coverage(interval, generator, n=40, experiments=150):
    draws = torch.rand(experiments, n, generator=generator) ** 2  # skewed, mean 1/3
    bounds = [interval(values, generator) for values in draws]
    return sum(low <= 1 / 3 <= high for low, high in bounds) / experiments


def test_bootstrap_covers_as_promised(generator):
    def ours(values, generator):
        return bootstrap(values, generator=generator, confidence=0.8, resamples=200)

    def without_replacement(values, generator):
        means = [values[torch.randperm(40, generator=generator)].mean() for _ in range(50)]
        return min(means), max(means)

    def spread_of_values(values, generator):  # not of their mean
        return tuple(values.quantile(torch.tensor([0.1, 0.9])).tolist())

    assert coverage(ours, generator) == pytest.approx(0.8, abs=0.1)
    assert coverage(without_replacement, generator, experiments=50) < 0.2
    assert coverage(spread_of_values, generator) > 0.95


def test_bootstrap_of_any_statistic_and_of_pairs(generator):
    common = torch.randn(100, generator=generator) * 10
    a = common + torch.randn(100, generator=generator)
    b = common + torch.randn(100, generator=generator) + 1
    low, high = bootstrap(b - a, generator=generator)
    assert 0 < low < high < 2
    alone = [bootstrap(x, generator=generator) for x in (a, b)]
    assert alone[0][1] > alone[1][0]  # unpaired, the intervals overlap
    low, high = bootstrap(a, torch.median, generator=generator)
    assert low < a.median() < high
    seeded = [bootstrap(a, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert seeded[0] == seeded[1]
    for bad in (torch.ones(1), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="two finite values"):
            bootstrap(bad)
