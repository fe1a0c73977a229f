# %% [markdown]
# # 1. Noise: the process that a network learns to undo
#
# [![Open in Colab](../figures/colab.svg)](https://colab.research.google.com/github/minidiff/minidiff/blob/main/notebooks/01_noise.ipynb)
#
# Diffusion models learn one thing: to say which noise was mixed into a picture. This lesson is about
# that noise. You mix it in, step by step and in one jump, you choose how fast, and then you take it
# out again without any network, with a denoiser that is *exact*. It is the truth that every later
# lesson is measured against.
#
# ![Noise becomes four islands of points](../figures/lesson_01.png)
#
# Papers: [Denoising diffusion probabilistic models](https://arxiv.org/abs/2006.11239) (DDPM),
# [Improved DDPM](https://arxiv.org/abs/2102.09672) (the cosine schedule). You need Python, a little
# PyTorch, and what mean and variance are. Set aside 45 minutes.
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

LESSON = lessons.setup(1)

# %%
import torch

from minidiff import NoiseSchedule, denoiser, plot, samplers, schedule
from minidiff.data import shapes
from minidiff.lessons import lesson_01 as lesson
from minidiff.lessons import mixture
from minidiff.metrics import bootstrap, nearest_neighbours

n = LESSON.choose(400, 2000, 2000)
points = mixture.points(n, LESSON.generator(1))  # (n, 2, 1, 1)
images, _ = shapes.render(shapes.random_scenes(200, LESSON.generator(2)))  # (200, 3, 32, 32)

# %% [markdown]
# We work with two kinds of data. `points` are "images" of two numbers, drawn from four islands in
# the plane: small enough to draw all of them, and to know everything about them. `images` are
# 32x32 pictures of shapes. Both are tensors `(B, C, H, W)`, and the same code serves both.
#
# ## The result first
#
# Pure noise, and five moments on its way back to the islands. No network was trained: the denoiser
# is a formula that you will write below. The colour tells at which island a point will arrive.

# %% tags=["card"]
linear = NoiseSchedule.linear()
path = linear.path(LESSON.choose(10, 100, 100))
z = mixture.noise(n, LESSON.generator(3))
frames = list(samplers.trajectory(samplers.ddim_step, mixture.denoise, z, path))
arrived = lesson.island(frames[-1].x)
moments = [frames[round(part * (len(frames) - 1))] for part in (0, 0.7, 0.85, 0.93, 1)]
lesson.scatter({f"t = {frame.level.t:.0f}": frame.x for frame in moments}, arrived)

# %% [markdown]
# Notice that the colours are sorted long before the islands can be seen: a point's fate is settled
# while it still looks like noise.
#
# **Predict before you run.** Write down your guesses; the lesson answers them.
#
# 1. You add noise of standard deviation 0.1 to a point, 1,000 times. How far does it end up, typically?
# 2. A picture is mixed with noise in 1,000 steps. At which step are both equally strong?
# 3. You see a point of pure noise and must guess, in one go, the clean point behind it. What is the
#    best guess?
#
# ## The naive way
#
# Let us destroy data in the simplest way: add a little noise, again and again.

# %%
x, swollen = points, {"0 steps": points}
generator = LESSON.generator(4)
for step in range(1, 1001):
    x = x + 0.1 * mixture.noise(n, generator)
    if step in (10, 100, 1000):
        swollen[f"{step} steps"] = x
print(f"standard deviation: {points.std():.2f} before, {x.std():.2f} after")
lesson.scatter(swollen, lesson.island(points), side=4)

# %% [markdown]
# The islands are gone after 100 steps, so the data are destroyed. But the cloud grows without end:
# variances add up, so 1,000 steps of variance 0.01 give a variance of 10 and a deviation of about
# 3.2 (your first guess). A network that has to read such inputs sees numbers of a different size at
# every step, and nobody knows where to start on the way back: a distribution that depends on the
# number of steps is no good place to draw from.
#
# ## Round 1: shrink, then add
#
# DDPM mends it by shrinking the data a little before it adds noise. With a small $\beta_t$,
#
# $$x_t = \sqrt{1-\beta_t}\; x_{t-1} + \sqrt{\beta_t}\; \epsilon, \qquad \epsilon \sim N(0, 1).$$
#
# A variance of 1 stays 1, because $(1-\beta_t) \cdot 1 + \beta_t = 1$; any other variance drifts
# towards 1.

