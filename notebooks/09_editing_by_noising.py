# %% [markdown]
# # 9. Editing by noising: SDEdit and ILVR
#
# [![Open in Colab](../figures/colab.svg)](https://colab.research.google.com/github/minidiff/minidiff/blob/main/notebooks/09_editing_by_noising.ipynb)
#
# You draw five flat polygons; a diffusion model that has never seen a drawing makes a butterfly of
# them. Nothing is trained and nothing is guided: noise is all it takes. In this lesson you write
# SDEdit in six lines, prove on data with a known answer that it draws from the right distribution,
# and measure what it trades. Then ILVR, which holds on to a picture by its blur.
#
# ![Polygons, and three butterflies made of them](../figures/lesson_09.png)
#
# Papers: [SDEdit](https://arxiv.org/abs/2108.01073), [ILVR](https://arxiv.org/abs/2108.02938).
# You need lesson 1 (noise levels) and the DDPM step of lesson 4.
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

LESSON = lessons.setup(9)

# %%
from itertools import pairwise

import torch
import torch.nn.functional as F

from minidiff import add_noise, ddim_step, ddpm_step, editing, load, plot, trajectory
from minidiff.data import shapes
from minidiff.editing import masks, strokes
from minidiff.guidance import clamp
from minidiff.lessons import lesson_09 as lesson
from minidiff.lessons import mixture
from minidiff.metrics import bootstrap, wilson
from minidiff.noise import per_image, randn

torch.set_grad_enabled(False)  # nothing is trained here
model = load("butterflies").for_sampling()
denoise, path = clamp(model.denoiser()), model.schedule.path(LESSON.choose(8, 25, 50))


def seeds(seed, n):
    return per_image(LESSON.generator(seed), n)  # one generator an image


# %% [markdown]
# ## The result first
#
# A polygon is a list of corners, as shares of the width and height from the top left, and a colour
# with red, green and blue in $[-1, 1]$. Five of them, and a clumsy butterfly is there. Change them!

# %% tags=["card"]
ORANGE, BLUE, BLACK = (0.85, 0.0, -0.8), (-0.6, 0.0, 0.7), (-0.75, -0.8, -0.8)
POLYGONS = [
    ([(0.47, 0.45), (0.1, 0.12), (0.05, 0.35), (0.2, 0.55), (0.47, 0.6)], ORANGE),
    ([(0.53, 0.45), (0.9, 0.12), (0.95, 0.35), (0.8, 0.55), (0.53, 0.6)], ORANGE),
    ([(0.47, 0.55), (0.2, 0.6), (0.2, 0.85), (0.4, 0.88)], BLUE),
    ([(0.53, 0.55), (0.8, 0.6), (0.8, 0.85), (0.6, 0.88)], BLUE),
    ([(0.47, 0.3), (0.53, 0.3), (0.53, 0.8), (0.47, 0.8)], BLACK),
]
paper = torch.full((1, 3, 64, 64), 0.93, device=model.device)
guide, _ = strokes.paint(paper, POLYGONS)
three = guide.repeat(3, 1, 1, 1)
edited = editing.sdedit(denoise, three, path, strength=0.7, generator=seeds(0, 3))
lesson.small(plot.grid(torch.cat([guide, edited]), ["your strokes", "SDEdit", "", ""]))

# %% [markdown]
# Wings have veins and frayed edges now, antennae have grown, and the stick in the middle has become
# a body. Still the upper wings are orange, and all is where you drew it.
#
# **Before you run on, write down what you expect:**
#
# 1. A denoiser removes what does not belong to a picture. Why not simply denoise the drawing?
# 2. The more noise, the more the model may change. What happens at both ends?
# 3. Is the result a fair sample of anything, or only a trick that looks good?
#
# ## The naive way: denoise the drawing
#
# The network takes a picture and a noise level. Let us hand it the drawing as it is, and claim that
# it has more and more noise.

