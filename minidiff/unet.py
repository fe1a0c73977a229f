"""The network: DDPM's UNet (Ho et al. 2020, appendix B), with any `Condition`. Read it from top
to bottom: residual block, attention, UNet; the time embedding is in layers.py.

A `tap(site, value) -> value` sees, and may replace, values inside. Sites: "down0", "mid.first",
"mid", "up0" (a block's output, (B,C,H,W)) and "up1.self.probs", "up1.cross.probs" (attention,
(B, heads, N, M)). The number counts levels from full resolution; a level of several blocks calls
its sites once a block, in order: probabilities first, then the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.condition import Condition
from minidiff.layers import (
    GroupNorm,
    SiteTap,
    TimeEmbedding,
    UpsamplingConv,
    attention,
    silu,
    zeros,
)


@dataclass(frozen=True)
class UNetConfig:
    """The sizes of a UNet; the defaults are DDPM's CIFAR-10 network, 35.7M parameters."""

    in_channels: int = 3  # those of the noisy image, and of a condition's image if there is one
    out_channels: int = 3
    channels: int = 128  # width at full resolution
    multipliers: tuple[int, ...] = (1, 2, 2, 2)  # of the width, one a level; each halves the size
    blocks: int = 2  # residual blocks a level
    attention: tuple[int, ...] = (1,)  # levels that attend to themselves (the middle always does)
    cross_attention: tuple[int, ...] = ()  # levels that attend to the context, as the middle does
    head_dim: int | None = None  # channels of an attention head; None: one head
    classes: int = 0  # number of class labels
    null_class: bool = True  # one label more, `classes`, that stands for "no class"
    context_dim: int = 0  # channels of a token sequence, 0 for none
    vector_dim: int = 0  # length of a vector that joins the time embedding, 0 for none
    patch: int = 1  # 2: work on 2x2 pixels folded into channels, a quarter of the cost
    groups: int = 32  # of group normalisation
    norm_eps: float = 1e-6
    dropout: float = 0.1
    scale_shift: bool = False  # time scales and shifts the normalised features, not only shifts
    cosine_first: bool = False  # the order of sines and cosines in the time embedding
    frequency_shift: int = 1  # 1: the last time frequency is exactly 1/10000
    pad_both_sides: bool = False  # of the strided convolution that halves the size

    def __post_init__(self):
        for name in ("multipliers", "attention", "cross_attention"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        levels = range(len(self.multipliers))
        if not levels or min(self.channels, *self.multipliers, self.blocks, self.patch) < 1:
            raise ValueError("a UNet needs a level; channels, multipliers, blocks and patch from 1")
        if not {*self.attention, *self.cross_attention} <= set(levels):
            raise ValueError(f"attention is asked for at a level that is not one of {list(levels)}")
        for width in (self.channels * m for m in self.multipliers):
            if width % self.groups or width % (self.head_dim or width) or width % self.patch**2:
                raise ValueError(
                    f"a level of {width} channels does not divide into {self.groups} groups, heads "
                    f"of {self.head_dim or width} and patches of {self.patch**2} pixels"
                )


class ResidualBlock(nn.Module):
    """Two convolutions around the time embedding, added to the input."""

    def __init__(self, c: UNetConfig, width_in: int, width: int):
        super().__init__()
        self.scale_shift = c.scale_shift
        self.norm1 = GroupNorm(c.groups, width_in, c.norm_eps)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time = nn.Linear(4 * c.channels, 2 * width if c.scale_shift else width)
        self.norm2 = GroupNorm(c.groups, width, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)
        self.conv2 = zeros(nn.Conv2d(width, width, 3, padding=1))
        self.skip = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        time = self.time(emb)[:, :, None, None]  # (B, width or 2*width, 1, 1)
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + time)
        return self.skip(x) + self.conv2(self.dropout(silu(h)))


