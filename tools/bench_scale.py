"""Ten million rows over a million media: how fast they are written, opened and planned, and in how much memory.

    python tools/bench_scale.py --output tools/bench_scale.json
    python tools/bench_scale.py --rows 200000 --media 20000

First `build_manifest` itself makes manifests of a tenth, a quarter and all of the rows over a hundredth of the media,
each of them really probed: the time and the memory of a build. Then the manifest of all media is written by the
package's own functions, its one file being probed once, since a million media would take what bench_manifest.py says:
that one is opened, planned and loaded. The media are a few real mp4 files under many names: folders that are links to
one folder. Every step runs in a process of its own, whose peak memory is taken from the system. What was written is
compared with the annotations, and the order of the clips with its definition, both computed in another way.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from make_truth_media import Picture, Recipe, Sound, make

from avloader import Manifest, build_manifest
from avloader.annotations import read_annotations
from avloader.epochs import batches
from avloader.keyed import Purpose, bits
from avloader.manifest import write_manifest
from avloader.media import probe
from avloader.plan import Plan, PlanOptions
from avloader.probing import ProbedMedia

NUM_FILES = 1000  # media in a folder; every folder is the same one
FILE_SECONDS = 20
NUM_LABELS = 309
RANK, WORLD_SIZE, BATCH_SIZE, NUM_FRAMES = 3, 64, 16, 16
OPTIONS = PlanOptions(num_frames=NUM_FRAMES, clips="all", shuffle=True, seed=1)
PACKAGES = ("avloader", "av", "numpy", "pyarrow", "torch")


def annotation(row: int, rows_per_medium: int) -> tuple[int, int, int, int]:
    """Medium, first and stop frame at 25 a second, and label of a row: 18 to 45 frames, that is one clip or two."""
    length = 18 + row * 7919 % 28
    start = row * 104729 % (25 * FILE_SECONDS - 46)
    return row // rows_per_medium, start, start + length, row % NUM_LABELS


def medium_path(folder: Path, medium: int) -> str:
    """Its name, one of many of a file."""
    return f"{folder}/media/{medium // NUM_FILES:04d}/{medium % NUM_FILES:03d}.mp4"


def make_input(folder: Path, num_rows: int, num_media: int) -> None:
    """The media, and the file of annotations."""
    sound = Sound(rate=48000, seconds=Fraction(FILE_SECONDS), bit_rate=64_000)
    picture = Picture(num_frames=25 * FILE_SECONDS, width=128, height=96, gop=12, num_b_frames=2)
    made = make(Recipe("medium", "medium.mp4", picture, sound), folder)
    (folder / "files").mkdir()
    for number in range(NUM_FILES):
        os.link(made, folder / "files" / f"{number:03d}.mp4")
    (folder / "media").mkdir()
    for number in range(-(-num_media // NUM_FILES)):
        (folder / "media" / f"{number:04d}").symlink_to(folder / "files")
    with (folder / "clips.csv").open("w") as file:
        file.write("path,start,end,label\n")
        for medium in range(num_media):
            path = os.path.relpath(medium_path(folder, medium), folder)
            for row in range(medium * (num_rows // num_media), (medium + 1) * (num_rows // num_media)):
                _, start, end, label = annotation(row, num_rows // num_media)
                file.write(f"{path},{start / 25},{end / 25},class {label}\n")


def build_whole(folder: Path, num_media: int) -> dict[str, Any]:
    """The way of a user: `build_manifest`, which probes every medium."""
    begin = time.perf_counter()
    manifest = build_manifest(
        folder / "clips.csv", media_root=folder, output=folder / "manifest", progress=sys.stderr.isatty()
    )
    seconds = time.perf_counter() - begin
    return {"rows": len(manifest), "media": num_media, "build, s": seconds, "rows/s": len(manifest) / seconds}


def verify_whole(folder: Path, num_media: int) -> dict[str, Any]:
    """Compare what was built with the annotations; in a process of its own, since columns take memory."""
    manifest = Manifest.open(folder / "manifest")
    assert manifest.num_media == num_media
    _check_columns(manifest, num_media)
    return {}


def build(folder: Path, num_media: int) -> dict[str, Any]:
    """Write the manifest; the file is probed once, not a million times: that is bench_manifest.py's matter."""

    def add(media: ProbedMedia) -> None:
        facts = probe(medium_path(folder, 0))
        for medium in range(num_media):
            path = medium_path(folder, medium)
            media.add(path, replace(facts, path=path))

    entries = read_annotations(folder / "clips.csv")
    labels = {f"class {label}" for label in range(NUM_LABELS)}
    begin = time.perf_counter()
    manifest = write_manifest(
        entries,
        add,
        labels=labels,
        root=os.fspath(folder),
        output=os.fspath(folder / "manifest"),
        options={"annotations": "clips.csv"},
    )
    writing = time.perf_counter() - begin
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(manifest.path)}
    return {
        "writing, rows/s": len(manifest) / writing,
        "files, MB": {name: size / 1e6 for name, size in sizes.items()},
    }


