# %% [markdown]
# # 7. CLIP: pictures and words in one space
#
# [![Open in Colab](../figures/colab.svg)](https://colab.research.google.com/github/minidiff/minidiff/blob/main/notebooks/07_clip.ipynb)
#
# Two networks, one for pictures and one for texts, that send what belongs together to the same
# place. Nobody tells them what a colour is; they only learn which caption came with which picture.
# You will build the tokenizer's one step, the loss, and train a tiny CLIP in seconds; then a
# trained one names pictures it was never asked to name, finds them, and does sums with meanings.
#
# ![How well eight pictures fit eight captions, as a table of cosines](../figures/lesson_07.png)
#
# Papers: [CLIP](https://arxiv.org/abs/2103.00020),
# [byte-pair encoding](https://arxiv.org/abs/1508.07909),
# [what a transformer looks at](https://arxiv.org/abs/2103.15679). You need some PyTorch, and no
# lesson before.
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

LESSON = lessons.setup(7)

# %%
import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from minidiff import clip, plot
from minidiff.clip.loss import contrastive_loss
from minidiff.clip.tokenizer import Tokenizer, byte_ids, split, train_bpe
from minidiff.clip.use import image_features, text_features
from minidiff.data import shapes
from minidiff.lessons import lesson_07 as lesson

model, preprocess = clip.load("shapes")


def pictures(scenes, seed=0):  # (N, 3, 32, 32) in [-1, 1]
    return shapes.render(scenes, generator=LESSON.generator(seed))[0]


# %% [markdown]
# ## The result first
#
# Eight pictures, eight captions, and how well each fits each: the cosine of their embeddings.

# %% tags=["card"]
scenes = shapes.random_scenes(8, LESSON.generator(70), pairs=0.25)
captions, x = shapes.captions(scenes), pictures(scenes)
cosines = image_features(model, x).cpu() @ text_features(model, captions).cpu().T  # (8, 8)
found = (cosines.argmax(1) == torch.arange(8)).sum().item()
print(f"{found} of 8 pictures find their caption")
assert found >= 7
short = [" ".join(text.split()[:6]) + " …" for text in captions]
lesson.similarity(cosines, short)

# %%
plot.grid(x, [str(i) for i in range(8)]).reduce(2)

# %% [markdown]
# Rows are the pictures below, columns their captions. The bright diagonal is the whole idea: each
# picture fits its own caption best. Off it the table is not black but graded. Where two scenes share
# a colour, a shape or a background, each is a little right about the other, and the cosine says so.
#
# **Before you run on, write down what you expect:**
#
# 1. Why not simply train both networks to give *equal* embeddings to a picture and its caption?
# 2. Batches of 1: what does the loss say?
# 3. Take the embedding of a blue star and subtract that of a red star. What word is nearest?
#
# ## Round 1: from text to numbers
#
# CLIP's tokenizer knows no word. It starts from the 256 bytes and applies a list of *merges*, each
# of which makes one symbol of a pair of symbols. The list is learnt: the pair that occurs most
# often in the training texts is merged first, then the next.
#
# $$ (a^*, b^*) = \arg\max_{(a, b)}\ \mathrm{count}(a\,b), \qquad a^* b^* \to \boxed{a^* b^*} $$
#
# ### Your turn: one merge


# %%
def my_merge(parts, pair):
    return ...  # your turn: a list of symbols with every such pair made one, from the left


lesson.check_merge(my_merge)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_merge(parts, pair):
#     out = []
#     for part in parts:
#         if out and (out[-1], part) == pair:
#             out[-1] += part
#         else:
#             out.append(part)
#     return out
# ```
# `out[-1]` is compared before it grows, so a pair never overlaps with the one before it.
# </details>
#
# Why not simply number the words? Because then a word that was never seen has no number, and every
# form of a word is a stranger to its other forms. Bytes know every text, but a caption would be
# long. Merges are in between: frequent words become one token, rare ones a few.
#
# Learn thirty merges from the captions of the shapes world, and watch a word being put together.
# `</w>` marks the end of a word: the "ring" that ends here is not the one in "string".

