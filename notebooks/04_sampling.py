# %% [markdown]
# # 4. Sampling: from noise to a picture
#
# [![Open in Colab](../figures/colab.svg)](https://colab.research.google.com/github/minidiff/minidiff/blob/main/notebooks/04_sampling.ipynb)
#
# A trained network only says which noise it sees in a picture. Who walks from pure noise to a
# picture, in how many steps, and with how much fresh noise on the way? In this lesson you write
# that walk four times, from the 1,000 steps of DDPM to the ten of DPM-Solver++, and you measure
# what each of them costs on data whose exact answer is known.
#
# ![The same noise with ten calls of the network, by three samplers](../figures/lesson_04.png)
#
# Papers: [DDPM](https://arxiv.org/abs/2006.11239), [DDIM](https://arxiv.org/abs/2010.02502),
# [score SDE](https://arxiv.org/abs/2011.13456), [EDM](https://arxiv.org/abs/2206.00364),
# [DPM-Solver++](https://arxiv.org/abs/2211.01095). You need lesson 1 (noise levels).
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

LESSON = lessons.setup(4)

# %%
import math
from functools import partial

import torch

from minidiff import as_denoiser, load, sample, samplers, trajectory
from minidiff.data import shapes
from minidiff.guidance import clamp
from minidiff.lessons import lesson_04 as lesson
from minidiff.lessons import mixture
from minidiff.metrics import wilson

model = load("shapes")
path, level = model.schedule.path, model.schedule.level
captions = ["a red circle", "an orange square", "a yellow triangle", "a green star"]
captions += ["a cyan heart", "a blue ring", "a purple circle", "a pink square"]
z = model.noise(8, LESSON.generator(4))  # (8, 3, 32, 32), where every walk begins
denoise = clamp(model.denoiser(captions))

# %% [markdown]
# ## The result first
#
# Eight captions, one noise each, ten calls of the network each. Only the sampler differs.

# %% tags=["card"]
ten = {
    "DDPM": sample(samplers.ddpm_step, denoise, z, path(10), generator=LESSON.generator(0)),
    "DDIM": sample(samplers.ddim_step, denoise, z, path(10)),
    "DPM-Solver++": sample(samplers.dpmpp_2m_step, denoise, z, path(10, "log_snr")),
}
lesson.sheet([(f"{name}\n10 calls", x) for name, x in ten.items()])

# %% [markdown]
# The two lower rows nearly agree: from the noise on, these samplers are deterministic and go to one
# limit, down to the star too many. Where they differ, in a ground and in a heart's place, ten calls
# were too few for one of them. DDPM draws fresh noise at every step, so its pictures are others.
#
# **Before you run on, write down what you expect:**
#
# 1. The network says what the clean picture is. Why not ask once, at pure noise, and be done?
# 2. DDPM adds noise after each step. What happens if you leave it out?
# 3. Twice as many steps: how much nearer does DDIM come to its limit? And a better solver?
#
# ## The naive way: ask once
#
# $x_t = \alpha_t x_0 + \sigma_t \epsilon$ has two unknowns, and the network knows them both: it
# predicts a pair, $x_0$ and $\epsilon$. So let us take its $x_0$ straight away, at $t = 1000$, with
# a caption and without.

# %%
with torch.no_grad():
    told, free = (d(z, level(1000)).x0 for d in (denoise, clamp(model.denoiser(None))))
table = [("x_T", z), ("one call,\na caption", told), ("one call,\nno caption", free)]
lesson.sheet([(name, x[:5]) for name, x in table])

