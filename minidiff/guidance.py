"""Guidance: functions from Denoiser to Denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from minidiff.condition import Condition, concatenate, expand
from minidiff.denoiser import (
    Denoiser,
    Network,
    Prediction,
    from_x0,
    network_time,
    parametrisation,
)
from minidiff.schedule import NoiseLevel


def mix(*weighted: tuple[float, Denoiser]) -> Denoiser:
    """The weighted sum of several denoisers' predictions; negative weights push away.

    The weights must sum to 1 (ValueError otherwise) and are never renormalised: eps, x0 and v are
    affine in one another, and only such sums give the same answer in each of them.
    """
    _check_sum(weight for weight, _ in weighted)

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        parts = [(weight, d(x, level)) for weight, d in weighted if weight != 0]
        if len(parts) == 1:  # a weight of 1: exactly that denoiser, bit for bit
            return parts[0][1]
        return Prediction(sum(w * p.x0 for w, p in parts), sum(w * p.eps for w, p in parts))

    return denoise


def classifier_free(cond: Denoiser, uncond: Denoiser, scale: float) -> Denoiser:
    """eps = eps_uncond + scale * (eps_cond - eps_uncond) (Ho and Salimans 2022).

    The paper's weight is scale - 1. A negative prompt is just another `uncond`.
    """
    return mix((scale, cond), (1 - scale, uncond))


def weighted_prompts(
    network: Network,
    conditions: Sequence[Condition],
    weights: Sequence[float],
    null: Condition,
    *,
    predicts: str = "eps",
) -> Denoiser:
    """Several weighted conditions in one batched call; `null` gets 1 - sum(weights).

    Every condition has a row for each image of the batch, or one row for all of it. The rule is
    that of v-diffusion's cfg_sample (Crowson 2021): one prompt of weight 3 is guidance of scale 3.
    ValueError for another number of weights, or weights that are not finite.
    """
    if len(conditions) != len(weights):
        raise ValueError(
            f"{len(conditions)} conditions but {len(weights)} weights: expected as many"
        )
    _check_sum([1 - sum(weights), *weights])
    read = parametrisation(predicts).read
    shares = [1 - sum(weights), *weights]

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        n = len(shares)
        many = torch.cat([x] * n)  # (n*B,C,H,W), condition by condition
        condition = concatenate([expand(c, len(x)) for c in (null, *conditions)])
        out = network(many, network_time(many, level), condition).chunk(n)
        return read(x, level, sum(share * o for share, o in zip(shares, out, strict=True)))

    return denoise


def classifier(
    denoise: Denoiser, log_prob: Callable[[Tensor, NoiseLevel], Tensor], scale: float
) -> Denoiser:
    """eps -= scale * sigma * gradient of log p(y | x_t) (Dhariwal and Nichol 2021, algorithm 2).

    `log_prob(x, level)` returns (B,) and must treat the images of a batch separately.
    """
    _check_finite(scale)

    def guided(x: Tensor, level: NoiseLevel) -> Prediction:
        here, inside = _differentiable(x)
        with torch.enable_grad():
            gradient = _gradient(log_prob(here, level), here, create_graph=inside)
        return _push(x, level, denoise(x, level), scale, gradient)

    return guided


def guide_by_x0(
    denoise: Denoiser,
    log_prob: Callable[[Tensor], Tensor],
    scale: float,
    *,
    through_network: bool = True,
) -> Denoiser:
    """Guidance by any score of the predicted clean image: CLIP, a colour, a classifier.

    eps -= scale * sigma * g, with g the gradient of `log_prob(x0)` (B,) with respect to x_t. The
    shortcut `through_network=False` takes the network for a constant: it is cheaper, and too
    large at high noise (dx0/dx_t is then 1/alpha). Guides may be put around guides. Where x itself
    asks for no gradient the guided prediction is a constant: to fine-tune through a sampler, put
    the score into the loss instead.
    """
    _check_finite(scale)

    def guided(x: Tensor, level: NoiseLevel) -> Prediction:
        here, inside = _differentiable(x)
        with torch.enable_grad():
            if through_network:
                prediction = denoise(here, level)
                gradient = _gradient(log_prob(prediction.x0), here, create_graph=inside)
            else:
                with torch.set_grad_enabled(inside):
                    prediction = denoise(x, level)
                x0, _ = _differentiable(prediction.x0)
                gradient = _gradient(log_prob(x0), x0, create_graph=inside) / level.alpha
        if not inside:
            prediction = Prediction(*(part.detach() for part in prediction))
        return _push(x, level, prediction, scale, gradient)

    return guided


def interval(guided: Denoiser, plain: Denoiser, low: float, high: float) -> Denoiser:
    """`guided` where low < t <= high, `plain` elsewhere (Kynkäänniemi et al. 2024, section 3).

    Guidance at high noise costs diversity, at low noise only time: outside the interval `plain`
    alone is called. The paper bounds sigma/alpha; t is the schedule's own, 0 to T.
    """
    if not 0 <= low < high:
        raise ValueError(f"interval from t = {low} to {high}: expected 0 <= low < high")

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        return (guided if low < level.t <= high else plain)(x, level)

    return denoise


def rescale(cond: Denoiser, uncond: Denoiser, scale: float, phi: float = 0.7) -> Denoiser:
    """Classifier-free guidance without its contrast (Lin et al. 2024, equations 14 to 16).

    The guided x0 is brought to the standard deviation of the conditional one, each image by
    itself, and `phi` of that is mixed with 1 - phi of the plain one. The paper scales v, which at
    high noise is -x0; scaling eps, as is common, does much less. phi = 0 is classifier_free.
    """
    if not 0 <= phi <= 1:
        raise ValueError(f"phi = {phi} is out of range: expected 0 <= phi <= 1")
    _check_finite(scale)

    def rescaled(x: Tensor, level: NoiseLevel) -> Prediction:
        wanted, null = cond(x, level), uncond(x, level)
        guided = classifier_free(lambda *_: wanted, lambda *_: null, scale)(x, level)
        if phi == 0:  # exactly classifier_free, bit for bit
            return guided
        ratio = _contrast(wanted.x0) / _contrast(guided.x0).clamp(min=1e-8)  # (B,1,1,1)
        return from_x0(x, level, (phi * ratio + 1 - phi) * guided.x0)

    return rescaled


def clamp(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """The predicted x0 cut to [low, high], and the eps that belongs to it."""

    def clamped(x: Tensor, level: NoiseLevel) -> Prediction:
        return from_x0(x, level, denoise(x, level).x0.clamp(low, high))

    return clamped


def dynamic_threshold(denoise: Denoiser, percentile: float = 0.995) -> Denoiser:
    """Imagen's thresholding (Saharia et al. 2022, section 2.3), each image by itself.

    s = max(1, that percentile of |x0|); x0 is cut to [-s, s] and divided by s.
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"percentile {percentile} is out of range: expected 0 < percentile <= 1")

    def thresholded(x: Tensor, level: NoiseLevel) -> Prediction:
        x0 = denoise(x, level).x0
        sizes = x0.abs().float() if x0.dtype in (torch.half, torch.bfloat16) else x0.abs()
        s = torch.stack([torch.quantile(size, percentile) for size in sizes])  # (B,)
        s = s.clamp(min=1).to(x0.dtype)
        s = s.reshape(-1, *[1] * (x0.ndim - 1))
        return from_x0(x, level, x0.clamp(-s, s) / s)

    return thresholded


