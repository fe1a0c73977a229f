"""The command line, as a user types it."""

import csv
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from minidiff import checkpoint, plot, zoo
from minidiff.cli import main
from minidiff.cli import train as train_commands
from minidiff.cli.train import _card
from minidiff.samplers import ddpm_step, dpmpp_2m_step, heun_step
from minidiff.schedule import NoiseSchedule
from minidiff.text import ClassLabels
from minidiff.unet import UNet, UNetConfig


@pytest.fixture
def run():
    def call(*arguments):
        return CliRunner().invoke(main, [str(a) for a in arguments])

    return call


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for name, value in (("dark", 40), ("light", 220)):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (20, 16), (value, value, 10 * i)).save(folder / name / f"{i}.png")
    return folder


TINY = ["--channels", 48, "--multipliers", "1,2,2", "--batch", 8]


def test_help_reads_well(run):
    told = run("--help")
    assert told.exit_code == 0
    for command in ("train", "sample", "models", "demo", "evaluate"):
        assert command in told.output
        described = run(command, "--help")
        assert described.exit_code == 0 and "Usage" in described.output


def test_train_resume_and_sample_a_folder_of_pictures(run, pictures, tmp_path):
    out = tmp_path / "run"
    options = ["train", "--data", pictures, "--out", out, *TINY, "--size", 16, "--save-every", 16]
    told = run(*options, "--images", 32)
    assert told.exit_code == 0, told.output
    assert "16 pictures of the folder pictures" in told.output and "PFLOPs" in told.output
    assert sorted(f.name for f in out.iterdir()) == [
        "log.csv",
        "model.safetensors",
        "preview_000000016.png",
        "preview_000000032.png",
        "state.safetensors",
    ]
    again = run(*options, "--images", 48)
    assert again.exit_code == 1 and "add --resume" in again.output
    assert run(*options, "--images", 48, "--resume").exit_code == 0
    (out / "model.safetensors").unlink()  # as if it was killed between its last state and its model
    assert run(*options, "--images", 48, "--resume").exit_code == 0
    with open(out / "log.csv", newline="") as f:
        assert int(list(csv.DictReader(f))[-1]["images"]) == 48

    tuned = tmp_path / "tuned"
    start = ["--weights", out / "model.safetensors"]
    told = run(
        *options[:3], "--out", tuned, *options[5:], "--images", 16, "--learning-rate", 0, *start
    )
    assert told.exit_code == 0, told.output
    one, two = (zoo.load(folder / "model.safetensors") for folder in (out, tuned))
    assert two.card["images_seen"] == 64 and two.card["minutes"] >= one.card["minutes"]
    assert two.card["command"].startswith(f"{one.card['command']}; then minidiff ")
    weights = two.network.state_dict()
    assert all(torch.equal(w, weights[k]) for k, w in one.network.state_dict().items())
    told = run(*options[:3], "--out", tmp_path / "eps", "--predicts", "eps", *options[5:], *start)
    assert told.exit_code == 1 and "predicts v" in told.output

    model = zoo.load(out / "model.safetensors")
    assert model.encoder.names == ("dark", "light") and model.card["images_seen"] == 48
    sheet = tmp_path / "sheet.png"
    told = run(
        "sample",
        "--model",
        out / "model.safetensors",
        "-n",
        2,
        "--steps",
        2,
        "--out",
        sheet,
        "dark",
    )
    assert told.exit_code == 0, told.output
    with Image.open(sheet) as picture:
        assert picture.width > 100


def test_train_and_sample_pictures_with_captions(run, pictures, tmp_path):
    rows = [f"{name}/{i}.png,a {name} picture" for name in ("dark", "light") for i in range(7)]
    (pictures / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    out = tmp_path / "run"
    options = ["train", "--data", pictures, *TINY, "--size", 16, "--images", 16]
    told = run(*options, "--out", out)
    assert told.exit_code == 0, told.output
    model = zoo.load(out / "model.safetensors")
    assert model.encoder.config.words == ("a", "dark", "light", "picture")
    assert model.card["examples"] == ["a dark picture", "a light picture"]
    assert model.sample("A light picture.", 2, scale=2, steps=2).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="unknown word 'bright'"):
        model.sample("a bright picture", 1)

    (pictures / "metadata.csv").write_text(
        "\n".join(["file_name,text", *rows]).replace("a ", "A1 ")
    )
    told = run(*options, "--out", tmp_path / "two", "--weights", out / "model.safetensors")
    assert told.exit_code == 1 and "knows other words than the captions here" in told.output
    (pictures / "metadata.csv").write_text("file_name,text\ndark/1.png,...\n")
    told = run(*options, "--out", tmp_path / "three")
    assert told.exit_code == 1 and "captions are without a word" in told.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "--data", "nothing"], "there is no data 'nothing': expected shapes, cifar10"),
        (["sample", "--model", "nothing"], "there is no model 'nothing'"),
        (["sample", "-n", "0"], "--number 0: expected at least 1"),
        (["sample", "--steps", "0"], "--steps 0: expected at least 1"),
        (["sample", "--model", "butterflies", "a butterfly"], "it takes no prompt"),
        (["evaluate", "shapes", "--number", "0"], "--number 0: expected at least 1"),
        (["sample", "--out", "x.jpg"], "written as .png"),
        (["demo", "--out", "x.jpg"], "written as .png"),
    ],
)
def test_mistakes_are_told_in_one_sentence(run, arguments, told):
    result = run(*arguments)
    assert result.exit_code != 0 and told in result.output
    assert "Traceback" not in result.output