# %% [markdown]
# Fog. Many pictures are compatible with pure noise, and the network answers with their *mean*,
# because the mean is what a squared error asks for. The caption narrows the choice, but place, size
# and background are open, so it adds hardly a tint to the mean. Nothing is wrong with the network;
# the question was too hard. Asked at a lower noise, it knows more. So we take a small step down and
# ask again.
#
# ## Round 1: DDPM, and why noise is added back
#
# Say $x_t$ is known and $x_0$ too. Then the picture at a lower level $s$ has a normal
# distribution, the *posterior* (DDPM, equations 6 and 7). With $\beta = 1 - (\alpha_t/\alpha_s)^2$,
#
# $$ x_s = \frac{\alpha_s \beta}{\sigma_t^2}\, x_0
#        + \frac{\alpha_t}{\alpha_s} \frac{\sigma_s^2}{\sigma_t^2}\, x_t
#        + \sqrt{\beta}\, \frac{\sigma_s}{\sigma_t}\, z . $$
#
# DDPM puts the network's guess of $x_0$ in place of the true one. `here` is level $t$, `there`
# level $s$; any levels may be skipped. The check: if $x_0$ is right, the deviation of $x_s$ must
# come out as $\sigma_s$, from the two noises together.


# %%
def posterior(x, x0, here, there):
    ratio = here.alpha / there.alpha
    beta = 1 - ratio**2
    mean = there.alpha * beta / here.sigma**2 * x0
    mean = mean + ratio * there.sigma**2 / here.sigma**2 * x
    return mean, math.sqrt(beta) * there.sigma / here.sigma


# %%
here, there = level(700), level(500)
eps = mixture.noise(100_000, LESSON.generator(1))
mean, std = posterior(here.sigma * eps, torch.zeros_like(eps), here, there)  # x0 is 0
x_s = mean + std * mixture.noise(100_000, LESSON.generator(2))
print(f"deviation {x_s.std():.4f}, sigma_s {there.sigma:.4f}; of the mean alone {mean.std():.4f}")
assert abs(x_s.std() / there.sigma - 1) < 0.01 and mean.std() < 0.9 * there.sigma

# %% [markdown]
# The mean alone is too narrow: the level below must hold $\sigma_s$ of noise, and a part of it has
# to be drawn anew. What if we leave it out? Measure it where everything is known. Lesson 1's four
# Gaussians in the plane have an *exact* denoiser, so every fault is the sampler's own.


# %%
def ddpm(denoise, x, here, there, past=(), *, generator=None, louder=1.0):
    prediction = denoise(x, here)
    mean, std = posterior(x, prediction.x0, here, there)
    return mean + louder * std * samplers.randn(x.shape, generator, like=x), prediction


silent = partial(ddpm, louder=0.0)

# %%
points, steps = LESSON.choose(200, 1000, 1000), LESSON.choose(50, 1000, 1000)
start = mixture.noise(points, LESSON.generator(3))
clouds = {"the data": mixture.points(points, LESSON.generator(5))}
for name, step in (("DDPM", ddpm), ("DDPM without noise", silent)):
    clouds[name] = sample(step, mixture.denoise, start, path(steps), generator=LESSON.generator(6))
spread = {name: round(cloud[:, 0].std().item(), 3) for name, cloud in clouds.items()}
print(spread)
assert spread["DDPM"] > 0.85 and spread["DDPM without noise"] < LESSON.choose(0.3, 0.005, 0.005)
lesson.scatter(clouds)

# %% [markdown]
# Without its noise, DDPM takes every point to *one* place, the middle of the heaviest Gaussian. The
# network gives the mean of where $x_s$ may lie, and means of means draw all points together while
# noise is high; from there they all take the same way down. The noise is what
# chooses. Now with pictures: a caption that leaves place, size and background open, and the
# deviation of the background's colour over the batch.

# %%
n, heart = LESSON.choose(4, 16, 64), clamp(model.denoiser("a red heart"))
many = model.noise(n, LESSON.generator(7))


def variety(x):  # of the background, looked at in the upper left corner
    return x[:, :, :2, :2].float().mean((2, 3)).std(0).mean().item()


arms = {"DDPM": ddpm, "DDPM without noise": silent}
for name, step in arms.items():
    arms[name] = sample(step, heart, many, path(25), generator=LESSON.generator(8))
    print(f"{name:<19} deviation of the background {variety(arms[name]):.3f}")
assert variety(arms["DDPM without noise"]) < 0.5 * variety(arms["DDPM"])
lesson.sheet([(name, x[:8]) for name, x in arms.items()])

