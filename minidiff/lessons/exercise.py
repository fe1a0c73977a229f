"""Exercises that check themselves.

A notebook leaves a blank, `...`; a lesson's module says how to judge it:

    @exercise
    def check_add_noise(answer):
        found = answer(x0, 0.6, 0.8, noise)
        expect(
            found,
            0.6 * x0 + 0.8 * noise,
            "compare with the equation above",
            known=[(0.6 * x0 + 0.64 * noise, "sigma is a standard deviation: do not square it")],
        )
        return "x_t = alpha x0 + sigma eps"

The learner calls `lesson.check_add_noise(my_add_noise)`, which prints one verdict: right, not done
yet, or what is wrong. It never stops the notebook. Tests read `check_add_noise.verdict(function)`.
"""

from __future__ import annotations

import functools
import linecache
import traceback
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor


class Wrong(Exception):
    """A wrong answer; the message is the sentence that teaches."""


class _NotDone(Exception):
    """The blank is still a blank."""


class _Failed(Exception):
    """The learner's code raised its cause."""


class Exercise:
    """A check that prints its verdict. Make one with `@exercise`."""

    def __init__(self, check: Callable[..., str]):
        self._check = check
        functools.update_wrapper(self, check)

    def __call__(self, *answers: Any) -> None:
        print(self.verdict(*answers))

    def verdict(self, *answers: Any) -> str:
        """What is to be said of the answers: functions, or values filled into a blank."""
        name = getattr(answers[0], "__name__", self.__name__.removeprefix("check_"))
        name = name.replace("_", " ") if not callable(answers[0]) else name
        try:
            for answer in answers:
                _refuse_blank(answer)
            praise = self._check(*[_Watched(a) if callable(a) else a for a in answers])
        except _NotDone:
            return f"not done yet: {name}; open the solution below or go on"
        except Wrong as wrong:
            return f"not yet right: {wrong}"
        except _Failed as failed:
            return _told(name, failed.__cause__, answers)
        return f"right: {praise}"


def exercise(check: Callable[..., str]) -> Exercise:
    """Decorates a check: it calls the answers, raises `Wrong`, or returns what to say in praise."""
    return Exercise(check)


def require(fact: bool, otherwise: str) -> None:
    """Wrong with the sentence `otherwise` unless `fact`."""
    if not fact:
        raise Wrong(otherwise)


def expect(
    found: Any,
    wanted: Tensor | float,
    hint: str,
    *,
    known: Sequence[tuple[Tensor | float, str]] = (),
    tolerance: float = 1e-4,
) -> None:
    """Wrong unless `found` equals `wanted` (a tensor or a number) to a relative `tolerance`.

    `known` lists wrong values with the sentence that explains how one comes to them. Anything else
    is told its type, shape or largest error, and the `hint`.
    """
    wanted = torch.as_tensor(wanted)
    if not isinstance(found, Tensor | float | int | complex):
        what = "a number" if wanted.ndim == 0 else f"a tensor of shape {tuple(wanted.shape)}"
        raise Wrong(f"expected {what}, got a {type(found).__name__}")
    found = torch.as_tensor(found).detach().to(wanted.device)
    if found.is_complex():
        raise Wrong(f"the result is complex: a root was taken of a negative number; {hint}")
    if _equal(found, wanted, tolerance):
        return
    for value, sentence in known:
        if _equal(found, torch.as_tensor(value).to(wanted.device), tolerance):
            raise Wrong(sentence)
    if found.shape != wanted.shape:
        raise Wrong(f"expected shape {tuple(wanted.shape)}, got {tuple(found.shape)}; {hint}")
    if not found.isfinite().all():
        raise Wrong(f"the result holds NaN or infinite values; {hint}")
    error = (found.double() - wanted.double()).abs().max().item()
    raise Wrong(f"the result is off by up to {error:.3g}; {hint}")


def _equal(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    scale = max(b.double().abs().max().item(), 1e-12) if b.numel() else 1.0
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance * scale)


class _Watched:
    """The learner's function; tells blanks, a forgotten return and errors apart from answers."""

    def __init__(self, function: Callable):
        self._function = function

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = self._function(*args, **kwargs)
        except (Wrong, _NotDone):  # of what the check gave it to call
            raise
        except Exception as error:
            if "ellipsis" in str(error):  # a blank in the middle was computed with
                raise _NotDone from error
            raise _Failed from error
        for part in result if isinstance(result, tuple) else (result,):
            _refuse_blank(part)
        return _Watched(result) if isinstance(result, FunctionType) else result


def _refuse_blank(value: Any) -> None:
    if value is ...:
        raise _NotDone
    if value is None:
        raise Wrong("the result is None: did you forget `return`?")


def _told(name: str, error: BaseException, answers: Sequence[Any]) -> str:
    """An error in the learner's code, with the line where it happened."""
    files = {a.__code__.co_filename for a in answers if hasattr(a, "__code__")}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
    what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if not frames:
        return f"{name} fails: {what}"
    line = linecache.getline(frames[-1].filename, frames[-1].lineno).strip()
    return f"{name} fails at `{line}`: {what}"
