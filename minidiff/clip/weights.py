"""Published CLIPs: OpenAI's archives, Hugging Face's folders, open_clip's checkpoints, and our own.

All become tensors under OpenAI's names, from which the sizes are read; what the weights do not tell
(heads, which GELU) comes from the configuration beside them.
"""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minidiff import checkpoint
from minidiff.clip.model import CLIP, CLIPConfig
from minidiff.clip.preprocess import Preprocess
from minidiff.data.hosts import data_root, fetch, locked, sha256_of
from minidiff.device import best_device
from minidiff.files import read_json

OPENAI = "https://openaipublic.azureedge.net/clip/models"
# The archives' SHA-256 and file names; the address is made of both.
ARCHIVES = {
    "RN50": ("afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", "RN50.pt"),
    "RN101": ("8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", "RN101.pt"),
    "RN50x4": ("7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd", "RN50x4.pt"),
    "RN50x16": ("52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa", "RN50x16.pt"),
    "RN50x64": ("be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c", "RN50x64.pt"),
    "ViT-B/32": ("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"),
    "ViT-B/16": ("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"),
    "ViT-L/14": ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"),
    "ViT-L/14@336px": (
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        "ViT-L-14-336px.pt",
    ),
}
SETTINGS = {"input_resolution", "context_length", "vocab_size", "attn_mask"}  # not weights

# Hugging Face's names of tensors and OpenAI's: every line that matches is applied, in this order.
NAMES = [
    (r"^vision_model\.embeddings\.patch_embedding", "visual.conv1"),
    (r"^vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm", "visual.ln_pre"),  # sic
    (r"^vision_model\.post_layernorm", "visual.ln_post"),
    (r"^vision_model\.encoder\.layers", "visual.transformer.resblocks"),
    (r"^visual_projection\.weight", "visual.proj"),
    (r"^text_model\.embeddings\.token_embedding", "token_embedding"),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.encoder\.layers", "transformer.resblocks"),
    (r"^text_model\.final_layer_norm", "ln_final"),
    (r"^text_projection\.weight", "text_projection"),
    (r"\.self_attn\.([qkv])_proj\.(weight|bias)$", r".attn.\1_\2"),  # three that OpenAI joins
    (r"\.self_attn\.out_proj", ".attn.out_proj"),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1", ".mlp.c_fc"),
    (r"\.mlp\.fc2", ".mlp.c_proj"),
]

# Options of their configurations of which our model covers these values; the first is the default.
HUGGING_FACE = {
    "model_type": ("clip", "clip_text_model", "clip_vision_model"),
    "hidden_act": ("quick_gelu", "gelu"),
    "layer_norm_eps": (1e-5,),
}
OPEN_CLIP = {
    "image": {
        "timm_model_name": (None,),
        "ls_init_value": (None,),
        "no_ln_pre": (False,),
        "final_ln_after_pool": (False,),
        "attentional_pool": (False,),
        "pool_type": ("tok",),
        "pos_embed_type": ("learnable",),
        "norm_kwargs": (None, {}),
        "act_kwargs": (None, {}),
    },
    "text": {
        "hf_model_name": (None,),
        "ls_init_value": (None,),
        "embed_cls": (False,),
        "no_causal_mask": (False,),
        "final_ln_after_pool": (False,),
        "pool_type": ("argmax",),
        "proj_bias": (False,),
        "proj_type": ("linear",),
        "norm_kwargs": (None, {}),
        "act_kwargs": (None, {}),
    },
    "preprocessing": {"resize_mode": ("shortest",), "interpolation": ("bicubic",)},
}


def available_models() -> list[str]:
    """The names that `load` knows: the small models that ship with minidiff, and OpenAI's."""
    return [*shipped(), *ARCHIVES]


def shipped() -> dict[str, Path]:
    """The small CLIPs that come with minidiff: name -> file."""
    found = checkpoint.shipped("clip")
    return {name.removeprefix("clip_"): file for name, file in found.items()}


def load(
    name_or_path: str | Path, device: str | torch.device | None = None
) -> tuple[CLIP, Preprocess]:
    """A trained CLIP, ready for use, and what turns PIL images into its input.

    Of one of `available_models()`, OpenAI's downloaded once; of a file, `.safetensors` of minidiff,
    open_clip or Hugging Face, or an archive of OpenAI's; of a folder, or an id of the Hugging Face
    hub ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K"), that holds such a file and its configuration. A
    file of open_clip's without its open_clip_config.json beside it is taken to have open_clip's
    defaults: GELU, not OpenAI's QuickGELU.

    The model computes in the precision that is fastest on its device, bfloat16 where the hardware
    has it; `model.float()` computes in float32. FileNotFoundError, or ValueError for a name nobody
    knows, a damaged or foreign file, and an option that our CLIP does not cover.
    """
    config, tensors = _read(name_or_path)
    with torch.device("meta"):
        model = CLIP(config)
    checkpoint.fill(model.to_empty(device="cpu"), tensors, str(name_or_path))
    model.fast = True
    return model.eval().to(device or best_device()), Preprocess(config)


