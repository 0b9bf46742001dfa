"""Loops that are compiled when they are first called."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["compiled"]

_Loop = TypeVar("_Loop", bound=Callable[..., Any])


def compiled(loop: _Loop) -> _Loop:
    """`loop`, compiled, without Python's lock; kept for the next process in the user's folder for caches."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    config: Any = numba.config
    given = config.CACHE_DIR
    # Numba would put it beside the source: files that pip does not know of, and leaves when it removes the package.
    config.CACHE_DIR = given or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "avloader"
    )
    try:
        made: Any = numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # no folder can be written to: compiled anew in each process
        made = numba.njit(**options)(loop)
    finally:
        config.CACHE_DIR = given
    return cast(_Loop, made)
