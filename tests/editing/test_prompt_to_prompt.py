"""Prompt-to-Prompt on a painter whose attention is known, and on a small network of random weights.

The painter puts each word's colour where the word looks: what an edit must give is known exactly.
"""

import itertools
import math

import pytest
import torch
from exact import SCHEDULE
from hypothesis import given
from hypothesis import strategies as st

from minidiff.condition import Condition
from minidiff.denoiser import as_denoiser
from minidiff.editing.attention import WordMaps, positions
from minidiff.editing.prompt_to_prompt import (
    align,
    injection,
    local_blend,
    prompt_to_prompt,
    refine,
    replace,
    reweight,
)
from minidiff.guidance import classifier_free
from minidiff.samplers import ddim_step, sample
from minidiff.unet import UNet, UNetConfig

LENGTH, SIZE, PATH = 8, 16, SCHEDULE.path(6)
OLD, NEW, LONGER = "a red circle on sand", "a blue square on sand", "a striped red circle on sand"
WORDS = sorted({*OLD.split(), *NEW.split(), *LONGER.split()})


# --- the painter ----------------------------------------------------------------------------------

PLACES = {"circle": -0.7, "square": 0.7, "sand": 0.0}  # where on the x axis a word looks
COLOURS = {"circle": 0.9, "square": -0.9, "sand": 0.2, "striped": -0.3}


def painted(captions):
    """A painter's tokens (B,L,2): the place and the value of each word; 0 for any other."""
    rows = torch.zeros(len(captions), LENGTH, 2)
    for row, caption in zip(rows, captions, strict=True):
        for i, word in enumerate(caption.split()):
            row[i] = torch.tensor([PLACES.get(word, 0.1 * i), COLOURS.get(word, 0.0)])
    return Condition(tokens=rows)


def looks(condition):
    """Where each word looks (B,1,N,L), the same in every row of pixels."""
    x = torch.linspace(-1, 1, SIZE).repeat(SIZE)[:, None]  # (N,1)
    return (-20 * (x - condition.tokens[:, None, None, :, 0]) ** 2).softmax(-1)


def paint(probs, condition):
    """Pixels (B,3,H,W) of the words' values, by the shares of the words that look there."""
    values = torch.einsum("bnl,bl->bn", probs[:, 0], condition.tokens[..., 1])
    return values.reshape(-1, 1, SIZE, SIZE).expand(-1, 3, -1, -1)


def painter(x, t, condition, tap=lambda site, value: value):
    return paint(tap("mid.cross.probs", looks(condition)), condition)


def painting(old, new):
    condition = painted([old, new])
    return lambda tap: as_denoiser(painter, condition, predicts="x0", tap=tap)


NOISE = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def test_replace_keeps_where_the_words_look_and_takes_what_they_say():
    source, target = prompt_to_prompt(painting(OLD, NEW), NOISE, PATH, replace(OLD, NEW), cross=1)
    here, there = painted([OLD]), painted([NEW])
    torch.testing.assert_close(source, paint(looks(here), here))
    torch.testing.assert_close(target, paint(looks(here), there))
    # Control: without injection the square goes to its own place.
    _, free = prompt_to_prompt(painting(OLD, NEW), NOISE, PATH, replace(OLD, NEW), cross=0)
    torch.testing.assert_close(free, paint(looks(there), there))
    assert (free - target).abs().max() > 0.5


def test_refine_keeps_the_old_words_in_place_and_lets_the_new_one_look_where_it_will():
    denoiser = painting(OLD, LONGER)
    _, target = prompt_to_prompt(denoiser, NOISE, PATH, refine(OLD, LONGER), cross=1)
    here, there = painted([OLD]), painted([LONGER])
    mixed = looks(there).clone()
    for new, old in ((0, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 6), (7, 7)):
        mixed[..., new] = looks(here)[..., old]
    torch.testing.assert_close(target, paint(mixed, there))
    # Mutant: each word takes the place of the word of the same number.
    _, shifted = prompt_to_prompt(denoiser, NOISE, PATH, lambda s, t: s, cross=1)
    assert (shifted - target).abs().max() > 0.1


