# %% [markdown]
# # 2. A UNet from scratch
#
# [![Open in Colab](../figures/colab.svg)](https://colab.research.google.com/github/minidiff/minidiff/blob/main/notebooks/02_unet.ipynb)
#
# Nearly every picture a diffusion model has drawn went through one network: a UNet. In this lesson
# you write all of it, some hundred lines, and each part is shown to be the library's part, number
# for number. Then you take parts away, train what is left, and see what each part is for.
#
# ![Every part of the network with the shape that leaves it](../figures/lesson_02.png)
#
# Papers: [U-Net](https://arxiv.org/abs/1505.04597) (Ronneberger et al. 2015) for the shape,
# [DDPM](https://arxiv.org/abs/2006.11239) (Ho et al. 2020, appendix B) for the parts. You need
# lesson 1: $x_t = \alpha_t x_0 + \sigma_t \epsilon$, and that a network may predict
# $v = \alpha_t \epsilon - \sigma_t x_0$.
#
# Cost: <!-- card --><!-- /card -->

# %%
import subprocess
import sys

sys.path.append("..")  # in a clone: its own minidiff, unless one is installed
try:
    from minidiff import lessons
except ImportError:  # in Colab: installed beside the torch that is there, which stays
    minidiff = "minidiff @ git+https://github.com/minidiff/minidiff"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", minidiff], check=True)
    from minidiff import lessons

LESSON = lessons.setup(2)

# %%
from itertools import chain, pairwise

import torch
import torch.nn.functional as F
from torch import nn

from minidiff import UNet, UNetConfig, add_noise, ddim_step, load, plot, sample, trajectory, unet
from minidiff import layers as library
from minidiff.data import shapes
from minidiff.guidance import clamp
from minidiff.lessons import lesson_02 as lesson
from minidiff.lessons.diagram import bars, costs, diagram
from minidiff.metrics import wilson

# %% [markdown]
# ## The result first
#
# What the network is for: it is given a noisy picture $x_t$, the time $t$, and here a caption, and
# says what is noise in it. One call each:

# %%
model = load("shapes")
scenes = shapes.random_scenes(1, LESSON.generator(2), pairs=1.0)
x0, caption = shapes.render(scenes)[0].to(model.device), shapes.caption(scenes[0])
noise = model.noise(1, LESSON.generator(1))
print(caption)
lesson.one_call_of(model, caption, x0, noise, (100, 300, 500, 700, 1000))

# %% [markdown]
# At $t = 100$ the answer is sharp. At $t = 1000$ the picture is gone, and the network still puts two
# triangles where they belong: this caption leaves nothing open, not even the place. The edges are
# soft there, and the background is stained.
#
# **Before you run on, write down what you expect:**
#
# 1. To find a small thing under noise, how far does a pixel have to look?
# 2. Must the network be *told* how noisy the picture is, or could it see that for itself?
# 3. You may keep only one: the skip connections, attention, or the time. Which?
#
# ## The naive way: a stack of convolutions
#
# A picture goes in and one of the same size comes out, so why not put convolutions on top of each
# other? The task of this lesson is small enough for seconds: pictures of 16 pixels, one thing on
# each. `lesson.train` teaches a network $v$ on them with the loop of lesson 3, and returns the loss
# on pictures held out, every twenty steps.

# %%
STEPS, SEEDS = LESSON.choose(20, 100, 2000), LESSON.choose(1, 3, 5)


torch.manual_seed(0)
layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise((3, 32, 32, 32, 32, 3))]
stack = lesson.Stack(*chain(*((nn.SiLU(), layer) for layer in layers)))[1:]
print(f"loss on held-out pictures: {lesson.train(stack, 0, STEPS)[-1]:.3f}")
lesson.one_call({"a stack of\nconvolutions": stack})

# %% [markdown]
# Where there is little noise it smooths. From the middle on it fails: the thing dissolves into
# stains, for every pixel decides by itself, from the 11 x 11 pixels around it, and does not know how
# much of what it sees is noise. Three things are missing: a sense of time, a longer reach, and a
# way to be deep without forgetting the pixels. We build them one by one, and come back to this
# picture.
#
# ## Round 1: telling the time
#
# $t$ is one number from 0 to 999. A network works better with a pattern: sines and cosines of $t$
# at $d/2$ frequencies from fast to slow, like the hands of a clock.
#
# $$ \omega_i = 10000^{-i/(d/2-1)}, \qquad
#    \mathrm{waves}(t) = \big(\sin \omega_0 t, \ldots, \sin \omega_{d/2-1} t, \;
#    \cos \omega_0 t, \ldots, \cos \omega_{d/2-1} t\big) $$


