"""What a row of the scorecard holds, and how rows become a page of Markdown and a JSON file.

A figure is an `Interval`, of 95%: Wilson's for a share, the bootstrap's for a mean. A `Pair` is a
figure of a method beside that of its control on the same seeds, with the paired difference.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from minidiff.metrics import bootstrap, wilson


class Interval(NamedTuple):
    value: float
    low: float
    high: float


class Pair(NamedTuple):
    """A figure of the method, of its control, and of the difference, image by image."""

    what: str
    unit: str  # "%", "dB", "px" or nothing
    method: Interval
    control: Interval
    difference: Interval


class Check(NamedTuple):
    """An acceptance check; `firm` ones hold by such a margin that few images show it."""

    what: str
    found: str
    holds: bool
    firm: bool = False


@dataclass(frozen=True)
class Row:
    """A method on the scorecard, against its control."""

    name: str
    setting: str
    control: str  # what the control is
    n: int
    effect: Pair
    calls: float  # images that went through the network, for one result
    seconds: float  # for one result
    checks: Sequence[Check]
    kept: Pair | None = None  # what had to stay
    diversity: Pair | None = None
    notes: Sequence[str] = ()  # sweeps and breakdowns, a line each
    pictures: dict[str, Tensor] = field(default_factory=dict)  # label -> images (n,3,H,W)

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)

    @property
    def firm_holds(self) -> bool:
        return all(check.holds for check in self.checks if check.firm)


# ------------------------------------------------------------------------------------- figures


def figure(values: Tensor, statistic: Callable[[Tensor], Tensor] = torch.mean) -> Interval:
    """A mean (n,) with its interval; of booleans a share in per cent."""
    if values.dtype == torch.bool:
        low, high = wilson(int(values.sum()), len(values))
        return Interval(100 * values.double().mean().item(), 100 * low, 100 * high)
    values = values.double()
    seeded = Generator().manual_seed(0)
    return Interval(statistic(values).item(), *bootstrap(values, statistic, generator=seeded))


def pair(
    what: str,
    unit: str,
    method: Tensor,
    control: Tensor,
    statistic: Callable[[Tensor], Tensor] = torch.mean,
) -> Pair:
    """Values (n,) of the method and of the control on the same seeds; booleans are shares."""
    times = 100 if method.dtype == torch.bool else 1
    difference = times * (method.double() - control.double())
    figures = (figure(values, statistic) for values in (method, control, difference))
    return Pair(what, unit, *figures)


def above(what: str, found: Interval, bound: float, unit: str = "", *, firm: bool = False) -> Check:
    """Holds if the whole interval lies above the bound."""
    text = f"{what} > {_number(bound)}{_spaced(unit)}"
    return Check(text, written(found, unit), found.low > bound, firm)


def below(what: str, found: Interval, bound: float, unit: str = "", *, firm: bool = False) -> Check:
    """Holds if the whole interval lies below the bound."""
    text = f"{what} < {_number(bound)}{_spaced(unit)}"
    return Check(text, written(found, unit), found.high < bound, firm)


def exact(what: str, holds: bool) -> Check:
    """Something that is so, or not, whatever the sample."""
    return Check(what, "yes" if holds else "no", holds, firm=True)


def rising(what: str, values: Sequence[Tensor], *, strictly: bool = True) -> Check:
    """Holds if each of several means (n,) is above the one before: strictly, by its interval;
    else it need only not be below it by its interval."""
    steps = [figure(b.double() - a.double()) for a, b in zip(values[:-1], values[1:], strict=True)]
    holds = all(step.low > 0 if strictly else step.high >= 0 for step in steps)
    means = " ".join(_number(figure(v).value) for v in values)
    return Check(what, means, holds)


# --------------------------------------------------------------------------------------- words


def written(figure: Interval, unit: str = "") -> str:
    """ "97% (91 to 99)" """
    value, low, high = map(_number, figure)
    return f"{value}{_spaced(unit)}" + (f" ({low} to {high})" if low != high else "")


def _spaced(unit: str) -> str:
    return unit if unit in ("", "%") else f" {unit}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    digits = 0 if abs(value) >= 20 else 1 if abs(value) >= 4 else 2 if abs(value) >= 0.1 else 3
    text = f"{value:.{digits}f}"
    return "0" if float(text) == 0 else text


def line(row: Row) -> str:
    """A row in one line, for the terminal."""
    effect = row.effect
    verdict = "holds " if row.holds else "MISSES"
    text = f"{verdict} {row.name}: {effect.what} {written(effect.method, effect.unit)}, "
    text += f"control {written(effect.control, effect.unit)}"
    if row.kept:
        text += f"; {row.kept.what} {written(row.kept.method, row.kept.unit)}, "
        text += f"control {written(row.kept.control, row.kept.unit)}"
    return text + f"; {row.calls:.0f} calls, {row.seconds:.2f} s"


def markdown(rows: Sequence[Row], left_out: Sequence[str], about: dict) -> str:
    """The whole page: the table, then for each method what was measured and checked."""
    held = sum(row.holds for row in rows)
    text = f"""# Scorecard

