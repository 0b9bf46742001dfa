"""What is done to sound before its spectrum is taken, as DALI nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from avloader.features.nodes import constant_for

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

__all__ = ["as_int16", "edged", "frames_of", "mirrored", "power_of_frames", "resized", "with_edges"]


def as_int16(audio: DataNode) -> DataNode:
    """Sound in [-1, 1) as the whole numbers that a 16-bit file would hold, in float32."""
    from nvidia.dali import math as dali_math

    return dali_math.clamp(dali_math.floor(audio * 32768.0 + 0.5), -32768.0, 32767.0)


def resized(audio: DataNode, num_samples: DataNode | int, *, start: DataNode | int = 0) -> DataNode:
    """Samples [start, start + num_samples); zeros where there are none."""
    from nvidia.dali import fn

    return fn.slice(
        audio, start=_vector(start), shape=_vector(num_samples), axes=[0], out_of_bounds_policy="pad", fill_values=0.0
    )


def mirrored(audio: DataNode, num_samples: int) -> DataNode:
    """Sound with `num_samples` more at both ends, mirrored at its first and last sample (which must be more)."""
    length = audio.shape()[0]
    return with_edges(resized(audio, length + 2 * num_samples, start=-num_samples), num_samples, num_samples + length)


def with_edges(audio: DataNode, first: DataNode | int, stop: DataNode | int, *, mirror: bool = True) -> DataNode:
    """Samples [first, stop) as they are, and instead of those around them what padding a whole file would give.

    Args:
        audio: float32 [shape=(num_samples,)].
        first: int32 on the CPU, at least 0: where what the file holds begins.
        stop: int32 on the CPU, first <= stop <= num_samples: where it ends.
        mirror: Mirrored at the first and last of them, as far as they reach; else, and beyond that, zeros.
    """
    from nvidia.dali import fn, types
    from nvidia.dali import math as dali_math

    length = fn.cast(audio.shape()[0], dtype=types.INT32)
    body = resized(audio, stop - first, start=first)
    if not mirror:
        return resized(body, length, start=0 - first)
    reach = dali_math.max(stop - first - 1, 0)
    before, after = dali_math.min(first, reach), dali_math.min(length - stop, reach)
    left = _reversed(resized(audio, before, start=first + 1))
    right = _reversed(resized(audio, after, start=stop - 1 - after))
    return resized(fn.cat(left, body, right, axis=0), length, start=before - first)


def edged(audio: npt.NDArray[np.float32], valid: tuple[int, int], *, mirror: bool = True) -> npt.NDArray[np.float32]:
    """The same as `with_edges` on the CPU."""
    first, stop = valid
    result = np.zeros_like(audio)
    result[first:stop] = audio[first:stop]
    if mirror:
        reach = max(stop - first - 1, 0)
        before, after = min(first, reach), min(len(audio) - stop, reach)
        result[first - before : first] = audio[first + 1 : first + 1 + before][::-1]
        result[stop : stop + after] = audio[stop - 1 - after : stop - 1][::-1]
    return result


def frames_of(audio: DataNode, num_frames: DataNode, *, length: int, hop_length: int) -> DataNode:
    """Overlapping stretches of sound [shape=(num_frames, length)]; zeros past the end."""
    from nvidia.dali import fn

    num_slices = -(-length // hop_length)
    rows = fn.reshape(resized(audio, (num_frames + num_slices - 1) * hop_length), shape=[-1, hop_length])
    # Row t + k holds the k-th part of stretch t.
    parts = [fn.slice(rows, start=[k], shape=_vector(num_frames), axes=[0]) for k in range(num_slices)]
    frames = fn.cat(*parts, axis=1) if num_slices > 1 else parts[0]
    return frames if num_slices * hop_length == length else frames[:, :length]


def power_of_frames(frames: DataNode, window: npt.NDArray[np.float32], n_fft: int) -> DataNode:
    """Power of the transform of each windowed stretch [shape=(n_fft // 2 + 1, num_frames)].

    Args:
        frames: float32 [shape=(num_frames, length)].
        window: float32 [shape=(length,)], length <= n_fft.
        n_fft: Samples of a transform; the stretch stands at its start, zeros follow.
    """
    from nvidia.dali import fn

    windowed = frames * constant_for(frames, window[None, :])
    if len(window) < n_fft:
        windowed = fn.pad(windowed, axes=[1], shape=[n_fft])
    # Laid end to end, each stretch is one transform of DALI's.
    return fn.spectrogram(
        fn.reshape(windowed, shape=[-1]),
        nfft=n_fft,
        window_length=n_fft,
        window_step=n_fft,
        window_fn=[1.0] * n_fft,
        center_windows=False,
        power=2,
    )


def _reversed(audio: DataNode) -> DataNode:
    from nvidia.dali import fn

    # DALI mirrors pictures only.
    return fn.reshape(fn.flip(fn.reshape(audio, shape=[1, -1, 1], layout="HWC"), horizontal=1), shape=[-1], layout="")


def _vector(value: DataNode | int) -> object:
    """A number as the one-element vector that DALI's slices take."""
    if isinstance(value, int):
        return [value]
    from nvidia.dali import fn, types

    return fn.reshape(fn.cast(value, dtype=types.INT32), shape=[1])
