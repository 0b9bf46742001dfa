"""Clips per second of the loader before and after `avloader prepare`; writes its figures to a file.

    python tools/bench_prepare.py --output tools/bench_prepare.json

16-frame clips at random starts of a 1280x720 file of H.264 GOP 50 (x264 medium) with AAC sound, batch 16, frames
resized to 224x224 and normalized, 16 kHz sound, 80-band log-mel. "as it is": conformed, nothing else; "224": also
scaled to a short side of 224, as such a training reads it. That the prepared media show the same frames, by the numbers
in them, is checked first. Then before and after take turns; a figure is the median of the rounds. Windows of sound are
compared by themselves too: AAC against the cached WAV, both through `AudioReader`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from bench_loader import random_manifest
from make_truth_media import Picture, Recipe, Sound, make, read_number

from avloader import AVLoader, Decibels, Manifest, MelSpectrogram, PrepareOptions, prepare_manifest
from avloader.audio import AudioReader
from avloader.workers import available_cores

NUM_FRAMES, BATCH_SIZE, SIZE, RATE = 16, 16, 224, 16000
FEATURES = MelSpectrogram(n_fft=512, hop_length=160, n_mels=80, scale=Decibels())
WINDOW_SECONDS = Fraction(16, 25)
VARIANTS = {
    "as it is": PrepareOptions(fps=None, sample_rate=RATE),
    "224": PrepareOptions(fps=None, sample_rate=RATE, short_side=224),
}


def loader_of(manifest: Manifest, *, raw: bool = False) -> AVLoader:
    """The loader that is measured; `raw`: whole frames, to read the numbers in them."""
    return AVLoader(
        manifest,
        batch_size=BATCH_SIZE,
        num_frames=NUM_FRAMES,
        size=(SIZE, SIZE),
        normalize=None if raw else ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        sample_rate=RATE,
        features=None if raw else FEATURES,
        clips="first",
        device="cpu",
    )


def numbers(manifest: Manifest) -> list[list[int]]:
    """What every frame of every clip shows."""
    found = []
    with loader_of(manifest, raw=True) as loader:
        for batch in loader:
            found += [[read_number(frame.permute(1, 2, 0).numpy()) for frame in clip] for clip in batch.frames]
    return found


def clips_per_second(manifest: Manifest) -> float:
    """A whole epoch after one that warms up: a training has long begun."""
    with loader_of(manifest) as loader:
        for _ in loader:
            pass
        loader.set_epoch(1)
        begin = time.monotonic()
        count = sum(len(batch.row) for batch in loader)
        return count / (time.monotonic() - begin)


def windows_per_second(manifest: Manifest, starts: Sequence[Fraction]) -> float:
    """Windows of sound of the manifest's first row, at random places."""
    sound = manifest.media(int(manifest.audio_id[0]))
    assert sound.audio is not None
    rate = sound.audio.sample_rate
    with AudioReader(sound.path, sound.audio) as reader:
        begin = time.monotonic()
        for start in starts:
            first = int(start * rate)
            reader.read(first, first + int(WINDOW_SECONDS * rate))
        return len(starts) / (time.monotonic() - begin)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("tools/bench_prepare.json"), help="file to write")
    parser.add_argument("--clips", type=int, default=96, help="clips a pass (default: 96)")
    parser.add_argument("--rounds", type=int, default=3, help="passes of each (default: 3)")
    parser.add_argument("--seconds", type=int, default=60, help="length of the source (default: 60)")
    arguments = parser.parse_args(argv)
    picture = Picture(num_frames=25 * arguments.seconds, width=1280, height=720, gop=50, num_b_frames=2)
    # As most sources are coded; the fast preset of other benchmarks leaves out what is slow to decode.
    picture = replace(picture, options=(("preset", "medium"),))
    recipe = Recipe("720p", "720p.mp4", picture, Sound(rate=48000, seconds=Fraction(arguments.seconds)))
    draw = np.random.default_rng(7)
    starts = [Fraction(int(value), 1000) for value in draw.integers(0, 1000 * (arguments.seconds - 2), 400)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifests = {"before": random_manifest(make(recipe, folder), recipe, arguments.clips, folder)}
        facts: dict[str, Any] = {}
        expected = numbers(manifests["before"])
        for variant, options in VARIANTS.items():
            begin = time.monotonic()
            prepared = prepare_manifest(manifests["before"], output=folder / variant, options=options, progress=False)
            facts[variant] = {"prepared_in_seconds": time.monotonic() - begin, "bytes": prepared.num_bytes}
            manifests[variant] = prepared.manifest
            assert numbers(prepared.manifest) == expected, variant
        speeds: dict[str, list[float]] = {key: [] for key in manifests}
        sounds: dict[str, list[float]] = {key: [] for key in manifests}
        for _ in range(arguments.rounds):
            for key, manifest in manifests.items():
                speeds[key].append(clips_per_second(manifest))
                sounds[key].append(windows_per_second(manifest, starts))
        facts["before"] = {"bytes": (folder / "720p.mp4").stat().st_size}
    result = {
        "machine": {
            "cores": available_cores(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("av", "nvidia-dali-cuda120", "numpy", "torch")},
        "source": "1280x720 H.264 GOP 50, x264 medium, AAC 48 kHz",
    }
    base, base_sound = statistics.median(speeds["before"]), statistics.median(sounds["before"])
    for key in manifests:
        clips, windows = statistics.median(speeds[key]), statistics.median(sounds[key])
        facts[key] |= {"clips_per_second": clips, "times_before": clips / base}
        facts[key] |= {"sound_windows_per_second": windows, "sound_times_before": windows / base_sound}
        print(
            f"{key:10} {clips:8.1f} clips/s ({clips / base:.2f}), {windows:8.0f} windows/s ({windows / base_sound:.1f})"
        )
    arguments.output.write_text(json.dumps(result | {"results": facts}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