def verify(folder: Path, num_media: int) -> dict[str, Any]:
    """Compare some rows with their annotations, and the order of an epoch with its definition."""
    manifest = Manifest.open(folder / "manifest")
    num_rows = len(manifest)
    length = manifest.stop_frame - manifest.first_frame
    for row in np.linspace(0, num_rows - 1, 20, dtype=int).tolist():
        medium, start, end, label = annotation(row, num_rows // num_media)
        record = manifest.row(row)
        assert record.path == medium_path(folder, medium), record
        assert (record.first_frame, record.stop_frame) == (start, end), record
        assert (record.start_seconds, record.stop_seconds) == (Fraction(start, 25), Fraction(end, 25)), record
        assert manifest.labels[record.label] == f"class {label}", record
    _check_columns(manifest, num_media)
    numbers = np.arange(num_rows)

    plan = Plan(manifest, OPTIONS, epoch=1)
    row_of_clip = np.repeat(numbers, length // NUM_FRAMES)
    assert len(plan) == len(row_of_clip)
    clips = np.arange(len(plan), dtype=np.uint64)
    low = np.uint64((1 << len(plan).bit_length()) - 1)
    keys = bits(clips, seed=OPTIONS.seed, epoch=1, purpose=Purpose.SHUFFLE) & ~low | clips
    order = np.argsort(keys)
    assert np.array_equal(np.bincount(order, minlength=len(plan)), np.ones(len(plan), np.int64))
    for clip in islice(_clips_of_rank(plan), 2000):
        number = int(order[clip.position])
        row = int(row_of_clip[number])
        window = number - int(np.searchsorted(row_of_clip, row))
        first = int(manifest.first_frame[row]) + window * NUM_FRAMES
        assert (clip.row, clip.frames) == (row, tuple(range(first, first + NUM_FRAMES))), clip
        assert clip.audio_start == Fraction(first, 25), clip
    return {"rows": num_rows, "media": manifest.num_media, "clips of an epoch": len(plan)}


def _check_columns(manifest: Manifest, num_media: int) -> None:
    """Compare all rows with their annotations."""
    numbers = np.arange(len(manifest))
    assert np.array_equal(manifest.stop_frame - manifest.first_frame, 18 + numbers * 7919 % 28)
    assert np.array_equal(manifest.first_frame, numbers * 104729 % (25 * FILE_SECONDS - 46))
    assert np.array_equal(manifest.media_id, numbers // (len(manifest) // num_media))


def _clips_of_rank(plan: Plan) -> Iterator[Any]:
    spans = batches(len(plan), batch_size=BATCH_SIZE, rank=RANK, world_size=WORLD_SIZE)
    for clips in plan.clips(spans):
        yield from clips


def measure(folder: Path, num_media: int) -> dict[str, Any]:
    """Open, plan, and the first clips of one rank."""
    start_mb = _memory_mb("VmHWM")
    times = [time.perf_counter()]
    manifest = Manifest.open(folder / "manifest")
    times.append(time.perf_counter())
    plan = Plan(manifest, OPTIONS, epoch=0)
    clips = _clips_of_rank(plan)
    assert len(list(islice(clips, 4 * BATCH_SIZE))) == 4 * BATCH_SIZE
    times.append(time.perf_counter())
    num_clips = 4096
    for clip in islice(clips, num_clips):
        manifest.media(clip.media_id)
    times.append(time.perf_counter())
    return {
        "open, s": times[1] - times[0],
        "epoch plan and the first 4 batches, s": times[2] - times[1],
        "each further clip, us": (times[3] - times[2]) / num_clips * 1e6,
        "memory before, MB": start_mb,
        "peak memory, MB": _memory_mb("VmHWM"),
        "memory at the end without mapped files, MB": _memory_mb("RssAnon"),
    }


def load(folder: Path, num_media: int) -> dict[str, Any]:
    """The same through the loader, with real batches."""
    from avloader import AVLoader  # here, so that the other steps do without PyTorch and DALI

    begin = time.perf_counter()
    loader = AVLoader(
        folder / "manifest",
        batch_size=BATCH_SIZE,
        num_frames=NUM_FRAMES,
        size=96,
        shuffle=True,
        rank=RANK,
        world_size=WORLD_SIZE,
        device="cpu",
    )
    made = time.perf_counter()
    with loader:
        batches_of_loader = iter(loader)
        assert len(next(batches_of_loader)) == BATCH_SIZE
        first = time.perf_counter()
        for _ in range(20):
            next(batches_of_loader)
        return {
            "loader made, s": made - begin,
            "first batch, s": first - made,
            "peak memory, MB": _memory_mb("VmHWM"),
        }


def _memory_mb(name: str) -> float:
    # Of the process's own memory: getrusage would also count what its parent had before the process was started.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"the system does not tell {name}")


def in_own_process(step: Callable[[Path, int], dict[str, Any]], folder: Path, num_media: int) -> dict[str, Any]:
    """Run a step in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_with_memory, (step, folder, num_media))


def _with_memory(step: Callable[[Path, int], dict[str, Any]], folder: Path, num_media: int) -> dict[str, Any]:
    return {"peak memory, MB": 0.0} | step(folder, num_media) | {"peak memory, MB": _memory_mb("VmHWM")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="annotations (default: 10000000)")
    parser.add_argument("--media", type=int, default=1_000_000, help="media (default: 1000000)")
    parser.add_argument("--rounds", type=int, default=3, help="how often opening and planning are timed (default: 3)")
    parser.add_argument("--folder", type=Path, help="where to work, needs 3 GB (default: the system's)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args(argv)
    if arguments.rows % arguments.media:
        parser.error("--rows must be a multiple of --media")
    report: dict[str, Any] = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "build_whole": [],
    }
    num_probed = max(1, arguments.media // 100)
    for share in (10, 4, 1):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            folder = Path(name).resolve()
            make_input(folder, arguments.rows // share // num_probed * num_probed, num_probed)
            report["build_whole"].append(in_own_process(build_whole, folder, num_probed))
            in_own_process(verify_whole, folder, num_probed)
        print(json.dumps({"build_whole": report["build_whole"][-1]}, indent=1), flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name).resolve()
        make_input(folder, arguments.rows, arguments.media)
        for step in (build, verify):
            report[step.__name__] = in_own_process(step, folder, arguments.media)
            print(json.dumps({step.__name__: report[step.__name__]}, indent=1), flush=True)
        for step in (measure, load):
            rounds = [in_own_process(step, folder, arguments.media) for _ in range(arguments.rounds)]
            medians = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
            report[step.__name__] = {"median": medians, "rounds": rounds}
            print(json.dumps({step.__name__: medians}, indent=1), flush=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