# %%
def waves(t, d):
    omega = 10000 ** (-torch.arange(d // 2) / (d // 2 - 1))
    angles = t.float()[:, None] * omega  # (B, d/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimeEmbedding(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.d, self.linear1, self.linear2 = d, nn.Linear(d, 4 * d), nn.Linear(4 * d, 4 * d)

    def forward(self, t):
        return self.linear2(F.silu(self.linear1(waves(t, self.d))))  # (B, 4d)


config = lesson.CONFIG
lesson.assert_equal(TimeEmbedding(16), library.TimeEmbedding(16), torch.tensor([0, 1, 500, 999]))

# %%
lesson.time_pattern(waves(torch.arange(1000), 64))

# %% [markdown]
# Each column is the pattern of one time. The upper rows of each half change at every step, the lower
# ones hardly within a thousand. So near times look alike and far ones do not (right): a network
# that has learnt $t = 500$ knows something of $t = 510$. Two linear layers then make of the pattern
# what the blocks want, a vector `emb` of $4d$ numbers.
#
# ## Round 2: the residual block
#
# The work is done by blocks that *add* something to what passes through them. The time enters
# between the two convolutions, one number a channel, the same at every pixel:
#
# $$ h = \mathrm{conv}_1\big(\mathrm{silu}(\mathrm{norm}_1(x))\big), \qquad
#    \mathrm{out} = x + \mathrm{conv}_2\big(\mathrm{silu}(\mathrm{norm}_2(h + W \mathrm{emb}))\big) $$
#
# $\mathrm{conv}_2$ starts at zero, so that a new block changes nothing and a deep network can be
# trained from the first step. Where the width changes, $x$ passes a 1x1 convolution, `skip`.


# %%
class ResidualBlock(nn.Module):
    def __init__(self, width_in, width, emb):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(8, w, 1e-6) for w in (width_in, width))
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.conv2 = library.zeros(nn.Conv2d(width, width, 3, padding=1))
        self.time = nn.Linear(emb, width)
        self.skip = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h + self.time(emb)[:, :, None, None])
        return self.skip(x) + self.conv2(F.silu(h))


x, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 64)
assert torch.equal(ResidualBlock(16, 16, 64)(x, emb), x)
print("a fresh block is the identity")
lesson.assert_equal(ResidualBlock(16, 32, 64), unet.ResidualBlock(config, 16, 32), x, emb)

# %% [markdown]
# ## Round 3: attention
#
# A convolution looks at neighbours. In attention every pixel asks (a query $q$), every pixel answers
# (a key $k$), and where they fit, the value $v$ is taken over. With the $N$ pixels as columns,
#
# $$ \mathrm{attention}(q, k, v) = v \, \mathrm{softmax}\!\left(\frac{q^\top k}{\sqrt d}\right)^{\!\top} $$
#
# where each row of the softmax sums to 1. **Your turn**: $q$ is $(B, d, N)$, $k$ and $v$ are
# $(B, d, M)$, and $(B, d, N)$ comes out.


# %%
def my_attention(q, k, v):
    return ...  # your turn: scores, softmax, weighted mean of v


lesson.check_attention(my_attention)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_attention(q, k, v):
#     scores = q.transpose(1, 2) @ k / q.shape[1] ** 0.5  # (B, N, M)
#     return v @ scores.softmax(dim=-1).transpose(1, 2)  # (B, d, N)
# ```
# </details>
#
# The pixels of a picture attend to each other
# (*self-attention*), or to the tokens of a caption (*cross-attention*): then $k$ and $v$ are made of
# words. A pixel does not know where it is, so before it asks for words it is told its place.


# %%
def attention(q, k, v):
    scores = q.transpose(-2, -1) @ k / q.shape[-2] ** 0.5  # (B, N, M)
    return v @ scores.softmax(dim=-1).transpose(-2, -1)


