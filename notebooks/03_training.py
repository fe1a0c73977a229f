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

import torch

from minidiff import NoiseSchedule, UNet, add_noise, denoising_loss, metrics, plot, recipes
from minidiff.data import images
from minidiff.denoiser import min_snr_weight
from minidiff.device import autocast, keep_memory  # autocast: bfloat16 where it is fast
from minidiff.lessons import lesson_03 as lesson
from minidiff.training import Batches, Objective, Run, TrainConfig, TrainingSet
from minidiff.training.estimate import estimate
from minidiff.zoo import Diffusion

keep_memory()  # a third faster on CPUs
schedule, device = NoiseSchedule.cosine(), LESSON.device

# %% [markdown]
# ## What is learnt from
#
# Pictures of one thing each, which a program draws: four shapes, four colours, nine places, two
# backgrounds; 256 are held out. One switch takes others: CIFAR-10 or butterflies, downloaded once, or
# a folder of five hundred or more (the text then still speaks of shapes). `LESSON.choose` takes its
# first value in tests, the second on a CPU, the third on a GPU.

# %%
PICTURES = "shapes"  # or "cifar10", "butterflies", or the path of a folder
if PICTURES == "shapes":
    drawn = lesson.pictures(LESSON.choose(512, 4352, 50_256), LESSON.generator(0))
elif PICTURES == "cifar10":
    drawn = images.cifar10().images
elif PICTURES == "butterflies":
    drawn = images.butterflies(32).images
else:
    drawn = images.image_folder(PICTURES, 32).images
drawn = drawn[torch.randperm(len(drawn), generator=LESSON.generator(0))]  # folders are sorted
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
# model will have, only the question is another. `batches(step)` gives the images, times and noise of
# a step.

# %%
sizes = replace(recipes.SMALL, channels=LESSON.choose(16, 32, 64), head_dim=None, groups=8)
BATCH = 32


def fresh(seed=0):
    torch.manual_seed(seed)
    return UNet(sizes).to(device)


# %%
naive, t_last = fresh(), torch.full((BATCH,), schedule.T - 1, device=device)
optimizer = torch.optim.AdamW(naive.parameters(), lr=2e-3)
batches = Batches(data, BATCH, schedule.T)
for step in range(LESSON.choose(3, 50, 300)):
    x0, _, noise = batches(step).values()
    with autocast(device):
        loss = (naive(noise, t_last) - x0).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
fog = naive(noise, t_last).detach()
print(f"loss {loss:.2f}; variance of the pictures {(x0 - x0.mean(0)).square().mean():.2f}")
print(f"deviation between pictures: drawn {x0.std(0).mean():.2f}, made {fog.std(0).mean():.2f}")
plot.rows([("noise", noise[:6]), ("made of it", fog[:6])]).reduce(2)

# %% [markdown]
# Every noise gives the same fog. The loss stays near the variance of the pictures themselves:
# nothing ties *this* noise to *this* picture, so the best answer to a squared error is the mean of
# all pictures, and that is what it has learnt (your first prediction). More training would not help:
# the question has no better answer.
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


x0, t, noise = batches(0).values()
ours = loss_of(naive, x0, t, noise).mean()
theirs = denoising_loss(naive, x0, schedule.level(t), noise, predicts="v")
print(f"our loss {ours:.6f}, the library's {theirs:.6f}")
assert torch.allclose(ours, theirs)

# %% [markdown]
# **Your turn, twice.** First the noising: a level $t$ from 1 to $T$ for each picture, standard
# normal noise, and $x_t$, from `alpha_bar` (with $\bar\alpha_0 = 1$ at index 0) and a generator.
# `alpha_bar[t]` has the shape `(B,)`: make it `(B, 1, 1, 1)`. Then the step: given a loss, move the
# weights. Published courses have shipped both of them wrong.


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
w = weight(every)
assert torch.allclose(w, min_snr_weight(schedule.level(every), predicts="v", gamma=5.0))
print(f"largest {w.max():.2f}, at t = {w.argmax() + 1}; t = 1 {w[0]:.4f}, t = T {w[-1]:.0e}")
lines = {"min-SNR": (every, w), "plain": (every, torch.ones_like(w))}
lesson.curves("weight of the error of v", lines, "t", log=False)

