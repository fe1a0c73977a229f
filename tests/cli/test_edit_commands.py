"""`minidiff edit`, as a user types it, on pictures of all kinds and small models of random weights.

What is drawn on the sheets is caught on its way to `plot`, and compared with the methods' own.
"""

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from minidiff import clip, editing, plot, zoo
from minidiff.cli import main
from minidiff.clip.model import CLIP, CLIPConfig
from minidiff.clip.tokenizer import Tokenizer, train_bpe
from minidiff.data.images import load_image, to_pil
from minidiff.device import autocast
from minidiff.guidance import clamp
from minidiff.metrics import psnr
from minidiff.schedule import NoiseSchedule
from minidiff.text import ClassLabels, TextConfig, TextEncoder
from minidiff.unet import UNet, UNetConfig

SIZE = 16  # Prompt-to-Prompt draws attention of 16 x 16 pixels
WORDS = ("a", "large", "red", "blue", "circle", "square")
CIRCLE, SQUARE = "a red circle", "a red square"


def randomised(module):
    """No zero initialisation: every weight matters."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of captions, of classes and of neither, a CLIP, and a photograph of odd size."""
    folder = tmp_path_factory.mktemp("edit")
    torch.manual_seed(0)
    encoder = randomised(TextEncoder(TextConfig(words=WORDS, length=6, width=16)))
    kinds = {
        "text": (encoder, {"context_dim": 16, "cross_attention": (0, 1)}),
        "classes": (ClassLabels(("cat", "dog")), {"classes": 2}),
        "plain": (None, {}),
    }
    for name, (prompts, options) in kinds.items():
        config = UNetConfig(channels=16, multipliers=(1, 2), blocks=1, groups=8, **options)
        network = randomised(UNet(config))
        shape = (3, SIZE, SIZE)
        model = zoo.Diffusion(network, NoiseSchedule.cosine(), "v", shape, prompts)
        model.save(folder / f"{name}.safetensors")
    tokenizer = Tokenizer(train_bpe([CIRCLE, SQUARE] * 2, 100))
    sizes = dict(embed=16, size=8, patch=4, width=32, layers=1, heads=2, context=8)
    text = dict(text_width=32, text_layers=1, text_heads=2)
    ids = dict(vocabulary=len(tokenizer), end=tokenizer.end, merges=tuple(tokenizer.merges))
    clip.save(randomised(CLIP(CLIPConfig(**sizes, **text, **ids))), folder / "clip.safetensors")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (23, 37, 3), dtype=torch.uint8, generator=generator)
    Image.fromarray(noise.numpy()).resize((111, 69)).save(folder / "photo.jpg")
    return folder


@pytest.fixture
def edit(folder, tmp_path, monkeypatch):
    """edit("sdedit", ...) -> (what was told, {label: (1,3,H,W)} or the rows of the sheet)."""

    def call(method, *arguments, model="text", image="photo.jpg"):
        drawn = {}
        grid, rows = plot.grid, plot.rows

        def seen_grid(images, labels, **options):
            drawn.update({name: images[i : i + 1] for i, name in enumerate(labels)})
            return grid(images, labels, **options)

        def seen_rows(table, **options):
            drawn.setdefault("rows", table)
            return rows(table, **options)

        monkeypatch.setattr(plot, "grid", seen_grid)
        monkeypatch.setattr(plot, "rows", seen_rows)
        out = tmp_path / "sheet.png"
        out.unlink(missing_ok=True)
        options = ["--model", folder / f"{model}.safetensors", "--steps", 4, "--out", out]
        words = [*arguments, *([folder / image] if image else []), *options]
        told = CliRunner().invoke(main, ["edit", method, *map(str, words)])
        monkeypatch.undo()
        assert "Traceback" not in told.output and (told.exit_code == 0) == out.exists(), told.output
        return told, drawn

    return call


def done(result):
    told, drawn = result
    assert told.exit_code == 0, told.output
    return told.output, drawn


def results(drawn):
    return torch.cat([image for name, image in drawn.items() if name.startswith("result")])


# --- every command ------------------------------------------------------------------------------


def test_help_names_every_method():
    told = CliRunner().invoke(main, ["edit", "--help"]).output
    for method in ("sdedit", "repaint", "ilvr", "blended", "diffedit", "p2p", "invert"):
        assert method in told
        described = CliRunner().invoke(main, ["edit", method, "--help"])
        assert described.exit_code == 0 and "minidiff edit " + method in described.output


