# %% [markdown]
# # 3. Training: from fresh weights to pictures
#
# [![Open in Colab](../figures/colab.svg)](https://colab.research.google.com/github/minidiff/minidiff/blob/main/notebooks/03_training.ipynb)
#
# The loop that trains a diffusion model has seven lines. In this lesson you write it, with the few
# things around it that decide whether pictures come out: which question the network is asked, how
# the noise levels are weighted, a learning rate that rises and falls, averaged weights. You train a
# small model right here, from nothing, and watch it learn to draw. Then you check it: does it draw
# what it should, and does it copy?
#
# ![The same seeds again and again while the network learns](../figures/lesson_03.png)
#
# Papers: [DDPM](https://arxiv.org/abs/2006.11239) (Ho et al. 2020, algorithm 1),
# [v-prediction](https://arxiv.org/abs/2202.00512) (Salimans and Ho 2022),
# [min-SNR](https://arxiv.org/abs/2303.09556) (Hang et al. 2023). You need lessons 1 and 2.
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

LESSON = lessons.setup(3)

# %%
import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from minidiff import NoiseSchedule, UNet, add_noise, denoising_loss, metrics, plot, recipes
from minidiff.data import images
from minidiff.denoiser import min_snr_weight
from minidiff.device import autocast, keep_memory
from minidiff.estimate import estimate
from minidiff.lessons import lesson_03 as lesson
from minidiff.training import Objective, Run, TrainConfig, TrainingSet, draw_batch

keep_memory()  # a third faster on CPUs
schedule, device = NoiseSchedule.cosine(), LESSON.device

# %% [markdown]
# ## What is learnt from
#
# Pictures of one thing each, drawn on the fly: four shapes, four colours, nine places, two
# backgrounds. One switch decides on other pictures: CIFAR-10 or butterflies are downloaded once, and
# a folder of your own is `images.image_folder(path, 32).images`.

# %%
PICTURES = "shapes"  # or "cifar10", or "butterflies"
N = LESSON.choose(256, 4096, 50_000)
if PICTURES == "shapes":
    drawn = lesson.pictures(N + 256, LESSON.generator(0))
else:
    drawn = images.cifar10().images if PICTURES == "cifar10" else images.butterflies(32).images
held_out, data = drawn[:256], TrainingSet(drawn[256:]).to(device)
plot.grid(images.to_float(drawn[:12]), columns=12).reduce(2)

# %% [markdown]
# **Before you run on, write down what you expect:**
#
# 1. Why not train a network to make a picture of noise in one go? Pairs of noise and picture are
#    easily had.
# 2. At which noise level is the loss largest: where the picture is nearly clean, or nearly noise?
# 3. The network's weights, or the average of its weights over the last twenty steps: which draws
#    better?
#
# ## The naive way: noise in, picture out
#
# A picture, a noise, and a network that shall make the one of the other. It has everything the real
# model will have, only the question is another.

# %%
sizes = replace(recipes.SMALL, channels=LESSON.choose(16, 32, 64), head_dim=None, groups=8)
BATCH = 32


def fresh(seed=0):
    torch.manual_seed(seed)
    return UNet(sizes).to(device)


# %%
naive, t_last = fresh(), torch.full((BATCH,), schedule.T - 1, device=device)
optimizer = torch.optim.AdamW(naive.parameters(), lr=2e-3)
config = TrainConfig(images=BATCH * 1000, batch=BATCH, flip=False)
for step in range(LESSON.choose(3, 50, 300)):
    x0, _, noise, _ = draw_batch(data, config, schedule.T, step)
    with autocast(device):
        loss = (naive(noise, t_last) - x0).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    made = naive(noise, t_last)
print(f"loss {loss:.2f}; variance of the pictures {(x0 - x0.mean(0)).square().mean():.2f}")
print(f"deviation between pictures: drawn {x0.std(0).mean():.2f}, made {made.std(0).mean():.2f}")
plot.rows([("noise", noise[:6]), ("made of it", made[:6])]).reduce(2)

