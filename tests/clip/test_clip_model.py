"""CLIP equals transformers' and open_clip's, and every bug a port has had would show."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from minidiff import clip, device
from minidiff.clip import CLIP, CLIPConfig, Preprocess, weights
from minidiff.clip import model as module

REAL = Path(os.environ.get("MINIDIFF_DATA", "/nowhere"))
UNIT, LOGITS = 1e-5, 1e-4  # tolerances of unit embeddings and of logits

SMALL = CLIPConfig(
    embed=16,
    size=32,
    patch=8,
    width=32,
    layers=2,
    heads=4,
    context=12,
    vocabulary=40,
    end=39,
    text_width=24,
    text_layers=2,
    text_heads=3,
)
SMALL_RESNET = replace(SMALL, size=64, width=8, layers=(1, 2, 1, 1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randomise(model: nn.Module) -> nn.Module:
    """Nothing left at the value it starts with: biases, normalisations and running means too."""
    generator = seeded()
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            if p.is_floating_point() and p.ndim == 1:
                p += 0.1 * torch.rand(p.shape, generator=generator)
            elif "mlp" in name:  # large enough that the two GELUs differ
                p *= 2
            elif "attnpool" in name:  # and that attention is not even
                p *= 4
    return model.eval()


def images(config: CLIPConfig, n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, config.size, config.size, generator=seeded(1))


def texts(config: CLIPConfig, n: int = 6) -> torch.Tensor:
    """Tokens, an end token somewhere, and after it more tokens, which must not matter."""
    ids = torch.randint(config.vocabulary - 2, (n, config.context), generator=seeded(2))
    ids[torch.arange(n), torch.randint(3, config.context - 1, (n,), generator=seeded(3))] = (
        config.end
    )
    return ids


# ---------------------------------------------------------------------------- the other libraries

VIT = dict(layers=3, width=64, patch_size=8, image_size=32, head_width=16)
# embed = width, so that a missing transpose is not caught by shape; heads that cannot be guessed
OPEN_CLIPS = {
    "vit": dict(embed_dim=64, vision_cfg=VIT, quick_gelu=True),
    "vit-gelu": dict(embed_dim=64, vision_cfg=VIT | dict(patch_size=4, mlp_ratio=3.0)),
    "resnet": dict(
        embed_dim=64,
        vision_cfg=dict(layers=[1, 2, 1, 1], width=16, image_size=64, head_width=32),
    ),
}
TEXT = dict(context_length=16, vocab_size=100, width=64, heads=4, layers=3)


@pytest.fixture(scope="module")
def transformers_clip(tmp_path_factory):
    """Their model, and the folder it was saved in."""
    import transformers

    torch.manual_seed(0)
    shared = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=3, projection_dim=64)
    config = transformers.CLIPConfig(
        text_config=dict(
            **shared,
            num_attention_heads=4,
            vocab_size=100,
            max_position_embeddings=16,
            bos_token_id=98,
            eos_token_id=99,
            pad_token_id=0,
        ),
        vision_config=dict(**shared, num_attention_heads=2, image_size=32, patch_size=8),
        projection_dim=64,
        initializer_factor=5.0,
    )
    theirs = randomise(transformers.CLIPModel(config))
    folder = tmp_path_factory.mktemp("transformers")
    theirs.save_pretrained(folder)
    return theirs, folder


def open_clip_folder(name: str, folder: Path) -> nn.Module:
    """One of OPEN_CLIPS, random, and written to `folder` as open_clip's hub folders are."""
    import json

    from open_clip.model import CLIP as TheirCLIP

    torch.manual_seed(0)
    sizes = OPEN_CLIPS[name] | {"text_cfg": TEXT}
    theirs = randomise(TheirCLIP(**sizes))
    save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes}))
    return theirs


def loaded(folder: Path) -> CLIP:
    return clip.load(folder, "cpu")[0].float()


def furthest(ours, theirs) -> float:
    """The largest difference between unit embeddings."""
    return (F.normalize(ours, dim=-1) - F.normalize(theirs, dim=-1)).abs().max().item()


@torch.no_grad()
def differences(ours: CLIP, theirs) -> tuple[float, float]:
    """How far our image and text embeddings are from transformers'."""
    x, ids = images(ours.config), texts(ours.config)
    return (
        furthest(ours.encode_image(x), theirs.get_image_features(x).pooler_output),
        furthest(ours.encode_text(ids), theirs.get_text_features(ids).pooler_output),
    )