def test_a_network_of_fewer_levels_attends_at_those_it_has(run, pictures, tmp_path):
    out = tmp_path / "run"
    sizes = ["--size", 64, "--channels", 32, "--multipliers", "1,2"]
    told = run("train", "--data", pictures, "--out", out, *sizes, "--batch", 4, "--images", 4)
    assert told.exit_code == 0, told.output
    config = zoo.load(out / "model.safetensors").network.config
    assert config.multipliers == (1, 2) and config.attention == ()  # the recipe's are 2 and 3


def test_bad_training_options_are_told(run, pictures, tmp_path):
    out = ["--data", pictures, "--out", tmp_path / "run", "--size", 16]
    for options, told in (
        (["--multipliers", "1,x"], "expected whole numbers like 1,2,2"),
        (["--channels", "17"], "does not divide"),
        (["--channels", "0"], "channels, multipliers, blocks and patch from 1"),
        (["--size", "40"], "size is 40: expected a multiple of 16"),
        (["--size", "4"], "size is 4: expected 8 to 256 pixels"),
        (["--batch", "10", "--accumulate", "3"], "does not divide"),
        (["--accumulate", "0"], "accumulate is 0: expected at least 1"),
        (["--batch", "0"], "batch is 0"),
        (["--images", "0"], "images is 0"),
        (["--images", "nan"], "images is nan"),
        (["--save-every", "0"], "save_every is 0"),
        (["--learning-rate", "-1"], "learning_rate -1.0"),
        (["--ema", "2"], "ema 2.0"),
        (["--min-snr", "-1"], "min_snr is -1.0"),
        (["--drop-condition", "2"], "the drop of 'ids' is 2.0: expected a share in 0..1"),
        (["--predicts", "eps", "--schedule", "flow"], "ends at pure noise, where eps leaves the"),
        (["--out", pictures / "run"], "run lies among the pictures, and its previews would join"),
    ):
        result = run("train", *out, *options)
        assert result.exit_code == 1 and told in result.output, result.output


def test_a_model_without_a_history_may_be_trained_further(tmp_path):
    """What `Diffusion.save` and `clip.save` write has the card it is given, which may be none."""
    card = {"command": "minidiff train", "images_seen": 8, "minutes": 1}
    for about, known in (({}, None), ({"card": {}}, None), ({"card": card}, card)):
        checkpoint.save(tmp_path / "m.safetensors", {"a": torch.ones(1)}, about)
        assert _card({}, str(tmp_path / "m.safetensors")) == known


def test_sampling_the_same_seed_twice_writes_the_same_file(run, tmp_path):
    torch.manual_seed(0)
    network = UNet(UNetConfig(channels=16, multipliers=(1, 2), blocks=1, groups=8))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    card = {"data": "none"}
    model = zoo.Diffusion(network, NoiseSchedule.cosine(), "v", (3, 8, 8), card=card)
    model.save(tmp_path / "m.safetensors")
    sheets = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{name}.png"
        told = run(
            "sample",
            "--model",
            tmp_path / "m.safetensors",
            "-n",
            2,
            "--steps",
            2,
            "--seed",
            seed,
            "--out",
            path,
        )
        assert told.exit_code == 0, told.output
        sheets.append(path.read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


@pytest.fixture
def pets(tmp_path):
    """The file of a model of random weights that draws cats and dogs."""
    torch.manual_seed(0)
    network = UNet(UNetConfig(channels=16, multipliers=(1, 2), blocks=1, groups=8, classes=2))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    labels, card = ClassLabels(("cat", "dog")), {"data": "none"}
    model = zoo.Diffusion(network, NoiseSchedule.cosine(), "v", (3, 8, 8), labels, card=card)
    model.save(tmp_path / "pets.safetensors")
    return tmp_path / "pets.safetensors"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {}),
        (("--sampler", "ddpm"), {"step": ddpm_step}),
        (("--sampler", "heun"), {"step": heun_step}),
        (("--sampler", "2m"), {"step": dpmpp_2m_step}),
        (
            ("--sampler", "2m", "--spacing", "leading"),
            {"step": dpmpp_2m_step, "spacing": "leading"},
        ),
        (("--spacing", "linspace"), {"spacing": "linspace"}),
        (("--scale", "1"), {"scale": 1}),
        (("--negative", "dog", "--scale", "5"), {"negative": "dog", "scale": 5}),
        (("--negative", "dog"), {"negative": "dog"}),
    ],
)
def test_sample_draws_as_its_options_say(run, pets, monkeypatch, tmp_path, options, expected):
    shown, rows = [], plot.rows
    monkeypatch.setattr(plot, "rows", lambda table, **o: shown.append(table) or rows(table, **o))
    out = tmp_path / "sheet.png"
    words = ["sample", "--model", pets, "-n", 2, "--steps", 4, "--seed", 7, "--out", out]
    told = run(*words, *options, "cat", "dog")
    assert told.exit_code == 0 and f"4 images: {out}" in told.output, told.output
    assert [label for label, _ in shown[0]] == ["cat", "dog"]
    drawn = torch.cat([images for _, images in shown[0]])
    how = {"scale": 3.0, "steps": 4, "seed": 7} | expected
    wanted = ["cat", "cat", "dog", "dog"]
    assert torch.equal(drawn, zoo.load(pets).sample(wanted, **how).cpu())
    if expected:  # control: an option that is not read
        plain = zoo.load(pets).sample(wanted, steps=4, seed=7, scale=3.0).cpu()
        assert not torch.equal(drawn, plain)