# %% [markdown]
# Every noise gives the same fog. The loss stays near the variance of the pictures themselves:
# nothing ties *this* noise to *this* picture, so the best answer to a squared error is the mean of
# all pictures, and that is what it has learnt. The network is not too small, and more training
# would not help: the question has no better answer.
#
# ## Round 1: algorithm 1
#
# Ask an easier question. Take a picture, hide it under a *random* amount of noise, and ask for the
# noise that is in it. That is DDPM's algorithm 1; here the target is $v$, a mix of both:
#
# $$ L = \mathbb{E}_{x_0, t, \epsilon} \, \big\| v - v_\theta(x_t, t) \big\|^2, \quad
#    x_t = \alpha_t x_0 + \sigma_t \epsilon, \quad v = \alpha_t \epsilon - \sigma_t x_0 $$


# %%
def loss_of(network, x0, t, noise):
    level = schedule.level(t)
    x_t = level.alpha * x0 + level.sigma * noise
    v = level.alpha * noise - level.sigma * x0
    out = network(x_t, t - 1)  # networks count from 0
    return (out - v).square().mean((1, 2, 3))  # (B,)


x0, t, noise, _ = draw_batch(data, config, schedule.T, 0)
with torch.no_grad():
    ours = loss_of(naive, x0, t, noise).mean()
    theirs = denoising_loss(naive, x0, schedule.level(t), noise, predicts="v")
print(f"our loss {ours:.6f}, the library's {theirs:.6f}")
assert torch.allclose(ours, theirs)

# %% [markdown]
# **Your turn, twice.** First the noising: a level $t$ from 1 to $T$ for each picture, standard
# normal noise, and $x_t$, from `alpha_bar` (with $\bar\alpha_0 = 1$ at index 0) and a generator.
# Then the step: given a loss, move the weights. Published courses have shipped both of them wrong.


# %%
def my_noising(x0, alpha_bar, generator):
    return ...  # your turn: t, noise, x_t


lesson.check_noising(my_noising)


# %%
def my_step(optimizer, loss):
    return ...  # your turn: three calls, then return loss.item()


lesson.check_step(my_step)

# %% [markdown]
# <details><summary>Solutions</summary>
#
# ```python
# def my_noising(x0, alpha_bar, generator):
#     t = torch.randint(1, len(alpha_bar), (len(x0),), generator=generator)
#     noise = torch.randn(x0.shape, generator=generator)
#     a = alpha_bar[t].reshape(-1, 1, 1, 1)
#     return t, noise, a.sqrt() * x0 + (1 - a).sqrt() * noise
#
# def my_step(optimizer, loss):
#     optimizer.zero_grad()
#     loss.backward()
#     optimizer.step()
#     return loss.item()
# ```
# </details>
#
# ## Round 2: how much each noise level counts
#
# Some levels are easy and some hopeless, and the plain loss treats them alike. With the
# signal-to-noise ratio $\mathrm{SNR} = \alpha^2/\sigma^2$, min-SNR weights the error of $x_0$ by
# $\min(\mathrm{SNR}, \gamma)$. An error of $v$ is one of $x_0$ times $\sqrt{\mathrm{SNR} + 1}$, so
# for $v$ the weight is
#
# $$ w_t = \frac{\min(\mathrm{SNR}_t, \gamma)}{\mathrm{SNR}_t + 1}, \qquad \gamma = 5 $$


# %%
def weight(t, gamma=5.0):
    level = schedule.level(t)
    snr = (level.alpha / level.sigma).reshape(-1) ** 2
    return snr.clamp(max=gamma) / (snr + 1)


every = torch.arange(1, schedule.T + 1)
theirs = min_snr_weight(schedule.level(every), predicts="v", gamma=5.0)
assert torch.allclose(weight(every), theirs)
at, top = weight(every).argmax() + 1, weight(every).max()
print(
    f"largest {top:.2f}, at t = {at}; t = 1 {weight(every)[0]:.4f}, t = T {weight(every)[-1]:.0e}"
)
lesson.weights_picture(schedule, weight(every))

# %% [markdown]
# The last specks of noise and the nearly invisible pictures both count little; the middle, where it
# is decided what is drawn where, counts most.
#
# ## Round 3: averaged weights
#
# Each step is a step after one small batch, and half luck. The average over many steps is calmer:
#
# $$ \bar\theta \leftarrow d\, \bar\theta + (1 - d)\, \theta $$
#
# remembers about the last $1/(1-d)$ steps. It costs one line and one copy of the weights. As the
# first weights are worthless, the decay starts small: after $n$ steps, $\min(d, (1+n)/(10+n))$.


