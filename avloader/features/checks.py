"""Checks of options: a wrong one is named with its value and with what is allowed."""

from __future__ import annotations

import math
from numbers import Integral, Real

__all__ = ["check_choice", "check_flag", "check_integer", "check_number"]


def check_integer(name: str, value: object, minimum: int) -> None:
    """Refuse what is no integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r} must be an integer")
    if value < minimum:
        raise ValueError(f"{name}={value} must be at least {minimum}")


def check_number(name: str, value: object, minimum: float = -math.inf, *, above: bool = False) -> None:
    """Refuse what is no finite number of at least, or above, `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} must be a number")
    if not math.isfinite(value) or value < minimum or (above and value == minimum):
        bound = "" if minimum == -math.inf else f" and {'above' if above else 'at least'} {minimum:g}"
        raise ValueError(f"{name}={value} must be finite{bound}")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse what is not among `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False")
