# %% [markdown]
# # 0. The bug museum: what is wrong with my picture?
#
# [![Open in Colab](../figures/colab.svg)](https://colab.research.google.com/github/minidiff/minidiff/blob/main/notebooks/00_bug_museum.ipynb)
#
# Diffusion code with a mistake in it does not crash. It draws, and the picture is a little grainy, or
# too blue, or nothing but noise. Here are eight mistakes that stood in published courses, libraries
# and papers, each with its source. You see what they do, you say what is wrong, and you get the one
# line of test that would have caught it. Nobody is laughed at here: every one of these is easy to
# make, and most were found by a careful reader.
#
# ![One network, four samplers: which row is right?](../figures/lesson_00.png)
#
# You can visit before lesson 1 for the fun of it, and again after lesson 10, when you will find all
# eight. Paper to have at hand: [DDPM](https://arxiv.org/abs/2006.11239). Set aside 45 minutes.
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

LESSON = lessons.setup(0)

# %%
import torch

from minidiff import load, plot, samplers, schedule
from minidiff.data import shapes
from minidiff.guidance import clamp
from minidiff.lessons import lesson_00 as lesson
from minidiff.metrics import bootstrap

model = load("shapes").for_sampling()
levels = model.schedule
steps = LESSON.choose(6, 20, 20)
path = levels.path(steps)
captions = shapes.captions(shapes.random_scenes(6, LESSON.generator(1), pairs=0.3))
plain, denoise = model.denoiser(captions), clamp(model.denoiser(captions))
z = model.noise(6, LESSON.generator(0))
print(*captions, sep="\n")

# %% [markdown]
# ## The gallery
#
# One network, six captions, the same noise in every row. One row is made as it should be; behind each
# of the other three stands one wrong line in the sampler. The network is never at fault in this
# museum.
#
# **Predict before you go on:** which row is right, and what might be wrong with the others? Write it
# down. Each row has its exhibit below.

# %% tags=["card"]
right = lesson.walk(samplers.ddim_step, denoise, z, path)
smooth, grainy = lesson.grain(denoise, z, path)
speckled = lesson.root(plain, z, path)
strided = lesson.stride(denoise, z, levels, LESSON.choose(5, 10, 10))
gallery = {"A": grainy, "B": right[-1], "C": speckled[-1], "D": strided}
plot.rows([(name, x.clamp(-1, 1)) for name, x in gallery.items()])

# %% [markdown]
# ## Exhibit 1: grain
#
# Row A, beside the same sampler without the mistake. It is DDPM, which adds fresh noise after every
# step. What happened?
#
# - **a** There are too few steps.
# - **b** Noise is added on the last step, too.
# - **c** The network was trained too briefly.

# %%
plot.rows([("without", smooth), ("the mistake", grainy.clamp(-1, 1))])

# %%
answer_1 = ...  # "a", "b" or "c"

lesson.check_grain(answer_1)

# %% [markdown]
# <details><summary>Diagnosis</summary>
#
# **b.** The step that ends at the clean image must return the mean. Any noise it adds stays in the
# picture, since nobody comes after it to take it out. In
# [labml's annotated DDPM](https://github.com/labmlai/annotated_deep_learning_paper_implementations/blob/0157f7e76867b193653050f43dca13ac77521737/labml_nn/diffusion/ddpm/__init__.py),
# `p_sample` adds noise at every $t$, the last one included. It went unnoticed because with all 1,000
# steps the last dose has a deviation of 0.01; with 20 steps, as here, it is 17 times that.
# </details>
#
# The test that catches it: two different seeds must agree on the last step.

# %%
last, clean = path[-2], path[-1]
ends = [
    samplers.ddpm_step(denoise, right[-2], last, clean, generator=LESSON.generator(s))[0]
    for s in (1, 2)
]
for name, size in (("all 1,000 steps", 1), (f"{steps} steps", last.t)):
    print(f"deviation of a last dose, {name}: {levels.level(size).sigma:.3f}")
assert torch.equal(*ends), "the last step must add no noise"

# %% [markdown]
# ## Exhibit 2: nothing but noise
#
# Row C. Many a question in forums reads "my model only makes noise". The strip shows one picture on
# its way, above as it should be and below with the mistake.
#
# - **a** The network was not loaded and predicts rubbish.
# - **b** A dose of noise was added at the very end.
# - **c** At each step too little of the noise is taken out.