# %%
betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # DDPM's choice
x, generator = points, LESSON.generator(5)
for beta in betas:
    x = (1 - beta).sqrt() * x + beta.sqrt() * mixture.noise(n, generator)
print(f"standard deviation: {points.std():.3f} before, {x.std():.3f} after 1,000 steps")
assert abs(x.std() - 1) < 4 / n**0.5, "the end must be standard noise"

# %% [markdown]
# 1,000 steps for one noisy point are slow, and training needs millions of noisy points. But noise on
# noise is noise: step 1 leaves the share $1-\beta_1$ of the variance, step 2 leaves the share
# $1-\beta_2$ of that, and all the noises together are one normal noise that fills up the rest. So
# there is a jump from the clean image to any level:
#
# $$\bar\alpha_t = \prod_{s=1}^{t} (1-\beta_s), \qquad
# x_t = \alpha_t\, x_0 + \sigma_t\, \epsilon, \qquad
# \alpha_t = \sqrt{\bar\alpha_t}, \quad \sigma_t = \sqrt{1-\bar\alpha_t}.$$
#
# In the code, `alpha` and `sigma` always carry the root and `alpha_bar` does not. Half of the
# published bugs in [lesson 0](00_bug_museum.ipynb) are a root too few or a root too many.
#
# **Your turn (1).** From the betas to the table: entry 0 is the clean image, so there is one entry
# more than there are betas.


# %%
def my_alpha_bar(betas):  # (T,) -> (T + 1,)
    return ...


lesson.check_alpha_bar(my_alpha_bar)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_alpha_bar(betas):
#     return torch.cat([torch.ones(1), torch.cumprod(1 - betas, 0)])
# ```
# </details>
#
# **Your turn (2).** The jump itself.


# %%
def my_add_noise(x0, alpha, sigma, noise):
    return ...


lesson.check_add_noise(my_add_noise)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_add_noise(x0, alpha, sigma, noise):
#     return alpha * x0 + sigma * noise
# ```
# </details>
#
# Is the jump the same as the walk? Equal *points* we cannot expect, as their noise differs, but an
# equal distribution: how much of $x_0$ is left in $x_t$, and how much noise there is.

# %%
alpha_bar = torch.cat([torch.ones(1), torch.cumprod(1 - betas, 0)])
x, generator = points, LESSON.generator(6)
for beta in betas[:200]:  # the walk to t = 200
    x = (1 - beta).sqrt() * x + beta.sqrt() * mixture.noise(n, generator)
left = (x * points).mean() / points.square().mean()
noise = (x - left * points).std()
print(f"walked: {left:.3f} of x0 is left, noise of deviation {noise:.3f}")
print(f"jumped: alpha = {alpha_bar[200].sqrt():.3f}, sigma = {(1 - alpha_bar[200]).sqrt():.3f}")
assert abs(left - alpha_bar[200].sqrt()) < 4 / n**0.5

# %% [markdown]
# One line of algebra replaces 200 steps. Here is what it does to pictures; both rows of one scene
# share their noise.

# %%
times = [0, 50, 100, 200, 300, 500, 1000]
noise = torch.randn(2, 3, 32, 32, generator=LESSON.generator(7))
steps = [schedule.add_noise(images[:2], linear.level(t), noise) for t in times]
strips = torch.stack(steps, 1).clamp(-1, 1)  # (2, times, 3, 32, 32)
plot.rows([("", strip) for strip in strips], column_labels=[f"t = {t}" for t in times])

