"""Published UNet2DModel folders, read and written, against diffusers itself."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from minidiff import diffusers_format
from minidiff.condition import Condition
from minidiff.diffusers_format import CONFIG, SCHEDULER, WEIGHTS, config_from, read, write
from minidiff.schedule import NoiseSchedule
from minidiff.unet import UNet, UNetConfig

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()

CIFAR = {  # google/ddpm-cifar10-32
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "act_fn": "silu",
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "mid_block_scale_factor": 1,
}
SMALL = CIFAR | {"block_out_channels": [32, 64, 64, 64]}
CELEBA = CIFAR | {  # google/ddpm-celebahq-256, a quarter of the channels
    "sample_size": 256,
    "block_out_channels": [32, 32, 64, 64, 128, 128],
    "down_block_types": [*4 * ["DownBlock2D"], "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *4 * ["UpBlock2D"]],
}
BUTTERFLIES = {  # as Hugging Face's course trains one, with labels, at a quarter of the channels
    "sample_size": 32,
    "block_out_channels": [32, 32, 64, 128],
    "down_block_types": [*2 * ["DownBlock2D"], *2 * ["AttnDownBlock2D"]],
    "up_block_types": [*2 * ["AttnUpBlock2D"], *2 * ["UpBlock2D"]],
    "num_class_embeds": 5,
}
SCALED = BUTTERFLIES | {
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
    "in_channels": 4,
    "out_channels": 6,
    "layers_per_block": 1,
}


def published(config, folder):
    """A UNet2DModel with every parameter random, saved as its authors would."""
    torch.manual_seed(1)
    model = diffusers.UNet2DModel(**config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(std=p[0].numel() ** -0.5)
            else:
                p.normal_(mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.3)
    model.save_pretrained(folder)
    return model


def inputs(config, size):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, config.get("in_channels", 3), size, size, generator=generator)
    t = torch.tensor([3, 871])
    return x, t, torch.tensor([4, 0]) if config.get("num_class_embeds") else None


def difference(model, network, config, size):
    """The largest difference of the two outputs, relative to the outputs' size."""
    x, t, labels = inputs(config, size)
    with torch.no_grad():
        theirs, ours = model(x, t, labels).sample, network(x, t, Condition(label=labels))
    return ((theirs - ours).abs().max() / theirs.std()).item()


@pytest.mark.parametrize(
    ("config", "size"),
    [(CIFAR, 16), (CELEBA, 64), (BUTTERFLIES, 32), (SCALED, 16)],
    ids=["cifar10", "celebahq", "butterflies", "scale_shift"],
)
def test_output_equals_diffusers_both_ways(config, size, tmp_path):
    model = published(config, tmp_path / "theirs")
    network, schedule, predicts = read(tmp_path / "theirs")
    assert difference(model, network, config, size) < 2e-5  # AVX2: 1.003e-5
    assert not network.training and predicts == "eps"
    assert schedule == NoiseSchedule.linear()

    write(network, schedule, predicts, tmp_path / "ours", size=config["sample_size"])
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours").eval()
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert difference(again, network, config, size) < 2e-5  # AVX2: 1.003e-5
    assert again.config.sample_size == config["sample_size"]


def test_cifar10_configuration_is_ddpms():
    assert config_from(CIFAR) == replace(UNetConfig(), dropout=0.0, null_class=False)


def swap_query_and_key(network):
    q, k, v = network.mid[0].self_attention.qkv.weight.data.chunk(3)
    network.mid[0].self_attention.qkv.weight.data = torch.cat([k, q, v])


MUTANTS = {
    "eps": {"norm_eps": 1e-3},
    "padding": {"downsample_padding": 1},
    "sine and cosine": {"flip_sin_to_cos": True},
    "frequencies": {"freq_shift": 0},
    "heads": {"attention_head_dim": 8},
}


@pytest.mark.parametrize("wrong", MUTANTS)
def test_a_wrong_option_is_seen(wrong, tmp_path):
    model = published(SMALL, tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(SMALL | MUTANTS[wrong]))
    network, _, _ = read(tmp_path)
    assert difference(model, network, SMALL, 16) > 1e-4


def test_swapped_query_and_key_are_seen(tmp_path):
    model = published(SMALL, tmp_path)
    network, _, _ = read(tmp_path)
    assert difference(model, network, SMALL, 16) < 1e-5
    # softmax(k^T q) is the transpose of softmax's argument: with biases and norms it must differ
    swap_query_and_key(network)
    assert difference(model, network, SMALL, 16) > 1e-4


def test_the_old_names_of_attention_are_read(tmp_path):
    model = published(SMALL, tmp_path)
    old = {new: old for old, new in diffusers_format.OLD_NAMES.items()}
    tensors = load_file(tmp_path / WEIGHTS)
    renamed = {}
    for name, tensor in tensors.items():
        for present, before in old.items():
            name = name.replace(f".{present}.", f".{before}.")
        renamed[name] = tensor
    assert "mid_block.attentions.0.proj_attn.weight" in renamed
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / WEIGHTS)
    network, _, _ = read(tmp_path)
    assert difference(model, network, SMALL, 16) < 1e-5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"beta_schedule": "linear"}, NoiseSchedule.linear()),
        ({"beta_schedule": "squaredcos_cap_v2"}, NoiseSchedule.cosine()),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, None),
        ({"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3}, None),
    ],
)
@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])
def test_schedules_equal_diffusers(options, expected, scheduler, tmp_path):
    theirs = getattr(diffusers, scheduler)(prediction_type="v_prediction", **options)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / SCHEDULER).read_text())
    schedule, predicts = diffusers_format.schedule_from(config)
    assert predicts == "v"
    torch.testing.assert_close(
        schedule.alpha_bar[1:].float(), theirs.alphas_cumprod, atol=1e-6, rtol=1e-4
    )
    if expected is not None:
        assert torch.equal(schedule.alpha_bar, expected.alpha_bar)


