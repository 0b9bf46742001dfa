"""Epoch after epoch, the batches of one rank, each clip with everything looked up that an engine needs to read it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

from avloader.epochs import Clip, EpochPlan, LastBatch, batches, num_batches
from avloader.manifest import Manifest
from avloader.pictures import PictureOptions
from avloader.reading import ClipRead, Route, SoundWindow
from avloader.routes import goes_to_cpu
from avloader.timeline import round_half_up

__all__ = ["Feed", "PlannedBatch"]

_LAST_EPOCH = 2**32 - 1


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A batch that is to be read.

    Attributes:
        epoch: Its epoch.
        position: Clips of the epoch that all ranks together have had after it.
        clips: Its clips.
        reads: The same clips, as an engine reads them.
        is_last: Whether this rank has no further batch in the epoch.
    """

    epoch: int
    position: int
    clips: list[Clip]
    reads: list[ClipRead]
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What a loader's batches are made from; knows nothing of the loader.

    Attributes:
        manifest: The clips.
        with_sound: Whether any is delivered.
        batch_size, rank, world_size, last_batch: This rank's share of them.
        sample_rate, num_samples: The delivered sound; of clips that last differently, the longest.
        context: Samples that are read before and after it.
        picture: What is made of each picture.
        nvdec_sizes: (width, height) of the pictures that NVDEC decodes.
        cpu_share: The part of them that the CPU decodes.
    """

    manifest: Manifest
    with_sound: bool
    batch_size: int
    rank: int
    world_size: int
    last_batch: LastBatch
    sample_rate: int
    num_samples: int
    context: tuple[int, int]
    picture: PictureOptions
    nvdec_sizes: frozenset[tuple[int, int]]
    cpu_share: Fraction

    def num_batches(self, plan: EpochPlan, start: int = 0) -> int:
        """Batches that this rank has from position `start` of an epoch on."""
        return num_batches(
            len(plan),
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            last_batch=self.last_batch,
            start=start,
        )

    def batches(self, plan: EpochPlan, start: int) -> Iterator[PlannedBatch]:
        """The batches of an epoch from a position on, then those of the epochs after it."""
        with ThreadPoolExecutor(1, thread_name_prefix="avloader-plan") as executor:
            while count := self.num_batches(plan, start):
                upcoming = executor.submit(plan.of_epoch(plan.epoch + 1).prepare) if plan.epoch < _LAST_EPOCH else None
                spans = batches(
                    len(plan),
                    batch_size=self.batch_size,
                    rank=self.rank,
                    world_size=self.world_size,
                    last_batch=self.last_batch,
                    start=start,
                )
                for number, clips in enumerate(plan.clips(spans), start=1):
                    position = min(start + number * self.batch_size * self.world_size, len(plan))
                    reads = [self._read(clip, plan.epoch) for clip in clips]
                    yield PlannedBatch(plan.epoch, position, clips, reads, number == count)
                if upcoming is None:
                    return
                plan, start = upcoming.result(), 0

    def _read(self, clip: Clip, epoch: int) -> ClipRead:
        medium = self.manifest.media(clip.media_id)
        route: Route = None
        if medium.video is not None and not medium.nvdec_reason and not goes_to_cpu(clip.position, self.cpu_share):
            size = medium.video.width, medium.video.height
            route = size if size in self.nvdec_sizes else None
        sound = self._sound(clip) if self.with_sound else None
        corner = 0, 0
        if self.picture.is_cropped and medium.video is not None:
            corner = self.picture.corner((medium.video.height, medium.video.width), clip.crop)
        return ClipRead(clip.row, medium, clip.frames, sound, route, corner, epoch)

    def _sound(self, clip: Clip) -> SoundWindow:
        num_samples = self.num_samples
        if clip.sound_seconds is not None:
            num_samples = min(max(round_half_up(clip.sound_seconds * self.sample_rate), 1), num_samples)
        return SoundWindow.at(
            self.manifest.media(clip.audio_id),
            clip.audio_start,
            num_samples=num_samples + sum(self.context),
            sample_rate=self.sample_rate,
            before=self.context[0],
            speed=clip.speed,
        )
