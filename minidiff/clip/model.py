"""CLIP (Radford et al. 2021): an image encoder and a text encoder that meet in one space.

Layers are named as in openai/CLIP, so that its weights and open_clip's fit as they are. A `tap` is
a function tap(site, probs) -> probs that sees, and may replace, the attention (B, heads, N, M) of
the sites "image0", "image1", ... and "text0", "text1", ..., one a block.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.device import autocast
from minidiff.layers import SiteTap

if TYPE_CHECKING:
    from minidiff.clip.tokenizer import Tokenizer


@dataclass(frozen=True)
class CLIPConfig:
    """The sizes of a CLIP; the defaults are OpenAI's ViT-B/32, 151M parameters."""

    embed: int = 512  # channels of the space where images and texts meet
    size: int = 224  # side of the images, pixels
    patch: int = 32  # side of a patch, pixels; a ResNet has none
    width: int = 768  # of the image encoder
    layers: int | tuple[int, int, int, int] = 12  # four numbers: the blocks of a ResNet's stages
    heads: int = 12
    hidden: int | None = None  # inside a block, between its two linear maps; None: four times width
    context: int = 77  # tokens of a text at most
    vocabulary: int = 49408
    end: int = 49407  # the token that ends a text
    merges: tuple[tuple[str, str], ...] | None = None  # of its own tokenizer; None: the published
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_hidden: int | None = None
    quick_gelu: bool = True  # OpenAI's x*sigmoid(1.702x), up to 0.02 away from GELU
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # of red, green, blue,
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)  # which `normalise` uses

    def __post_init__(self):
        for name in ("layers", "mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, int):
                object.__setattr__(self, name, tuple(value))
        if self.merges is not None:
            object.__setattr__(self, "merges", tuple(map(tuple, self.merges)))
        if self.is_resnet and len(self.layers) != 4:
            raise ValueError(f"a ResNet has four stages, not {len(self.layers)}")
        unit = 32 if self.is_resnet else self.patch
        if self.size % unit:
            raise ValueError(f"images of {self.size} pixels do not divide into patches of {unit}")
        features = self.width * 32 if self.is_resnet else self.width
        for width, heads in ((features, self.heads), (self.text_width, self.text_heads)):
            if width % heads:
                raise ValueError(f"a width of {width} does not divide into {heads} heads")
        if not 0 <= self.end < self.vocabulary:
            raise ValueError(f"the end token {self.end} is not one of the {self.vocabulary} tokens")

    @property
    def is_resnet(self) -> bool:
        return isinstance(self.layers, tuple)


# ------------------------------------------------------------------------------------ transformers


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (B,N,C) times weight^T plus bias. In float32 on several cores as a convolution, which is
    oneDNN's there: the matrix product that torch takes otherwise can be half as fast."""
    as_it_is = x.device.type != "cpu" or x.dtype != torch.float32 or torch.get_num_threads() == 1
    if as_it_is or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    pixels = x.transpose(1, 2)[:, :, None]  # (B,C,1,N)
    return F.conv2d(pixels, weight[:, :, None, None], bias)[:, :, 0].transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, tap=None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with q (B,h,N,d), k and v (B,h,M,d); returns (B,h,N,d).

    `causal`: no token sees those after it. Fused on GPUs, unless `tap` wants to see the
    probabilities (B,h,N,M). Written out on CPUs, where that is faster in bfloat16, and on mps,
    where the fused kernel of torch 2.8 to 2.11 is wrong for few queries.
    """
    if tap is None and q.device.type == "cuda":
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    B, h, N, d = q.shape
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))  # (B*h,N or M,d)
    mask = q.new_zeros(N, k.shape[1])
    if causal:
        mask = mask.fill_(-math.inf).triu(1)
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=d**-0.5)  # (B*h,N,M)
    probs = scores.softmax(dim=-1)
    if tap is not None:
        probs = tap(probs.unflatten(0, (B, h))).flatten(0, 1)
    return (probs @ v).unflatten(0, (B, h))


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """Every token (B,N,width) looks at every token, or at those before it."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor, tap) -> Tensor:
        qkv = linear(x, self.in_proj_weight, self.in_proj_bias)  # (B,N,3*width)
        qkv = qkv.unflatten(-1, (3, self.heads, -1)).transpose(1, 3)  # (B,h,3,N,d)
        x = attend(*qkv.unbind(2), self.causal, tap)  # (B,h,N,d)
        return self.out_proj(x.transpose(1, 2).flatten(2))  # (B,N,width)


class Block(nn.Module):
    """Attention over the tokens, then a small network on each; both added to the input."""

    def __init__(self, width: int, heads: int, hidden: int, quick_gelu: bool, causal: bool):
        super().__init__()
        self.quick_gelu = quick_gelu
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal)
        self.mlp = nn.ModuleDict({"c_fc": Linear(width, hidden), "c_proj": Linear(hidden, width)})

    def forward(self, x: Tensor, tap, token: Tensor | None = None) -> Tensor:
        """x (B,N,width), or with `token` (B,) only that one's (B,1,width)."""
        x = x + self.attn(self.ln_1(x), tap)
        if token is not None:
            x = x[torch.arange(len(x), device=x.device), token][:, None]
        h = self.mlp["c_fc"](self.ln_2(x))  # (B,N,hidden)
        h = h * (1.702 * h).sigmoid_() if self.quick_gelu else F.gelu(h)
        return x + self.mlp["c_proj"](h)


