"""The Triton kernels in Triton's interpreter, on the CPU: the same numbers as the CPU path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

_SCRIPT = Path(__file__).parent / "kernels_in_interpreter.py"


@pytest.mark.parametrize("name", ["energy", "mix_span", "add_noise", "taps", "convolve", "white_noise"])
def test_kernels_give_the_numbers_of_the_cpu(name: str) -> None:
    # In a process of its own: Triton decides when it is imported whether it interprets.
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), name],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
