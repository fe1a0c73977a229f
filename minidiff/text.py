"""Encoders of prompts: class names, and a small text encoder over words, trained together with the
network it serves.

As in GLIDE (Nichol et al. 2021): bidirectional attention, positions where the caption has no word
get a learned vector of their own, and the empty caption is the null condition.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.condition import Condition
from minidiff.layers import attention

Prompt = str | int | None  # a caption, the name or number of a class, or nothing

PADDING = 0
LISTED = 60  # words: of a larger vocabulary an error names only those that look alike


def words_of(caption: str) -> list[str]:
    """The words of a caption, in small letters, without its punctuation."""
    return re.findall(r"\w+", caption.lower())


def vocabulary(captions: Iterable[str]) -> tuple[str, ...]:
    """Every word of the captions, in alphabetical order."""
    return tuple(sorted({word for caption in captions for word in words_of(caption)}))


@dataclass(frozen=True)
class TextConfig:
    words: tuple[str, ...]  # the vocabulary; the word i has the id i + 1, 0 is padding
    length: int = 16  # tokens a caption
    width: int = 128
    layers: int = 2
    heads: int = 4

    def __post_init__(self):
        object.__setattr__(self, "words", tuple(self.words))
        if len(set(self.words)) != len(self.words):
            raise ValueError("the vocabulary names a word twice")


class TransformerBlock(nn.Module):
    """Attention over the tokens, then a small network on each; both added to the input."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, L, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).transpose(1, 2).chunk(3, dim=1)  # each (B,D,L)
        q, k, v = (part.reshape(B, self.heads, -1, L) for part in (q, k, v))
        x = x + self.out(attention(q, k, v).reshape(B, D, L).transpose(1, 2))
        return x + self.shrink(F.gelu(self.expand(self.norm2(x))))


class TextEncoder(nn.Module):
    """encoder(ids (B, length)) -> Condition of tokens (B, length, width)."""

    takes = "captions"

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.ids = {word: i + 1 for i, word in enumerate(config.words)}
        self.embedding = nn.Embedding(len(config.words) + 1, config.width)
        # as large as the words: with small positions it takes many times longer to learn which
        # colour belongs to which shape
        self.positions = nn.Parameter(torch.randn(config.length, config.width))
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, config.heads) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)

    def tokenize(self, captions: Sequence[Prompt]) -> Tensor:
        """Captions to ids (B, length); "" or None is the null caption.

        ValueError for a word outside the vocabulary, a caption of too many words, and a number.
        """
        captions = ["" if caption is None else caption for caption in captions]
        if numbers := [caption for caption in captions if not isinstance(caption, str)]:
            raise ValueError(f"this model takes captions, not the number {numbers[0]}")
        ids = torch.full((len(captions), self.config.length), PADDING)
        for row, caption in zip(ids, captions, strict=True):
            written = words_of(caption)
            unknown = [w for w in written if w not in self.ids]
            if unknown:
                raise ValueError(
                    f"unknown word {unknown[0]!r} in {caption!r}{self._near(unknown[0])}"
                )
            if len(written) > len(row):
                raise ValueError(
                    f"{caption!r} has {len(written)} words: expected {len(row)} at most"
                )
            row[: len(written)] = torch.tensor([self.ids[w] for w in written], dtype=ids.dtype)
        return ids

    def _near(self, word: str) -> str:
        """What an error says of the words that are known."""
        known = self.config.words
        if len(known) <= LISTED:
            return f"; the words known are {', '.join(known)}"
        near = difflib.get_close_matches(word, known, n=5, cutoff=0.6)
        alike = f", such as {', '.join(near)}" if near else ", none like it"
        return f"; {len(known)} words are known{alike}"

    def forward(self, ids: Tensor) -> Condition:
        x = self.embedding(ids) + self.positions  # (B, length, width)
        for block in self.blocks:
            x = block(x)
        return Condition(tokens=self.norm(x))


@dataclass(frozen=True)
class ClassLabels:
    """Names of classes as an encoder: encoder(ids (B,)) -> Condition of labels (B,).

    The label after the last one stands for "no class", if there is one.
    """

    names: tuple[str, ...]
    has_null: bool = True
    takes = "classes"

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))

    @property
    def config(self) -> ClassLabels:
        return self

    def tokenize(self, prompts: Sequence[Prompt]) -> Tensor:
        """Names or numbers of classes to labels (B,); ValueError for others."""
        return torch.tensor([self.label(prompt) for prompt in prompts])

    def __call__(self, ids: Tensor) -> Condition:
        return Condition(label=ids)

    def label(self, prompt: Prompt) -> int:
        if prompt is None or prompt == "":
            if not self.has_null:
                raise ValueError(f"this model needs a class: one of {', '.join(self.names)}")
            return len(self.names)
        if prompt in self.names:
            return self.names.index(prompt)
        if isinstance(prompt, Integral) and 0 <= prompt < len(self.names):  # numpy's, too
            return int(prompt)
        raise ValueError(f"unknown class {prompt!r}: expected one of {', '.join(self.names)}")