def test_a_word_of_factor_0_vanishes_and_more_of_it_shows_more():
    def middle(factor):
        edit = reweight(replace(OLD, OLD), OLD, "circle", factor)
        _, target = prompt_to_prompt(painting(OLD, OLD), NOISE, PATH, edit, cross=1)
        return target[0, 0, 0, 2].item()  # where the circle is

    shown = [middle(factor) for factor in (-1, 0, 1, 2)]
    assert shown == sorted(shown) and abs(shown[1]) < 0.1 < 0.5 < shown[2] == middle(1)
    assert shown[3] - shown[2] == pytest.approx(shown[2] - shown[1], rel=1e-4)  # not renormalised
    # Control: another word's factor changes nothing there.
    edit = reweight(replace(OLD, OLD), OLD, "on", 2)
    _, target = prompt_to_prompt(painting(OLD, OLD), NOISE, PATH, edit, cross=1)
    assert target[0, 0, 0, 2].item() == pytest.approx(shown[2], abs=0.05)


def test_maps_say_where_each_word_looks():
    maps = WordMaps(SIZE)
    x = NOISE.expand(2, -1, -1, -1)
    condition = painted([OLD, NEW])
    plain = sample(ddim_step, as_denoiser(painter, condition, predicts="x0"), x, PATH)
    tapped = as_denoiser(painter, condition, predicts="x0", tap=maps)
    assert torch.equal(sample(ddim_step, tapped, x, PATH), plain)  # it only looks
    expected = looks(condition).mT.reshape(2, LENGTH, SIZE, SIZE)
    torch.testing.assert_close(maps.tokens(), expected)
    torch.testing.assert_close(maps.tokens().sum(1), torch.ones(2, SIZE, SIZE))
    circle = maps.of([OLD, OLD], "circle")
    assert circle.shape == (2, 1, SIZE, SIZE)
    assert circle[0, 0, 3, 2] > 0.99 and circle[0, 0, 3, 9] < 0.01
    square = maps.of([NEW, NEW], "square")[1, 0]
    assert square[3, -1] > 0.99 and square[3, 2] < 0.01
    torch.testing.assert_close(maps.of(OLD, "red circle"), maps.of(OLD, "red") + circle)


def test_local_blend_changes_only_where_the_words_look():
    blend = local_blend(OLD, "circle", NEW, "square")
    source, target = prompt_to_prompt(
        painting(OLD, NEW), NOISE, PATH, replace(OLD, NEW), cross=0, blend=blend, maps=WordMaps()
    )
    plain = prompt_to_prompt(painting(OLD, NEW), NOISE, PATH, replace(OLD, NEW), cross=0)
    changed = (target != source).any(1)[0, 0]  # by column
    assert torch.equal(source, plain[0])
    assert changed[:3].all() and changed[-3:].all()  # the circle's place and the square's
    assert not changed[7:9].any()  # the sand between: the source's, bit for bit
    assert torch.equal(target[..., changed], plain[1][..., changed])
    # Mutant: the source's area alone leaves the square out.
    only = local_blend(OLD, "circle", NEW, "a")
    _, half = prompt_to_prompt(
        painting(OLD, NEW), NOISE, PATH, replace(OLD, NEW), cross=0, blend=only
    )
    assert torch.equal(half[..., -3:], source[..., -3:])


# --- alignment ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a red circle", "a red circle", [0, 1, 2, 3, 4]),
        ("a red circle", "a striped red circle", [0, -1, 1, 2, 4]),
        ("a striped red circle", "a red circle", [0, 2, 3, -1, 4]),  # 3 is a word there
        ("a red circle", "A blue circle", [0, -1, 2, 3, 4]),
        ("a b c", "c a b", [-1, 0, 1, 3, 4]),
        ("", "a b", [-1, -1, 2, 3, 4]),
    ],
)
def test_alignment_by_hand(source, target, expected):
    assert align(source, target, 5) == expected


