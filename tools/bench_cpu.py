"""The CPU engine beside other decoders, in long files, on cached sound, and over many files; writes its figures.

    python tools/bench_cpu.py --peers-python /path/to/python --output tools/bench_cpu.json
    python tools/bench_cpu.py --rows far,sound

Rows:
    peers   clips per second of the loader and of others that make the same tensors (`bench_peers.py`, run with a Python
            that has them), which are checked first: frames by the number that they show, sound against ours. Every clip
            lies in a file of its own, so that nobody shares decoding
    far     time of a clip at the end of a 20-minute and a 2-hour file, by that of one at its start
    sound   time of a 0.64 s window at 16 kHz: a WAV cache at 16 kHz against AAC in mp4, and against `librosa.load` with
            offset and duration of that mp4 (needs the command ffmpeg), of Ogg Vorbis and of WAV at 48 kHz
    memory  memory and open files of all processes while the loader delivers clips of many files

What is compared takes turns; a figure is the median of the rounds. For the loader against decoding alone see
`bench_loader.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import librosa
import numpy as np
import soundfile
from bench_loader import BATCH_SIZE, NUM_FRAMES, RATE, SIZE, loader_of, machine, measure, random_manifest, recipes
from make_truth_media import Recipe, make, read_number

from avloader import Manifest, build_manifest
from avloader.audio import AudioReader
from avloader.media import AudioInfo, MediaInfo, probe
from avloader.reading import ClipRead, ClipReader, SlotLayout, SoundWindow
from avloader.resample import resample, resample_margin

PEERS = ("torchcodec", "spdl", "decord2", "pyav")
SECONDS = NUM_FRAMES / 25
NUM_SAMPLES = round(SECONDS * RATE)


def peers(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The loader and its peers on each kind of media."""
    results = []
    filters = folder / "filters.npy"
    np.save(filters, librosa.filters.mel(sr=RATE, n_fft=512, n_mels=80).astype(np.float32))
    for (name, recipe), num_clips in zip(recipes(10).items(), arguments.clips, strict=True):
        place = folder / recipe.name
        place.mkdir()
        manifest = random_manifest(make(recipe, place), recipe, arguments.own_clips, place, own_files=True)
        row: dict[str, Any] = {"media": name, "clips": len(manifest), "peers_clips": num_clips, "peers": {}}
        rates: dict[str, list[float]] = {"avloader": [], **{peer: [] for peer in PEERS}}
        with loader_of(manifest, arguments) as loader:
            measure(loader)
            for _ in range(arguments.rounds):
                rates["avloader"].append(measure(loader)[0])
                for peer in PEERS:
                    samples = place / f"{peer}.npz"
                    report = _run_peer(arguments, peer, manifest, num_clips, filters, samples)
                    rates[peer] += report["clips_per_second"]
                    row["peers"][peer] = {"version": report["version"], **_compare(manifest, recipe, samples)}
        row["clips_per_second"] = {key: round(statistics.median(values), 1) for key, values in rates.items()}
        best = max(PEERS, key=row["clips_per_second"].__getitem__)
        row["best_peer"] = best
        row["ratio_to_best"] = round(statistics.median(np.divide(rates["avloader"], rates[best])), 3)
        results.append(row)
    return results


def _run_peer(
    arguments: argparse.Namespace, peer: str, manifest: Manifest, num_clips: int, filters: Path, samples: Path
) -> dict[str, Any]:
    job = {
        "peer": peer,
        "paths": [manifest.media(number).path for number in manifest.media_id[:num_clips].tolist()],
        "starts": manifest.first_frame[:num_clips].tolist(),
        "fps": 25,
        "num_frames": NUM_FRAMES,
        "size": SIZE,
        "rate": RATE,
        "batch_size": BATCH_SIZE,
        "filters": os.fspath(filters),
        "samples": os.fspath(samples),
        "rounds": 1,
    }
    script = Path(__file__).parent / "bench_peers.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if arguments.ffmpeg_libraries:
        environment["LD_LIBRARY_PATH"] = arguments.ffmpeg_libraries
    done = subprocess.run(
        [arguments.peers_python, script], input=json.dumps(job), stdout=subprocess.PIPE, text=True, env=environment,
        check=True,
    )  # fmt: skip
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def _compare(manifest: Manifest, recipe: Recipe, samples: Path) -> dict[str, float]:
    """Check a peer's first clips: their frames must be the right ones; how good the sound is becomes a figure."""
    mean, std = (
        np.array(values).reshape(1, 3, 1, 1) for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    )
    snr = []
    with np.load(samples) as got, AudioReader(manifest.media(0).path, _audio(manifest)) as reader:
        for clip, sound, first in zip(got["frames"], got["audio"], manifest.first_frame.tolist(), strict=False):
            pixels = np.rint(clip * std + mean).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
            shown = [read_number(frame) for frame in pixels]
            assert shown == list(range(first, first + NUM_FRAMES)), f"{samples.stem} delivers {shown} from {first} on"
            expected = _window(reader, first / 25, RATE)
            snr.append(10 * np.log10(np.square(expected).sum() / max(np.square(sound - expected).sum(), 1e-12)))
        assert got["mel"].shape[1] == 80
    return {"sound_snr_db_median": round(float(np.median(snr)), 1), "sound_snr_db_worst": round(float(min(snr)), 1)}


