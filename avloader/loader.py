"""`AVLoader`: iterate synchronized batches of frames, sound and spectrograms."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, Literal, ParamSpec, cast, get_args

import numpy as np
import numpy.typing as npt
import torch

from avloader.augment.base import Node
from avloader.augment.clips import ClipAugment, ClipSpeeds
from avloader.decoding import (
    Decode,
    Decoding,
    DecodingOptions,
    choose_decoding,
    decoding_of_sound,
    longest_span,
)
from avloader.engine import Delivered, Engine, Gathered, ReaderOptions
from avloader.errors import AVLoaderError, ManifestError
from avloader.features import Feature, MelSpectrogram, Segments
from avloader.feed import Feed, PlannedBatch
from avloader.manifest import Manifest, Streams
from avloader.offsets import OffsetRule
from avloader.pictures import Color, Crop, Interpolation, PictureOptions
from avloader.pipeline import AUGMENTATION, PER_CLIP_VARIANCE_FLOOR, GraphOptions, Normalize
from avloader.plan import Clip, EpochPlan, LastBatch, Plan, PlanOptions, SoundPlace, Windows
from avloader.presets import Preset, find_preset
from avloader.reading import ClipRead, SoundWindow
from avloader.sound_plan import SoundOptions, SoundPlan
from avloader.timeline import round_half_up

__all__ = ["AVBatch", "AVLoader", "SkippedClip"]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

# Not `| None`, as in typeshed: a loader of pictures and sound never leaves one out, and its users need not ask.
_Tensor = torch.Tensor | Any

_STATE_VERSION = 1
_EXACT = 2**53  # integers up to here are exact as float64, and so their quotient is the float nearest to the exact one
_Arguments = ParamSpec("_Arguments")
_BATCHES_READY = 2  # finished batches that wait for the training loop
_READER_TIMEOUT = 30.0  # seconds without a piece after which NVDEC's reader counts as hanging


@dataclass(frozen=True, slots=True, eq=False)
class AVBatch:
    """One batch: B clips of F frames with their sound.

    With the loader's ``streams="audio"`` what is said of frames is None, with ``streams="video"`` what is said of
    sound; so is `offset_seconds` with either.

    Attributes:
        frames: Pictures [shape=(B, F, C, H, W)], RGB unless another `color` is asked for; float32 normalized, or uint8.
        audio: Sound [shape=(B, N)], float32, mono, at the loader's `sample_rate`; sample 0 belongs to frame 0. Clips
            that are shorter are followed by zeros.
        spectrogram: Features of `audio` [shape=(B, bins, hops)], of `Segments` [shape=(B, S, bins, hops)], float32;
            None if the loader makes none. Where the loader delivers clips of any length (``streams="audio"``,
            ``audio_seconds=None``), they are those of each clip alone, followed by zeros; else those of all N samples.
        label: Class ids [shape=(B,)], int64.
        row: Manifest rows [shape=(B,)], int64.
        frame_seconds: Presentation time of each frame on the media timeline [shape=(B, F)], float64.
        audio_start_seconds: Time of sample 0 on the media timeline [shape=(B,)], float64.
        audio_valid: Range [first, stop) of samples that exist in the media [shape=(B, 2)], int64; the others are zero.
        offset_seconds: Offset put in on purpose [shape=(B,)], float64; 0: in sync; positive: sound leads; NaN: the
            sound is another row's.
        audio_row: Manifest rows whose sound it is [shape=(B,)], int64; `row`, but for `OtherClip`.
        audio_length: Samples of each clip [shape=(B,)], int64; N, but for clips of sound alone that are shorter.
        spectrogram_length: Hops of the feature of so many samples [shape=(B,)], int64.
        sync_label: What the loader's `offsets` rule calls the offset [shape=(B,); (B, F) for `AllPairs`], int64;
            None without a rule.
        augmentation: What `augment` drew for each clip, columns by the transform's name, such as
            ``augmentation["Gain"]["gain_db"]``; None without it.
    """

    frames: _Tensor
    audio: _Tensor
    spectrogram: torch.Tensor | None
    label: torch.Tensor
    row: torch.Tensor
    frame_seconds: _Tensor = None
    audio_start_seconds: _Tensor = None
    audio_valid: _Tensor = None
    offset_seconds: _Tensor = None
    audio_row: _Tensor = None
    audio_length: _Tensor = None
    spectrogram_length: torch.Tensor | None = None
    sync_label: torch.Tensor | None = None
    augmentation: dict[str, dict[str, torch.Tensor]] | None = None

    def __len__(self) -> int:
        """Clips in the batch."""
        return len(self.row)

    @property
    def pair_offset_seconds(self) -> torch.Tensor:
        """Offset between picture i and the sound from the time of picture j on [shape=(B, F, F)], float64.

        Raises:
            ValueError: If the batch holds only one of them.
        """
        if self.frame_seconds is None or self.offset_seconds is None:
            raise ValueError("the batch holds only pictures or only sound, so there is no offset between them")
        start = self.frame_seconds + self.offset_seconds[:, None]
        return start[:, None, :] - self.frame_seconds[:, :, None]

    @property
    def audio_mask(self) -> torch.Tensor:
        """Which samples of `audio` are the clip's [shape=(B, N)], bool; the others are padding.

        Raises:
            ValueError: If the batch holds no sound.
        """
        return _mask(self.audio, self.audio_length, "sound")

    @property
    def spectrogram_mask(self) -> torch.Tensor:
        """Which hops of `spectrogram` are the clip's [shape=(B, hops)], bool; the others are padding.

        Raises:
            ValueError: If the batch holds no feature.
        """
        return _mask(self.spectrogram, self.spectrogram_length, "feature of sound")

    def __repr__(self) -> str:
        lines = [f"  {name}: {_shape_text(tensor)}" for name, tensor in self._tensors()]
        lines.append(f"  augmentation: {', '.join(self.augmentation) if self.augmentation else None}")
        return "\n".join(["AVBatch:", *lines])

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> AVBatch:
        """The same batch with every tensor on `device`."""
        moved = {
            name: None if tensor is None else tensor.to(device, non_blocking=non_blocking)
            for name, tensor in self._tensors()
        }
        drawn = self.augmentation
        if drawn is not None:
            drawn = {
                name: {key: column.to(device, non_blocking=non_blocking) for key, column in columns.items()}
                for name, columns in drawn.items()
            }
        return AVBatch(**cast(dict[str, torch.Tensor], moved), augmentation=drawn)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of all tensors until `stream` has done what is queued on it by the time they go."""
        for tensor in (self.frames, self.audio, self.spectrogram, self.row):  # the others share the memory of `row`
            if tensor is not None:
                tensor.record_stream(stream)
        for columns in (self.augmentation or {}).values():
            for column in columns.values():
                if column.is_cuda:
                    column.record_stream(stream)

    def _tensors(self) -> list[tuple[str, torch.Tensor | None]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self) if field.name != "augmentation"]


