"""CLIP guidance: cut-outs of each sample's own, the distance, both gradients, and what they do."""

import math
import sys
from functools import partial

import fields
import pytest
import torch
import torch.nn.functional as F
from exact import MEANS, SCHEDULE, mixture, noisy_data
from torch import Generator
from torchvision.transforms import RandomResizedCrop

from minidiff.editing import clip_guided, clip_score, cutouts, spherical_distance
from minidiff.guidance import guide_by_x0
from minidiff.samplers import ddim_step, ddpm_step, sample

MODULE = sys.modules["minidiff.editing.clip_guidance"]


def seeded(seed=0):
    return Generator().manual_seed(seed)


def see(x):
    """A small random network for a CLIP: images (B,3,H,W) -> (B,16)."""
    draw = partial(torch.randn, generator=seeded(9), dtype=x.dtype)
    features = F.conv2d(x, draw(8, 3, 3, 3)).tanh()
    return F.adaptive_avg_pool2d(features, 3).flatten(1) @ draw(72, 16)


def ramps(n=1, side=32):
    """Images (n,3,side,side) whose first two channels are x and y in -1 to 1."""
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side * 2 - 1] * 2, indexing="ij")
    return torch.stack([x, y, 0 * x]).expand(n, -1, -1, -1).clone()


# --- cut-outs ------------------------------------------------------------------------------------


def sides(views):
    """Both sides of each view of `ramps`, as shares of the image's side (n,2)."""
    middle = views[:, :2, 14:18, 14:18]  # never beyond the rim
    across = (middle[:, :, 0, 3] - middle[:, :, 0, 0]).norm(dim=1)
    down = (middle[:, :, 3, 0] - middle[:, :, 0, 0]).norm(dim=1)
    return torch.stack([across, down], dim=1) / 3 * 16


def test_a_cut_out_shows_three_quarters_of_each_side_or_more():
    views = cutouts(ramps(), 500, seeded())
    assert views.shape == (500, 3, 32, 32)
    found = sides(views)
    assert 0.75 <= found.min() < 0.8 and 0.98 < found.max() <= 1.06
    assert sides(cutouts(ramps(), 500, seeded(), smallest=0.3)).min() < 0.4  # Mutant.
    middle = views[:, :2, 15:17, 15:17].mean((2, 3))  # where the view's middle lies
    assert middle.mean(0).abs().max() < 0.02 and middle.abs().max() > 0.15
    assert cutouts(torch.ones(2, 3, 8, 8), 4, seeded()).allclose(torch.ones(()))  # no black rims


def test_every_sample_has_its_own_cut_outs():
    def apart(cut):
        """How many of the views of eight equal images differ from those of the first."""
        views = cut(ramps(8)).unflatten(0, (-1, 8))
        return ((views[:, 1:] - views[:, :1]).abs().amax((2, 3, 4)) > 0.05).double().mean()

    def one_a_batch(x):  # Mutant: torchvision draws one place for the whole batch.
        return torch.cat([RandomResizedCrop(32, (0.6, 1.0))(x) for _ in range(4)])

    assert apart(lambda x: cutouts(x, 4, seeded())) == 1
    assert apart(one_a_batch) == 0


def test_the_views_of_an_image_are_the_same_alone_and_in_a_batch():
    many = cutouts(ramps(3), 4, [seeded(i) for i in range(3)]).unflatten(0, (4, 3))
    alone = cutouts(ramps(1), 4, [seeded(1)])
    assert torch.equal(many[:, 1], alone)
    assert not torch.equal(many[:, 0], alone)


# --- the distance --------------------------------------------------------------------------------


def test_the_distance_is_half_the_square_of_the_angle():
    x, y = torch.randn(2, 50, 6, generator=seeded()).double()
    u, w = F.normalize(x, dim=1), F.normalize(y, dim=1)
    expected = 2 * torch.asin((u - w).norm(dim=1) / 2) ** 2
    torch.testing.assert_close(spherical_distance(x, 3 * y), expected)
    torch.testing.assert_close(expected, (u * w).sum(1).acos() ** 2 / 2)


def test_its_gradient_is_finite_also_where_the_papers_formula_divides_by_zero():
    for other in (torch.tensor([1.0, 0, 0]), torch.tensor([-1.0, 0, 0])):
        x = torch.tensor([1.0, 0, 0]).requires_grad_()
        value = spherical_distance(x, other)
        assert value.item() == pytest.approx(math.pi**2 / 2 if other[0] < 0 else 0)
        assert torch.autograd.grad(value, x)[0].isfinite().all()


# --- the gradient --------------------------------------------------------------------------------


def gradients(cuts, draws=64):
    """The gradient of the score (draws,1,3,H,W), each of cut-outs of its own."""
    x = fields.draw(1).float().requires_grad_()
    target = torch.randn(1, 16, generator=seeded(1))
    generator = seeded(2)
    score = clip_score(see, target, cuts=cuts, generator=generator)
    return torch.stack([torch.autograd.grad(score(x).sum(), x)[0] for _ in range(draws)])


def test_sixteen_cut_outs_have_an_eighth_of_the_variance_of_one_or_less(monkeypatch):
    def ratio():
        return (gradients(16).var(0).mean() / gradients(1).var(0).mean()).item()

    assert 1 / 40 < ratio() <= 1 / 8
    crop = RandomResizedCrop(8, (0.6, 1.0))  # Mutant: sixteen times the same place
    monkeypatch.setattr(MODULE, "cutouts", lambda x, n, *_, **__: crop(x.repeat(n, 1, 1, 1)))
    assert ratio() > 0.3