# %%
claims = [model.schedule.level(t) for t in (40, 200, 400, 600)]
naive = torch.cat([denoise(guide, level).x0 for level in claims])
names = ["strokes", *(f"x0, if t = {level.t}" for level in claims)]
lesson.small(plot.grid(torch.cat([guide, naive]), names))

# %% [markdown]
# The polygons stay polygons. The bolder the claim, the softer their edges, but no vein and no
# antenna appears. Flat colours with sharp edges are the *opposite* of noise, so a denoiser finds
# nothing to remove. The drawing has to become something that the network has seen in training: a
# noisy picture.
#
# ## Round 1: noise hides how a picture was made
#
# Bring the guide $g$ to a middle level $t_0$, as the forward process does with photographs:
#
# $$ x_{t_0} = \alpha_{t_0}\, g + \sigma_{t_0}\, \epsilon . $$

# %%
levels = [model.schedule.level(t) for t in (100, 300, 500, 700, 900)]
epsilon = randn(guide.shape, LESSON.generator(1), like=guide)
noised = torch.cat([add_noise(guide, level, epsilon) for level in levels])
for level, x in zip(levels, noised, strict=True):
    left = (x - level.alpha * guide).std().item()
    assert abs(left / level.sigma - 1) < 0.02  # what is no guide is noise of deviation sigma
    print(f"t = {level.t}: guide x {level.alpha:.2f}, noise x {level.sigma:.2f}, found {left:.2f}")
lesson.small(plot.grid(noised.clamp(-1, 1), [f"t = {level.t}" for level in levels]))

# %% [markdown]
# Look for the straight edges: at $t = 300$ you can still trace them, at $700$ only the places of
# the colours are left, at $900$ hardly those. Noise drowns fine detail first, because detail is
# weak. From some level on, a noisy drawing and a noisy photograph of the same layout look alike,
# to you and to the network.
#
# ## Round 2: walk down from there
#
# From $x_{t_0}$ on, the network is in charge. Each step is DDPM's, with its fresh noise $z$:
#
# $$ x_{s} = \mu(x_t, \hat x_0(x_t)) + \sqrt{\beta}\,\frac{\sigma_s}{\sigma_t}\, z,
#    \qquad t = t_0, \dots, 0 . $$
#
# We call *strength* the share of the path's steps that is walked; with evenly spaced levels it is
# the paper's $t_0 \in [0, 1]$. This is all of SDEdit:


# %%
def my_sdedit(denoise, guide, path, strength, generator):
    k = round(strength * (len(path) - 1))
    levels = path[-1 - k :]  # the last k steps stand between k + 1 levels
    x = add_noise(guide, levels[0], randn(guide.shape, generator, like=guide))
    for here, there in pairwise(levels):
        x, _ = ddpm_step(denoise, x, here, there, generator=generator)
    return x


assert torch.equal(my_sdedit(denoise, three, path, 0.7, seeds(0, 3)), edited)
print("bit for bit the butterflies above")

# %% [markdown]
# ### Your turn: where it starts
#
# Two slips are easy here: to walk the wrong part of the path, and to give the guide noise of the
# wrong size. Return the noisy guide and the levels that are left.


# %%
def my_start(guide, path, strength, noise):
    return ...  # x, levels


lesson.check_start(my_start)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_start(guide, path, strength, noise):
#     k = round(strength * (len(path) - 1))
#     levels = path[-1 - k :]
#     return levels[0].alpha * guide + levels[0].sigma * noise, levels
# ```
# </details>
#
# ## Round 3: what is it a sample of?
#
# Suppose that the drawing had really been a photograph $x_0$, noised to $x_{t_0}$. Ancestral
# sampling from there draws one of the photographs that *could* have been it:
#
# $$ x \sim p(x_0 \mid x_{t_0}), \qquad x_{t_0} = \alpha_{t_0}\, g + \sigma_{t_0}\, \epsilon . $$
#
# So SDEdit's answer is not the real picture nearest to the drawing, but a draw of all real pictures
# that explain the noisy drawing. With four Gaussians in the plane $p(x_0 \mid x_t)$ has a closed
# form, and we can check that claim. The guide, the orange dot, lies where no data are.

