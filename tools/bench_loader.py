"""Clips per second of the loader beside the bare decode of the same clips; writes its figures to a file.

    python tools/bench_loader.py --device cpu --output tools/bench_loader_cpu.json
    python tools/bench_loader.py --device gpu --output tools/bench_loader_gpu.json

16-frame clips at random starts of H.264 files with AAC sound: 224x224 GOP 12, 1280x720 GOP 50, 1920x1080 GOP 60, batch
16, frames resized to 224x224 and normalized, 16 kHz sound, 80-band log-mel. The clips lie in one file, where those that
are near each other share decoding on the CPU, or each in a file of its own, which is opened for it.

What the loader delivers is checked first: every frame by the number that it shows, every window of sound by its place
in the known sound. Then bare decode and loader take turns; a figure is the median of the rounds. The loader runs on
from epoch to epoch and is timed from the middle of the second to the end of the third: what was read ahead then was
read before, as much as is at the end, into memory that had been written before. An epoch has to be longer than what is
read ahead, or the same clip of two epochs shares decoding.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from make_truth_media import Picture, Recipe, Sound, make, read_number, sound_of
from rich.console import Console
from rich.table import Table

from avloader import AVLoader, Decibels, Manifest, MelSpectrogram, build_manifest
from avloader.batch import AVBatch
from avloader.workers import WorkerPool, available_cores

NUM_FRAMES, BATCH_SIZE, SIZE, RATE = 16, 16, 224, 16000
FEATURES = MelSpectrogram(n_fft=512, hop_length=160, n_mels=80, scale=Decibels())
PACKAGES = ("avloader", "av", "nvidia-dali-cuda120", "numpy", "torch")


def recipes(seconds: int) -> dict[str, Recipe]:
    """The media, by the name of their row in the table."""
    sound = Sound(rate=48000, seconds=Fraction(seconds), bit_rate=128_000)

    def recipe(width: int, height: int, gop: int) -> Recipe:
        picture = Picture(num_frames=25 * seconds, width=width, height=height, gop=gop, num_b_frames=2)
        return Recipe(f"{width}x{height}", f"{width}x{height}.mp4", picture, sound)

    return {
        "224x224 GOP 12": recipe(224, 224, 12),
        "1280x720 GOP 50": recipe(1280, 720, 50),
        "1920x1080 GOP 60": recipe(1920, 1080, 60),
    }


def medium(recipe: Recipe, folder: Path, kept: Path | None) -> Path:
    """The file of `recipe` in `folder`: made, or a copy of what an earlier run has left in `kept`."""
    if kept is None:
        return make(recipe, folder)
    assert recipe.picture is not None
    file = kept / f"{recipe.picture.num_frames}_{recipe.file_name}"
    if not file.exists():
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as making:
            make(recipe, Path(making)).replace(file)
    return Path(shutil.copyfile(file, folder / recipe.file_name))


def random_manifest(path: Path, recipe: Recipe, num_clips: int, folder: Path, *, own_files: bool = False) -> Manifest:
    """Clips at random starts (fixed seed) of one medium, or each of a file of its own that is a link to it."""
    assert recipe.picture is not None
    starts = np.random.default_rng(0).integers(0, recipe.picture.num_frames - NUM_FRAMES, num_clips).tolist()
    paths = [path] * num_clips
    if own_files:
        paths = [folder / f"{number}{path.suffix}" for number in range(num_clips)]
        for own in paths:
            os.link(path, own)
    annotations = folder / "clips.csv"
    with annotations.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end", "label"])
        for own, start in zip(paths, starts, strict=True):
            writer.writerow([own, start / 25, (start + NUM_FRAMES) / 25, 0])
    return build_manifest(annotations, media_root=folder, output=folder / "manifest", progress=False)


def loader_of(manifest: Manifest, arguments: argparse.Namespace, **more: Any) -> AVLoader:
    """The loader as it is measured."""
    options: dict[str, Any] = {
        "batch_size": BATCH_SIZE,
        "num_frames": NUM_FRAMES,
        "size": SIZE,
        "sample_rate": RATE,
        "features": FEATURES,
        "clips": "first",
        "device": arguments.device,
        "decode": arguments.decode,
    }
    return AVLoader(manifest, **(options | more))


def check_batch(batch: AVBatch, manifest: Manifest, recipe: Recipe) -> int:
    """Check every frame and every window of sound, at 48 kHz, of a batch; returns how many clips it has."""
    known = _known_sound(recipe)
    for place, row in enumerate(batch.row.tolist()):
        first = int(manifest.first_frame[row])
        frames = batch.frames[place].permute(0, 2, 3, 1).cpu().numpy()
        shown = [read_number(frame) for frame in frames]
        assert shown == list(range(first, first + NUM_FRAMES)), f"row {row} shows {shown}"
        audio = batch.audio[place].double().cpu().numpy()
        expected = known[first * 1920 : first * 1920 + len(audio)]
        correlation = np.fft.irfft(np.fft.rfft(audio, 65536) * np.fft.rfft(expected, 65536).conj())
        assert correlation.argmax() == 0, f"the sound of row {row} is {correlation.argmax()} samples off"
    return len(batch)


@functools.lru_cache(1)
def _known_sound(recipe: Recipe) -> npt.NDArray[np.float64]:
    return sound_of(recipe).astype(np.float64)


def verify(manifest: Manifest, recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Check what the loader delivers for some batches."""
    with loader_of(manifest, arguments, normalize=None, sample_rate=48000) as loader:
        for number, batch in enumerate(loader):
            check_batch(batch, manifest, recipe)
            if number == 3:
                return