# %% [markdown]
# Same network, same 25 calls, and one picture eight times: without dice nobody chooses ground, place
# or size, and all noises end where the points did, at one place. When a sampler of yours gives alike
# pictures from unlike seeds, look for noise that is missing.
#
# ### Your turn: one step of DDPM
#
# Without looking up. On the last move there is nothing to choose: no noise may be left in the
# picture.


# %%
def my_ddpm_step(x, x0, here, there, noise):
    return ...  # your turn: x_s from the equation above


lesson.check_ddpm_step(my_ddpm_step)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_ddpm_step(x, x0, here, there, noise):
#     ratio = here.alpha / there.alpha
#     beta = 1 - ratio**2
#     mean = there.alpha * beta / here.sigma**2 * x0
#     mean = mean + ratio * there.sigma**2 / here.sigma**2 * x
#     return mean + math.sqrt(beta) * there.sigma / here.sigma * noise
# ```
# At `there.sigma == 0` the noise vanishes by itself, and the mean is $x_0$.
# </details>
#
# How much noise is right, though? The posterior's variance is exact if all data are one point;
# $\beta$ itself is exact if data are standard normal. DDPM calls them the two bounds: real data lie
# between. Look at the width of the four Gaussians (truth: 0.150) under both.

# %%
for calls in (LESSON.choose(50, 250, 1000), 20):
    width = {}
    for variance in ("small", "large"):
        step = partial(samplers.ddpm_step, variance=variance)
        x = sample(step, mixture.denoise, start, path(calls), generator=LESSON.generator(9))
        width[variance] = mixture.within_std(x)
    print(f"{calls:>4} steps: small {width['small']:.3f}, large {width['large']:.3f}")
assert width["small"] < 0.13 < mixture.STD < width["large"]

# %% [markdown]
# With many steps the choice hardly matters. With 20, one is too narrow and the other too wide:
# few steps are too few for a walk that throws dice.
#
# ## Round 2: DDIM, the same network without dice
#
# DDIM noticed that the training loss fixes only how noisy each level is, and not how levels hang
# together. So part of the noise at level $s$ may be drawn anew ($\eta$ says how much), and the rest
# be *kept*, from the prediction:
#
# $$ x_s = \alpha_s x_0 + \sqrt{\sigma_s^2 - \tau^2}\; \epsilon + \tau z, \qquad
#    \tau = \eta\, \frac{\sigma_s}{\sigma_t} \sqrt{1 - (\alpha_t/\alpha_s)^2} . $$
#
# At $\eta = 1$ this is DDPM; at $\eta = 0$ nothing is drawn. Note the coefficient of $\epsilon$:
# DDIM is *not* DDPM with its noise left out. What is not drawn is kept.


# %%
def ddim(x, prediction, here, there, eta, noise):
    tau = eta * there.sigma / here.sigma * math.sqrt(1 - (here.alpha / there.alpha) ** 2)
    kept = math.sqrt(there.sigma**2 - tau**2)
    return there.alpha * prediction.x0 + kept * prediction.eps + tau * noise


x_t, noise = here.alpha * clouds["the data"] + here.sigma * start, start.flip(0)
guess = mixture.denoise(x_t, here)
mean, std = posterior(x_t, guess.x0, here, there)
as_ddpm = (ddim(x_t, guess, here, there, 1, noise) - (mean + std * noise)).abs().max()
no_dice = (ddim(x_t, guess, here, there, 0, noise) - mean).abs().max()
print(f"eta = 1: off DDPM by {as_ddpm:.0e}; eta = 0: off DDPM without noise by {no_dice:.2f}")
assert as_ddpm < 1e-12 and no_dice > 0.1

# %% [markdown]
# Sweep $\eta$ on the same noise, with ten calls.

# %%
sweep = []
for eta in (0, 0.5, 1):
    step = partial(samplers.ddim_step, eta=eta)
    x = sample(step, denoise, z, path(10), generator=LESSON.generator(0))
    sweep.append((f"eta = {eta}", x))
lesson.sheet(sweep)

