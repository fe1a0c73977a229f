"""CLIP: images and texts in one space, with openai/CLIP's calls.

from minidiff import clip

model, preprocess = clip.load("ViT-B/32")
per_image, per_text = model(preprocess(image)[None], clip.tokenize(["a diagram", "a dog"]))
"""

from typing import TYPE_CHECKING, Any

from minidiff.clip.model import CLIP, CLIPConfig
from minidiff.clip.preprocess import Preprocess
from minidiff.clip.use import encoder, looks_at, search, zero_shot
from minidiff.clip.weights import available_models, load, save

if TYPE_CHECKING:
    from minidiff.clip.tokenizer import decode, tokenize

__all__ = [
    "CLIP",
    "CLIPConfig",
    "Preprocess",
    "available_models",
    "decode",
    "encoder",
    "load",
    "looks_at",
    "save",
    "search",
    "tokenize",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    """The tokenizer's functions; it is imported when the first of them is asked for."""
    if name in ("decode", "tokenize"):
        from minidiff.clip import tokenizer

        return getattr(tokenizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