# %% [markdown]
# At $t = 200$ you still see what it is; at $t = 300$ you find it if you know where to look; at
# $t = 500$ it is all but gone. Half of the steps are spent where next to nothing is left to see.
#
# ## Round 2: schedules, or how fast
#
# What matters of a level is one number, the signal-to-noise ratio, and it is best read in logarithms:
#
# $$\mathrm{SNR}(t) = \frac{\alpha_t^2}{\sigma_t^2}, \qquad
# \lambda_t = \log\frac{\alpha_t}{\sigma_t}.$$
#
# Nichol and Dhariwal saw that DDPM's linear betas destroy small pictures too early, and proposed
# $\bar\alpha_t \propto \cos^2$ instead.

# %%
cosine = NoiseSchedule.cosine()
t = torch.arange(1, 1001)
panels = {"alpha (what is left of the image)": {}, "log(alpha / sigma)": {}}
for name, s in {"linear": linear, "cosine": cosine}.items():
    a = s.alpha_bar[1:]  # without the clean image, whose ratio is infinite
    for panel, y in zip(panels.values(), (a.sqrt(), (a / (1 - a)).log() / 2), strict=True):
        panel[name] = (t.tolist(), y.tolist())
    print(f"{name}: alpha = sigma at t = {(a - 0.5).abs().argmin() + 1}")
plot.curves(*(plot.Panel(title, series, x="t") for title, series in panels.items()))

# %% [markdown]
# Your second guess: with linear betas image and noise are equally strong at about $t = 260$, a
# quarter of the way, and with the cosine about half-way. Both curves end at nearly the same place,
# but the linear one gets down to it sooner.

# %%
noise = torch.randn(1, 3, 32, 32, generator=LESSON.generator(8))
times = [100, 250, 400, 550, 700, 850, 1000]
table = []
for name, s in {"linear": linear, "cosine": cosine}.items():
    strip = torch.cat([schedule.add_noise(images[2:3], s.level(t), noise) for t in times])
    hidden = (s.alpha_bar < 0.1).double().mean()
    table.append((f"{name}\n{hidden:.0%} of levels keep less than a tenth", strip.clamp(-1, 1)))
plot.rows(table, column_labels=[f"t = {t}" for t in times])

# %% [markdown]
# Neither is right or wrong: a schedule only says where a network spends its effort. And nothing
# else changes with it. A denoiser needs `alpha` and `sigma`, and does not care which schedule they
# came from.
#
# ## Round 3: the exact denoiser
#
# Now the way back. Somebody shows you $x_t$ and asks for $x_0$. Many clean points could have made
# this $x_t$, so the best single answer, in mean square, is their mean, each weighed by how likely it
# made $x_t$. For a data set of $N$ equally likely images $x_0^{(i)}$ that is a formula:
#
# $$E[x_0 \mid x_t] = \sum_i w_i\, x_0^{(i)}, \qquad
# w_i = \operatorname{softmax}_i\left(-\frac{\lVert x_t - \alpha_t\, x_0^{(i)} \rVert^2}{2\sigma_t^2}\right).$$
#
# **Your turn (3).** Three lines. `flatten(1)` makes rows of the images; `torch.cdist` gives all
# distances between two sets of rows.


# %%
def my_denoise(x, data, alpha, sigma):  # x (B, C, H, W), data (N, C, H, W) -> (B, C, H, W)
    # squared distances (B, N), then weights (B, N) whose rows sum to 1, then the mean
    return ...


lesson.check_denoise(my_denoise)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_denoise(x, data, alpha, sigma):
#     far = torch.cdist(x.flatten(1), alpha * data.flatten(1)) ** 2
#     weights = torch.softmax(-far / (2 * sigma**2), dim=1)
#     return (weights @ data.flatten(1)).reshape(x.shape)
# ```
# </details>
#
# Below we go on with ours. A formula can be believed or checked. So we check it by brute force: make
# many pairs $(x_0, x_t)$, keep the pairs whose $x_t$ falls near one place, and average their $x_0$.


# %%
def exact(x, data, alpha, sigma):
    far = torch.cdist(x.flatten(1), alpha * data.flatten(1)) ** 2
    return (torch.softmax(-far / (2 * sigma**2), dim=1) @ data.flatten(1)).reshape(x.shape)