class Attention(nn.Module):
    """Every pixel looks at every pixel, or at every token of a context (B,L,D).

    To ask for its tokens a pixel is told where it is: else "a star left of a ring" takes many times
    longer to learn. 1x1 convolutions are the linear maps of images, with nothing transposed.
    """

    def __init__(self, c: UNetConfig, width: int, context_dim: int = 0):
        super().__init__()
        self.heads = width // (c.head_dim or width)
        self.norm = GroupNorm(c.groups, width, c.norm_eps)
        if context_dim:
            self.q = nn.Conv2d(width, width, 1)
            self.place = nn.Conv2d(2, width, 1, bias=False)
            self.kv = nn.Linear(context_dim, 2 * width)
        else:
            self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = zeros(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor, context: Tensor | None, tap: SiteTap | None, site: str) -> Tensor:
        h = self.norm(x)
        if context is None:
            q, k, v = self.qkv(h).chunk(3, dim=1)  # each (B,C,H,W)
        else:
            rows, columns = (torch.linspace(-1, 1, n, device=h.device) for n in h.shape[2:])
            q = self.q(h) + self.place(torch.stack(torch.meshgrid(rows, columns, indexing="ij")))
            k, v = self.kv(context).transpose(1, 2).chunk(2, dim=1)  # each (B,C,L)
        split = (len(x), self.heads, x.shape[1] // self.heads, -1)
        q, k, v = q.reshape(split), k.reshape(split), v.reshape(split)  # (B, heads, d, N or M)
        h = attention(q, k, v, tap and (lambda probs: tap(site, probs)))  # (B, heads, d, H*W)
        return x + self.out(h.reshape(x.shape))


class Block(nn.Module):
    """A residual block, then self-attention and cross-attention where its level has them."""

    def __init__(
        self, c: UNetConfig, width_in: int, width: int, site: str, attends: bool, crosses: bool
    ):
        super().__init__()
        self.site = site
        self.residual = ResidualBlock(c, width_in, width)
        self.self_attention = Attention(c, width) if attends else None
        self.cross = Attention(c, width, c.context_dim) if crosses and c.context_dim else None

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, tap: SiteTap | None):
        h = self.residual(x, emb)
        if self.self_attention is not None:
            h = self.self_attention(h, None, tap, f"{self.site}.self.probs")
        if self.cross is not None:
            h = self.cross(h, context, tap, f"{self.site}.cross.probs")
        return h if tap is None else tap(self.site, h)


class Down(nn.Module):
    """Half the size, by a strided convolution."""

    def __init__(self, c: UNetConfig, width: int):
        super().__init__()
        self.pad = (1, 1, 1, 1) if c.pad_both_sides else (0, 1, 0, 1)
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pad))


