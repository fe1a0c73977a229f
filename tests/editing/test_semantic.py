"""Semantic Diffusion Guidance with encoders whose maps are the image's own pixels."""

import fields
import pytest
import torch
import torch.nn.functional as F
from exact import SCHEDULE
from torch import Generator

from minidiff.editing import semantic
from minidiff.guidance import clamp
from minidiff.noise import per_image, randn
from minidiff.samplers import ddpm_step, sample
from minidiff.schedule import add_noise

PATH = SCHEDULE.path(25)
LEVEL = SCHEDULE.level(300)
WEIGHTS = torch.randn(12, 3, 3, 3, generator=Generator().manual_seed(0)).double()


def seeded(seed=0):
    return Generator().manual_seed(seed)


def encoder(x, level):
    """Colours as embedding; random features (B,12,8,8) and coarse pixels (B,3,2,2) as maps."""
    features = F.gelu(F.conv2d(x, WEIGHTS.to(x), padding=1))
    return x.mean((2, 3)), [features, F.avg_pool2d(x, 4)]


def gradient(log_prob, x, level=LEVEL):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(log_prob(x, level).sum(), x)
    return g


def merged_gram(maps):
    """The official code's mistake: channels of all images in one matrix."""
    flat = maps.flatten(2).flatten(0, 1)  # (B*C,h*w)
    return (flat @ flat.T / flat.shape[1])[None]


def guided(log_prob, scale=1.0, n=16, seed=0):
    x = torch.randn(n, 3, 8, 8, generator=seeded(seed)).double()
    return semantic.guide(fields.denoise, x, PATH, log_prob, scale, generator=seeded(seed + 1))


# --- the aims ------------------------------------------------------------------------------------


def test_each_aim_is_its_formula():
    x, picture = fields.draw(3), fields.draw(1)
    noise = randn(picture.shape, per_image(seeded(5), 1), like=picture)
    noised = add_noise(picture, LEVEL, noise)
    (e, maps), (e2, maps2) = encoder(x, LEVEL), encoder(noised, LEVEL)
    cosine = (F.normalize(e, dim=1) * F.normalize(e2, dim=1)).sum(1)
    torch.testing.assert_close(semantic.content(encoder, picture, seeded(5))(x, LEVEL), cosine)
    wanted = torch.tensor([[1.0, 0.0, 0.0]]).double()
    red = F.normalize(e, dim=1)[:, 0]
    torch.testing.assert_close(semantic.text(encoder, wanted)(x, LEVEL), red)
    apart = sum((a - b).square().mean((1, 2, 3)) for a, b in zip(maps, maps2, strict=True))
    torch.testing.assert_close(semantic.structure(encoder, picture, seeded(5))(x, LEVEL), -apart)
    looks = 0
    for a, b in zip(maps, maps2, strict=True):
        a, b = (torch.einsum("bchw,bdhw->bcd", m, m) / m[0, 0].numel() for m in (a, b))
        looks = looks + (a - b).square().mean((1, 2))
    torch.testing.assert_close(semantic.style(encoder, picture, seeded(5))(x, LEVEL), -looks)
    both = semantic.total((2.0, semantic.text(encoder, wanted)), (-1.0, lambda x, level: cosine))
    torch.testing.assert_close(both(x, LEVEL), 2 * red - cosine)


def test_an_images_style_gradient_does_not_depend_on_its_neighbours(monkeypatch):
    x, pictures = fields.draw(4), fields.draw(4)
    generators = [seeded(i) for i in range(4)]

    def off():
        together = gradient(semantic.style(encoder, pictures, generators), x)
        for g in generators:
            g.manual_seed(g.initial_seed())
        alone = [
            gradient(semantic.style(encoder, pictures[[i]], [generators[i]]), x[[i]])
            for i in range(4)
        ]
        for g in generators:
            g.manual_seed(g.initial_seed())
        return ((together - torch.cat(alone)).abs().max() / together.abs().max()).item()

    assert off() < 1e-6
    monkeypatch.setattr(semantic, "gram", merged_gram)  # Mutant
    assert off() > 0.1