def test_bad_sampling_options_are_told(run, pets):
    for options, told in (
        (["--negative", "dog"], "--negative is what guidance leads away from: expected --scale"),
        (["--negative", "cow", "cat"], "unknown class 'cow': expected one of cat, dog"),
        (["--sampler", "euler"], "'euler' is not one of 'ddim', 'ddpm', 'heun', '2m'"),
        (["--spacing", "even"], "'even' is not one of 'trailing', 'leading', 'linspace'"),
        (["cow"], "unknown class 'cow'"),
        (["--steps", "1001"], "1001 steps on a schedule of 1000 levels"),
    ):
        result = run("sample", "--model", pets, *options)
        assert result.exit_code != 0 and told in result.output, result.output
        assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("options", "predicts", "schedule"),
    [
        ((), "v", NoiseSchedule.cosine()),
        (("--predicts", "flow"), "flow", NoiseSchedule.flow()),
        (("--predicts", "flow", "--schedule", "linear"), "flow", NoiseSchedule.linear()),
        (("--schedule", "flow"), "v", NoiseSchedule.flow()),
        (("--predicts", "eps", "--schedule", "linear"), "eps", NoiseSchedule.linear()),
    ],
)
def test_what_is_predicted_on_which_schedule(run, pictures, tmp_path, options, predicts, schedule):
    out = tmp_path / "run"
    words = ["train", "--data", pictures, "--out", out, *TINY, "--size", 16, "--images", 8]
    told = run(*words, *options)
    assert told.exit_code == 0, told.output
    model = zoo.load(out)
    assert model.predicts == predicts and model.schedule == schedule
    assert (out / "preview_000000008.png").exists()  # it has been sampled from


def test_training_options_reach_the_loss_and_the_data(run, pictures, tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(train_commands, "_fit", lambda run, *_: runs.append(run))
    words = ["train", "--data", pictures, "--out", tmp_path / "run", *TINY, "--size", 16]
    for options in ((), ("--min-snr", 3), ("--min-snr", 0), ("--drop-condition", 0.5)):
        assert run(*words, "--images", 8, *options).exit_code == 0
    assert [one.objective.min_snr for one in runs] == [5.0, 3.0, None, 5.0]
    shares = [one.batches.data.columns["ids"].drop for one in runs]
    assert shares == [0.1, 0.1, 0.1, 0.5]


def test_pictures_that_share_one_caption_are_trained_and_shown(run, pictures, tmp_path):
    """As for fine-tuning on one thing: there is one prompt to preview, not sixteen."""
    rows = [f"dark/{i}.png,a dark picture" for i in range(8)]
    (pictures / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    out = tmp_path / "run"
    words = ["train", "--data", pictures, "--out", out, *TINY, "--size", 16, "--images", 8]
    told = run(*words)
    assert told.exit_code == 0, told.output
    with Image.open(out / "preview_000000008.png") as sheet:
        assert sheet.width < 400


def test_output_that_is_closed_early_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "minidiff", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.communicate(timeout=120)[1] == b""


def test_models_lists_what_ships(run):
    told = run("models")
    assert told.exit_code == 0
    for name in zoo.names():
        assert name in told.output
    (shapes,) = (line for line in told.output.splitlines() if line.startswith("shapes "))
    (cifar10,) = (line for line in told.output.splitlines() if line.startswith("cifar10 "))
    assert "32 px  captions" in shapes and "32 px  classes" in cifar10
    assert "airplane, automobile" in told.output