BareTask = tuple[str, int, int, bool]  # path, pts of the first and of the last frame, whether to convert


class BareDecoder:
    """libavcodec alone: seek, decode the needed frames, and convert them if asked; some containers stay open."""

    def __init__(self, _: object, __: object) -> None:
        self._containers: dict[str, Any] = {}  # the oldest first
        self._reformatter = av.video.reformatter.VideoReformatter()

    def __call__(self, task: BareTask) -> int:
        """Decode one clip and return how many of its frames came out."""
        path, first_pts, last_pts, convert = task
        container = self._containers.get(path)
        if container is None:
            container = self._containers[path] = av.open(path)
            context = container.streams.video[0].codec_context
            context.thread_count, context.thread_type = 1, "NONE"
            if len(self._containers) > 16:
                self._containers.pop(next(iter(self._containers))).close()
        stream = container.streams.video[0]
        container.seek(first_pts, stream=stream)
        count = 0
        stream.codec_context.skip_frame = "NONREF"
        for packet in container.demux(stream):
            if packet.pts is not None and packet.pts >= first_pts:
                stream.codec_context.skip_frame = "DEFAULT"
            for frame in packet.decode():
                if first_pts <= frame.pts <= last_pts:
                    count += 1
                    if convert:
                        self._reformatter.reformat(frame, SIZE, SIZE, "rgb24", interpolation="BILINEAR", threads=1)
            if count == NUM_FRAMES:
                break
        return count


def bare_cpu(manifest: Manifest, *, convert: bool) -> float:
    """Clips per second of libavcodec in one process a core."""
    tasks = []
    for first, number in zip(manifest.first_frame.tolist(), manifest.media_id.tolist(), strict=True):
        media = manifest.media(number)
        assert media.video is not None
        times = media.video.times
        tasks.append((media.path, times.pts(first), times.pts(first + NUM_FRAMES - 1), convert))
    cores = available_cores()
    with WorkerPool("bench_loader:BareDecoder", num_workers=cores) as pool:
        for future in [pool.submit(task) for task in tasks[: 2 * cores]]:
            future.result()
        begin = time.perf_counter()
        futures = [pool.submit(task) for task in tasks]
        short = sum(future.result() < NUM_FRAMES for future in futures)
        seconds = time.perf_counter() - begin
    assert not short, f"{short} clips lack frames"
    return len(tasks) / seconds


def bare_gpu(manifest: Manifest, folder: Path, lanes: int) -> float:
    """Clips per second of DALI's readers side by side, frames resized, without sound and features."""
    from nvidia.dali import Pipeline, fn

    lines = (manifest.path / Path("file_list.txt")).read_text().splitlines()
    pipes = []
    for lane in range(lanes):
        own = [
            line
            for start in range(lane * BATCH_SIZE, len(lines), lanes * BATCH_SIZE)
            for line in lines[start:][:BATCH_SIZE]
        ]
        file_list = folder / f"lane{lane}.txt"
        file_list.write_text("\n".join(own) + "\n")
        pipe = Pipeline(batch_size=BATCH_SIZE, num_threads=2, device_id=0, prefetch_queue_depth=2)
        with pipe:
            frames, _ = fn.readers.video(
                device="gpu",
                file_list=str(file_list),
                file_list_frame_num=True,
                file_list_include_preceding_frame=True,
                sequence_length=NUM_FRAMES,
                skip_vfr_check=True,
            )
            pipe.set_outputs(fn.resize(frames, size=[SIZE, SIZE]))
        pipe.build()
        pipes.append(pipe)
    total, begin = len(lines) // BATCH_SIZE, 0.0
    for pipe in pipes:
        pipe.schedule_run()
    for number in range(2 * lanes + total):
        if number == 2 * lanes:  # all readers run
            begin = time.perf_counter()
        pipe = pipes[number % lanes]
        pipe.share_outputs()
        pipe.release_outputs()
        pipe.schedule_run()
    return total * BATCH_SIZE / (time.perf_counter() - begin)


def measure(loader: AVLoader) -> tuple[float, float]:
    """Clips per second, and seconds to the first batch: three epochs, timed from the middle of the second one on."""
    begin = time.perf_counter()
    first, middle, counted = 0.0, 0.0, 0
    for epoch in range(3):
        for number, batch in enumerate(loader):
            first = first or time.perf_counter() - begin
            counted += len(batch) if middle else 0
            if not middle and epoch and number == len(loader) // 2:
                middle = time.perf_counter()
    return counted / (time.perf_counter() - middle), first


