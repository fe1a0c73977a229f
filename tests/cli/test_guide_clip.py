"""`minidiff guide clip`, by small CLIPs; and by random weights in the shapes of ViT-B/32 and of
google/ddpm-celebahq-256."""

import json
import re
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from minidiff import clip, diffusers_format, zoo
from minidiff.cli import main
from minidiff.clip.model import CLIP, CLIPConfig
from minidiff.clip.tokenizer import Tokenizer, train_bpe
from minidiff.schedule import NoiseSchedule
from minidiff.unet import UNet, UNetConfig

TOKENIZER = Tokenizer(train_bpe(["a smiling man", "a red star"] * 2, 100))
VIT_B_32 = CLIPConfig(  # but for the number of layers and the words of its texts
    layers=1, text_layers=1, end=TOKENIZER.end, merges=tuple(TOKENIZER.merges)
)
SMALL = replace(
    VIT_B_32,
    **{"embed": 16, "size": 16, "patch": 4, "width": 32, "heads": 2, "text_width": 32},
    **{"text_heads": 2, "context": 12, "vocabulary": len(TOKENIZER)},
)


def saved_clip(config, path):
    torch.manual_seed(0)
    clip.save(CLIP(config), path)
    return str(path)


def random_network(config):
    """Every weight random: that of a fresh network's last layer is 0, and so is its output."""
    torch.manual_seed(0)
    network = UNet(config).eval()
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim > 1:
                p.normal_(std=p[0].numel() ** -0.5)
    return network


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Files of a small model and of two small CLIPs."""
    folder = tmp_path_factory.mktemp("small")
    network = random_network(
        UNetConfig(channels=16, multipliers=(1,), attention=(), blocks=1, groups=8)
    )
    card = {"description": "random"}
    model = zoo.Diffusion(network, NoiseSchedule.linear(), "v", (3, 16, 16), card=card)
    model.save(folder / "model.safetensors")
    return [
        str(folder / "model.safetensors"),
        saved_clip(SMALL, folder / "clip.safetensors"),
        saved_clip(replace(SMALL, layers=2), folder / "judge.safetensors"),
    ]


def guided(folder, *words):
    out = folder / "guided.png"
    told = CliRunner().invoke(main, ["guide", "clip", *words, "--out", str(out)])
    assert told.exit_code == 0, told.output + str(told.exception)
    with Image.open(out) as sheet:
        return told.stdout, sheet.copy()


def test_it_draws_to_texts_and_pictures_and_a_judge_looks_on(small, tmp_path):
    model, guide, judge = small
    picture = tmp_path / "red.png"
    Image.new("RGB", (40, 30), (220, 20, 20)).save(picture)
    short = ["-n", "2", "--steps", "4", "--model", model, "--clip", guide]
    words = ["a red star", str(picture), "--scale", "300", *short, "--judge", judge]
    told, sheet = guided(tmp_path, *words)
    found = re.findall(r"(.*): mean cosine by the CLIP (\S+) to (\S+), by its judge", told)
    assert [name for name, *_ in found] == ["a red star", "red.png"]
    assert all(float(after) > float(before) + 0.01 for _, before, after in found)
    assert "CLIP guidance of model by clip: scale 300, 16 cut-outs, 4 steps" in told
    again, same = guided(tmp_path, *words)
    assert same.tobytes() == sheet.tobytes()
    still, _ = guided(tmp_path, "a red star", "--scale", "0", *short)
    before, after = re.search(r"the CLIP (\S+) to (\S+)", still).groups()
    assert before == after  # scale 0 guides nothing
    crude, _ = guided(tmp_path, "a red star", "--shortcut", *short)
    assert "shortcut, 4 steps" in crude


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["  "], "the targets is empty"),
        (["a star", "--scale", "nan"], "scale = nan: expected a finite number"),
        (["a star", "--cuts", "0"], "cuts = 0: expected a whole number from 1 up"),
        (["red " * 40], "tokens: expected"),
        (["red " * 80], "tokens: expected"),  # longer than the name of a file may be
        (["a star", "--model", "shaps"], "there is no model 'shaps'"),
        (["drwaing.png"], "no picture at drwaing.png"),
    ],
)
def test_bad_input_is_told_in_one_sentence(small, words, told):
    model, guide, _ = small
    given = ["guide", "clip", "--model", model, "--clip", guide, "-n", "1", "--steps", "2", *words]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 1 and told in result.output, result.output


def test_published_models_go_the_same_way(tmp_path):
    """A folder as google/ddpm-celebahq-256 has it, with a quarter of the channels, and ViT-B/32."""
    config = UNetConfig(
        channels=32,
        multipliers=(1, 1, 2, 2, 4, 4),
        blocks=2,
        attention=(4,),
        head_dim=None,
    )
    network = random_network(config)
    folder = tmp_path / "celebahq"
    diffusers_format.write(network, NoiseSchedule.linear(), "eps", folder, size=256)
    assert json.loads((folder / "config.json").read_text())["sample_size"] == 256
    guide = saved_clip(VIT_B_32, tmp_path / "ViT-B-32.safetensors")
    words = ["--model", str(folder), "--clip", guide, "-n", "1", "--steps", "2", "--cuts", "4"]
    told, _ = guided(tmp_path, "a smiling man", "--scale", "1000", *words)
    before, after = map(float, re.search(r"the CLIP (\S+) to (\S+)", told).groups())
    assert before != after