def test_a_pipeline_folder_with_its_scheduler_is_read(tmp_path):
    model = published(SMALL, tmp_path / "unet")
    theirs = diffusers.DDPMScheduler(
        500, beta_schedule="squaredcos_cap_v2", prediction_type="sample"
    )
    theirs.save_pretrained(tmp_path / "scheduler")
    network, schedule, predicts = read(tmp_path)
    assert (schedule.T, predicts) == (500, "x0")
    assert difference(model, network, SMALL, 16) < 1e-5


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_diffusers_samples_what_we_wrote_as_we_do(predicts, tmp_path):
    from minidiff.denoiser import as_denoiser
    from minidiff.samplers import ddim_step, sample

    torch.manual_seed(3)
    config = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(1,), classes=3)
    network, schedule = UNet(config).eval(), NoiseSchedule.cosine(200)
    torch.nn.init.normal_(network.head.weight, std=0.02)
    write(network, schedule, predicts, tmp_path, size=8)
    back, schedule_back, predicts_back = read(tmp_path)
    assert predicts_back == predicts
    torch.testing.assert_close(schedule_back.alpha_bar, schedule.alpha_bar, rtol=1e-9, atol=0)
    assert back.config == replace(config, classes=4, null_class=False)

    model = diffusers.UNet2DModel.from_pretrained(tmp_path).eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(5)
    x = noise = torch.randn(2, 3, 8, 8)
    labels = torch.tensor([1, 3])
    denoise = as_denoiser(network, Condition(label=labels), predicts=predicts)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t, labels).sample, t, x).prev_sample
    ours = sample(ddim_step, denoise, noise, schedule.path(5))
    torch.testing.assert_close(x, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name"),
        ({"down_block_types": ["SkipDownBlock2D"] * 4}, "SkipDownBlock2D"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types"),
        ({"downsample_type": "resnet"}, "downsample_type"),
        ({"upsample_type": "resnet"}, "upsample_type"),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups"),
        ({"attn_norm_num_groups": 16}, "attn_norm_num_groups"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"time_embedding_dim": 100}, "time_embedding_dim"),
        ({"class_embed_type": "identity"}, "class_embed_type"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"mid_block_type": None}, "mid_block_type"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor"),
        ({"add_attention": False}, "add_attention"),
        ({"center_input_sample": True}, "center_input_sample"),
        ({"downsample_padding": 2}, "downsample_padding"),
        ({"block_out_channels": [64, 96, 128, 128]}, "block_out_channels"),
    ],
)
def test_options_that_are_not_covered_are_named(options, named):
    with pytest.raises(ValueError, match=named) as error:
        config_from(SMALL | options)
    assert "\n" not in str(error.value) and "expected" in str(error.value)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "beta_schedule"),
        ({"beta_schedule": "linear", "prediction_type": "flow"}, "prediction_type"),
        ({"beta_schedule": "linear", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_schedules_that_are_not_covered_are_named(config, named):
    with pytest.raises(ValueError, match=named):
        diffusers_format.schedule_from(config)


def test_damaged_and_foreign_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        read(tmp_path)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read(tmp_path)
    (tmp_path / CONFIG).write_text("[]")
    with pytest.raises(ValueError, match="JSON object"):
        read(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(SMALL))
    with pytest.raises(FileNotFoundError, match=WEIGHTS):
        read(tmp_path)
    published(SMALL, tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(whole)
    (tmp_path / CONFIG).write_text(json.dumps(SMALL | {"layers_per_block": 1}))
    with pytest.raises(ValueError, match="left over"):
        read(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(SMALL | {"in_channels": 4}))
    with pytest.raises(ValueError, match="another shape"):
        read(tmp_path)


@pytest.mark.parametrize(("size", "pixels"), [(48, 48), ([64, 64], 64), (None, 32)])
def test_image_size_is_read_from_the_configuration(size, pixels, tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps(SMALL | {"sample_size": size}))
    assert diffusers_format.image_size(tmp_path) == pixels


def test_what_a_unet2dmodel_cannot_be_is_not_written(tmp_path):
    tiny = UNetConfig(channels=32, multipliers=(1,), blocks=1, attention=())
    linear = NoiseSchedule.linear()
    for options in ({"context_dim": 8}, {"vector_dim": 8}, {"patch": 2}):
        with pytest.raises(ValueError, match="has no tokens, no vectors and no patches"):
            write(UNet(replace(tiny, **options)), linear, "eps", tmp_path / "x")
    for predicts in ("noise", "flow"):
        with pytest.raises(ValueError, match="unknown prediction .*: expected one of eps, x0, v"):
            write(UNet(tiny), linear, predicts, tmp_path / "x")
    with pytest.raises(ValueError, match="belongs to variance-preserving schedules"):
        write(UNet(tiny), NoiseSchedule.flow(), "v", tmp_path / "x")
    assert not (tmp_path / "x").exists()
