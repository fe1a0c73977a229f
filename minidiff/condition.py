"""A network's inputs besides the noisy image and the time, and their operations on batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Condition(NamedTuple):
    """Each field is None, or holds one row an image, or one row for all images."""

    label: Tensor | None = None  # (B,)       row of the network's class table
    vector: Tensor | None = None  # (B,D)      added to the time embedding
    tokens: Tensor | None = None  # (B,L,D)    read by cross-attention
    image: Tensor | None = None  # (B,C,H,W)  concatenated to the noisy image


def expand(condition: Condition | None, n: int) -> Condition | None:
    """One row of every field for each of `n` images; ValueError unless a field has 1 row or n."""
    return _by_field(lambda field: for_batch(field, n), condition)


def concatenate(conditions: Sequence[Condition]) -> Condition:
    """Conditions one after the other; ValueError unless they set the same fields."""
    return _by_field(lambda *fields: torch.cat(fields), *conditions)


def choose(rows: Tensor, first: Condition, second: Condition) -> Condition:
    """`first` where rows (B,) is True, `second` elsewhere; one row may stand for all images."""
    return _by_field(lambda a, b: choose_rows(rows, a, b), first, second)


def take(condition: Condition | None, rows: Tensor | slice) -> Condition | None:
    """Some rows of a batch's condition; a row that stands for all images stays."""
    return _by_field(lambda field: field if len(field) == 1 else field[rows], condition)


def for_batch(values: Tensor, n: int) -> Tensor:
    """One row of values (1 or n, ...) for each of n images; ValueError for another number."""
    if len(values) not in (1, n):
        raise ValueError(f"{len(values)} rows for {n} images: expected one, or one each")
    return values.expand(n, *values.shape[1:])


def choose_rows(rows: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """torch.where for rows (B,) of tensors (B or 1, ...)."""
    return torch.where(rows.reshape(-1, *[1] * (second.ndim - 1)), first, second)


def _by_field(function: Callable[..., Tensor], *conditions: Condition | None) -> Condition | None:
    """`function` of the same field of all conditions, field by field; None stays None."""
    if all(condition is None for condition in conditions):
        return None
    for condition in conditions:
        if not isinstance(condition, Condition):
            raise ValueError(
                f"a condition is a {type(condition).__name__}: expected minidiff.Condition, such "
                "as Condition(label=...) or Condition(tokens=...)"
            )
    fields = []
    for name, *values in zip(Condition._fields, *conditions, strict=True):
        if len({value is None for value in values}) > 1:
            raise ValueError(f"one condition has {name} and another has none: expected all or none")
        fields.append(None if values[0] is None else function(*values))
    return Condition(*fields)