# %%
n, exact_path = LESSON.choose(400, 2000, 4000), lesson.SCHEDULE.path(1000)
dot = torch.tensor([0.2, 0.1], dtype=torch.float64).reshape(1, 2, 1, 1).expand(n, 2, 1, 1)
panels = []
for t0 in (50, 200, 500):
    x = my_sdedit(mixture.denoise, dot, exact_path, t0 / 1000, LESSON.generator(t0))
    at = lesson.SCHEDULE.level(t0)
    noisy = add_noise(dot, at, mixture.noise(n, LESSON.generator(t0 + 1)))
    exact = lesson.posterior(noisy, at, LESSON.generator(t0 + 2))
    ours, truth = lesson.modes(x) / n, lesson.modes(exact) / n
    both = (" ".join(f"{share:.2f}" for share in shares) for shares in (ours, truth))
    print("t0 = {}: shares {}, exact {}".format(t0, *both))
    assert (ours - truth).abs().max() < 3 * (0.5 / n) ** 0.5  # three deviations of a difference
    panels.append((f"SDEdit, t0 = {t0}", x))
lesson.show_points(panels, dot[0])

# %% [markdown]
# The shares of the four clusters agree with exact draws, within what chance allows. At $t_0 = 50$
# nearly all points go to the two clusters near the dot, and stand on the side where it is. At $200$
# they fill all four, the two near ones more often than the data do; at $500$ they have forgotten
# the dot, and the shares are almost those of the data: 0.4, 0.3, 0.2 and 0.1.
#
# ## Run it, and watch
#
# One walk from your strokes. The upper row is what the network is given, the lower what it makes of
# it.

# %%
start = path[-1 - round(0.7 * (len(path) - 1)) :]
one = seeds(0, 3)[1:2]  # the second butterfly's own generator
x = add_noise(guide, start[0], randn(guide.shape, one, like=guide))
frames = list(trajectory(ddpm_step, denoise, x, start, generator=one))
lesson.small(plot.trajectory(frames, columns=8))

# %%
film = [
    plot.grid(torch.cat([f.x.clamp(-1, 1), f.prediction.x0]), [f"t = {f.level.t}", "predicted"])
    for f in frames[1::2]
]
lessons.animation([picture.reduce(2) for picture in film], fps=3)

# %% [markdown]
# The first prediction is a blur in your colours. Then edges settle, then veins. Nothing remembers
# the polygons except $x_t$ itself: after the start, the drawing is never looked at again.
#
# ## Sweep the strength
#
# Same drawing, same three noises in each column, five strengths.

# %%
sweep = [("strokes", guide)]
for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
    sweep.append((f"{strength}", my_sdedit(denoise, three, path, strength, seeds(0, 3))))
lesson.small(plot.rows(sweep))

# %% [markdown]
# Notice that faithful and real are two ends of one knob. At 0.2 you get your polygons back,
# slightly grained; at 0.4 edges round off; at 0.6 to 0.8 they are butterflies in your colours; at
# 1.0 nothing of the drawing is left, and the model draws what it likes. The plain blue goes first,
# to grey, or to rings of black and white: the model has seen few such wings, so as soon as it may
# choose, it chooses otherwise.
#
# ## Measure it
#
# "Looks real" should not be our opinion. In the shapes world an oracle reads pictures: it finds the
# scene, or it abstains. The guides are flat hexagons on flat ground. The caption says only what
# should come of it, "a red heart"; the strokes say where, and on which background. We count the
# pictures that are right by the oracle, and those that are right *and* where the strokes are.