# %%
shown = [round(i * (steps - 1) / 6) for i in range(7)]
strips = [torch.stack([x[i][1] for i in shown]).clamp(-1, 1) for x in (right, speckled)]
names = [f"t = {path[i + 1].t:.0f}" for i in shown]
plot.rows([("right", strips[0]), ("the mistake", strips[1])], column_labels=names)

# %%
answer_2 = ...  # "a", "b" or "c"

lesson.check_root(answer_2)

# %% [markdown]
# <details><summary>Diagnosis</summary>
#
# **c.** To solve $x_t = \alpha_t x_0 + \sigma_t \epsilon$ for $x_0$ one subtracts $\sigma_t\epsilon$ with
# $\sigma_t = \sqrt{1-\bar\alpha_t}$. Here the root is missing: `(x - (1 - alpha_bar) * eps)`. As
# $1-\bar\alpha_t$ is smaller than its root, part of the noise stays, is taken for picture, and gets a
# new dose on top. Fixed in [labml issue 152](https://github.com/labmlai/annotated_deep_learning_paper_implementations/issues/152);
# the same root is missing in [ImgX-DiffSeg issue 4](https://github.com/mathpluscode/ImgX-DiffSeg/issues/4),
# and in the [CSDI paper](https://github.com/ermongroup/CSDI/issues/9), but not in its code.
# </details>
#
# The test: put known noise in, give the true noise as the prediction, and the image must come back.

# %%
image, _ = shapes.render(shapes.random_scenes(1, LESSON.generator(2)))
noise = torch.randn(1, 3, 32, 32, generator=LESSON.generator(3))
level = levels.level(300)
x = schedule.add_noise(image, level, noise)
for name, sigma in (("sqrt(1 - alpha_bar)", level.sigma), ("1 - alpha_bar", level.sigma**2)):
    back = (x - sigma * noise) / level.alpha
    print(f"{name}: the image comes back to within {(back - image).abs().max():.6f}")

# %% [markdown]
# The two ways to the end, as an animation: what the right sampler and the wrong one hold in their
# hands, step by step. For the first half you could not tell them apart.

# %%
pairs = zip(right, speckled, strict=True)
frames = [lesson.beside(a[1:3], b[1:3]) for a, b in pairs]
lessons.animation(frames[1::2], fps=3)

# %% [markdown]
# ## Exhibit 3: a light haze
#
# Row D. DDIM with ten steps, evenly spread from $t = 1000$ to $t = 1$. Above, the same ten steps made
# right. Look at the plain backgrounds.
#
# - **a** The sampler steps to another level than the one it then tells the network.
# - **b** The network was trained with another schedule.
# - **c** DDIM adds noise between the steps.

# %%
count = LESSON.choose(5, 10, 10)
even = levels.path(count, "linspace")
straight = lesson.walk(samplers.ddim_step, denoise, z, even)[-1]
plot.rows([("right", straight), ("the mistake", strided.clamp(-1, 1))])

# %%
answer_3 = ...  # "a", "b" or "c"

lesson.check_stride(answer_3)

# %% [markdown]
# <details><summary>Diagnosis</summary>
#
# **a.** The next level was computed as `t - T // steps`, a stride of 100, while evenly spread steps from
# 1000 to 1 are 111 apart. So after each step the picture is noisier than the network is told. Reported
# for diffusers in [issue 9261](https://github.com/huggingface/diffusers/issues/9261) and mended for
# DDPM in [9384](https://github.com/huggingface/diffusers/pull/9384); for DDIM with `linspace` it was
# reported in [11347](https://github.com/huggingface/diffusers/issues/11347) and
# [12633](https://github.com/huggingface/diffusers/issues/12633). The formula is right for one spacing
# only, "leading", which happens to be the default.
# </details>
#
# The test: every step must end where the next one begins. It is best if it cannot fail, which is why
# a path here is a plain list and a sampler takes its levels in pairs. And so that nobody has to trust
# an eye: the haze as a number, the median difference of neighbouring pixels, with its interval over
# the six pictures.

