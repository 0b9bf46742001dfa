from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TruthMedia
from truth import linear_window

from avloader.errors import DecodeError
from avloader.media import probe
from avloader.reading import ClipRead, ClipReader, ReadPool, SlotLayout, SoundWindow

NUM_SAMPLES = 4800


@pytest.fixture
def pool() -> Iterator[ReadPool]:
    pool = ReadPool(SlotLayout((1, 2, 2, 3), NUM_SAMPLES, num_slots=0, num_sound_slots=2), num_workers=2)
    yield pool
    pool.close()


def clip_at(path: Path, row: int) -> ClipRead:
    """One clip, a second after the row before it."""
    media = probe(path)
    assert media.video is not None
    sound = SoundWindow.at(media, media.video.times.seconds(25 * row), num_samples=NUM_SAMPLES, sample_rate=48000)
    return ClipRead(row, media, (25 * row,), sound)


def test_clips_that_are_read_together_are_what_each_is_alone(truth_media: TruthMedia) -> None:
    media = probe(truth_media["mp4_25"])
    assert media.video is not None
    starts = [100, 92, 140, 100, 3, 200, 101]  # some overlap, some share a group of pictures, some share nothing
    layout = SlotLayout((4, 3, 32, 64), NUM_SAMPLES, num_slots=len(starts), num_sound_slots=0)
    tasks = []
    for slot, start in enumerate(starts):
        sound = SoundWindow.at(media, media.video.times.seconds(start), num_samples=NUM_SAMPLES, sample_rate=16000)
        tasks.append(ClipRead(slot, media, tuple(range(start, start + 8, 2)), sound).task(slot, with_frames=True))
    tasks[3] = replace(tasks[3], frame_pts=(tasks[3].frame_pts[0] + 1,) * 4)  # there is no such frame
    memories = [mmap.mmap(-1, layout.num_bytes) for _ in range(2)]
    together = ClipReader(layout, memories[0])(tasks)
    alone = [ClipReader(layout, memories[1])([task])[0] for task in tasks]
    for slot, (result, expected) in enumerate(zip(together, alone, strict=True)):
        if slot == 3:
            assert isinstance(result, DecodeError)
            assert result.row == 3
            assert str(result) == str(expected)
            continue
        assert result == expected == (0, NUM_SAMPLES)
        for part in (layout.frames, layout.sound):
            got, wanted = (part(memory, slot) for memory in memories)
            assert wanted.any()
            assert (got == wanted).all(), slot


def test_batches_come_by_number_with_the_sound_of_their_clips(truth_media: TruthMedia, pool: ReadPool) -> None:
    path = truth_media["mp4_25"]
    ahead = pool.read()
    ahead.add(((number, [clip_at(path, number)]) for number in range(6)), with_frames=False)
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
    ahead.add(((number, [clip_at(path, number)]) for number in range(6)), with_frames=False)
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


@pytest.mark.timeout(60)
@pytest.mark.parametrize("with_frames", [True, False], ids=["frames", "sound"])
def test_closing_does_not_wait_for_what_a_closed_pool_never_reads(with_frames: bool, truth_media: TruthMedia) -> None:
    clips = [clip_at(truth_media["mp4_25"], row) for row in range(4)]
    pool = ReadPool(SlotLayout((1, 3, 2, 2), NUM_SAMPLES, num_slots=4, num_sound_slots=4), num_workers=1)
    ahead = pool.read()
    ahead.add([(number, [clip]) for number, clip in enumerate(clips[:2])], with_frames=with_frames)
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        ahead.add([(2, clips[2:])], with_frames=with_frames)
    ahead.close()