# %%
texts = shapes.captions(shapes.random_scenes(500, LESSON.generator(71)))
small = Tokenizer(train_bpe(texts, 30))
print("the first merges:", ", ".join("+".join(pair) for pair in small.merges[:8]))
print(small.explain("a green ring"))

# %% [markdown]
# Applying merges by hand, in the order in which they were learnt, gives the same ids. No text is
# unknown: what was never seen stays in bytes.


# %%
def merge(parts, pair):
    out = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def by_hand(tokenizer, word):
    parts = [tokenizer.tokens[i] for i in byte_ids(word)]
    for pair in tokenizer.merges:
        parts = merge(parts, pair)
    return parts


for text in ("a small green circle", "ein grüner Kreis", "字"):
    parts = [part for word in split(text.lower()) for part in by_hand(small, word)]
    ids = small.encode(text)
    print(f"{text!r}: {len(ids)} tokens, read back as {small.decode(ids)!r}")
    assert parts == [small.tokens[i] for i in ids]

# %% [markdown]
# ## Round 2: two towers
#
# The **image tower** cuts a picture into patches, each a vector by one linear map (a convolution
# whose stride is its size), adds a learnt position to each, and lets them look at each other; one
# more token stands for the whole. The **text tower** does the same with tokens; no token sees those
# after it, so the *last* one, the end token, has seen all. Its state is the text's embedding.
#
# $$ u = \frac{f_I(x)}{\|f_I(x)\|}, \qquad w = \frac{f_T(y)}{\|f_T(y)\|}, \qquad
# \cos = u \cdot w $$

# %%
c, exact = model.config, clip.load("shapes", "cpu")[0].float()
weight = exact.visual.conv1.weight  # (width, 3, patch, patch)
patches = F.unfold(x, c.patch, stride=c.patch)  # (8, 3*patch*patch, patches)
by_hand_too = weight.flatten(1) @ patches.to(weight)
assert torch.allclose(by_hand_too, exact.visual.conv1(x.to(weight)).flatten(2), atol=1e-4)
print(f"{c.size} px in patches of {c.patch}: {patches.shape[2]} + 1 tokens of width {c.width}")

tokens = model.tokenize(["a red star", "a red star on a white background"])
after = tokens[:1].clone()
after[0, tokens[0].tolist().index(c.end) + 1 :] = 7  # anything at all after the end
with torch.no_grad():
    assert torch.equal(exact.encode_text(tokens[:1]), exact.encode_text(after))
print("what stands after the end token changes nothing")

# %% [markdown]
# ## The naive way: make them equal
#
# Why not minimise $1 - \cos$ between each picture and its caption? Train two tiny towers so. The
# function takes the loss as an argument, because we shall come back with a better one.

# %%
count = LESSON.choose(400, 6000, 40_000)
drawn, said = shapes.captioned(count, LESSON.generator(72))
tokenizer = Tokenizer(train_bpe(said[:2000], 300))
ids = tokenizer.tokenize(said, 24)
drawn = drawn.float() / 127.5 - 1
tiny = replace(c, vocabulary=len(tokenizer), end=tokenizer.end, merges=None, text_layers=1)
tiny = replace(tiny, embed=32, patch=8, width=64, layers=2, heads=2, text_width=64, text_heads=2)


