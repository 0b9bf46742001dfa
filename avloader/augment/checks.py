"""Checks of arguments: what is wrong, the value, what is allowed."""

from __future__ import annotations

import math
from numbers import Integral, Real

__all__ = ["check_choice", "check_integer", "check_number", "check_range"]


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> None:
    """A finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} must be a number")
    if not (math.isfinite(value) and low <= float(value) <= high):
        raise ValueError(f"{name}={value} must be {_allowed(low, high)}")


def check_integer(name: str, value: object, low: int) -> None:
    """An integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r} must be an integer")
    if value < low:
        raise ValueError(f"{name}={value} must be at least {low}")


def check_range(owner: object, least: str, most: str, low: float = -math.inf, high: float = math.inf) -> None:
    """Two attributes of `owner`: numbers in [low, high], the first not above the second."""
    first, last = getattr(owner, least), getattr(owner, most)
    check_number(least, first, low, high)
    check_number(most, last, low, high)
    if first > last:
        raise ValueError(f"{least}={first} must not be above {most}={last}")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """One of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")


def _allowed(low: float, high: float) -> str:
    if math.isinf(low):
        return "finite" if math.isinf(high) else f"finite and at most {high:g}"
    return f"finite and at least {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g}]"