class Transformer(nn.Module):
    """Blocks one after the other: tokens (B,N,width) to the state (B,width) of one of them, which
    alone goes all the way through the last block."""

    def __init__(
        self,
        site: str,
        width: int,
        layers: int,
        heads: int,
        hidden: int | None,
        quick_gelu: bool,
        causal: bool = False,
    ):
        super().__init__()
        self.site = site
        self.resblocks = nn.ModuleList(
            Block(width, heads, hidden or 4 * width, quick_gelu, causal) for _ in range(layers)
        )
        for block in self.resblocks:  # as OpenAI: the more layers, the less each adds
            add = (2 * layers * width) ** -0.5
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=add)
            nn.init.zeros_(block.attn.out_proj.bias)
            nn.init.normal_(block.mlp["c_fc"].weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp["c_proj"].weight, std=add)

    def forward(self, x: Tensor, token: Tensor, tap: SiteTap | None = None) -> Tensor:
        for i, block in enumerate(self.resblocks, 1):
            site = f"{self.site}{i - 1}"
            probs_tap = tap and (lambda probs, site=site: tap(site, probs))
            x = block(x, probs_tap, token if i == len(self.resblocks) else None)
        return x[:, 0]


class VisionTransformer(nn.Module):
    """Images (B,3,size,size) -> (B,embed): patches as tokens, and one token more for the whole."""

    def __init__(self, c: CLIPConfig):
        super().__init__()
        tokens, scale = (c.size // c.patch) ** 2 + 1, c.width**-0.5
        self.conv1 = nn.Conv2d(3, c.width, c.patch, stride=c.patch, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(c.width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, c.width))
        self.ln_pre, self.ln_post = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
        self.transformer = Transformer("image", c.width, c.layers, c.heads, c.hidden, c.quick_gelu)
        self.proj = nn.Parameter(scale * torch.randn(c.width, c.embed))

    def forward(self, x: Tensor, tap: SiteTap | None = None) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)  # (B,patches,width)
        whole = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([whole, x], dim=1) + self.positional_embedding  # (B,1+patches,width)
        first = torch.zeros(len(x), dtype=torch.long, device=x.device)
        x = self.transformer(self.ln_pre(x), first, tap)  # (B,width)
        return self.ln_post(x) @ self.proj  # (B,embed)


# ----------------------------------------------------------------------------------------- ResNets


class Bottleneck(nn.Module):
    """Three convolutions added to the input; a stride is an average over pixels, so that nothing
    aliases. (B,width_in,H,W) -> (B,4*width,H/stride,W/stride)"""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv(width_in, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(stride)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        nn.init.zeros_(self.bn3.weight)  # the block starts as the identity
        skip = [nn.AvgPool2d(stride), conv(width_in, 4 * width, 1), nn.BatchNorm2d(4 * width)]
        named = OrderedDict(zip(("-1", "0", "1"), skip, strict=True))
        is_same = stride == 1 and width_in == 4 * width
        self.downsample = nn.Identity() if is_same else nn.Sequential(named)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.pool(F.relu(self.bn2(self.conv2(h))))
        return F.relu(self.bn3(self.conv3(h)) + self.downsample(x))


class AttentionPool(nn.Module):
    """Features (B,C,H,W) -> (B,embed): their mean looks at all of them."""

    def __init__(self, tokens: int, width: int, heads: int, embed: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(tokens, width) / width**0.5)
        self.q_proj, self.k_proj, self.v_proj = (Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, embed)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, x: Tensor, tap: SiteTap | None = None) -> Tensor:
        x = x.flatten(2).transpose(1, 2)  # (B,H*W,C)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding
        parts = (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))  # q (B,1,C)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = attend(q, k, v, tap=tap and (lambda probs: tap("image0", probs)))  # (B,h,1,d)
        return self.c_proj(x.flatten(1))  # (B,embed)