@torch.no_grad()
def test_equals_transformers(transformers_clip):
    theirs, folder = transformers_clip
    ours = loaded(folder)
    assert ours.config.heads == 2 and ours.config.text_heads == 4
    assert max(differences(ours, theirs)) < UNIT
    x, ids = images(ours.config), texts(ours.config)
    expected = theirs(input_ids=ids, pixel_values=x)
    per_image, per_text = ours(x, ids)
    assert (per_image - expected.logits_per_image).abs().max() < LOGITS
    assert (per_text - expected.logits_per_text).abs().max() < LOGITS


@torch.no_grad()
@pytest.mark.parametrize("name", OPEN_CLIPS)
def test_equals_open_clip(name, tmp_path):
    theirs = open_clip_folder(name, tmp_path)
    ours = loaded(tmp_path)
    assert ours.config.quick_gelu == (name == "vit")
    x, ids = images(ours.config), texts(ours.config)
    assert furthest(ours.encode_image(x), theirs.encode_image(x)) < UNIT
    assert furthest(ours.encode_text(ids), theirs.encode_text(ids)) < UNIT
    assert (ours(x, ids)[0] - theirs.get_logits(x, ids)[0]).abs().max() < LOGITS


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14", "RN50"])
def test_equals_open_clip_at_full_size(name, tmp_path):
    import open_clip
    from open_clip.model import CLIP as TheirCLIP

    config = open_clip.get_model_config(name)
    theirs = randomise(TheirCLIP(**config))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = loaded(tmp_path / "model.safetensors")
    x, ids = images(ours.config, 2), texts(ours.config, 2)
    assert furthest(ours.encode_image(x), theirs.encode_image(x)) < UNIT
    assert furthest(ours.encode_text(ids), theirs.encode_text(ids)) < UNIT


# ------------------------------------------------------------------------------ bugs, put in again


def parts(tensor: torch.Tensor, order: str) -> torch.Tensor:
    """The rows of q, k and v in another order."""
    named = dict(zip("qkv", tensor.chunk(3), strict=True))
    return torch.cat([named[part] for part in order])


def change(pattern: str, function):
    """A bug of a converter: `function` of every tensor whose name ends so."""

    def bug(ours: CLIP) -> None:
        for name, p in ours.named_parameters():
            if name.endswith(pattern):
                p.copy_(function(p.clone()))

    return bug


def in_blocks(function):
    """A bug of the network: `function` of every block of both transformers."""

    def bug(ours: CLIP) -> None:
        for block in [*ours.visual.transformer.resblocks, *ours.transformer.resblocks]:
            function(block)

    return bug


def swap_norms(ours: CLIP) -> None:
    ours.visual.ln_pre, ours.visual.ln_post = ours.visual.ln_post, ours.visual.ln_pre


def end_is_last(ours: CLIP) -> None:
    ours.config = replace(ours.config, end=0)  # its place is then that of another token


def tight_norms(ours: CLIP) -> None:
    for layer in ours.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 1e-6


BUGS = {  # and whether it shows in images, in texts
    "missing transpose": (change("proj", lambda w: w.T), True, False),
    "missing text transpose": (change("text_projection", lambda w: w.T), False, True),
    "swapped k and v": (change("in_proj_weight", partial(parts, order="qvk")), True, True),
    "swapped q and k": (change("in_proj_weight", partial(parts, order="kqv")), True, True),
    "wrong number of heads": (in_blocks(lambda b: setattr(b.attn, "heads", 8)), True, True),
    "dropped qkv bias": (change("in_proj_bias", torch.zeros_like), True, True),
    "swapped ln_pre and ln_post": (swap_norms, True, False),
    "no causal mask": (in_blocks(lambda b: setattr(b.attn, "causal", False)), False, True),
    "GELU for QuickGELU": (in_blocks(lambda b: setattr(b, "quick_gelu", False)), True, True),
    "epsilon 1e-6": (tight_norms, True, True),
    "another end token": (end_is_last, False, True),
}


@torch.no_grad()
@pytest.mark.parametrize("name", BUGS)
def test_every_known_bug_of_a_port_shows(name, transformers_clip):
    theirs, folder = transformers_clip
    ours = loaded(folder)
    bug, in_images, in_texts = BUGS[name]
    bug(ours)
    image, text = differences(ours, theirs)
    assert (image > UNIT, text > UNIT) == (in_images, in_texts), (image, text)


