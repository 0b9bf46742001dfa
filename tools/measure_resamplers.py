"""What resamplers do to a tone: DALI's `audio_resample` beside soxr, which the package uses; prints a markdown table.

    python tools/measure_resamplers.py > tools/resamplers.md

Passed: signal-to-noise ratio of a tone at half of the lower Nyquist frequency against the exact tone. Rejected: level
of what is left of a tone at 1.2 times the new Nyquist frequency, which the new rate cannot hold.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import soxr
from nvidia.dali import Pipeline, fn, types

RATES = ((48000, 16000), (44100, 16000), (32000, 16000), (22050, 16000), (8000, 16000), (16000, 22050))
EDGE = 3000  # samples at both ends that see the end of the sound

Sound = npt.NDArray[np.float32]


def tone(rate: int, frequency: float) -> Sound:
    """Two seconds of a sine of amplitude 1."""
    return np.sin(2 * np.pi * frequency * np.arange(2 * rate) / rate).astype(np.float32)


def with_dali(sound: Sound, in_rate: int, out_rate: int, device: str, quality: float) -> Sound:
    """DALI's resampler."""
    pipe = Pipeline(batch_size=1, num_threads=1, device_id=0 if device == "gpu" else None, prefetch_queue_depth=1)
    with pipe:
        audio = fn.external_source(source=lambda: [sound], ndim=1, dtype=types.FLOAT)
        audio = audio.gpu() if device == "gpu" else audio
        pipe.set_outputs(fn.audio_resample(audio, in_rate=in_rate, out_rate=out_rate, quality=quality))
    pipe.build()
    (result,) = pipe.run()
    resampled: Sound = np.array(result.as_cpu()[0] if device == "gpu" else result[0])
    return resampled


def decibels(power: float) -> str:
    """Text of a power ratio."""
    return f"{10 * np.log10(max(power, 1e-20)):.0f} dB"


def row(name: str, in_rate: int, out_rate: int, low: Sound, high: Sound | None) -> str:
    """One line of the table."""
    frequency = min(in_rate, out_rate) / 4
    expected = np.sin(2 * np.pi * frequency * np.arange(len(low)) / out_rate)
    inside = slice(EDGE, -EDGE)
    passed = np.mean(expected[inside] ** 2) / np.mean((low - expected)[inside] ** 2)
    left = "" if high is None else decibels(float(np.mean(high[inside] ** 2) / 0.5))
    return f"| {in_rate} to {out_rate} | {name} | {decibels(float(passed))} | {left} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", default=["cpu"], choices=("cpu", "gpu"), help="where DALI runs")
    arguments = parser.parse_args(argv)
    packages = ", ".join(f"{name} {version(name)}" for name in ("nvidia-dali-cuda120", "soxr"))
    print(f"# Resamplers\n\nBy `tools/measure_resamplers.py`, with {packages}.\n")
    print("| rates | resampler | passed | rejected: level left |\n|---|---|---|---|")
    for in_rate, out_rate in RATES:
        low = tone(in_rate, min(in_rate, out_rate) / 4)
        high = tone(in_rate, 0.6 * out_rate) if out_rate < in_rate else None
        for device in arguments.devices:
            for quality in (50, 100):
                sounds = [None if s is None else with_dali(s, in_rate, out_rate, device, quality) for s in (low, high)]
                assert sounds[0] is not None
                print(row(f"DALI, {device}, quality {quality}", in_rate, out_rate, sounds[0], sounds[1]))
        soxr_low = soxr.resample(low, in_rate, out_rate)
        soxr_high = None if high is None else soxr.resample(high, in_rate, out_rate)
        print(row("soxr HQ", in_rate, out_rate, soxr_low, soxr_high))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