def _mask(tensor: torch.Tensor | None, length: torch.Tensor | None, what: str) -> torch.Tensor:
    if tensor is None or length is None:
        raise ValueError(f"the batch holds no {what}")
    return torch.arange(tensor.shape[-1], device=length.device) < length[:, None]


def _shape_text(tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return "None"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


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
        memory_limit: Bytes of the GPU's memory for decoding, > 0; "auto": 6.5 GB, or half of what the GPU has.
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
        _check_positive("batch_size", batch_size)
        _check_positive("sample_rate", sample_rate)
        _check_positive("num_threads", num_threads)
        if num_workers is not None:
            _check_positive("num_workers", num_workers)
        for name, value in (("lanes", lanes), ("memory_limit", memory_limit)):
            if value != "auto":
                _check_positive(name, value, or_auto=True)
        _check_choice("streams", streams, get_args(Streams))
        _check_choice("last_batch", last_batch, get_args(LastBatch))
        _check_choice("decode", decode, get_args(Decode))
        _check_choice("on_error", on_error, ("raise", "skip"))
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
            self._options = _sound_options(features, sample_rate, audio_seconds, clips, shuffle, seed, bucket)
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
        self._size = _checked_size(size)
        self._picture = PictureOptions(
            size=self._size, resize=resize, crop=crop, color=color, interpolation=interpolation
        )
        self._normalize = _checked_normalize(normalize, self._picture.num_channels)
        self._rank, self._world_size = _checked_rank(rank, world_size)
        self._batch_size, self._last_batch, self._on_error = batch_size, last_batch, on_error
        self._sample_rate, self._features = sample_rate, features
        self._device = _checked_device(device)
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
            cpu_share=_checked_share(cpu_share),
            lanes=lanes,
            memory_limit=memory_limit,
            num_workers=num_workers,
        )
        self._decoding = self._choose_decoding(self._decoding_options)
        self._num_threads = num_threads
        self._resources = _Resources()
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
                after = _AfterGraph(self._augment, self._normalize) if is_after else None
                finishing = _Finishing(after, self._features)
                batches = feed.batches(plan, start)
                run = resources.run = _Run(resources.engine, batches, (epoch, start), self._device, finishing)
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

    def _report(self, made: _Made) -> None:
        for place, error in made.errors.items():
            if self._on_error == "raise":
                raise error
            clip = made.planned.reads[place]
            self.skipped.append(SkippedClip(made.planned.epoch, clip.row, error.path or clip.media.path, error.cause))