def save(model: CLIP, path: str | Path, about: dict[str, Any] | None = None) -> None:
    """One file with the weights, their configuration, and whatever `about` says; for `load`."""
    _save(model.config, model.state_dict(), path, about or {})


def _save(config: CLIPConfig, tensors: dict[str, Tensor], path: str | Path, about: dict) -> None:
    checkpoint.save(path, tensors, {"kind": "clip", "clip": asdict(config), **about})


# --------------------------------------------------------------------------------- finding the file


def _read(source: str | Path) -> tuple[CLIPConfig, dict[str, Tensor]]:
    """The configuration and the tensors, under OpenAI's names, of whatever `load` is given."""
    name, path = str(source), Path(source)
    if name in (ours := shipped()):
        return read_file(ours[name])
    if name in ARCHIVES:
        return read_file(openai_file(name))
    if path.is_dir():
        return read_file(_weights_in(path))
    if path.is_file() and path.suffix == ".safetensors":
        return read_file(path)
    if path.is_file():
        return read_file(openai_file(_known_archive(path), path))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return read_file(_weights_in(_from_hub(name)))
    known = available_models()
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    raise ValueError(
        f"there is no model or file {name!r}: expected a path, a hub id or one of "
        f"{', '.join(near or known)}"
    )


def openai_file(name: str, archive: Path | None = None) -> Path:
    """One of OpenAI's models as safetensors in the cache, made from the archive, which is
    downloaded unless it is given."""
    sha256, filename = ARCHIVES[name]
    cached = (data_root() / "clip" / filename).with_suffix(".safetensors")
    if not cached.is_file():
        with locked(cached):
            if not cached.is_file():
                fetched = archive or fetch(
                    f"{OPENAI}/{sha256}/{filename}", cached.with_suffix(".pt"), sha256
                )
                tensors = _read_archive(fetched)
                _save(config_from(tensors), tensors, cached, {"source": name})
                if archive is None:
                    fetched.unlink()
    return cached


def _known_archive(path: Path) -> str:
    """Which of OpenAI's models a file is; ValueError if it is none, as pickles can run code."""
    found = sha256_of(path)
    for name, (sha256, _) in ARCHIVES.items():
        if found == sha256:
            return name
    raise ValueError(
        f"{path} is not read, as it may run code when it is opened: its SHA-256 {found} is none of "
        "OpenAI's archives; expected such an archive or a .safetensors file"
    )


def _read_archive(path: Path) -> dict[str, Tensor]:
    """The weights in a TorchScript archive whose hash has been checked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to drop TorchScript some day
        state = torch.jit.load(path, map_location="cpu").state_dict()
    return {name: tensor for name, tensor in state.items() if name not in SETTINGS}


def _from_hub(name: str) -> Path:
    """The folder of a hub id, downloaded once, without an account."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json"], token=False))
        # many repositories hold the same weights for open_clip and for Hugging Face
        for_open_clip = (folder / "open_clip_config.json").is_file()
        weights = "open_clip_*.safetensors" if for_open_clip else "model*.safetensors"
        return Path(snapshot_download(name, allow_patterns=["*.json", weights], token=False))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        near = difflib.get_close_matches(name, ARCHIVES, n=3, cutoff=0.4)
        raise FileNotFoundError(
            f"{name!r} is neither a file here nor one of {', '.join(near or ARCHIVES)}, and was "
            f"not fetched from the Hugging Face hub: {str(error).splitlines()[0]}"
        ) from error


def _weights_in(folder: Path) -> Path:
    """The file of weights in a folder, or the index of several."""
    for pattern in (
        "open_clip_*.safetensors",
        "model.safetensors",
        "*.index.json",
        "*.safetensors",
    ):
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise FileNotFoundError(f"there are no weights in {folder}: expected a .safetensors file")


# -------------------------------------------------------------------------------- reading the file


