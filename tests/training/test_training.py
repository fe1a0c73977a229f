"""Training: exact resumption, equal results however the batch is divided, and honest failure."""

import csv
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, nn

from minidiff import checkpoint
from minidiff.schedule import NoiseSchedule
from minidiff.text import ClassLabels, TextConfig, TextEncoder
from minidiff.training import Batches, Column, Objective, Run, TrainConfig, TrainingSet, fit
from minidiff.training.estimate import estimate
from minidiff.training.log import Log, last_row
from minidiff.unet import UNet, UNetConfig
from minidiff.zoo import Diffusion

pytestmark = pytest.mark.usefixtures("one_thread")  # as in the processes it is compared with

TINY = UNetConfig(
    channels=16, multipliers=(1, 2), blocks=1, attention=(1,), groups=8, classes=4, dropout=0.1
)
CONFIG = TrainConfig(
    images=320,
    batch=16,
    warmup=64,
    learning_rate=2e-3,
    mixed_precision=False,
    log_every=32,
    save_every=64,
)


def tiny_data(n: int = 64, drop: float = 0.1) -> TrainingSet:
    """Pictures that are one bright quarter, which is their class."""
    labels = torch.arange(n) % 4
    images = torch.full((n, 3, 8, 8), 40, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        y, x = 4 * (label // 2), 4 * (label % 2)
        image[:, y : y + 4, x : x + 4] = 220
    return TrainingSet(images, {"ids": Column(labels, torch.tensor(4), drop)})


def tiny_run(out: Path, network: UNetConfig = TINY, predicts: str = "v", **changes) -> Run:
    torch.manual_seed(0)
    labels = ClassLabels(("top left", "top right", "bottom left", "bottom right"))
    schedule = NoiseSchedule.cosine(100)
    model = Diffusion(UNet(network), schedule, predicts, (3, 8, 8), labels)
    return run_of(Objective(model, min_snr=5.0), tiny_data(), replace(CONFIG, **changes), out)


def run_of(objective: Objective, data: TrainingSet, config: TrainConfig, out: Path) -> Run:
    batches = objective.batches(data, config)
    return Run(objective, batches, config, out, about={"data": len(data)})


def unconditional(network: nn.Module, schedule: NoiseSchedule) -> Objective:
    return Objective(Diffusion(network, schedule, "eps", (3, 8, 8)))


def drawn(data: TrainingSet, config: TrainConfig = CONFIG, step: int = 0) -> dict:
    """The batch of a step, with times 1 to 100."""
    return Batches(data, config.batch, 100, config.seed, mirror=config.flip)(step)


def rows(out: Path) -> list[dict]:
    with open(out / "log.csv", newline="") as f:
        return list(csv.DictReader(f))


def same_state(a: Path, b: Path) -> bool:
    one, about_one = checkpoint.load(a / "state.safetensors")
    two, about_two = checkpoint.load(b / "state.safetensors")
    equal = one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    return equal and about_one["step"] == about_two["step"]


def script(out: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).parent / "train_tiny.py"), str(out), *arguments]


def test_training_learns(tmp_path):
    run = tiny_run(tmp_path, images=640)
    exam = drawn(tiny_data(), replace(CONFIG, batch=256), 1_000)

    @torch.no_grad()
    def grade(objective) -> float:
        return objective.eval()(**exam).item()

    before = grade(run.objective)
    assert grade(fit(run, progress=False)) < 0.5 * before
    idle = tiny_run(tmp_path / "idle", images=640, learning_rate=0.0)  # control
    assert grade(fit(idle, progress=False)) == pytest.approx(before, rel=1e-4)


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    whole = tiny_run(tmp_path / "whole", save_every=32)
    fit(whole, progress=False)

    killed = tmp_path / "killed"
    process = subprocess.Popen(script(killed, "--slow"))
    last = random.Random(time.time_ns()).choice([48, 96, 128, 208])  # images, at any step
    while process.poll() is None:
        if (killed / "log.csv").exists() and any(int(r["images"]) >= last for r in rows(killed)):
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.02)
    assert process.returncode == -signal.SIGKILL
    at = checkpoint.about(killed / "state.safetensors")["step"]
    assert 0 < at < whole.step

    resumed = tiny_run(killed, save_every=32)
    resumed.resume()
    assert resumed.step == at
    fit(resumed, progress=False)
    assert same_state(tmp_path / "whole", killed)
    seen = [[row["images"] for row in rows(out)] for out in (tmp_path / "whole", killed)]
    assert seen[0] == seen[1]  # no line of the log is missing or twice there