class Attention(nn.Module):
    def __init__(self, width, context_dim=0):
        super().__init__()
        self.norm = nn.GroupNorm(8, width, 1e-6)
        self.out = library.zeros(nn.Conv2d(width, width, 1))
        if context_dim:
            self.q, self.place = nn.Conv2d(width, width, 1), nn.Conv2d(2, width, 1, bias=False)
            self.kv = nn.Linear(context_dim, 2 * width)
        else:
            self.qkv = nn.Conv2d(width, 3 * width, 1)

    def forward(self, x, context=None, *_):
        h = self.norm(x)
        if context is None:  # to all pixels
            q, k, v = self.qkv(h).flatten(2).chunk(3, dim=1)  # each (B, C, H*W)
        else:  # to tokens (B, L, context_dim)
            axes = [torch.linspace(-1, 1, n) for n in x.shape[2:]]
            place = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (2, H, W)
            q = (self.q(h) + self.place(place)).flatten(2)  # (B, C, H*W)
            k, v = self.kv(context).transpose(1, 2).chunk(2, dim=1)  # each (B, C, L)
        return x + self.out(attention(q, k, v).reshape(x.shape))


q, k, v = torch.randn(3, 2, 1, 16, 64)
assert torch.allclose(attention(q, k, v), library.attention(q, k, v), atol=1e-5)
tokens = torch.randn(2, 7, 12)
lesson.assert_equal(Attention(16), unet.Attention(config, 16), x, None, None, "")
lesson.assert_equal(Attention(16, 12), unet.Attention(config, 16, 12), x, tokens, None, "")

# %% [markdown]
# What does attention look at in a trained network? Every part of `minidiff.UNet` can be *tapped*: a
# function is shown the value at a named site, such as `"up1.cross.probs"`, and may replace it. Here
# we only look, while the picture at $t = 500$ is denoised.

# %%
seen = {}


def tap_all(level, site, value):
    seen[site] = value.float().mean(1)[0]  # a mean over the heads
    return value


level, words = model.schedule.level(500), caption.split()
with torch.no_grad():
    model.denoiser(caption, tap=tap_all)(add_noise(x0, level, noise), level)
lesson.word_maps(seen["up0.cross.probs"], words, x0)

# %%
lesson.who_looks_where(seen["up1.self.probs"], x0)

# %% [markdown]
# The upper picture shows for each word the pixels that ask for it most. Nobody has told the network
# what a triangle is, or where: it has learnt from captions alone that *large*, *striped* and
# *purple* belong to the thing on the left, and *small* and *cyan* to the one on the right.
# *Triangle* is said twice, and each time asked for by another thing; *mint* and *background* are
# asked for all around.
#
# The lower picture is self-attention, on a map of 8 x 8. Pixels beside a thing look at that thing,
# and often at its edges; the one that is farthest from both (the fifth) looks everywhere a little,
# and most at the small triangle.
#
# ## Round 4: down, middle, up, and the skips
#
# Attention costs the square of the number of pixels, so it is used where there are few. The way down
# halves the picture, by a convolution of stride 2, and widens it; the way up doubles it again. What
# the small picture in the middle cannot hold, the exact places of edges and of noise, goes across:
# everything the way down has made is kept, and each block of the way up is given one piece of it,
#
# $$ h \leftarrow \mathrm{block}\big([h, \mathrm{skip}]\big), $$
#
# the two behind each other as channels. **Your turn**: which of the kept pieces is next?


# %%
class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x, emb):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(Down):
    def __init__(self, width):
        super().__init__(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, emb):
        return self.conv(F.interpolate(x, scale_factor=2))


class Block(nn.Module):
    def __init__(self, width_in, width, emb, attends):
        super().__init__()
        self.residual = ResidualBlock(width_in, width, emb)
        self.self_attention = Attention(width) if attends else None

    def forward(self, x, emb):
        h = self.residual(x, emb)
        return h if self.self_attention is None else self.self_attention(h)


# %%
def my_join(h, skips):
    return ...  # your turn: take one of the list `skips` off, and put it behind h


lesson.check_join(my_join)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_join(h, skips):
#     return torch.cat([h, skips.pop()], dim=1)
# ```
# </details>
#
# Now the whole network. Going down, `kept` remembers the widths of all that is kept; going up, they
# are taken off its end, one a block. The three switches at the end of the first line are for later:
# they take a part away.


