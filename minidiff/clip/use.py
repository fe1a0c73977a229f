"""What a trained CLIP is good for: naming pictures, finding them, and showing what it looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.clip.model import CLIP
from minidiff.clip.preprocess import Preprocess

Found = tuple[float, Path]  # a cosine, and the file it belongs to


@torch.no_grad()
def text_features(model: CLIP, texts: Sequence[str]) -> Tensor:
    """Unit embeddings (N, embed) of texts."""
    tokens = model.tokenize(texts).to(model.logit_scale.device)
    return F.normalize(model.encode_text(tokens).float(), dim=-1)


@torch.no_grad()
def image_features(model: CLIP, images: Tensor, batch: int = 64) -> Tensor:
    """Unit embeddings (N, embed) of images (N,3,size,size) as `Preprocess` makes them."""
    if images.ndim != 4 or not len(images):
        raise ValueError(f"expected images (N, 3, H, W), got {tuple(images.shape)}")
    device = model.logit_scale.device
    parts = [model.encode_image(part.to(device)).float() for part in images.split(batch)]
    return F.normalize(torch.cat(parts), dim=-1)


def encoder(model: CLIP) -> Callable[[Tensor], Tensor]:
    """encode(images) -> unit embeddings (B, embed) of images (B,3,H,W) in [-1, 1] of any size.

    Differentiable with respect to the images; the model's weights are frozen. A CLIP of 224 px sees
    small pictures enlarged. Values outside [-1, 1], as predictions of x0 have, are let through.
    """
    model.requires_grad_(False)
    preprocess, size = Preprocess(model.config), model.config.size

    def encode(images: Tensor) -> Tensor:
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
        seen = model.encode_image(preprocess.standardise((images + 1) / 2))
        return F.normalize(seen.float(), dim=-1)

    return encode


def zero_shot(
    model: CLIP,
    images: Tensor,
    classes: Sequence[str],
    templates: Sequence[str] = ("a photo of a {}",),
) -> Tensor:
    """Probabilities (N, classes) that images (N,3,size,size) show each class (Radford et al. 2021,
    section 3.1.4): a class is the mean of its name in all templates, "{}" standing for the name.
    """
    if not classes or not templates or any("{}" not in template for template in templates):
        raise ValueError("expected class names, and templates that say where the name stands: {}")
    named = [template.format(name) for name in classes for template in templates]
    texts = text_features(model, named).reshape(len(classes), len(templates), -1)
    texts = F.normalize(texts.mean(dim=1), dim=-1)  # (classes, embed)
    scale = model.logit_scale.exp().float().detach()
    return (scale * image_features(model, images) @ texts.T).softmax(dim=-1)


def search(
    model: CLIP, preprocess: Preprocess, text: str, paths: Sequence[Path], best: int = 16
) -> list[Found]:
    """The picture files that fit a text best, best first, with their cosines.

    Files that `load_image` cannot read are left out; ValueError if it can read none.
    """
    from tqdm.auto import tqdm

    from minidiff.data.images import load_image, to_pil

    wanted, found = text_features(model, [text])[0], []
    for path in tqdm(paths, desc="looking at", unit="picture", delay=1, disable=None):
        try:
            pixels = preprocess(to_pil(load_image(path)))
        except (OSError, ValueError):  # no picture, or a damaged one
            continue
        cosine = image_features(model, pixels[None])[0] @ wanted
        found.append((cosine.item(), path))
    if not found:
        raise ValueError(f"none of {len(paths)} files is a picture")
    return sorted(found, reverse=True)[:best]


def looks_at(model: CLIP, images: Tensor, texts: Sequence[str]) -> Tensor:
    """Which patches make each image fit its text: (N, h, w), from 0, largest 1.

    Attention rolled out over the layers, weighted by the gradient of the cosine (Chefer et al.
    2021, equations 5 and 6). Images (N,3,size,size), a text an image; a vision transformer only.
    """
    if model.config.is_resnet or len(images) != len(texts):
        raise ValueError("expected a vision transformer, and as many texts as images")
    probs = []

    def tap(site: str, value: Tensor) -> Tensor:
        probs.append(value)
        return value

    wanted = text_features(model, texts)
    with torch.enable_grad():
        x = images.to(wanted.device).requires_grad_()
        seen = F.normalize(model.encode_image(x, tap=tap).float(), dim=-1)
        gradients = torch.autograd.grad((seen * wanted).sum(), probs)
    tokens = probs[0].shape[-1]
    rolled = torch.eye(tokens, device=wanted.device).expand(len(images), -1, -1)
    for a, gradient in zip(probs, gradients, strict=True):
        a = (a.detach().float() * gradient.float()).clamp(min=0).mean(dim=1)  # (N, tokens, tokens)
        rolled = rolled + a @ rolled
    side = model.config.size // model.config.patch
    shown = rolled[:, 0, 1:].reshape(-1, side, side)
    return shown / shown.amax((1, 2), keepdim=True).clamp(min=1e-12)