@dataclass(frozen=True, slots=True)
class _Made:
    """A batch as it is handed to the training loop.

    Attributes:
        planned: What was planned.
        batch: Its clips that could be read; None if none could.
        errors: What went wrong, by place in the batch.
        stream: The stream that it was made for.
    """

    planned: PlannedBatch
    batch: AVBatch | None
    errors: dict[int, AVLoaderError]
    stream: torch.cuda.Stream | None


def _made(
    planned: PlannedBatch,
    gathered: Gathered,
    stream: torch.cuda.Stream | None,
    user: torch.cuda.Stream | None,
    finishing: _Finishing,
) -> _Made:
    """The batch, finished: whatever the engine's `stream` has to do for it is done; to be used on stream `user`."""
    with torch.cuda.stream(stream):
        batch = _batch(planned, gathered.joined(), stream, finishing)
    if stream is not None:
        stream.synchronize()
    if batch is not None and user is not None:
        batch.record_stream(user)
    return _Made(planned, batch, gathered.errors, user)


def _batch(
    planned: PlannedBatch,
    delivered: Delivered,
    stream: torch.cuda.Stream | None,
    finishing: _Finishing,
) -> AVBatch | None:
    clips, tensors = planned.clips, delivered.tensors
    kept = [place for place in range(len(clips)) if place not in delivered.errors]
    if not kept:
        return None
    if len(kept) < len(clips):
        tensors = {name: tensor[kept] for name, tensor in tensors.items()}
    reads = [planned.reads[place] for place in kept]
    lengths = _lengths(delivered, reads)
    hops = [] if finishing.features is None else [_hops(finishing.features, length) for length in lengths]
    facts = _facts(planned, delivered, kept, lengths, hops, None if stream is None else stream.device)
    drawn: dict[str, dict[str, torch.Tensor]] = {}
    for key, column in tensors.items():
        if key.startswith(AUGMENTATION):
            _, name, own = key.split("\n")
            drawn.setdefault(name, {})[own] = column
    frames, spectrogram = tensors.get("frames"), tensors.get("spectrogram")
    if finishing.augment is not None:
        frames, of_frames = finishing.augment.pictures(frames, reads)
        spectrogram, of_spectrogram = finishing.augment.features(spectrogram, reads, hops)
        for name, columns in (*of_frames.items(), *of_spectrogram.items()):
            drawn[name] = drawn.get(name, {}) | columns
    return AVBatch(
        frames=frames,
        audio=tensors.get("audio"),
        spectrogram=spectrogram,
        augmentation=drawn or None,
        **facts,
    )


