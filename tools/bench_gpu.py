"""What the loader does on a GPU, beside the decoder alone and beside other loaders; writes its figures to a file.

    python tools/bench_gpu.py --output tools/bench_gpu.json
    python tools/bench_gpu.py --parts rates,waiting

16-frame clips at random starts of H.264 files with AAC sound, batch 16, frames resized to 224x224 and normalized,
16 kHz sound, 80-band log-mel. What is delivered is checked before anything is timed. Everything that is compared runs
in turn, some rounds; a figure is the median. Parts:

rates    at 224x224, 1280x720 and 1920x1080: bare readers, the loader on NVDEC alone and with the CPU beside it, the
         tutorial's pipeline (one reader, `librosa.load` for every window), a DataLoader with 16 workers over PyAV
waiting  how long a training step that takes 80 % of the loader's rate waits for a batch
memory   the GPU's memory at 1920x1080 with default settings and without a limit
files    16,000 clips, each a file of its own: rate, longest gap, what grows
start    100,000 rows over 5,000 files: time to the first batch, memory of the process
epochs   ten shuffled epochs: every row once an epoch, every picture and every sound right
faults   100 files of 1,000 damaged in eight ways, and files removed meanwhile: what is delivered and what is reported
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import bench_loader as bench
import librosa
import numpy as np
import soundfile
import torch
from bench_loader import BATCH_SIZE, FEATURES, NUM_FRAMES, RATE, SIZE
from make_truth_media import Recipe, read_number, sound_of
from rich.console import Console
from rich.table import Table

from avloader import AVLoader, Manifest, build_manifest
from avloader.batch import AVBatch
from avloader.loader import IMAGENET_MEAN, IMAGENET_STD

# More than what is read ahead: else the same clip of two epochs would be decoded once
CLIPS = {"224x224 GOP 12": 8192, "1280x720 GOP 50": 2048, "1920x1080 GOP 60": 1024}


def loader_of(manifest: Manifest, **more: Any) -> AVLoader:
    """The loader as it is measured."""
    options: dict[str, Any] = {
        "batch_size": BATCH_SIZE,
        "num_frames": NUM_FRAMES,
        "size": SIZE,
        "sample_rate": RATE,
        "features": FEATURES,
        "clips": "first",
        "device": "gpu",
    }
    return AVLoader(manifest, **(options | more))


def steady_rate(batches: Iterator[Any], num_batches: int) -> float:
    """Clips per second after `num_batches` // 3 batches, over so many more."""
    for _ in range(num_batches // 3):
        next(batches)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    torch.cuda.synchronize()
    return num_batches * BATCH_SIZE / (time.perf_counter() - begin)


def endless(loader: AVLoader) -> Generator[AVBatch]:
    """The batches of one epoch after the other."""
    while True:
        yield from loader


def used_memory() -> int:
    """Bytes of the GPU's memory that are in use."""
    free, total = torch.cuda.mem_get_info()
    return total - free


# Other ways to the same batches ---------------------------------------------------------------------------------------


def finish(frames: torch.Tensor, audio: torch.Tensor, mel: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What a user of another decoder does on the GPU: normalize, and make the log-mel."""
    mean, std = (torch.tensor(values, device="cuda").view(1, 1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pictures = (frames.float() - mean) / std
    window = torch.hann_window(512, device="cuda")
    power = torch.stft(audio, 512, 160, window=window, pad_mode="constant", return_complex=True).abs() ** 2
    return pictures, audio, 10 * torch.log10((mel @ power).clamp(min=1e-10))


def mel_bank() -> torch.Tensor:
    """The filter bank on the GPU."""
    return torch.from_numpy(librosa.filters.mel(sr=RATE, n_fft=512, n_mels=80)).cuda()


class PyAVClips(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A Dataset as one writes it with PyAV: containers stay open, only wanted frames are converted."""

    def __init__(self, path: str, starts: Sequence[int]) -> None:
        self._path, self._starts = path, starts
        self._video: Any = None
        self._audio: Any = None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._video is None:
            self._video, self._audio = av.open(self._path), av.open(self._path)
            self._video.streams.video[0].codec_context.thread_count = 1
            self._scale = av.video.reformatter.VideoReformatter()
        start = self._starts[index] / 25
        frames = np.empty((NUM_FRAMES, SIZE, SIZE, 3), np.uint8)
        stream, count = self._video.streams.video[0], 0
        self._video.seek(int(start / stream.time_base), stream=stream)
        for frame in self._video.decode(stream):
            if frame.time > start - 0.02:
                frames[count] = self._scale.reformat(frame, SIZE, SIZE, "rgb24").to_ndarray()
                count += 1
                if count == NUM_FRAMES:
                    break
        num_samples = NUM_FRAMES * RATE // 25
        stream, sound = self._audio.streams.audio[0], list[Any]()
        first, total = 0.0, 0
        self._audio.seek(max(int((start - 0.05) / stream.time_base), 0), stream=stream)
        for frame in self._audio.decode(stream):
            first = first if sound else frame.time
            sound.append(frame.to_ndarray().mean(axis=0))
            total += frame.samples
            if total >= (start - first + NUM_FRAMES / 25) * stream.rate + 1024:
                break
        samples = np.concatenate(sound)[round((start - first) * stream.rate) :]
        samples = librosa.resample(samples, orig_sr=stream.rate, target_sr=RATE, res_type="soxr_hq")[:num_samples]
        return torch.from_numpy(frames).permute(0, 3, 1, 2), torch.from_numpy(samples)


def data_loader(manifest: Manifest, num_workers: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches of a DataLoader over PyAV, finished on the GPU."""
    starts = manifest.first_frame.tolist() * 100
    loader = torch.utils.data.DataLoader(
        PyAVClips(manifest.media(0).path, starts),
        batch_size=BATCH_SIZE,
        num_workers=num_workers,
        pin_memory=True,
        prefetch_factor=4,
        multiprocessing_context="spawn",
    )
    mel = mel_bank()
    for frames, audio in loader:
        yield finish(frames.cuda(non_blocking=True), audio.cuda(non_blocking=True), mel)


def tutorial(manifest: Manifest) -> Iterator[tuple[torch.Tensor, ...]]:
    """One reader, and for every clip `librosa.load` of its window, in the training process.

    From WAV beside the video: librosa reads nothing else quickly.
    """
    from nvidia.dali import Pipeline, fn
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    path = manifest.media(0).path + ".wav"
    pipe = Pipeline(batch_size=BATCH_SIZE, num_threads=4, device_id=0)
    with pipe:
        frames, row = fn.readers.video_resize(
            device="gpu",
            file_list=os.fspath(manifest.path / Path("file_list.txt")),
            file_list_frame_num=True,
            file_list_include_preceding_frame=True,
            sequence_length=NUM_FRAMES,
            size=[SIZE, SIZE],
            skip_vfr_check=True,
        )
        pipe.set_outputs(fn.transpose(frames, perm=[0, 3, 1, 2]), row)
    mel = mel_bank()
    starts = manifest.first_frame
    for (batch,) in DALIGenericIterator([pipe], ["frames", "row"], auto_reset=True):
        sounds = [
            librosa.load(path, sr=RATE, offset=starts[row] / 25, duration=NUM_FRAMES / 25)[0]
            for row in batch["row"].flatten().tolist()
        ]
        audio = torch.from_numpy(np.stack([sound[: NUM_FRAMES * RATE // 25] for sound in sounds])).cuda()
        yield finish(batch["frames"], audio, mel)


OTHERS: dict[str, Callable[[Manifest], Iterator[tuple[torch.Tensor, ...]]]] = {
    "tutorial": tutorial,
    "DataLoader": functools.partial(data_loader, num_workers=16),
}


def rate_of_other(name: str, manifest: Manifest, num_batches: int) -> float:
    """Clips per second of another loader, in a process of its own: some end badly in the middle of their data."""
    command = [sys.executable, __file__, "--other", name, str(manifest.path), str(num_batches)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(output.split()[-1])


def verify_other(name: str, batches: Iterator[tuple[torch.Tensor, ...]], manifest: Manifest) -> None:
    """Check the first batch of another loader: the right frames, and the sound that the loader gives."""
    with loader_of(manifest) as loader:
        ours = next(iter(loader))
    frames, audio, mel = next(batches)
    mean, std = (torch.tensor(values, device="cuda").view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for place, row in enumerate(ours.row.tolist()):
        first = int(manifest.first_frame[row])
        pictures = (frames[place] * std + mean).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        shown = [read_number(picture) for picture in pictures]
        assert shown == list(range(first, first + NUM_FRAMES)), f"{name}: row {row} shows {shown}"
        a, b = (sound.double().cpu().numpy()[200:-200] for sound in (audio[place], ours.audio[place]))
        assert np.corrcoef(a, b)[0, 1] > 0.9, f"{name}: the sound of row {row} is another"
    assert ours.spectrogram is not None
    assert mel.shape[:2] == ours.spectrogram.shape[:2], f"{name}: {mel.shape}"


# Parts ----------------------------------------------------------------------------------------------------------------


def rates(folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Clips per second."""
    for name in arguments.sizes:
        recipe = bench.recipes(60)[name]
        place = folder / recipe.name
        place.mkdir()
        manifest = bench.random_manifest(bench.medium(recipe, place, arguments.media), recipe, CLIPS[name], place)
        soundfile.write(manifest.media(0).path + ".wav", sound_of(recipe), 48000)
        bench.verify(manifest, recipe, argparse.Namespace(device="gpu", decode="auto"))
        num_batches = CLIPS[name] // BATCH_SIZE
        others = {"tutorial": max(num_batches // 12, 6), "DataLoader": num_batches // 2}
        figures: dict[str, list[float]] = collections.defaultdict(list)
        sentence = ""
        for number in range(arguments.rounds):
            figures["bare"].append(bench.bare_gpu(manifest, place, arguments.lanes))
            for key, options in (("nvdec", {"decode": "nvdec"}), ("together", {})):
                with loader_of(manifest, **options) as loader:
                    batches = endless(loader)
                    figures[key].append(steady_rate(batches, num_batches))
                    sentence = loader.engine
                    assert not loader.fallbacks, loader.fallbacks
                    batches.close()
            for other, count in others.items():
                if number < arguments.other_rounds:
                    figures[other].append(rate_of_other(other, manifest, count))
        medians = {key: round(statistics.median(values), 1) for key, values in figures.items()}
        yield {
            "media": name,
            "clips_per_second": medians,
            **{
                f"together / {key}": round(medians["together"] / value, 3)
                for key, value in medians.items()
                if key != "together"
            },
            "nvdec / bare": round(medians["nvdec"] / medians["bare"], 3),
            "engine": sentence,
            "rounds": {key: [round(value, 1) for value in values] for key, values in figures.items()},
        }


def waiting(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds that a training step waits for its batch, at 80 % of the loader's rate."""
    recipe = bench.recipes(60)["1280x720 GOP 50"]
    manifest = bench.random_manifest(bench.medium(recipe, folder, arguments.media), recipe, 2048, folder)
    bench.verify(manifest, recipe, argparse.Namespace(device="gpu", decode="auto"))
    weights = torch.randn(4096, 4096, device="cuda")
    with loader_of(manifest) as loader:
        batches = endless(loader)
        step = BATCH_SIZE / steady_rate(batches, 64) / 0.8
        waits = []
        for _ in range(300):
            begin = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - begin)
            while time.perf_counter() - begin < waits[-1] + step:  # the GPU works as long as the step lasts
                weights @ weights
                torch.cuda.synchronize()
        batches.close()
    waits = waits[50:]
    return [
        {
            "media": "1280x720 GOP 50",
            "step_ms": round(1e3 * step, 1),
            "median_ms": round(1e3 * statistics.median(waits), 3),
            "p99_ms": round(1e3 * sorted(waits)[int(0.99 * len(waits))], 3),
            "longest_ms": round(1e3 * max(waits), 3),
        }
    ]


def memory(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Memory of the GPU and rate, at 1920x1080."""
    recipe = bench.recipes(60)["1920x1080 GOP 60"]
    manifest = bench.random_manifest(bench.medium(recipe, folder, arguments.media), recipe, 2048, folder)
    bench.verify(manifest, recipe, argparse.Namespace(device="gpu", decode="auto"))
    results = []
    for name, options in (("default", {}), ("no limit", {"memory_limit": 10**12})):
        torch.cuda.empty_cache()
        before = used_memory()
        with loader_of(manifest, **options) as loader:
            peak, over = [0], threading.Event()

            def watch(peak: list[int] = peak, over: threading.Event = over) -> None:
                while not over.wait(0.02):
                    peak[0] = max(peak[0], used_memory())

            watcher = threading.Thread(target=watch)
            watcher.start()
            batches = endless(loader)
            rate = steady_rate(batches, 48)
            batches.close()
            over.set()
            watcher.join()
        results.append(
            {"settings": name, "gigabytes": round((peak[0] - before) / 1e9, 2), "clips_per_second": round(rate, 1)}
        )
    return results


def copies(folder: Path, num_files: int, arguments: argparse.Namespace) -> tuple[Recipe, list[Path]]:
    """So many files of 224x224, the same in content."""
    recipe = bench.recipes(3)["224x224 GOP 12"]
    path = bench.medium(recipe, folder, arguments.media)
    paths = [folder / f"{number:05d}.mp4" for number in range(num_files)]
    for copy in paths:
        shutil.copyfile(path, copy)
    return recipe, paths


def manifest_of(rows: Sequence[tuple[Path, float]], folder: Path) -> Manifest:
    """A manifest of clips (path, start)."""
    lines = [f"{path},{start:.2f},{start + NUM_FRAMES / 25:.2f},0\n" for path, start in rows]
    (folder / "clips.csv").write_text("path,start,end,label\n" + "".join(lines))
    return build_manifest(folder / "clips.csv", media_root=folder, output=folder / "manifest", progress=False)


def _process() -> dict[str, float]:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {
        "resident_megabytes": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6),
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "gpu_megabytes": round(used_memory() / 1e6),
    }


def files(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every clip its own file."""
    recipe, paths = copies(folder, 16_000, arguments)
    draw = np.random.default_rng(0).integers(0, 75 - NUM_FRAMES, len(paths)) / 25
    manifest = manifest_of(list(zip(paths, draw.tolist(), strict=True)), folder)
    bench.verify(manifest, recipe, argparse.Namespace(device="gpu", decode="auto"))
    bare = bench.bare_gpu(manifest, folder, arguments.lanes)
    results = []
    for key, options in (("nvdec", {"decode": "nvdec"}), ("together", {})):
        with loader_of(manifest, shuffle=True, **options) as loader:
            batches = endless(loader)
            next(batches)
            times, facts = [time.perf_counter()], []
            for number in range(2500):
                next(batches)
                times.append(time.perf_counter())
                if number % 500 == 499:
                    facts.append(_process())
            gaps = np.diff(times)
            results.append(
                {
                    "decode": key,
                    "bare_clips_per_second": round(bare, 1),
                    "clips_per_second": round(BATCH_SIZE * 2500 / (times[-1] - times[0]), 1),
                    "longest_gap_seconds": round(float(gaps.max()), 3),
                    "process": facts,
                    "fallbacks": loader.fallbacks,
                }
            )
            batches.close()
    return results


def start(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """100,000 rows over 5,000 files."""
    recipe, paths = copies(folder, 5_000, arguments)
    draw = np.random.default_rng(0).integers(0, 75 - NUM_FRAMES, 100_000) / 25
    manifest = manifest_of([(paths[number % 5_000], at) for number, at in enumerate(draw.tolist())], folder)
    bench.verify(manifest, recipe, argparse.Namespace(device="gpu", decode="auto"))
    before = _process()["resident_megabytes"]
    begin = time.perf_counter()
    with loader_of(Manifest.open(manifest.path), shuffle=True) as loader:
        batches = endless(loader)
        next(batches)
        first = time.perf_counter() - begin
        for _ in range(400):
            next(batches)
        grown = _process()["resident_megabytes"] - before
        batches.close()
    return [{"rows": 100_000, "files": 5_000, "first_batch_seconds": round(first, 2), "megabytes": grown}]


def epochs(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Ten shuffled epochs."""
    recipe = bench.recipes(60)["224x224 GOP 12"]
    manifest = bench.random_manifest(bench.medium(recipe, folder, arguments.media), recipe, 500, folder)
    counts, num_right = collections.Counter[int](), 0
    with loader_of(manifest, shuffle=True, normalize=None, sample_rate=48000, features=None) as loader:
        for _ in range(10):
            for batch in loader:
                counts.update(batch.row.tolist())
                num_right += bench.check_batch(batch, manifest, recipe)
    assert set(counts.values()) == {10}
    return [{"rows": 500, "epochs": 10, "delivered": sum(counts.values()), "right": num_right}]


def _damage(path: Path, kind: str, other: Path) -> None:
    data = path.read_bytes()
    if kind == "removed":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "half":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "no header":
        path.write_bytes(data.replace(b"moov", b"free"))
    elif kind == "text":
        path.write_text("not a video\n" * 1000)
    elif kind == "zeros in the middle":
        path.write_bytes(data[: len(data) // 3] + bytes(len(data) // 3) + data[2 * len(data) // 3 :])
    elif kind == "another video":
        shutil.copyfile(other, path)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(len(data)))


KINDS = ("removed", "empty", "half", "no header", "text", "zeros in the middle", "another video", "noise")


def faults(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Damaged files among good ones, before and while they are read."""
    (folder / "other").mkdir()
    other = bench.medium(bench.recipes(3)["1280x720 GOP 50"], folder / "other", arguments.media)
    recipe, paths = copies(folder, 1_000, arguments)
    manifest = manifest_of([(path, 0.4) for path in paths for _ in range(4)], folder)
    damaged = dict(zip(paths[3::10], KINDS * 13, strict=False))
    for path, kind in damaged.items():
        _damage(path, kind, other)
    removed = set(paths[-40:]) - set(damaged)
    lost: collections.Counter[str] = collections.Counter()
    delivered: list[int] = []
    begin = time.perf_counter()
    with loader_of(manifest, on_error="skip", normalize=None, sample_rate=48000, features=None) as loader:
        for number, batch in enumerate(loader):
            delivered += batch.row.tolist()
            bench.check_batch(batch, manifest, recipe)
            if number == 20:
                for path in removed:
                    path.unlink()
        seconds = time.perf_counter() - begin
        for skipped in loader.skipped:
            lost[damaged.get(Path(skipped.path), "removed while running")] += 1
        reported, fallbacks = {skipped.row for skipped in loader.skipped}, loader.fallbacks
    bad = {row for row in range(len(manifest)) if paths[row // 4] in damaged}
    late = {row for row in range(len(manifest)) if paths[row // 4] in removed}
    assert delivered == sorted(set(range(len(manifest))) - reported), "clips are missing, or out of order"
    assert bad <= reported <= bad | late, "clips of good files were lost"
    return [
        {
            "files": 1_000,
            "damaged": len(damaged),
            "kinds": len(KINDS),
            "removed_while_running": len(removed),
            "clips": len(manifest),
            "delivered": len(delivered),
            "reported": dict(lost),
            "lanes_given_up": len(fallbacks),
            "seconds": round(seconds, 1),
        }
    ]


PARTS: dict[str, Callable[[Path, argparse.Namespace], Iterable[dict[str, Any]]]] = {
    "rates": rates,
    "waiting": waiting,
    "memory": memory,
    "files": files,
    "start": start,
    "epochs": epochs,
    "faults": faults,
}


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print a short table."""
    table = Table(title=title)
    rates_of = [row.get("clips_per_second") for row in rows]
    rows = [{**row, **rates} if isinstance(rates, dict) else row for row, rates in zip(rows, rates_of, strict=True)]
    keys = [key for key in rows[0] if not isinstance(rows[0][key], (dict, list))]
    for key in keys:
        table.add_column(key)
    for row in rows:
        table.add_row(*(str(row.get(key, "")) for key in keys))
    Console(width=160).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the figures; parts that are not run stay in it")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them (default: all)")
    parser.add_argument(
        "--sizes", nargs="+", choices=list(CLIPS), default=list(CLIPS), metavar="MEDIA", help="of rates (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each rate is taken (default: 3)")
    parser.add_argument("--other-rounds", type=int, default=2, help="... of other loaders (default: 2)")
    parser.add_argument("--lanes", type=int, default=8, help="bare readers side by side (default: 8)")
    parser.add_argument("--media", type=Path, help="folder that keeps the media for the next run")
    parser.add_argument("--other", nargs=3, metavar=("NAME", "MANIFEST", "BATCHES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    sys.path.insert(0, os.fspath(Path(__file__).parent))
    if arguments.other is not None:
        name, path, num_batches = arguments.other
        manifest = Manifest.open(path)
        verify_other(name, OTHERS[name](manifest), manifest)
        print(steady_rate(OTHERS[name](manifest), int(num_batches)), flush=True)
        os._exit(0)
    report: dict[str, Any] = {"parts": {}}
    if arguments.output is not None and arguments.output.exists():
        report["parts"] = json.loads(arguments.output.read_text())["parts"]
    for name in arguments.parts.split(","):
        with tempfile.TemporaryDirectory() as folder:
            results: list[dict[str, Any]] = []
            machine = bench.machine("gpu")
            before = report["parts"].get(name, {"machine": machine, "results": []})
            for result in PARTS[name](Path(folder), arguments):
                results.append(result)
                # Of sizes that are not measured now, what was measured before, perhaps by another state of the loader.
                kept = [
                    {"machine": before["machine"]} | old
                    for old in before["results"]
                    if name == "rates" and old["media"] not in arguments.sizes
                ]
                report["parts"][name] = {"machine": machine, "results": kept + results}
                if arguments.output is not None:
                    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
                show(name, results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
