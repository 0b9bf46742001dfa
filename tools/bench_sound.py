"""Clips of sound a second, as log-mel bands in batches, beside librosa and others; writes its figures to a file.

    python tools/bench_sound.py --output tools/bench_sound_cpu.json
    python tools/bench_sound.py --device gpu --output tools/bench_sound_gpu.json

Files of 10 s, mono, in each format: decoded, resampled to 16 kHz where they have another rate, 80 mel bands in
decibels.

librosa           `librosa.load` and `librosa.feature.melspectrogram`, one file after the other
DataLoader        the same in PyTorch's DataLoader, a process a core with one thread each
dynamic mode      DALI's, `readers.File` and `decoders.audio`, for the formats that it reads
avloader          `AVLoader(streams="audio")` with its defaults

And the loop of DALI's notebook "Tuning an augmentation loop" (a random second, a random gain, log-mel, normalized;
batches of 8 WAV files) beside the same with `AVLoader`. On a GPU what librosa and the DataLoader make is copied there.

What each delivers is compared with a plain linear decode of each file (and, for the loop, by where its seconds lie)
before anything is timed; the table says by how many samples a decoder's sound begins late. Then all take turns; a
figure is the median of the rounds. A round counts steady state: the first epoch of each is not timed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import librosa
import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import threadpoolctl
import torch
from rich.console import Console
from rich.table import Table

from avloader import AVLoader, Decibels, Manifest, MelSpectrogram, Standardize, build_manifest
from avloader.augment import Gain
from avloader.workers import available_cores

RATE, SECONDS, HOP = 16000, 10, 160
MEL = MelSpectrogram(n_fft=512, hop_length=HOP, n_mels=80, fmax=8000, scale=Decibels(top_db=None))
LOOP_MEL = MelSpectrogram(n_fft=512, hop_length=HOP, n_mels=128, scale=Decibels(ref="max"), normalize=Standardize())
LOOP_BATCH = 8
PACKAGES = ("avloader", "av", "librosa", "soundfile", "soxr", "numpy", "torch", "nvidia-dali-cuda120")

Sound = npt.NDArray[np.float32]
Batches = Iterator[Any]  # endless batches of features, the clips of a file in the order of the files


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: Of its name.
        codec: FFmpeg's encoder; None: libsndfile writes it.
        rate: Samples per second.
    """

    suffix: str
    codec: str | None
    rate: int = RATE


FORMATS = {
    "WAV": Format("wav", "pcm_s16le"),
    "FLAC": Format("flac", "flac"),
    "Ogg Vorbis": Format("ogg", None),
    "MP3": Format("mp3", "libmp3lame"),
    "M4A": Format("m4a", "aac"),
    "FLAC 44.1 kHz": Format("flac", "flac", 44100),
}