# %%
small_model, m = load("shapes").for_sampling(), LESSON.choose(4, 24, 128)
hexagons, said, scenes = lesson.blobs(m, LESSON.generator(5))
assert not any(shapes.read(hexagons))  # no hexagon is a scene, to begin with
draw = clamp(small_model.denoiser(said))
steps = small_model.schedule.path(LESSON.choose(10, 20, 50))
strengths = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
right, placed, far, shown = [], [], [], [("strokes", hexagons[:6])]
for strength in strengths:
    x = my_sdedit(draw, hexagons.to(small_model.device), steps, strength, seeds(6, m)).cpu()
    good = shapes.grade(said, x).tolist()
    seen = zip(good, shapes.read(x), scenes, strict=True)
    right.append(sum(good))
    placed.append(sum(ok and found.position == scene.position for ok, found, scene in seen))
    far.append((x - hexagons).square().mean((1, 2, 3)).sqrt())
    shown.append((f"{strength}", x[:6]))
plot.rows(shown).reduce(2)


# %%
percent = [100 * strength for strength in strengths]


def share(counts):
    bounds = [wilson(count, m) for count in counts]
    return percent, [c / m for c in counts], *zip(*bounds, strict=True)


spread = [bootstrap(d, generator=LESSON.generator(0)) for d in far]
distance = percent, [d.mean() for d in far], *zip(*spread, strict=True)
two = {"right": share(right), "and in place": share(placed)}
for row in zip(strengths, right, placed, distance[1], strict=True):
    print("strength {}: {} right, {} also in place, distance {:.2f}".format(*row))
plot.curves(
    plot.Panel("Realism, by the oracle", two, "strength, %", "share of pictures"),
    plot.Panel("Faithfulness", {"distance": distance}, "strength, %", "distance to the strokes"),
).reduce(2)

# %% [markdown]
# The bands are 95% intervals, and the noises are the same at every strength. At 0.1 only about
# half of the hexagons have become what the caption says; from 0.2 on, nearly all have. The
# distance (root mean square) to the strokes rises all the way, and beyond 0.5 few things stand
# where they were painted. One wants both, and that is had in a narrow part: here at 0.2 to 0.3.
# The paper recommends 0.3 to 0.6.
#
# ## Repeats, and a mask
#
# Two refinements of the paper. *Repeats*: noise the result again and walk again, which moves in
# small steps what one big step would forget. And a *mask* for local edits: 1 marks pixels to keep,
# and after every step they are put back, noised to the level that $x$ is on. Here two dark spots
# are painted on a butterfly.

# %%
photo = edited[1:2]
spots = [
    ([(a, 0.28), (a + 0.1, 0.25), (a + 0.14, 0.33), (a + 0.05, 0.4)], BLACK) for a in (0.18, 0.68)
]
painted, unpainted = strokes.paint(photo, spots)
mask = masks.grow(unpainted, 2).to(model.device)  # two pixels around the strokes may change, too
local = editing.sdedit(denoise, painted, path, strength=0.5, mask=mask, generator=seeds(1, 1))
kept = mask.bool().expand_as(local)
assert torch.equal(local[kept], photo[kept])
again = [
    editing.sdedit(denoise, guide, path, strength=0.3, repeats=k, generator=seeds(0, 1))
    for k in (1, 3)
]
sheet = torch.cat([*again, painted, mask.expand(1, 3, 64, 64) * 1.7 - 1, local])
names = ["0.3, once", "0.3, three times", "painted spots", "mask, black is free", "local edit, 0.5"]
lesson.small(plot.grid(sheet, names))

# %% [markdown]
# Three short walks round the wings off more than one does, and the drawing is still there. In the
# last picture the painted spots have become a wing's own, brown and frayed, and the assert says that
# every kept pixel is the photograph's, bit for bit.
#
# ### Your turn: keeping pixels
#
# Write the edit that follows each step. `level` is the one that `x` is on now, and it may be $t =
# 0$.


# %%
def my_keep(x, guide, mask, level, noise):
    return ...


