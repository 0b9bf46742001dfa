"""Clips per second of the loader with each preset, beside the same loader without its features; writes the figures.

    python tools/bench_presets.py --device cpu --output tools/bench_presets_cpu.json
    python tools/bench_presets.py --device gpu --output tools/bench_presets_gpu.json
    python tools/bench_presets.py --presets wav2lip ast --rounds 5

Clips at fixed starts of a file of 224x224 H.264, GOP 12, 25 frames/s, with AAC sound at 48 kHz. What is delivered is
checked first: every frame by the number that it shows, every window of sound by its place in the known sound, the
features by those of the whole window computed again on the CPU. Then both loaders take turns; a figure is the median of
the rounds, each of a fresh start and timed from a third of so many clips on.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_loader import machine
from make_truth_media import Picture, Recipe, Sound, make, read_number, sound_of
from rich.console import Console
from rich.table import Table

from avloader import AVLoader, Manifest, Preset, build_manifest
from avloader.batch import AVBatch
from avloader.presets import PRESETS
from avloader.workers import available_cores

SECONDS, FPS, NATIVE_RATE, SIDE = 60, 25, 48000, 224
FEATURE_TOLERANCE = 1e-3  # of the greatest magnitude, between devices


def recipe() -> Recipe:
    """The medium."""
    picture = Picture(num_frames=FPS * SECONDS, width=SIDE, height=SIDE, gop=12, num_b_frames=2)
    sound = Sound(rate=NATIVE_RATE, seconds=Fraction(SECONDS), bit_rate=128_000)
    return Recipe("presets", "presets.mp4", picture, sound)


def manifest_of(path: Path, preset: Preset, num_clips: int, folder: Path) -> Manifest:
    """Rows at random starts (fixed seed), each with one clip of the preset."""
    rate = Fraction(preset.fps) if preset.fps else Fraction(FPS)
    seconds = float((preset.num_frames + 1) * preset.stride / rate) + 0.04
    if seconds > SECONDS / 2:
        raise ValueError(f"a clip of {preset.name} lasts {seconds:g} s, and the medium {SECONDS} s")
    starts = np.random.default_rng(0).integers(0, round((SECONDS - seconds) * FPS), num_clips) / FPS
    folder.mkdir()
    with (folder / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end", "label"])
        writer.writerows([path, start, start + seconds, 0] for start in starts.tolist())
    return build_manifest(folder / "clips.csv", media_root=folder, output=folder / "manifest", progress=False)


def loader_of(manifest: Manifest, preset: Preset, arguments: argparse.Namespace, **more: Any) -> AVLoader:
    """The loader as it is measured."""
    options: dict[str, Any] = {"batch_size": arguments.batch_size, "clips": "first", "device": arguments.device}
    return AVLoader(manifest, preset=preset, **(options | more))


def verify(manifest: Manifest, preset: Preset, arguments: argparse.Namespace, known: np.ndarray) -> None:
    """Check the frames, the sound and the features of two batches."""
    few = min(available_cores(), 2)  # processes, soon started
    plain: dict[str, Any] = {
        "num_workers": few,
        "size": SIDE,
        "resize": None,
        "crop": "center",
        "color": "rgb",
        "normalize": None,
    }
    with loader_of(manifest, preset, arguments, **plain, features=None, sample_rate=NATIVE_RATE) as loader:
        for _, batch in zip(range(2), loader, strict=False):
            for place in range(len(batch)):
                check_clip(batch, place, known, aligned=preset.audio_from == "clip")
    with (
        loader_of(manifest, preset, arguments, num_workers=few) as loader,
        loader_of(manifest, preset, arguments, num_workers=few, device="cpu") as on_cpu,
        loader_of(manifest, preset, arguments, num_workers=few, features=None) as without,
    ):
        for _, batch, expected, bare in zip(range(2), loader, on_cpu, without, strict=False):
            assert batch.spectrogram is not None
            assert expected.spectrogram is not None
            assert torch.equal(batch.row, bare.row)
            assert torch.equal(batch.frames, bare.frames), "features change the frames"
            assert preset.features is not None
            assert batch.spectrogram.shape[1:] == preset.features.shape(batch.audio.shape[1])
            error = (batch.spectrogram.cpu() - expected.spectrogram).abs().max() / expected.spectrogram.abs().max()
            assert error <= FEATURE_TOLERANCE, f"the features of {preset.name} are {error:.2g} off"


def check_clip(batch: AVBatch, place: int, known: np.ndarray, *, aligned: bool) -> None:
    """Check what the frames show, and where in the known sound the sound lies."""
    shown = [read_number(frame) for frame in batch.frames[place].permute(0, 2, 3, 1).cpu().numpy()]
    expected = [round(second * FPS) for second in batch.frame_seconds[place].tolist()]
    assert shown == expected, f"the frames show {shown}, not {expected}"
    start = round(batch.audio_start_seconds[place].item() * NATIVE_RATE)
    if aligned:
        assert start == expected[0] * NATIVE_RATE // FPS
    first, stop = batch.audio_valid[place].tolist()
    audio = batch.audio[place, first : min(stop, first + 32768)].double().cpu().numpy()
    reference = known[start + first : start + first + len(audio)]
    correlation = np.fft.irfft(np.fft.rfft(audio, 65536) * np.fft.rfft(reference, 65536).conj())
    assert correlation.argmax() == 0, f"the sound is {correlation.argmax()} samples off"


def measure(loader: AVLoader, num_clips: int) -> float:
    """Clips per second over so many clips, after a third as many; the loader starts anew."""
    counted, begin = -(num_clips // 3), 0.0
    with contextlib.closing(endless(loader)) as batches:
        for batch in batches:
            if counted >= 0 and not begin:
                counted, begin = 0, time.perf_counter()
            else:
                counted += len(batch)
            if counted >= num_clips:
                break
        seconds = time.perf_counter() - begin
    loader.close()  # else it reads ahead while the other one runs, and holds memory
    return counted / seconds


def endless(loader: AVLoader) -> Generator[AVBatch]:
    """The batches of one epoch after the other."""
    while True:
        yield from loader


def bench(path: Path, preset: Preset, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures of one preset."""
    num_clips = max(arguments.frames // preset.num_frames, 6 * arguments.batch_size)
    num_clips = min(num_clips, arguments.most_clips) // arguments.batch_size * arguments.batch_size
    manifest = manifest_of(path, preset, num_clips, folder / preset.name)
    if not arguments.verified:
        verify(manifest, preset, arguments, sound_of(recipe()).astype(np.float64))
    if arguments.verify_only:
        return {"preset": preset.name, "clips": num_clips}
    rates: dict[str, list[float]] = {"with": [], "without": []}
    with (
        loader_of(manifest, preset, arguments) as loader,
        loader_of(manifest, preset, arguments, features=None) as without,
    ):
        for _ in range(arguments.rounds):
            rates["without"].append(measure(without, num_clips))
            rates["with"].append(measure(loader, num_clips))
    ratios = [own / bare for own, bare in zip(rates["with"], rates["without"], strict=True)]
    return {
        "preset": preset.name,
        "clips": num_clips,
        "clips_per_second": round(statistics.median(rates["with"]), 1),
        "without_features": round(statistics.median(rates["without"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "rounds": {key: [round(value, 1) for value in values] for key, values in rates.items()},
    }


def show(results: Sequence[dict[str, Any]]) -> None:
    """Print a table."""
    table = Table(title="clips per second, median")
    for column in ("preset", "without features", "with", "ratio"):
        table.add_column(column, justify="left" if column == "preset" else "right")
    for row in results:
        table.add_row(
            row["preset"], f"{row['without_features']:.1f}", f"{row['clips_per_second']:.1f}", f"{row['ratio']:.3f}"
        )
    Console(width=100).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS), metavar="NAME")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--rounds", type=int, default=3, help="how often each rate is taken (default: 3)")
    parser.add_argument("--batch-size", type=int, default=8, help="clips of a batch (default: 8)")
    parser.add_argument("--frames", type=int, default=8000, help="about so many frames an epoch (default: 8000)")
    parser.add_argument("--most-clips", type=int, default=2000, help="at most so many clips an epoch (default: 2000)")
    parser.add_argument("--verified", action="store_true", help="time only, after a run with --verify-only")
    parser.add_argument("--verify-only", action="store_true", help="check what is delivered, and time nothing")
    arguments = parser.parse_args(argv)
    results = []
    with tempfile.TemporaryDirectory(prefix="avloader-bench-") as name:
        path = make(recipe(), Path(name))
        for preset in arguments.presets:
            results.append(bench(path, PRESETS[preset], arguments, Path(name)))
            print(json.dumps(results[-1]), flush=True)
    if arguments.verify_only:
        return 0
    show(results)
    if arguments.output:
        report = {"machine": machine(arguments.device), "results": results}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
