"""The demo's proof: it must see frames and sound that do not belong together."""

from __future__ import annotations

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.signal import resample_poly

from avloader import demo
from avloader.batch import AVBatch

FIRST, STRIDE = 40, 2


@pytest.fixture(scope="module")
def clip() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Sixteen frames from frame 40 (1.6 s) on, and all sound at 48 kHz, by a linear decode."""
    path = str(demo.demo_clip())
    with av.open(path) as container:
        decoded = [frame.to_ndarray(width=320, height=180, format="rgb24") for frame in container.decode(video=0)]
    with av.open(path) as container:
        sound = np.concatenate([frame.to_ndarray().mean(axis=0) for frame in container.decode(audio=0)])
    return np.stack(decoded[FIRST : FIRST + 16 * STRIDE : STRIDE]), sound


def _batch(frames: npt.NDArray[np.uint8], sound: npt.NDArray[np.float32], start: float, first: int = FIRST) -> AVBatch:
    begin = round(start * 48000)
    window = resample_poly(sound[begin : begin + 48000], 1, 3).astype(np.float32)
    return AVBatch(
        frames=torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())[None],
        audio=torch.from_numpy(window)[None],
        spectrogram=None,
        label=torch.zeros(1, dtype=torch.int64),
        row=torch.zeros(1, dtype=torch.int64),
        frame_seconds=torch.arange(first, first + 16 * STRIDE, STRIDE, dtype=torch.float64)[None] / 25,
        audio_start_seconds=torch.full((1,), start, dtype=torch.float64),
        audio_valid=torch.tensor([[0, 16000]]),
        offset_seconds=torch.zeros(1, dtype=torch.float64),
        audio_row=torch.zeros(1, dtype=torch.int64),
    )


def test_frames_and_sound_that_belong_together_pass(clip):
    right, total, (lag,) = demo._compare(demo.demo_clip(), [_batch(*clip, start=1.6)])
    assert (right, total) == (16, 16)
    assert abs(lag) < demo.MAX_SYNC_ERROR_SECONDS / 2


def test_frames_reported_a_frame_late_are_wrong_frames(clip):
    right, total, _ = demo._compare(demo.demo_clip(), [_batch(*clip, start=1.6, first=FIRST + 1)])
    assert (right, total) == (0, 16)


@pytest.mark.parametrize("milliseconds", [-40, -1, 0.25, 20])
def test_sound_from_another_time_is_measured(clip, milliseconds):
    _, _, (lag,) = demo._compare(demo.demo_clip(), [_batch(*clip, start=1.6 + milliseconds / 1000)])
    assert lag == pytest.approx(milliseconds / 1000, abs=2e-5)


def test_the_annotations_tell_of_the_clip_that_is_there():
    assert demo.demo_clip().name == "bigbuckbunny.mp4"
    assert all(line.startswith("bigbuckbunny.mp4,") for line in demo.ANNOTATIONS.splitlines()[1:])
