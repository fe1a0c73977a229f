"""The scorecard's figures, checks and pages, on values whose answer is known."""

import json

import pytest
import torch

from minidiff.metrics import bootstrap, wilson
from minidiff.scoring.table import (
    Interval,
    Row,
    above,
    as_json,
    below,
    exact,
    figure,
    line,
    markdown,
    pair,
    rising,
    written,
)

ABOUT = {"command": "minidiff score -n 40", "machine": "a machine", "minutes": 3.2, "seed": 5}
HITS, MISSES = torch.arange(40) < 36, torch.arange(40) < 4


def row(checks, **more):
    effect = pair("right", "%", HITS, MISSES)
    kept = pair("background PSNR", "dB", torch.full((40,), 60.0), 20 + torch.arange(40) / 10)
    pictures = {"it": torch.zeros(4, 3, 8, 8)}
    return Row(
        *("A method, 2 of it", "scale 3", "scale 0", 40, effect, 50.0, 0.25, checks),
        **{"kept": kept, "pictures": pictures, **more},
    )


def test_a_share_has_wilsons_interval_and_a_mean_the_bootstraps():
    found = figure(HITS)
    assert found.value == 90
    assert found[1:] == tuple(100 * bound for bound in wilson(36, 40))
    values = torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    mean = figure(values)
    assert mean.value == pytest.approx(values.mean().item())
    seeded = torch.Generator().manual_seed(0)
    assert mean[1:] == bootstrap(values, generator=seeded)
    assert figure(values) == mean  # the same values, the same interval


def test_the_difference_is_paired():
    common = 10 * torch.randn(40, generator=torch.Generator().manual_seed(1))
    little = 0.1 * torch.rand(40, generator=torch.Generator().manual_seed(2)) + 0.2
    found = pair("", "", common + little, common)
    assert found.difference.low > 0.2 - 1e-5  # seen, though far below the spread of either
    assert found.method.low < found.control.high
    assert pair("", "%", HITS, MISSES).difference.value == 80


def test_a_check_holds_only_with_its_whole_interval():
    sure, unsure = Interval(3, 1, 5), Interval(3, -1, 7)
    assert above("gain", sure, 0).holds and not above("gain", unsure, 0).holds
    assert below("loss", sure, 6).holds and not below("loss", unsure, 6).holds
    assert not above("gain", sure, 2).holds  # the value is above, the interval is not


def test_rising_needs_each_step_and_not_only_the_ends():
    luck = torch.rand(40, generator=torch.Generator().manual_seed(3)) * 0.1
    assert rising("", [luck, luck + 1, luck + 2]).holds
    assert not rising("", [luck, luck + 2, luck + 1]).holds
    assert not rising("", [luck, luck, luck + 1]).holds
    assert rising("", [luck, luck, luck + 1], strictly=False).holds


def test_a_row_holds_with_all_its_checks_and_firmly_with_the_firm_ones():
    good, bad = exact("equal", True), above("gain", Interval(1, -1, 3), 0)
    assert row([good]).holds and not row([good, bad]).holds
    assert row([good, bad]).firm_holds and not row([exact("equal", False)]).firm_holds


@pytest.mark.parametrize(
    ("interval", "unit", "text"),
    [
        (Interval(97.4, 91.2, 99.1), "%", "97% (91 to 99)"),
        (Interval(31.25, 30.5, 32), "dB", "31 dB (30 to 32)"),
        (Interval(4.26, 4, 5.5), "px", "4.3 px (4.0 to 5.5)"),
        (Interval(0.012, -0.0001, 0.5), "", "0.012 (0 to 0.50)"),
        (Interval(0, 0, 0), "", "0"),
    ],
)
def test_figures_in_words(interval, unit, text):
    assert written(interval, unit) == text


def test_the_page_says_what_held_and_what_did_not():
    good = row([exact("equal outside", True)])
    bad = row([above("gain", Interval(1, -1, 3), 0, "%")], kept=None)
    page = markdown([good, bad], ["CLIP guidance: no checkpoint"], ABOUT)
    assert "1 of 2 rows hold" in page and "Left out: CLIP guidance: no checkpoint" in page
    table = [x for x in page.splitlines() if x.startswith("|")]
    assert len(table) == 4
    assert len({x.count("|") for x in table}) == 1  # as many cells in each row
    assert table[2].endswith("| holds |") and table[3].endswith("| **misses** |")
    assert "[A method, 2 of it](#a-method-2-of-it)" in table[2]
    assert "90% (77 to 96)" in table[2] and "60 dB" in table[2]
    assert "- holds: equal outside: yes" in page
    assert "- **misses**: gain > 0%: 1.00% (-1.00 to 3.00)" in page
    assert page.endswith("\n") and not page.endswith("\n\n")
    assert line(bad).startswith("MISSES A method")


def test_the_json_holds_the_same_figures():
    content = json.loads(as_json([row([exact("equal", True)])], [], ABOUT))
    (entry,) = content["rows"]
    assert content["seed"] == 5 and entry["name"] == "A method, 2 of it" and entry["holds"]
    assert entry["effect"]["method"] == list(figure(HITS))
    assert entry["effect"]["difference"][0] == 80
    assert entry["checks"] == [{"what": "equal", "found": "yes", "holds": True, "firm": True}]
    assert entry["diversity"] is None and "pictures" not in entry
