"""Clips per second of the loader before and after `avloader prepare`; writes its figures to a file.

    python tools/bench_prepare.py --output tools/bench_prepare.json

16-frame clips at random starts of 1280x720 H.264 GOP 50 (x264 medium) with AAC sound, batch 16, frames resized to
224x224 and normalized, 16 kHz sound, 80-band log-mel. The clips lie in one file, where those that are near each other
share decoding, or each in a file of its own. "as it is": conformed, nothing else; "224": also scaled to a short side of
224, as such a training reads it. That the prepared media show the same frames, by the numbers in them, is checked
first. Then before and after take turns; a figure is the median of the rounds. Windows of sound are compared by
themselves too: AAC against the cached WAV, both through `AudioReader`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from bench_loader import machine, measure, random_manifest
from make_truth_media import Picture, Recipe, Sound, make, read_number

from avloader import AVLoader, Decibels, Manifest, MelSpectrogram, PrepareOptions, prepare_manifest
from avloader.audio import AudioReader

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
    """In the long run, as `bench_loader.py` measures it."""
    with loader_of(manifest) as loader:
        return measure(loader)[0]


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


def compare(
    folder: Path, num_clips: int, seconds: int, variants: Sequence[str], rounds: int, *, own_files: bool
) -> dict[str, dict[str, float]]:
    """Figures before and after each variant."""
    # As most sources are coded; the fast preset of other benchmarks leaves out what is slow to decode.
    picture = Picture(num_frames=25 * seconds, width=1280, height=720, gop=50, num_b_frames=2)
    picture = replace(picture, options=(("preset", "medium"),))
    recipe = Recipe("720p", "720p.mp4", picture, Sound(rate=48000, seconds=Fraction(seconds)))
    draw = np.random.default_rng(7)
    starts = [Fraction(int(value), 1000) for value in draw.integers(0, 1000 * (seconds - 2), 400)]
    folder.mkdir()
    source = random_manifest(make(recipe, folder), recipe, num_clips, folder, own_files=own_files)
    manifests = {"before": source}
    facts: dict[str, dict[str, float]] = {"before": {"bytes": (folder / "720p.mp4").stat().st_size * source.num_media}}
    expected = numbers(source)
    for variant in variants:
        begin = time.monotonic()
        prepared = prepare_manifest(source, output=folder / variant, options=VARIANTS[variant], progress=False)
        facts[variant] = {"prepared_in_seconds": time.monotonic() - begin, "bytes": prepared.num_bytes}
        manifests[variant] = prepared.manifest
        assert numbers(prepared.manifest) == expected, variant
    speeds: dict[str, list[float]] = {key: [] for key in manifests}
    sounds: dict[str, list[float]] = {key: [] for key in manifests}
    for _ in range(rounds):
        for key, manifest in manifests.items():
            speeds[key].append(clips_per_second(manifest))
            sounds[key].append(windows_per_second(manifest, starts))
    for key in manifests:
        clips, windows = statistics.median(speeds[key]), statistics.median(sounds[key])
        facts[key] |= {
            "clips_per_second": round(clips, 1),
            "times_before": round(float(statistics.median(np.divide(speeds[key], speeds["before"]))), 2),
            "sound_windows_per_second": round(windows),
            "sound_times_before": round(float(statistics.median(np.divide(sounds[key], sounds["before"]))), 1),
        }
        print(key, facts[key], flush=True)
    return facts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="file to write")
    parser.add_argument(
        "--clips", type=int, default=480, help="clips of one file, more than are read ahead (480); 0: none"
    )
    parser.add_argument(
        "--own-files", type=int, default=400, help="clips in files of their own, likewise (400); 0: none"
    )
    parser.add_argument("--rounds", type=int, default=3, help="passes of each (default: 3)")
    arguments = parser.parse_args(argv)
    result: dict[str, Any] = {
        "machine": machine("cpu"),
        "source": "1280x720 H.264 GOP 50, x264 medium, AAC 48 kHz",
    }
    with tempfile.TemporaryDirectory() as name:
        jobs = [("one file", arguments.clips, 60, list(VARIANTS)), ("own files", arguments.own_files, 3, ["224"])]
        for job, num_clips, seconds, variants in jobs:
            if not num_clips:
                continue
            place, own_files = Path(name, job), job == "own files"
            result[job] = compare(place, num_clips, seconds, variants, arguments.rounds, own_files=own_files)
            if arguments.output is not None:
                arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