def main() -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"), help="(default: %(default)s)")
    parser.add_argument("--files", type=int, default=128, help="of each format (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4, help="of a turn, at least (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=(*FORMATS, "loop"), default=(*FORMATS, "loop"))
    parser.add_argument("--output", type=Path, help="write the figures there, as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    console, results = Console(), []
    with tempfile.TemporaryDirectory(prefix="avloader-bench-") as name:
        for title in arguments.only:
            folder = Path(name, title.replace(" ", "-"))
            form = FORMATS.get(title, FORMATS["WAV"])
            files = write_files(folder, form, arguments.files)
            results += measure(title, Job(files, title == "loop", arguments.batch_size, arguments.device), arguments)
            console.print(f"[dim]{title}[/dim]")
    report(console, results)
    if arguments.output:
        facts = {
            "machine": machine(arguments.device),
            "packages": packages(),
            "files": arguments.files,
            "seconds_of_a_file": SECONDS,
            "batch_size": arguments.batch_size,
            "rounds": arguments.rounds,
            "results": results,
        }
        arguments.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def write_files(folder: Path, form: Format, count: int) -> list[Path]:
    """Noise that swells and fades four times a second, another in each file."""
    folder.mkdir()
    random = np.random.default_rng(0)
    t = np.arange(form.rate * SECONDS) / form.rate
    files = []
    for number in range(count):
        swell = 0.5 + 0.5 * np.sin(2 * np.pi * (4 * t + random.uniform()))
        samples = (0.1 * swell * random.normal(size=len(t))).astype(np.float32)
        files.append(folder / f"{number:05d}.{form.suffix}")
        encode(files[-1], form, samples)
    lines = [f"{file.name},,,{number}" for number, file in enumerate(files)]
    (folder / "clips.csv").write_text("\n".join(["path,start,end,label", *lines]) + "\n")
    (folder / "list.txt").write_text("".join(f"{file} {number}\n" for number, file in enumerate(files)))
    return files


def encode(path: Path, form: Format, samples: Sound) -> None:
    """Write a file."""
    if form.codec is None:
        soundfile.write(path, samples, form.rate)
        return
    with av.open(str(path), "w") as output:
        stream = output.add_stream(form.codec, rate=form.rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        kind = stream.codec_context.codec.audio_formats
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = form.rate
        assert kind is not None
        resampler = av.AudioResampler(kind[0].name, "mono", form.rate, frame_size=stream.codec_context.frame_size)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))


@dataclass(frozen=True)
class Job:
    """What is asked of each library.

    Attributes:
        files: The files.
        is_loop: Whether it is the loop of a random second, not whole files.
        batch_size: Clips of a batch.
        device: "cpu" or "gpu".
    """

    files: list[Path]
    is_loop: bool
    batch_size: int
    device: str

    @property
    def size(self) -> int:
        """Clips of a batch."""
        return LOOP_BATCH if self.is_loop else self.batch_size


# Libraries ------------------------------------------------------------------------------------------------------------


def with_avloader(job: Job) -> Batches:
    """`AVLoader`."""
    folder = job.files[0].parent
    manifest = folder / "manifest"
    if not manifest.exists():
        build_manifest(folder / "clips.csv", media_root=folder, output=manifest, streams="audio", progress=False)
    options: dict[str, Any] = {"features": MEL}
    if job.is_loop:
        options = {"features": LOOP_MEL, "audio_seconds": 1, "clips": "random"}
        options["augment"] = Gain(min_gain_db=-3.1, max_gain_db=2.3, p=1.0)
    opened = Manifest.open(manifest)
    with AVLoader(opened, streams="audio", batch_size=job.size, device=job.device, **options) as loader:
        while True:
            for batch in loader:
                yield batch.spectrogram


def librosa_mel(path: Path) -> Sound:
    """As one writes it."""
    sound, _ = librosa.load(path, sr=RATE)
    power = librosa.feature.melspectrogram(y=sound, sr=RATE, n_fft=512, hop_length=HOP, n_mels=80, fmax=8000)
    decibels: Sound = librosa.power_to_db(power, top_db=None)[:, : 1 + SECONDS * RATE // HOP]
    return decibels


def with_librosa(job: Job) -> Batches:
    """One file after the other."""
    while True:
        for first in range(0, len(job.files), job.size):
            mels = [torch.from_numpy(librosa_mel(path)) for path in job.files[first : first + job.size]]
            yield on_device(torch.stack(mels), job)


class Mels(torch.utils.data.Dataset[torch.Tensor]):
    """What `librosa_mel` makes of the files, again and again: an epoch that never ends has no pause."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files) * 10_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(librosa_mel(self._files[index % len(self._files)]))


def with_one_thread(_: int) -> None:
    """Keep a worker's BLAS from taking all cores, as one does."""
    threadpoolctl.threadpool_limits(1)


def with_data_loader(job: Job) -> Batches:
    """A process a core."""
    loader = torch.utils.data.DataLoader(
        Mels(job.files), batch_size=job.size, num_workers=available_cores(), worker_init_fn=with_one_thread
    )
    for batch in loader:
        yield on_device(batch, job)


def on_device(batch: torch.Tensor, job: Job) -> torch.Tensor:
    """Copied to the GPU, if it is asked for."""
    return batch.cuda() if job.device == "gpu" else batch


def with_dynamic_mode(job: Job) -> Batches:
    """DALI's dynamic mode: the notebook's loop, or the same without crop, gain and normalization."""
    import nvidia.dali.experimental.dynamic as ndd

    size, on_gpu = job.size, job.device == "gpu"
    reader = ndd.readers.File(
        file_list=str(job.files[0].parent / "list.txt"), max_batch_size=size, random_shuffle=False
    )
    rng = ndd.random.RNG(seed=0)
    while True:
        for encoded, _ in reader.next_epoch(batch_size=size):
            audio, _ = ndd.decoders.audio(
                encoded, dtype=ndd.float32, downmix=True, **({} if job.is_loop else {"sample_rate": float(RATE)})
            )
            audio = audio.gpu() if on_gpu else audio
            if job.is_loop:
                device = {"device": "gpu"} if on_gpu else {}
                start = ndd.random.uniform(batch_size=size, range=(0.0, 1.0), rng=rng)
                gain = ndd.random.uniform(batch_size=size, range=(0.7, 1.3), rng=rng, **device)
                audio = ndd.slice(audio, rel_start=start, shape=RATE, axes=0, out_of_bounds_policy="pad")
                audio = audio * gain
            options: dict[str, Any] = {"nfft": 512, "window_length": 512, "window_step": HOP}
            if not job.is_loop:
                options["window_fn"] = librosa.filters.get_window("hann", 512).astype(np.float32).tolist()
                options["reflect_padding"] = False
            bands: dict[str, Any] = {} if job.is_loop else {"nfilter": 80, "freq_high": 8000.0}
            mel = ndd.mel_filter_bank(ndd.spectrogram(audio, **options), sample_rate=RATE, **bands)
            if job.is_loop:
                mel = ndd.normalize(ndd.to_decibels(mel, multiplier=10.0, cutoff_db=-80), axes=[0, 1])
            else:
                mel = ndd.to_decibels(mel, multiplier=10.0, reference=1.0, cutoff_db=-100)
            yield mel.torch(pad=True) if hasattr(mel, "torch") else ndd.as_tensor(mel, pad=True)


LIBRARIES: dict[str, Callable[[Job], Batches]] = {
    "librosa": with_librosa,
    "DataLoader": with_data_loader,
    "dynamic mode": with_dynamic_mode,
    "avloader": with_avloader,
}


# Checks ---------------------------------------------------------------------------------------------------------------


def expected_mel(path: Path, late: int = 0) -> Sound:
    """Of a plain linear decode, whose sound begins `late` samples later."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    rate = frames[0].sample_rate
    blocks = [frame.to_ndarray()[0] for frame in frames]
    sound = np.concatenate(blocks)
    if sound.dtype.kind == "i":
        sound = sound / float(1 << 8 * sound.dtype.itemsize - 1)
    sound = np.pad(sound, (late, 0)).astype(np.float32)
    if rate != RATE:
        sound = soxr.resample(sound, rate, RATE, quality="HQ")
    power = librosa.feature.melspectrogram(y=sound, sr=RATE, n_fft=512, hop_length=HOP, n_mels=80, fmax=8000)
    decibels: Sound = librosa.power_to_db(power, top_db=None)
    return decibels


def check(name: str, job: Job, batch: Any) -> tuple[bool, str]:
    """Whether the first batch can be timed, and what is to be said about it."""
    got = np.asarray(torch.as_tensor(batch).cpu())
    if job.is_loop:
        is_right = got.shape[:2] == (job.size, 128) and np.isfinite(got).all() and got.shape[2] in (100, 101)
        is_normal = np.abs(got.mean(axis=(1, 2))).max() < 1e-3 and np.abs(got.std(axis=(1, 2)) - 1).max() < 1e-2
        return bool(is_right and is_normal), "" if is_right and is_normal else f"is not normalized {got.shape}"
    places = range(0, len(got), max(len(got) // 4, 1))
    inner = slice(8, 980)  # the last sample of a decoder may differ, and with it the last columns
    worst = {}
    for late in (0, 1105, 1105 - 576, 529):  # what an MP3 or AAC decoder may leave at the start
        errors = [got[place][:, inner] - expected_mel(job.files[place], late)[:, inner] for place in places]
        worst[late] = max(float(np.abs(error).max()) for error in errors)
        if worst[late] < 0.05:
            return True, "" if not late else f"sound is {late} samples late"
    mean = max(float(np.abs(got[p][:, inner] - expected_mel(job.files[p])[:, inner]).mean()) for p in places)
    text = f"differs by up to {worst[0]:.2f} dB, {mean:.2f} on average"
    return name != "avloader", text  # others' may be wrong; it is said


# Measurements ---------------------------------------------------------------------------------------------------------


def measure(title: str, job: Job, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Check all, then let them take turns."""
    rates: dict[str, list[float]] = {}
    remarks: dict[str, str] = {}
    for name, library in LIBRARIES.items():
        if job.is_loop and name in ("librosa", "DataLoader"):
            continue
        try:
            with contextlib.closing(library(job)) as batches:  # type: ignore[type-var]
                is_right, remarks[name] = check(name, job, next(batches))
        except Exception as error:
            if name == "avloader":
                raise
            is_right, remarks[name] = False, f"cannot: {' '.join(str(error.__cause__ or error).split())[:200]}"
        if is_right:
            rates[name] = []
        elif name == "avloader":
            raise SystemExit(f"{title}: {name} {remarks[name]}")
    for _ in range(arguments.rounds):
        for name, found in rates.items():
            found.append(turn(LIBRARIES[name], job, arguments.seconds))
    results = []
    for name, remark in remarks.items():
        row: dict[str, Any] = {"sound": title, "library": name, "remark": remark}
        if name in rates:
            row |= {"clips_per_second": round(statistics.median(rates[name]), 1)}
            row |= {"rounds": [round(rate, 1) for rate in rates[name]]}
        results.append(row)
    return results


def turn(library: Callable[[Job], Batches], job: Job, seconds: float) -> float:
    """Clips a second, of whole epochs after a first one."""
    per_epoch = -(-len(job.files) // job.size)
    with contextlib.closing(library(job)) as batches:  # type: ignore[type-var]
        for _ in range(per_epoch):
            next(batches)
        wait(job)
        count, begin = 0, time.perf_counter()
        while (passed := time.perf_counter() - begin) < seconds:
            for _ in range(per_epoch):
                next(batches)
            count += len(job.files)
            wait(job)
    return count / passed


def wait(job: Job) -> None:
    """Until the GPU has done what it was asked for."""
    if job.device == "gpu":
        torch.cuda.synchronize()


def report(console: Console, results: list[dict[str, Any]]) -> None:
    """Print a table."""
    table = Table("sound", "library", "clips/s", "times librosa", "remark")
    base = {row["sound"]: row["clips_per_second"] for row in results if row["library"] == "librosa"}
    for row in results:
        rate, own = row.get("clips_per_second"), base.get(row["sound"])
        ratio = f"{rate / own:.2f}" if rate and own else ""
        table.add_row(row["sound"], row["library"], f"{rate:,.0f}" if rate else "", ratio, row["remark"])
    console.print(table)


def machine(device: str) -> dict[str, Any]:
    """What it ran on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    facts = {"cpu": model, "cores": available_cores(), "system": platform.system(), "python": platform.python_version()}
    if device == "gpu":
        facts["gpu"] = torch.cuda.get_device_name()
    facts["load_before"] = round(os.getloadavg()[0], 2)
    return facts


def packages() -> dict[str, str]:
    """Versions of what took part."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


if __name__ == "__main__":
    main()
