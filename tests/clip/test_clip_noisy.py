"""The image encoder that is told the time: it starts as CLIP's own, and learns noisy images."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Generator

from minidiff import checkpoint, clip, plot, zoo
from minidiff.cli import main
from minidiff.clip import noisy, weights
from minidiff.clip.model import CLIP, CLIPConfig
from minidiff.clip.noisy import of_clip
from minidiff.clip.tokenizer import Tokenizer, train_bpe
from minidiff.clip.use import image_features
from minidiff.data import shapes
from minidiff.data.images import to_float, to_pil
from minidiff.evaluation import semantic_guidance
from minidiff.recipes.noisy_clip import NoisyAgainstClean
from minidiff.recipes.recipe import Recipe
from minidiff.schedule import NoiseSchedule, add_noise
from minidiff.training import Column, TrainConfig, TrainingSet, fit
from minidiff.unet import UNet, UNetConfig

SCHEDULE = NoiseSchedule.cosine()
HALF = (0.5, 0.5, 0.5)
WORDS = ["a red star", "a blue ring"]
LEVEL = SCHEDULE.level(400)


@pytest.fixture(scope="module")
def eye():
    """A CLIP of random weights."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(train_bpe(WORDS * 2, 100))
    ids = dict(vocabulary=len(tokenizer), end=tokenizer.end, merges=tuple(tokenizer.merges))
    sizes = dict(embed=16, size=8, patch=2, width=32, layers=3, heads=2, context=8)
    text = dict(text_width=32, text_layers=1, text_heads=2, mean=HALF, std=HALF)
    return CLIP(CLIPConfig(**sizes, **text, **ids)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pictures():
    """Thirty-two smooth pictures, uint8 (32,3,8,8)."""
    coarse = torch.rand(32, 3, 2, 2, generator=Generator().manual_seed(1))
    return (F.interpolate(coarse, scale_factor=4, mode="bilinear") * 255).round().byte()


@pytest.fixture(scope="module")
def run(eye, pictures, tmp_path_factory):
    """The folder of a short training, as `train-clip --noisy` would leave it."""
    out = tmp_path_factory.mktemp("noisy")
    clean = image_features(eye, to_float(pictures))
    config = TrainConfig(images=9600, batch=32, learning_rate=2e-3, warmup=320, ema=0.9)
    config = replace(config, flip=False, log_every=9600)
    card = {"description": "Tiny.", "data": "noise", "licence": "MIT", "limits": "Few."}
    data = TrainingSet(pictures, {"clean": Column(clean)})
    torch.manual_seed(0)
    encoder = of_clip(eye, SCHEDULE).train().requires_grad_()
    run = Recipe(encoder, data, config, (), NoisyAgainstClean).run(out, "cpu")
    fit(run, progress=False).save(out / "model.safetensors", card | {"command": "train"})
    return out


@pytest.fixture(scope="module")
def trained(run):
    return noisy.load(run / "model.safetensors", "cpu")


def found(encoder, eye, pictures, t):
    """The share of noisy pictures that find their clean ones, over eight noises."""
    x0 = to_float(pictures).repeat(8, 1, 1, 1)
    noise = torch.randn(x0.shape, generator=Generator().manual_seed(2))
    x = add_noise(x0, SCHEDULE.level(t), noise)
    seen = F.normalize(encoder(x, SCHEDULE.level(t)).embedding, dim=1)
    nearest = (seen @ image_features(eye, to_float(pictures)).T).argmax(1)
    return (nearest == torch.arange(len(x0)) % len(pictures)).float().mean().item()


def test_it_starts_as_clips_own_encoder_at_every_t(eye):
    x = torch.rand(3, 3, 8, 8) * 2 - 1
    encoder, own = of_clip(eye, SCHEDULE), eye.encode_image(x)
    for t in (1, 400, 1000):
        torch.testing.assert_close(encoder(x, SCHEDULE.level(t)).embedding, own)
    # Mutant: with a scale and shift that are not zero at the start it does not.
    for layer in encoder.scale_shift:
        torch.nn.init.normal_(layer.weight, std=0.02)
    assert (encoder(x, SCHEDULE.level(400)).embedding - own).abs().max() > 1e-3


def test_maps_are_those_of_all_blocks_but_the_last(eye):
    x = torch.randn(2, 3, 8, 8)
    maps = of_clip(eye, SCHEDULE)(x, LEVEL).maps
    assert [tuple(m.shape) for m in maps] == [(2, 32, 4, 4)] * 2
    seen = []
    blocks = eye.visual.transformer.resblocks
    hooks = [b.register_forward_hook(lambda m, i, o: seen.append(o)) for b in blocks]
    eye.encode_image(x)
    for hook in hooks:
        hook.remove()
    for here, tokens in zip(maps, seen, strict=False):
        torch.testing.assert_close(here.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_levels_of_a_batch_are_each_images_own(trained):
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([100, 800])
    together = trained(x, SCHEDULE.level(t)).embedding
    assert (together - trained(x, SCHEDULE.level(t.flip(0))).embedding).abs().max() > 1e-3
    alone = [trained(x[[i]], SCHEDULE.level(int(t[i]))).embedding for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_it_learns_to_embed_noisy_images_where_the_clean_ones_are(trained, eye, pictures):
    untrained = of_clip(eye, SCHEDULE)
    for t in (250, 500):
        assert found(trained, eye, pictures, t) > found(untrained, eye, pictures, t) + 0.2
    assert found(trained, eye, pictures, 1000) < 0.15


def test_the_loss_is_symmetric_cross_entropy_at_scale_100(eye, pictures):
    objective = NoisyAgainstClean(of_clip(eye, SCHEDULE))
    x0, t = to_float(pictures[:4]), torch.tensor([50, 100, 150, 200])
    noise, clean = torch.randn(4, 3, 8, 8), image_features(eye, to_float(pictures[:4]))
    x = add_noise(x0, SCHEDULE.level(t), noise)
    seen = F.normalize(objective.network(x, SCHEDULE.level(t)).embedding, dim=1)
    logits, own = 100 * seen @ clean.T, torch.arange(4)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(objective(x0, t, noise, clean), expected)


def test_files_hold_all_and_are_no_clips(run, trained, tmp_path, eye, monkeypatch):
    assert trained.card["command"] == "train" and not any(
        p.requires_grad for p in trained.parameters()
    )
    assert trained.schedule == SCHEDULE
    clip.save(eye, tmp_path / "clip_tiny.safetensors")
    noisy.save(tmp_path / "clip_tiny_noisy.safetensors", trained)
    monkeypatch.setattr(checkpoint, "FOLDERS", (tmp_path,))
    assert [*weights.shipped()] == [*noisy.shipped()] == ["tiny"]
    x = torch.randn(1, 3, 8, 8)
    again = noisy.load("tiny", "cpu")(x, LEVEL)
    torch.testing.assert_close(again.embedding, trained(x, LEVEL).embedding, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="holds a clip, not a noise-aware encoder"):
        noisy.load(tmp_path / "clip_tiny.safetensors")
    with pytest.raises(FileNotFoundError, match="no noise-aware encoder 'other'"):
        noisy.load("other")
    with pytest.raises(ValueError, match=r"expected \(B, 3, 8, 8\)"):
        trained(torch.randn(1, 3, 16, 16), LEVEL)
    with pytest.raises(ValueError, match="got one with a ResNet"):
        noisy.NoisyEncoder(CLIPConfig(size=32, layers=(1, 1, 1, 1)), SCHEDULE)


# --- measures and the command --------------------------------------------------------------------


def test_measures_know_the_scene_they_are_given():
    scenes = shapes.random_scenes(8, Generator().manual_seed(3), pairs=0.0)
    drawn, _ = shapes.render(scenes, generator=Generator().manual_seed(4))
    other = [*scenes[1:], scenes[0]]
    assert semantic_guidance.agreement(scenes, drawn).mean() > 0.95
    assert semantic_guidance.agreement(other, drawn).mean() < 0.5
    assert semantic_guidance.misplacement(scenes, drawn).nanmean() < 0.1
    assert semantic_guidance.misplacement(other, drawn).nanmean() > 0.5
    assert semantic_guidance.misplacement(scenes, torch.randn(8, 3, 32, 32)).isnan().all()
    words = [f"a {s.thing.colour} {s.thing.shape}" for s in scenes]
    assert semantic_guidance.says(words, drawn).mean() > 0.9
    mirrored = semantic_guidance.palette_distance(drawn, drawn.flip(3))
    assert mirrored.max() < 1e-5 < 0.01 < semantic_guidance.palette_distance(drawn, -drawn).min()


@pytest.fixture
def guide(run, eye, pictures, tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = UNet(UNetConfig(channels=16, multipliers=(1, 2), blocks=1, groups=8))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    card = {"description": "tiny"}
    model = zoo.Diffusion(network.eval(), SCHEDULE, "v", (3, 8, 8), card=card)
    model.save(tmp_path / "model.safetensors")
    clip.save(eye, tmp_path / "eye.safetensors")
    to_pil(pictures[0]).resize((16, 16)).save(tmp_path / "picture.png")
    tables, draw = [], plot.rows
    monkeypatch.setattr(plot, "rows", lambda t, **o: tables.append(t) or draw(t, **o))
    monkeypatch.chdir(tmp_path)
    options = ["--model", "model.safetensors", "--encoder", str(run / "model.safetensors")]
    options += ["--clip", "eye.safetensors", "-n", "2", "--steps", "3", "--out", "out.png"]

    def call(*words):
        told = CliRunner().invoke(main, ["guide", "semantic", *map(str, words), *options])
        assert "Traceback" not in told.output
        return told, dict(tables[-1]) if tables else {}

    return call


def test_guide_semantic_adds_the_aims_up(guide):
    told, alone = guide("--structure", "picture.png")
    assert told.exit_code == 0, told.output
    assert [*alone] == ["structure\npicture.png", "unguided", "guided"]
    assert not torch.equal(alone["guided"], alone["unguided"])
    told, both = guide(
        "--structure", "picture.png", "--text", "a red star", "--weight", "text", 900
    )
    assert told.exit_code == 0 and "text 900" in told.output and '"a red star"' in told.output
    assert torch.equal(both["unguided"], alone["unguided"])
    assert not torch.equal(both["guided"], alone["guided"])
    _, none = guide("--structure", "picture.png", "--scale", 0)
    assert torch.equal(none["guided"], none["unguided"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected an aim"),
        (("--style", "picture.png", "--weight", "colour", 3), "--weight colour"),
        (("--style", "nothing.png"), "no picture at nothing.png"),
        (("--text", " "), "the text is empty"),
        (("--style", "picture.png", "--weight", "style", "nan"), "weight = nan"),
    ],
)
def test_guide_semantic_refuses_in_one_sentence(guide, words, said):
    told, _ = guide(*words)
    assert told.exit_code == 1 and said in told.output


def test_guide_semantic_refuses_an_encoder_of_another_schedule(guide):
    model = zoo.load("model.safetensors")
    model.schedule = NoiseSchedule.linear(500)
    model.save("model.safetensors")
    told, _ = guide("--style", "picture.png")
    assert told.exit_code == 1 and "on another schedule than the model's" in told.output