lesson.check_keep(my_keep)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_keep(x, guide, mask, level, noise):
#     return torch.where(mask.bool(), add_noise(guide, level, noise), x)
# ```
# </details>
#
# ## ILVR: hold on to the blur
#
# SDEdit looks at its guide once. ILVR looks at it after every step, but only at its *low
# frequencies* $\phi_N$: shrink by $N$, enlarge again. We shrink by the mean of $N \times N$ pixels
# and enlarge by repeating them, which makes $\phi_N$ a **projection**:
#
# $$ \phi_N(\phi_N(x)) = \phi_N(x) . $$


# %%
def low_pass(x, factor):
    coarse = F.avg_pool2d(x, factor)  # (B, 3, H/factor, W/factor)
    return F.interpolate(coarse, scale_factor=factor, mode="nearest")


for name, phi in (("mean and repeat", low_pass), ("cubic, as the authors", lesson.cubic)):
    once = phi(photo, 2)
    change = (phi(once, 2) - once).norm() / once.norm()
    print(f"{name}: a second time changes {change:.1%}")
assert torch.allclose(low_pass(low_pass(photo, 8), 8), low_pass(photo, 8), atol=1e-6)
blurred = [photo, *(low_pass(photo, factor) for factor in (2, 4, 8, 16))]
lesson.small(plot.grid(torch.cat(blurred), ["reference", "N = 2", "N = 4", "N = 8", "N = 16"]))

# %% [markdown]
# The projection matters: only then can $x$ take over the reference's low frequencies *exactly* and
# keep its own details untouched. A cubic filter leaks some of one into the other at every step.
#
# A DDPM step proposes $x'$ at level $s$. ILVR replaces its low frequencies by those of the
# reference $y_0$, noised to the **same** level:
#
# $$ x_s = x' - \phi_N(x') + \phi_N(y_s), \qquad y_s = \alpha_s\, y_0 + \sigma_s\, \epsilon . $$
#
# $\phi_N$ is linear, so this is $x' + \phi_N(y_s - x')$. The check: at $t = 0$ there is no noise
# left, and the result must have the reference's low frequencies to the last digit.


# %%
def my_ilvr(denoise, reference, path, factor, generator, step=ddpm_step):
    x = randn(reference.shape, generator, like=reference)
    for here, there in pairwise(path):
        x, _ = step(denoise, x, here, there, generator=generator)
        y = add_noise(reference, there, randn(x.shape, generator, like=x))
        x = x + low_pass(y - x, factor)
    return x


references = photo.repeat(3, 1, 1, 1)
table, spreads = [("reference", photo)], []
for factor in (2, 4, 8, 16):
    x = my_ilvr(denoise, references, path, factor, seeds(2, 3))
    assert (low_pass(x, factor) - low_pass(references, factor)).abs().max() < 1e-5
    table.append((f"N = {factor}", x))
    spreads.append(lesson.diversity(x))
early = editing.ilvr(denoise, references, path, factor=8, until=500, generator=seeds(2, 3))
print("differences between images:", ", ".join(f"{spread:.3f}" for spread in spreads))
print(f"N = 8 with t < 500 left free: {lesson.diversity(early):.3f}")
assert spreads == sorted(spreads) and spreads[2] < lesson.diversity(early)
lesson.small(plot.rows([*table, ("N = 8, free\nbelow t = 500", early)]))

# %% [markdown]
# Notice the second knob. With $N = 2$ and $4$ all three are the reference, but for the finest
# lines. With $N = 8$ the eyes on the wings differ, with $N = 16$ the wings' outline, too: all that
# is held then is $4 \times 4$ means. The printed differences between the three images of a
# row rise with $N$. They rise, too, if you stop early: the last row is held only down to $t = 500$.
#
# ### Your turn: ILVR's replacement
#
# `x` is a proposal at level `there`, made by a step from `here`. `draw()` gives fresh noise. The
# authors' own code slips on one of these arguments.


# %%
def my_refine(x, reference, here, there, factor, draw):
    return ...