@torch.no_grad()
def test_known_bugs_of_a_resnet_show(tmp_path):
    theirs = open_clip_folder("resnet", tmp_path)
    x = images(weights.read_file(tmp_path / "open_clip_model.safetensors")[0])
    expected = theirs.encode_image(x)

    def error(bug) -> float:
        ours = loaded(tmp_path)
        bug(ours.visual)
        return furthest(ours.encode_image(x), expected)

    def stride_in_the_convolution(visual):
        block = visual.layer2[0]
        block.conv2.stride, block.pool = (2, 2), nn.Identity()

    assert error(lambda visual: None) < UNIT
    assert error(stride_in_the_convolution) > UNIT
    assert error(lambda visual: setattr(visual.attnpool, "heads", 8)) > UNIT
    assert error(lambda visual: visual.attnpool.q_proj.bias.zero_()) > UNIT
    assert error(lambda visual: visual.train()) > UNIT


# ---------------------------------------------------------------------------------- our own sizes


@pytest.mark.parametrize("config", [SMALL, SMALL_RESNET])
def test_a_small_clip_trains(config):
    torch.manual_seed(0)
    model = CLIP(config).train()
    x, ids = images(config, 8), texts(config, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        per_image, per_text = model(x, ids)
        target = torch.arange(len(x))
        loss = (F.cross_entropy(per_image, target) + F.cross_entropy(per_text, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_embeddings_depend_on_nothing_after_the_end():
    model = randomise(CLIP(SMALL))
    ids = texts(SMALL, 3)
    ends = (ids == SMALL.end).int().argmax(dim=1)
    other = ids.clone()
    for row, end in zip(other, ends, strict=True):
        row[end + 1 :] = 0
    with torch.no_grad():
        expected = model.encode_text(ids)
        assert torch.equal(model.encode_text(other), expected)
        # a batch is cut after its last end; one text alone sooner: the same but for rounding
        alone = torch.cat([model.encode_text(row[None]) for row in ids])
        assert furthest(alone, expected) < 1e-6
        other[:, 1] = (other[:, 1] + 1) % 30  # the control: before the end it matters
        assert furthest(model.encode_text(other), expected) > 1e-3


def test_the_first_end_counts_or_else_the_largest_token():
    model = randomise(CLIP(replace(SMALL, end=20)))
    ids = torch.tensor([[5, 20, 39, 20, 7]])
    with torch.no_grad():
        assert furthest(model.encode_text(ids), model.encode_text(ids[:, :2])) < 1e-6
        no_end = torch.tensor([[5, 38, 7]])
        assert furthest(model.encode_text(no_end), model.encode_text(no_end[:, :2])) < 1e-6


@pytest.mark.parametrize("config", [SMALL, SMALL_RESNET])
def test_taps_see_and_replace_attention(config):
    model, seen = randomise(CLIP(config)), {}

    def look(site, probs):
        seen[site] = probs
        return probs

    with torch.no_grad():
        x, ids = images(config), texts(config)
        assert furthest(model.encode_image(x, tap=look), model.encode_image(x)) < 1e-6
        assert furthest(model.encode_text(ids, tap=look), model.encode_text(ids)) < 1e-6
        length = int((ids == config.end).int().argmax(dim=1).max()) + 1
        assert seen["text1"].shape == (6, 3, length, length)
        assert seen["text0"].triu(1).abs().max() == 0  # no text looks ahead
        shape = (4, 4, 1, 5) if config.is_resnet else (4, 4, 17, 17)
        assert seen["image0"].shape == shape
        assert all(torch.allclose(p.sum(-1), torch.ones(())) for p in seen.values())
        even = model.encode_image(x, tap=lambda site, p: torch.full_like(p, 1 / p.shape[-1]))
        assert furthest(even, model.encode_image(x)) > 1e-3


def test_the_precision_is_what_pays_until_float_is_asked_for(monkeypatch, tmp_path):
    clip.save(randomise(CLIP(SMALL)), tmp_path / "a.safetensors")
    model, _ = clip.load(tmp_path / "a.safetensors", "cpu")
    x, ids = images(SMALL), texts(SMALL)
    precisions = []
    hook = model.visual.conv1.register_forward_hook(lambda *a: precisions.append(a[-1].dtype))
    with torch.no_grad():
        for pays in (True, False):
            monkeypatch.setattr(device, "has_fast_bfloat16", lambda _, pays=pays: pays)
            found = model.encode_image(x), model.encode_text(ids)
            assert {f.dtype for f in found} == {torch.float32}
        monkeypatch.setattr(device, "has_fast_bfloat16", lambda _: True)
        assert model.float() is model
        exact = model.encode_image(x), model.encode_text(ids)
        assert precisions == [torch.bfloat16, torch.float32, torch.float32]
        assert max(furthest(a, b) for a, b in zip(found, exact, strict=True)) == 0
        model.fast = True
        found = model.encode_image(x), model.encode_text(ids)
        cosines = [F.cosine_similarity(a, b).min() for a, b in zip(found, exact, strict=True)]
        assert min(cosines) > 0.999
        hook.remove()
        assert model.bfloat16().encode_image(x).dtype == torch.bfloat16


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_torch(causal):
    q, k, v = torch.randn(3, 2, 4, 5, 8, generator=seeded())
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert torch.allclose(module.attend(q, k, v, causal), expected, atol=1e-6)


def test_linear_is_the_same_on_any_number_of_threads(monkeypatch):
    x, w, b = torch.randn(2, 5, 8), torch.randn(6, 8), torch.randn(6)
    results = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(module.linear(x, w, b))
    assert results[0].shape == results[1].shape == (2, 5, 6)
    assert torch.allclose(*results, atol=1e-5)


# ------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(size=30), "30 pixels do not divide into patches of 8"),
        (dict(layers=(1, 2)), "four stages, not 2"),
        (dict(layers=(1, 1, 1, 1), size=40), "40 pixels do not divide into patches of 32"),
        (dict(heads=3), "width of 32 does not divide into 3 heads"),
        (dict(text_heads=5), "width of 24 does not divide into 5 heads"),
        (dict(end=40), "end token 40 is not one of the 40"),
    ],
)
def test_impossible_sizes_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)


