"""`AVLoader`: iterate synchronized batches of frames, sound and spectrograms."""

from __future__ import annotations

import functools
import math
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, Literal, ParamSpec, cast, get_args

import numpy as np
import torch

from avloader.arguments import (
    check_choice,
    check_positive,
    checked_device,
    checked_normalize,
    checked_rank,
    checked_share,
    checked_size,
    sound_options,
)
from avloader.augment.base import Node
from avloader.augment.clips import ClipAugment, ClipSpeeds
from avloader.batch import AVBatch
from avloader.decoding import (
    Decode,
    Decoding,
    DecodingOptions,
    choose_decoding,
    decoding_of_sound,
    longest_span,
)
from avloader.engine import Engine, ReaderOptions
from avloader.epochs import EpochPlan, LastBatch
from avloader.errors import ManifestError
from avloader.features import Feature, MelSpectrogram, Segments
from avloader.feed import Feed, PlannedBatch
from avloader.finishing import AfterGraph, Finishing, Made
from avloader.manifest import Manifest, Streams
from avloader.offsets import OffsetRule
from avloader.pictures import Color, Crop, Interpolation, PictureOptions
from avloader.pipeline import GraphOptions, Normalize
from avloader.plan import Plan, PlanOptions, SoundPlace, Windows
from avloader.presets import Preset, find_preset
from avloader.run import Resources, Run
from avloader.sound_plan import SoundOptions, SoundPlan
from avloader.timeline import round_half_up

__all__ = ["AVLoader", "SkippedClip"]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

_STATE_VERSION = 1
_Arguments = ParamSpec("_Arguments")
_READER_TIMEOUT = 30.0  # seconds without a piece after which NVDEC's reader counts as hanging


@dataclass(frozen=True, slots=True)
class SkippedClip:
    """A clip that was left out, with `on_error="skip"`.

    Attributes:
        epoch: The epoch.
        row: Manifest row.
        path: Its medium.
        reason: Why, as the error would have said it.
    """

    epoch: int
    row: int
    path: str
    reason: str