# %% [markdown]
# The last specks of noise (left) and the nearly invisible pictures (right) both count little; between
# them, where it is decided what is drawn, counts most. The peak is where the SNR falls below $\gamma$.
#
# ## Round 3: averaged weights
#
# Each step is a step after one small batch, and half luck. The average over many steps is calmer:
#
# $$ \bar\theta \leftarrow d\, \bar\theta + (1 - d)\, \theta $$
#
# remembers about the last $1/(1-d)$ steps. It costs one line and one copy of the weights. As the
# first weights are worthless, the decay starts small: in step $n = 1, 2, \dots$ it is
# $\min(d, (1+n)/(10+n))$.


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
# come to rest. With $n$ images seen of $N$, in batches of $B$, a warm-up of $N_{\text{warm}}$ images
# and a cool-down over the last share $c$,
#
# $$ \eta_n = \eta \, \min\!\Big(1,\; \frac{n + B}{N_{\text{warm}}},\; \frac{N - n}{c\,N}\Big) $$

# %%
STEPS = LESSON.choose(12, 700, 20_000)
DECAYS = LESSON.choose((0.8, 0.95), (0.8, 0.95, 0.98), (0.9, 0.99, 0.999))
config = TrainConfig(images=BATCH * STEPS, batch=BATCH, learning_rate=2e-3, ema=DECAYS[1],
                     warmup=BATCH * STEPS // 10, cooldown=0.2)  # fmt: skip


def rate(n, c=config):
    rise, fall = (n + c.batch) / c.warmup, (c.images - n) / (c.cooldown * c.images)
    return c.learning_rate * min(1, rise, fall)


def new_run(folder, seed=0):
    model = Diffusion(fresh(seed), schedule, predicts="v", shape=(3, 32, 32))
    return Run(Objective(model, min_snr=5.0), batches, config, folder)


run = new_run("unused")
print("before it starts:", estimate(run))
rates = [rate(n) for n in range(0, config.images, BATCH)]
for run.step, ours in enumerate(rates):
    assert abs(ours - run.learning_rate()) < 1e-12
print(f"first {rates[0]:.1e}, highest {max(rates):.1e}, last {rates[-1]:.1e}")

# %% [markdown]
# The first line is an *estimate* of the steps alone: the operations of one picture were counted
# (a PFLOP is $10^{15}$), and a batch was timed. The settings for a GPU need a hundred times the
# operations of those for a CPU.
#
# ## Run
#
# All of it together. We keep three averages at once, to compare them later. Every so often the same
# six noises are turned into pictures (by DDIM, lesson 4), and the loss on held-out pictures is
# taken. Such fixed *previews* tell whether a run learns to draw; a loss may fall without that, as
# you will see.


# %%
def train(config, steps, seed=0, decays=(), look=lambda step, networks: None, weight=weight):
    """Algorithm 1; returns the networks, {0: as trained, decay: averaged}, and the losses."""
    network, losses = fresh(seed), []
    networks = {0: network} | {d: copy.deepcopy(network) for d in decays}
    optimizer = torch.optim.AdamW(
        network.parameters(), betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    for step in range(steps):
        x0, t, noise = batches(step).values()
        with autocast(device):
            loss = (weight(t) * loss_of(network, x0, t, noise)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate(step * config.batch, config)
        optimizer.step()
        for d in decays:
            update(networks[d], network, min(d, (2 + step) / (11 + step)))  # n is step + 1
        losses.append(loss.item())
        look(step + 1, networks)
    return networks, losses


# %%
exam = lesson.Exam(images.to_float(held_out), schedule, device)
n, walk = LESSON.choose((8, 4), (64, 16), (64, 50))  # pictures to measure, steps of sampling
previews, tests, half = {}, {}, {}


def look(step, networks):
    if step == STEPS // 2:
        half.update({d: exam.pictures(networks[d], n, walk) for d in (0, config.ema)})
    if step % (STEPS // LESSON.choose(4, 12, 12)) == 0:
        previews[step] = {d: exam.pictures(networks[d], 6) for d in (0, config.ema)}
        tests[step] = {d: exam.loss(network) for d, network in networks.items()}


networks, losses = train(config, STEPS, decays=DECAYS, look=look)
print(f"{config.images:,} pictures; loss {losses[-1]:.3f}, held out {tests[max(tests)][0]:.3f}")

# %% tags=["card"]
lesson.strip(previews, BATCH)

# %% [markdown]
# (Do not compare the two losses printed: the first has the weights of round 2, the second has none.)
# Above each column stands the number of pictures seen; in a pair of rows the noise is the same, and
# only the weights differ. First there is noise, then a ground with a stain, then a thing with a
# colour, and last its outline. A picture may change its mind from column to column, background and
# all: while weights move far, the same noise leads elsewhere. The animation shows all six noises at
# all twelve moments, drawn by the averaged weights.

# %%
lessons.animation([plot.grid(shown[config.ema]).reduce(4) for shown in previews.values()], fps=3)

# %% [markdown]
# ## Sweep: how long a memory?
#
# One run, four sets of weights: as trained, and averaged with three decays. The same 64 noises for
# each, at the end; and the loss on held-out pictures all along.

# %%
names = {0: "as trained"} | {d: f"d = {d}" for d in DECAYS}
lines = {names[d]: ([s * BATCH for s in tests], [row[d] for row in tests.values()]) for d in names}
m = len(tests) // 2
for d in DECAYS:
    low = [row[d] < row[0] for row in tests.values()]
    early, late = sum(low[:m]), sum(low[m:])
    print(f"{names[d]}: lower in {early} of the first {m} moments, {late} of the last {m}")
lesson.curves("loss on held-out pictures", lines, "pictures seen")

# %%
final = {d: exam.pictures(network, n, walk) for d, network in networks.items()}
plot.rows([(names[d], x[:8]) for d, x in final.items()]).reduce(2)

# %% [markdown]
# Notice that:
#
# - at first averages lag: each step makes the weights better, and a long memory still holds those that
#   knew nothing;
# - later the weights learn less and still jump: the line as trained has a hump near 9,000 pictures,
#   and the averages smooth it out. In so short a run that time is short, and the counts show no clear
#   gain;
# - at the end the lines come together: as the rate falls to 0, the weights stop jumping, and a
#   cool-down does much of what averaging does (your third prediction);
# - so there is no best decay as such. Papers train a million steps and use 0.9999; in a run of
#   hundreds such an average would still hold the noise of its start. A memory of some hundredths of
#   the run is a sound beginning.
#
# ## Measure: how near to the drawn ones?
#
# For each of 64 pictures we look for the nearest one among the training pictures, which show nearly
# every scene there is, and take the root mean square difference, over 8 x 8 pixels to which both are
# reduced. The mean comes with a 95% bootstrap interval. Held-out pictures show what could be reached;
# the naive model's fog, and backgrounds with nothing on them, what is to be had for nothing. The last
# line compares *pairs*: the same noises, half way, by weights as trained and averaged.


# %%
everything = images.to_float(data.images[:4096])
empty = exam.x0[:n].flatten(2).median(2).values[..., None, None].expand(-1, -1, 32, 32)
measured = {"drawn, held out": exam.x0[:n]} | {names[d]: x for d, x in final.items()}
measured |= {f"half way, {names[d]}": x for d, x in half.items()}
measured |= {"empty": empty, "the naive model": fog.clamp(-1, 1)}

# %%
far = {name: lesson.distance(x, everything) for name, x in measured.items()}
for name, distances in far.items():
    print(f"{name:>20}: {lesson.interval(distances)}")
one, two = (far[f"half way, {names[d]}"] for d in half)
print(f"half way, as trained less averaged: {lesson.interval(one - two)}")

# %% [markdown]
# The distance ranks as your eye does: the fog is far off, half-learnt pictures are about as far as
# nothing on a background, the trained ones much nearer, the drawn ones nearer still. At the end the
# four sets of weights are not told apart: their intervals overlap widely. Half way the average is
# no better either: the paired interval holds 0. All this is of one training, and another seed may
# rank them otherwise; and of shapes, for among photographs a blur is near to everything, and one
# compares the features of a network (FID, KID).
#
# ## Does it copy?
#
# The measure above has a hole: a model that has learnt its pictures by heart is the nearest of all.
# So look at the nearest training picture of every sample, and at a ratio: the distance to it, now in
# all pixels, over the same distance of held-out pictures. Copies have a ratio near 0, as the control
# shows; new pictures of the same kind near 1; and here grain, smeared outlines and mixed colours, which
# no training picture has, lift it above 1.

# %%
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
# hundred scenes; outlines and colours differ. The ratio says that nothing is copied, and that much is
# still missing. On a small set of real pictures this check is the first thing to do: a network can
# learn a hundred butterflies by heart, and its samples then look better than ever.
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
# Near the clean picture (left) the $x_0$ that the network implies is nearly perfect, and its
# $\epsilon$ bad: there is hardly any noise to see. At the other end it is the reverse. A network that
# predicts $\epsilon$ has an easy task at high noise, give back what you see; but whoever wants $x_0$
# from it multiplies its error by $\sigma/\alpha$, which is 20,000 at $t = T$. One that predicts $x_0$
# has the mirrored trouble at low noise. $v$ turns from one into the other, and no factor is ever larger
# than 1.
#
# So the loss is largest near the clean picture, near the noise, or at both ends, depending on whether
# you ask for $\epsilon$, $x_0$ or $v$ (your second prediction): never compare the losses of two runs
# that predict different things.
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
    lines[f"{times} times, seed {seed}"] = (range(1, SHORT + 1), [min(x, 99) for x in curve])
    end = torch.tensor(curve[-10:]).mean()
    print(f"{times} times, seed {seed}: mean of the last ten losses {end:.3f}")
    shown.append((f"{times} times,\nseed {seed}", exam.pictures(found[0], 6).nan_to_num(-1)))
lesson.curves("training loss", lines, "step")

# %%
plot.rows(shown).reduce(2)

# %% [markdown]
# At 250 times the rate the loss leaps beyond 99, where the chart is cut off, and is NaN within a few
# steps, on both seeds: its curve ends, and its pictures are black. That is the clear symptom. The
# treacherous one is 25 times: its loss falls almost as the sound one's does, for the clipped gradient
# and Adam's division save it, but its pictures are still noise where the others have stains. So look
# at previews, and do not take sixty steps for a proof that a rate is right. When a loss stands still
# or leaps, divide the rate by ten before you change anything else; `minidiff.training.fit` stops at
# NaN and names the last good state.
#
# The other failure is quieter, and you have seen it in the strip: at a rate that is still high the
# weights jump, and tints, backgrounds and things jump with them. Let the rate fall, or average.
#
# ## When it does not fit, and when the session is lost
#
# *Gradient accumulation*: a batch too large for the memory is split; the gradients of the parts add
# up. *Dropped conditions*: a model with labels or captions must also learn the case without, so one
# in ten is replaced by a null label (lesson 6 needs that). *Resuming*: Colab takes the machine away
# after some hours, and whatever was not saved is gone. **Your turn, three times.** In the last one,
# `run` has the attributes `network`, `average`, `optimizer` and `step`; it trains on after `my_save`,
# and a new one is handed to `my_restore`.


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
# `minidiff.training.Run` is this loop, with files. Run three steps of each from the same seed. On a
# CPU the weights must agree to the last bit (a GPU may add in another order). Our loop takes the
# library's min-SNR weights, which round differently. Then the session is lost after three of six
# steps. A new one, with other weights, resumes from the file.


# %%
def library_weight(t):
    return min_snr_weight(schedule.level(t), predicts="v")


def same(a, b):
    pairs, slack = zip(a.parameters(), b.parameters(), strict=True), LESSON.choose(0, 0, 1e-3)
    return all(torch.allclose(p, q, rtol=0, atol=slack) for p, q in pairs)


with tempfile.TemporaryDirectory() as folder:
    whole, lost, later = new_run(folder), new_run(folder), new_run(folder, seed=99)
    for _ in range(3):
        lost.advance()
    lost.save()
    ours, _ = train(config, 3, decays=(config.ema,), weight=library_weight)
    print("our loop is the library's:", same(ours[0], lost.objective.network))
    assert same(ours[0], lost.objective.network) and same(ours[config.ema], lost.average.network)
    later.resume()
    for run in [later] * 3 + [whole] * 6:
        run.advance()
print("resumed is never interrupted:", same(whole.objective, later.objective))
assert same(whole.objective, later.objective) and same(whole.average, later.average)

# %% [markdown]
# It works because a step's pictures, levels and noise are drawn from the seed and the number of the
# step, and from nothing else: there is no random state to lose.
#
# **The full run.** On a GPU this notebook trains a wider network thirty times as long. From a
# terminal, with saves and previews: `minidiff train --data cifar10` (or `butterflies`, or a folder of
# yours, by words if `metadata.csv` there has `file_name` and `text`), and after a lost
# session the same line with `--resume`.
#
# ## Recap
#
# - The loop: a picture, a random level, a noise, the error of $v$, a step. Nothing else learns.
# - A falling loss does not tell whether it draws. Fixed previews do, and a distance to real pictures.
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