level, place = linear.level(300), torch.tensor([0.3, 0.4]).double().reshape(1, 2, 1, 1)
many = mixture.points(LESSON.choose(20_000, 400_000, 400_000), LESSON.generator(9))
noisy = schedule.add_noise(many, level, mixture.noise(len(many), LESSON.generator(10)))
near = (noisy - place).flatten(1).norm(dim=1) < 0.05
found, formula = many[near].mean(0).flatten(), exact(place, many[:20_000], *level[1:]).flatten()
print(f"mean x0 of the {near.sum()} pairs near (0.3, 0.4): ({found[0]:.2f}, {found[1]:.2f})")
print(f"formula: ({formula[0]:.2f}, {formula[1]:.2f})")
assert (found - formula).abs().max() < 4 / near.sum() ** 0.5

# %% [markdown]
# For islands that are normal distributions the sum over endless data has a closed form too;
# `minidiff.lessons.mixture.denoise` holds it. Arrows show what it answers: from $x_t$ to the mean of
# the clean points behind it.

# %%
lesson.arrows(mixture.denoise, {f"t = {t}": linear.level(t) for t in (800, 300, 100)})

# %% [markdown]
# Look at $t = 800$: wherever you stand, the answer is nearly the same place in the middle, where no
# data are at all. That is your third guess: behind pure noise may be anything, so the best guess is
# the mean of everything, which for pictures is a grey blur. At $t = 300$ the answers differ, but still
# lie between the islands; at $t = 100$ nearly all are the nearest island. An answer is only a
# *direction* to go; that is why sampling takes more than one step.
#
# ## Round 4: one answer in three forms
#
# Who knows $\hat x_0$ knows the noise as well, since $x_t = \alpha_t x_0 + \sigma_t\epsilon$ can be
# solved for it. And the noise is, but for a factor, the *score*, the direction in which noisy data get
# denser:
#
# $$\hat\epsilon = \frac{x_t - \alpha_t\, \hat x_0}{\sigma_t}, \qquad
# \nabla_{x_t} \log p_t(x_t) = -\frac{\hat\epsilon}{\sigma_t}.$$
#
# We can check the second one, because the density of the noisy islands is known.


# %%
def log_density(x, level):  # log p_t(x), but for a constant: each island widens and moves inward
    variance = level.alpha**2 * mixture.STD**2 + level.sigma**2
    far = torch.cdist(x.flatten(1), level.alpha * mixture.MEANS) ** 2  # (B, 4)
    return torch.logsumexp(mixture.WEIGHTS.log() - far / (2 * variance), 1)


x = noisy[:1000].clone().requires_grad_()
(score,) = torch.autograd.grad(log_density(x, level).sum(), x)
eps = (x - level.alpha * mixture.denoise(x, level).x0) / level.sigma
error = (score + eps / level.sigma).abs().max()
print(f"largest difference between the score and -eps/sigma: {error:.1e}")
assert error < 1e-6

# %% [markdown]
# ## Why predict the noise
#
# A network may be trained to output $x_0$, $\epsilon$, or a mixture such as
# $v = \alpha_t\epsilon - \sigma_t x_0$. As each follows from the others, they are the same answer; but
# their *errors* are not the same number:
#
# $$\lVert x_0 - \hat x_0 \rVert^2 = \frac{\sigma_t^2}{\alpha_t^2}\, \lVert \epsilon - \hat\epsilon \rVert^2.$$
#
# So a mean squared error of the noise, the same at all levels, is an error of $x_0$ that counts
# much at low noise and little at high noise. Here is what the exact denoiser itself gets wrong: no
# network can do better.

# %%
errors = {"x0": [], "eps": [], "v": []}
noise, times = mixture.noise(n, LESSON.generator(11)), list(range(20, 1001, 20))
for t in times:
    _, alpha, sigma = level = linear.level(t)
    guess = mixture.denoise(schedule.add_noise(points, level, noise), level)
    errors["x0"].append((points - guess.x0).square().mean().item())
    errors["eps"].append((noise - guess.eps).square().mean().item())
    v, v_guess = alpha * noise - sigma * points, alpha * guess.eps - sigma * guess.x0
    errors["v"].append((v - v_guess).square().mean().item())
    assert abs(errors["x0"][-1] * alpha**2 / (errors["eps"][-1] * sigma**2) - 1) < 1e-6
