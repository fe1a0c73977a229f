"""Published CLIPs: every format, sizes read from weights, and files that are not to be trusted."""

import hashlib
import json
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minidiff import checkpoint, clip
from minidiff.clip import CLIP, CLIPConfig, weights

VIT = CLIPConfig(
    embed=16,
    size=32,
    patch=8,
    width=64,
    layers=2,
    heads=1,
    hidden=256,
    context=12,
    vocabulary=40,
    end=39,
    text_width=64,
    text_layers=3,
    text_heads=1,
    text_hidden=256,
)
RESNET = replace(VIT, size=64, patch=32, width=8, layers=(1, 2, 1, 1), heads=4, hidden=None)


def randomised(config: CLIPConfig) -> CLIP:
    torch.manual_seed(0)
    model = CLIP(config)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return model.eval()


@torch.no_grad()
def embeddings(model: CLIP) -> torch.Tensor:
    """One number after another of an image's and a text's embedding."""
    generator = torch.Generator().manual_seed(0)
    size = model.config.size
    image = model.encode_image(torch.randn(2, 3, size, size, generator=generator))
    text = torch.randint(model.config.vocabulary, (2, 12), generator=generator)
    return torch.cat([image, model.encode_text(text)]).flatten()


def loads_as(path, model: CLIP) -> bool:
    """Whether `clip.load(path)` gives the same embeddings, to the bit, with the same sizes."""
    found, preprocess = clip.load(path, "cpu")
    assert found.config == preprocess.config == model.config
    assert found.fast and not found.training and found.dtype == torch.float32
    return torch.equal(embeddings(found.float()), embeddings(model))


# ------------------------------------------------------------------------------ OpenAI's archives