lesson.check_refine(my_refine)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_refine(x, reference, here, there, factor, draw):
#     y = add_noise(reference, there, draw())
#     return x - low_pass(x, factor) + low_pass(y, factor)
# ```
# </details>
#
# ## Break it on purpose
#
# **A level that is not the picture's.** Give the guide the noise of strength 0.4 and walk as from
# 0.7, then the other way round. **A step without noise.** Run ILVR with DDIM instead of DDPM. What
# will you see?

# %%
broken = [("as it should be", edited)]
for noised, walked in ((0.4, 0.7), (0.7, 0.4)):
    at, *rest = (path[-1 - round(s * (len(path) - 1)) :] for s in (noised, walked))
    generator = seeds(0, 3)
    x = add_noise(three, at[0], randn(three.shape, generator, like=three))
    *_, last = trajectory(ddpm_step, denoise, x, rest[0], generator=generator)
    broken.append((f"noise of {noised},\nwalk of {walked}", last.x))
lesson.small(plot.rows(broken))

# %% [markdown]
# Less noise than claimed: the network takes what is missing for smoothness, and paints flat, bright
# wings without a pattern. More than claimed: what it cannot explain as noise it explains as
# picture, and grain and a grey paper stay. When you see either, compare the noise you add with the
# level you claim.

# %%
by_ddim = my_ilvr(denoise, references, path, 16, seeds(2, 3), step=ddim_step)
rows = [("DDPM", table[4][1]), ("DDIM", by_ddim)]
for name, x in rows:
    visible = ", ".join(f"{seam:.2f}" for seam in lesson.seams(x, 16))
    print(f"{name}: steps between blocks over steps within: {visible}")
lesson.small(plot.rows(rows))

# %% [markdown]
# The replacement leaves small steps between the blocks of $16 \times 16$ pixels; 1 would be none.
# By that number, a mean over all edges of blocks, the two rows hardly differ. By eye they do. DDPM's
# fresh noise lets the next calls repair most of what a replacement broke: one picture keeps a tinted
# corner. DDIM adds none: tinted squares lie on the paper, and a wing has lost its form. Users
# of the authors' code report blur and left-over noise under DDIM; this is its look here.
#
# ## The library version
#
# `minidiff.editing` holds both, a file each, with their options and with what they refuse.

# %%
library = editing.sdedit(denoise, three, path, strength=0.4, generator=seeds(0, 3))
assert torch.equal(library, sweep[2][1])
library = editing.ilvr(denoise, references, path, factor=8, generator=seeds(2, 3))
assert torch.equal(library, table[3][1])
print("equal, bit for bit: editing.sdedit and editing.ilvr")

# %% [markdown]
# From a terminal, with a picture of your own: `minidiff edit sdedit --model butterflies
# drawing.png`.
#
# ## What you take with you
#
# - SDEdit: noise a guide to a middle level, then sample as always. It needs no training.
# - It draws from $p(x_0 \mid x_{t_0})$: real pictures that explain the noisy guide.
# - Strength trades faithfulness for realism; the useful part is narrow, and can be measured.
# - Kept pixels are put back after each step at the noise of its level, and clean at the end.
# - ILVR holds the low frequencies after every step; $N$ and the last held level say how much is
#   free.
#
# **Questions**
#
# <details><summary>1. Why does a denoiser leave flat polygons alone, but not noisy ones?</summary>
#
# Clean polygons hold no noise to remove. Noisy ones could come from many pictures; the network
# answers with those it has seen.
# </details>
#
# <details><summary>2. Does SDEdit return the real picture nearest to the guide?</summary>
#
# No. It draws from the real pictures that explain the noisy guide, each as often as it is likely.
# </details>
#
# <details><summary>3. Why is the reference noised to the level of the proposal, not of the step's
# start?</summary>
#
# The proposal has the noise of its own level already; a noisier mixture is off the schedule, and on
# the last step noise would be left in the result.
# </details>
#
# Next: [lesson 10](10_editing_with_a_mask.ipynb), where part of the picture is *missing*, and
# putting pixels back turns out not to be enough.