def read_file(path: Path) -> tuple[CLIPConfig, dict[str, Tensor]]:
    """Configuration and tensors of a .safetensors file, or of the index.json of several."""
    parts = [path]
    if path.suffix == ".json":
        parts = [path.parent / part for part in sorted(set(read_json(path)["weight_map"].values()))]
    tensors, about = {}, None
    for part in parts:
        try:
            with safe_open(part, framework="pt") as file:
                about = (file.metadata() or {}).get(checkpoint.KEY)
                tensors |= {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(f"{part} is not a whole safetensors file: {error}") from error
    if about is not None:
        described = json.loads(about)
        if described.get("kind") != "clip":
            raise ValueError(f"{path} holds a model of minidiff that is no CLIP")
        return CLIPConfig(**described["clip"]), tensors
    if "text_model.final_layer_norm.weight" in tensors:
        tensors = from_hugging_face(tensors)
        return _with_hugging_face_options(config_from(tensors), path.parent), tensors
    tensors = {
        name.removeprefix("text."): tensor
        for name, tensor in tensors.items()
        if name.removeprefix("text.") not in SETTINGS
    }
    return _with_open_clip_options(config_from(tensors), path.parent), tensors


def config_from(tensors: dict[str, Tensor]) -> CLIPConfig:
    """The sizes of a CLIP, read from its tensors under OpenAI's names; ValueError if it is none.

    The width of a head leaves no trace in them: it is taken to be 64, as everywhere but in
    open_clip's ViTs wider than 1024, which have 16 heads.
    """
    try:
        shape = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        text_width, embed = shape["text_projection"]
        context, _ = shape["positional_embedding"]
        vocabulary, _ = shape["token_embedding.weight"]
        if "visual.proj" in shape:
            width, _, _, patch = shape["visual.conv1.weight"]
            image = {
                "size": patch * round((shape["visual.positional_embedding"][0] - 1) ** 0.5),
                "patch": patch,
                "width": width,
                "layers": _count(shape, r"visual\.transformer\.resblocks\.(\d+)\."),
                "heads": width // 64 if width <= 1024 else 16,
                "hidden": shape["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
            }
        else:
            width = shape["visual.layer1.0.conv1.weight"][0]
            tokens, _ = shape["visual.attnpool.positional_embedding"]
            image = {
                "size": 32 * round((tokens - 1) ** 0.5),
                "width": width,
                "layers": tuple(_count(shape, rf"visual\.layer{i}\.(\d+)\.") for i in range(1, 5)),
                "heads": width // 2,
            }
        return CLIPConfig(
            **image,
            embed=embed,
            context=context,
            vocabulary=vocabulary,
            end=min(49407, vocabulary - 1),  # more may have been added after it
            text_width=text_width,
            text_layers=_count(shape, r"transformer\.resblocks\.(\d+)\."),
            text_heads=max(text_width // 64, 1),
            text_hidden=shape["transformer.resblocks.0.mlp.c_fc.weight"][0],
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"these weights are not those of a CLIP that is known: {error}") from error


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers stand at the pattern's (\\d+)."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def from_hugging_face(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a `CLIPModel` under OpenAI's names."""
    tensors = {}
    for name, tensor in theirs.items():
        if name.endswith(".position_ids"):  # numbers from 0 on, in old files
            continue
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        tensors[name] = tensor.T if name in ("visual.proj", "text_projection") else tensor
    for q in [name for name in tensors if ".attn.q_" in name]:
        parts = [q.replace(".q_", f".{part}_") for part in "qkv"]
        if all(part in tensors for part in parts):
            joined = torch.cat([tensors.pop(part) for part in parts])
            tensors[q.replace(".attn.q_", ".attn.in_proj_")] = joined
    return tensors


def _with_hugging_face_options(config: CLIPConfig, folder: Path) -> CLIPConfig:
    """What config.json and preprocessor_config.json add; an option they lack has its default."""
    options, pixels = (
        _options(folder / "config.json"),
        _options(folder / "preprocessor_config.json"),
    )
    image, text = options.get("vision_config") or {}, options.get("text_config") or {}
    for given in (options, image, text):
        _check_covered(given, HUGGING_FACE)
    acts = {given.get("hidden_act", "quick_gelu") for given in (image, text)}
    if len(acts) > 1:
        raise ValueError("images and texts with different hidden_act are not covered")
    if options:
        config = replace(
            config,
            heads=image.get("num_attention_heads", 12),
            text_heads=text.get("num_attention_heads", 8),
        )
    # configurations from before 2023 say 2 and mean the largest token
    end = text.get("eos_token_id", 2)
    return replace(
        config,
        end=config.end if end == 2 else end,
        quick_gelu=acts == {"quick_gelu"},
        mean=pixels.get("image_mean", config.mean),
        std=pixels.get("image_std", config.std),
    )


def _with_open_clip_options(config: CLIPConfig, folder: Path) -> CLIPConfig:
    """What open_clip_config.json adds; open_clip's defaults without it."""
    options = _options(folder / "open_clip_config.json")
    sizes, pixels = options.get("model_cfg", {}), options.get("preprocess_cfg", {})
    image, text = sizes.get("vision_cfg", {}), sizes.get("text_cfg", {})
    for given, kind in ((image, "image"), (text, "text"), (pixels, "preprocessing")):
        _check_covered(given, OPEN_CLIP[kind])
    features = config.width * 32 if config.is_resnet else config.width
    head = image.get("head_width", features // config.heads)
    return replace(
        config,
        heads=features // head,
        text_heads=text.get("heads", config.text_heads),
        quick_gelu=bool(sizes.get("quick_gelu", False)),
        mean=pixels.get("mean", config.mean),
        std=pixels.get("std", config.std),
    )


def _check_covered(given: dict[str, Any], covered: dict[str, tuple]) -> None:
    for option, values in covered.items():
        if given.get(option, values[0]) not in values:
            expected = " or ".join(map(repr, values))
            raise ValueError(f"{option} = {given[option]!r} is not covered: expected {expected}")


def _options(path: Path) -> dict[str, Any]:
    """The options in a file; none if it is not there."""
    return read_json(path) if path.is_file() else {}