def _with_preset(init: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """`init` with the preset's options where none are given."""

    @functools.wraps(init)
    def init_with_preset(*args: _Arguments.args, **options: _Arguments.kwargs) -> None:
        preset = options.get("preset")
        given: dict[str, Any] = {} if preset is None else find_preset(cast(str, preset)).options
        init(*args, **(given | options))

    return init_with_preset


class AVLoader:
    """Synchronized batches from a manifest.

    What an epoch delivers is a function of (manifest, options, seed, epoch) alone: the same clips in the same order on
    a CPU and on a GPU, for any number of workers and ranks, resumed or not. ::

        loader = AVLoader("manifests/train", batch_size=16, num_frames=16, shuffle=True)
        for batch in loader:
            loss = model(batch.spectrogram, batch.frames)

    Each pass over the loader is one epoch; the next pass is the next epoch unless `set_epoch` says otherwise.

    Args:
        manifest: An opened manifest, or the path of its folder.
        preset: The input contract of a model, by name (`avloader presets` lists them): other defaults for what decides
            about pictures and sound. None: those that are written here.
        streams: "both": pictures and their sound. "audio": sound alone, of audio files or videos; what decides about
            pictures does not count. A clip is a window of `audio_seconds` inside its row, followed by zeros where the
            row is shorter; with `audio_seconds=None` the whole row, batches padded to the longest. "video": pictures
            alone; no sound is read.
        batch_size: Clips of a batch on each rank, > 0.
        num_frames: Frames of a clip, > 0.
        stride: Source frames between two of them, > 0; with `fps`, steps of 1 / fps.
        fps: Deliver at this rate (a number, a `Fraction`, or text such as "30000/1001"): the nearest source frame to
            each instant. None: the source's own frames.
        size: (height, width), an int for both, or None for the stored size.
        resize: What pictures are scaled to before `size` is cut out: (height, width), or an int: the shorter side, the
            longer one in proportion. None: straight to `size`.
        crop: Where `size` is cut out: "center", "random" (another place for each clip and epoch), "bottom".
        color: "rgb", "bgr", or "grey" (one channel).
        interpolation: "bilinear" or "bicubic".
        normalize: (mean, std) per channel in 0-255 units; "per_clip": each clip's own; None: uint8 frames.
        sample_rate: Of the delivered sound, > 0.
        audio_seconds: Length of the sound; None: as long as the frames last, with ``streams="audio"`` each row as a
            whole.
        offsets: A rule that puts sound out of sync on purpose and labels it: `OtherStart`, `AllPairs`, `GridOffsets`,
            `BinaryOffsets`, `OtherClip`, `FixedOffsets`; None: every clip is in sync.
        audio_from: Where the sound begins: "clip": with the clip's first frame; "row": with the row's first frame;
            "around": somewhere, another place in each epoch, such that the frames lie in it. A feature whose scope is
            the medium has it begin on its last column before that.
        features: One of the features of sound such as `MelSpectrogram`, or None for sound only.
        clips: Windows of a row: "all", "first", "center", "random".
        augment: A transform of `avloader.augment` or a group of them, keyed by `seed`, the epoch and the clip: sound
            before its features, pictures before they are normalized, features. What would break sync is refused.
            `JointSpeed` changes which frames and sound are read.
        shuffle: Another order in each epoch.
        bucket: So many clips of similar length follow one another, the others in the order that `shuffle` says; best a
            multiple of ``batch_size * world_size``. For ``streams="audio"`` and ``audio_seconds=None``. None: any
            length.
        seed: >= 0.
        rank: This process among `world_size`; None: from torch.distributed, else 0.
        world_size: Processes that share each epoch; None: from torch.distributed, else 1.
        last_batch: "partial": a short last batch; "drop": none.
        device: Where the batches are: "cpu", "gpu" (or "cuda:1"), "auto": a GPU if there is one.
        decode: "nvdec": on the GPU's video engines; "cpu": in worker processes; "auto": both side by side, each what it
            can take.
        cpu_share: With "auto", the part of the clips that NVDEC could decode which the CPU decodes, in [0, 1]; "auto":
            as many as make both end at the same time. Which ones is fixed by the plan; colours differ slightly.
        lanes: NVDEC's readers side by side, > 0; "auto": one more than the GPU has decoder engines.
        memory_limit: Bytes of the GPU's memory for decoding, > 0; "auto": 6.2 GB, or half of what the GPU has.
        on_error: "raise": the first clip that cannot be read ends the epoch; "skip": it is left out and listed in
            `skipped`.
        num_workers: Processes that decode and read sound; None: one a core, but for four cores where NVDEC decodes too.
        num_threads: Threads of the graph on the CPU.

    Attributes:
        manifest: The opened manifest.
        preset: The preset, or None.
        skipped: The clips that were left out.

    Raises:
        ValueError, TypeError: An argument is not what is said above.
        ManifestError: The manifest cannot be used, or not so.
    """

    @_with_preset
    def __init__(
        self,
        manifest: Manifest | str | os.PathLike[str],
        *,
        preset: str | Preset | None = None,
        streams: Streams = "both",
        batch_size: int,
        num_frames: int = 16,
        stride: int = 1,
        fps: float | str | Fraction | None = None,
        size: int | tuple[int, int] | None = (224, 224),
        resize: int | tuple[int, int] | None = None,
        crop: Crop = "center",
        color: Color = "rgb",
        interpolation: Interpolation = "bilinear",
        normalize: Normalize = (IMAGENET_MEAN, IMAGENET_STD),
        sample_rate: int = 16000,
        audio_seconds: float | str | Fraction | None = None,
        offsets: OffsetRule | None = None,
        audio_from: SoundPlace = "clip",
        features: Feature | None = MelSpectrogram(n_fft=512, hop_length=160, n_mels=80),  # noqa: B008 - frozen
        clips: Windows = "all",
        augment: Node | None = None,
        shuffle: bool = False,
        bucket: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        last_batch: LastBatch = "partial",
        device: str | torch.device = "auto",
        decode: Decode = "auto",
        cpu_share: float | str | Fraction = "auto",
        lanes: int | Literal["auto"] = "auto",
        memory_limit: int | Literal["auto"] = "auto",
        on_error: Literal["raise", "skip"] = "raise",
        num_workers: int | None = None,
        num_threads: int = 2,
    ) -> None:
        if not isinstance(manifest, (Manifest, str, os.PathLike)):
            raise TypeError(f"manifest={manifest!r} must be a Manifest or the path of its folder")
        check_positive("batch_size", batch_size)
        check_positive("sample_rate", sample_rate)
        check_positive("num_threads", num_threads)
        if num_workers is not None:
            check_positive("num_workers", num_workers)
        for name, value in (("lanes", lanes), ("memory_limit", memory_limit)):
            if value != "auto":
                check_positive(name, value, or_auto=True)
        check_choice("streams", streams, get_args(Streams))
        check_choice("last_batch", last_batch, get_args(LastBatch))
        check_choice("decode", decode, get_args(Decode))
        check_choice("on_error", on_error, ("raise", "skip"))
        if features is not None and not isinstance(features, Feature):
            raise TypeError(f"features={features!r} must be a feature such as MelSpectrogram(...), or None")
        if streams == "video":
            features = None
        if streams != "both" and offsets is not None:
            raise ValueError(f'offsets={offsets!r} puts sound out of sync with pictures: it needs streams="both"')
        if streams != "audio" and bucket is not None:
            raise ValueError(f'bucket={bucket!r} is for clips that last differently: it needs streams="audio"')
        speeds = ClipSpeeds.of(augment, seed=seed)
        if streams != "both" and speeds is not None:
            raise ValueError(f'{speeds!r} plays sound and pictures faster or slower together: it needs streams="both"')
        self._streams: Streams = streams
        self._options: PlanOptions | SoundOptions
        if streams == "audio":
            self._options = sound_options(features, sample_rate, audio_seconds, clips, shuffle, seed, bucket)
        else:
            self._options = PlanOptions(
                num_frames=num_frames,
                stride=stride,
                fps=cast("Fraction | None", fps),  # PlanOptions makes it exact
                clips=clips,
                shuffle=shuffle,
                seed=seed,
                audio_seconds=cast("Fraction | None", audio_seconds),
                offsets=offsets,
                audio_from=audio_from,
                audio_grid=Fraction(features.grid, sample_rate) if features is not None and features.grid else None,
                random_crop=crop == "random",
                with_sound=streams == "both",
                speeds=speeds,
            )
        self._size = checked_size(size)
        self._picture = PictureOptions(
            size=self._size, resize=resize, crop=crop, color=color, interpolation=interpolation
        )
        self._normalize = checked_normalize(normalize, self._picture.num_channels)
        self._rank, self._world_size = checked_rank(rank, world_size)
        self._batch_size, self._last_batch, self._on_error = batch_size, last_batch, on_error
        self._sample_rate, self._features = sample_rate, features
        self._device = checked_device(device)
        self.preset = None if preset is None else find_preset(preset)
        self.manifest = manifest if isinstance(manifest, Manifest) else Manifest.open(manifest)
        self.manifest.check_streams(streams)
        self.skipped: list[SkippedClip] = []
        self._epoch = 0
        self._start = 0  # where in the epoch a pass begins
        self._position = 0  # up to where the epoch was delivered
        self._is_over = False  # whether the epoch's last batch was delivered
        self._pass = 0  # a number that changes when another pass, or another start of it, becomes the current one
        self._plan: EpochPlan | None = None
        self._decoding_options = DecodingOptions(
            decode=decode,
            cpu_share=checked_share(cpu_share),
            lanes=lanes,
            memory_limit=memory_limit,
            num_workers=num_workers,
        )
        self._decoding = self._choose_decoding(self._decoding_options)
        self._num_threads = num_threads
        self._resources = Resources()
        # Nobody closes a loader that is just dropped; the pool's thread would keep its processes for ever.
        weakref.finalize(self, self._resources.close)
        self._augment = self._checked_augment(augment, self._current_plan())
        self._check_features(self._current_plan())  # so that what cannot work is said now

    @property
    def engine(self) -> str:
        """What decodes what and why, as a sentence."""
        return self._decoding.sentence

    @property
    def decoding(self) -> Decoding:
        """The same for programs: routes, lanes, processes."""
        return self._decoding

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self._device

    @property
    def fallbacks(self) -> list[str]:
        """What NVDEC's reader failed at and the CPU decoded in its place, as sentences."""
        return list(self._resources.engine.fallbacks) if self._resources.engine is not None else []

    def __len__(self) -> int:
        """Batches that a whole epoch has on this rank."""
        return self._feed(self._current_plan()).num_batches(self._current_plan())

    def __iter__(self) -> Iterator[AVBatch]:
        """The batches of this epoch, from its start or from where `load_state_dict` said.

        A loader runs one pass at a time: the start of another ends the iterator of the one before. At the end of an
        epoch the next one is being read already; `close` gives back what that holds.
        """
        if self._is_over:  # by a training loop that counts batches and did not ask for the end
            self.set_epoch(self._epoch + 1)
        resources = self._resources
        plan, start, epoch = self._current_plan(), self._start, self._epoch
        self._position = start
        self._pass = this_pass = self._pass + 1
        feed = self._feed(plan)
        if feed.num_batches(plan, start):
            run = resources.run
            if run is None or run.next != (epoch, start):
                resources.stop_run()
                if resources.engine is None:
                    resources.engine = self._make_engine(plan)
                is_after = self._augment is not None and (self._augment.has_pictures or self._augment.has_features)
                after = AfterGraph(self._augment, self._normalize) if is_after else None
                finishing = Finishing(after, self._features)
                batches = feed.batches(plan, start)
                run = resources.run = Run(resources.engine, batches, (epoch, start), self._device, finishing)
            is_whole = False
            try:
                for made in run.epoch():
                    if self._pass == this_pass:
                        self._position = made.planned.position
                    self._report(made)
                    is_whole = made.planned.is_last
                    if self._pass == this_pass:
                        self._is_over = is_whole
                    if made.batch is not None:
                        yield made.batch
            finally:
                if not is_whole:
                    run.close()
            if not is_whole:
                return
        if self._pass == this_pass:
            self.set_epoch(epoch + 1)

    def planned(self) -> Iterator[PlannedBatch]:
        """What the next pass and those after it deliver, without reading any of it."""
        plan = self._current_plan()
        return self._feed(plan).batches(plan, self._start)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the start of `epoch`, >= 0."""
        if not isinstance(epoch, int) or isinstance(epoch, bool):
            raise TypeError(f"epoch={epoch!r} must be an int")
        if not 0 <= epoch < 2**32:
            raise ValueError(f"epoch={epoch} must be in [0, {2**32})")
        self._go_to(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, to resume from: plain values, for `torch.save` or JSON.

        The same on every rank after the same number of batches; a run may resume with another `world_size` or
        `batch_size`.
        """
        return {
            "version": _STATE_VERSION,
            "epoch": self._epoch,
            "position": self._position,
            "manifest": self.manifest.fingerprint,
            "plan": self._plan_text(),
            "cpu_share": str(self._decoding.cpu_share),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken: the next pass delivers the clips that had not been delivered.

        With ``cpu_share="auto"`` the share that was chosen then is kept, so that the pictures are the same to the bit.

        Raises:
            ValueError: If the state is of another manifest or of options that give other clips.
        """
        if not isinstance(state, dict):
            raise TypeError(f"state={state!r} must be what `state_dict` returned")
        if state.get("version") != _STATE_VERSION:
            raise ValueError(f"state has version {state.get('version')!r}, but this loader reads {_STATE_VERSION}")
        for key, own in (("manifest", self.manifest.fingerprint), ("plan", self._plan_text())):
            if state.get(key) != own:
                raise ValueError(
                    f"the state was taken with another {key}: {state.get(key)!r}, but this loader has {own!r}"
                )
        share = Fraction(state.get("cpu_share", self._decoding.cpu_share))
        if self._decoding_options.cpu_share == "auto" and self._decoding.nvdec_sizes and share < 1:
            self._decoding = self._choose_decoding(replace(self._decoding_options, cpu_share=share))
            self.close()
        self._go_to(int(state["epoch"]), int(state["position"]))

    def close(self) -> None:
        """End the processes and threads of the loader. Iterating again starts them again."""
        self._resources.close()

    def __enter__(self) -> AVLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"AVLoader({len(self.manifest)} rows, {len(self)} batches of {self._batch_size}; {self.engine})"

    def _plan_text(self) -> str:
        return ", ".join(f"{field.name}={getattr(self._options, field.name)}" for field in fields(self._options))

    def _go_to(self, epoch: int, position: int) -> None:
        """Make the next pass begin at `position` of `epoch`; a pass that is under way no longer counts."""
        self._epoch, self._start, self._position = epoch, position, position
        self._is_over = False
        self._pass += 1

    def _current_plan(self) -> EpochPlan:
        if self._plan is None or self._plan.epoch != self._epoch:
            old, self._plan = self._plan, None
            plan = self._first_plan() if old is None else old.of_epoch(self._epoch)
            self._plan = plan
            self._report_short_rows(plan)
        return self._plan

    def _first_plan(self) -> EpochPlan:
        if isinstance(self._options, SoundOptions):
            return SoundPlan(self.manifest, self._options, epoch=self._epoch)
        return Plan(self.manifest, self._options, epoch=self._epoch)

    def _checked_augment(self, augment: Node | None, plan: EpochPlan) -> ClipAugment | None:
        if augment is None:
            return None
        options = self._options
        if isinstance(options, SoundOptions):
            return ClipAugment(augment, seed=options.seed, num_frames=None, fps=None)
        fps = None
        if plan.clip_seconds is not None and options.audio_from == "clip":
            fps = float(options.num_frames / plan.clip_seconds)
        made = ClipAugment(
            augment,
            seed=options.seed,
            num_frames=options.num_frames,
            fps=fps,
            with_sound=options.with_sound,
            color=self._picture.color,
        )
        if made.has_features and (self._features is None or isinstance(self._features, Segments)):
            raise ValueError(f"SpecAugment needs features= that give one spectrogram a clip, not {self._features!r}")
        return made

    def _check_features(self, plan: EpochPlan) -> None:
        if self._features is None:
            return
        num_samples = self._num_samples(plan)
        try:
            self._features.num_hops(num_samples)
        except ValueError as error:
            raise ValueError(
                f"features={self._features!r} need more sound than audio_seconds={float(plan.audio_seconds):g} at "
                f"sample_rate={self._sample_rate}: {error}"
            ) from None

    def _report_short_rows(self, plan: EpochPlan) -> None:
        if not len(plan.short_rows):
            return
        example = plan.short_rows[0]
        if self._on_error == "raise":
            shorter = "" if self._streams == "audio" else "Lower num_frames or stride, or use "
            raise ManifestError(
                f"{len(plan.short_rows)} of {len(self.manifest)} rows are too short: this one has {example}",
                path=self._path_of_row(example.row),
                row=example.row,
                remedy=f'{shorter or "Use "}on_error="skip" to leave such rows out',
            )
        for short in plan.short_rows:
            path = self._path_of_row(short.row)
            self.skipped.append(SkippedClip(self._epoch, short.row, path, f"too short: {short}"))

    def _path_of_row(self, row: int) -> str:
        return self.manifest.media(int(self.manifest.media_id[row])).path

    def _choose_decoding(self, options: DecodingOptions) -> Decoding:
        if self._streams == "audio":
            return decoding_of_sound(options, device=self._device, batch_size=self._batch_size)
        height, width = self._size or self._stored_size()
        bytes_of_value = 1 if self._normalize is None else 4
        return choose_decoding(
            self.manifest,
            options,
            device=self._device,
            batch_size=self._batch_size,
            reader_frames=self._reader_options().span,
            output_bytes=self._num_frames * height * width * self._picture.num_channels * bytes_of_value,
        )

    def _reader_options(self) -> ReaderOptions:
        options = self._options
        if isinstance(options, SoundOptions):
            return ReaderOptions(0, 1, rearrange=False, timeout=_READER_TIMEOUT)
        fastest = Fraction(1) if options.speeds is None else max(options.speeds.factors)
        if options.fps is not None:
            span = longest_span(self.manifest, options.num_frames, options.stride, options.fps / fastest)
        elif options.speeds is not None:
            span = 1 + math.ceil((options.num_frames - 1) * options.stride * fastest)
        else:
            return ReaderOptions(options.num_frames, options.stride, rearrange=False, timeout=_READER_TIMEOUT)
        return ReaderOptions(span, 1, rearrange=True, timeout=_READER_TIMEOUT)

    def _feed(self, plan: EpochPlan) -> Feed:
        return Feed(
            manifest=self.manifest,
            with_sound=self._streams != "video",
            batch_size=self._batch_size,
            rank=self._rank,
            world_size=self._world_size,
            last_batch=self._last_batch,
            sample_rate=self._sample_rate,
            num_samples=self._num_samples(plan),
            context=self._graph(plan).context,
            picture=self._picture,
            nvdec_sizes=self._decoding.nvdec_sizes,
            cpu_share=self._decoding.cpu_share,
        )

    def _graph(self, plan: EpochPlan) -> GraphOptions:
        return GraphOptions(
            num_frames=self._num_frames,
            picture=self._picture,
            normalize=None if self._augments_pictures else self._normalize,
            sample_rate=self._sample_rate,
            num_samples=self._num_samples(plan),
            features=self._features,
            is_ragged=self._streams == "audio" and self._options.audio_seconds is None,
            augment=self._augment if self._augment is not None and self._augment.has_sound else None,
        )

    def _make_engine(self, plan: EpochPlan) -> Engine:
        return Engine(
            self._graph(plan),
            routes=self._decoding.routes,
            reader=self._reader_options(),
            frame_size=self._size or ((0, 0) if self._streams == "audio" else self._stored_size()),
            batch_size=self._batch_size,
            device="gpu" if self._device.type == "cuda" else "cpu",
            device_id=self._device.index or 0,
            num_workers=self._decoding.num_workers,
            num_threads=self._num_threads,
        )

    @property
    def _augments_pictures(self) -> bool:
        return self._augment is not None and self._augment.has_pictures

    @property
    def _num_frames(self) -> int:
        return 0 if isinstance(self._options, SoundOptions) else self._options.num_frames

    def _num_samples(self, plan: EpochPlan) -> int:
        if self._streams == "video":
            return 0
        return max(round_half_up(plan.audio_seconds * self._sample_rate), 1)

    def _stored_size(self) -> tuple[int, int]:
        pictures, used = self.manifest.media_pictures, self.manifest.used_media
        width, height = pictures.width[used], pictures.height[used]
        others = np.flatnonzero((width != width[0]) | (height != height[0]))
        if len(others):
            other = others[0]
            raise ManifestError(
                f"size=None keeps the stored size, but it is {width[other]}x{height[other]} here and "
                f"{width[0]}x{height[0]} in {self.manifest.media(int(used[0])).path}",
                path=self.manifest.media(int(used[other])).path,
                remedy="Give size=(height, width)",
            )
        return int(height[0]), int(width[0])

    def _report(self, made: Made) -> None:
        for place, error in made.errors.items():
            if self._on_error == "raise":
                raise error
            clip = made.planned.reads[place]
            self.skipped.append(SkippedClip(made.planned.epoch, clip.row, error.path or clip.media.path, error.cause))
