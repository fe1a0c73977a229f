"""Prompt-to-Prompt: edit a picture by editing its caption (Hertz et al. 2022, arXiv 2208.01626).

    old, new = ["a large red circle"], ["a large red square"]
    def denoiser(tap):  # of both, the source first; the null condition is never edited
        return classifier_free(model.denoiser(old + new, tap=tap), model.denoiser(), 3)
    source, target = prompt_to_prompt(denoiser, noise, path, replace(old, new))

Cross-attention decides where each word goes. An Edit says what the target's becomes: a function of
the source's and the target's probabilities, each (B, heads, N, L), the token i being the word i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.denoiser import Denoiser, Tap
from minidiff.editing.attention import WordMaps, attended, listed, one_each, positions, token_rows
from minidiff.editing.checks import check_image, check_path
from minidiff.samplers import ddim_step, sample
from minidiff.schedule import NoiseLevel
from minidiff.text import words_of

Captions = str | Sequence[str]
Edit = Callable[[Tensor, Tensor], Tensor]
Blend = Callable[[Tensor, WordMaps], Tensor]

LARGEST_SELF = 16**2  # pixels: finer self-attention is never injected


def replace(sources: Captions, targets: Captions) -> Edit:
    """Word swap: each word looks where the word in its place did (section 3.2, first edit).

    Captions: one for all images, or one each. ValueError unless both have as many words.
    """
    for source, target in _pairs(sources, targets):
        a, b = len(words_of(source)), len(words_of(target))
        if a != b:
            raise ValueError(
                f"{source!r} has {a} words and {target!r} has {b}: replace needs as many, "
                "refine adds and drops words"
            )
    return lambda source, target: source


def refine(sources: Captions, targets: Captions) -> Edit:
    """Words common to both captions look where they did, the others where they will (second edit).

    Captions: one for all images, or one each.
    """
    pairs = _pairs(sources, targets)

    def edit(source: Tensor, target: Tensor) -> Tensor:
        rows = one_each([align(a, b, source.shape[3]) for a, b in pairs], len(source))
        index = torch.tensor(rows, device=source.device)[:, None, None]  # (B,1,1,L)
        aligned = source.gather(3, index.clamp(min=0).expand_as(source))
        return torch.where(index >= 0, aligned, target)

    return edit


def reweight(edit: Edit, targets: Captions, words: str, factor: float) -> Edit:
    """The words' probabilities after `edit`, times a factor (third edit): 0 mutes them, 2 doubles.

    They are not renormalised. ValueError if a caption lacks the words or the factor is not finite.
    """
    if not math.isfinite(factor):
        raise ValueError(f"the factor of {words!r} must be a finite number, got {factor}")

    def weighted(source: Tensor, target: Tensor) -> Tensor:
        chosen = token_rows(targets, words, source.shape[3], len(source)).to(source)  # (B,L)
        return edit(source, target) * (1 + (factor - 1) * chosen)[:, None, None]

    return weighted


def local_blend(
    sources: Captions, old: str, targets: Captions, new: str, *, threshold: float = 0.3
) -> Blend:
    """Change only where the words `old` of the source or `new` of the target look (section 3.2).

    Their mean maps so far, widened by a pixel and enlarged, are cut at `threshold` times their
    maximum; outside both areas the target's x_t becomes the source's. ValueError for a threshold
    outside (0, 1) and for words that a caption lacks.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold {threshold} is out of range: expected 0 < threshold < 1")
    said = [(sources, old), (targets, new)]
    for captions, words in said:
        for caption in listed(captions):
            positions(caption, words)  # refuses words that are not there

    def blend(x: Tensor, maps: WordMaps) -> Tensor:
        change = torch.zeros_like(x[: len(x) // 2, :1], dtype=torch.bool)  # (B,1,H,W)
        for tokens, (captions, words) in zip(maps.tokens().chunk(2), said, strict=True):
            area = F.max_pool2d(attended(tokens, captions, words), 3, stride=1, padding=1)
            area = F.interpolate(area, x.shape[2:], mode="bilinear")  # (B,1,H,W)
            change |= area > threshold * area.amax((2, 3), keepdim=True)
        source, target = x.chunk(2)
        return torch.cat([source, torch.where(change, target, source)])

    return blend


def injection(
    edit: Edit,
    path: Sequence[NoiseLevel],
    *,
    cross: float | Sequence[float] = 0.8,
    self_attention: float = 0.4,
) -> Tap:
    """The tap of a batch whose first half is the source's: it edits the attention of the second.

    `cross` is the share of the path's steps, from the first on, whose cross-attention is edited:
    for all tokens or one share each, smaller for a word that needs a shape of its own.
    `self_attention` is the share whose self-attention is the source's, up to 16 x 16 pixels.
    ValueError for shares outside [0, 1] and for another number of them than there are tokens.
    """
    check_path(path)
    shares = [cross] if isinstance(cross, int | float) else list(cross)
    for share in (*shares, self_attention):
        if not 0 <= share <= 1:
            raise ValueError(f"a share of the steps is {share}: expected 0 <= share <= 1")
    *ends, self_end = (path[round(s * (len(path) - 1))].sigma for s in (*shares, self_attention))

    def tap(level: NoiseLevel, site: str, value: Tensor) -> Tensor:
        source, target = value.chunk(2)  # (B,heads,N,L) each
        if site.endswith(".cross.probs"):
            if len(ends) not in (1, L := value.shape[3]):
                raise ValueError(f"{len(ends)} shares for {L} tokens: expected one, or one each")
            now = torch.tensor([level.sigma > end for end in ends], device=value.device)  # (1 or L)
            return torch.cat([source, torch.where(now, edit(source, target), target)])
        if site.endswith(".self.probs") and value.shape[2] <= LARGEST_SELF:
            return torch.cat([source, source]) if level.sigma > self_end else value
        return value

    return tap


def prompt_to_prompt(
    denoiser: Callable[[Tap], Denoiser],
    x: Tensor,
    path: Sequence[NoiseLevel],
    edit: Edit,
    *,
    cross: float | Sequence[float] = 0.8,
    self_attention: float = 0.4,
    blend: Blend | None = None,
    maps: WordMaps | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Images of two captions that share their noise and, at first, their attention (algorithm 1).

    `denoiser(tap)` gives a Denoiser of 2 B images: B of the source captions, then B of the targets.
    x (B,3,H,W) is the noise at path[0]: drawn, or by `invert` an image's own (then edit without
    guidance, which drifts away from the image). `cross` and `self_attention` are as in `injection`;
    `maps` gathers what the words of the 2 B images look at. DDIM: nothing is random. Returns the
    source images and the edited ones, (B,3,H,W) each; the same captions give the same images.

    Raises ValueError if the denoiser does not use the tap as said, and as `injection` does.
    """
    check_image(x, "noise")
    inject = injection(edit, path, cross=cross, self_attention=self_attention)
    maps, crossed = maps or WordMaps(), False

    def tap(level: NoiseLevel, site: str, value: Tensor) -> Tensor:
        nonlocal crossed
        if len(value) != 2 * len(x):
            raise ValueError(
                f"the tap sees {len(value)} images: expected {2 * len(x)}, the source's and the "
                "target's, and no null condition among them"
            )
        crossed = crossed or site.endswith(".cross.probs")
        return maps(level, site, inject(level, site, value))

    def after(both: Tensor, level: NoiseLevel) -> Tensor:
        if not crossed:
            raise ValueError("no cross-attention was seen: the denoiser must be built with the tap")
        return both if blend is None else blend(both, maps)

    both = torch.cat([x, x])
    both = sample(ddim_step, denoiser(tap), both, path, edit=after, progress=progress)
    source, target = both.chunk(2)
    return source, target


def align(source: str, target: str, length: int) -> list[int]:
    """For each token of the target the one of the source it comes from, -1 for a new word.

    The longest common subsequence, which is what the authors' alignment (match 1, gap 0, mismatch
    -1) amounts to. Padding after both captions stays where it is.
    """
    a, b = words_of(source), words_of(target)
    common = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]  # of a[i:] and b[j:]
    for i in reversed(range(len(a))):
        for j in reversed(range(len(b))):
            match = common[i + 1][j + 1] + 1 if a[i] == b[j] else 0
            common[i][j] = max(match, common[i + 1][j], common[i][j + 1])
    found, i, j = [-1] * length, 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            found[j], i, j = i, i + 1, j + 1
        elif common[i + 1][j] >= common[i][j + 1]:
            i += 1
        else:
            j += 1
    start = max(len(a), len(b))
    found[start:] = range(start, length)
    return found


def _pairs(sources: Captions, targets: Captions) -> list[tuple[str, str]]:
    n = max(len(listed(sources)), len(listed(targets)))
    return list(zip(one_each(sources, n), one_each(targets, n), strict=True))