class _AfterGraph:
    """What happens after the graph: pictures are augmented, then normalized; spectrograms are augmented."""

    def __init__(self, augment: ClipAugment | None, normalize: Normalize) -> None:
        assert augment is not None
        self._augment, self._normalize = augment, normalize

    def pictures(
        self, frames: torch.Tensor | None, clips: Sequence[ClipRead]
    ) -> tuple[torch.Tensor | None, dict[str, dict[str, torch.Tensor]]]:
        """The pictures, and what was drawn."""
        if frames is None or not self._augment.has_pictures:
            return frames, {}
        frames, drawn = self._augment.pictures(frames, clips)
        if self._normalize is None:
            return frames, drawn
        if self._normalize == "per_clip":
            mean, std = _per_clip_statistics(frames)
        else:
            mean, std = (torch.tensor(values, device=frames.device).view(1, 1, -1, 1, 1) for values in self._normalize)
        return (frames - mean).div_(std), drawn

    def features(
        self, spectrogram: torch.Tensor | None, clips: Sequence[ClipRead], num_hops: Sequence[int]
    ) -> tuple[torch.Tensor | None, dict[str, dict[str, torch.Tensor]]]:
        """The spectrograms, each of so many hops, and what was drawn."""
        if spectrogram is None or not self._augment.has_features:
            return spectrogram, {}
        return self._augment.features(spectrogram, clips, num_hops)


@dataclass(frozen=True, slots=True)
class _Finishing:
    """What makes a batch of what leaves the graph.

    Attributes:
        augment: What happens to pictures and spectrograms; None: nothing.
        features: What was made of the sound.
    """

    augment: _AfterGraph | None
    features: Feature | None


