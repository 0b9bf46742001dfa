"""Where compiled loops are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import avloader

_CALL = """
import numpy as np
from avloader.augment import loops
x = np.ones((2, 3), np.float32)
loops.scale(x, np.full(2, 3, np.float32), x)
assert (x == 3).all()
"""


def test_they_are_kept_in_the_users_folder_and_not_in_the_package(tmp_path: Path) -> None:
    """What pip did not put there it would leave there: a folder that hides a later installation."""
    package = Path(avloader.__file__).parent
    before = set(package.rglob("loops.scale*.nb?"))
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", _CALL], check=True, env=environment | {"XDG_CACHE_HOME": str(tmp_path)})
    assert list((tmp_path / "avloader").rglob("loops.scale*.nbi"))
    assert set(package.rglob("loops.scale*.nb?")) == before


def test_a_folder_that_cannot_be_made_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "file")}
    call = "import numpy as np; from avloader.augment import loops; a, b = np.ones((2, 3, 4), np.float32); "
    call += "edge = np.ones(3, np.float32); loops.clip(a, -edge, edge / 2, b); assert (b == 0.5).all()"
    subprocess.run([sys.executable, "-c", call], check=True, env=environment)
