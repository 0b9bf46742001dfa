"""The slow, obvious oracle: what a plain linear decode of a whole file shows and plays, and when.

Media time 0 is the container's start. Nothing here uses avloader.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.container
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from make_truth_media import CATALOG, Recipe, read_number, sound_of

__all__ = [
    "CATALOG",
    "LinearFrames",
    "LinearSound",
    "Recipe",
    "container_start",
    "delay_of",
    "known_sound",
    "linear_frames",
    "linear_rgb",
    "linear_sound",
    "linear_window",
    "read_number",
    "snr_db",
]


def _fraction(value: Fraction) -> Fraction:
    return Fraction(value.numerator, value.denominator)


def container_start(container: av.container.InputContainer) -> Fraction:
    """The container's start on its streams' clocks, in seconds: the exact value behind its rounded `start_time`."""
    starts = [
        stream.start_time * _fraction(stream.time_base)
        for stream in container.streams
        if stream.type in ("audio", "video") and stream.start_time is not None
    ]
    exact = min(starts, default=Fraction(0))
    assert container.start_time is None or abs(exact * 10**6 - container.start_time) <= 1
    return exact


@dataclass(frozen=True, eq=False)
class LinearFrames:
    """Displayed frames in presentation order.

    Attributes:
        pts: Of every frame.
        times: Media time of every frame.
        numbers: What every frame shows; -1 where no number is readable.
    """

    pts: list[int]
    times: list[Fraction]
    numbers: list[int]


@functools.lru_cache(maxsize=64)
def _linear_frames(path: str) -> LinearFrames:
    found = LinearFrames([], [], [])
    seen: dict[int, int] = {}
    with av.open(path) as container:
        origin = container_start(container)
        for frame in container.decode(video=0):
            assert frame.pts is not None
            found.pts.append(frame.pts)
            found.times.append(frame.pts * _fraction(frame.time_base) - origin)
            found.numbers.append(_number_of(frame, seen))
    return found


def _number_of(frame: av.VideoFrame, seen: dict[int, int]) -> int:
    """What the frame shows; a picture that was `seen` before (filler) is not read again."""
    key = hash(bytes(frame.planes[0]))
    if key not in seen:
        try:
            seen[key] = read_number(frame.to_ndarray(format="rgb24"))
        except ValueError:
            seen[key] = -1
    return seen[key]


def linear_frames(path: str | os.PathLike[str]) -> LinearFrames:
    """Times and numbers of all displayed frames (kept in memory for the next call)."""
    return _linear_frames(os.fspath(path))


def linear_rgb(path: str | os.PathLike[str], indices: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The frames with these indices in presentation order, uint8 [shape=(len(indices), H, W, 3)]."""
    wanted, found = set(indices), {}
    with av.open(os.fspath(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                found[index] = frame.to_ndarray(format="rgb24")
            if len(found) == len(wanted):
                break
    return np.stack([found[index] for index in indices])


@dataclass(frozen=True, eq=False)
class LinearSound:
    """All sound of a file on one contiguous sample grid.

    Attributes:
        start: Media time of sample 0.
        rate: Samples per second.
        samples: float32 [shape=(num_samples,)] or [shape=(num_channels, num_samples)]; zeros in holes.
        holes: Where nothing was decoded, as (start, stop) in samples.
    """

    start: Fraction
    rate: int
    samples: npt.NDArray[np.float32]
    holes: list[tuple[int, int]]


def _as_float(frame: av.AudioFrame) -> npt.NDArray[np.float32]:
    """float32 [shape=(num_channels, num_samples)], full scale 1."""
    channels = frame.to_ndarray()
    if not frame.format.is_planar:
        channels = channels.reshape(-1, frame.layout.nb_channels).T
    if channels.dtype.kind == "i":
        return (channels / float(2 ** (8 * channels.dtype.itemsize - 1))).astype(np.float32)
    if channels.dtype.kind == "u":
        return ((channels - 128.0) / 128).astype(np.float32)
    return channels.astype(np.float32)


@functools.lru_cache(maxsize=16)
def _linear_sound(path: str, mono: bool) -> LinearSound:
    pieces: list[tuple[int, npt.NDArray[np.float32]]] = []
    holes: list[tuple[int, int]] = []
    with av.open(path) as container:
        origin = container_start(container)
        rate, position, first = 0, 0, Fraction(0)
        for frame in container.decode(audio=0):
            tick = _fraction(frame.time_base)
            assert frame.pts is not None
            if not pieces:
                rate, first = frame.sample_rate, frame.pts * tick
            assert frame.sample_rate == rate
            jump = (frame.pts * tick - first) * rate - position
            # The pts of contiguous frames are rounded to ticks, the first one too.
            if abs(jump) > max(Fraction(1), 2 * tick * rate):
                target = position + round(jump)
                assert target >= position, f"the sound of {path} steps back at sample {position}"
                holes.append((position, target))
                position = target
            block = _as_float(frame)
            pieces.append((position, block.mean(axis=0, dtype=np.float32) if mono else block))
            position += frame.samples
    samples = np.zeros((*pieces[0][1].shape[:-1], position), dtype=np.float32)
    for start, block in pieces:
        samples[..., start : start + block.shape[-1]] = block
    samples.setflags(write=False)
    return LinearSound(first - origin, rate, samples, holes)


def linear_sound(path: str | os.PathLike[str], mono: bool = True) -> LinearSound:
    """All sound of a file (kept in memory for the next call); mono is the mean of the channels."""
    return _linear_sound(os.fspath(path), mono)


def linear_window(path: str | os.PathLike[str], start_seconds: Fraction, num_samples: int) -> npt.NDArray[np.float32]:
    """Mono sound from the sample nearest to the media time `start_seconds` on, zeros where there is none.

    Returns:
        float32 [shape=(num_samples,)] at the file's own rate.
    """
    sound = linear_sound(path)
    first = ((start_seconds - sound.start) * sound.rate + Fraction(1, 2)).__floor__()
    window = np.zeros(num_samples, dtype=np.float32)
    start, stop = max(first, 0), min(first + num_samples, len(sound.samples))
    if start < stop:
        window[start - first : stop - first] = sound.samples[start:stop]
    return window


def known_sound(recipe: Recipe, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
    """The mono sound that went into the file, samples [start, stop); sample 0 is at source time `sound.delay`."""
    return sound_of(recipe, start, stop)


def delay_of(window: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> float:
    """Samples by which `window` is later than `reference`, to about a hundredth of a sample.

    The peak of the cross-correlation, interpolated between samples. Positive: ``window[i + delay]`` is
    ``reference[i]``. Both should overlap by some hundred samples and have the same rate.
    """
    size = 1 << (len(window) + len(reference)).bit_length()
    spectrum = np.fft.rfft(window.astype(np.float64), size) * np.fft.rfft(reference.astype(np.float64), size).conj()
    correlation = np.fft.irfft(spectrum, size)
    peak = int(correlation.argmax())
    near = np.arange(-32, 33)
    values = correlation[(peak + near) % size]  # what lies around the end of the array are negative delays
    offsets = np.linspace(-1, 1, 41)
    taper = np.cos(np.pi * near / 66) ** 2
    fine = [float((values * np.sinc(offset - near) * taper).sum()) for offset in offsets]
    best = int(np.clip(np.argmax(fine), 1, len(offsets) - 2))
    before, top, after = fine[best - 1 : best + 2]
    vertex = (before - after) / (2 * (before - 2 * top + after)) * (offsets[1] - offsets[0])
    return float((peak if peak < len(window) else peak - size) + offsets[best] + vertex)


def snr_db(window: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> float:
    """Signal-to-noise ratio of `window` against `reference` in decibels; infinite if they are equal."""
    noise = np.square(window.astype(np.float64) - reference).sum()
    signal = np.square(reference.astype(np.float64)).sum()
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")
