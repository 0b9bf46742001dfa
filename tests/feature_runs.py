"""Runs features on test sounds: on the CPU, and as DALI does on either device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from nvidia.dali import Pipeline, fn, types

from avloader.features import Feature

DEVICES = ["cpu", "DALI on cpu", pytest.param("gpu", marks=pytest.mark.gpu)]
RATE = 16000


def sound(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Noise, loud at first and then soft, with a steady tone."""
    seconds = np.arange(num_samples) / RATE
    noise = rng.standard_normal(num_samples) * np.linspace(0.3, 0.003, num_samples)
    return (noise + 0.1 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)


def compute(
    feature: Feature,
    clips: Sequence[np.ndarray],
    device: str,
    rate: int = RATE,
    valid: Sequence[tuple[int, int]] | None = None,
) -> list[np.ndarray]:
    """The feature of each clip, in one batch; `valid`: which samples of each exist in its medium."""
    if device == "cpu":
        ranges = [None] * len(clips) if valid is None else valid
        return [feature.compute(clip, sample_rate=rate, valid=each) for clip, each in zip(clips, ranges, strict=True)]
    device = "gpu" if device == "gpu" else "cpu"
    pipe = Pipeline(
        batch_size=len(clips), num_threads=1, device_id=0 if device == "gpu" else None, prefetch_queue_depth=1
    )
    with pipe:
        audio = fn.external_source(name="audio", dtype=types.FLOAT, ndim=1)
        of_medium = fn.external_source(name="valid", dtype=types.INT32, ndim=1) if valid is not None else None
        pipe.set_outputs(feature.build(audio, device=device, sample_rate=rate, valid=of_medium))
    pipe.build()
    if valid is not None:
        pipe.feed_input("valid", [np.array(each, np.int32) for each in valid])
    pipe.feed_input("audio", list(clips))
    (batch,) = pipe.run()
    return [np.array(row) for row in (batch.as_cpu() if device == "gpu" else batch)]
