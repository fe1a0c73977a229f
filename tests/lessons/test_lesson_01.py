"""Lesson 01: each check accepts the solution and rejects each known mistake with its sentence."""

import pytest
import torch

from minidiff.lessons import lesson_01 as lesson


def alpha_bar(betas):
    return torch.cat([torch.ones(1), torch.cumprod(1 - betas, 0)])


def add_noise(x0, alpha, sigma, noise):
    return alpha * x0 + sigma * noise


def denoise(x, data, alpha, sigma):
    far = torch.cdist(x.flatten(1), alpha * data.flatten(1)) ** 2
    return (torch.softmax(-far / (2 * sigma**2), dim=1) @ data.flatten(1)).reshape(x.shape)


def variant(*, shrink=True, power=2, half=2.0, sign=-1.0, dim=1, square=2):
    """The exact denoiser with one thing wrong."""

    def answer(x, data, alpha, sigma):
        scaled = alpha * data if shrink else data
        far = torch.cdist(x.flatten(1), scaled.flatten(1)) ** square
        weights = torch.softmax(sign * far / (half * sigma**power), dim=dim)
        return (weights @ data.flatten(1)).reshape(x.shape)

    return answer


def nearest(x, data, alpha, sigma):
    return data[torch.cdist(x.flatten(1), alpha * data.flatten(1)).argmin(1)]


@pytest.mark.parametrize(
    ("check", "solution"),
    [
        (lesson.check_alpha_bar, alpha_bar),
        (lesson.check_add_noise, add_noise),
        (lesson.check_denoise, denoise),
        (lesson.check_denoise, variant()),
    ],
)
def test_solutions_are_right(check, solution):
    assert check.verdict(solution).startswith("right: ")


@pytest.mark.parametrize(
    ("check", "mistake", "sentence"),
    [
        (lesson.check_alpha_bar, lambda b: torch.cumprod(1 - b, 0), "index 0 is the clean image"),
        (lesson.check_alpha_bar, lambda b: alpha_bar(1 - b), "keeps 1 - beta of the variance"),
        (lesson.check_alpha_bar, lambda b: alpha_bar(b).sqrt(), "square root of alpha_bar"),
        (
            lesson.check_alpha_bar,
            lambda b: torch.cat([torch.ones(1), 1 - b.cumsum(0)]),
            "each step keeps a share",
        ),
        (
            lesson.check_alpha_bar,
            lambda b: torch.cat([torch.ones(1), 1 - b]),
            "take their running product",
        ),
        (lesson.check_add_noise, lambda x, a, s, z: a * x + s**2 * z, "do not square it"),
        (lesson.check_add_noise, lambda x, a, s, z: a**2 * x + s * z, "sqrt(alpha_bar) already"),
        (lesson.check_add_noise, lambda x, a, s, z: a**2 * x + s**2 * z, "square neither"),
        (lesson.check_add_noise, lambda x, a, s, z: x + s * z, "not shrunk"),
        (lesson.check_add_noise, lambda x, a, s, z: s * x + a * z, "alpha belongs to the image"),
        (
            lesson.check_add_noise,
            lambda x, a, s, z: a * x + s * torch.randn_like(x),
            "off by up to",
        ),
        (lesson.check_denoise, variant(shrink=False), "compare it with alpha * data"),
        (lesson.check_denoise, variant(power=1), "sigma is not squared"),
        (lesson.check_denoise, variant(half=1.0), "has a 2 below"),
        (lesson.check_denoise, variant(square=1), "distance is squared"),
        (lesson.check_denoise, variant(sign=1.0), "the sign"),
        (lesson.check_denoise, variant(dim=0), "softmax over the data"),
        (lesson.check_denoise, nearest, "that is the nearest image"),
        (lesson.check_denoise, lambda x, d, a, s: a * denoise(x, d, a, s), "average the clean"),
        (lesson.check_denoise, lambda x, d, a, s: denoise(x, d, a, s).flatten(1), "expected shape"),
    ],
)
def test_each_mistake_is_taught(check, mistake, sentence):
    told = check.verdict(mistake)
    assert told.startswith("not yet right: ") and sentence in told, told