Every method of minidiff on the same seeds, against a control that is broken or naive, graded by
an oracle of scenes, or on CIFAR-10 by a classifier, that no method has seen.
{held} of {len(rows)} rows hold.

By `{about["command"]}` on {about["machine"]}, in {about["minutes"]:.0f} minutes; seed
{about["seed"]}. Settings were chosen on other seeds (`python -m minidiff.scoring.calibrate`)
and then frozen. Brackets are 95% intervals; a check holds only if its whole interval does. "Stayed"
is what an edit must not change; diversity is the root mean square difference of images of one
prompt, unless it is named. Calls are the images that went through the network, and seconds the
time, for one result.

"""
    text += "| method | effect | its control | stayed | its control | diversity | its control "
    text += "| calls | s | check |\n|---|---|---|---|---|---|---|---|---|---|\n"
    for row in rows:
        text += f"| [{row.name}](#{_anchor(row.name)}) | "
        cells = [f"{row.effect.what} {written(row.effect.method, row.effect.unit)}"]
        cells += [written(row.effect.control, row.effect.unit), *_cells(row.kept, True)]
        usual = row.diversity is None or row.diversity.what == "diversity"
        cells += _cells(row.diversity, not usual)
        cells += [f"{row.calls:.0f}", f"{row.seconds:.2f}", "holds" if row.holds else "**misses**"]
        text += " | ".join(cells) + " |\n"
    text += "".join(f"\nLeft out: {reason}\n" for reason in left_out)
    return text + "".join(f"\n{_section(row)}" for row in rows)


def _cells(pair: Pair | None, named: bool) -> list[str]:
    if pair is None:
        return ["", ""]
    name = f"{pair.what} " if named else ""
    return [name + written(pair.method, pair.unit), written(pair.control, pair.unit)]


def _anchor(name: str) -> str:
    """GitHub's anchor of a heading."""
    kept = "".join(c for c in name.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _section(row: Row) -> str:
    text = f"## {row.name}\n\n{row.setting}; {row.n} images. Control: {row.control}.\n\n"
    for found in filter(None, (row.effect, row.kept, row.diversity)):
        text += f"- {found.what}: {written(found.method, found.unit)}, control "
        text += f"{written(found.control, found.unit)}, "
        text += f"difference {written(found.difference, found.unit)}\n"
    for check in row.checks:
        text += f"- {'holds' if check.holds else '**misses**'}: {check.what}: {check.found}\n"
    return text + "".join(f"- {note}\n" for note in row.notes)


def as_json(rows: Sequence[Row], left_out: Sequence[str], about: dict) -> str:
    """The same figures for programs; an interval is [value, low, high]."""
    table = []
    for row in rows:
        entry = {key: value for key, value in vars(row).items() if key != "pictures"}
        for key in ("effect", "kept", "diversity"):
            entry[key] = entry[key]._asdict() if entry[key] else None
        entry["checks"] = [check._asdict() for check in row.checks]
        table.append(entry | {"holds": row.holds})
    content = about | {"left_out": list(left_out), "rows": table}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