# %%
def my_ema(average, weights, decay):
    return ...  # your turn: two tensors of one shape; return the new average


lesson.check_ema(my_ema)


# %%
@torch.no_grad()
def update(average, network, decay):
    for a, p in zip(average.parameters(), network.parameters(), strict=True):
        a.lerp_(p, 1 - decay)


a, b, decay = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), 0.99
by_hand = decay * a.weight + (1 - decay) * b.weight
update(a, b, decay)
print(f"the line equals the formula to {(a.weight - by_hand).abs().max():.0e}")
assert torch.allclose(a.weight, by_hand)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_ema(average, weights, decay):
#     return decay * average + (1 - decay) * weights
# ```
# </details>
#
# ## Round 4: a learning rate that rises and falls
#
# Adam divides by a running size of the gradient, which in the first steps is a guess: so the rate
# $\eta$ rises over the first images (*warm-up*). At the end it falls to 0, which lets the weights
# come to rest. With $n$ images seen of $N$,
#
# $$ \eta_n = \eta \, \min\!\Big(1,\; \frac{n + B}{N_{\text{warm}}},\; \frac{N - n}{c\,N}\Big) $$

# %%
STEPS, DECAYS = (
    LESSON.choose(12, 700, 20_000),
    LESSON.choose((0.8, 0.95), (0.8, 0.95, 0.98), (0.9, 0.99, 0.999)),
)
config = TrainConfig(
    images=BATCH * STEPS, batch=BATCH, learning_rate=2e-3, ema=DECAYS[1], min_snr=5.0,
    warmup=BATCH * STEPS // 10, cooldown=0.2, flip=False,
)  # fmt: skip


def rate(n, c=config):
    return c.learning_rate * min(
        1, (n + c.batch) / c.warmup, (c.images - n) / (c.cooldown * c.images)
    )


run = Run(Objective(fresh(), schedule, predicts="v", min_snr=5.0), data, config, Path("unused"))
seen = []
for run.step in range(STEPS):
    seen.append((rate(run.seen), run.learning_rate()))
run.step = 0
assert all(abs(a - b) < 1e-12 for a, b in seen)
print(f"first {seen[0][0]:.1e}, highest {max(a for a, _ in seen):.1e}, last {seen[-1][0]:.1e}")
print("before it starts:", estimate(run))

# %% [markdown]
# The last line is an *estimate*: the operations of one picture were counted, and one batch was
# timed. Make it a habit before every run. On two cores the settings above take one or two minutes,
# on a GPU the larger ones take longer but learn a hundred times as much.
#
# ## Run
#
# All of it together: draw a batch, the loss, the step, the averages. We keep three averages at
# once, to compare them later. Every so often the same six noises are turned into pictures and the
# loss on held-out pictures is taken: without such fixed *previews* nobody can tell a run that
# learns from one that does not, for the loss hardly says it.