# %%
def train(loss_of, steps, batch=96):
    torch.manual_seed(0)
    towers, losses, frames = clip.CLIP(tiny), [], []
    optimiser = torch.optim.AdamW(towers.parameters(), 2e-3, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = LESSON.generator(73)
    for step in range(steps):
        if step % max(1, steps // 20) == 0:
            frames.append(table(towers))
        i = torch.randint(64, count, (batch,), generator=generator)  # the first 64 are for tests
        U, W = towers.encode_image(drawn[i]), towers.encode_text(ids[i])
        loss = loss_of(U, W, towers.logit_scale.clamp(max=math.log(100)).exp(), ids[i])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
        losses.append(loss.item())
    return towers.eval(), losses, frames


@torch.no_grad()
def table(towers, n=16):  # cosines of pictures that are not trained on
    U, W = towers.encode_image(drawn[:n]), towers.encode_text(ids[:n])
    return F.normalize(U, dim=1) @ F.normalize(W, dim=1).T


# %%
def attract(U, W, scale, same):
    return 1 - F.cosine_similarity(U, W).mean()


naive, naive_losses, _ = train(attract, LESSON.choose(3, 60, 100))
cosines = table(naive)
right, every = cosines.diagonal().mean(), cosines.mean()
print(f"loss {naive_losses[-1]:.5f}; cosines of right pairs {right:.4f}, of all {every:.4f}")
assert LESSON.fast or (naive_losses[-1] < 0.02 and every > 0.95)

# %% [markdown]
# The loss is almost perfect and the towers are useless. Everything has gone to *one* place, where
# wrong pairs are as near as right ones: the two printed cosines are the same. This is called
# collapse, and it is the cheapest way to make all pairs agree: forget the input. What is missing is
# a reason to be apart.
#
# ## Round 3: the contrastive loss
#
# In a batch of $B$ pairs each picture must *choose* its caption among all $B$, and each caption its
# picture. That is a classification, twice, with a learnt scale $s = e^\tau$ for the logits:
#
# $$ L = \frac{1}{2} \Big[ \mathrm{CE}\big(s\, U W^\top\big) + \mathrm{CE}\big(s\, W U^\top\big)
# \Big], \qquad \mathrm{CE}(Z) = -\frac{1}{B} \sum_i \log \frac{e^{Z_{ii}}}{\sum_j e^{Z_{ij}}} $$
#
# ### Your turn: the loss


# %%
def my_loss(images, texts, scale):
    return ...  # your turn: features (B, D) of any length


lesson.check_loss(my_loss)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_loss(images, texts, scale):
#     logits = scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
#     right = torch.arange(len(logits))
#     return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
# ```
# </details>


# %%
def contrast(U, W, scale, tokens=None):
    logits = scale * F.normalize(U, dim=1) @ F.normalize(W, dim=1).T
    right = torch.arange(len(logits))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


U, W = (torch.randn(96, 32, generator=LESSON.generator(k)) for k in (1, 2))
same, s = torch.eye(96).bool(), torch.tensor(14.0)
print(f"all equal: {contrast(0 * U + 1, 0 * W + 1, s):.4f}; ln 96 = {math.log(96):.4f}")
print(f"a batch of one: {contrast(U[:1], W[:1], s):.4f}")
assert torch.allclose(contrast(U, W, s), contrastive_loss(U, W, s, same))
assert abs(contrast(0 * U + 1, 0 * W + 1, s) - math.log(96)) < 1e-4

# %% [markdown]
# $\ln B$ is the loss of a model that knows nothing: a curve that stays there is not learning. In a
# batch of one there is nothing to choose, and the loss is 0 whatever the towers say.
#
# **Identical captions** in a batch are wrong answers to each other though both are right. The
# library counts them as right alike (`same`). Watch what that changes: when every caption stands
# twice, the best possible loss is $\ln 2$, not 0.

# %%
twice = torch.arange(96) // 2
perfect = torch.eye(48)[twice]  # 48 captions, each perfectly embedded, each twice
same = twice[:, None] == twice
print(f"perfect towers, captions twice: {contrast(perfect, perfect, torch.tensor(100.0)):.4f}")
strict, kind = contrast(U, W[twice], s), contrastive_loss(U, W[twice], s, same)
print(f"counted as wrong {strict:.4f}, counted as right {kind:.4f}")
assert torch.allclose(strict, kind)
assert abs(contrast(perfect, perfect, torch.tensor(100.0)) - math.log(2)) < 1e-3

# %% [markdown]
# Equal! If two texts are the same, their logits are, and it does not matter to which of them the
# right answer is credited. So exact duplicates cost nothing but a higher floor, which one should
# know before calling a run stuck. What does harm is a caption that is *true* of another picture in
# other words, "a red star" beside "a red star on a white background".
#
# ## Run: train a tiny CLIP

# %%
towers, contrast_losses, frames = train(contrast, LESSON.choose(4, 600, 3000))
print(f"loss {contrast_losses[0]:.2f} -> {contrast_losses[-1]:.2f}; ln 96 = {math.log(96):.2f}")
assert LESSON.fast or contrast_losses[-1] < 0.75 * math.log(96)
lesson.losses({"contrastive": contrast_losses}, math.log(96), "ln B: knows nothing")

# %% [markdown]
# For a good while nothing seems to happen: the curve lies on $\ln B$, as it did for the reader who
# gave up. Then it falls in stages, as one property after the other is found to tell captions apart.

# %%
cosines = table(towers, 64)
rank = (cosines > cosines.diagonal()[:, None]).sum(1)  # captions that fit better than the right one
low, _ = lesson.told("right caption first among 64", rank == 0, 64)
assert LESSON.fast or low > 1 / 64

# %%
shown = [lesson.matrix(t) for t in (*frames, table(towers))]
lessons.animation([plot.grid(m.repeat_interleave(4, 2).repeat_interleave(4, 3)) for m in shown], 6)

# %% [markdown]
# Sixteen pictures (rows) and their captions (columns), none of them trained on, from the first
# step to the last; white is a cosine of 1. While the loss lies on its plateau the table is nearly
# even. Then it takes on contrast, and light squares gather on the diagonal, though others are as
# light: the right caption is often near the top, and not often first. This CLIP has looked at
# 60,000 pictures; the shipped one at 1.5 million, and from here on we use it.
#
# ## Zero-shot: naming without having learnt names
#
# A classifier of colours from a network that was never trained to classify: write each colour
# into sentences, and ask which sentence fits best. One class is the *mean* over several
# templates, and the pictures are of pairs of colour and shape that were held out of training: no
# training picture has a red star in it.

# %%
n = LESSON.choose(20, 1000, 1000)
held_out = shapes.random_scenes(n, LESSON.generator(74), pairs=0.0, held_out=True)
x = pictures(held_out, 75)
templates = [f"a {{}} {shape}" for shape in shapes.SHAPES]
classes = text_features(model, [t.format(name) for name in shapes.COLOURS for t in templates])
classes = F.normalize(classes.unflatten(0, (8, len(templates))).mean(1), dim=1)  # (8, embed)
U, s = image_features(model, x), model.logit_scale.exp().float().detach()
probs = (s * U @ classes.T).softmax(1)
assert torch.allclose(probs, clip.zero_shot(model, x, shapes.COLOURS, templates), atol=1e-3)

colour = lesson.told("colour, mean of 6 templates", lesson.correct(probs, held_out, "colour"), 8)


def shape(name, scenes, images, templates):
    says = clip.zero_shot(model, images, shapes.SHAPES, templates)
    return lesson.told(name, lesson.correct(says, scenes, "shape"), 6)


mean = shape("shape, mean of 8 templates", held_out, x, [f"a {c} {{}}" for c in shapes.COLOURS])
one = shape("shape, 1 template", held_out, x, ["a {}"])
seen = shapes.random_scenes(n, LESSON.generator(74), pairs=0.0)
usual = shape("the same, on pairs seen in training", seen, pictures(seen, 75), ["a {}"])
assert LESSON.fast or (colour[0] > 0.99 and min(mean[0], usual[0]) > one[1])

# %% [markdown]
# No colour is missed, although each of these pairs of colour and shape is new. Shapes in new
# colours are harder: a pixel has a colour, but only many pixels together have a shape. The
# training is made for that: in many of its pictures the colours are changed and the caption names
# none, so that a star has to be a star in any colour (`recipes.clip.recolour`). With one template
# the new pairs still cost a few percent; compare the last two lines. The mean over eight
# sentences is a steadier pointer, and wins back more than half of that. (For the published CLIP,
# the paper reports that 80 templates in place of one gain several points on ImageNet.)
#
# ### Sweep: the scale
#
# Same picture, same cosines, four scales. The learnt scale decides how much a difference of cosines
# means.

# %%
sweep = {scale: (scale * U[:1] @ classes.T).softmax(1)[0] for scale in (1, 10, s.item(), 100)}
for scale, p in sweep.items():
    print(f"{scale:5.1f}:", *(f"{name} {v:.2f}" for name, v in zip(shapes.COLOURS, p, strict=True)))
assert sweep[1].max() < 0.35 < sweep[100].max()
plot.grid(x[:8], [shapes.COLOURS[i] for i in probs[:8].argmax(1)]).reduce(2)

# %% [markdown]
# With scale 1 a softmax of cosines is nearly flat, whatever the picture: cosines lie between -1 and
# 1, and $e^1$ is not much more than $e^{-1}$. That is why the scale is learnt, and why training
# stalls if it is left out. CLIP starts it at $1/0.07 \approx 14$ and stops it at 100, beyond which
# training becomes unstable. The order of the colours is the same in every row; only the confidence
# is another. Below the pictures stands what they were called.
#
# ## Sums with meanings
#
# Draw a scene twice, once with one word of its caption changed. The *difference* of the two
# embeddings should say which word. For each word take the direction of its captions, seen from the
# mean of all captions:
#
# $$ d_{\text{word}} = \overline{w}_{\text{captions with it}} - \overline{w}_{\text{all}}, \qquad
# \text{nearest} = \arg\max_{\text{word}} \cos(u_{\text{after}} - u_{\text{before}},\, d) $$

# %%
codes = shapes.random_codes(LESSON.choose(600, 2000, 4000), LESSON.generator(76), pairs=0.0)
W = text_features(model, shapes.captions(shapes.decode(codes)))
columns = {0: shapes.BACKGROUNDS, 3: shapes.SHAPES, 4: shapes.COLOURS}
names = [(column, i) for column, values in columns.items() for i in range(len(values))]
directions = [W[codes[:, column] == i].mean(0) - W.mean(0) for column, i in names]
directions = F.normalize(torch.stack(directions), dim=1)  # (words, embed)

# %%
before, after, changed = lesson.twins(n, columns, LESSON.generator(77))
pairs = [pictures(shapes.decode(codes), 78) for codes in (before, after)]
difference = image_features(model, pairs[1]) - image_features(model, pairs[0])
scores = F.normalize(difference, dim=1) @ directions.T  # (n, words)
nearest = [names[i] for i in scores.argmax(1)]
right = torch.tensor([a == b for a, b in zip(nearest, changed, strict=True)])
low, _ = lesson.told(f"the new word is the nearest of {len(names)}", right, len(names))
assert low > 3 / len(names)
called = ["+ " + columns[column][i] for column, i in nearest[:8]]
plot.rows([("before", pairs[0][:8]), ("after", pairs[1][:8], called)]).reduce(2)

# %%
top = scores[0].topk(6)
ranked = [(columns[names[i][0]][names[i][1]], v.item()) for v, i in zip(*top, strict=True)]
lesson.bars(ranked, "the first pair's difference: nearest words")

# %% [markdown]
# Below each pair stands the word that the difference is nearest to. Everything that both pictures
# share has cancelled out, and what is left has a name. The bars show the runners-up of the first
# pair: the word that has *gone* would be found at the other end. This works because the loss asks
# only for cosines; a change that all captions describe with one word moves all pictures one way.
#
# ## Finding pictures

# %%
kept = shapes.random_scenes(LESSON.choose(64, 400, 400), LESSON.generator(79))
store = pictures(kept, 80)
queries = ["a yellow star", "a blue ring above a pink heart", "a red circle on a navy background"]
cosines = (text_features(model, queries) @ image_features(model, store).T).cpu()
for query, row in zip(queries, cosines, strict=True):
    fits = sum(shapes.holds(query, scene) for scene in kept)
    print(f"{query}: true of {fits}; best cosines", *(f"{v:.2f}" for v in row.topk(4).values))
print("pictures with a yellow star:", sum("yellow star" in c for c in shapes.captions(kept)))
assert LESSON.fast or shapes.holds(queries[2], kept[cosines[2].argmax()])
best = dict(zip(queries, cosines.topk(8).indices, strict=True))
plot.rows([(query, store[i]) for query, i in best.items()]).reduce(2)

# %% [markdown]
# Best first; the lines above say of how many pictures each query is true. The one red circle on
# navy comes first, far ahead of the rest. For the others there is none, and search never says so:
# it gives the next best, which shares a colour or a shape with the query. A low best cosine is
# the only hint.
#
# 13 pictures do have a yellow star, beside something else, and only one of them is shown. The
# captions of this world name all things there are, so "a yellow star" says that there is nothing
# else, and a lone yellow circle is nearer. What a short text leaves open is filled in by what
# CLIP was trained on.
#
# ## Who has which?
#
# In the second row the first picture has its pink heart *above* something blue. Just the next
# best, or does CLIP not see the difference? Let it choose between the true caption of a picture
# with two things and one with a slip: a word that is wrong, or the right words in a wrong order,
# such as "a blue circle left of a red star" for "a red circle left of a blue star".

# %%
two = lesson.two_things(n, LESSON.generator(82))
U, W = image_features(model, pictures(two, 83)), text_features(model, shapes.captions(two))
for slip, wrong in lesson.slips(two).items():
    V = text_features(model, shapes.captions(wrong))
    print(f"cosine of the two texts {(W * V).sum(1).mean():.2f};", end=" ")
    low, high = lesson.told(slip, (U * W).sum(1) > (U * V).sum(1), 2)
    assert LESSON.fast or (high < 0.7 if "exchanged" in slip else low > 0.9)

# %% [markdown]
# A wrong word is caught nearly always. But who has which colour is told only a little better than
# by tossing a coin, and who stands where not at all. The cosines of the two texts show where it
# is lost: to the text tower they are nearly the *same* text, a bag of words.
#
# It could read the order, for each token has its position. But nothing asked for it: the wrong
# answers are the other captions of a batch, and nearly all of them can be told apart by their
# words; the same words in another order seldom meet there. The loss teaches what the wrong pairs
# demand, and no more. Published CLIPs have the same weakness
# ([measured](https://arxiv.org/abs/2210.01936)); the cure proposed there is to put such captions
# into the batch.
#
# ## What does it look at?
#
# The gradient of the cosine says which attention mattered. `clip.looks_at` rolls it out over the
# layers; one picture, four texts:

# %%
circle, star = shapes.Thing("circle", "red"), shapes.Thing("star", "blue")
one = pictures([shapes.Scene(circle, "centre", "white", "left of", star)], 81)
queries = ["a red circle", "a blue star", "a red circle left of a blue star"]
seen = clip.looks_at(model, one.expand(3, -1, -1, -1), queries).cpu()
over = plot.heatmap_over(one.expand(3, -1, -1, -1), seen)
plot.grid(torch.cat([one, over]), ["picture", *queries]).reduce(2)

# %% [markdown]
# Bright is where it looked. Each thing is found by its own words. Of the whole sentence the map may
# show one thing more than the other: it is a gradient, and says what would change the cosine most,
# not all that is meant. The patches are 4 pixels wide, so do not expect outlines.
#
# ## Break it on purpose: the wrong range
#
# A CLIP wants pixels in $[0, 1]$, then normalised by its own mean and deviation. Diffusion works in
# $[-1, 1]$. A widely read course fed the one where the other is due.
#
# ### Your turn: prepare a diffusion model's picture


# %%
def my_prepare(images, preprocess):
    return ...  # your turn: images in [-1, 1]; preprocess.normalise(images in [0, 1]) is there


lesson.check_prepare(my_prepare)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_prepare(images, preprocess):
#     return preprocess.normalise((images + 1) / 2)
# ```
# </details>

# %%
mean, std = (torch.tensor(v)[:, None, None] for v in (c.mean, c.std))
ranges = {"right": preprocess.normalise((x + 1) / 2), "wrong": (x.cpu() - mean) / std}
for name, images in ranges.items():
    says = clip.zero_shot(model, images, shapes.COLOURS, templates)
    lesson.told(f"{name} range", lesson.correct(says, held_out, "colour"), 8)
try:
    preprocess.normalise(x)
except ValueError as error:
    print("the library refuses:", error)

# %% [markdown]
# Nothing crashes when you do it by hand; only many answers become wrong. That is the dangerous
# kind of bug, and the reason why the library looks at the range. Two other failures you saw
# already: without wrong pairs everything collapses, and without wrong pairs that differ in order,
# the order is not learnt.
#
# ## The published weights
#
# Everything above is the architecture of OpenAI's CLIP, layer by layer and name by name, so its
# weights fit as they are. With a network connection (it is a download of 350 MB, so this lesson
# does not run it):
#
# ```python
# model, preprocess = clip.load("ViT-B/32")  # or a file, a folder, an id of the Hugging Face hub
# image = preprocess(Image.open("dog.jpg"))[None]
# per_image, per_text = model(image, clip.tokenize(["a photo of a dog", "a photo of a cat"]))
# per_image.softmax(dim=-1)
# ```
#
# The archive's SHA-256 is checked before it is opened. The tests of this repository compare the
# embeddings with those of `transformers` and `open_clip` for the same weights, and check that each
# of a dozen plausible mistakes (a missing transpose, the other GELU, exchanged keys and values)
# would be noticed.
#
# ## The library, asserted equal

# %%
per_image, per_text = exact(pictures(scenes), model.tokenize(captions))
u = F.normalize(exact.encode_image(pictures(scenes)), dim=1)
w = F.normalize(exact.encode_text(model.tokenize(captions)), dim=1)
logits = exact.logit_scale.exp() * u @ w.T
assert torch.allclose(logits, per_image, atol=1e-3) and torch.equal(per_text, per_image.T)
print(f"logits {tuple(per_image.shape)}, off by {(logits - per_image).abs().max():.0e}")

# %% [markdown]
# ## Recap
#
# - A text becomes tokens by merges of bytes; no text is unknown.
# - Two towers, unit embeddings, and a cosine that says how well a picture and a text fit.
# - The contrastive loss needs wrong pairs, and teaches only what tells them apart.
# - $\ln B$ is the loss of knowing nothing; the scale of the logits is learnt.
# - Zero-shot, search and sums are all the same cosine.
#
# <details><summary>Your loss stays at 4.85 with batches of 128. What is it?</summary>
#
# $\ln 128$: the towers tell nothing apart. Look at the scale, the learning rate, and whether images
# and texts are in the same order.
# </details>
# <details><summary>Why is a text's embedding the state at the end token?</summary>
#
# Attention is causal: only the last token has seen all the others.
# </details>
# <details><summary>What does CLIP say of pictures in [-1, 1]?</summary>
#
# Something plausible and worse. Bring them to $[0, 1]$ and normalise.
# </details>
#
# Next: [lesson 8](08_clip_guidance.ipynb), where CLIP holds the brush.