class ModifiedResNet(nn.Module):
    """Images (B,3,size,size) -> (B,embed): a ResNet-D with attention in place of the last mean."""

    def __init__(self, c: CLIPConfig):
        super().__init__()
        half = c.width // 2
        self.conv1, self.bn1 = conv(3, half, 3, stride=2), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = conv(half, half, 3), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv(half, c.width, 3), nn.BatchNorm2d(c.width)
        width_in = c.width
        for i, blocks in enumerate(c.layers):
            width, stage = c.width * 2**i, []
            for j in range(blocks):
                stage.append(Bottleneck(width_in, width, stride=2 if i > 0 and j == 0 else 1))
                width_in = 4 * width
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.attnpool = AttentionPool((c.size // 32) ** 2 + 1, width_in, c.heads, c.embed)

    def forward(self, x: Tensor, tap: SiteTap | None = None) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (B,width/2,size/2,size/2)
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)  # (B,width,size/4,size/4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B,32*width,size/32,size/32)
        return self.attnpool(x, tap)


def conv(width_in: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size but for its stride; the normalisation after it shifts."""
    return nn.Conv2d(width_in, width, kernel, stride, padding=kernel // 2, bias=False)


# --------------------------------------------------------------------------------------------- CLIP


class CLIP(nn.Module):
    """model(image, text) -> logits (B,N) of each image for each text, and their transpose (N,B).

    Images are (B,3,size,size) as `Preprocess` makes them, texts (N,L) tokens with L <= context, as
    `tokenize` makes them.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = c = config
        self.card: dict = {}
        # `load` sets it: compute in the precision that is fastest on the device, whatever the
        # precision of the weights; `float()` takes it back
        self.fast = False
        self.visual = ModifiedResNet(c) if c.is_resnet else VisionTransformer(c)
        self.token_embedding = nn.Embedding(c.vocabulary, c.text_width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(c.context, c.text_width))
        self.transformer = Transformer(
            "text",
            c.text_width,
            c.text_layers,
            c.text_heads,
            c.text_hidden,
            c.quick_gelu,
            causal=True,
        )
        self.ln_final = nn.LayerNorm(c.text_width)
        scale = c.text_width**-0.5
        self.text_projection = nn.Parameter(scale * torch.randn(c.text_width, c.embed))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The one whose tokens this model was trained on."""
        from minidiff.clip.tokenizer import Tokenizer, published

        return published() if self.config.merges is None else Tokenizer(self.config.merges)

    def tokenize(self, texts: str | Sequence[str], truncate: bool = False) -> Tensor:
        """Texts to tokens (N, context) for `encode_text`; see `Tokenizer.tokenize`."""
        return self.tokenizer.tokenize(texts, self.config.context, truncate)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, and of the embeddings."""
        return self.visual.conv1.weight.dtype

    def float(self) -> CLIP:
        """Weights and arithmetic in float32, whatever is faster."""
        self.fast = False
        return super().float()

    def encode_image(self, image: Tensor, *, tap: SiteTap | None = None) -> Tensor:
        """Embeddings (B,embed), of any length, of images (B,3,size,size).

        ValueError for images of another size, or on another device than the model.
        """
        size = self.config.size
        if image.ndim != 4 or image.shape[1:] != (3, size, size):
            raise ValueError(
                f"got images of shape {tuple(image.shape)}: expected (B, 3, {size}, {size})"
            )
        self._check_device(image, "images")
        with self._precision(image):
            return self.visual(image.to(self.dtype), tap).to(self.dtype)

    def encode_text(self, text: Tensor, *, tap: SiteTap | None = None) -> Tensor:
        """Embeddings (N,embed), of any length, of tokens (N,L).

        The embedding is the state at the first end token, or at the largest where there is none. It
        sees nothing after itself, so what all texts have after it is left out. ValueError for too
        long texts, for anything but tokens of the vocabulary, and for another device.
        """
        c = self.config
        if text.ndim != 2 or text.shape[1] > c.context or text.is_floating_point():
            raise ValueError(
                f"got texts of shape {tuple(text.shape)} and {text.dtype}: expected integer tokens "
                f"(N, L) with L at most {c.context}"
            )
        self._check_device(text, "texts")
        if text.device.type == "cpu" and not ((text >= 0) & (text < c.vocabulary)).all():
            raise ValueError(f"got a token that is not from 0 to {c.vocabulary - 1}")
        end = text.masked_fill(text == c.end, c.vocabulary).argmax(dim=1)  # (N,)
        length = int(end.max()) + 1 if len(end) else 1
        with self._precision(text):
            x = self.token_embedding(text[:, :length]) + self.positional_embedding[:length]
            x = self.transformer(x, end, tap)  # (N,text_width)
            return (self.ln_final(x) @ self.text_projection).to(self.dtype)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        images = F.normalize(self.encode_image(image), dim=-1)
        texts = F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * images @ texts.T  # (B,N)
        return logits, logits.T

    def _precision(self, like: Tensor) -> contextlib.AbstractContextManager:
        return autocast(like.device) if self.fast else contextlib.nullcontext()

    def _check_device(self, x: Tensor, what: str) -> None:
        if x.device != self.logit_scale.device:
            raise ValueError(
                f"the {what} are on {x.device}, the model on {self.logit_scale.device}"
            )