# %%
class MyUNet(nn.Module):
    def __init__(self, d=16, multipliers=(1, 2), *, timed=True, skips=True, attends=True):
        super().__init__()
        self.timed, self.skips, emb, lowest = timed, skips, 4 * d, len(multipliers) - 1
        self.time, self.stem = TimeEmbedding(d), nn.Conv2d(3, d, 3, padding=1)
        self.down, self.up, width, kept = nn.ModuleList(), nn.ModuleList(), d, [d]
        for i, m in enumerate(multipliers):
            level = [Block(width, width := d * m, emb, attends and i == lowest)]
            level += [Down(width)] * (i < lowest)
            self.down.append(nn.ModuleList(level))
            kept += [width] * len(level)
        self.mid = nn.ModuleList(Block(width, width, emb, attends and not i) for i in (0, 1))
        for i, m in reversed([*enumerate(multipliers)]):
            attend, level = attends and i == lowest, []
            for _ in range(2):
                level.append(Block(width + kept.pop(), width := d * m, emb, attend))
            self.up.append(nn.ModuleList(level + [Up(width)] * (i > 0)))
        self.norm = nn.GroupNorm(8, d, 1e-6)
        self.head = library.zeros(nn.Conv2d(d, 3, 3, padding=1))

    def forward(self, x, t, condition=None):
        emb, kept = F.silu(self.time(t * self.timed)), [h := self.stem(x)]
        for layer in chain(*self.down):
            kept.append(h := layer(h, emb))
        for layer in chain(self.mid, *self.up):
            if isinstance(layer, Block) and layer not in set(self.mid):
                h = torch.cat([h, kept.pop() * self.skips], dim=1)
            h = layer(h, emb)
        return self.head(F.silu(self.norm(h)))


# %% [markdown]
# Is it the library's network? Same weights, same answers; and the names of all weights agree, or
# they could not be loaded:

# %%
inputs = torch.randn(2, 3, 16, 16, generator=LESSON.generator(3)), torch.tensor([10, 700])
lesson.assert_equal(MyUNet(), UNet(config), *inputs)
print(f"{sum(p.numel() for p in MyUNet().parameters()):,} parameters")

# %% [markdown]
# And here it is at work, on two pictures of 16 pixels. Each box is a part, with the channels and the
# size of what leaves it; dashed arrows are the skips.

# %% tags=["card"]
diagram(MyUNet(), *inputs)

# %% [markdown]
# Read it from left to right. The stem makes 16 channels of 3; `down.0.1` halves 16 x 16 to 8 x 8,
# and all that follows until `up.0.2` happens there, on a quarter of the pixels. The last kept piece
# is used first: the arrows nest like brackets.
#
# ## Round 5: how far it sees
#
# A layer with a kernel of $k$ pixels reaches $(k-1)/2$ to each side, but after halvings its steps
# are wider. With the strides $s$ of the layers before it,
#
# $$ r = \sum_l \frac{k_l - 1}{2} \prod_{m < l} s_m . $$
#
# **Your turn.** `layers` is a list of (kernel, stride).


# %%
def my_reach(layers):
    return ...  # your turn: r of the formula


lesson.check_reach(my_reach)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_reach(layers):
#     r, step = 0, 1
#     for kernel, stride in layers:
#         r += (kernel - 1) / 2 * step
#         step *= stride
#     return r
# ```
# </details>
#
# The formula can be checked without knowing any layer: the gradient of one pixel of the output says
# which pixels of the input have a say in it.


