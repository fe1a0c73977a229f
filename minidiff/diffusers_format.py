"""Published checkpoints: folders of diffusers' UNet2DModel, read into our UNet and written from it.

A folder holds config.json and diffusion_pytorch_model.safetensors, itself or in unet/, and may hold
scheduler_config.json, itself or in scheduler/.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minidiff import checkpoint
from minidiff.files import atomic, read_json
from minidiff.schedule import NoiseSchedule
from minidiff.unet import UNet, UNetConfig

CONFIG, SCHEDULER = "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"

# Our names of tensors and theirs: every line that matches is applied, in this order.
NAMES = [
    (r"^time\.linear(\d)", r"time_embedding.linear_\1"),
    (r"^labels", r"class_embedding"),
    (r"^stem", r"conv_in"),
    (r"^norm", r"conv_norm_out"),
    (r"^head", r"conv_out"),
    (r"^(down|up)\.(\d+)\.(\d+)\.residual", r"\1_blocks.\2.resnets.\3"),
    (r"^(down|up)\.(\d+)\.(\d+)\.self_attention", r"\1_blocks.\2.attentions.\3"),
    (r"^(down|up)\.(\d+)\.\d+\.conv", r"\1_blocks.\2.\1samplers.0.conv"),
    (r"^mid\.(\d)\.residual", r"mid_block.resnets.\1"),
    (r"^mid\.0\.self_attention", r"mid_block.attentions.0"),
    (r"(resnets\.\d+)\.time", r"\1.time_emb_proj"),
    (r"(resnets\.\d+)\.skip", r"\1.conv_shortcut"),
    (r"(attentions\.\d+)\.norm", r"\1.group_norm"),
    (r"(attentions\.\d+)\.out", r"\1.to_out.0"),  # qkv is to_q, to_k and to_v, see `their_names`
]
# Attention's names before diffusers 0.14, which google/ddpm-cifar10-32 and many others still have.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}

# What diffusers assumes of the options that a folder leaves out.
DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", *3 * ("AttnDownBlock2D",)),
    "up_block_types": (*3 * ("AttnUpBlock2D",), "UpBlock2D"),
    "attention_head_dim": 8,
    "num_class_embeds": None,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "time_embedding_dim": None,
}
# Options of which our UNet covers these values; the first is what diffusers assumes.
COVERED: dict[str, tuple] = {
    "_class_name": ("UNet2DModel",),
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "class_embed_type": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_padding": (1, 0),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
}


def read(folder: str | Path) -> tuple[UNet, NoiseSchedule, str]:
    """The network of a published folder, its schedule, and what it predicts: "eps", "x0" or "v".

    Without a scheduler_config.json: DDPM's linear schedule and "eps". Class labels are read as they
    are stored; a null label, if its authors trained one, is one of them. FileNotFoundError, or
    ValueError for a damaged file and for an option that our UNet does not cover, naming it.
    """
    folder = Path(folder)
    home = _home(folder)
    network = UNet(config_from(read_json(home / CONFIG)))
    if not (home / WEIGHTS).is_file():
        raise FileNotFoundError(f"there is no {WEIGHTS} in {home}: no other format is read")
    try:
        theirs = load_file(home / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{home / WEIGHTS} is not a whole safetensors file: {error}") from error
    checkpoint.fill(network, tensors_from(theirs, network), str(home / WEIGHTS))
    network.eval()

    for path in (folder / "scheduler" / SCHEDULER, folder / SCHEDULER):
        if path.is_file():
            return network, *schedule_from(read_json(path))
    return network, NoiseSchedule.linear(), "eps"


def image_size(folder: str | Path) -> int:
    """The side in pixels of the images a published network was trained on; 32 if it is not said."""
    size = read_json(_home(Path(folder)) / CONFIG).get("sample_size") or 32
    return int(max(size) if isinstance(size, list) else size)


def write(
    network: UNet,
    schedule: NoiseSchedule,
    predicts: str,
    folder: str | Path,
    *,
    size: int | None = None,
) -> None:
    """A folder that diffusers loads, `UNet2DModel` and `DDIMScheduler.from_pretrained(folder)`.

    `size` is the side of the images in pixels, which diffusers' pipelines want to know. ValueError
    for what a UNet2DModel cannot do: tokens, vectors, patches. OSError if a file cannot be written.
    """
    config = config_to(network.config) | {"sample_size": size}
    scheduler = schedule_to(schedule, predicts)
    folder = Path(folder)
    checkpoint.save(folder / WEIGHTS, tensors_to(network), {"predicts": predicts})
    _write_json(folder / CONFIG, config)
    _write_json(folder / SCHEDULER, scheduler)


def config_from(config: dict[str, Any]) -> UNetConfig:
    """Our configuration of a config.json; ValueError naming the first option we do not cover."""
    o = DEFAULTS | {option: values[0] for option, values in COVERED.items()} | config
    for option, values in COVERED.items():
        if o[option] not in values:
            raise _not_covered(option, o[option], " or ".join(map(repr, values)))

    widths, down, up = o["block_out_channels"], o["down_block_types"], o["up_block_types"]
    for name in down:
        if name not in ("DownBlock2D", "AttnDownBlock2D"):
            raise _not_covered("down_block_types", name, "DownBlock2D or AttnDownBlock2D")
    mirrored = [name.replace("Down", "Up") for name in reversed(down)]
    if list(up) != mirrored:
        raise _not_covered("up_block_types", up, f"the way down mirrored, {mirrored}")
    if any(width % widths[0] for width in widths):
        raise _not_covered("block_out_channels", widths, "multiples of the first")
    if o["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise _not_covered("time_embedding_dim", o["time_embedding_dim"], f"{4 * widths[0]}")
    # the middle attention has no normalisation where time scales, unless its groups are named
    groups, scale_shift = o["norm_num_groups"], o["resnet_time_scale_shift"] == "scale_shift"
    if o["attn_norm_num_groups"] not in ((groups,) if scale_shift else (groups, None)):
        raise _not_covered("attn_norm_num_groups", o["attn_norm_num_groups"], f"{groups}")

    return UNetConfig(
        in_channels=o["in_channels"],
        out_channels=o["out_channels"],
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=o["layers_per_block"],
        attention=tuple(i for i, name in enumerate(down) if name.startswith("Attn")),
        head_dim=o["attention_head_dim"],
        classes=o["num_class_embeds"] or 0,
        null_class=False,
        groups=groups,
        norm_eps=o["norm_eps"],
        dropout=o["dropout"],
        scale_shift=scale_shift,
        cosine_first=o["flip_sin_to_cos"],
        frequency_shift=o["freq_shift"],
        pad_both_sides=o["downsample_padding"] == 1,
    )


def config_to(c: UNetConfig) -> dict[str, Any]:
    """The config.json of our configuration; ValueError for tokens, vectors and patches."""
    if c.context_dim or c.vector_dim or c.patch > 1:
        raise ValueError("diffusers' UNet2DModel has no tokens, no vectors and no patches")
    down = [
        "AttnDownBlock2D" if i in c.attention else "DownBlock2D" for i in range(len(c.multipliers))
    ]
    return {
        "_class_name": "UNet2DModel",
        "in_channels": c.in_channels,
        "out_channels": c.out_channels,
        "block_out_channels": [c.channels * m for m in c.multipliers],
        "layers_per_block": c.blocks,
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "attention_head_dim": c.head_dim,
        "num_class_embeds": c.classes + c.null_class if c.classes else None,
        "norm_num_groups": c.groups,
        "attn_norm_num_groups": c.groups,
        "norm_eps": c.norm_eps,
        "dropout": c.dropout,
        "resnet_time_scale_shift": "scale_shift" if c.scale_shift else "default",
        "flip_sin_to_cos": c.cosine_first,
        "freq_shift": c.frequency_shift,
        "downsample_padding": 1 if c.pad_both_sides else 0,
    }


def schedule_from(config: dict[str, Any]) -> tuple[NoiseSchedule, str]:
    """The schedule of a scheduler_config.json and what its network predicts."""
    predicts = config.get("prediction_type", "epsilon")
    if predicts not in PREDICTS:
        raise _not_covered("prediction_type", predicts, " or ".join(PREDICTS))
    if config.get("rescale_betas_zero_snr"):
        raise _not_covered("rescale_betas_zero_snr", True, "False")
    T = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    kind = config.get("beta_schedule")
    if config.get("trained_betas") is not None:
        schedule = NoiseSchedule.from_betas(config["trained_betas"])
    elif kind == "linear":
        schedule = NoiseSchedule.linear(T, start, end)
    elif kind == "scaled_linear":
        roots = torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64)
        schedule = NoiseSchedule.from_betas(roots**2)
    elif kind == "squaredcos_cap_v2":
        schedule = NoiseSchedule.cosine(T)
    else:
        raise _not_covered("beta_schedule", kind, "linear, scaled_linear or squaredcos_cap_v2")
    return schedule, PREDICTS[predicts]


def schedule_to(schedule: NoiseSchedule, predicts: str) -> dict[str, Any]:
    """The scheduler_config.json of a schedule: its betas, and sampling as ours, unclipped."""
    theirs = {ours: name for name, ours in PREDICTS.items()}
    if predicts not in theirs:
        raise ValueError(f"unknown prediction {predicts!r}: expected one of {', '.join(theirs)}")
    betas = 1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": schedule.T,
        "trained_betas": betas.tolist(),
        "prediction_type": theirs[predicts],
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }


def their_names(ours: str) -> list[str]:
    """What diffusers calls our tensor: one name, or three that ours holds one after the other."""
    for pattern, name in NAMES:
        ours = re.sub(pattern, name, ours)
    return [ours.replace(".qkv.", f".to_{part}.") for part in "qkv"] if ".qkv." in ours else [ours]


def tensors_from(theirs: dict[str, Tensor], network: UNet) -> dict[str, Tensor]:
    """Our tensors from diffusers'; ValueError if some are missing or left over."""
    theirs = {_present_name(name): tensor for name, tensor in theirs.items()}
    wanted = {name: their_names(name) for name in network.state_dict()}
    names = {name for group in wanted.values() for name in group}
    missing, foreign = sorted(names - theirs.keys()), sorted(theirs.keys() - names)
    if missing or foreign:
        raise ValueError(
            f"these weights do not fit their config.json: {len(missing)} tensors are missing "
            f"{missing[:2]}, {len(foreign)} are left over {foreign[:2]}"
        )
    tensors = {}
    for name, ours in network.state_dict().items():
        joined = torch.cat([theirs[part] for part in wanted[name]])
        if ours.ndim == 4 and joined.ndim == 2:  # a linear map of pixels is a 1x1 convolution
            joined = joined[:, :, None, None]
        tensors[name] = joined
    return tensors


def tensors_to(network: UNet) -> dict[str, Tensor]:
    """diffusers' tensors from ours."""
    tensors = {}
    for name, ours in network.state_dict().items():
        names = their_names(name)
        if "self_attention" in name and ours.ndim == 4:
            ours = ours[:, :, 0, 0]
        tensors |= zip(names, ours.chunk(len(names)), strict=True)
    return tensors


def _home(folder: Path) -> Path:
    return folder / "unet" if (folder / "unet" / CONFIG).is_file() else folder


def _present_name(name: str) -> str:
    return ".".join(OLD_NAMES.get(part, part) for part in name.split("."))


def _not_covered(option: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{option} = {value!r} is not covered: expected {expected}")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