def test_a_new_run_does_not_overwrite_another(tmp_path):
    tiny_run(tmp_path).save()
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="holds a run already: resume"):
        fit(tiny_run(tmp_path), progress=False)
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert not (tmp_path / "log.csv").exists()


def test_forgetting_the_moments_would_show(tmp_path):
    """Mutant of resumption: weights and step alone are not the state of a run."""
    fit(tiny_run(tmp_path / "whole"), progress=False)
    half = tiny_run(tmp_path / "half")
    for _ in range(10):
        half.advance()
    half.save()
    half = tiny_run(tmp_path / "half")
    half.resume()
    half.optimizer.state.clear()
    fit(half, progress=False)
    assert not same_state(tmp_path / "whole", tmp_path / "half")


def test_ctrl_c_saves_after_a_whole_step(tmp_path):
    process = subprocess.Popen(script(tmp_path, "--slow"), stderr=subprocess.PIPE)
    while not (tmp_path / "log.csv").exists() or not rows(tmp_path):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    (tmp_path / "go").touch()
    _, errors = process.communicate()
    assert process.returncode != 0 and b"all is saved" in errors
    resumed = tiny_run(tmp_path)
    resumed.resume()
    assert 0 < resumed.step < resumed.steps
    fit(resumed, progress=False)
    fit(tiny_run(tmp_path / "whole"), progress=False)
    assert same_state(tmp_path, tmp_path / "whole")