series = {name: (times, values) for name, values in errors.items()}
plot.curves(plot.Panel("What the exact denoiser gets wrong (mean square)", series, x="t"))

# %% [markdown]
# With much noise, the noise is easy to tell (at $t = 1000$, just repeat the input) and the image is not;
# with little noise it is the other way round. Predicting $\epsilon$ makes the target the same size
# at every level, and asks the network to work where the image is nearly finished, on detail: this is
# why DDPM's simple loss works. Its price: at the noisy end, where the composition is decided, the loss
# hardly feels a mistake. The error of `v` follows that of $\epsilon$ at low noise and that of $x_0$ at
# high noise: it lets neither end go quiet.
#
# ## Run it
#
# The way back, step by step: the upper row is $x_t$, the lower what the denoiser says is behind it.

# %%
display(lesson.scatter({f"x at t = {f.level.t}": f.x for f in moments}, arrived))
display(lesson.scatter({f"x0 by t = {f.level.t}": f.prediction.x0 for f in moments}, arrived))

# %% [markdown]
# The predictions start as one dot, the mean of all data, fan out over the area between the islands, and
# gather at its corners long before $x_t$ does. And now the whole story: the islands dissolve, and noise turns into islands.

# %%
forth = [schedule.add_noise(points, level, z) for level in path[::-1]]
shown = [
    lesson.moment(x, f"noise in: t = {level.t}", lesson.island(points))
    for x, level in zip(forth[::7], path[::-7], strict=True)
]
shown += [lesson.moment(f.x, f"noise out: t = {f.level.t}", arrived) for f in frames[1::7]]
lessons.animation(shown, fps=10)

# %% [markdown]
# ## Sweep one knob: the number of steps
#
# The same noise `z`, the same denoiser; only the number of steps changes.

# %%
counts = LESSON.choose([1, 3, 5], [1, 3, 10, 30, 100], [1, 3, 10, 30, 100])
ends = {
    steps: samplers.sample(samplers.ddim_step, mixture.denoise, z, linear.path(steps))
    for steps in counts
}
lesson.scatter({f"steps: {steps}": x for steps, x in ends.items()}, arrived)

# %% [markdown]
# Notice that one step lands on a dot, the mean of all data, as round 3 foretold. Three steps set out in
# different directions and stop half-way. Ten reach the islands but leave points stranded between them;
# from 30 on you hardly see a change.
#
# ## Measure it
#
# Pictures please; numbers decide. The islands have a standard deviation of 0.15. How wide are ours?
# The interval says how far the number would move with other noise, and the baseline is the data
# itself: what you would measure if sampling were perfect.


# %%
def width(x):  # of the islands
    away = torch.cdist(x.flatten(1), mixture.MEANS).min(1).values  # (n,)
    squares = away.square() / 2  # two coordinates
    low, high = bootstrap(squares, generator=LESSON.generator(12), resamples=200)
    return f"{squares.mean().sqrt():.3f}  ({low**0.5:.3f} to {high**0.5:.3f})"


print(f"data       {width(points)}")
for steps, x in ends.items():
    print(f"{steps:3} steps  {width(x)}")

# %% [markdown]
# The first rows are far too wide, as points hang between the islands. At 30 steps the picture looked
# right, but the islands are too narrow, which the interval shows and the eye did not: each step aims
# at a mean, and means have less spread than data. The "too smooth with few steps" look returns with
# every image model.
#
# ## A perfect denoiser of pictures
#
# `exact` works for pictures too. Let us give it our 200 images as its whole world and sample.

# %%
flat = images.double()


def remember(x, level):
    x0 = exact(x, flat, level.alpha, level.sigma)
    return denoiser.from_x0(x, level, x0)  # x0 and the eps that belongs to it


noise = torch.randn(8, 3, 32, 32, generator=LESSON.generator(13), dtype=torch.float64)
drawn = samplers.sample(samplers.ddim_step, remember, noise, linear.path(LESSON.choose(10, 50, 50)))
far, which = nearest_neighbours(drawn, flat)
print(f"largest distance of a sample to its nearest training picture: {far.max():.1e}")
plot.rows([("sampled", drawn), ("nearest of\nthe 200", flat[which[:, 0]])])