# %%
told = [here.t for here in even[1:-1]]
taken = [here.t - levels.T // count for here in even[:-2]]
print("the network is told: ", told)
print("the formula lands at:", taken)
print(f"largest gap: {max(abs(a - b) for a, b in zip(told, taken, strict=True))} levels")


def haze(x):  # (B, 3, H, W) -> (B,)
    return (x[..., 1:] - x[..., :-1]).abs().flatten(1).median(1).values


for name, x in (("right", straight), ("with the mistake", strided)):
    low, high = bootstrap(haze(x), generator=LESSON.generator(4), resamples=500)
    print(f"{name}: {haze(x).mean():.3f} ({low:.3f} to {high:.3f})")

# %% [markdown]
# ## Exhibit 4: far too blue
#
# Colour guidance: at each step $x_t$ is moved so that the predicted $\hat x_0$ comes closer to blue. All
# rows have the same noise, and both guided ones the same scale, 40. The curve shows the strength that
# each code gives to the gradient. The last row is the course's code.
#
# - **a** The scale is too large.
# - **b** The gradient has the wrong sign.
# - **c** The strength is looked up at the wrong place.

# %%
blue = torch.tensor([-0.6, -0.4, 0.9]).reshape(1, 3, 1, 1).to(z)
free = clamp(model.denoiser(""))
by_t = [here.alpha for here in path[:-1]]
by_counter = [levels.level(i + 1).alpha for i in range(steps)]
table = []
for name, strengths in (("unguided", [0] * steps), ("meant", by_t), ("shipped", by_counter)):
    x = lesson.coloured(free, z, path, blue, [40 * s for s in strengths])
    table.append((f"{name}\nfrom blue: {(x - blue).abs().mean():.2f}", x.clamp(-1, 1)))
    print(f"{name:<8} differences of neighbours {haze(x).mean():.3f}")
series = {"meant": (range(steps), by_t), "shipped": (range(steps), by_counter)}
display(plot.rows(table))
plot.curves(plot.Panel("Strength of the gradient", series, x="step"))

# %%
answer_4 = ...  # "a", "b" or "c"

lesson.check_counter(answer_4)

# %% [markdown]
# <details><summary>Diagnosis</summary>
#
# **c.** The gradient is to be scaled by $\sqrt{\bar\alpha_t}$, small while there is mostly noise. The
# second unit of the [Hugging Face diffusion course](https://github.com/huggingface/diffusion-models-class)
# writes `alphas_cumprod[i]`, where `i` counts the steps of the loop: 0 to 49 of a table of 1,000. So the
# strength is nearly 1 from the first step on, when the prediction is a blur and
# $\partial \hat x_0 / \partial x_t = 1/\alpha_t$ is largest.
# </details>
#
# A trap: by the loss itself, the mistake looks like an improvement. The last row is *closer* to blue, and
# pays for it: a weave lies over its backgrounds, and some things are ghosts, run into each other or half
# there. The median difference of neighbouring pixels, from exhibit 3, sees the weave. The test: print the
# first and the last strength.

# %%
print(f"meant:   {by_t[0]:.3f} on the first step, {by_t[-1]:.3f} on the last")
print(f"shipped: {by_counter[0]:.3f} on the first step, {by_counter[-1]:.3f} on the last")
assert by_t[0] < 0.05 < 0.8 < by_t[-1], "weak in noise, strong at the end"

# %% [markdown]
# ## Exhibit 5: learning that stalls
#
# A small network learns the noise of the four islands of lesson 1, with plain gradient descent (left)
# and with Adam (right). Same seeds and batches throughout.
#
# - **a** It was given fewer updates.
# - **b** Its gradients are the smaller, the smaller the loss is.
# - **c** Its batches are different.

# %%
updates = LESSON.choose(80, 600, 600)
optimisers = {
    "gradient descent": lambda p: torch.optim.SGD(p, lr=0.3),
    "Adam": lambda p: torch.optim.Adam(p, lr=2e-3),
}
runs = {
    name: {by: lesson.training(make, by, updates) for by in (False, True)}
    for name, make in optimisers.items()
}
panels = []
for name, run in runs.items():
    lines = {"right": lesson.smooth(run[False], 40), "mistake": lesson.smooth(run[True], 40)}
    panels.append(plot.Panel(name, lines, x="update", y="loss"))
plot.curves(*panels)

# %%
answer_5 = ...  # "a", "b" or "c"

lesson.check_gradient(answer_5)

# %% [markdown]
# <details><summary>Diagnosis</summary>
#
# **b.** Units 1 and 2 of the same course say `loss.backward(loss)`. The argument of `backward` is the
# gradient that comes from above; for a loss it should be 1, which is what you get without an argument.
# So every gradient is multiplied by the loss. On the left the mistake ends about where the right line
# was half-way. Adam divides gradients by their own size, which hides
# most of it: this is why the line has been copied into many repositories.
# </details>
#
# The test: two numbers.

# %%
w = torch.tensor(3.0, requires_grad=True)
for call in ("loss.backward()", "loss.backward(loss)"):
    w.grad, loss = None, (w - 1) ** 2 / 10  # the gradient is (w - 1) / 5 = 0.4
    exec(call)
    print(f"{call:<20} gradient {w.grad:.2f}")

# %% [markdown]
# ## Exhibit 6: a model that does not listen
#
# To learn with and without a caption (for classifier-free guidance, lesson 6), a network is shown one
# caption in ten as "none". Here are pictures of a batch with what two programs say of them.
#
# - **a** A word is missing from the vocabulary.
# - **b** The wrong share of the captions is dropped.
# - **c** The captions are shuffled.

# %%
scenes = shapes.random_scenes(6, LESSON.generator(8), pairs=0)
batch, _ = shapes.render(scenes)
good, bad = lesson.dropped([f"{scene.thing.colour} {scene.thing.shape}" for scene in scenes])
plot.rows([("one program", batch, good), ("the other", batch, bad)])

# %%
answer_6 = ...  # "a", "b" or "c"

lesson.check_dropped(answer_6)

# %% [markdown]
# <details><summary>Diagnosis</summary>
#
# **b.** A lab of [MIT's course 6.S184](https://github.com/eje24/iap-diffusion-labs) shipped a solution with
# `xi > eta` for `xi < eta`, mended in commit `3ce71b6`: 90% of the labels were dropped, not 10%. The
# network still learns, and the loss hardly tells; but it sees a tenth of the labels it could have seen.
# </details>
#
# **Your turn.** Write it so that the share can be tested. `torch.rand(len(labels), generator=generator)`
# draws a number for each label.


# %%
def my_drop(labels, null, chance, generator):  # labels (B,) -> (B,), some of them `null`
    return ...


lesson.check_drop(my_drop)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_drop(labels, null, chance, generator):
#     xi = torch.rand(len(labels), generator=generator)
#     return torch.where(xi < chance, null, labels)
# ```
# </details>
#
# ## Exhibit 7: CLIP in the dark
#
# CLIP compares pictures with words (lesson 7). Above, pictures as they are; below, what CLIP was given
# to see.
#
# - **a** The values have the wrong range.
# - **b** Red and blue are exchanged.
# - **c** The picture is cropped.

# %%
whole, dark = lesson.seen_by_clip(batch)
plot.rows([("the pictures", whole), ("as CLIP gets them", dark)])

# %%
answer_7 = ...  # "a", "b" or "c"

lesson.check_range(answer_7)

# %% [markdown]
# <details><summary>Diagnosis</summary>
#
# **a.** Diffusion models work on $[-1, 1]$ and CLIP's preprocessing starts from $[0, 1]$. The CLIP guidance
# of the Hugging Face course normalises $\hat x_0$ without mapping the range first, so everything below
# middle grey is blacker than black to CLIP. It does not fail: it is just a worse judge.
# </details>
#
# The test is the range itself; `minidiff.clip` refuses such images. And after CLIP's normalisation,
# values should have a deviation of about 1:

# %%
mean = torch.tensor([0.4815, 0.4578, 0.4082]).reshape(3, 1, 1)  # CLIP's own constants
std = torch.tensor([0.2686, 0.2613, 0.2758]).reshape(3, 1, 1)
many, _ = shapes.render(shapes.random_scenes(200, LESSON.generator(9)))
assert many.min() < 0, "images in [0, 1] need no mapping"
for name, x in (("(x + 1) / 2", (many + 1) / 2), ("x as it is", many)):
    x = (x - mean) / std
    print(f"{name:<12} mean {x.mean():+.2f}, deviation {x.std():.2f}, smallest {x.min():+.1f}")

# %% [markdown]
# ## Exhibit 8: the finished picture looks fine
#
# RePaint (lesson 10) draws the right half of a picture anew. At every level the known left half is
# noised to that level and pasted in. Upper rows: noisy pictures on the way; lower rows: the finished
# ones.
#
# - **a** The mask is the wrong way round.
# - **b** The known half is not pasted at the end.
# - **c** The known half has the wrong amount of noise.

# %%
image, _ = shapes.render(shapes.random_scenes(6, LESSON.generator(10)))
keep = torch.arange(32).lt(16).expand(1, 1, 32, 32).to(z.device)  # the left half
ways = lesson.known_half(free, z, path, image.to(z), keep)
shown = [max(steps - k, 0) for k in (9, 7, 5, 4, 3, 2)]  # the later steps
table = []
for name, xs in zip(("right", "with the mistake"), ways, strict=True):
    table.append((f"{name}\non the way", torch.stack([xs[i][1] for i in shown]).clamp(-1, 1)))
    table.append((f"{name}\nfinished", xs[-1].clamp(-1, 1)))
plot.rows(table)

# %%
answer_8 = ...  # "a", "b" or "c"

lesson.check_known(answer_8)

# %% [markdown]
# <details><summary>Diagnosis</summary>
#
# **c.** Line 5 of algorithm 1 in the [RePaint paper](https://arxiv.org/abs/2201.09865) reads
# $\sqrt{\bar\alpha_t}\, x_0 + (1-\bar\alpha_t)\,\epsilon$: the root is missing. Its own equation 8a and
# its code are right. A reader held [diffusers](https://github.com/huggingface/diffusers/issues/9900),
# which was right, against the paper; the "fix" was
# [merged](https://github.com/huggingface/diffusers/pull/10185) and
# [reverted](https://github.com/huggingface/diffusers/pull/10644) a month later.
# </details>
#
# The finished pictures do not give it away, so measure on the way: the noise in the known half must
# have the deviation $\sigma_t$ of its level.

# %%
panel = {"should be": ([], [])} | {name: ([], []) for name in ("right", "no root")}
for i, there in reversed(list(enumerate(path[1:]))):
    values = [there.sigma]
    values += [(xs[i] - there.alpha * image.to(z))[..., :16].std().item() for xs in ways]
    for (ts, ys), value in zip(panel.values(), values, strict=True):
        ts.append(there.t)
        ys.append(value)
plot.curves(plot.Panel("Deviation of the noise in the known half", panel, x="t"))

# %% [markdown]
# **Your turn.** The known part at a level, from the equation and not from line 5.


# %%
def my_known_part(image, level, noise):
    return ...


lesson.check_known_part(my_known_part)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_known_part(image, level, noise):
#     return level.alpha * image + level.sigma * noise
# ```
# </details>
#
# ## What to take home
#
# - *Grain* that is even all over: noise after the last step. *Only noise*: a coefficient of the step.
#   *Haze*: the levels do not chain.
# - Print the first and the last value of every schedule you use, and the range of every image you pass
#   on.
# - A loss that falls, or a score that rises, does not show that the code is right (exhibits 4, 5, 6).
# - Measure on the way, not only at the end (exhibit 8).
# - Papers have typos. An equation and its algorithm that disagree are worth an hour.
#
# 1. *Why did labml's last dose of noise go unnoticed for years?*
#    <details><summary>Answer</summary>With all 1,000 steps it has a deviation of 0.01, about one grey
#    level of 256 on this scale. It shows only when steps are skipped.</details>
# 2. *Which of the eight would an exact denoiser have caught?*
#    <details><summary>Answer</summary>1, 2 and 3: with the exact denoiser of lesson 1 the samples must have the
#    distribution of the data. It would not catch 8 by its result, nor 4 to 7, which are not samplers.</details>
# 3. *Your own model draws pictures that are slightly too dark. Where do you look first?*
#    <details><summary>Answer</summary>At ranges: is it trained on [0, 1] and shown as [-1, 1], or the other
#    way round? Then at clamping.</details>
#
# Next: [lesson 1](01_noise.ipynb), where the noise comes from.
