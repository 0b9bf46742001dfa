"""Loops that are compiled when they are first called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["compiled"]

_Loop = TypeVar("_Loop", bound=Callable[..., Any])


def compiled(loop: _Loop) -> _Loop:
    """`loop`, compiled, without Python's lock; kept on disk for the next process."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        made: Any = numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # no folder can be written to: compiled anew in each process
        made = numba.njit(**options)(loop)
    return cast(_Loop, made)