captions = st.lists(st.sampled_from("abc"), max_size=6)


@given(captions, captions)
def test_alignment_is_a_longest_common_subsequence(a, b):
    found = align(" ".join(a), " ".join(b), 6)[: len(b)]
    pairs = [(i, j) for j, i in enumerate(found) if i >= 0]
    assert all(a[i] == b[j] for i, j in pairs)
    assert [i for i, _ in pairs] == sorted({i for i, _ in pairs})
    shared = {w for k in range(7) for w in itertools.combinations(a, k)}
    longest = max(k for k in range(7) if shared & set(itertools.combinations(b, k)))
    assert len(pairs) == longest


# --- the tap --------------------------------------------------------------------------------------


def probs(seed, n=4, tokens=LENGTH, pixels=64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, pixels, tokens, generator=generator).softmax(-1)


def test_attention_is_edited_for_the_first_share_of_the_steps():
    tap, value = injection(replace(OLD, NEW), PATH, cross=0.5, self_attention=1 / 3), probs(0)
    for step, level in enumerate(PATH[:-1]):
        for site, last in (("up1.cross.probs", 3), ("up1.self.probs", 2)):
            source, target = tap(level, site, value).chunk(2)
            assert torch.equal(source, value[:2])
            assert torch.equal(target, value[:2] if step < last else value[2:])
            torch.testing.assert_close(target.sum(-1), torch.ones(2, 2, 64))
        assert tap(level, "up1", value) is value  # features are left alone


def test_a_word_can_have_a_share_of_its_own():
    shares = [1.0] * LENGTH
    shares[2] = 0.2  # one step of six
    tap, value = injection(replace(OLD, NEW), PATH, cross=shares), probs(0)
    first, second = (tap(level, "mid.cross.probs", value)[2:] for level in PATH[:2])
    assert torch.equal(first, value[:2])
    assert torch.equal(second[..., 2], value[2:, ..., 2])
    rest = [i for i in range(LENGTH) if i != 2]
    assert torch.equal(second[..., rest], value[:2, ..., rest])


def test_self_attention_of_many_pixels_is_never_injected():
    tap = injection(replace(OLD, NEW), PATH, self_attention=1)
    few, many = probs(0, pixels=16**2, tokens=3), probs(0, pixels=17**2, tokens=3)
    assert torch.equal(tap(PATH[0], "up0.self.probs", few)[2:], few[:2])
    assert torch.equal(tap(PATH[0], "up0.self.probs", many), many)


# --- on a network ---------------------------------------------------------------------------------


def random_network():
    """Cross-attention at 16 and 8 pixels, self-attention at 8; nothing in it is zero."""
    config = UNetConfig(
        channels=16,
        multipliers=(1, 2),
        blocks=1,
        attention=(1,),
        cross_attention=(0, 1),
        head_dim=8,
        context_dim=12,
        groups=8,
        dropout=0,
    )
    network = UNet(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in network.named_parameters():
            std = 0.3 if p.ndim == 1 else p[0].numel() ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * std)
            if "norm" in name and name.endswith("weight"):
                p.add_(1)
    return network


NETWORK, SHORT = random_network(), SCHEDULE.path(3)
VECTORS = torch.randn(len(WORDS) + 1, 12, generator=torch.Generator().manual_seed(5))
PLACE = torch.randn(LENGTH, 12, generator=torch.Generator().manual_seed(6))
START = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7))
OPEN = {"cross": 1, "self_attention": 1}


def encoded(captions):
    rows = [[WORDS.index(w) for w in c.split()] for c in captions]
    ids = [row + [len(WORDS)] * (LENGTH - len(row)) for row in rows]
    return Condition(tokens=VECTORS[torch.tensor(ids)] + PLACE)