def test_sdedit_is_the_method_with_the_options_given(edit, folder):
    options = ["-n", 3, "--seed", 5, "--strength", 0.75, "--repeats", 2]
    told, drawn = done(edit("sdedit", "--prompt", CIRCLE, "--scale", 2, *options))
    assert "photo.jpg: 111 x 69 pixels, of which the central 69 x 69 are resized to 16 x 16" in told
    assert "the last 3 of 4 steps, 2 times" in told
    picture = load_image(folder / "photo.jpg", SIZE)
    assert torch.equal(drawn["input"], picture)

    model = zoo.load(folder / "text.safetensors")
    denoise = clamp(model.for_sampling().denoiser(CIRCLE, 2))

    def sdedit(denoise=denoise, seed=5, strength=0.75, repeats=2):
        with autocast(model.device):
            return editing.sdedit(
                denoise,
                picture.repeat(3, 1, 1, 1).to(model.device),
                model.schedule.path(4),
                strength=strength,
                repeats=repeats,
                generator=torch.Generator().manual_seed(seed),
            ).cpu()

    torch.testing.assert_close(results(drawn), sdedit(), atol=1e-3, rtol=0)
    plain = clamp(model.for_sampling().denoiser())
    for other in (sdedit(plain), sdedit(seed=6), sdedit(strength=1), sdedit(repeats=1)):
        assert (results(drawn) - other).abs().max() > 0.02  # each option matters


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sdedit", ["--mask", "half"]),
        ("repaint", ["--mask", "half", "--times", 2]),
        ("blended", ["--mask", "half", "--prompt", CIRCLE]),
    ],
)
def test_the_kept_pixels_are_the_pictures_bit_for_bit(edit, folder, method, options):
    if method == "blended":
        options = [*options, "--clip", folder / "clip.safetensors"]
    told, drawn = done(edit(method, *options, "-n", 2))
    assert "mask: 50% of the pixels kept" in told
    images = torch.cat([image for name, image in drawn.items() if name[:6] in ("result", "cosine")])
    picture = load_image(folder / "photo.jpg", SIZE)
    left, right = (images - picture).split(SIZE // 2, dim=3)
    assert len(images) == 2 and (left == 0).all()
    assert (right.abs() > 0.01).float().mean() > 0.9  # and the rest was edited
    assert (drawn["mask, black is edited"][..., : SIZE // 2] > 0).all()
    assert (drawn["mask, black is edited"][..., SIZE // 2 :] == -1).all()


def test_ilvr_holds_the_means_of_blocks(edit):
    told, drawn = done(edit("ilvr", "--factor", 8, "-n", 2, model="plain"))
    held = drawn["what is held"]
    assert torch.equal(held, editing.low_pass(drawn["input"], 8))
    images = results(drawn)
    assert (editing.low_pass(images, 8) - held).abs().max() < 1e-5
    assert (images - drawn["input"]).abs().max() > 0.1
    assert "the means of 8 x 8 pixels" in told


def test_blended_follows_the_clip_and_ranks_by_it(edit, folder):
    options = ["--clip", folder / "clip.safetensors", "--prompt", CIRCLE, "--box", "0,0,.5,1"]

    def cosines(scale):
        told, drawn = done(edit("blended", *options, "--scale", scale, "-n", 3, model="plain"))
        return told, [float(name.split()[1]) for name in drawn if name.startswith("cosine")]

    told, free = cosines(0)
    _, guided = cosines(300)
    assert guided == sorted(guided, reverse=True) and free == sorted(free, reverse=True)
    assert min(guided) > max(free) + 0.02
    assert f"now {free[0]:.3f}" in told


def test_the_clip_is_guided_by_what_it_is_shown(edit, folder):
    options = ["--clip", folder / "clip.safetensors", "--prompt", CIRCLE, "--box", "0,0,.5,1"]
    sheets = [
        done(edit("blended", *options, *more, "--scale", 300, "-n", 1, model="plain"))[1]
        for more in ([], ["--alone"])
    ]
    one, other = (next(x for n, x in s.items() if n.startswith("cosine")) for s in sheets)
    assert (one - other).abs().max() > 0.02


@pytest.mark.parametrize("alone", [False, True])
def test_the_cosines_shown_are_the_clips(edit, folder, alone):
    file, said = folder / "clip.safetensors", CIRCLE
    options = ["--clip", file, "--prompt", said, "--mask", "half", "-n", 1]
    options += ["--alone"] if alone else []
    _, drawn = done(edit("blended", *options, model="plain"))
    ((name, image),) = [item for item in drawn.items() if item[0].startswith("cosine")]
    model, preprocess = clip.load(file)
    text = clip.use.text_features(model, [said])[0]

    def cosine(image):
        seen = clip.use.image_features(model, preprocess(to_pil(image))[None])
        return (seen @ text).item()

    area = image.clone()
    area[..., : SIZE // 2] = 0
    shown = float(name.split()[1])
    seen, unseen = (area, image) if alone else (image, area)
    assert abs(shown - cosine(seen)) < 0.003
    for other in (unseen, image - area, (seen + 1) / 2):  # the other view, the kept half, a range
        assert abs(shown - cosine(other)) > 0.005


def test_diffedit_edits_where_the_captions_differ(edit):
    told, drawn = done(edit("diffedit", "--source", CIRCLE, "--prompt", SQUARE, "--threshold", 0.4))
    keep = drawn["mask, black is edited"][:, :1] > 0
    changed = (drawn["result"] != drawn["input"]).any(1, keepdim=True)
    assert keep.any() and not keep.all()
    assert not (changed & keep).any() and changed[~keep].float().mean() > 0.9
    assert f"{keep.float().mean():.0%} of the pixels kept" in told


def test_the_same_captions_edit_nothing(edit):
    told, drawn = done(edit("diffedit", "--source", CIRCLE, "--prompt", CIRCLE, "--threshold", 0.1))
    assert torch.equal(drawn["result"], drawn["input"]) and "nothing was edited" in told
    _, drawn = done(edit("p2p", CIRCLE, CIRCLE, "-n", 2, image=None))
    (_, source), (_, target), *_ = drawn["rows"]
    assert len(source) == 2 and torch.equal(source, target)
    _, drawn = done(edit("p2p", CIRCLE, SQUARE, "-n", 2, image=None))  # control
    (_, source), (_, target), *_ = drawn["rows"]
    assert (source - target).abs().max() > 0.01


def test_p2p_draws_what_the_seed_draws_and_each_word(edit, folder):
    _, drawn = done(edit("p2p", CIRCLE, SQUARE, "-n", 2, "--seed", 3, image=None))
    model = zoo.load(folder / "text.safetensors")
    wanted = model.sample(CIRCLE, 2, scale=3, steps=4, seed=3).cpu()
    other = model.sample(CIRCLE, 2, scale=3, steps=4, seed=4).cpu()
    assert psnr(drawn["rows"][0][1], wanted).min() > 30  # bfloat16 rounds in another order
    assert psnr(drawn["rows"][0][1], other).max() < 15
    label, maps, words = drawn["rows"][-1]
    assert label.startswith("words") and words == SQUARE.split() and len(maps) == 3
    assert (maps[0] - maps[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    "options", [["--reweight", "red", 3], ["--cross", 0], ["--self-attention", 0]]
)
def test_p2p_takes_its_options(edit, options):
    _, plain = done(edit("p2p", CIRCLE, SQUARE, "-n", 1, image=None))
    _, other = done(edit("p2p", CIRCLE, SQUARE, "-n", 1, *options, image=None))
    assert torch.equal(plain["rows"][0][1], other["rows"][0][1])  # the source is as it was
    assert (plain["rows"][1][1] - other["rows"][1][1]).abs().max() > 1e-3


def test_p2p_blends_by_the_words_given(edit, monkeypatch):
    """Random attention tells no areas apart: instead of the areas, the words are looked at."""
    asked = []

    def nowhere(*words):
        asked.append(words)
        return lambda x, maps: torch.cat([x.chunk(2)[0]] * 2)

    monkeypatch.setattr(editing, "local_blend", nowhere)
    _, drawn = done(edit("p2p", CIRCLE, SQUARE, "--blend", "circle", "square", image=None))
    assert asked == [(CIRCLE, "circle", SQUARE, "square")]
    assert torch.equal(drawn["rows"][0][1], drawn["rows"][1][1])


def test_p2p_of_a_picture_inverts_it_first(edit):
    told, drawn = done(edit("p2p", CIRCLE, "a large red circle"))
    assert "refine" in told and "guidance 1" in told
    _, images, labels = drawn["rows"][0]
    assert labels == ["input", "from its noise", "edited"]
    back = psnr(images[:1], images[1:2]).item()
    assert back > 15 and f"comes back with {back:.1f} dB" in told
    _, drawn = done(edit("p2p", CIRCLE, SQUARE, "-n", 1, image=None))  # control: from a seed
    assert psnr(images[:1], drawn["rows"][0][1]).item() < 12


def test_invert_tells_the_round_trip(edit):
    told, drawn = done(edit("invert", model="classes"))
    back = psnr(drawn["input"], drawn["reconstruction"]).item()
    assert back > 15 and f"round trip {back:.1f} dB" in told
    noise = 3 * drawn["noise / 3"]
    assert f"deviation {noise.std():.2f}" in told
    assert psnr(drawn["input"], noise).item() < back - 5  # control


def test_invert_goes_up_and_down_under_a_prompt(edit):
    told, of_cat = done(edit("invert", "--prompt", "cat", model="classes"))
    assert 'DDIM inversion under "cat": 4 steps' in told
    assert psnr(of_cat["input"], of_cat["reconstruction"]).item() > 15
    _, of_none = done(edit("invert", model="classes"))
    assert not torch.equal(of_cat["noise / 3"], of_none["noise / 3"])


# --- pictures and masks of all kinds ------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "I;16", "CMYK"])
def test_pictures_of_any_mode(edit, folder, mode):
    name = f"{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}"
    picture = Image.new("L", (20, 40), 90)
    if mode == "I;16":
        picture = Image.new("I", (20, 40), 90 * 256).convert("I;16")
    picture = picture if mode == "I;16" else picture.convert("RGB").convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.new("L", (20, 40), 0))
    picture.save(folder / name)
    told, drawn = done(edit("invert", image=name, model="plain"))
    assert f"{name}: 20 x 40 pixels, of which the central 20 x 20 are resized to 16 x 16" in told
    assert (f"{name}: what is transparent lies on white" in told) == (mode in ("RGBA", "LA"))
    expected = {"RGBA": 1.0, "LA": 1.0}.get(mode)
    if expected is not None:
        assert (drawn["input"] == expected).all()


def test_a_picture_is_turned_as_its_camera_says(edit, folder):
    turned = Image.new("RGB", (20, 50), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    told, _ = done(edit("invert", image="turned.jpg", model="plain"))
    assert "turned.jpg: 50 x 20 pixels" in told


def test_a_picture_of_the_models_size_stays_as_it_is(edit, folder):
    Image.new("RGB", (SIZE, SIZE), (10, 20, 30)).save(folder / "small.png")
    told, drawn = done(edit("invert", image="small.png", model="plain"))
    assert "resized" not in told and "small.png: 16 x 16 pixels; plain works at 16 x 16" in told
    assert torch.equal(drawn["input"], load_image(folder / "small.png"))


def test_white_of_a_mask_file_is_kept(edit, folder):
    mask = Image.new("L", (111, 69), 255)
    mask.paste(0, (0, 0, 111, 35))  # the upper half is edited
    mask.save(folder / "mask.png")
    _, drawn = done(edit("repaint", "--mask", folder / "mask.png", "--times", 1, "-n", 1))
    changed = (results(drawn) != drawn["input"]).any(1)[0]
    assert changed[:8].all() and not changed[8:].any()


def test_a_box_is_x_and_y_of_two_corners(edit):
    _, drawn = done(edit("repaint", "--box", ".5,0,1,.25", "--times", 1, "-n", 1))
    changed = (results(drawn) != drawn["input"]).any(1)[0]
    assert changed[:4, 8:].all() and changed.sum() == 4 * 8


@pytest.mark.parametrize(("mask", "kept"), [("lines", 50), ("pixels", 25), ("irregular", None)])
def test_masks_by_name(edit, mask, kept):
    told, drawn = done(edit("repaint", "--mask", mask, "--times", 1, "-n", 1, "--seed", 1))
    share = (drawn["mask, black is edited"] > 0).float().mean().item()
    assert f"mask: {share:.0%} of the pixels kept" in told
    assert 100 * share == kept if kept else 0.5 < share < 1


# --- mistakes -----------------------------------------------------------------------------------


MISTAKES = [
    ("sdedit", [], {"image": "none.png"}, "no picture at"),
    ("sdedit", [], {"image": "text.safetensors"}, "as a picture: not a picture"),
    ("sdedit", [], {"model": "none"}, "there is no model"),
    ("sdedit", ["--strength", 0], {}, "strength 0.0 is out of range: expected 0 < strength <= 1"),
    ("sdedit", ["--strength", "nan"], {}, "expected 0 < strength <= 1"),
    ("sdedit", ["--repeats", 0], {}, "repeats = 0"),
    ("sdedit", ["-n", 0], {}, "--number"),
    ("sdedit", ["--prompt", " "], {}, "the prompt is empty"),
    ("sdedit", ["--prompt", "a dog"], {}, "unknown word 'dog'"),
    ("sdedit", ["--prompt", "horse"], {"model": "classes"}, "expected one of cat, dog"),
    ("sdedit", ["--prompt", "cat"], {"model": "plain"}, "it takes no prompt"),
    ("sdedit", ["--prompt", CIRCLE, "--scale", "nan"], {}, "must be a finite number"),
    ("sdedit", ["--scale", 3], {}, "expected --prompt"),
    ("sdedit", ["--mask", "half", "--box", "0,0,1,1"], {}, "one of them"),
    ("repaint", [], {}, "expected --mask or --box"),
    ("repaint", ["--mask", "none.png"], {}, "none.png: expected a file, or one of half"),
    ("repaint", ["--box", "0,0,1"], {}, "expected four shares of the side"),
    ("repaint", ["--box", "0,0,2,1"], {}, "expected 0 <= top < bottom <= 1"),
    ("repaint", ["--box", "0,0,.01,.01"], {}, "the mask keeps every pixel"),
    ("repaint", ["--mask", "half", "--length", 9], {}, "do not fit a path of 4 steps"),
    ("ilvr", ["--factor", 5], {}, "factor 5 does not divide"),
    ("blended", ["--mask", "half"], {}, "Missing option '--prompt'"),
    ("blended", ["--mask", "half", "--prompt", CIRCLE, "--clip", "x"], {}, "no model or file 'x'"),
    ("diffedit", ["--prompt", CIRCLE, "--threshold", 1], {}, "expected 0 < threshold < 1"),
    ("diffedit", ["--prompt", "a dog"], {}, "unknown word 'dog'"),
    ("p2p", ["", SQUARE], {}, "the source is empty"),
    ("p2p", [CIRCLE, SQUARE, "--cross", 2], {}, "expected 0 <= share <= 1"),
    ("p2p", [CIRCLE, SQUARE, "--blend", "dog", "square"], {}, "there is no 'dog'"),
    ("p2p", [CIRCLE, SQUARE, "--reweight", "red", "inf"], {}, "must be a finite number"),
    ("p2p", ["cat", "dog"], {"model": "classes"}, "takes no captions"),
    ("sdedit", ["--mask", ""], {}, "expected a file, or one of half"),  # "$UNSET"
    ("sdedit", ["--seed", 10**20], {}, "Invalid value for '--seed'"),
    ("invert", ["--out", "x.jpg"], {}, "written as .png"),
    ("invert", ["--out", f"{__file__}/x.png"], {}, "no file can be written there"),
]


@pytest.mark.parametrize(("method", "options", "where", "sentence"), MISTAKES)
def test_mistakes_are_told_in_one_sentence(edit, method, options, where, sentence):
    if options[:1] == ["--out"]:
        told = CliRunner().invoke(main, ["edit", method, *options, "photo.jpg"])
    else:
        told, _ = edit(method, *options, **where)
    assert told.exit_code != 0 and sentence in told.output
    said = [line for line in told.output.splitlines() if line.startswith("Error:")]
    assert len(said) == 1


def test_masks_that_do_not_fit_are_told(edit, folder):
    Image.new("L", (10, 20)).save(folder / "other.png")
    Image.linear_gradient("L").resize((111, 69)).save(folder / "grey.png")
    Image.new("L", (111, 69), 255).save(folder / "white.png")
    for name, sentence in (
        ("other.png", "the mask has 10 x 20 pixels: expected 111 x 69, as the picture has"),
        ("grey.png", "is grey: expected a mask of white, kept, and black, edited"),
        ("white.png", "the mask keeps every pixel"),
    ):
        told, _ = edit("repaint", "--mask", folder / name)
        assert told.exit_code == 1 and sentence in told.output
