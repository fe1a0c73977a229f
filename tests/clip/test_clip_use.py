"""Zero-shot classes, search and what a CLIP looks at, on small networks whose answers are known."""

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image

from minidiff import clip
from minidiff.cli import main
from minidiff.clip.model import CLIP, CLIPConfig
from minidiff.clip.tokenizer import Tokenizer, train_bpe
from minidiff.clip.use import encoder, image_features, text_features
from minidiff.data.images import from_pil
from minidiff.evaluation import Figure
from minidiff.evaluation.clip import write_card

WORDS = ["a red picture", "a green picture", "a blue picture"] * 2


@pytest.fixture(scope="module")
def model():
    tokenizer = Tokenizer(train_bpe(WORDS, 100))
    torch.manual_seed(0)
    config = CLIPConfig(
        embed=16,
        size=16,
        patch=4,
        width=32,
        layers=2,
        heads=2,
        context=8,
        vocabulary=len(tokenizer),
        end=tokenizer.end,
        merges=tuple(tokenizer.merges),
        text_width=32,
        text_layers=1,
        text_heads=2,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    return CLIP(config).eval()


def test_zero_shot_is_the_softmax_of_the_mean_templates(model):
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    templates = ["a {} picture", "{}"]
    with torch.no_grad():
        classes = []
        for name in ("red", "green"):
            tokens = model.tokenize([t.format(name) for t in templates])
            each = F.normalize(model.encode_text(tokens), dim=-1)
            classes.append(F.normalize(each.mean(dim=0), dim=-1))
        cosines = F.normalize(model.encode_image(x), dim=-1) @ torch.stack(classes).T
        expected = (model.logit_scale.exp() * cosines).softmax(dim=-1)
    given = clip.zero_shot(model, x, ["red", "green"], templates)
    torch.testing.assert_close(given, expected)
    swapped = clip.zero_shot(model, x, ["green", "red"], templates)
    torch.testing.assert_close(swapped, expected.flip(1))
    assert (given - swapped).abs().max() > 1e-3


def test_features_do_not_depend_on_the_batch(model):
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(image_features(model, x, batch=2), image_features(model, x))
    assert torch.allclose(text_features(model, WORDS[:2]).norm(dim=1), torch.ones(2))


def test_the_encoder_takes_images_of_any_size_in_minus_1_to_1(model):
    preprocess = clip.Preprocess(model.config)
    pixels = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(4))
    picture = Image.fromarray(pixels.to(torch.uint8).numpy())
    x = from_pil(picture)
    encode = encoder(model)
    torch.testing.assert_close(encode(x), image_features(model, preprocess(picture)[None]))
    # Mutant: [-1, 1] fed to CLIP, as if it were [0, 1], is another picture; `normalise` refuses it.
    wrong = F.normalize(model.encode_image(preprocess.standardise(x)), dim=-1)
    assert (wrong - encode(x)).abs().max() > 0.01
    with pytest.raises(ValueError, match=r"from -1 to 1: expected them in \[0, 1\], not in \[-1"):
        preprocess.normalise(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, 16, 16))
    picture = picture.resize((40, 40))
    large = from_pil(picture).requires_grad_()
    expected = image_features(model, preprocess(picture)[None])
    torch.testing.assert_close(encode(large), expected, atol=0.01, rtol=0)
    encode(large).sum().backward()
    assert large.grad.abs().max() > 0 and all(p.grad is None for p in model.parameters())
    assert encode(3 * x).isfinite().all()  # predictions of x0 lie outside of [-1, 1]


def test_search_puts_the_best_first_and_leaves_out_what_is_no_picture(model, tmp_path):
    colours = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}
    for name, colour in colours.items():
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "torn.png").write_bytes((tmp_path / "red.png").read_bytes()[:40])
    Image.new("RGB", (40, 30), "red").save(tmp_path / "icon.ico")  # `load_image` could not draw it
    preprocess = clip.Preprocess(model.config)
    files = sorted(tmp_path.iterdir())
    found = clip.search(model, preprocess, "a red picture", files)
    assert {path.stem for _, path in found} == set(colours)
    cosines = [cosine for cosine, _ in found]
    assert cosines == sorted(cosines, reverse=True)
    wanted = text_features(model, ["a red picture"])[0]
    for cosine, path in found:
        with Image.open(path) as picture:
            own = image_features(model, preprocess(picture)[None])[0] @ wanted
        assert cosine == pytest.approx(own.item(), abs=1e-6)
    assert clip.search(model, preprocess, "a red picture", files, best=1) == found[:1]
    with pytest.raises(ValueError, match="none of 1 files is a picture"):
        clip.search(model, preprocess, "a red picture", [tmp_path / "notes.txt"])


def test_search_sees_pictures_as_they_are_drawn(model, tmp_path):
    """Turned as the camera says, grey of 16 bits as grey, what is transparent on white."""
    picture = Image.new("RGB", (40, 40), (20, 20, 220))
    picture.paste((220, 20, 20), (0, 0, 40, 20))
    turn = Image.Exif()
    turn[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=turn)
    Image.new("I;16", (40, 40), 30000).save(tmp_path / "grey.png")
    Image.new("RGBA", (40, 40), (220, 20, 20, 0)).save(tmp_path / "clear.png")
    meant = {
        "turned": picture.transpose(Image.Transpose.ROTATE_270),
        "grey": Image.new("RGB", (40, 40), (117, 117, 117)),
        "clear": Image.new("RGB", (40, 40), "white"),
    }
    preprocess, wanted = clip.Preprocess(model.config), text_features(model, WORDS[:1])[0]
    for cosine, path in clip.search(model, preprocess, WORDS[0], sorted(tmp_path.iterdir())):
        own = image_features(model, preprocess(meant[path.stem])[None])[0] @ wanted
        assert cosine == pytest.approx(own.item(), abs=1e-6), path
        with Image.open(path) as as_stored:  # the mutant: not what is drawn
            other = image_features(model, preprocess(as_stored)[None])[0] @ wanted
        assert abs(cosine - other.item()) > 1e-3