class Scripted(nn.Module):
    """A tree of modules that holds tensors under given names, as TorchScript can write it."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        for name in {name.split(".")[0] for name in tensors}:
            if name in tensors:
                self.register_buffer(name, tensors[name])
            else:
                inside = {
                    n.removeprefix(f"{name}."): t
                    for n, t in tensors.items()
                    if n.startswith(f"{name}.")
                }
                self.add_module(name, Scripted(inside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def archive(model: CLIP, path: Path) -> str:
    """Write the model as OpenAI's archives are, in half precision; returns the SHA-256."""
    c = model.config
    halved = {
        name: t.half() if t.ndim > 1 and "ln_" not in name else t
        for name, t in model.state_dict().items()
    }
    settings = {
        "input_resolution": torch.tensor(c.size),
        "context_length": torch.tensor(c.context),
        "vocab_size": torch.tensor(c.vocabulary),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        torch.jit.script(Scripted(halved | settings)).save(path)
    model.load_state_dict({name: t.float() for name, t in halved.items()})
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder of data."""
    monkeypatch.setenv("MINIDIFF_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clip"


@pytest.fixture
def openai(tmp_path, monkeypatch):
    """A server that takes OpenAI's place; `.asked` counts, `.folder` is what it serves."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked += 1
            sha256, name = self.path.split("/")[1:]
            content = (folder / name).read_bytes()
            assert len(sha256) == 64
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.asked, server.folder = 0, folder
    server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(weights, "OPENAI", server.url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_an_openai_archive_goes_the_whole_way(config, openai, cache, monkeypatch):
    model = randomised(config)
    sha256 = archive(model, openai.folder / "ViT-B-32.pt")
    monkeypatch.setitem(weights.ARCHIVES, "ViT-B/32", (sha256, "ViT-B-32.pt"))
    assert loads_as("ViT-B/32", model)
    assert [p.name for p in cache.iterdir() if p.suffix != ".lock"] == ["ViT-B-32.safetensors"]
    # the precision is kept: half of what float32 would take
    kept = load_file(cache / "ViT-B-32.safetensors")
    assert kept["text_projection"].dtype == torch.float16
    # from then on nothing is downloaded, and TorchScript is not needed
    monkeypatch.setattr(torch.jit, "load", None)
    assert loads_as("ViT-B/32", model)
    assert openai.asked == 1


def test_an_archive_with_a_flipped_byte_is_never_opened(openai, cache, monkeypatch):
    path = openai.folder / "RN50.pt"
    monkeypatch.setitem(weights.ARCHIVES, "RN50", (archive(randomised(RESNET), path), "RN50.pt"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    opened = []
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: opened.append(a))
    with pytest.raises(ValueError, match="RN50.pt has the SHA-256 .*: refused"):
        clip.load("RN50", "cpu")
    with pytest.raises(ValueError, match="may run code .* is none of OpenAI's archives"):
        clip.load(path, "cpu")
    assert not opened
    assert [p.name for p in cache.iterdir() if p.suffix != ".lock"] == []


def test_an_archive_that_is_here_is_recognised_by_its_hash(openai, cache, tmp_path, monkeypatch):
    model = randomised(VIT)
    path = tmp_path / "renamed.bin"
    monkeypatch.setitem(weights.ARCHIVES, "ViT-B/16", (archive(model, path), "ViT-B-16.pt"))
    assert loads_as(path, model)
    assert loads_as("ViT-B/16", model)
    assert openai.asked == 0
    assert path.is_file()


def test_a_pickle_is_refused(tmp_path):
    torch.save(randomised(VIT).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="expected such an archive or a .safetensors file"):
        clip.load(tmp_path / "model.pt")


def test_of_two_at_once_one_downloads(openai, cache, monkeypatch):
    """Threads, whose locks are as separate as those of processes."""
    model = randomised(VIT)
    sha256 = archive(model, openai.folder / "ViT-B-32.pt")
    monkeypatch.setitem(weights.ARCHIVES, "ViT-B/32", (sha256, "ViT-B-32.pt"))
    with ThreadPoolExecutor() as pool:
        loaded = [pool.submit(clip.load, "ViT-B/32", "cpu") for _ in range(2)]
    for found, _ in (future.result() for future in loaded):
        assert torch.equal(embeddings(found.float()), embeddings(model))
    assert openai.asked == 1


def test_the_archives_are_the_nine_published_ones():
    open_clip = pytest.importorskip("open_clip")
    assert set(weights.ARCHIVES) <= set(clip.available_models())  # and those that ship
    assert len(weights.ARCHIVES) == 9
    for name, (sha256, filename) in weights.ARCHIVES.items():
        theirs = {"ViT-L/14@336px": "ViT-L-14-336"}.get(name, name.replace("/", "-"))
        expected = open_clip.pretrained.get_pretrained_url(theirs, "openai")
        assert f"{weights.OPENAI}/{sha256}/{filename}" == expected


# --------------------------------------------------------------------------------- safetensors


def test_our_own_files_say_everything(tmp_path):
    odd = replace(VIT, heads=8, text_heads=2, quick_gelu=False, end=7, mean=(0.5, 0.4, 0.3))
    model = randomised(odd)
    clip.save(model, tmp_path / "small.safetensors", {"card": {"description": "small"}})
    assert loads_as(tmp_path / "small.safetensors", model)
    about = checkpoint.about(tmp_path / "small.safetensors")
    assert about == {
        "kind": "clip",
        "clip": json.loads(json.dumps(asdict(odd))),
        "card": {"description": "small"},
    }


def open_clip_file(config: CLIPConfig, path: Path, prefix: str = "") -> CLIP:
    model = randomised(config)
    tensors = model.state_dict()
    save_file({_prefixed(name, prefix): t for name, t in tensors.items()}, path)
    return model


def _prefixed(name: str, prefix: str) -> str:
    return name if name.startswith("visual.") or name == "logit_scale" else prefix + name


@pytest.mark.parametrize("prefix", ["", "text."])
def test_open_clip_files_alone_have_its_defaults(prefix, tmp_path):
    for config in (VIT, RESNET):
        config = replace(config, quick_gelu=False)
        model = open_clip_file(config, tmp_path / "a.safetensors", prefix)
        assert loads_as(tmp_path / "a.safetensors", model)


def test_open_clip_folders_say_what_weights_do_not(tmp_path):
    config = replace(VIT, heads=4, text_heads=8, mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    model = open_clip_file(config, tmp_path / "open_clip_model.safetensors")
    options = {
        "model_cfg": {
            "quick_gelu": True,
            "vision_cfg": {"head_width": 16, "layers": 2},
            "text_cfg": {"heads": 8, "hf_tokenizer_name": "the same one"},
        },
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "resize_mode": "shortest"},
    }
    written = tmp_path / "open_clip_config.json"
    written.write_text(json.dumps(options))
    assert loads_as(tmp_path, model)
    for place, option, value in [
        ("vision_cfg", "no_ln_pre", True),
        ("text_cfg", "pool_type", "last"),
        ("vision_cfg", "timm_model_name", "vit_base_patch16_siglip_224"),
    ]:
        changed = json.loads(json.dumps(options))
        changed["model_cfg"][place][option] = value
        written.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"^{option} = {value!r} is not covered: expected "):
            clip.load(tmp_path)


def hugging_face_tensors(model: CLIP) -> dict[str, torch.Tensor]:
    """The model's tensors under transformers' names, written out one by one."""
    ours, theirs = dict(model.state_dict()), {}
    theirs["logit_scale"] = ours["logit_scale"]
    for tower, at, layers in (
        ("vision_model", "visual.", model.config.layers),
        ("text_model", "", model.config.text_layers),
    ):
        for i in range(layers):
            block = f"{at}transformer.resblocks.{i}"
            layer = f"{tower}.encoder.layers.{i}"
            for kind in ("weight", "bias"):
                qkv = ours[f"{block}.attn.in_proj_{kind}"].chunk(3)
                for part, tensor in zip("qkv", qkv, strict=True):
                    theirs[f"{layer}.self_attn.{part}_proj.{kind}"] = tensor.clone()
                for a, b in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ):
                    theirs[f"{layer}.{b}.{kind}"] = ours[f"{block}.{a}.{kind}"]
    for a, b in (
        ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("visual.ln_pre.weight", "vision_model.pre_layrnorm.weight"),
        ("visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
        ("visual.ln_post.weight", "vision_model.post_layernorm.weight"),
        ("visual.ln_post.bias", "vision_model.post_layernorm.bias"),
        ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("ln_final.weight", "text_model.final_layer_norm.weight"),
        ("ln_final.bias", "text_model.final_layer_norm.bias"),
    ):
        theirs[b] = ours[a]
    theirs["visual_projection.weight"] = ours["visual.proj"].T.contiguous()
    theirs["text_projection.weight"] = ours["text_projection"].T.contiguous()
    theirs["text_model.embeddings.position_ids"] = torch.arange(12)[None]  # in old files
    return theirs


def test_hugging_face_folders_whole_and_in_shards(tmp_path):
    config = replace(VIT, heads=4, text_heads=2, quick_gelu=False, end=5, std=(1, 2, 3))
    model = randomised(config)
    options = {
        "model_type": "clip",
        "vision_config": {"num_attention_heads": 4, "hidden_act": "gelu"},
        "text_config": {"num_attention_heads": 2, "hidden_act": "gelu", "eos_token_id": 5},
    }
    (tmp_path / "config.json").write_text(json.dumps(options))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_std": [1, 2, 3]}))
    tensors = hugging_face_tensors(model)
    save_file(tensors, tmp_path / "model.safetensors")
    assert loads_as(tmp_path, model)
    assert loads_as(tmp_path / "model.safetensors", model)

    (tmp_path / "model.safetensors").unlink()
    where = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for part in set(where.values()):
        save_file({n: t for n, t in tensors.items() if where[n] == part}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert loads_as(tmp_path, model)

    options["text_config"]["hidden_act"] = "quick_gelu"
    (tmp_path / "config.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match="different hidden_act are not covered"):
        clip.load(tmp_path)
    options["text_config"]["hidden_act"] = "relu"
    (tmp_path / "config.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match="hidden_act = 'relu' is not covered: expected 'quick_g"):
        clip.load(tmp_path)


def test_old_hugging_face_configurations_mean_the_largest_token(tmp_path):
    model = randomised(replace(VIT, heads=4, text_heads=8))
    save_file(hugging_face_tensors(model), tmp_path / "model.safetensors")
    options = {"vision_config": {"num_attention_heads": 4}, "text_config": {"eos_token_id": 2}}
    (tmp_path / "config.json").write_text(json.dumps(options))
    assert loads_as(tmp_path, model)


def test_a_hub_id_fetches_what_is_needed(tmp_path, monkeypatch):
    import huggingface_hub

    model = randomised(VIT)
    asked = []

    def snapshot_download(name, allow_patterns, token):
        asked.append((name, allow_patterns, token))
        if len(asked) == 1:
            (tmp_path / "config.json").write_text(
                '{"vision_config": {"num_attention_heads": 1},'
                ' "text_config": {"num_attention_heads": 1}}'
            )
        else:
            save_file(hugging_face_tensors(model), tmp_path / "model.safetensors")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert loads_as("some/clip", model)
    assert [patterns for _, patterns, _ in asked] == [["*.json"], ["*.json", "model*.safetensors"]]
    (tmp_path / "open_clip_config.json").write_text("{}")
    clip.load("some/clip")
    assert asked[-1] == ("some/clip", ["*.json", "open_clip_*.safetensors"], False)


# ------------------------------------------------------------------------- sizes from the weights


def sizes_are_read(name: str) -> bool:
    """Whether a plain CLIP of open_clip's is recognised; False for one our model does not cover."""
    import open_clip
    from open_clip.model import CLIP as TheirCLIP

    config = open_clip.get_model_config(name)
    config.pop("custom_text", None)
    image, text = config["vision_cfg"], config["text_cfg"]
    try:
        weights._check_covered(image, weights.OPEN_CLIP["image"])
        weights._check_covered(text, weights.OPEN_CLIP["text"])
    except ValueError:
        return False
    with torch.device("meta"):
        theirs = TheirCLIP(**config).state_dict()
        found = weights.config_from(theirs)
        ours = CLIP(found).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    features = image["width"] * (32 if found.is_resnet else 1)
    assert found.heads == features // image.get("head_width", 64), name
    assert (found.text_heads, found.size) == (text["heads"], image["image_size"]), name
    return True


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-S-16-alt", "ViT-H-14", "RN50x4"])
def test_sizes_are_read_from_the_weights(name):
    assert sizes_are_read(name)


@pytest.mark.slow
def test_the_sizes_of_every_published_clip_are_read_from_its_weights():
    import open_clip

    plain = [name for name in open_clip.list_models() if name.startswith(("ViT-", "RN"))]
    read = {name for name in plain if sizes_are_read(name)}
    assert len(read) >= 41
    assert {"ViT-L-14-336", "ViT-g-14", "ViT-bigG-14", "ViT-e-14", "RN101", "RN50x64"} <= read


def test_the_defaults_are_openais_vit_b_32():
    with torch.device("meta"):
        model = CLIP(CLIPConfig())
    assert sum(p.numel() for p in model.parameters()) == 151_277_313
    sizes = replace(CLIPConfig(), hidden=3072, text_hidden=2048)
    assert weights.config_from(model.state_dict()) == sizes


# ------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("name", ["ViT-B-32", "vit", "RN5O"])
def test_unknown_names_are_answered_with_near_ones(name, cache):
    near = {"ViT-B-32": "ViT-B/32", "vit": "ViT-B/32", "RN5O": "RN50"}[name]
    with pytest.raises(ValueError, match=f"no model or file {name!r}: expected .*{near}"):
        clip.load(name)


def test_an_id_the_hub_does_not_know(cache):
    with pytest.raises(FileNotFoundError, match="'ViT-B/31' is neither a file .*ViT-B/32.* hub"):
        clip.load("ViT-B/31")


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="a.safetensors is not a whole safetensors file"):
        clip.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not those of a CLIP that is known: 'text_projection'"):
        clip.load(path)
    checkpoint.save(path, {"x": torch.zeros(1)}, {"kind": "diffusion"})
    with pytest.raises(ValueError, match="holds a model of minidiff that is no CLIP"):
        clip.load(path)
    tensors = randomised(VIT).state_dict()
    tensors["logit_bias"] = tensors.pop("ln_final.bias")
    save_file(tensors, path)
    with pytest.raises(ValueError, match="1 tensors are missing .*ln_final.* foreign .*logit_bias"):
        clip.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there are no weights in"):
        clip.load(tmp_path)
    (tmp_path / "config.json").write_text("[")
    save_file(hugging_face_tensors(randomised(VIT)), path)
    with pytest.raises(ValueError, match="config.json is not JSON"):
        clip.load(tmp_path)


def test_importing_costs_neither_libraries_nor_the_tokenizer():
    heavy = ("torchvision", "transformers", "open_clip", "huggingface_hub", "ftfy", "regex", "PIL")
    code = f"""
import sys, minidiff.clip
print([name for name in {heavy} if name in sys.modules])
from minidiff.clip import decode, tokenize
"""
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "[]\n"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        clip.nothing  # noqa: B018