# %%
def train(config, steps, seed=0, decays=(), look=lambda step, networks: None):
    """Algorithm 1; returns the networks, {0: as trained, decay: averaged}, and the losses."""
    network, losses = fresh(seed), []
    networks = {0: network} | {d: copy.deepcopy(network) for d in decays}
    optimizer = torch.optim.AdamW(
        network.parameters(), betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    for step in range(steps):
        x0, t, noise, _ = draw_batch(data, config, schedule.T, step)
        with autocast(device):
            loss = (weight(t) * loss_of(network, x0, t, noise)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate(step * config.batch, config)
        optimizer.step()
        for d in decays:
            update(networks[d], network, min(d, (2 + step) / (11 + step)))
        losses.append(loss.item())
        look(step + 1, networks)
    return networks, losses


# %%
exam = lesson.Exam(images.to_float(held_out), schedule, device)
previews, tests = {}, {}


def look(step, networks):
    if step % (STEPS // LESSON.choose(4, 12, 12)) == 0:
        previews[step] = {d: exam.pictures(networks[d], 6) for d in (0, config.ema)}
        tests[step] = {d: exam.loss(network) for d, network in networks.items()}


networks, losses = train(config, STEPS, decays=DECAYS, look=look)
print(f"{config.images:,} pictures seen, loss at the end {losses[-1]:.3f}")

# %% tags=["card"]
lesson.strip(previews, BATCH)

# %% [markdown]
# Read a pair of rows from left to right: same noise, same number of steps, only the weights differ.
# First there is noise, then a grey ground with a stain, then a thing with a colour, and last its
# outline. A picture may change its mind from column to
# column, background and all: while weights move far, the same noise leads elsewhere.

# %%
lessons.animation([plot.grid(shown[config.ema]).reduce(4) for shown in previews.values()], fps=3)

# %% [markdown]
# ## Sweep: how long a memory?
#
# One run, four sets of weights: as trained, and averaged with three decays. The same 64 noises for
# each, at the end; and the loss on held-out pictures all along.

# %%
names = {0: "as trained"} | {d: f"d = {d}" for d in DECAYS}
lines = {
    name: ([s * BATCH for s in tests], [tests[s][d] for s in tests]) for d, name in names.items()
}
for d in DECAYS:
    lower = sum(row[d] < row[0] for row in tests.values())
    print(f"d = {d}: lower than as trained at {lower} of {len(tests)} moments")
lesson.loss_curves("loss on held-out pictures", lines, "pictures seen")

# %%
n = LESSON.choose(8, 64, 64)
final = {d: exam.pictures(network, n, LESSON.choose(4, 16, 50)) for d, network in networks.items()}
plot.rows([(names[d], x[:8]) for d, x in final.items()]).reduce(2)

# %% [markdown]
# Notice that:
#
# - averages pay while the rate is high and the weights jump. The counts above the picture say at
#   how many moments each of them had the lower loss; one moment alone could be luck;
# - at the very start a long memory is a burden, for it still holds weights that knew nothing;
# - at the end the lines come together: as the rate falls to 0, the weights stop jumping, and a
#   cool-down does much of what averaging does;
# - so there is no best decay as such. Papers train a million steps and use 0.9999; in a run of
#   hundreds such an average would still hold the noise of its start. A memory of some hundredths of
#   the run is a sound beginning; compare, as here, at several moments, before you believe in one.
#
# ## Measure: how far from a scene?
#
# The pictures have a judge that has learnt nothing: the oracle, which draws every scene it can
# think of and compares. Its *misfit* is the largest difference from the best scene, over any 4 x 4
# pixels; up to 0.2 it reads the picture. We print the median with a 95% bootstrap interval, between
# a ceiling (pictures that were drawn, not learnt) and a baseline (the naive model's fog).


# %%
print(f"{'drawn, held out':>16}: {lesson.judge(exam.x0[:n])}")
for d, x in final.items():
    print(f"{names[d]:>16}: {lesson.judge(x)}")
print(f"{'the naive model':>16}: {lesson.judge(made.clamp(-1, 1))}")

# %% [markdown]
# The misfit does not rank them: a flat fog is explained better than a thing of two colours, though
# your eye prefers the thing. Look at the intervals before you call one decay better than another. Being *read* is strict: a
# thing of two colours, a soft corner, or grain fails it. The shipped `shapes` model has seen
# 800,000 pictures, and of its single things 99% are read and right.
#
# ## Does it copy?
#
# A model that has learnt its pictures by heart looks excellent. So look at the nearest training
# picture of every sample, and at a number: the distance to it, over the same distance of held-out
# pictures. Copies have a ratio near 0, as the control shows; new pictures of the same kind near 1;
# and grain or blur, which no training picture has, lifts it above 1.

# %%
everything = images.to_float(data.images[:4096])
made = final[config.ema]
ratio = metrics.memorisation(made, exam.x0[:n], everything)
control = everything[:n] + 0.002 * exam.noise[:n]
copied = metrics.memorisation(control, exam.x0[:n], everything)
print(f"our samples {ratio:.2f}; control, training pictures with a little noise {copied:.2f}")
assert copied < 0.3
_, index = metrics.nearest_neighbours(made[:8], everything)
plot.rows([("samples", made[:8]), ("nearest in\ntraining", everything[index[:, 0]])]).reduce(2)

# %% [markdown]
# The nearest neighbours mostly share place, colour and background, as they must in a world of a few
# hundred scenes; look at the outline and the exact position for the difference. On a small set of
# real pictures this check is the first thing to do: with a hundred butterflies a network learns
# them by heart, and its samples look better than ever.
#
# ## Why $v$, and not $\epsilon$ or $x_0$?
#
# A network that predicts one of the three predicts all of them, for $x_t$ is known. So errors can be
# converted:
#
# $$ \hat x_0 - x_0 = -\sigma_t (\hat v - v), \qquad \hat\epsilon - \epsilon = \alpha_t (\hat v - v),
#    \qquad \hat x_0 - x_0 = -\frac{\sigma_t}{\alpha_t} (\hat\epsilon - \epsilon) $$

# %%
level, x0, noise = schedule.level(exam.t), exam.x0, exam.noise
x_t, v = add_noise(x0, level, noise), level.alpha * noise - level.sigma * x0
with torch.no_grad():
    guess = networks[config.ema](x_t, exam.t - 1)
x0_hat, eps_hat = level.alpha * x_t - level.sigma * guess, level.sigma * x_t + level.alpha * guess
assert torch.allclose(x0_hat - x0, -level.sigma * (guess - v), atol=1e-4)
assert torch.allclose(eps_hat - noise, level.alpha * (guess - v), atol=1e-4)
lesson.error_curves(exam.t, {"x0": x0_hat - x0, "eps": eps_hat - noise, "v": guess - v})

# %% [markdown]
# One network, one set of answers, three ways to count its errors. Near the clean picture (left) the
# $x_0$ it implies is nearly perfect, and its $\epsilon$ bad: there is hardly any noise to see. At
# the other end it is the reverse. A network that predicts $\epsilon$ has an easy task at high
# noise, give back what you see; but whoever wants $x_0$ from it multiplies its error by
# $\sigma/\alpha$, which is in the thousands at $t = T$. One that predicts $x_0$ has the mirrored
# trouble at low noise. $v$ turns from one into the other, and no factor is ever larger than 1.
#
# So the loss is largest at the *ends* or in the middle, depending on what you ask for: never compare
# the losses of two runs that predict different things.
#
# ## Break it: a learning rate too high
#
# The same loop with three rates and no warm-up: the one from above, one 25 times and one 250 times
# as high, the last on two seeds.

# %%
SHORT, lines, shown = LESSON.choose(4, 60, 400), {}, []
for times, seed in ((1, 1), (25, 1), (250, 1), (250, 2)):
    hot = replace(config, learning_rate=times * config.learning_rate, warmup=1)
    found, curve = train(hot, SHORT, seed)
    lines[f"{times} times, seed {seed}"] = (range(1, SHORT + 1), curve)
    shown.append((f"{times} times,\nseed {seed}", exam.pictures(found[0], 6).nan_to_num(-1)))
lesson.loss_curves("training loss", lines, "step")

# %%
plot.rows(shown).reduce(2)

# %% [markdown]
# At 250 times the rate the loss leaps by orders of magnitude within the first steps and is NaN soon
# after, on both seeds: its curve ends, and its pictures are black. That is the clear symptom. The
# treacherous one is the curve of 25 times: in the first minute it may fall as well as the sound one,
# for the clipped gradient and Adam's division save it. So sixty steps do not prove that a rate is
# right. When a loss stands still or leaps, divide the rate by ten before you change anything else;
# `minidiff.training.fit` stops at NaN and names the last good state.
#
# The other failure you have seen above: no average, and a rate that is still high. There the
# held-out loss of the weights as trained goes up and down between neighbouring moments, and so do
# tints and backgrounds of the previews. Average the weights, or let the rate fall.
#
# ## When it does not fit, and when the session is lost
#
# *Gradient accumulation*: a batch too large for the memory is split; the gradients of the parts add
# up. *Dropped conditions*: a model with labels or captions must also learn the case without, so one
# in ten is replaced by a null label (lesson 6 needs that). *Resuming*: Colab takes the machine away
# after some hours, and whatever was not saved is gone. **Your turn, three times.** `run` has the
# attributes `network`, `average`, `optimizer` and `step`.


# %%
def my_accumulate(loss_of, parts):
    return ...  # your turn: backward() for each part; return the whole batch's mean loss


lesson.check_accumulate(my_accumulate)


# %%
def my_drop(labels, null, share, generator):
    return ...  # your turn: each label becomes null with the chance `share`


lesson.check_drop(my_drop)


# %%
def my_save(run):
    return ...  # your turn: all that going on needs


def my_restore(run, state):
    return ...  # your turn: fill a new run; return it


lesson.check_resume(my_save, my_restore)

# %% [markdown]
# <details><summary>Solutions</summary>
#
# ```python
# def my_accumulate(loss_of, parts):
#     total = 0
#     for part in parts:
#         loss = loss_of(part) / len(parts)
#         loss.backward()
#         total += loss.item()
#     return total
#
# def my_drop(labels, null, share, generator):
#     dropped = torch.rand(len(labels), generator=generator) < share
#     return torch.where(dropped, torch.tensor(null), labels)
#
# def my_save(run):
#     parts = {k: getattr(run, k).state_dict() for k in ("network", "average", "optimizer")}
#     return copy.deepcopy(parts) | {"step": run.step}
#
# def my_restore(run, state):
#     for k in ("network", "average", "optimizer"):
#         getattr(run, k).load_state_dict(state[k])
#     run.step = state["step"]
#     return run
# ```
# </details>
#
# ## The library's run, asserted equal
#
# `minidiff.training.Run` is this loop, with files. Three steps of ours and of its own, from the same
# seed: every weight must agree to the last bit. Then the session is lost after three of six steps,
# and a new one, with other weights, goes on from the file.


# %%
def new_run(folder, seed=0, **changes):
    objective = Objective(fresh(seed), schedule, predicts="v", min_snr=5.0)
    return Run(objective, data, replace(config, **changes), Path(folder))


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


with tempfile.TemporaryDirectory() as folder:
    whole, lost, later = new_run(folder), new_run(folder), new_run(folder, seed=99)
    for _ in range(3):
        lost.advance()
    lost.save()
    ours, _ = train(config, 3, decays=(config.ema,))
    print("our loop is the library's:", same(ours[0], lost.objective.network))
    assert same(ours[0], lost.objective.network) and same(ours[config.ema], lost.average.network)
    later.resume()
    for _ in range(3):
        later.advance()
for _ in range(6):
    whole.advance()
print("resumed is never interrupted:", same(whole.objective, later.objective))
assert same(whole.objective, later.objective) and same(whole.average, later.average)

# %% [markdown]
# It works because a step's pictures, levels and noise are drawn from the seed and the number of the
# step, and from nothing else: there is no random state to lose.
#
# **The full run.** On a GPU this notebook trains a wider network thirty times as long, by the same
# cells. From a terminal, with saves and previews: `minidiff train --data cifar10` (or `butterflies`,
# or a folder of yours), and after a lost session the same line with `--resume`.
#
# ## Recap
#
# - The loop: a picture, a random level, a noise, the error of $v$, a step. Nothing else learns.
# - Its loss hardly tells whether it works. Fixed previews do, and a number on held-out pictures.
# - $v$, $\epsilon$ and $x_0$ are one prediction; they differ in which levels count.
# - Averages of the weights and a falling rate calm what single steps leave behind.
# - Estimate before, save while, resume after, and look for copies at the end.
#
# <details><summary>1. A colleague's loss is 0.02 and yours 0.2. Is the colleague's model better?</summary>
#
# Not if one predicts $\epsilon$ and the other $v$, or the schedules or weights differ. Compare
# samples, or a distance between sets of pictures.
# </details>
#
# <details><summary>2. <code>loss.backward(loss)</code> trains all the same. What does it do?</summary>
#
# It multiplies the gradient by the loss. Batches with a large loss count more, and as the loss
# falls the rate falls with it. Adam, which divides by the gradient's size, hides most of it: that
# is why nobody noticed.
# </details>
#
# <details><summary>3. After a restart the loss is as before, but the previews are noise. Why?</summary>
#
# The previews are drawn by the averaged weights, and they were not restored: the average began again
# from fresh weights. The loss is of the weights as trained, and knows nothing of it.
# </details>
#
# Next: [lesson 4](04_sampling.ipynb) takes a trained network and walks from noise to a picture.