# %% [markdown]
# $\eta$ changes what captions leave open, place, size and background: at 0 the starting noise has
# settled them, at 1 the noise drawn on the way does. Ten calls are few: two rows have a star too
# many, and in the middle one the heart has all but vanished.
#
# ### Your turn: a whole sampler
#
# Levels, clipping and the move with $\eta = 0$: `steps` calls at the levels
# $\mathrm{round}(T - i T/S)$, $i = 0 \dots S-1$, then $t = 0$. Cut $x_0$ to $[-1, 1]$, and take
# from $x_t$ the $\epsilon$ that belongs to the cut one.


# %%
def my_ddim(denoise, x, schedule, steps):
    return ...  # your turn: schedule.level(t), denoise(x, level) and schedule.T are all it takes


lesson.check_ddim(my_ddim)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_ddim(denoise, x, schedule, steps):
#     ts = [round(schedule.T - i * schedule.T / steps) for i in range(steps)] + [0]
#     for t, s in zip(ts[:-1], ts[1:]):
#         here, there = schedule.level(t), schedule.level(s)
#         x0 = denoise(x, here).x0.clamp(-1, 1)
#         eps = (x - here.alpha * x0) / here.sigma
#         x = there.alpha * x0 + there.sigma * eps
#     return x
# ```
# </details>
#
# ## Round 3: an ordinary differential equation
#
# Divide by $\alpha$: with $y = x/\alpha$ and $s = \sigma/\alpha$, DDIM's move is
# $y_{\text{there}} = y + (s_{\text{there}} - s)\,\epsilon$. That is Euler's method for
#
# $$ \frac{dy}{ds} = \epsilon(y, s), $$
#
# the *probability-flow ODE* (score SDE, equation 13). It has the same distribution at every level
# as the walk with dice, and no dice. Karras et al. take Heun's method instead: try the step, ask
# again where it leads, and go by the mean of the two slopes. Second order, two calls a step.


# %%
def ratio(level):
    return level.sigma / level.alpha  # s


def heun(denoise, x, here, there, past=(), *, generator=None):
    prediction = denoise(x, here)
    y, ds, slope = x / here.alpha, ratio(there) - ratio(here), prediction.eps
    if there.sigma > 0:
        tried = there.alpha * (y + ds * slope)
        slope = (slope + denoise(tried, there).eps) / 2
    return there.alpha * (y + ds * slope), prediction


euler = there.alpha * (x_t / here.alpha + (ratio(there) - ratio(here)) * guess.eps)
assert torch.allclose(euler, ddim(x_t, guess, here, there, 0, noise))
assert torch.allclose(
    *(sample(step, mixture.denoise, start, path(9)) for step in (heun, samplers.heun_step))
)
print("Euler's step is DDIM; Heun's is the library's")

# %%
ways = {}
for name, step in (("the ODE (DDIM)", samplers.ddim_step), ("with dice (DDPM)", ddpm)):
    walk = trajectory(step, mixture.denoise, start, path(200), generator=LESSON.generator(6))
    ways[name] = [start, *(frame.x for frame in walk)]
lesson.tracks(ways)

# %% [markdown]
# Both end on the four Gaussians. The ODE's ways are smooth and never cross in time, so a point's
# end is a smooth function of its noise; lesson 5 makes use of that. Smooth ways can be walked in
# long strides, jagged ones cannot.
#
# ## Round 4: DPM-Solver++(2M)
#
# Heun pays twice. But the call *before* is known already: extrapolate from it. In
# $\lambda = \log(\alpha/\sigma)$, the logarithm of the signal-to-noise ratio, the linear part of
# the ODE is solved exactly, and what remains changes slowly. With $h = \lambda_{\text{there}} -
# \lambda_{\text{here}}$ and $r = h_{\text{before}}/h$,
#
# $$ D = \Big(1 + \frac{1}{2r}\Big) x_0 - \frac{1}{2r}\, x_0^{\text{before}}, \qquad
#    x_{\text{there}} = \frac{\sigma_{\text{there}}}{\sigma_{\text{here}}}\, x
#    - \alpha_{\text{there}} \left(e^{-h} - 1\right) D . $$