def test_input_that_does_not_fit_is_refused():
    model = CLIP(SMALL)
    for x in (torch.zeros(1, 3, 32, 16), torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32)):
        with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\)"):
            model.encode_image(x)
    for ids in (torch.zeros(1, 13).long(), torch.zeros(3).long(), torch.zeros(1, 4)):
        with pytest.raises(ValueError, match="L at most 12"):
            model.encode_text(ids)
    for token in (-1, 40):
        with pytest.raises(ValueError, match="not from 0 to 39"):
            model.encode_text(torch.tensor([[token]]))
    with pytest.raises(ValueError, match="the images are on meta, the model on cpu"):
        model.encode_image(images(SMALL).to("meta"))
    assert model.encode_text(torch.zeros(0, 5).long()).shape == (0, 16)
    assert model.encode_image(torch.zeros(0, 3, 32, 32)).shape == (0, 16)


# ------------------------------------------------------------------------------------ preprocessing


def openai_pipeline(size: int):
    """The transforms of openai/CLIP's clip.py."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            lambda image: image.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize(
                (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
            ),
        ]
    )


def check_preprocessing(pictures: list[Image.Image]) -> None:
    for size in (32, 224, 336):
        ours, theirs = Preprocess(CLIPConfig(size=size, patch=4)), openai_pipeline(size)
        for picture in pictures:
            assert torch.equal(ours(picture), theirs(picture)), (picture.size, picture.mode, size)


def test_preprocessing_equals_openais():
    noise = np.random.default_rng(0).integers(256, size=(57, 131, 4), dtype=np.uint8)
    picture = Image.fromarray(noise)
    modes = ("RGB", "L", "LA", "P", "1", "CMYK", "I", "F")
    sides = ((131, 57), (57, 131), (1, 9), (224, 224), (225, 224), (33, 32), (31, 500))
    resized = [picture.convert("RGB").resize(side) for side in sides]
    check_preprocessing([picture, *(picture.convert("RGB").convert(m) for m in modes), *resized])


@pytest.mark.skipif(
    not all((REAL / name).is_dir() for name in ("cifar-10-batches-py", "butterflies", "emoji")),
    reason="MINIDIFF_DATA holds no CIFAR-10, butterflies and emoji",
)
def test_preprocessing_equals_openais_on_real_images():
    from minidiff.data.images import cifar10, to_pil

    found = [to_pil(image) for image in cifar10(train=False).images[:14]]
    for folder, n in (("butterflies", 12), ("emoji", 12)):
        files = sorted(p for p in (REAL / folder).rglob("*") if p.suffix in (".png", ".jpg"))
        found += [Image.open(path) for path in files[:: max(len(files) // n, 1)][:n]]
    found += [p.resize((3 * p.width + 1, 2 * p.height + 1)) for p in found[-4:]]  # odd sizes
    found += [p.convert("RGB").convert(m) for p in found[12:16] for m in ("L", "P")]
    assert len(found) == 50
    check_preprocessing(found)


def test_preprocessing_takes_the_configurations_mean():
    white = Image.new("RGB", (8, 8), (255, 255, 255))
    half = replace(SMALL, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert torch.equal(Preprocess(half)(white), torch.ones(3, 32, 32))
    x = torch.rand(2, 3, 4, 4).requires_grad_()
    Preprocess(half).normalise(x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))