def bench(
    name: str, recipe: Recipe, arguments: argparse.Namespace, folder: Path, num_clips: int, *, own_files: bool
) -> dict[str, Any]:
    """All figures of one kind of media."""
    folder.mkdir()
    manifest = random_manifest(medium(recipe, folder, arguments.media), recipe, num_clips, folder, own_files=own_files)
    verify(manifest, recipe, arguments)
    figures: dict[str, list[float]] = {"bare": [], "loader": [], "first batch": []}
    if arguments.device == "cpu":
        figures["bare, converted"] = []
    for _ in range(arguments.rounds):
        if arguments.device == "cpu":
            figures["bare"].append(bare_cpu(manifest, convert=False))
            figures["bare, converted"].append(bare_cpu(manifest, convert=True))
        else:
            figures["bare"].append(bare_gpu(manifest, folder, arguments.lanes))
        with loader_of(manifest, arguments) as loader:
            engine = loader.engine
            rate, first = measure(loader)
        figures["loader"].append(rate)
        figures["first batch"].append(first)
    medians = {key: statistics.median(values) for key, values in figures.items()}
    ratios = [own / bare for own, bare in zip(figures["loader"], figures["bare"], strict=True)]
    return {
        "media": name,
        "files": manifest.num_media,
        "clips": len(manifest),
        "engine": engine,
        "bare_clips_per_second": round(medians["bare"], 1),
        **(
            {
                "bare_converted_clips_per_second": round(medians["bare, converted"], 1),
                "ratio_to_converted": round(
                    statistics.median(
                        own / bare for own, bare in zip(figures["loader"], figures["bare, converted"], strict=True)
                    ),
                    3,
                ),
            }
            if arguments.device == "cpu"
            else {}
        ),
        "loader_clips_per_second": round(medians["loader"], 1),
        "ratio": round(statistics.median(ratios), 3),
        "first_batch_seconds": round(medians["first batch"], 2),
        "rounds": {key: [round(value, 2) for value in values] for key, values in figures.items()},
    }


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    facts = {"cpu_cores": available_cores(), "platform": platform.platform(), "python": platform.python_version()}
    facts["packages"] = {name: _version(name) for name in PACKAGES}
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    facts["commit"] = git.stdout.strip() or "unknown"
    if device == "gpu":
        import torch

        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return "source"


def show(results: Sequence[dict[str, Any]]) -> None:
    """Print a short table."""
    table = Table(title="clips per second, median")
    for column in ("media", "files", "bare decode", "converted", "loader", "loader / bare", "first batch"):
        table.add_column(column, justify="left" if column == "media" else "right")
    for row in results:
        table.add_row(
            row["media"],
            str(row["files"]),
            f"{row['bare_clips_per_second']:.1f}",
            f"{row.get('bare_converted_clips_per_second', float('nan')):.1f}",
            f"{row['loader_clips_per_second']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['first_batch_seconds']:.2f} s",
        )
    Console(width=120).print(table)


def _counts(text: str) -> list[int]:
    counts = [int(word) for word in text.split(",")]
    if len(counts) != 3:
        raise argparse.ArgumentTypeError("three numbers, one for each kind of media")
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--decode", choices=("auto", "nvdec", "cpu"), default="auto")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--media", type=Path, help="folder that keeps the media for the next run")
    parser.add_argument("--seconds", type=int, default=60, help="length of the one file (default: 60)")
    parser.add_argument("--clips", type=_counts, default=[960, 480, 480],
                        help="clips of each kind in one file (default: 960,480,480)")  # fmt: skip
    parser.add_argument("--own-files", type=_counts, default=[400, 400, 400],
                        help="clips of each kind in 10 s long files of their own (default: 400,400,400)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="how often each figure is taken (default: 3)")
    parser.add_argument("--lanes", type=int, default=8, help="readers side by side in the bare GPU decode (default: 8)")
    arguments = parser.parse_args(argv)
    sys.path.insert(0, os.fspath(Path(__file__).parent))  # so that worker processes find BareDecoder
    results = []
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            (name, recipe, num_clips, own_files)
            for own_files, seconds, counts in (
                (False, arguments.seconds, arguments.clips),
                (True, 10, arguments.own_files),
            )
            for (name, recipe), num_clips in zip(recipes(seconds).items(), counts, strict=True)
            if num_clips
        ]
        for name, recipe, num_clips, own_files in jobs:
            place = Path(folder, f"{recipe.name}{'_own' if own_files else ''}")
            results.append(bench(name, recipe, arguments, place, num_clips, own_files=own_files))
            show(results)
            if arguments.output is not None:
                report = {"machine": machine(arguments.device), "seconds": arguments.seconds, "results": results}
                arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