# %%
def log_snr(level):
    return math.log(level.alpha / level.sigma)


def dpmpp_2m(denoise, x, here, there, past=(), *, generator=None):
    prediction = denoise(x, here)
    if there.sigma == 0:
        return prediction.x0, prediction
    D, h = prediction.x0, log_snr(there) - log_snr(here)
    if past:
        before, earlier = past[-1]
        r = (log_snr(here) - log_snr(before)) / h
        D = (1 + 1 / (2 * r)) * D - 1 / (2 * r) * earlier.x0
    return there.sigma / here.sigma * x - there.alpha * math.expm1(-h) * D, prediction


assert torch.allclose(
    *(sample(step, mixture.denoise, start, path(9)) for step in (dpmpp_2m, samplers.dpmpp_2m_step))
)
print("2M is the library's")

# %% [markdown]
# ### Your turn: the extrapolation


# %%
def my_extrapolation(x0, x0_before, h, h_before):
    return ...  # your turn: D


lesson.check_2m(my_extrapolation)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_extrapolation(x0, x0_before, h, h_before):
#     r = h_before / h
#     return (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
# ```
# </details>
#
# ## Measure: error against calls
#
# The honest axis is *calls of the network*, because that is where the time goes; a step of Heun
# counts twice. Take 2,000 calls of Heun for the truth, and look how far from it each sampler ends.

# %%
counts = LESSON.choose((8, 16), (8, 16, 32, 64, 128), (8, 16, 32, 64, 128, 256))
truth = sample(heun, mixture.denoise, start, path(LESSON.choose(100, 1000, 1000), "log_snr"))


