from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TruthMedia
from truth import linear_window

from avloader.media import probe
from avloader.reading import ClipRead, ReadPool, SlotLayout, SoundWindow

NUM_SAMPLES = 4800


@pytest.fixture
def pool() -> Iterator[ReadPool]:
    pool = ReadPool(SlotLayout(2, None, NUM_SAMPLES), num_workers=2)
    yield pool
    pool.close()


def clip_at(path: Path, row: int) -> ClipRead:
    """One clip, a second after the row before it."""
    media = probe(path)
    assert media.video is not None
    sound = SoundWindow.at(media, media.video.times.seconds(25 * row), num_samples=NUM_SAMPLES, sample_rate=48000)
    return ClipRead(row, media, (25 * row,), sound)


def test_batches_come_by_number_with_the_sound_of_their_clips(truth_media: TruthMedia, pool: ReadPool) -> None:
    path = truth_media["mp4_25"]
    ahead = pool.read()
    ahead.add((number, [clip_at(path, number)]) for number in range(6))
    for number in (1, 0, 2, 3, 4, 5):  # out of order as far as the two slots allow
        batch = ahead.take(number)
        expected = linear_window(path, probe(path).video.times.seconds(25 * number), NUM_SAMPLES)  # type: ignore[union-attr]
        assert [clip.row for clip in batch.clips] == [number]
        assert (batch.sounds[0] == expected).all()
        assert batch.valid == [(0, NUM_SAMPLES)]
        ahead.release(batch)
    ahead.close()


def test_what_nobody_will_take_does_not_hold_up_the_rest(truth_media: TruthMedia, pool: ReadPool) -> None:
    path = truth_media["mp4_25"]
    ahead = pool.read()
    ahead.add((number, [clip_at(path, number)]) for number in range(6))
    ahead.discard([0, 1, 3])  # they held both slots, or waited for one
    for number in (2, 4, 5):
        batch = ahead.take(number)
        assert batch.clips[0].row == number
        ahead.release(batch)
    ahead.close()


def test_closing_ends_whoever_waits_for_a_batch(pool: ReadPool) -> None:
    ahead = pool.read()
    ended = threading.Event()

    def wait() -> None:
        for _ in map(ahead.take, [7]):
            pass
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not ended.wait(0.2)
    ahead.close()
    thread.join(10)
    assert ended.is_set()
