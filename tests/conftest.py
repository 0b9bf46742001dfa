"""Fixtures of all tests: ground-truth media, made on demand once per session, and the `gpu` marker."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from make_truth_media import CATALOG, make

every_recipe = pytest.mark.parametrize("recipe", CATALOG.values(), ids=list(CATALOG))


class TruthMedia:
    """Ground-truth media by recipe name: ``truth_media["mp4_25"]`` is a path; the file is made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> Path:
        recipe = CATALOG[name]
        path = self.folder / recipe.file_name
        if not path.exists():
            # Another worker may make the same file: each in its own folder, and the first one's stays, since a
            # manifest may have recorded it by then.
            private = self.folder / f"{os.getpid()}.tmp"
            private.mkdir(exist_ok=True)
            made = make(recipe, private)
            with contextlib.suppress(FileExistsError):
                os.link(made, path)
            made.unlink()
        return path


@pytest.fixture(scope="session")
def truth_media(tmp_path_factory: pytest.TempPathFactory) -> TruthMedia:
    """Media of the catalog, shared by all workers of the session."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "truth media"
    folder.mkdir(exist_ok=True)
    return TruthMedia(folder)


_GPU_PROBE = """
import ctypes
ctypes.CDLL("libnvcuvid.so.1")
cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value, "no CUDA device"
"""


@functools.cache
def gpu_missing() -> str:
    """Why tests that need a GPU cannot run; "" if they can."""
    # In a process of its own: a process that has initialized CUDA cannot fork workers that use it.
    done = subprocess.run([sys.executable, "-c", _GPU_PROBE], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests marked `gpu` without a GPU, or fails them if FAIL_WITHOUT_GPU is set."""
    if item.get_closest_marker("gpu") is None or not gpu_missing():
        return
    if os.environ.get("FAIL_WITHOUT_GPU"):
        pytest.fail(f"FAIL_WITHOUT_GPU is set, but there is no usable GPU: {gpu_missing()}", pytrace=False)
    pytest.skip(f"needs a GPU: {gpu_missing()}")