def _per_clip_statistics(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of each clip [shape=(B, 1, C, 1, 1)], from exact sums."""
    whole = frames.to(torch.int32)
    count = frames[0, :, 0].numel()
    total = whole.sum(dim=(1, 3, 4), keepdim=True).double()
    squares = (whole * whole).sum(dim=(1, 3, 4), keepdim=True).double()
    mean = total / count
    variance = squares / count - mean * mean
    return mean.float(), (variance + PER_CLIP_VARIANCE_FLOOR).sqrt().float()


def _facts(
    planned: PlannedBatch,
    delivered: Delivered,
    kept: Sequence[int],
    lengths: Sequence[int],
    hops: Sequence[int],
    device: torch.device | None,
) -> dict[str, torch.Tensor]:
    """What a batch says of its clips: views of one block of memory, so that one copy brings all to the device."""
    clips, reads = [planned.clips[place] for place in kept], [planned.reads[place] for place in kept]
    columns: dict[str, npt.NDArray[Any]] = {
        "label": np.array([clip.label for clip in clips], np.int64),
        "row": np.array([clip.row for clip in clips], np.int64),
    }
    with_pictures, sounds = bool(reads[0].frames), [read.sound for read in reads if read.sound is not None]
    if with_pictures:
        columns["frame_seconds"] = _frame_seconds(reads)
    if sounds:
        columns["audio_start_seconds"] = np.array([_start_seconds(sound) for sound in sounds])
        columns["audio_valid"] = _delivered_ranges(delivered, kept)
        columns["audio_row"] = np.array([clip.audio_row for clip in clips], np.int64)
        columns["audio_length"] = np.array(lengths, np.int64)
        if hops:
            columns["spectrogram_length"] = np.array(hops, np.int64)
    if sounds and with_pictures:
        columns["offset_seconds"] = np.array([_offset(clip) for clip in clips])
    if clips[0].sync_label is not None:
        columns["sync_label"] = np.array([clip.sync_label for clip in clips])
    block = torch.from_numpy(np.concatenate([column.reshape(-1).view(np.int64) for column in columns.values()]))
    if device is not None:
        block = block.to(device, non_blocking=True)
    sizes = [column.size for column in columns.values()]
    facts: dict[str, torch.Tensor] = {}
    for (name, column), whole, real in zip(
        columns.items(), block.split_with_sizes(sizes), block.view(torch.float64).split_with_sizes(sizes), strict=True
    ):
        part = whole if column.dtype == np.int64 else real
        facts[name] = part.view(column.shape) if column.ndim > 1 else part
    return facts


def _lengths(delivered: Delivered, reads: Sequence[ClipRead]) -> list[int]:
    """Delivered samples of each clip; none of clips without sound."""
    # Where more is read than is delivered, for the features, no clip is shorter than the others.
    return [
        min(read.sound.num_samples, delivered.tensors["audio"].shape[1]) for read in reads if read.sound is not None
    ]


@functools.lru_cache
def _hops(features: Feature, num_samples: int) -> int:
    return features.num_hops(num_samples) if features.is_enough(num_samples) else 0


def _offset(clip: Clip) -> float:
    return math.nan if clip.offset_seconds is None else float(clip.offset_seconds)


def _delivered_ranges(delivered: Delivered, kept: Sequence[int]) -> npt.NDArray[np.int64]:
    """Which of the clips' delivered samples exist in their media; more may have been read, for the features."""
    sounds = [delivered.clips[place].sound for place in kept]
    before = np.array([[sound.before if sound else 0] for sound in sounds])
    read = np.array([delivered.valid[place] for place in kept], np.int64)
    ranges: npt.NDArray[np.int64] = (read - before).clip(0, delivered.tensors["audio"].shape[1])
    ranges[ranges[:, 0] >= ranges[:, 1]] = 0
    return ranges


def _start_seconds(sound: SoundWindow) -> float:
    """Where in its medium a window begins: the float nearest to the exact value."""
    start, rate = sound.info.start_seconds, sound.info.sample_rate
    return (start.numerator * rate + sound.start * start.denominator) / (start.denominator * rate)


def _frame_seconds(clips: Sequence[ClipRead]) -> npt.NDArray[np.float64]:
    """Media times of the clips' frames [shape=(B, F)], each the float nearest to the exact value."""
    pts = np.stack([clip.video.times.pts_of(clip.frames) for clip in clips])
    clocks, is_exact = [], True
    for clip, first, last in zip(clips, pts[:, 0].tolist(), pts[:, -1].tolist(), strict=True):
        tick, origin = clip.video.times.time_base, clip.video.times.origin
        scale, shift = tick.numerator * origin.denominator, origin.numerator * tick.denominator
        unit = tick.denominator * origin.denominator
        clocks.append((scale, shift, unit))
        is_exact &= max(abs(first), abs(last)) * scale + abs(shift) < _EXACT and unit < _EXACT
    if is_exact:
        scales, shifts, units = np.array(clocks).T[:, :, None]
        seconds: npt.NDArray[np.float64] = (pts * scales - shifts) / units
        return seconds
    return np.array(
        [
            [(value * scale - shift) / unit for value in row]
            for row, (scale, shift, unit) in zip(pts.tolist(), clocks, strict=True)
        ]
    )


class _Run:
    """Batches of epoch after epoch: made in a thread of their own, taken by the training loop.

    Attributes:
        next: The epoch, and the position in it, that the next pass can begin at; None while there is a pass.
    """

    def __init__(
        self,
        engine: Engine,
        batches: Iterator[PlannedBatch],
        start: tuple[int, int],
        device: torch.device,
        finishing: _Finishing,
    ) -> None:
        self.next: tuple[int, int] | None = start
        self._finishing = finishing
        self._device = device if device.type == "cuda" else None
        self._stream: torch.cuda.Stream | None = None
        self._use_stream()
        self._ready: queue.Queue[_Made | Exception | None] = queue.Queue(_BATCHES_READY)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(engine, batches), name="avloader", daemon=True)
        self._thread.start()

    def epoch(self) -> Iterator[_Made]:
        """What is left of the epoch that `next` names."""
        self.next = None
        while True:
            item = self._ready.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            planned = item.planned
            if planned.is_last:
                self.next = planned.epoch + 1, 0
            stream = self._use_stream()
            if item.batch is not None and stream is not None and stream != item.stream:
                item.batch.record_stream(stream)
            yield item
            if planned.is_last:
                return

    def _use_stream(self) -> torch.cuda.Stream | None:
        """The stream of the training loop, whose thread this is called in."""
        if self._device is not None:
            self._stream = torch.cuda.current_stream(self._device)
        return self._stream

    @property
    def is_stopped(self) -> bool:
        """Whether it was closed."""
        return self._stopped.is_set()

    def close(self) -> None:
        """Stop the thread and wait for it, and let whoever iterates come to an end; calling it twice is harmless."""
        self._stopped.set()
        if threading.current_thread() is self._thread:  # the garbage collector called from there
            return
        self._thread.join()
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()
        self._ready.put(None)

    def _work(self, engine: Engine, batches: Iterator[PlannedBatch]) -> None:
        pending: deque[PlannedBatch] = deque()

        def reads() -> Iterator[list[ClipRead]]:
            for batch in batches:
                pending.append(batch)
                yield batch.reads

        try:
            with contextlib.closing(engine.run(reads(), self._stopped)) as run:  # type: ignore[type-var]
                for gathered in run:
                    # For the training loop's stream as it was: if the loop did it, it would hand this thread Python's
                    # lock just when it wants to go on.
                    stream = self._stream
                    if not self._put(_made(pending.popleft(), gathered, engine.stream, stream, self._finishing)):
                        return
            self._put(None)
        except Exception as error:
            self._put(error)

    def _put(self, item: _Made | Exception | None) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return True
        return False