def test_accumulation_equals_the_larger_batch(tmp_path):
    plain = replace(TINY, dropout=0.0)
    one, four = tiny_run(tmp_path, plain), tiny_run(tmp_path, plain, accumulate=4)
    for run in (one, four):
        for _ in range(3):
            run.advance()
    for p, q in zip(one.objective.parameters(), four.objective.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_accumulation_without_dividing_would_show(tmp_path):
    """Mutant: gradients of undivided losses are as many times larger."""
    plain = replace(TINY, dropout=0.0)
    norms = []
    for parts in (1, 4):
        run = tiny_run(tmp_path, plain, clip=1e9)
        batch = run.batch(0)
        for s in torch.arange(16).chunk(parts):
            run.objective(**{name: values[s] for name, values in batch.items()}).backward()
        norms.append(nn.utils.clip_grad_norm_(run.objective.parameters(), 1e9).item())
    assert norms[1] == pytest.approx(4 * norms[0], rel=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_conditions_are_dropped_one_by_one_at_the_stated_rate(share):
    data, config = tiny_data(drop=share), replace(CONFIG, batch=256)
    dropped = [drawn(data, config, step)["ids"] == 4 for step in range(40)]
    rate = torch.stack(dropped).float().mean().item()
    assert abs(rate - share) < 4 * (share * (1 - share) / (40 * 256)) ** 0.5
    assert abs(rate - (1 - share)) > 0.1 or share == 0.5  # mutant: keeps what it should drop
    assert all(0 < d.sum() < 256 for d in dropped)  # mutant: one decision for a whole batch


def test_captions_are_dropped_whole():
    encoder = TextEncoder(TextConfig(words=("a", "red", "circle"), length=4))
    ids = encoder.tokenize(["a red circle"] * 64)
    data = TrainingSet(tiny_data().images, {"ids": Column(ids, encoder.tokenize([""])[0], 0.5)})
    for row in drawn(data)["ids"].tolist():
        assert row in ([1, 2, 3, 0], [0, 0, 0, 0])


def test_a_batch_depends_on_seed_and_step_alone():
    data = tiny_data()
    first, again = (drawn(data, step=7) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["noise"], drawn(data, step=8)["noise"])
    assert not torch.equal(first["noise"], drawn(data, replace(CONFIG, seed=1), 7)["noise"])


def test_every_image_is_seen_once_an_epoch_and_levels_are_uniform():
    images = torch.arange(64, dtype=torch.uint8).reshape(64, 1, 1, 1).expand(64, 3, 8, 8)
    data = TrainingSet(images.contiguous())
    batches = [drawn(data, replace(CONFIG, batch=48), step) for step in range(4)]
    seen = torch.cat([((batch["x0"][:, 0, 0, 0] + 1) * 127.5).round() for batch in batches])
    for epoch in seen.split(64):
        assert sorted(epoch.tolist()) == list(range(64))
    t = torch.cat([drawn(data, step=step)["t"] for step in range(400)])
    assert t.min() == 1 and t.max() == 100  # mutants: 0..T-1, or 1..T-1
    assert abs(t.float().mean() - 50.5) < 4 * 28.9 / len(t) ** 0.5


def test_half_of_the_images_are_mirrored():
    ramp = torch.arange(8, dtype=torch.uint8).expand(64, 3, 8, 8).contiguous()
    x0 = drawn(TrainingSet(ramp), replace(CONFIG, batch=512))["x0"]
    mirrored = (x0[:, 0, 0, 0] > x0[:, 0, 0, 7]).float().mean()
    assert 0.4 < mirrored < 0.6
    x0 = drawn(TrainingSet(ramp), replace(CONFIG, batch=512, flip=False))["x0"]
    assert (x0[:, 0, 0, 0] < x0[:, 0, 0, 7]).all()


def test_learning_rate_rises_stays_and_falls(tmp_path):
    run = tiny_run(tmp_path, images=1600, warmup=160, cooldown=0.25)
    rates = []
    for run.step in range(100):
        rates.append(run.learning_rate() / run.config.learning_rate)
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert set(rates[10:75]) == {1.0}
    assert rates[75:] == pytest.approx([(100 - i) / 25 for i in range(75, 100)])


def test_the_average_is_exponential(tmp_path):
    run = tiny_run(tmp_path, ema=0.5)
    name, weight = next(iter(run.objective.named_parameters()))
    expected = weight.detach().clone()
    for step in range(1, 13):
        run.advance()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
    assert torch.allclose(dict(run.average.named_parameters())[name], expected, atol=1e-6)


def test_nan_stops_the_run_and_names_the_last_good_state(tmp_path):
    run = tiny_run(tmp_path)
    advance = run.advance

    def breaks():
        loss, norm = advance()
        return (loss * float("nan"), norm) if run.step == 7 else (loss, norm)

    run.advance = breaks
    with pytest.raises(FloatingPointError, match=r"nan by step \d+ .*state.safetensors. Begin"):
        fit(run, progress=False)
    resumed = tiny_run(tmp_path)
    resumed.resume()
    assert resumed.step == 4  # saved after 64 images, before the fault


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path):
    run = tiny_run(tmp_path)
    advance = run.advance

    def breaks():
        loss, norm = advance()
        return (loss, norm * float("inf")) if run.step == 8 else (loss, norm)

    run.advance = breaks
    with pytest.raises(FloatingPointError):
        fit(run, progress=False)
    assert checkpoint.about(tmp_path / "state.safetensors")["step"] == 4


def test_estimate_counts_and_changes_nothing(tmp_path):
    run, fresh = tiny_run(tmp_path), tiny_run(tmp_path)
    told = estimate(run)
    assert told.pflops > 0 and told.minutes > 0 and told.gigabytes > 0
    twice = estimate(tiny_run(tmp_path, images=640))
    assert twice.pflops == pytest.approx(2 * told.pflops)
    for p, q in zip(run.objective.parameters(), fresh.objective.parameters(), strict=True):
        assert torch.equal(p, q) and not p.grad
    assert run.advance()[0] == fresh.advance()[0]
    run.step = run.steps + 1
    assert estimate(run)[:2] == (0, 0)  # nothing is left, not less


def test_estimate_agrees_with_a_count_by_hand(tmp_path):
    """One 3x3 convolution: 2 * 9 * 3 * 3 * 64 operations forward, thrice that in training."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, t, condition):
            return self.conv(x)

    objective = unconditional(One(), NoiseSchedule.cosine(100))
    run = run_of(objective, TrainingSet(tiny_data().images), CONFIG, tmp_path)
    assert estimate(run).pflops * 1e15 == pytest.approx(3 * 2 * 9 * 3 * 3 * 64 * CONFIG.images)


def test_resuming_another_run_is_refused(tmp_path):
    run = tiny_run(tmp_path)
    run.advance()
    run.save()
    with pytest.raises(ValueError, match="another learning_rate"):
        tiny_run(tmp_path, learning_rate=1e-4).resume()
    with pytest.raises(ValueError, match="does not fit"):
        tiny_run(tmp_path, replace(TINY, channels=32)).resume()
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        tiny_run(tmp_path / "nowhere").resume()
    with pytest.raises(ValueError, match="another predicts"):
        tiny_run(tmp_path, predicts="eps").resume()
    longer = tiny_run(tmp_path, images=640)
    longer.resume()  # more images is how a run is prolonged
    assert longer.step == 1


def test_bad_input_is_refused_in_one_sentence():
    images = tiny_data().images
    with pytest.raises(ValueError, match="must be uint8"):
        TrainingSet(images.float())
    with pytest.raises(ValueError, match="64 images but 3 rows of 'ids'"):
        TrainingSet(images, {"ids": Column(torch.zeros(3))})
    with pytest.raises(ValueError, match="does not divide"):
        TrainConfig(images=100, batch=10, accumulate=3)
    with pytest.raises(ValueError, match="expected a share"):
        tiny_data(drop=10)
    unnamed = TrainingSet(images, {"ids": Column(torch.zeros(64))})
    assert drawn(unnamed)["ids"].shape == (16,)
    assert unnamed.dropping(0.5).columns["ids"].drop == 0  # there is nothing to learn instead
    with pytest.raises(ValueError, match="'ids' is dropped .* and has no null value"):
        TrainingSet(images, {"ids": Column(torch.zeros(64), drop=0.1)})


def test_a_batch_of_other_columns_or_rows_is_refused(tmp_path):
    run = tiny_run(tmp_path)
    batches = run.batches
    run.batches = lambda step: batches(step) | {"colour": torch.zeros(16)}
    with pytest.raises(ValueError, match="a column 'colour': expected ids, or a field of a Cond"):
        run.advance()
    run.batches = lambda step: batches(step) | {"t": torch.zeros(3)}
    with pytest.raises(ValueError, match="batch of step 0 has rows .*'t': 3.* expected 16 of each"):
        run.advance()


def test_batches_of_ones_own_give_any_field_of_a_condition(tmp_path):
    """Super-resolution in miniature: the condition is made of the augmented image itself."""
    torch.manual_seed(0)
    network = UNet(replace(TINY, classes=0, in_channels=6, vector_dim=2))
    objective = Objective(Diffusion(network, NoiseSchedule.flow(100), "flow", (3, 8, 8)))
    plain, asked = Batches(TrainingSet(tiny_data().images), 16, 100, mirror=True), []

    def batches(step):
        batch = plain(step)
        low = nn.functional.avg_pool2d(batch["x0"], 4)
        batch["image"] = nn.functional.interpolate(low, scale_factor=4)
        return batch | {"vector": torch.ones(16, 2)}

    run = Run(objective, batches, CONFIG, tmp_path)
    network.register_forward_hook(lambda module, inputs, out: asked.append(inputs[2]))
    first = run.advance()[0]
    assert asked[0].image.shape == (16, 3, 8, 8) and asked[0].vector.shape == (16, 2)
    assert asked[0].label is asked[0].tokens is None
    trained = fit(run, progress=False)
    assert run.advance()[0] < first  # the average is another network
    assert trained.model.network is trained.network


def test_times_may_be_drawn_otherwise():
    def late(n, T, generator):
        return T * torch.rand(n, generator=generator).sqrt()

    t = Batches(tiny_data(), 512, 100, times=late)(0)["t"]
    assert t.is_floating_point() and t.mean() == pytest.approx(66.7, abs=5)


def test_on_save_sees_the_run_and_its_log(tmp_path):
    seen = []
    fit(
        tiny_run(tmp_path),
        on_save=lambda run: seen.append((run.seen, last_row(run.out)["images"])),
        progress=False,
    )
    assert seen == [(n, str(n)) for n in (64, 128, 192, 256, 320)]


def test_a_log_that_a_crash_has_damaged_does_not_stop_a_run(tmp_path):
    path = tmp_path / "log.csv"
    good = "64,0.5,1.0,1e-3,10.0"
    path.write_text(f"{','.join(Log.columns)}\n{good}\n96,0.4,,,\n,\n\0\0\n128x,0.3,1,1,1,1\n")
    Log(path, 96).close()
    assert [row["images"] for row in rows(tmp_path)] == ["64", "96"]
    path.write_text("something,else\n1,2\n")
    Log(path, 96).close()
    assert rows(tmp_path) == []


def test_generators_of_dropout_do_not_leak(tmp_path):
    """Dropout masks come from (seed, step) too: whatever was drawn before does not matter."""
    one, two = tiny_run(tmp_path), tiny_run(tmp_path)
    torch.randn(1000, generator=Generator().manual_seed(1))
    first = one.advance()[0]
    torch.manual_seed(123)
    assert two.advance()[0] == first


class Normalised(nn.Module):
    """A network with statistics and a table beside its weights, and a weight that is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 3, 3, padding=1)
        self.last.weight = self.first.weight
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, x, t, condition=None):
        return self.last(self.norm(self.first(x)))