def conditional(captions, tap=None):
    return as_denoiser(NETWORK, encoded(captions), predicts="v", tap=tap)


def guided(captions, scale=3):
    """The denoiser of Prompt-to-Prompt: only the conditional half has the tap."""
    null = [""] * len(captions)
    return lambda tap: classifier_free(conditional(captions, tap), conditional(null), scale)


def plainly(captions, start=START):
    return sample(ddim_step, guided(captions)(None), start, SHORT)


def edited(new, edit, **shares):
    return prompt_to_prompt(guided([OLD, OLD, new, new]), START, SHORT, edit, **shares)


@pytest.mark.parametrize("edit", [replace, refine])
def test_the_same_captions_give_the_same_images(edit):
    for shares in ({}, OPEN):
        source, target = edited(OLD, edit(OLD, OLD), **shares)
        assert torch.equal(source, target)
        torch.testing.assert_close(source, plainly([OLD, OLD]), rtol=0, atol=1e-5)
    # Control: another caption.
    assert (edited(NEW, edit(OLD, NEW))[1] - source).abs().max() > 0.1


def test_without_injection_it_is_plain_sampling():
    both = plainly([OLD, OLD, NEW, NEW], torch.cat([START, START]))
    found = edited(NEW, replace(OLD, NEW), cross=0, self_attention=0)
    assert torch.equal(torch.cat(found), both)
    # Control: with it the target changes, the source does not.
    source, target = edited(NEW, replace(OLD, NEW))
    assert torch.equal(source, both[:2]) and (target - both[2:]).abs().max() > 0.01


def test_each_kind_of_injection_changes_the_target():
    cross, selves, neither = (
        edited(NEW, replace(OLD, NEW), cross=c, self_attention=s)[1]
        for c, s in ((1, 0), (0, 1), (0, 0))
    )
    for a, b in itertools.combinations((cross, selves, neither), 2):
        assert (a - b).abs().max() > 0.01


def test_only_the_conditional_half_is_edited():
    right = edited(NEW, replace(OLD, NEW), **OPEN)[1]
    captions, null = [OLD, OLD, NEW, NEW], [""] * 4

    def both_halves(tap):  # Mutant
        return classifier_free(conditional(captions, tap), conditional(null, tap), 3)

    _, wrong = prompt_to_prompt(both_halves, START, SHORT, replace(OLD, NEW), **OPEN)
    assert (wrong - right).abs().max() > 0.01

    def one_batch(tap):  # null and condition in one call of eight rows
        def denoise(x, level):
            p = conditional(null + captions, tap)(torch.cat([x, x]), level)
            return type(p)(*(part.chunk(2)[1] for part in p))

        return denoise

    with pytest.raises(ValueError, match="the tap sees 8 images: expected 4"):
        prompt_to_prompt(one_batch, START, SHORT, replace(OLD, NEW))


def test_reweighting_by_1_changes_nothing_and_by_another_factor_does():
    plain = edited(NEW, replace(OLD, NEW))[1]
    one, zero, two = (
        edited(NEW, reweight(replace(OLD, NEW), NEW, "blue", factor))[1] for factor in (1, 0, 2)
    )
    assert torch.equal(one, plain)
    assert (zero - plain).abs().max() > 0.01 and (two - plain).abs().max() > 0.01


def test_after_blending_the_images_are_equal_outside_the_last_area():
    maps = WordMaps()
    blend = local_blend(OLD, "circle", NEW, "sand", threshold=0.9)
    source, target = edited(NEW, replace(OLD, NEW), blend=blend, maps=maps)

    def area(word, rows):
        where = maps.of(OLD, word)[rows]  # both captions have "sand" in one place
        wide = torch.nn.functional.max_pool2d(where, 3, 1, 1)
        return wide > 0.9 * wide.amax((2, 3), keepdim=True)

    assert maps.tokens().shape == (4, LENGTH, SIZE, SIZE)
    change = area("circle", slice(2)) | area("sand", slice(2, 4))
    assert torch.equal((source != target).any(1, keepdim=True), change)
    assert 0.02 < change.float().mean() < 0.98
    # Mutant: the halves mistaken for one another.
    swapped = area("circle", slice(2, 4)) | area("sand", slice(2))
    assert not torch.equal(swapped, change)