def test_style_does_not_see_places_and_structure_does():
    x, picture = fields.draw(2), fields.draw(1)
    maps = torch.randn(2, 5, 4, 4)
    turned = maps.flip(2).transpose(2, 3)
    torch.testing.assert_close(semantic.gram(maps), semantic.gram(turned))

    def plain(x, level):
        return x.mean((2, 3)), [x]

    quiet = SCHEDULE.level(0)
    for aim, sees in ((semantic.style, False), (semantic.structure, True)):
        answers = [aim(plain, picture)(image, quiet) for image in (x, x.flip(3))]
        assert torch.allclose(*answers, rtol=1e-9, atol=1e-12) != sees


def test_the_picture_is_noised_like_the_image_and_its_noise_stays():
    picture, told = fields.draw(1), []

    def spy(x, level):
        told.append((x.detach(), level))
        return encoder(x, level)

    aim = semantic.content(spy, picture, seeded())
    x = fields.draw(2)
    first, again = aim(x, LEVEL), aim(x, LEVEL)
    assert torch.equal(first, again)
    (noised, level) = next((image, at) for image, at in told if len(image) == 1)
    assert level is LEVEL
    noise = (noised - LEVEL.alpha * picture) / LEVEL.sigma
    aim(x, high := SCHEDULE.level(900))
    later = [image for image, at in told if at is high and len(image) == 1]
    torch.testing.assert_close(later[0], add_noise(picture, high, noise))


# --- the guidance --------------------------------------------------------------------------------


def test_scale_0_is_plain_sampling_bit_for_bit():
    x = torch.randn(3, 3, 8, 8, generator=seeded()).double()
    plain = sample(ddpm_step, clamp(fields.denoise), x, PATH, generator=seeded(1))
    aim = semantic.content(encoder, fields.draw(1), seeded())
    for scale, same in ((0, True), (1e-3, False)):
        drawn = semantic.guide(fields.denoise, x, PATH, aim, scale, generator=seeded(1))
        assert torch.equal(drawn, plain) == same


def test_each_aim_reaches_what_it_is_for():
    """On smooth fields: means for content and text, pixels for structure, spectra for style."""
    picture = fields.draw(16)
    free = guided(lambda x, level: x.sum((1, 2, 3)), 0)

    def agreement(x):  # of mean colours
        return F.cosine_similarity(x.mean((2, 3)), picture.mean((2, 3))).mean()

    def off(x):  # of pixels
        return (x - picture).square().mean().sqrt()

    def off_style(x):  # of Gram matrices of the clean images
        return -semantic.style(encoder, picture)(x, SCHEDULE.level(0)).mean()

    content = guided(semantic.content(encoder, picture, seeded(9)), 20.0)
    assert agreement(content) > agreement(free) + 0.5
    structure = guided(semantic.structure(encoder, picture, seeded(9)), 300.0)
    assert off(structure) < 0.6 * off(free) and off(content) > 0.7 * off(free)
    style = guided(semantic.style(encoder, picture, seeded(9)), 50.0)
    assert off_style(style) < 0.5 * off_style(free) and off(style) > off(structure)
    red = torch.tensor([[1.0, -1.0, -1.0]]).double()
    text = guided(semantic.text(encoder, red), 20.0)
    assert F.cosine_similarity(text.mean((2, 3)), red).mean() > 0.8
    # Control: another picture's content does not bring one nearer to this one's.
    other = guided(semantic.content(encoder, picture.roll(1, 0), seeded(9)), 20.0)
    assert agreement(other) < agreement(free) + 0.4


def test_an_image_is_the_same_in_every_batch():
    picture = fields.draw(1)
    x = torch.randn(3, 3, 8, 8, generator=seeded()).double()
    aim = semantic.content(encoder, picture, seeded())
    generators = [seeded(i) for i in range(3)]
    together = semantic.guide(fields.denoise, x, PATH, aim, 5.0, generator=generators)
    alone = semantic.guide(fields.denoise, x[1:2], PATH, aim, 5.0, generator=[seeded(1)])
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: semantic.content(encoder, x[0]), "the picture has shape"),
        (lambda x: semantic.style(encoder, x * float("nan")), "the picture holds NaN"),
        (lambda x: semantic.total(), "expected at least one aim"),
        (lambda x: semantic.total((float("nan"), encoder)), "weight = nan"),
        (lambda x: guided(semantic.content(encoder, x)), "2 rows for 16 images"),
        (lambda x: guided(lambda x, level: x.sum()), "one number an image"),
        (lambda x: guided(semantic.content(encoder, x[:1]), float("inf")), "finite number"),
    ],
)
def test_bad_input_is_named_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(fields.draw(2))