# %%
def influence(network, size=64):
    """|d out[centre] / d x| of every pixel, (size, size)."""
    x = torch.randn(1, 3, size, size, generator=LESSON.generator(9)).requires_grad_()
    out = network(x, torch.tensor([500]))
    out[0, :, out.shape[2] // 2, out.shape[3] // 2].sum().backward()
    return x.grad.abs().sum((0, 1))


strided = lesson.Stack(*[nn.Conv2d(3, 3, 3, s, padding=1) for s in (1, 2, 2, 1)])
for network, reach in ((stack, 1 + 1 + 1 + 1 + 1), (strided, 1 + 1 + 2 + 4)):
    columns = (influence(network).sum(0) > 0).nonzero()
    measured = (columns.max() - columns.min()).item() / 2
    print(f"{len(network)} layers: by the formula {reach}, by gradients {measured:g}")
    assert measured == reach

# %% [markdown]
# The five convolutions of the stack (it counts the SiLUs between them as layers) reach 5 pixels,
# four with two halvings reach 8. That is why a UNet goes down at all.
#
# ## Take parts away
#
# Now train the whole network and three that lack a part: one that is always told $t = 0$, one whose
# skips are zeros, one without attention. The same pictures and noises; a few seeds each.

# %%
switches = {"whole": None, "no time": "timed", "no skips": "skips", "no attention": "attends"}
networks, losses = {}, {name: [] for name in switches}
for name, part in switches.items():
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        networks[name] = MyUNet(**({part: False} if part else {}))
        losses[name].append(lesson.train(networks[name], seed, STEPS))
lesson.loss_curves(losses)

# %%
lesson.one_call({"a stack of\nconvolutions": stack} | networks)

# %% [markdown]
# A band is the range over the seeds: a gap wider than the bands is no accident of one seed.
#
# **No skips** is by far the worst, and the picture shows the symptom: what comes out is about as
# noisy as what went in, at *low* noise too. To say which noise is in each single pixel, the network
# has to know each single pixel, and the 8 x 8 map in the middle has no room for that.
#
# **No time** costs a fifth to a third, on every seed. Less than many expect, for the noise can be
# seen: its size is written into every flat piece of the picture, and the network learns to read it
# there. But that takes a part of its work, and least succeeds at $t = 900$, where its row is the
# noisiest. A *wrong* time is worse than none, as you will see below.
#
# **No attention** costs nothing here. On pictures of 16 pixels convolutions already reach
# everything, and a single thing has nothing to agree with. Do not conclude that attention is
# useless: conclude that an ablation speaks about its own task. We measure it again where there is
# more to agree on.
#
# Compare the row *whole* with the stack of the beginning, which has had as many steps on the same
# pictures: from $t = 300$ to $700$ the stains are gone. Clean it is not, after a hundred steps.
#
# ## Who has a say
#
# Once more the influence of every pixel of the input on the one in the middle, now for the trained
# networks, on a picture of 64 pixels.

# %%
panels = {"a stack of convolutions": stack} | {k: networks[k] for k in ("no attention", "whole")}
maps = {name: influence(network) for name, network in panels.items()}
lesson.influence_maps(maps)
for name, found in maps.items():
    print(f"{name:>23}: share of the corner pixel {found[0, 0] / found.sum():.0e}")

# %% [markdown]
# The stack ends after five pixels: outside the small square the gradient is zero, not small. The
# UNet without attention has a say in everything, which convolutions alone cannot explain: by the
# formula they reach 30 pixels, and the corner is 32 away. The rest comes through *group
# normalisation*, whose mean and deviation are taken over the whole picture, so that each pixel
# changes every other by a little. With attention the share of the far pixels is about ten times
# larger.
#
# ## Sweep: tell it a wrong time
#
# A trained network trusts the time it is told. Here the true one is $t = 500$ in every column; only
# what the network is told differs.

# %%
lesson.told(model, caption, add_noise(x0, level, noise), level, (100, 300, 500, 700, 900))

# %% [markdown]
# Notice that one noisy picture gives five answers, and only the one in the middle is clean. Told
# far too small a $t$, the network takes the noise for picture and leaves it in. Told too large a
# $t$, it sees the things but takes the wrong amount of noise away: grain is left. This is what a
# schedule looks like that is read at the wrong index (a published course fed it the loop's counter
# in place of $t$). Networks count from 0 and this course's levels from 1, hence `t - 1` in the
# library.
#
# ## Measure: what attention does for a caption
#
# A tap may also replace what it sees. We let each pixel look only at itself (self-attention off), or
# at all words alike (cross-attention off), and draw the same captions from the same noises. The
# shapes world has an *oracle* that reads a picture, so we can count: how many pictures show all that
# their caption says?


# %%
n, path = LESSON.choose(4, 96, 200), model.schedule.path(LESSON.choose(2, 12, 25))
captions = shapes.captions(shapes.random_scenes(n, LESSON.generator(20)))
z, read, table = model.noise(n, LESSON.generator(21)), {}, []
for name, tap in (
    ("all parts", None),
    ("self off", lesson.self_off),
    ("cross off", lesson.cross_off),
):
    drawn = sample(ddim_step, clamp(model.denoiser(captions, tap=tap)), z, path)
    read[name] = shapes.grade(captions, drawn).bool()
    right = int(read[name].sum())
    low, high = wilson(right, n)
    table.append((f"{name}\n{right} of {n} right\n{low:.0%} to {high:.0%}", drawn[:6]))
whole, less = read["all parts"], read["self off"]
print(f"self off: {(whole & ~less).sum()} pictures lost, {(less & ~whole).sum()} won")
plot.rows(table).reduce(2)

# %% [markdown]
# The labels say how many pictures are right, with a 95% interval. Without cross-attention none is:
# the words arrive only as one average, which leaves things pale, in the wrong places or missing.
# Without self-attention most still are, and the intervals touch. But the pictures are pairs, and
# all that differ speak for it: were it worth nothing, six of six would be as rare as six heads in a
# row. A network for photographs may lean on both.
#
# ## Watch the words
#
# The whole way from noise to the picture, and at each step where the words are looked for.


# %%
path, pictures = model.schedule.path(LESSON.choose(4, 12, 30)), []
with torch.no_grad():
    denoise = clamp(model.denoiser(caption, tap=tap_all))
    for frame in trajectory(ddim_step, denoise, noise, path):
        maps, x0_hat = seen["up0.cross.probs"], frame.prediction.x0
        pictures.append(lesson.frame(maps, words, x0_hat, frame.x))
lessons.animation(pictures, fps=4)

# %% [markdown]
# Each word takes its place at the very first step, while the noisy picture still shows nothing;
# afterwards only details change. Editing by attention (prompt-to-prompt) lives on that.
#
# ## What it costs, and the library's version
#
# Where are the parameters, and where is the work? Ours, and DDPM's network for CIFAR-10.

# %%
with torch.device("meta"):  # shapes alone: nothing is computed
    ddpm = UNet(UNetConfig())
    big = costs(ddpm, torch.zeros(1, 3, 32, 32), torch.zeros(1))
small = costs(MyUNet(), torch.zeros(1, 3, 16, 16), torch.zeros(1))
bars({"ours, 16 pixels": small, "DDPM on CIFAR-10, 32 pixels": big})

# %% [markdown]
# Parameters and work are not in the same place. In DDPM's network some sixty per cent of the
# parameters sit at 8 x 8 pixels and below (`down 2` to `up 2`), where it is wide and pixels are
# few. Some sixty per cent of the operations are done in `up 1` and `up 0`, where blocks take in the
# skips and there are many pixels. Twice the side of the picture costs at least four times the
# operations, and not one parameter more.
#
# Last, is this the network that others use? `minidiff.to_diffusers` writes a model as a folder that
# Hugging Face's library reads. If that is installed, its answer must be ours.

# %%
theirs = UNet(config)
lesson.assert_equal(MyUNet(), theirs, *inputs)
gap = lesson.diffusers_gap(theirs, *inputs)
print("diffusers is not installed: skipped" if gap is None else f"diffusers: off by {gap:.0e}")
assert gap is None or gap < 1e-4

# %% [markdown]
# ## Recap
#
# - The time enters as a pattern of sines and cosines, and shifts the channels of every block.
# - Residual blocks add to what passes; their last layer starts at zero.
# - Halving makes the reach grow; attention lets every pixel ask every other, or the words.
# - Skips carry across what the small middle cannot hold. They are a stack: last in, first out.
# - An ablation speaks about its own task, and only with several seeds.
#
# <details><summary>1. Why is the loss without skips so much worse, and at which noise levels?</summary>
#
# To predict $v$ at low noise the network must give back the noise of each single pixel. Without
# skips all of it would have to pass the 8 x 8 middle.
# </details>
#
# <details><summary>2. You load weights into a network whose way up joins <code>[skip, h]</code> instead of
# <code>[h, skip]</code>. What happens?</summary>
#
# All shapes fit only where both have the same width; there the weights load without a complaint, and
# each channel is given to the weights of another. The output is wrong, not an error. That is what
# equality tests are for.
# </details>
#
# <details><summary>3. Without attention, can the middle pixel know of the corner?</summary>
#
# A little: group normalisation takes its mean over all pixels. It can hear that there is much red
# somewhere, but hardly where.
# </details>
#
# Next: [lesson 3](03_training.ipynb) trains such a network until it draws.