# %% [markdown]
# They are copies, pixel for pixel. A perfect denoiser of a *training set* only gives its pictures
# back. So what we want of a network is not the minimum of its training loss but a good mistake: it
# cannot remember everything, so it has to learn what pictures have in common. And this is why later
# lessons look up the nearest training pictures of their samples.
#
# ## Break it on purpose
#
# Two mistakes that were published more than once. In the first, a root is missing:
# `alpha_bar * x0 + (1 - alpha_bar) * noise`. In the second, a sampler indexes the table of 1,000
# levels with its own loop counter, 0, 1, 2, ..., instead of with `t`.

# %%
series = {"right": ([], []), "no root": ([], [])}
for t in range(1, 1001, 20):
    _, alpha, sigma = linear.level(t)
    for name, x in (
        ("right", alpha * points + sigma * z),
        ("no root", alpha**2 * points + sigma**2 * z),
    ):
        series[name][0].append(t)
        series[name][1].append(x.std().item())
plot.curves(plot.Panel("Standard deviation of noisy points", series, x="t"))

# %%
x = z
for i, level in enumerate(path[:-1], 1):
    eps = mixture.denoise(x, level).eps  # the denoiser is told the right t ...
    here, there = linear.level(i), linear.level(i + 1)  # ... and the sampler counts on its own
    x = there.alpha / here.alpha * (x - here.sigma * eps) + there.sigma * eps
print(f"standard deviation: {x.std():.2f} by the counter, {frames[-1].x.std():.2f} by t")
lesson.scatter({"by t": frames[-1].x, "by loop counter": x}, arrived)

# %% [markdown]
# Symptoms to remember. *Without the root* noisy data are too small in the middle of the way: their
# deviation dips, and a network trained so is lost on properly noisy inputs. One assert on a standard
# deviation finds it. *By the loop counter* the sampler believes that there is hardly any noise to
# take out, so it leaves the noise where it is.
#
# ## The library version
#
# All of it is in `minidiff`, and is equal:

# %%
assert torch.allclose(linear.alpha_bar, alpha_bar)
level, x = linear.level(300), noisy[:100]
assert torch.allclose(schedule.add_noise(x, level, x), level.alpha * x + level.sigma * x)
sum_over_data = exact(x, many[:100_000], level.alpha, level.sigma)
closed_form = mixture.denoise(x, level).x0
print(f"sum over data and closed form differ by {(sum_over_data - closed_form).abs().mean():.4f}")
assert (sum_over_data - closed_form).abs().mean() < 3 / len(many) ** 0.5 * 5

# %% [markdown]
# ## Recap
#
# - A level of noise is a pair: $x_t = \alpha_t x_0 + \sigma_t \epsilon$ with $\alpha_t^2 + \sigma_t^2 = 1$.
# - A schedule says how the pair changes with $t$; what counts is $\log(\alpha_t/\sigma_t)$.
# - The best denoiser answers with a mean, $E[x_0 \mid x_t]$, and for known data it is a softmax.
# - $\hat x_0$, $\hat\epsilon$ and the score are one answer; their errors weigh the levels differently.
# - A mean is a direction, not a sample: hence many steps.
#
# 1. *Why is a schedule needed at all if the jump needs only one level?*
#    <details><summary>Answer</summary>Training draws a level at random, and sampling visits a list of
#    them: the schedule says which levels there are, and how many of each kind.</details>
# 2. *At high noise the exact denoiser of pictures shows a grey blur. Is it broken?*
#    <details><summary>Answer</summary>No: the mean of everything that could be behind this noise is
#    the best answer in mean square. A sharp picture there would be a guess.</details>
# 3. *A network reaches a lower training loss than the exact denoiser of the true distribution. Good?*
#    <details><summary>Answer</summary>It has begun to remember its training set: on fresh data it
#    must be worse.</details>
#
# Next: [lesson 2](02_unet.ipynb) builds the network that takes the place of the formula.