def _audio(manifest: Manifest) -> AudioInfo:
    audio = manifest.media(0).audio
    assert audio is not None
    return audio


def _window(reader: AudioReader, begin: float, rate: int, native_rate: int = 48000) -> np.ndarray[Any, Any]:
    """The sound of a clip at `rate`."""
    margin = resample_margin(native_rate, rate)
    first = round(begin * native_rate)
    length = -(-NUM_SAMPLES * native_rate // RATE)
    native, _ = reader.read(first - margin, first + length + margin)
    return resample(native, in_rate=native_rate, out_rate=rate, num_samples=round(SECONDS * rate))


def looped(path: Path, times: int, output: Path) -> Path:
    """The packets of a file over and over, in a file of their own."""
    with av.open(str(path)) as source, av.open(str(output), "w") as target:
        copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        packets = [packet for packet in source.demux() if packet.size]
        usual = {index: max(packet.duration for packet in packets if packet.stream_index == index) for index in copies}
        packets = [packet for packet in packets if packet.duration == usual[packet.stream_index]]  # the last is short
        length = {  # of each stream, in ticks
            index: usual[index] * sum(packet.stream_index == index for packet in packets) for index in copies
        }
        data = [(bytes(p), p.stream_index, p.pts, p.dts, p.duration, p.is_keyframe, p.time_base) for p in packets]
        for number in range(times):
            for content, index, pts, dts, duration, is_key, time_base in data:
                packet = av.Packet(content)
                packet.pts, packet.dts = pts + number * length[index], dts + number * length[index]
                packet.duration, packet.is_keyframe, packet.time_base = duration, is_key, time_base
                packet.stream = copies[index]
                target.mux(packet)
    return output


def far(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Clips at the end of long files, against clips at their start."""
    path = make(recipes(60)["224x224 GOP 12"], folder)
    results = []
    for minutes in (20, 120):
        media = probe(looped(path, minutes, folder / f"{minutes}.mp4"))
        assert media.video is not None
        last = media.video.times.num_frames - NUM_FRAMES
        offsets = np.random.default_rng(0).integers(100, 1400, 100).tolist()
        distant = _reader(media, [last - offset for offset in offsets])
        start, end = _in_turn(arguments.rounds, _reader(media, offsets), distant)
        results.append(_ratio(f"{minutes} minutes", start, end, len(offsets), "start", "end"))
    return results


def _reader(media: MediaInfo, starts: Sequence[int]) -> Callable[[], None]:
    """Reads the clips of one medium that begin with these frames."""
    assert media.video is not None
    layout = SlotLayout((NUM_FRAMES, 3, SIZE, SIZE), NUM_SAMPLES, num_slots=1, num_sound_slots=0)
    read = ClipReader(layout, mmap.mmap(-1, layout.num_bytes))
    tasks = []
    for first in starts:
        start = media.video.times.seconds(first)
        window = SoundWindow.at(media, start, num_samples=NUM_SAMPLES, sample_rate=RATE)
        tasks.append(ClipRead(0, media, tuple(range(first, first + NUM_FRAMES)), window).task(0, with_frames=True))

    def work() -> None:
        for task in tasks:
            (result,) = read([task])
            if isinstance(result, Exception):
                raise result

    return work


def sound(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Windows of cached sound, against AAC and against librosa."""
    path = make(recipes(60)["224x224 GOP 12"], folder)
    media = probe(path)
    assert media.audio is not None
    readers = {"aac": AudioReader(os.fspath(path), media.audio)}
    native, _ = readers["aac"].read(0, media.audio.num_samples)
    whole = librosa.resample(native, orig_sr=48000, target_sr=RATE, res_type="soxr_hq")
    for name, samples, rate in (("wav", whole, RATE), ("wav48", native, 48000)):
        with wave.open(os.fspath(folder / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    info = probe(folder / "wav.wav").audio
    assert info is not None
    readers["wav"] = AudioReader(os.fspath(folder / "wav.wav"), info)
    starts = np.random.default_rng(0).uniform(1, 58, 200).round(2).tolist()
    with soundfile.SoundFile(folder / "ogg48.ogg", "w", 48000, 1, format="OGG") as ogg:
        for first in range(0, len(native), 48000):  # libsndfile's Vorbis overflows its stack if it gets all at once
            ogg.write(native[first : first + 48000])
    # As the loader reads: by samples, into the memory of a batch, which is there.
    slots = itertools.cycle(np.zeros((16, NUM_SAMPLES), np.float32))
    ranges = {begin: (round(begin * RATE), round(begin * RATE) + NUM_SAMPLES) for begin in starts}
    kinds: dict[str, Callable[[float], Any]] = {
        "wav": lambda begin: readers["wav"].read(*ranges[begin], next(slots))[0],
        "aac": lambda begin: _window(readers["aac"], begin, RATE),
        "librosa, AAC": lambda begin: _librosa(path, begin),
        "librosa, Ogg": lambda begin: _librosa(folder / "ogg48.ogg", begin),
        "librosa, WAV": lambda begin: _librosa(folder / "wav48.wav", begin),
    }
    warnings.simplefilter("ignore")  # librosa warns that it asks ffmpeg
    for begin in starts[:20]:
        expected = kinds["aac"](begin)
        for kind in kinds:
            if kind != "librosa, AAC":  # it starts by the priming too late, at each seek elsewhere
                found = kinds[kind](begin)
                middle = slice(500, -500)  # librosa resamples what it cut out
                error = np.square(found[middle] - expected[middle]).sum() / np.square(expected[middle]).sum()
                assert error < (0.1 if "Ogg" in kind else 1e-4), (kind, begin, error)
    slow = {"librosa, AAC": 5}  # windows of what takes long
    counts = {kind: slow.get(kind, len(starts)) for kind in kinds}
    measured = _in_turn(
        arguments.rounds,
        *(
            lambda read=read, kind=kind: [read(begin) for begin in starts[: counts[kind]]]
            for kind, read in kinds.items()
        ),
    )
    windows = {kind: np.divide(seconds, counts[kind]).tolist() for kind, seconds in zip(kinds, measured, strict=True)}
    return [
        _ratio(f"cached WAV against {kind}", windows["wav"], windows[kind], 1, "wav", "other")
        for kind in kinds
        if kind != "wav"
    ]


def _librosa(path: Path, begin: float) -> Any:
    return librosa.load(path, sr=RATE, offset=begin + 1e-6, duration=SECONDS)[0]


def memory(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Memory and open files while many clips of many files are delivered."""
    source = make(recipes(10)["224x224 GOP 12"], folder)
    media = folder / "media"
    media.mkdir()
    for number in range(arguments.files):
        os.link(source, media / f"{number}.mp4")
    annotations = folder / "clips.csv"
    with annotations.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end", "label"])
        for number in range(arguments.files):
            for first in range(0, 200, 5):
                writer.writerow([f"{number}.mp4", first / 25, (first + NUM_FRAMES) / 25, 0])
    manifest = build_manifest(annotations, media_root=media, output=folder / "manifest", progress=False)
    points = []
    with loader_of(manifest, arguments, shuffle=True) as loader:
        step = max(len(loader) // 10, 1)
        for number, _ in enumerate(loader, start=1):
            if number % step == 0:
                points.append({"clips": number * BATCH_SIZE, **_footprint()})
    return [{"files": arguments.files, "clips": len(manifest), "points": points}]


def _footprint() -> dict[str, float]:
    """Memory that this process and its children use alone or share, and their open files."""
    pids = [os.getpid()]
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended
            pids += [int(pid) for pid in (task / "children").read_text().split()]
    bytes_used = 0
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        bytes_used += 1024 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return {
        "megabytes": round(bytes_used / 1e6, 1),
        "open_files": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
    }


def _in_turn(rounds: int, *works: Callable[[], Any]) -> list[list[float]]:
    """Seconds of each, round after round, after one round that is not counted."""
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for work, taken in zip(works, seconds, strict=True):
            begin = time.perf_counter()
            work()
            if number:
                taken.append(time.perf_counter() - begin)
    return seconds


def _ratio(
    name: str, base: Sequence[float], other: Sequence[float], count: int, base_name: str, other_name: str
) -> dict[str, Any]:
    return {
        "what": name,
        f"{base_name}_milliseconds": round(1000 * statistics.median(base) / count, 4),
        f"{other_name}_milliseconds": round(1000 * statistics.median(other) / count, 4),
        "ratio": round(statistics.median(np.divide(other, base)), 3),
    }


ROWS = {"peers": peers, "far": far, "sound": sound, "memory": memory}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--peers-python", default=sys.executable, help="Python that has the peers")
    parser.add_argument("--ffmpeg-libraries", help="LD_LIBRARY_PATH of the peers, for FFmpeg's shared libraries")
    parser.add_argument(
        "--own-clips", type=int, default=400, help="clips of the loader beside the peers (default: 400)"
    )
    parser.add_argument("--clips", type=lambda text: [int(word) for word in text.split(",")], default=[400, 96, 48],
                        help="clips of a peer, of each kind of media (default: 400,96,48)")  # fmt: skip
    parser.add_argument("--files", type=int, default=500, help="files of the memory row, 40 clips each (default: 500)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each figure is taken (default: 5)")
    arguments = parser.parse_args(argv, argparse.Namespace(device="cpu", decode="auto"))
    report: dict[str, Any] = {"machine": machine("cpu")}
    for row in arguments.rows.split(","):
        with tempfile.TemporaryDirectory() as folder:
            report[row] = ROWS[row](arguments, Path(folder))
        print(json.dumps({row: report[row]}, indent=1), flush=True)
        if arguments.output is not None:
            arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
