"""The network: its sizes, its condition, its taps, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minidiff import unet
from minidiff.condition import Condition, take
from minidiff.unet import Attention, ResidualBlock, UNet, UNetConfig

# two levels of one block: every kind of layer, in 0.1M parameters
TINY = UNetConfig(
    channels=16, multipliers=(1, 2), blocks=1, attention=(1,), groups=8, head_dim=16, dropout=0.0
)
LABELS = replace(TINY, classes=10)
TOKENS = replace(TINY, context_dim=12, cross_attention=(1,))
VECTOR = replace(TINY, vector_dim=6)
IMAGE = replace(TINY, in_channels=7)  # 3 of the noisy image, 4 of the condition's
ALL = replace(TOKENS, classes=10, vector_dim=6, in_channels=7)
FIELDS = {"label": LABELS, "vector": VECTOR, "tokens": TOKENS, "image": IMAGE}
each_field = pytest.mark.parametrize("field", FIELDS)


def randomised(config):
    """A network in which nothing is zero, so that every part shows in the output."""
    network = UNet(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in network.named_parameters():
            std = 0.3 if p.ndim == 1 else p[0].numel() ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * std)
            if "norm" in name and name.endswith("weight"):
                p.add_(1)
    return network


def inputs(config, batch=3, size=16):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(batch, 3, size, size, generator=generator)
    t = torch.randint(1000, (batch,), generator=generator)
    fields = {}
    if config.classes:
        fields["label"] = torch.randint(config.classes, (batch,), generator=generator)
    if config.context_dim:
        fields["tokens"] = torch.randn(batch, 7, config.context_dim, generator=generator)
    if config.vector_dim:
        fields["vector"] = torch.randn(batch, config.vector_dim, generator=generator)
    if config.in_channels > 3:
        shape = (batch, config.in_channels - 3, size, size)
        fields["image"] = torch.randn(shape, generator=generator)
    return x, t, Condition(**fields) if fields else None


def parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(config).parameters())


# --- sizes ---------------------------------------------------------------------------------------


def test_the_defaults_are_ddpms_cifar10_network():
    assert parameters(UNetConfig()) == 35_746_307
    assert parameters(UNetConfig(frequency_shift=0, pad_both_sides=True)) == 35_746_307
    assert parameters(UNetConfig(attention=(1, 2))) > 35_746_307


def test_a_network_for_cpus_has_a_few_million_parameters():
    small = UNetConfig(channels=64, multipliers=(1, 1, 2), blocks=1, attention=(2,))
    assert parameters(small) == 3_231_619


def test_the_file_reads_in_one_sitting():
    assert len(Path(unet.__file__).read_text(encoding="utf-8").splitlines()) <= 330


OPTIONS = {
    "nothing": TINY,
    "labels": LABELS,
    "labels without null": replace(LABELS, null_class=False),
    "tokens": TOKENS,
    "tokens in the middle only": replace(TOKENS, cross_attention=()),
    "vector": VECTOR,
    "image beside the noisy one": IMAGE,
    "image beside the noisy one, patch": replace(IMAGE, patch=2),
    "all fields": ALL,
    "learned variance": replace(TINY, out_channels=6),
    "patch": replace(TINY, patch=2),
    "scale and shift": replace(TINY, scale_shift=True),
    "cosine first": replace(TINY, cosine_first=True),
    "frequency shift": replace(TINY, frequency_shift=0),
    "padding": replace(TINY, pad_both_sides=True),
    "norm_eps": replace(TINY, norm_eps=1e-2),
    "one head": replace(TINY, head_dim=None),
    "no attention on the way": replace(TINY, attention=()),
    "two blocks, three levels": replace(TINY, blocks=2, multipliers=(1, 2, 2)),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_gives_an_image_and_reaches_every_parameter(option):
    config = OPTIONS[option]
    network = randomised(config)
    x, t, condition = inputs(config)
    out = network(x, t, condition)
    assert out.shape == (3, config.out_channels, 16, 16)
    assert out.isfinite().all() and out.std() > 0.01
    F.mse_loss(out, torch.zeros_like(out)).backward()
    reached = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize(
    "option",
    ["scale and shift", "cosine first", "frequency shift", "padding", "norm_eps", "one head"],
)
def test_an_option_changes_the_output(option):
    network, plain = UNet(OPTIONS[option]).eval(), randomised(TINY)
    weights = plain.state_dict()
    for name, p in network.state_dict().items():  # twice the shape where time also scales
        weights[name] = torch.cat([weights[name]] * (len(p) // len(weights[name])))
    network.load_state_dict(weights)
    args = inputs(TINY)
    with torch.no_grad():
        assert (network(*args) - plain(*args)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_shapes_from_32_to_256_pixels(size):
    config = replace(TINY, channels=8, multipliers=(1, 1, 1, 2), attention=(), head_dim=None)
    x, t, _ = inputs(config, batch=1, size=size)
    with torch.no_grad():
        assert UNet(config)(x, t).shape == (1, 3, size, size)
        assert UNet(config)(x[..., : size // 2], t).shape == (1, 3, size, size // 2)


def test_a_patch_costs_a_quarter_and_ends_on_real_pixels():
    from torch.utils.flop_counter import FlopCounterMode

    def cost(config):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            randomised(config)(*inputs(config))
        return counter.get_total_flops()

    assert 0.2 < cost(replace(TINY, patch=2)) / cost(TINY) < 0.35

    # the last convolution sees every pixel of the input beside the unfolded features
    network = randomised(replace(TINY, patch=2))
    x, t, _ = inputs(TINY)
    with torch.no_grad():
        network.head.weight[:, :-3] = 0  # the features silenced: the input is left, filtered
        gain = 1 + network.gain(network.embed(t, Condition()))
        filtered = F.conv2d(
            x * gain[:, :, None, None], network.head.weight[:, -3:], network.head.bias, padding=1
        )
        torch.testing.assert_close(network(x, t), filtered)


def test_the_output_is_zero_before_training():
    for config in (TINY, LABELS, TOKENS, ALL, replace(TINY, patch=2)):
        assert not UNet(config)(*inputs(config)).any()


def test_blocks_start_as_the_identity():
    x, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 64)
    assert torch.equal(ResidualBlock(TINY, 16, 16)(x, emb), x)
    assert torch.equal(Attention(TINY, 16)(x, None, None, ""), x)


# --- conditions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [*FIELDS.values(), ALL], ids=[*FIELDS, "all"])
def test_an_image_does_not_depend_on_its_batch(config):
    network = randomised(config)
    x, t, condition = inputs(config)
    with torch.no_grad():
        together = network(x, t, condition)
        one_by_one = [slice(i, i + 1) for i in range(3)]
        alone = torch.cat([network(x[i], t[i], take(condition, i)) for i in one_by_one])
        turned = take(condition, torch.tensor([2, 1, 0]))
        other = network(x.flip(0), t.flip(0), turned).flip(0)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other, together, atol=1e-5, rtol=1e-5)


def test_labels_time_and_image_matter():
    network = randomised(LABELS)
    x, t, given = inputs(LABELS)
    null = Condition(label=torch.full_like(given.label, LABELS.classes))
    next_ = Condition(label=(given.label + 1) % 10)
    with torch.no_grad():
        out = network(x, t, given)
        for changed in (network(x, t, null), network(x, t, next_), network(x, t + 100, given)):
            each = (changed - out).abs().amax(dim=(1, 2, 3))
            assert (each > 1e-2).all()
        assert (network(x + 0.1, t, given) - out).abs().max() > 1e-2


@each_field
def test_each_field_matters_to_its_own_image_alone_and_beside_the_others(field):
    for config in (FIELDS[field], ALL):
        network = randomised(config)
        x, t, condition = inputs(config)
        value = getattr(condition, field).clone()
        value[1] = (value[1] + 1) % 10 if field == "label" else value[1] + 1
        with torch.no_grad():
            out = network(x, t, condition)
            changed = network(x, t, condition._replace(**{field: value}))
        each = (changed - out).abs().amax(dim=(1, 2, 3))
        assert each[1] > 1e-2 and each[[0, 2]].max() < 1e-5


def test_a_network_may_take_labels_and_tokens_together():
    """Refused by the first version, which had one tensor for either."""
    config = replace(TOKENS, classes=3)
    network, (x, t, given) = randomised(config), inputs(config)
    both = Condition(label=given.label, tokens=given.tokens)
    with torch.no_grad():
        out = network(x, t, both)
        other_label = both._replace(label=(both.label + 1) % 3)
        other_tokens = both._replace(tokens=both.tokens + 1)
        for other in (other_label, other_tokens):
            assert ((network(x, t, other) - out).abs().amax((1, 2, 3)) > 1e-2).all()
    for lacking, told in (
        (both._replace(label=None), r"\(3,\) integer labels from 0 to 3"),
        (both._replace(tokens=None), r"needs tokens of shape \(3, L, 12\)"),
    ):
        with pytest.raises(ValueError, match=told):
            network(x, t, lacking)


def test_a_vector_joins_the_time_embedding():
    """A linear map of it is added: the same output comes of another way to the same sum."""
    network, (x, t, given) = randomised(VECTOR), inputs(VECTOR)
    with torch.no_grad():
        out = network(x, t, given)
        assert (network(x, t, Condition(vector=torch.zeros(3, 6))) - out).abs().max() > 1e-2
        plain, weights = UNet(TINY).eval(), network.state_dict()
        added = network.vector(given.vector[:1])[0]
        weights["time.linear2.bias"] = weights["time.linear2.bias"] + added
        plain.load_state_dict({k: v for k, v in weights.items() if not k.startswith("vector.")})
        torch.testing.assert_close(plain(x[:1], t[:1]), out[:1], atol=1e-5, rtol=1e-5)


def test_the_image_of_a_condition_is_concatenated_after_the_noisy_one():
    network, (x, t, given) = randomised(IMAGE), inputs(IMAGE)
    with torch.no_grad():
        out = network(x, t, given)
        assert torch.equal(network(torch.cat([x, given.image], dim=1), t), out)
        # Mutant: before it.
        assert (network(torch.cat([given.image, x], dim=1), t) - out).abs().max() > 1e-2


def test_tokens_matter_one_by_one_and_in_their_places():
    network = randomised(TOKENS)
    x, t, condition = inputs(TOKENS)
    tokens = condition.tokens

    def drawn(tokens):
        return network(x, t, Condition(tokens=tokens))

    with torch.no_grad():
        out = drawn(tokens)
        for i in range(tokens.shape[1]):
            changed = tokens.clone()
            changed[:, i] += 1
            assert (drawn(changed) - out).abs().max() > 1e-2
        # attention has no order of its own: the text encoder's positions bring it
        torch.testing.assert_close(drawn(tokens.flip(1)), out, atol=1e-5, rtol=1e-5)
        # mean-preserving changes pass the pooled tokens by and are seen by cross-attention alone
        changed = tokens.clone()
        changed[:, 0] += 2
        changed[:, 1] -= 2
        assert (drawn(changed) - out).abs().max() > 1e-2


def test_a_fractional_time_lies_between_its_neighbours():
    network = randomised(TINY)
    x, _, _ = inputs(TINY, batch=1)
    with torch.no_grad():
        low, between, high = (network(x, torch.tensor([t])) for t in (500, 500.5, 501))
    assert 0 < (between - low).norm() < (high - low).norm()
    assert 0 < (high - between).norm() < (high - low).norm()


def test_a_pixel_asks_for_its_tokens_by_its_place():
    torch.manual_seed(0)
    attention = unet.Attention(TOKENS, 16, context_dim=TOKENS.context_dim)
    flat, tokens = torch.zeros(1, 16, 4, 4), torch.randn(1, 5, TOKENS.context_dim)
    seen = []

    def tap(site, probs):
        seen.append(probs)  # (1, heads, 16, 5)
        return probs

    attention(flat, tokens, tap, "cross")
    torch.nn.init.zeros_(attention.place.weight)
    attention(flat, tokens, tap, "cross")
    corners = [probs[0, 0, [0, 3, 12, 15]] for probs in seen]
    assert torch.pdist(corners[0]).min() > 1e-3
    assert torch.pdist(corners[1]).max() == 0


# --- taps ----------------------------------------------------------------------------------------


def test_every_site_is_called_with_its_shape_in_order():
    config = replace(TOKENS, blocks=2)
    seen = []
    x, t, condition = inputs(config)

    def tap(site, value):
        seen.append((site, tuple(value.shape)))
        return value

    network = randomised(config)
    network(x, t, condition, tap=tap)
    attends = [
        (".self.probs", (3, 2, 64, 64)),
        (".cross.probs", (3, 2, 64, 7)),
        ("", (3, 32, 8, 8)),
    ]
    expected = 2 * [("down0", (3, 16, 16, 16))]
    expected += 2 * [(f"down1{site}", shape) for site, shape in attends]
    expected += [(f"mid.first{site}", shape) for site, shape in attends]
    expected += [("mid", (3, 32, 8, 8))]
    expected += 3 * [(f"up1{site}", shape) for site, shape in attends]
    expected += 3 * [("up0", (3, 16, 16, 16))]
    assert seen == expected


def test_a_tap_that_changes_nothing_changes_nothing():
    network = randomised(TOKENS)
    args = inputs(TOKENS)
    with torch.no_grad():
        assert torch.equal(network(*args), network(*args, tap=lambda site, value: value))


@pytest.mark.parametrize(
    "site", ["down0", "mid", "up1", "down1.self.probs", "mid.first.cross.probs", "up1.cross.probs"]
)
def test_what_a_tap_returns_is_used(site):
    network = randomised(TOKENS)
    args = inputs(TOKENS)

    def replaced(at, value):
        if at != site:
            return value
        if "probs" in site:  # everybody looks at the first place
            return F.one_hot(torch.zeros(value.shape[:-1], dtype=int), value.shape[-1]).float()
        return torch.zeros_like(value)

    with torch.no_grad():
        assert (network(*args, tap=replaced) - network(*args)).abs().max() > 1e-3


def test_probabilities_are_probabilities():
    def tap(site, value):
        if site.endswith("probs"):
            assert (value >= 0).all()
            torch.testing.assert_close(value.sum(-1), torch.ones(value.shape[:-1]))
        return value

    randomised(TOKENS)(*inputs(TOKENS), tap=tap)


def test_gradients_pass_through_taps():
    network = randomised(TINY)
    x, t, _ = inputs(TINY)
    extra = torch.zeros(1, 32, 8, 8, requires_grad=True)  # as h-space editing learns
    network(x, t, tap=lambda site, h: h + extra if site == "mid" else h).square().sum().backward()
    assert extra.grad.abs().max() > 0


def test_fused_and_written_out_attention_agree(monkeypatch):
    def fused(q, k, v, probs_tap=None):
        q, k, v = (part.transpose(-2, -1) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(-2, -1)

    network, args = randomised(TOKENS), inputs(TOKENS)
    with torch.no_grad():
        written_out = network(*args)
        monkeypatch.setattr(unet, "attention", fused)
        torch.testing.assert_close(network(*args), written_out, atol=1e-5, rtol=1e-5)
        monkeypatch.setattr(
            unet,
            "attention",
            lambda q, k, v, tap: fused(k, q, v) if q.shape == k.shape else fused(q, k, v),
        )
        assert (network(*args) - written_out).abs().max() > 1e-3


def test_bfloat16_autocast_stays_close():
    network, args = randomised(TOKENS), inputs(TOKENS)
    with torch.no_grad():
        out = network(*args)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(*args)
    assert low.dtype == torch.float32
    assert (low - out).abs().max() < 0.1 * out.std()


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"channels": 20}, "a level of 20 channels does not divide into 8 groups"),
        ({"head_dim": 12}, "heads of 12"),
        ({"patch": 8}, "patches of 64 pixels"),
        ({"attention": (2,)}, r"not one of \[0, 1\]"),
        ({"cross_attention": (-1,)}, r"not one of \[0, 1\]"),
        ({"multipliers": ()}, "needs a level"),
        ({"blocks": 0}, "blocks and patch from 1"),
        ({"channels": 0}, "channels, multipliers, blocks and patch from 1"),
        ({"channels": -16}, "channels, multipliers, blocks and patch from 1"),
        ({"multipliers": (1, 0)}, "channels, multipliers, blocks and patch from 1"),
    ],
)
def test_impossible_sizes(changes, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        replace(TINY, **changes)
    assert "\n" not in str(error.value)


def test_a_list_will_do_for_a_tuple():
    assert replace(TINY, multipliers=[1, 2], attention=[1]) == TINY


IMAGES, TIMES = torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.long)
WORDS, FACTS = Condition(tokens=torch.zeros(2, 7, 12)), Condition(vector=torch.zeros(2, 6))


def labels(values):
    return Condition(label=values)


@pytest.mark.parametrize(
    ("config", "x", "t", "condition", "sentence"),
    [
        (
            TINY,
            torch.zeros(2, 4, 16, 16),
            TIMES,
            None,
            r"\(2, 4, 16, 16\): expected \(B, 3, H, W\)",
        ),
        (TINY, torch.zeros(3, 16, 16), TIMES, None, r"\(3, 16, 16\): expected"),
        (TINY, torch.zeros(2, 3, 16, 15), TIMES, None, "divisible by 2"),
        (replace(TINY, patch=2), torch.zeros(2, 3, 18, 16), TIMES, None, "divisible by 4"),
        (TINY, IMAGES, torch.tensor(5), None, r"times of shape \(\): expected \(2,\)"),
        (TINY, IMAGES, TIMES[:1], None, r"times of shape \(1,\): expected \(2,\)"),
        (
            TINY,
            IMAGES,
            TIMES,
            TIMES,
            "the condition is a Tensor: expected minidiff.Condition or No",
        ),
        (TINY, IMAGES, TIMES, "red", "the condition is a str: expected minidiff.Condition or None"),
        (TINY, IMAGES, TIMES, labels(TIMES), "takes no label: expected label = None"),
        (TINY, IMAGES, TIMES, WORDS, "takes no tokens: expected tokens = None"),
        (TINY, IMAGES, TIMES, FACTS, "takes no vector: expected vector = None"),
        (
            TINY,
            IMAGES,
            TIMES,
            Condition(image=IMAGES),
            r"\(2, 6, 16, 16\): expected \(B, 3, H, W\)",
        ),
        (LABELS, IMAGES, TIMES, None, r"\(2,\) integer labels from 0 to 10"),
        (LABELS, IMAGES, TIMES, Condition(), r"\(2,\) integer labels from 0 to 10"),
        (LABELS, IMAGES, TIMES, labels(TIMES[:1]), "integer labels"),
        (LABELS, IMAGES, TIMES, labels(TIMES.float()), "integer labels"),
        (LABELS, IMAGES, TIMES, labels(TIMES + 11), "from 0 to 10"),
        (LABELS, IMAGES, TIMES, labels(TIMES - 1), "from 0 to 10"),
        (replace(LABELS, null_class=False), IMAGES, TIMES, labels(TIMES + 10), "from 0 to 9"),
        (TINY, IMAGES.double(), TIMES, None, "images torch.float64 on cpu, network torch.float32"),
        (TINY, IMAGES.byte(), TIMES, None, "images torch.uint8 on cpu, network torch.float32"),
        (TOKENS, IMAGES, TIMES, None, r"needs tokens of shape \(2, L, 12\)"),
        (TOKENS, IMAGES, TIMES, FACTS, r"takes no vector"),
        (TOKENS, IMAGES, TIMES, Condition(tokens=TIMES), r"needs tokens of shape \(2, L, 12\)"),
        (
            TOKENS,
            IMAGES,
            TIMES,
            Condition(tokens=torch.zeros(2, 7, 5)),
            r"needs tokens of shape \(2, L, 12\)",
        ),
        (
            TOKENS,
            IMAGES,
            TIMES,
            Condition(tokens=torch.zeros(1, 7, 12)),
            r"needs tokens of shape \(2, L, 12\)",
        ),
        (VECTOR, IMAGES, TIMES, None, r"needs vector of shape \(2, 6\)"),
        (VECTOR, IMAGES, TIMES, WORDS, r"needs vector of shape \(2, 6\)"),
        (
            VECTOR,
            IMAGES,
            TIMES,
            Condition(vector=torch.zeros(2, 5)),
            r"needs vector of shape \(2, 6\)",
        ),
        (
            IMAGE,
            IMAGES,
            TIMES,
            None,
            r"\(2, 3, 16, 16\): expected \(B, 7, H, W\) .*channels may be those of Condition\(",
        ),
        (
            IMAGE,
            IMAGES,
            TIMES,
            Condition(image=IMAGES),
            r"\(2, 6, 16, 16\): expected \(B, 7, H, W\) with H and W divisible by 2$",
        ),
    ],
)
def test_bad_input_is_told_in_one_sentence(config, x, t, condition, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        UNet(config)(x, t, condition)
    assert "\n" not in str(error.value)