class Up(nn.Module):
    """Twice the size, by repeating pixels and a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = UpsamplingConv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class UNet(nn.Module):
    """network(x, t, condition) -> out, with t (B,) from 0 to T-1.

    x is (B, in_channels, H, W), with H and W divisible by patch * 2^(levels-1); out is
    (B, out_channels, H, W). The condition has label (B,) where there are classes, tokens
    (B, L, context_dim) and vector (B, vector_dim) where these have a size; its image (B,C,H,W) is
    concatenated to x, and the two have in_channels together. ValueError for other shapes, and for a
    field that the network does not take.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = c = config
        widths = [c.channels * m for m in c.multipliers]
        emb = 4 * c.channels
        self.time = TimeEmbedding(
            c.channels, cosine_first=c.cosine_first, frequency_shift=c.frequency_shift
        )
        self.labels = nn.Embedding(c.classes + c.null_class, emb) if c.classes else None
        self.pooled = nn.Linear(c.context_dim, emb) if c.context_dim else None
        self.vector = nn.Linear(c.vector_dim, emb) if c.vector_dim else None
        self.stem = nn.Conv2d(c.in_channels * c.patch**2, widths[0], 3, padding=1)

        self.down = nn.ModuleList()  # one list of blocks a level, then one that halves the size
        skips = [width := widths[0]]  # the width of everything the way up will be given back
        for i, w in enumerate(widths):
            level, attends = nn.ModuleList(), (i in c.attention, i in c.cross_attention)
            for _ in range(c.blocks):
                level.append(Block(c, width, w, f"down{i}", *attends))
                skips.append(width := w)
            if i < len(widths) - 1:
                level.append(Down(c, w))
                skips.append(w)
            self.down.append(level)

        first = Block(c, width, width, "mid.first", True, True)
        self.mid = nn.ModuleList([first, Block(c, width, width, "mid", False, False)])

        self.up = nn.ModuleList()
        for i, w in reversed(list(enumerate(widths))):
            level, attends = nn.ModuleList(), (i in c.attention, i in c.cross_attention)
            for _ in range(c.blocks + 1):
                level.append(Block(c, width + skips.pop(), w, f"up{i}", *attends))
                width = w
            if i > 0:
                level.append(Up(w))
            self.up.append(level)

        self.norm = GroupNorm(c.groups, width, c.norm_eps)
        # with a patch, features and the input, as much as the noise calls for, meet on real pixels
        self.gain = zeros(nn.Linear(emb, c.in_channels)) if c.patch > 1 else None
        fine = width if c.patch == 1 else width // c.patch**2 + c.in_channels
        self.head = zeros(nn.Conv2d(fine, c.out_channels, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Condition | None = None,
        *,
        tap: SiteTap | None = None,
    ) -> Tensor:
        given = Condition() if condition is None else condition
        if not isinstance(given, Condition):
            raise ValueError(
                f"the condition is a {type(given).__name__}: expected minidiff.Condition or None"
            )
        if given.image is not None:
            x = torch.cat([x, given.image], dim=1)  # (B, in_channels, H, W)
        self._check(x, t, given)
        context, emb = given.tokens, self.embed(t, given)
        h = self.stem(F.pixel_unshuffle(x, self.config.patch))
        skips = [h]
        for level in self.down:
            for layer in level:
                h = layer(h) if isinstance(layer, Down) else layer(h, emb, context, tap)
                skips.append(h)
        for block in self.mid:
            h = block(h, emb, context, tap)
        for level in self.up:
            for layer in level:
                if isinstance(layer, Up):
                    h = layer(h)
                else:
                    h = layer(torch.cat([h, skips.pop()], dim=1), emb, context, tap)

        h = silu(self.norm(h))
        if self.gain is not None:
            fine = x * (1 + self.gain(emb)[:, :, None, None])  # (B, in_channels, H, W)
            h = torch.cat([F.pixel_shuffle(h, self.config.patch), fine.to(h.dtype)], dim=1)
        return self.head(h).to(x.dtype)

    def embed(self, t: Tensor, condition: Condition) -> Tensor:
        """Time, label, vector and the mean of the tokens as one vector (B, 4*channels)."""
        emb = self.time(t)
        if self.labels is not None:
            emb = emb + self.labels(condition.label)
        if self.vector is not None:
            emb = emb + self.vector(condition.vector)
        if self.pooled is not None:
            emb = emb + self.pooled(condition.tokens.mean(dim=1))
        return F.silu(emb)

    def _check(self, x: Tensor, t: Tensor, given: Condition) -> None:
        """x has the condition's image among its channels already."""
        c, B, w, real = self.config, len(x), self.stem.weight, x.is_floating_point()
        fold = c.patch * 2 ** (len(c.multipliers) - 1)
        if x.ndim != 4 or x.shape[1] != c.in_channels or x.shape[2] % fold or x.shape[3] % fold:
            lacks = x.ndim == 4 and x.shape[1] < c.in_channels and given.image is None
            raise ValueError(
                f"got images of shape {tuple(x.shape)}: expected (B, {c.in_channels}, H, W) with H "
                f"and W divisible by {fold}"
                + ("; some channels may be those of Condition(image=...)" if lacks else "")
            )
        if not real or x.device != w.device or torch.float64 in {x.dtype} ^ {w.dtype}:
            raise ValueError(f"images {x.dtype} on {x.device}, network {w.dtype} on {w.device}")
        if t.shape != (B,):
            raise ValueError(f"got times of shape {tuple(t.shape)}: expected ({B},)")
        if self.labels is None:
            _refuse("label", given.label)
        else:
            n, label = self.labels.num_embeddings, given.label
            fits = label is not None and label.shape == (B,) and not label.is_floating_point()
            if fits and label.device.type == "cpu":  # a GPU asserts by itself
                fits = bool((label >= 0).all() and (label < n).all())
            if not fits:
                raise ValueError(f"this network needs ({B},) integer labels from 0 to {n - 1}")
        _check_field("vector", given.vector, (B, c.vector_dim))
        _check_field("tokens", given.tokens, (B, None, c.context_dim))


def _check_field(name: str, value: Tensor | None, shape: tuple[int | None, ...]) -> None:
    """ValueError unless a field has the shape (None: any length); 0 features: it must be None."""
    if shape[-1] == 0:
        return _refuse(name, value)
    fits = value is not None and len(value.shape) == len(shape)
    if not fits or any(n not in (None, m) for n, m in zip(shape, value.shape, strict=True)):
        wanted = ", ".join("L" if n is None else str(n) for n in shape)
        raise ValueError(f"this network needs {name} of shape ({wanted})")


def _refuse(name: str, value: Tensor | None) -> None:
    if value is not None:
        raise ValueError(f"this network takes no {name}: expected {name} = None")