class _Resources:
    """What has to be ended when a loader is closed or goes: knows nothing of the loader, so that it can go."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.run: _Run | None = None

    def stop_run(self) -> None:
        """End what is under way."""
        if self.run is not None:
            self.run.close()
        self.run = None

    def close(self) -> None:
        """End everything; the engine can be made anew."""
        self.stop_run()
        if self.engine is not None:
            self.engine.close()
            self.engine = None


def _check_positive(name: str, value: object, *, or_auto: bool = False) -> None:
    other = ', or "auto"' if or_auto else ""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be an int{other}")
    if value < 1:
        raise ValueError(f"{name}={value} must be 1 or more{other}")


def _check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")


def _sound_options(
    features: Feature | None,
    sample_rate: int,
    audio_seconds: float | str | Fraction | None,
    clips: Windows,
    shuffle: bool,
    seed: int,
    bucket: int | None,
) -> SoundOptions:
    if features is not None and features.grid is not None:
        raise ValueError(f"features={features!r} must have scope='clip' with streams=\"audio\"")
    is_whole = features is not None and audio_seconds is None
    return SoundOptions(
        audio_seconds=cast("Fraction | None", audio_seconds),  # SoundOptions makes it exact
        clips=clips,
        shuffle=shuffle,
        seed=seed,
        bucket=bucket,
        least_seconds=Fraction(features.least_samples, sample_rate) if features and is_whole else Fraction(0),
    )


def _checked_share(share: object) -> Fraction | Literal["auto"]:
    if share == "auto":
        return "auto"
    message = f'cpu_share={share!r} must be in [0, 1], or "auto"'
    if not isinstance(share, (int, float, str, Fraction)) or isinstance(share, bool):
        raise TypeError(message)
    try:
        exact = Fraction(share).limit_denominator(1000)
    except (ValueError, OverflowError):
        raise ValueError(message) from None
    if not 0 <= exact <= 1:
        raise ValueError(message)
    return exact


def _checked_size(size: object) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or len(sides) != 2:
        raise TypeError(f"size={size!r} must be (height, width), an int, or None")
    for side in sides:
        _check_positive("size", side)
    return sides[0], sides[1]


def _checked_normalize(normalize: object, num_channels: int) -> Normalize:
    if normalize is None or normalize == "per_clip":
        return cast(Normalize, normalize)
    count = "three numbers" if num_channels == 3 else "one number"
    message = f'normalize={normalize!r} must be (mean, std) with {count} each, "per_clip", or None'
    if not isinstance(normalize, Sequence) or isinstance(normalize, str) or len(normalize) != 2:
        raise TypeError(message)
    try:
        mean, std = (tuple(float(value) for value in channel) for channel in normalize)
    except (TypeError, ValueError):
        raise TypeError(message) from None
    is_complete = len(mean) == len(std) == num_channels
    if not is_complete or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"{message}; all finite, every std above 0")
    return mean, std


def _checked_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank={rank!r} and world_size={world_size!r} must be given together, or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1
    _check_positive("world_size", world_size)
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise TypeError(f"rank={rank!r} must be an int")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} must be in [0, {world_size})")
    return rank, world_size


def _checked_device(device: object) -> torch.device:
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device("cuda" + name[3:] if name.startswith("gpu") else name)
    except RuntimeError:
        raise ValueError(f'device={device!r} must be "auto", "cpu", "gpu", or a CUDA device such as "cuda:1"') from None
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f'device={device!r} must be "auto", "cpu", "gpu", or a CUDA device such as "cuda:1"')
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device={device!r} needs a GPU, but PyTorch finds none")
        index = torch.cuda.current_device() if chosen.index is None else chosen.index
        if index >= torch.cuda.device_count():
            raise ValueError(f"device={device!r}: there are GPUs 0 to {torch.cuda.device_count() - 1} only")
        return torch.device("cuda", index)
    return chosen
