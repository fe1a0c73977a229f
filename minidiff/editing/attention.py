"""What each word looks at: cross-attention maps, gathered by a tap while a sampler runs.

    maps = WordMaps()
    sample(ddim_step, model.denoiser(captions, tap=maps), x, path)
    where = maps.of(captions, "circle")  # (B,1,16,16)

Tokens are words, as those of `minidiff.text`: the token i of a caption is its word i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.schedule import NoiseLevel
from minidiff.text import words_of


class WordMaps:
    """A tap that changes nothing and adds up the cross-attention at size x size pixels.

    Over all blocks of that size, all heads and all steps, as Prompt-to-Prompt draws them.
    """

    def __init__(self, size: int = 16):
        self.size = size
        self._total: Tensor | None = None
        self._count = 0

    def __call__(self, level: NoiseLevel, site: str, value: Tensor) -> Tensor:
        if site.endswith("cross.probs") and value.shape[2] == self.size**2:
            seen = value.detach().float().mean(dim=1)  # (B,N,L)
            self._total = seen if self._total is None else self._total + seen
            self._count += 1
        return value

    def tokens(self) -> Tensor:
        """The mean map of every token (B,L,size,size); over the tokens they sum to 1.

        Raises ValueError if no cross-attention of this size was seen.
        """
        if self._total is None:
            raise ValueError(
                f"no cross-attention at {self.size} x {self.size} pixels was seen: expected to be "
                "the tap of a network that has it"
            )
        return (self._total / self._count).mT.unflatten(2, (self.size, self.size))

    def of(self, captions: str | Sequence[str], words: str) -> Tensor:
        """The map of a word, or of the words of a phrase together, in each caption (B,1,size,size).

        One caption for all images, or one each. ValueError if a caption lacks the words.
        """
        return attended(self.tokens(), captions, words)


def attended(tokens: Tensor, captions: str | Sequence[str], words: str) -> Tensor:
    """Of maps (B,L,h,w), one a token, the sum of those of the words: (B,1,h,w)."""
    chosen = token_rows(captions, words, tokens.shape[1], len(tokens)).to(tokens)  # (B,L)
    return torch.einsum("blhw,bl->bhw", tokens, chosen)[:, None]


def token_rows(captions: str | Sequence[str], words: str, length: int, n: int) -> Tensor:
    """1 at the tokens of the words, 0 elsewhere: (n, length), one caption for all or one each."""
    rows = torch.zeros(n, length)
    for row, caption in zip(rows, one_each(captions, n), strict=True):
        row[positions(caption, words)] = 1
    return rows


def positions(caption: str, words: str) -> list[int]:
    """The tokens of a word, or of a phrase, wherever it stands in the caption; else ValueError."""
    here, wanted = words_of(caption), words_of(words)
    starts = range(len(here) - len(wanted) + 1)
    found = [i for i in starts if wanted and here[i : i + len(wanted)] == wanted]
    if not found:
        raise ValueError(f"there is no {words!r} in {caption!r}")
    return [i + k for i in found for k in range(len(wanted))]


def one_each(captions: str | Sequence[str], n: int) -> list[str]:
    """A caption for each of n images; ValueError unless one is given, or n."""
    captions = listed(captions)
    if len(captions) not in (1, n):
        raise ValueError(f"{len(captions)} captions for {n} images: expected one, or one each")
    return captions if len(captions) == n else captions * n


def listed(captions: str | Sequence[str]) -> list[str]:
    """A caption alone counts as a list of one."""
    return [captions] if isinstance(captions, str) else list(captions)
