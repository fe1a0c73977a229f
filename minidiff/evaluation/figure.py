"""A measured number, as cards hold it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from minidiff import metrics


class Figure(NamedTuple):
    """A measured number; `low` and `high` bound its 95% interval if it has one."""

    what: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


def share(what: str, hits: Tensor, note: str = "") -> Figure:
    """A share of successes (n,) bool with its Wilson interval, in per cent."""
    low, high = metrics.wilson(int(hits.sum()), len(hits))
    return Figure(what, 100 * hits.float().mean().item(), 100 * low, 100 * high, note)