def place(x):
    """Points of the plane (B,2,1,1) are their own embeddings."""
    return x.flatten(1)


TOWARDS = F.normalize(MEANS[1:2], dim=1)  # the direction of one of the modes


def pushed(guide, t, n=200):
    """|eps guided - eps| over sigma, the gradient's length for scale 1, on exact data (n,)."""
    torch.manual_seed(0)
    level, denoise = SCHEDULE.level(t), mixture()
    x = noisy_data(n, level)
    moved = guide(denoise)(x, level).eps - denoise(x, level).eps
    return moved.flatten(1).norm(dim=1) / level.sigma


def guide(through_network):
    how = {"cuts": 1, "through_network": through_network}
    return lambda denoise: clip_guided(denoise, place, TOWARDS, 1.0, **how)


def test_at_high_noise_the_shortcut_pushes_a_hundred_times_as_hard_as_the_gradient():
    early = [pushed(guide(way), 1000).median() for way in (False, True)]
    late = [pushed(guide(way), 30).median() for way in (False, True)]
    assert early[0] / early[1] > 100
    assert 0.5 < late[0] / late[1] < 2


def test_the_shortcut_is_the_gradient_with_respect_to_x0_at_every_level():
    """Mutant: alpha taken at the loop's counter instead of t, as in a well-known course, is about 1
    at every step: the first pushes are then a hundred times too hard."""

    def score(x0):
        return -spherical_distance(place(x0), TOWARDS)

    def counted(i, denoise):
        return guide_by_x0(denoise, score, SCHEDULE.level(i + 1).alpha, through_network=False)

    wrong = []
    for i, level in enumerate(SCHEDULE.path(10)[:-1]):
        torch.manual_seed(0)
        x0 = mixture()(noisy_data(200, level), level).x0.requires_grad_()
        expected = torch.autograd.grad(score(x0).sum(), x0)[0].flatten(1).norm(dim=1)
        torch.testing.assert_close(pushed(guide(False), level.t), expected, rtol=1e-5, atol=1e-9)
        wrong.append((pushed(partial(counted, i), level.t) / expected).median())
    assert wrong[0] > 100 and min(wrong) > 1.01


# --- what it does --------------------------------------------------------------------------------


def points(scale, target=TOWARDS, n=400, **how):
    """Points guided towards a target (1 or n,2), sampled in 40 steps: (n,2)."""
    torch.manual_seed(0)
    x = torch.randn(n, 2, 1, 1, dtype=torch.float64)
    guided = clip_guided(mixture(), place, target, scale, cuts=1, **how)
    return sample(ddim_step, guided, x, SCHEDULE.path(40)).flatten(1)


@pytest.mark.parametrize("through_network", [True, False])
def test_it_draws_to_the_target_and_a_negative_scale_away_from_it(through_network):
    def near(x):
        return F.cosine_similarity(x, TOWARDS).mean().item()

    plain = near(points(0))
    scale = 20 if through_network else 1
    assert near(points(scale, through_network=through_network)) > plain + 0.2
    assert near(points(-scale, through_network=through_network)) < plain - 0.1


def test_each_image_goes_to_its_own_target():
    targets = F.normalize(MEANS, dim=1)[torch.arange(400) % 4]

    def fit(x, wanted):
        return F.cosine_similarity(x, wanted).mean().item()

    guided, plain = points(20, targets), points(0)
    assert fit(guided, targets) > fit(plain, targets) + 0.3
    # Control: the targets of others gain nothing.
    assert abs(fit(guided, targets.roll(1, 0)) - fit(plain, targets.roll(1, 0))) < 0.1


def test_scale_0_is_unguided_bit_for_bit():
    x, path = fields.draw(2), SCHEDULE.path(8)
    target = torch.ones(1, 16).double()

    def walk(denoise):
        return sample(ddpm_step, denoise, x, path, generator=[seeded(0), seeded(1)])

    plain = walk(fields.denoise)
    for through_network in (True, False):
        guide = partial(clip_guided, fields.denoise, see, target, through_network=through_network)
        assert torch.equal(walk(guide(0)), plain)
        assert not torch.equal(walk(guide(1e-3, cuts=2)), plain)


def test_an_image_of_a_seed_is_the_same_alone_and_in_a_batch():
    x, path, target = fields.draw(3), SCHEDULE.path(4), torch.ones(1, 16).double()

    def walk(x, seed=5):
        guided = clip_guided(fields.denoise, see, target, 5.0, cuts=2, generator=seeded(seed))
        return sample(ddim_step, guided, x, path)

    torch.testing.assert_close(walk(x)[:1], walk(x[:1]))
    assert not torch.allclose(walk(x), walk(x, seed=6))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scale": math.nan}, "scale = nan: expected a finite number"),
        ({"cuts": 0}, "cuts = 0: expected a whole number from 1 up"),
        ({"smallest": 1.5}, "smallest = 1.5 is out of range"),
        ({"target": torch.ones(16)}, r"expected \(1 or B, D\)"),
        ({"target": torch.ones(3, 16)}, "3 rows for 2 images: expected one, or one each"),
    ],
)
def test_bad_input_is_refused(change, told):
    given = {"scale": 1.0, "target": torch.ones(1, 16).double()} | change
    with pytest.raises(ValueError, match=told):
        guided = clip_guided(fields.denoise, see, **given)
        guided(fields.draw(2), SCHEDULE.level(500))