def _contrast(x0: Tensor) -> Tensor:
    """The standard deviation of each image (B,1,1,1), its channels together."""
    return x0.std(tuple(range(1, x0.ndim)), keepdim=True)


def _push(
    x: Tensor, level: NoiseLevel, prediction: Prediction, scale: float, gradient: Tensor
) -> Prediction:
    pure_noise = not isinstance(level.alpha, Tensor) and level.alpha == 0
    if scale == 0 or pure_noise:  # exactly unguided, bit for bit; pure noise tells nothing to score
        return prediction
    eps = prediction.eps - scale * level.sigma * gradient
    x0 = prediction.x0 + scale * level.sigma**2 / level.alpha * gradient
    return Prediction(x0, eps)


def _differentiable(x: Tensor) -> tuple[Tensor, bool]:
    """x as a guide differentiates it, and whether another guide around this one does so, too."""
    if torch.is_inference_mode_enabled() or x.is_inference():
        raise ValueError(
            "guidance by a gradient does not work in torch.inference_mode, nor on a tensor made "
            "there: use torch.no_grad, and clone the tensor"
        )
    inside = torch.is_grad_enabled() and x.requires_grad
    return (x if inside else x.detach().requires_grad_()), inside


def check_scores(scores: Tensor, images: Tensor) -> Tensor:
    """The scores as they are; ValueError unless there is one an image, which a mean is not."""
    n, is_tensor = len(images), isinstance(scores, Tensor)
    if not is_tensor or tuple(scores.shape) != (n,):
        found = f"shape {tuple(scores.shape)}" if is_tensor else type(scores).__name__
        raise ValueError(
            f"the score of {n} images: {found}, expected a tensor ({n},), one number an image"
        )
    return scores


def _gradient(scores: Tensor, x: Tensor, *, create_graph: bool) -> Tensor:
    """The gradient of each image's own score (B,) with respect to x."""
    if not check_scores(scores, x).requires_grad:
        raise ValueError("log_prob has no gradient: it, or the denoiser, treats x as a constant")
    return torch.autograd.grad(scores.sum(), x, create_graph=create_graph)[0]


def _check_finite(scale: float) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"a guidance scale or weight must be a finite number, got {scale}")


def _check_sum(weights: Iterable[float]) -> None:
    weights = list(weights)
    for weight in weights:
        _check_finite(weight)
    if abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"guidance weights must sum to 1, got {weights} with sum {sum(weights):g}")