def test_the_command_prints_and_draws(model, tmp_path):
    clip.save(model, tmp_path / "clip.safetensors")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (20, 20), (80 * i, 0, 0)).save(folder / f"{i}.png")
    Image.new("RGB", (20, 20), (220, 20, 20)).save(folder / "icon.ico")
    out = tmp_path / "found.png"
    told = CliRunner().invoke(
        main,
        ["clip", "search", "a red picture", str(folder), "--best", "2", "--out", str(out)]
        + ["--model", str(tmp_path / "clip.safetensors")],
    )
    assert told.exit_code == 0, told.output
    assert told.output.count(".png") == 3 and out.is_file()  # two found, and where they are drawn


def test_the_command_draws_where_it_looks(model, tmp_path):
    clip.save(model, tmp_path / "clip.safetensors")
    Image.new("RGB", (60, 40), (220, 20, 20)).save(tmp_path / "red.png")
    out = tmp_path / "looked.png"

    def look(*words):
        model = ["--model", str(tmp_path / "clip.safetensors"), "--out", str(out)]
        return CliRunner().invoke(main, ["clip", "look", *words, *model])

    told = look(str(tmp_path / "red.png"), *WORDS[:2])
    assert told.exit_code == 0, told.output
    cosines = {line[7:]: float(line[:6]) for line in told.stdout.splitlines()[:2]}
    assert list(cosines) == WORDS[:2]
    with Image.open(tmp_path / "red.png") as picture:
        seen = image_features(model, clip.Preprocess(model.config)(picture)[None])
    expected = (text_features(model, WORDS[:2]) @ seen[0]).tolist()
    assert list(cosines.values()) == pytest.approx(expected, abs=0.02)  # saved in half precision
    with Image.open(out) as sheet:
        assert sheet.width > 3 * 200
    two = Image.open(tmp_path / "red.png").convert("RGB")
    two.paste((20, 20, 220), (0, 0, 20, 20))
    turn = Image.Exif()
    turn[0x0112] = 6
    two.save(tmp_path / "turned.png", exif=turn)
    two.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    turned, upright, other = (
        look(str(tmp_path / name), WORDS[0]).stdout.splitlines()[0]
        for name in ("turned.png", "upright.png", "red.png")
    )
    assert turned == upright != other  # CLIP sees the picture as it is drawn
    assert "no picture at" in look(str(tmp_path / "none.png"), "a text").output
    assert "cannot read" in look(str(tmp_path / "clip.safetensors"), "a text").output


def test_what_it_looks_at_depends_on_the_text_and_not_on_the_batch(model):
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    shown = clip.looks_at(model, x, WORDS[:2])
    assert shown.shape == (2, 4, 4) and shown.min() >= 0
    torch.testing.assert_close(shown.amax((1, 2)), torch.ones(2))
    other = clip.looks_at(model, x, WORDS[1::-1])
    assert (shown - other).abs().max() > 1e-3  # it depends on the text
    alone = clip.looks_at(model, x[:1], WORDS[:1])
    torch.testing.assert_close(alone[0], shown[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m, x: clip.zero_shot(m, x, []), "expected class names"),
        (lambda m, x: clip.zero_shot(m, x, ["red"], ["a picture"]), "where the name stands"),
        (lambda m, x: clip.zero_shot(m, x[:, :, :8], ["red"], ["{}"]), r"expected \(B, 3, 16, 16"),
        (lambda m, x: clip.zero_shot(m, x[0], ["red"], ["{}"]), r"expected images \(N, 3, H, W\)"),
        (lambda m, x: clip.looks_at(m, x, WORDS), "as many texts as images"),
        (lambda m, x: m.tokenize("red " * 40), "tokens: expected 6 at most"),
    ],
)
def test_bad_input_is_told_in_one_sentence(model, call, told):
    with pytest.raises(ValueError, match=told):
        call(model, torch.zeros(2, 3, 16, 16))


def test_the_card_says_what_was_measured(model, tmp_path):
    about = {"description": "A tiny one.", "data": "none", "licence": "MIT", "limits": "All."}
    about |= {
        "command": "minidiff train-clip",
        "images_seen": 1234,
        "minutes": 2,
        "machine": "a CPU",
    }
    figures = [Figure("R@1", 95.0, 93.0, 97.0, "% of 500")]
    write_card(tmp_path / "tiny.md", "tiny", model, about, figures, "minidiff clip evaluate tiny")
    card = (tmp_path / "tiny.md").read_text()
    assert card.startswith("# tiny\n\nA tiny one.\n\n| | |\n")
    assert "| images seen | 1,234 |" in card and "16 px in patches of 4" in card
    assert "- R@1: 95.0 (93.0 to 97.0) % of 500\n\n## Limits\n\nAll.\n" in card
