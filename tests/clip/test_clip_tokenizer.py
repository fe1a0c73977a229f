"""CLIP's tokenizer against open_clip's, which is the published one, and the learning of merges."""

import csv
import html.entities
import importlib.util
import json
import os
import random
import shutil
import string
import subprocess
import sys
import types
from collections import Counter
from itertools import chain, pairwise, product
from pathlib import Path

import pytest
import regex
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff.data.hosts
from minidiff.clip import tokenizer
from minidiff.clip.tokenizer import Tokenizer, clean, decode, explain, split, tokenize, train_bpe
from minidiff.data import shapes

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("MINIDIFF_DATA")


@pytest.fixture(scope="session")
def open_clip_tokenizer(tmp_path_factory):
    """open_clip's module, read without the rest of open_clip; its vocabulary serves both."""
    package = importlib.util.find_spec("open_clip")
    if package is None:
        pytest.skip("needs open_clip_torch")
    path = Path(package.origin).with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path_factory.mktemp("data")
    (root / "clip").mkdir()
    shutil.copy(module.default_bpe(), root / "clip" / tokenizer.VOCABULARY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIDIFF_DATA", str(root))
        tokenizer.published()  # from here on it is in memory
    return module


@pytest.fixture(scope="session")
def theirs(open_clip_tokenizer):
    """text -> ids, of any length, without start and end."""
    return open_clip_tokenizer.SimpleTokenizer().encode


@pytest.fixture
def ours(open_clip_tokenizer):
    return tokenizer.published()


# --- the same ids as open_clip -------------------------------------------------------------------

ACCENTED = """café naïve façade jalapeño Köln Ærøskøbing Škoda Łódź Žižkov İstanbul ISTANBUL ÇAĞ
Straße STRASSE ΌΣΟΣ Ὀδυσσεύς Москва Київ ёлка Đà_Nẵng smörgåsbord piñata Zoë Björk Dvořák Ångström
São_Paulo Curaçao Þingvellir Malmö Brontë Beyoncé Pokémon""".replace("_", " ").split()
SAID = """it's I'm don't can't they're we've she'd he'll y'all rock'n'roll o'clock 'tis dogs' it’s
I’M DON’T 'S 'ſ it'ſ ''s 'll've s' ' '' x'y ‘quoted’ “quoted” “it’s”""".split()
NUMBERS = """0 7 42 1984 3.14159 1,000,000 50% $20 €9.99 ½ ¾ x² H₂O Ⅳ ⅷ ① ⑳ 1st 2nd 35mm 4k 8K 10x10
1:2 07/04/1976 +44-20-7946 ٣٤٥ १२३ 一二三 1e-6 0xFF 16e6 a1b2c3 ๑๒๓ 𝟘𝟙𝟚 v2.0""".split()
SIGNS = """!!! ??? ?! ... … -- — – :-) :'( ;) <3 </3 ^_^ ¯\\_(ツ)_/¯ #hashtag @someone a/b a&b AT&T
R&D <b>bold</b> </w> <w> w</w> a</w>b snake_case C++ C# f(x)=y [x] {y} ~ ` | \\ © ® ™ § ° × ÷ ± → ∞
<|startoftext|> <|endoftext|> [CLS] \x7f \xad soft\xadhyphen zero\u200bwidth \ufeffbom""".split()
SPACES = """a\tb|a\nb|a\r\nb|  a  |a\xa0b|a\u2003b|a\u3000b|a\x0bb|a\x0cb|a\x1cb|a\x1fb|a\x85b|
a\u2028b|a\u200bb|a\u1680b|\t\n|a\u180eb|a\x00b|\x1b[31mred\x1b[0m|a\x07b|a\x08b|\ud83d|\ud83d\ude00|
x\ud800y|a\x7fb|a\x80b|a\ufffeb|a\ufff9b|a\u202eb|a\u2066b""".replace("|\n", "|").split("|")
TEMPLATES = [
    *("a photo of a {}.", "a bad photo of the {}.", "Itap of my {}", "a {} in a video game."),
    *("art of the {}", "a black and white photo of the {}.", "a low resolution photo of a {}"),
    *("{}", "a plushie {}, on the table", "TWO {}s & a dog", "the {}'s shadow"),
    '"{}" (2019), oil on canvas',
]
CLASSES = """airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck, butterfly, tench,
hammerhead shark, indigo bunting, jack-o'-lantern, mailbox, T-shirt, Saint Bernard, Crock Pot,
hen-of-the-woods, CD player, iPod, ping-pong ball, Old English Sheepdog, Yorkshire terrier,
bell pepper, espresso machine, aircraft carrier""".replace("\n", " ").split(", ")


def every_emoji() -> list[str]:
    """All emoji characters, in every skin tone; keycaps; all pairs of flag letters; families."""
    alone = [chr(i) for i in range(0x20000) if regex.match(r"\p{Emoji}", chr(i))]
    hands = [c for c in alone if regex.match(r"\p{Emoji_Modifier_Base}", c)]
    tones = [chr(i) for i in range(0x1F3FB, 0x1F400)]
    letters = [chr(i) for i in range(0x1F1E6, 0x1F200)]
    joined = ["👨\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "👩🏽\u200d🚀", "❤️\u200d🔥", "🧑\u200d💻"]
    keycaps = [c + "\ufe0f\u20e3" for c in "0123456789#*"]
    styled = [c + "\ufe0f" for c in alone]
    return [*alone, *styled, *map("".join, product(hands, tones)), *keycaps, *joined] + [
        a + b for a, b in product(letters, letters)
    ]


def corpora() -> dict[str, list[str]]:
    """More than 20,000 texts, by what they try."""
    rng = random.Random(0)
    words = [*CLASSES, *ACCENTED, *SAID, *NUMBERS, *SIGNS]
    codes = shapes.random_codes(3000, torch.Generator().manual_seed(0), pairs=0.5)
    scenes = shapes.decode(codes)
    ranges = [(0x4E00, 0x9FFF), (0x3041, 0x30FF), (0xAC00, 0xD7A3), (0x20000, 0x2A6DF)]
    kinds = {
        "captions": list(shapes.captions(scenes, torch.Generator().manual_seed(0))),
        "templates": [t.format(c) for t, c in product(TEMPLATES, words)],
        "emoji": every_emoji(),
        "letters": [chr(i) for i in range(0x21, 0x2000)] + [f"x{chr(i)}y" for i in range(0x2800)],
        "far letters": [chr(i) for i in range(0x2800, 0x30000, 41) if not 0xD800 <= i < 0xE000],
        "accents": [
            w if form is None else "".join(chr_with(c, form) for c in w)
            for w, form in product(ACCENTED + CLASSES, [None, "\u0301", "\u0327", "\u20dd"])
        ],
        "CJK": [
            "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 30)))
            for _ in range(500)
        ],
        "compatibility": [chr(i) for i in chain(range(0xFB00, 0xFB50), range(0xFF00, 0xFFF0))]
        + ["ﬁne oﬃce ﬂower", "ＡＢＣ１２３！", "ﾊﾝｶｸ ｶﾀｶﾅ", "ﬀ ﬃ ﬄ ĳ ǆ", "㎏ ㏒ ℡ ﷺ", "Ｃａｆé"],
        "mojibake": [
            wrong(f"{w} {end}", codec, times)
            for w, end in product(ACCENTED + SAID, ["", "— “quoted” … 🎉", "in Zürich"])
            for codec, times in [("latin-1", 1), ("cp1252", 1), ("cp1252", 2), ("macroman", 1)]
        ],
        "entities": [
            form.format(name)
            for name in html.entities.html5
            for form in ("a &{} b", "<b>&amp;{}</b>")
        ]
        + [f"<i>&#{i};&amp;#x{i:x};</i> &amp;amp;#{i};" for i in range(0, 700, 3)],
        "words": words + SPACES,
        "repeats": [
            part * n for part in ["a", "ha", "no", "xyz", "!", "é", "1 "] for n in range(60)
        ],
        "ASCII": [
            "".join(rng.choices(string.printable, k=rng.randint(0, 40))) for _ in range(1500)
        ],
        "mixed": [
            rng.choice(["", " ", ", "]).join(rng.choices(words + SPACES, k=rng.randint(2, 12)))
            for _ in range(1000)
        ],
    }
    if DATA and (Path(DATA) / "emoji" / "captions.csv").is_file():
        with open(Path(DATA) / "emoji" / "captions.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        kinds["names of emoji"] = [row["name"] for row in rows] + [row["keywords"] for row in rows]
    return kinds


def chr_with(character: str, mark: str) -> str:
    return character + mark if character in "aeiouncsAEIOUNCS" else character


def wrong(text: str, codec: str, times: int) -> str:
    """UTF-8 read as something else, as often."""
    for _ in range(times):
        text = text.encode().decode(codec, errors="ignore")
    return text


@pytest.fixture(scope="session")
def expected(theirs):
    """kind -> text -> open_clip's ids."""
    return {kind: {text: theirs(text) for text in texts} for kind, texts in corpora().items()}


def test_ids_equal_those_of_open_clip_on_20000_texts(ours, expected):
    count = len(set(chain(*expected.values())))
    wrong = [
        (text, theirs, ours.encode(text))
        for texts in expected.values()
        for text, theirs in texts.items()
        if ours.encode(text) != theirs
    ]
    assert not wrong, wrong[:5]
    assert count >= 20_000


# Every difference there is, and why.
DIFFERENCES = {
    # open_clip takes the names of its two marks, in any case, for the marks themselves: a caption
    # could end itself, and the embedding is read at the first end. Here no text stands for a mark.
    # (openai/CLIP does so with <|startoftext|> and <|endoftext|>, which open_clip spells as we do.)
    "<start_of_text>": [49406],
    "a cat <End_Of_Text> a dog": [320, 2368, 49407, 320, 1929],
    "&lt;end_of_text&gt;": [49407],
    # By ignoring case it then also finds a name with a long s, does not know it as a mark, and
    # spells it as one piece.
    "<ſtart_of_text>": None,
}


@pytest.mark.parametrize("text", DIFFERENCES)
def test_differences_from_open_clip_are_these(text, ours, theirs):
    if DIFFERENCES[text] is not None:
        assert theirs(text) == DIFFERENCES[text]
    else:
        assert max(theirs(text)) < ours.start
    ids = ours.encode(text)
    assert ids != theirs(text)
    assert max(ids) < ours.start
    # without the signs that make it a name, the same text has the same ids
    assert ours.encode(text.replace("_", "- ")) == theirs(text.replace("_", "- "))


FRAGMENTS = st.sampled_from(
    ["&amp;", "&lt", ";", "<b>", "Ã©", "â€™", "'s", "'LL", " ", "\u3000", "ﬁ", "Ａ", "é", "e\u0301"]
    + ["İ", "ſ", "Σ", "ς", "1", "½", "👍🏽", "\u200d", "\ufe0f", "\x00", "\r\n", "_", "don", "the"]
)


@settings(max_examples=300)
@given(text=st.text(max_size=60) | st.lists(FRAGMENTS | st.text(max_size=3)).map("".join))
def test_ids_equal_those_of_open_clip_on_random_unicode(ours_and_theirs, text):
    ours, theirs = ours_and_theirs
    assert ours.encode(text) == theirs(text)


@pytest.fixture(scope="session")
def ours_and_theirs(open_clip_tokenizer, theirs):
    return tokenizer.published(), theirs


ASCII_ONLY = 'if not (text.isascii() and text.isprintable() and "&" not in text):'
MUTANTS = {
    "nothing repaired": (ASCII_ONLY, "if False:"),
    "entities left in ASCII": (' and "&" not in text', ""),
    "control characters left in ASCII": (" and text.isprintable()", ""),
    "repaired only if ASCII": ("text.isascii() and", "not text.isascii() or"),
    "no repair of encodings": ("ftfy.fix_text(text)", "text"),
    "unescaped once": ("html.unescape(html.unescape(ftfy.fix_text(text)))", "html.unescape(text)"),
    "capitals kept": (".lower()\n", "\n"),
    "case folded": (".lower()\n", ".casefold()\n"),
    "contractions only in lower case": (", regex.IGNORECASE", ""),
    "no contractions": (r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}", r"\p{L}"),
    "runs of digits": (r"|\p{N}|", r"|\p{N}+|"),
    "ASCII letters": (r"|\p{L}+|", "|[a-z]+|"),
    "marks count as letters": (r"|\p{L}+|", r"|[\p{L}\p{M}]+|"),
    "no end of piece": ("ids[-1] += 256", "pass"),
    "bytes in their own order": ("_TO_ID = bytes(BYTES", "_TO_ID = bytes(bytes(range(256))"),
    "any merge": ("(token := min(candidates))", "(token := candidates[0])"),
    "the last merge first": ("token := min(candidates)", "token := sorted(candidates)[-1]"),
    "merged from the right": (
        "i = candidates.index(token)",
        "i = len(candidates) - 1 - candidates[::-1].index(token)",
    ),
    "stale left neighbour": ("if i > 0:", "if False:"),
    "stale right neighbour": ("if i < len(candidates):", "if False:"),
    "bytes looked up as characters": ('piece.encode().decode("latin-1").translate(_SHOW)', "piece"),
    "words mixed up": ("known.get(word)", "known.get(word[:3])"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_sees_every_seeded_fault(name, ours, expected):
    right, fault = MUTANTS[name]
    source = Path(tokenizer.__file__).read_text(encoding="utf-8")
    assert source.count(right) == 1
    mutant = types.ModuleType("mutant")
    exec(compile(source.replace(right, fault), "mutant", "exec"), mutant.__dict__)
    wrong = mutant.Tokenizer(ours.merges)

    def differs(text: str, ids: list[int]) -> bool:
        try:
            return wrong.encode(text) != ids
        except (KeyError, IndexError, UnicodeError):
            return True

    assert any(differs(text, ids) for texts in expected.values() for text, ids in texts.items())


# --- rows of ids ---------------------------------------------------------------------------------


def test_golden_row(ours):
    """The ids that openai/CLIP gives."""
    row = [49406, 320, 1125, 539, 320, 2368, 49407]
    ids = tokenize(["a photo of a cat", ""])
    assert ids.dtype == torch.int64 and ids.shape == (2, 77)
    assert ids[0].tolist() == row + [0] * 70
    assert ids[1].tolist() == [49406, 49407] + [0] * 75
    assert tokenize("a photo of a cat", context_length=8).tolist() == [row + [0]]
    assert len(ours) == 49408
    assert tokenize([]).shape == (0, 77)


def test_rows_equal_those_of_open_clip(open_clip_tokenizer):
    texts = ["cat " * n for n in (0, 1, 74, 75, 76, 200)]
    for length in (77, 16, 2):
        theirs = open_clip_tokenizer.tokenize(texts, length)
        assert torch.equal(tokenize(texts, length, truncate=True), theirs)


def test_long_texts_are_refused_unless_truncated(ours):
    assert tokenize("cat " * 75)[0, -1] == ours.end
    with pytest.raises(ValueError, match=r"^'cat .* has 76 tokens: expected 75 at most, or trunc"):
        tokenize(["a dog", "cat " * 76])
    with pytest.raises(ValueError, match="has 3 tokens: expected 1 at most"):
        tokenize("three small words", context_length=3)
    cut = tokenize("three small words", context_length=3, truncate=True)
    assert cut.tolist() == [[ours.start, *ours.encode("three"), ours.end]]


def test_what_is_no_text_is_refused(ours):
    with pytest.raises(TypeError, match="^7 is no text: expected a str"):
        tokenize(["a cat", 7])
    with pytest.raises(ValueError, match="context_length is 1: expected 2 or more"):
        tokenize("a cat", context_length=1)


# --- and back ------------------------------------------------------------------------------------


def test_decode_stops_at_the_end(ours):
    ids = tokenize("A photo of two  cats, it's 12&ouml;!")[0]
    assert decode(ids) == "a photo of two cats , it 's 1 2 ö !"
    assert decode(ids.tolist()) == decode(ids)
    assert decode([*ids.tolist()[:6], 49406, 0, 0]) == "a photo of two cats !!"  # id 0, no padding
    assert decode(tokenize("")[0]) == ""
    assert decode(ours.encode("🎉")[:1]).endswith("\ufffd") or len(ours.encode("🎉")) == 1
    assert decode(ours.encode("\U0002a6d6")[:-1]).endswith("\ufffd")
    for unknown in (49408, -1):
        with pytest.raises(ValueError, match=f"unknown id {unknown}: expected 0 to 49407"):
            decode([320, unknown])
    with pytest.raises(ValueError, match=r"ids are \(1, 77\): expected \(L,\)"):
        decode(tokenize("a cat"))


def test_decode_gives_back_every_text_but_its_spaces(ours, expected):
    for text in list(chain(*expected.values()))[::7]:
        assert decode(ours.encode(text)) == " ".join(split(clean(text)))


def test_signs_that_spell_the_mark_of_the_end_come_back(ours):
    """Control: taken out of the joined tokens, as openai/CLIP does, they would be lost."""
    tokens = ["<", "/", "w", ">"]
    assert decode([ours.tokens.index(token) for token in tokens]) == "</w>"
    assert "".join(tokens).replace("</w>", " ") == " "


# --- the work shown ------------------------------------------------------------------------------


def test_explain_shows_every_step(ours):
    shown = explain("  Two caf&eacute;s&#33;")
    assert (shown.text, shown.cleaned) == ("  Two caf&eacute;s&#33;", "two cafés!")
    assert [piece.text for piece in shown.pieces] == ["two", "cafés", "!"]
    assert shown.pieces[0].steps == ["t w o</w>", "tw o</w>", "two</w>"]
    assert shown.pieces[1].steps[0] == "c a f Ã © s</w>"
    assert shown.pieces[2] == ("!", ["!</w>"], [256])
    assert str(shown) == "\n".join(
        ["text     '  Two caf&eacute;s&#33;'", "cleaned  'two cafés!'"]
        + ["piece    'two'", "         t w o</w>", "         tw o</w>", "         two</w>"]
        + ["ids      1237", "piece    'cafés'"]
        + [f"         {step}" for step in shown.pieces[1].steps]
        + [f"ids      {' '.join(map(str, shown.pieces[1].ids))}"]
        + ["piece    '!'", "         !</w>", "ids      256"]
    )


def test_the_work_shown_is_the_work_done(ours, expected):
    merges = set(ours.merges)
    for text in list(chain(*expected.values()))[::29]:
        shown = explain(text)
        assert [i for piece in shown.pieces for i in piece.ids] == ours.encode(text)
        for piece in shown.pieces:
            assert [ours.tokens[i] for i in piece.ids] == piece.steps[-1].split()
            for before, after in pairwise(step.split() for step in piece.steps):
                assert len(after) == len(before) - 1
                assert merges & set(pairwise(before))
            assert not merges & set(pairwise(piece.steps[-1].split()))


def test_every_published_token_is_reached_by_merging(ours):
    """So that a whole piece in the vocabulary need not be merged at all."""
    reached = 0
    for i, token in enumerate(ours.tokens[: ours.start]):
        text = decode([i])  # nothing of the byte that is a space
        if token.endswith(tokenizer.END) and text and "\ufffd" not in text:
            (*_, ids) = ours.merging(text)
            assert ids == [i]
            reached += 1
    assert reached > 34_000


# --- learning merges -----------------------------------------------------------------------------

LOW = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3  # Sennrich et al. 2016


def test_the_merges_of_the_textbook():
    """Pairs counted by hand; the end belongs to the last letter here."""
    assert train_bpe(LOW, 6) == [
        ("e", "s"),  # 9, as often as (s, t</w>)
        ("es", "t</w>"),  # 9
        ("l", "o"),  # 7
        ("e", "w"),  # 6, as often as (n, e) and (w, est</w>)
        ("ew", "est</w>"),  # 6, as often as (n, ew)
        ("n", "ewest</w>"),  # 6
    ]
    assert train_bpe([" ".join(LOW)], 6) == train_bpe(LOW, 6)
    assert train_bpe(LOW, 0) == [] == train_bpe([], 10)


def plain_bpe(texts, merges):
    """Everything counted anew for every merge, and what becomes of the pieces."""
    pieces = [split(clean(text)) for text in texts]
    words = [
        [tokenizer.BYTE_TOKENS[i] for i in tokenizer.byte_ids(piece)] for piece in chain(*pieces)
    ]
    learnt = []
    for _ in range(merges):
        pairs = Counter(chain(*map(pairwise, words)))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        learnt.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return learnt, words


TEXTS = st.lists(st.text("abé 1", max_size=12), max_size=8)


@settings(max_examples=150)
@given(texts=TEXTS, merges=st.integers(0, 30), other=st.text("abcé 1🎉", max_size=20))
def test_learning_equals_counting_everything_anew(texts, merges, other):
    """And the tokenizer cuts the texts as learning left them, and every text comes back."""
    learnt, words = plain_bpe(texts, merges)
    assert train_bpe(texts, merges) == learnt
    small = Tokenizer(learnt)
    ids = [i for text in texts for i in small.encode(text)]
    assert [small.tokens[i] for i in ids] == list(chain(*words))
    assert small.decode(small.encode(other)) == " ".join(split(clean(other)))
    for piece in split(clean(other)):
        (*_, merged) = small.merging(piece)
        assert small.encode(piece) == merged


def test_a_vocabulary_of_its_own_survives_json():
    codes = shapes.random_codes(300, torch.Generator().manual_seed(0), pairs=0.5)
    captions = shapes.captions(shapes.decode(codes), torch.Generator().manual_seed(0))
    learnt = train_bpe(captions, 200)
    small = Tokenizer(json.loads(json.dumps(learnt)))
    assert small.merges == learnt
    assert len(small) == 512 + len(learnt) + 2
    assert (small.start, small.end) == (len(small) - 2, len(small) - 1)
    ids = small.tokenize(captions, context_length=32)
    assert ids.shape == (300, 32) and ids.max() == small.end
    assert [small.decode(row) for row in ids] == [" ".join(split(clean(c))) for c in captions]
    # every word became one token; with no merges they are spelled
    words = {word for caption in captions for word in split(clean(caption))}
    assert all(len(small.encode(word)) == 1 for word in words)
    assert len(Tokenizer([]).encode("circle")) == 6


@pytest.mark.parametrize(
    "merges",
    [[("b", "c</w>"), ("ab", "c</w>")], [("a", "b"), ("a", "b")], [("a", "b", "c")], [("a",)]],
)
def test_what_is_no_list_of_merges_is_refused(merges):
    with pytest.raises(ValueError, match="is no merge: expected a new pair of tokens"):
        Tokenizer(merges)


def test_fewer_than_no_merges_are_refused():
    with pytest.raises(ValueError, match="merges is -1: expected 0 or more"):
        train_bpe(LOW, -1)


# --- the file ------------------------------------------------------------------------------------


def test_the_vocabulary_is_fetched_to_the_data_folder(
    open_clip_tokenizer, ours, tmp_path, monkeypatch
):
    def fetch(url, path, sha256):
        asked.append((url, path, sha256))
        path.parent.mkdir()
        return Path(shutil.copy(open_clip_tokenizer.default_bpe(), path))

    asked = []
    monkeypatch.setenv("MINIDIFF_DATA", str(tmp_path))
    monkeypatch.setattr(minidiff.data.hosts, "fetch", fetch)
    assert tokenizer.published.__wrapped__().tokens == ours.tokens
    path = tmp_path / "clip" / "bpe_simple_vocab_16e6.txt.gz"
    assert asked == [(tokenizer.URL, path, tokenizer.SHA256)]


def test_another_file_in_its_place_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIFF_DATA", str(tmp_path))
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / tokenizer.VOCABULARY).write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256"):
        tokenizer.published.__wrapped__()


def test_import_does_without_ftfy_and_regex():
    script = "import minidiff.clip.tokenizer, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "minidiff.clip.tokenizer" in loaded
    assert not {"ftfy", "regex"} & set(loaded)