def test_a_network_with_buffers_and_shared_weights_resumes_bit_for_bit(tmp_path):
    def run(name: str, images: int) -> Run:
        torch.manual_seed(0)
        objective = unconditional(Normalised(), NoiseSchedule.linear(100))
        config = replace(CONFIG, images=images, batch=8, cooldown=0.0)
        return run_of(objective, TrainingSet(tiny_data().images), config, tmp_path / name)

    whole = run("whole", 96)
    trained = fit(whole, progress=False)
    fit(run("parts", 48), progress=False)
    second = run("parts", 96)
    second.resume()
    resumed = fit(second, progress=False)
    assert same_state(whole.out, second.out)
    seen = whole.objective.network.norm.running_var
    assert (seen - 1).abs().min() > 0.1
    for average in (trained, resumed):  # these statistics are averages already
        assert torch.equal(average.network.norm.running_var, seen)


def test_resumed_moments_lie_in_memory_as_their_weights_do(tmp_path):
    """A fused optimizer refuses others: on GPUs the weights are in channels_last."""

    def run(images: int) -> Run:
        torch.manual_seed(0)
        network = Normalised().to(memory_format=torch.channels_last)
        objective = unconditional(network, NoiseSchedule.linear(100))
        config = replace(CONFIG, images=images, batch=8)
        return run_of(objective, TrainingSet(tiny_data().images), config, tmp_path)

    fit(run(16), progress=False)
    again = run(32)
    again.resume()
    weight = again.objective.network.first.weight
    assert not weight.is_contiguous()
    for name in ("exp_avg", "exp_avg_sq"):
        assert again.optimizer.state[weight][name].stride() == weight.stride()
    fit(again, progress=False)