def test_every_image_is_edited_by_its_own_caption():
    old, new = [OLD, NEW], [LONGER, OLD]
    source, target = prompt_to_prompt(guided(old + new), START, SHORT, refine(old, new))
    for i in (0, 1):
        alone = prompt_to_prompt(
            guided([old[i], new[i]]), START[i : i + 1], SHORT, refine(old[i], new[i])
        )
        torch.testing.assert_close(source[i : i + 1], alone[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(target[i : i + 1], alone[1], rtol=0, atol=1e-4)
    # Mutant: the captions of the other image.
    _, crossed = prompt_to_prompt(guided(old + new), START, SHORT, refine(old[::-1], new[::-1]))
    assert (crossed - target).abs().max() > 0.01


def test_one_source_may_have_several_targets():
    probs = torch.rand(2, 1, 4, 8), torch.rand(2, 1, 4, 8)
    assert torch.equal(refine(OLD, [NEW, LONGER])(*probs), refine([OLD] * 2, [NEW, LONGER])(*probs))
    assert replace(OLD, [NEW, OLD])(*probs) is probs[0]


# --- refusals -------------------------------------------------------------------------------------


def test_captions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="has 5 words and .* has 6: replace needs as many"):
        replace(OLD, LONGER)
    with pytest.raises(ValueError, match="there is no 'green' in 'a red circle on sand'"):
        local_blend(OLD, "green", NEW, "blue")
    with pytest.raises(ValueError, match="2 captions for 3 images"):
        refine([OLD] * 3, [NEW] * 2)
    with pytest.raises(ValueError, match="2 captions for 1 images"):
        prompt_to_prompt(painting(OLD, NEW), NOISE, PATH, refine([OLD, OLD], [NEW, NEW]))
    with pytest.raises(ValueError, match="there is no 'green'"):
        edited(NEW, reweight(replace(OLD, NEW), NEW, "green", 2))


def test_numbers_out_of_range_are_refused():
    for share in (-0.1, 1.1, math.nan):
        for shares in ({"cross": share}, {"self_attention": share}, {"cross": [share]}):
            with pytest.raises(ValueError, match="expected 0 <= share <= 1"):
                injection(replace(OLD, NEW), PATH, **shares)
    with pytest.raises(ValueError, match="3 shares for 8 tokens"):
        edited(NEW, replace(OLD, NEW), cross=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="must be a finite number"):
        reweight(replace(OLD, NEW), NEW, "blue", math.nan)
    for threshold in (0, 1, math.nan):
        with pytest.raises(ValueError, match="expected 0 < threshold < 1"):
            local_blend(OLD, "circle", NEW, "square", threshold=threshold)


def test_a_denoiser_without_the_tap_is_refused():
    with pytest.raises(ValueError, match="the denoiser must be built with the tap"):
        prompt_to_prompt(lambda tap: guided([OLD, NEW])(None), NOISE, PATH, replace(OLD, NEW))
    with pytest.raises(ValueError, match="no cross-attention at 5 x 5 pixels was seen"):
        WordMaps(5).tokens()


def test_words_are_found_wherever_they_stand():
    caption = "a red circle left of a blue circle"
    assert positions(caption, "circle") == [2, 7] and positions(caption, "Blue Circle") == [6, 7]
    for missing in ("red square", "circle left blue", "", "ircle"):
        with pytest.raises(ValueError, match="there is no"):
            positions(caption, missing)