def measured(step, spacing, calls_a_step=1):
    levels = {calls: path(calls // calls_a_step, spacing) for calls in counts}
    ends = {calls: sample(step, mixture.denoise, start, p) for calls, p in levels.items()}
    return {calls: mixture.distance(x, truth) for calls, x in ends.items()}


solvers = {"DDIM": measured(samplers.ddim_step, "log_snr"), "2M": measured(dpmpp_2m, "log_snr")}
solvers["Heun"] = measured(heun, "log_snr", calls_a_step=2)
paths = {f"2M, {name}": measured(dpmpp_2m, name) for name in ("linspace", "log_snr")}
for name, found in (solvers | paths).items():
    print(f"{name:<12} order {lesson.slope(found):.2f}, error {min(found.values()):.5f}")
if not LESSON.fast:
    assert 0.9 < lesson.slope(solvers["DDIM"]) < 1.1 and lesson.slope(solvers["2M"]) > 1.8
    assert lesson.slope(solvers["Heun"]) > 1.8 and lesson.slope(paths["2M, linspace"]) < 1.5
lesson.errors({"three samplers": solvers, "two paths": paths})

# %% [markdown]
# Left: DDIM falls along slope 1, twice the calls, half the error. Heun and 2M fall along slope 2,
# 2M at half of Heun's price. With eight calls, Heun makes four strides so long that its trial steps
# lead astray: an order is a promise for small steps only. Right: the same 2M on levels that are even in $t$ loses
# its order. It extrapolates in $\lambda$, and on such a path the last strides in $\lambda$ are
# enormous; that is why `"log_snr"` exists.
#
# ### Which levels?

# %%
for spacing in ("trailing", "leading", "linspace", "log_snr"):
    p = path(10, spacing)
    ts = ", ".join(f"{there.t:.0f}" for there in p[:-1])
    print(f"{spacing:<9} t = {ts}; alpha at the start {p[0].alpha:.3f}")
first = {spacing: path(5, spacing)[0].alpha for spacing in ("trailing", "leading")}
assert first["leading"] > 4 * first["trailing"]
lesson.sheet([(f"{s}\n5 calls", sample(samplers.ddim_step, denoise, z, path(5, s))) for s in first])

# %% [markdown]
# `leading` starts well below $T$, at a level where $\alpha = \sqrt{\bar\alpha}$ should carry a trace
# of a picture that pure noise has not. And it asks its last question at $t = 1$, where `trailing`
# asks at $t = 200$ and takes the mean of all that is open there. Compare the rows: other backgrounds
# above and below from the same noise, two stars in both, and a square that is unfinished in both.
# No table of levels rescues five calls of DDIM.
#
# ## Run: a picture comes about

# %%
frames = list(trajectory(dpmpp_2m, denoise, z, path(24, "log_snr")))
lesson.strip(frames, images=2)

# %%
lessons.animation([frame.prediction.x0[:3] for frame in frames[::2]], fps=5)

# %% [markdown]
# Coarse things are decided first. At $t$ near 600 something stands somewhere, in the upper row at two
# places at once; by 350 one of them is left, with its outline. The tone of the ground may take
# longer: above, it is still green there, and cream by 128. In the animation the predicted $x_0$ turns
# from fog to a picture within a few frames. Look at the last ones, too: a fine grain comes up on the
# grounds. On the `log_snr` path these steps lie below $t = 20$, where this network takes hardly any
# noise away; the path that suits the solver need not suit the network.
#
# ## Sweep: how many calls are enough?

# %%
walks = {
    "DDPM": (samplers.ddpm_step, "trailing"),
    "DDIM": (samplers.ddim_step, "trailing"),
    "2M": (dpmpp_2m, "log_snr"),
}
counts, sweep = (4, 6, 10, 20, 40), []
for name, (step, spacing) in walks.items():
    dice = LESSON.generator(8)
    row = [sample(step, heart, many[:2], path(k, spacing), generator=dice) for k in counts]
    sweep += [(name, torch.stack([x[i] for x in row])) for i in range(2)]
lesson.sheet(sweep, column_labels=[f"{k} calls" for k in counts])

# %% [markdown]
# Notice that DDPM changes its mind between columns: other steps, other dice. DDIM and 2M go to
# *one* picture a row, both to the same, and stay there. At 4 and 6 calls theirs are unfinished, a
# heart that is faint, misplaced or missing. With ten calls 2M is there in both rows, and DDIM in one.
#
# ## Measure: pictures

# %%
n = LESSON.choose(2, 4, 32)
exact = as_denoiser(model.network, model.condition(captions[:n]), predicts=model.predicts)
limit = sample(dpmpp_2m, exact, z[:n], path(LESSON.choose(20, 80, 200), "log_snr"))
counts = LESSON.choose((4, 8), (6, 12, 24), (6, 12, 24, 48))
on_pictures = {"DDIM": {}, "2M": {}}
for calls in counts:
    for name, step in (("DDIM", samplers.ddim_step), ("2M", dpmpp_2m)):
        x = sample(step, exact, z[:n], path(calls, "log_snr"))
        on_pictures[name][calls] = (x - limit).square().mean((1, 2, 3)).sqrt().median().item()
for name, found in on_pictures.items():
    print(f"{name:<5} order {lesson.slope(found):.2f}, error {min(found.values()):.4f}")
assert on_pictures["2M"][counts[-1]] < on_pictures["DDIM"][counts[-1]]
lesson.errors({"four pictures, root mean square": on_pictures})

# %% [markdown]
# The same ranking on pictures, where no closed form helps: each picture is compared with the one that
# 80 steps lead to. 2M falls faster, and with 12 calls is about as near as DDIM with 24. (The network
# runs in float32 here; in bfloat16 its rounding would hide errors below about 0.002.)
#
# But is a smaller error a better picture? Ask the oracle, which reads pictures and knows nothing of
# solvers: how many show what their captions say?

# %%
n = LESSON.choose(8, 96, 256)
wanted, begin = n // 8 * captions, model.noise(n, LESSON.generator(42))
asked = clamp(model.denoiser(wanted))
for calls in LESSON.choose((3,), (3, 5, 10), (3, 5, 10, 20)):
    for name, (step, spacing) in walks.items():
        x = sample(step, asked, begin, path(calls, spacing), generator=LESSON.generator(43))
        right = shapes.grade(wanted, x).sum().item()
        low, high = wilson(right, n)
        print(f"{calls:>2} calls {name:<5} {right:>3} of {n}, {low:.0%} to {high:.0%}")

# %% [markdown]
# The ranking is turned around. DDPM, which is nowhere near any ODE, has the most right at each number
# of calls, and 2M the fewest; with five calls its interval lies wholly below the two others. Two
# reasons: order of accuracy says how fast a sampler comes to *its* limit, not whether that is a good
# picture, and fresh noise lets later steps mend what earlier ones got wrong. And 2M's path spends
# calls at low noise, where nothing that a caption names is still open. If pictures are what you want,
# measure pictures, and enough of them.
#
# ## Break it on purpose
#
# Two slips that public codes have had. In the first, the move to $t = 0$ adds its $\sqrt\beta$ of
# noise as every other move does; there $\sqrt\beta$ is $\sigma$ of the last noisy level. In the
# second, the next level is computed as $t - \lfloor T/S \rfloor$, with $S = 35$.

# %%
right = sample(samplers.ddpm_step, denoise, z, path(35), generator=LESSON.generator(0))
grain = path(35)[-2].sigma * samplers.randn(z.shape, LESSON.generator(1), like=z)
stride = model.schedule.T // 35  # 28, and 35 * 28 = 980: the walk ends at t = 20
short = path([1000 - i * stride for i in range(36)])
stops = sample(samplers.ddpm_step, denoise, z, short, generator=LESSON.generator(0))
lesson.sheet([("right", right), ("noise on the\nlast step", right + grain), ("t - T//S", stops)])

# %% [markdown]
# The second row has grain all over: the noise of the last move, which nothing takes away any more. The
# third looks much the same and has another cause. Its path stops at $t = 20$, so the picture is not
# clean yet. Two slips with one symptom; the list of levels tells them apart, so print it.
#
# ## The library version, and what a seed promises
#
# `model.sample` is this lesson in one line. It derives one generator for each picture from the
# seed, so picture $i$ is the same alone and in a batch. That is worth a check, because a single
# `torch.randn` for the whole batch would not keep it.

# %%
eight = model.sample(captions, 8, steps=8, seed=3, step=samplers.ddpm_step)
alone, other = (
    model.sample(captions[0], 1, steps=8, seed=seed, step=samplers.ddpm_step) for seed in (3, 4)
)
same, differs = ((eight[:1] - x).square().mean().sqrt().item() for x in (alone, other))
print(f"alone against in a batch {same:.4f}, another seed {differs:.4f}")
assert same < 0.02 < differs
pair = [
    sample(step, denoise, z, path(3), generator=LESSON.generator(1))
    for step in (ddpm, samplers.ddpm_step)
]
assert torch.allclose(*pair, atol=0.01)

# %% [markdown]
# ## In five lines
#
# - The network answers with a mean; at high noise the mean of many pictures is fog. So walk.
# - DDPM draws from the posterior and needs its noise: means of means collapse.
# - DDIM keeps what DDPM would draw. It is Euler's method for the probability-flow ODE.
# - Heun and DPM-Solver++(2M) have order 2; 2M pays one call a step, on a path even in log-SNR.
# - Count calls, compare on the same noise, and check a sampler where the truth is known.
#
# <details><summary>Why is DDIM not "DDPM with the noise left out"?</summary>
#
# DDPM's mean has less $\epsilon$ than level $s$ needs, because the drawn noise makes up for it.
# Leave the noise out and every level is too quiet. DDIM raises the coefficient of $\epsilon$ to
# $\sigma_s$ instead.
# </details>
#
# <details><summary>A sampler's pictures have grain all over. Name two suspects.</summary>
#
# Noise added on the move to $t = 0$, and a path that stops before $t = 0$ (`prev = t - T//S`).
# </details>
#
# <details><summary>Heun has order 2 as 2M has. Why is it not the default?</summary>
#
# It calls the network twice a step, so at equal calls it takes half as many steps; and at few
# calls its trial step lands too far away.
# </details>
#
# Next: **lesson 5** walks the ODE backwards, from a picture to its noise.
