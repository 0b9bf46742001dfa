"""`AVLoader`: iterate synchronized batches of frames, sound and spectrograms."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Literal, cast, get_args

import numpy as np
import torch

from avloader.engine import Engine, ReaderOptions
from avloader.errors import ManifestError
from avloader.features import Feature, MelSpectrogram
from avloader.lanes import Delivered
from avloader.manifest import Manifest
from avloader.pipeline import GraphOptions, Normalize
from avloader.plan import Clip, LastBatch, Plan, PlanOptions, Windows, batches, num_batches
from avloader.reading import ClipRead, SoundWindow
from avloader.timeline import round_half_up
from avloader.workers import available_cores

__all__ = ["AVBatch", "AVLoader", "SkippedClip"]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

_STATE_VERSION = 1
_BATCHES_READY = 2  # finished batches that wait for the training loop
_LANES = 8  # fill the seven NVDEC engines of an H200; more gains nothing
_READER_TIMEOUT = 30.0  # seconds without a batch after which NVDEC's reader counts as hanging
_SOUND_WORKERS = 8  # most processes that read sound where the GPU decodes the frames


@dataclass(frozen=True, slots=True, eq=False)
class AVBatch:
    """One batch: B clips of F frames with their sound.

    Attributes:
        frames: Pictures [shape=(B, F, C, H, W)], RGB; float32 normalized, or uint8.
        audio: Sound [shape=(B, N)], float32, mono, at the loader's `sample_rate`; sample 0 belongs to frame 0.
        spectrogram: Features of `audio` [shape=(B, bins, hops)], float32; None if the loader makes none.
        label: Class ids [shape=(B,)], int64.
        row: Manifest rows [shape=(B,)], int64.
        frame_seconds: Presentation time of each frame on the media timeline [shape=(B, F)], float64.
        audio_start_seconds: Time of sample 0 on the media timeline [shape=(B,)], float64.
        audio_valid: Range [first, stop) of samples that exist in the media [shape=(B, 2)], int64; the others are zero.
        offset_seconds: Offset put in on purpose [shape=(B,)], float64; 0: in sync; positive: sound leads.
    """

    frames: torch.Tensor
    audio: torch.Tensor
    spectrogram: torch.Tensor | None
    label: torch.Tensor
    row: torch.Tensor
    frame_seconds: torch.Tensor
    audio_start_seconds: torch.Tensor
    audio_valid: torch.Tensor
    offset_seconds: torch.Tensor

    def __len__(self) -> int:
        """Clips in the batch."""
        return len(self.row)

    def __repr__(self) -> str:
        lines = [f"  {name}: {_shape_text(tensor)}" for name, tensor in self._tensors()]
        return "\n".join(["AVBatch:", *lines])

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> AVBatch:
        """The same batch with every tensor on `device`."""
        moved = {
            name: None if tensor is None else tensor.to(device, non_blocking=non_blocking)
            for name, tensor in self._tensors()
        }
        return AVBatch(**cast(dict[str, torch.Tensor], moved))

    def _tensors(self) -> list[tuple[str, torch.Tensor | None]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


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
        batch_size: Clips of a batch on each rank, > 0.
        num_frames: Frames of a clip, > 0.
        stride: Source frames between two of them, > 0; with `fps`, steps of 1 / fps.
        fps: Deliver at this rate (a number, a `Fraction`, or text such as "30000/1001"): the nearest source frame to
            each instant. None: the source's own frames.
        size: (height, width), an int for both, or None for the stored size.
        normalize: (mean, std) per channel in 0-255 units; "per_clip": each clip's own; None: uint8 frames.
        sample_rate: Of the delivered sound, > 0.
        audio_seconds: Length of the sound; None: as long as the frames last.
        features: `MelSpectrogram`, `Spectrogram`, `MFCC`, or None for sound only.
        clips: Windows of a row: "all", "first", "center", "random".
        shuffle: Another order in each epoch.
        seed: >= 0.
        rank: This process among `world_size`; None: from torch.distributed, else 0.
        world_size: Processes that share each epoch; None: from torch.distributed, else 1.
        last_batch: "partial": a short last batch; "drop": none.
        device: Where the batches are: "cpu", "gpu" (or "cuda:1"), "auto": a GPU if there is one.
        decode: "nvdec": on the GPU's video engines; "cpu": in worker processes; "auto": NVDEC if every medium allows.
        on_error: "raise": the first clip that cannot be read ends the epoch; "skip": it is left out and listed in
            `skipped`.
        num_workers: Processes that read; None: one a core, or, if the GPU decodes, one for two cores, at most eight.
        num_threads: Threads of the graph on the CPU.

    Attributes:
        manifest: The opened manifest.
        engine: Which engine runs and why, as a sentence.
        skipped: The clips that were left out.

    Raises:
        ValueError, TypeError: An argument is not what is said above.
        ManifestError: The manifest cannot be used, or not so.
    """

    def __init__(
        self,
        manifest: Manifest | str | os.PathLike[str],
        *,
        batch_size: int,
        num_frames: int = 16,
        stride: int = 1,
        fps: float | str | Fraction | None = None,
        size: int | tuple[int, int] | None = (224, 224),
        normalize: Normalize = (IMAGENET_MEAN, IMAGENET_STD),
        sample_rate: int = 16000,
        audio_seconds: float | str | Fraction | None = None,
        features: Feature | None = MelSpectrogram(n_fft=512, hop_length=160, n_mels=80),  # noqa: B008 - frozen
        clips: Windows = "all",
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        last_batch: LastBatch = "partial",
        device: str | torch.device = "auto",
        decode: Literal["auto", "nvdec", "cpu"] = "auto",
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
        _check_choice("last_batch", last_batch, get_args(LastBatch))
        _check_choice("decode", decode, ("auto", "nvdec", "cpu"))
        _check_choice("on_error", on_error, ("raise", "skip"))
        if features is not None and not isinstance(features, Feature):
            raise TypeError(f"features={features!r} must be a Spectrogram, MelSpectrogram, MFCC, or None")
        self._options = PlanOptions(
            num_frames=num_frames,
            stride=stride,
            fps=cast("Fraction | None", fps),  # PlanOptions makes it exact
            clips=clips,
            shuffle=shuffle,
            seed=seed,
            audio_seconds=cast("Fraction | None", audio_seconds),
        )
        self._size = _checked_size(size)
        self._normalize = _checked_normalize(normalize)
        self._rank, self._world_size = _checked_rank(rank, world_size)
        self._batch_size, self._last_batch, self._on_error = batch_size, last_batch, on_error
        self._sample_rate, self._features = sample_rate, features
        self._device = _checked_device(device)
        self.manifest = manifest if isinstance(manifest, Manifest) else Manifest.open(manifest)
        self.skipped: list[SkippedClip] = []
        self._epoch = 0
        self._start = 0  # where in the epoch a pass begins
        self._position = 0  # up to where the epoch was delivered
        self._pass = 0  # a number that changes when another pass, or another start of it, becomes the current one
        self._plan: Plan | None = None
        self._media = [self.manifest.media(int(number)) for number in np.unique(self.manifest.media_id)]
        self._uses_nvdec, self.engine = self._choose_engine(decode)
        cores = available_cores()
        self._num_workers = num_workers or (min(max(cores // 2, 1), _SOUND_WORKERS) if self._uses_nvdec else cores)
        self._num_threads = num_threads
        self._resources = _Resources()
        # Nobody closes a loader that is just dropped; the pool's thread would keep its processes for ever.
        weakref.finalize(self, self._resources.close)
        self._check_features(self._current_plan())  # so that what cannot work is said now

    @property
    def fallbacks(self) -> list[str]:
        """What NVDEC's reader failed at and the CPU decoded in its place, as sentences."""
        return list(self._resources.engine.fallbacks) if self._resources.engine is not None else []

    def __len__(self) -> int:
        """Batches that a whole epoch has on this rank."""
        return num_batches(
            len(self._current_plan()),
            batch_size=self._batch_size,
            rank=self._rank,
            world_size=self._world_size,
            last_batch=self._last_batch,
        )

    def __iter__(self) -> Iterator[AVBatch]:
        """The batches of this epoch, from its start or from where `load_state_dict` said.

        A loader runs one pass at a time: the start of another ends the iterator of the one before.
        """
        resources = self._resources
        resources.stop_run()
        plan, start, epoch = self._current_plan(), self._start, self._epoch
        self._position = start
        self._pass = this_pass = self._pass + 1
        spans = batches(
            len(plan),
            batch_size=self._batch_size,
            rank=self._rank,
            world_size=self._world_size,
            last_batch=self._last_batch,
            start=start,
        )
        if resources.engine is None:
            resources.engine = self._make_engine(plan)
        num_samples = self._num_samples(plan)
        reads = ([(clip, self._read(clip, num_samples)) for clip in map(plan.clip, span)] for span in spans)
        run = _Run(resources.engine, reads)
        resources.run = weakref.ref(run)
        step = self._batch_size * self._world_size
        with contextlib.closing(run):
            for number, (batch_clips, delivered) in enumerate(run, start=1):
                if self._pass == this_pass:
                    self._position = min(start + number * step, len(plan))
                batch = self._batch(batch_clips, delivered, epoch)
                if batch is not None:
                    yield batch
            is_whole = self._pass == this_pass and not run.is_stopped
        if is_whole:
            self.set_epoch(epoch + 1)

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
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken: the next pass delivers the clips that had not been delivered.

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
        self._pass += 1

    def _current_plan(self) -> Plan:
        if self._plan is None or self._plan.epoch != self._epoch:
            self._plan = Plan(self.manifest, self._options, epoch=self._epoch)
            self._report_short_rows(self._plan)
        return self._plan

    def _check_features(self, plan: Plan) -> None:
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

    def _report_short_rows(self, plan: Plan) -> None:
        if not len(plan.short_rows):
            return
        example = plan.short_rows[0]
        row = self.manifest.row(example.row)
        if self._on_error == "raise":
            raise ManifestError(
                f"{len(plan.short_rows)} of {len(self.manifest)} rows are too short: this one has {example.num_frames} "
                f"frames, but a clip spans {example.needed_frames}",
                path=row.path,
                row=example.row,
                remedy='Lower num_frames or stride, or use on_error="skip" to leave such rows out',
            )
        for short in plan.short_rows:
            reason = f"too short: {short.num_frames} frames, but a clip spans {short.needed_frames}"
            self.skipped.append(SkippedClip(self._epoch, short.row, self.manifest.row(short.row).path, reason))

    def _choose_engine(self, decode: str) -> tuple[bool, str]:
        """Whether NVDEC decodes, and the sentence that says why."""
        on_gpu = self._device.type == "cuda"
        where = f"the graph runs on {'GPU' if on_gpu else 'the CPU'}" + (f" {self._device.index}" if on_gpu else "")
        reason = self._nvdec_refusal()
        if decode == "nvdec":
            if not on_gpu:
                raise ValueError(f'decode="nvdec" needs a GPU, but device is {str(self._device)!r}')
            if reason:
                raise ManifestError(
                    f"NVDEC's reader cannot take {reason}",
                    path=self.manifest.path,
                    remedy='Use decode="auto" or "cpu", or encode the media as H.264 mp4 of one size and constant rate',
                )
            return True, f"NVDEC decodes as asked; {where}"
        if decode == "cpu":
            return False, f"the CPU decodes as asked; {where}"
        if not on_gpu:
            return False, f"the CPU decodes because there is no GPU in use; {where}"
        if reason:
            return False, f"the CPU decodes because NVDEC's reader cannot take {reason}; {where}"
        return True, f"NVDEC decodes because its reader can take every medium; {where}"

    def _nvdec_refusal(self) -> str:
        """What NVDEC's reader cannot take of the media; "" if it can take them."""
        refused = [medium for medium in self._media if medium.nvdec_reason]
        if refused:
            example = refused[0]
            return (
                f"{len(refused)} of {len(self._media)} media ({os.path.basename(example.path)}: {example.nvdec_reason})"
            )
        sizes = sorted({(medium.video.width, medium.video.height) for medium in self._media if medium.video})
        if len(sizes) > 1:  # seen on an H200: frames of one size were written past a buffer made for another
            (width, height), (other_width, other_height) = sizes[:2]
            return f"pictures of {len(sizes)} sizes in one list ({width}x{height}, {other_width}x{other_height} ...)"
        return ""

    def _make_engine(self, plan: Plan) -> Engine:
        options = self._options
        graph = GraphOptions(
            num_frames=options.num_frames,
            size=self._size,
            normalize=self._normalize,
            sample_rate=self._sample_rate,
            num_samples=self._num_samples(plan),
            features=self._features,
        )
        reader = None
        if self._uses_nvdec:
            picked = options.fps is not None
            reader = ReaderOptions(
                num_frames=self._longest_span() if picked else options.num_frames,
                stride=1 if picked else options.stride,
                rearrange=picked,
                lanes=_LANES,
                timeout=_READER_TIMEOUT,
            )
        return Engine(
            graph,
            reader=reader,
            frame_size=self._size or self._stored_size(),
            batch_size=self._batch_size,
            device="gpu" if self._device.type == "cuda" else "cpu",
            device_id=self._device.index or 0,
            num_workers=self._num_workers,
            num_threads=self._num_threads,
        )

    def _num_samples(self, plan: Plan) -> int:
        return max(round_half_up(plan.audio_seconds * self._sample_rate), 1)

    def _longest_span(self) -> int:
        """Source frames from the first to the last of a clip at `fps`, at most."""
        assert self._options.fps is not None
        seconds = (self._options.num_frames - 1) * self._options.stride / self._options.fps
        rates = [medium.video.average_rate for medium in self._media if medium.video is not None]
        return 2 + round_half_up(seconds * max(rates))

    def _stored_size(self) -> tuple[int, int]:
        sizes = {(medium.video.height, medium.video.width): medium for medium in self._media if medium.video}
        if len(sizes) > 1:
            (one, first), (other, second) = list(sizes.items())[:2]
            raise ManifestError(
                f"size=None keeps the stored size, but it is {other[1]}x{other[0]} here and {one[1]}x{one[0]} in "
                f"{first.path}",
                path=second.path,
                remedy="Give size=(height, width)",
            )
        return next(iter(sizes))

    def _read(self, clip: Clip, num_samples: int) -> ClipRead:
        """The clip with everything that an engine needs looked up."""
        sound = SoundWindow.at(
            self.manifest.media(clip.audio_id),
            clip.audio_start,
            num_samples=num_samples,
            sample_rate=self._sample_rate,
        )
        return ClipRead(clip.row, self.manifest.media(clip.media_id), clip.frames, sound)

    def _batch(self, clips: Sequence[Clip], delivered: Delivered, epoch: int) -> AVBatch | None:
        """What the training loop gets; None if every clip of it failed."""
        read, tensors = delivered.read, delivered.tensors
        for place, error in read.errors.items():
            if self._on_error == "raise":
                raise error
            clip = read.clips[place]
            self.skipped.append(SkippedClip(epoch, clip.row, error.path or clip.media.path, error.cause))
        kept = [place for place in range(len(clips)) if place not in read.errors]
        if not kept:
            return None
        if len(kept) < len(clips):
            tensors = {name: tensor[kept] for name, tensor in tensors.items()}
        windows = [read.clips[place].sound for place in kept]
        facts = {
            "label": torch.tensor([clips[place].label for place in kept]),
            "row": torch.tensor([clips[place].row for place in kept]),
            "frame_seconds": torch.tensor([_frame_seconds(read.clips[place]) for place in kept], dtype=torch.float64),
            "audio_start_seconds": torch.tensor(
                [float(window.start_seconds) for window in windows], dtype=torch.float64
            ),
            "audio_valid": torch.tensor([read.valid[place] for place in kept]),
            "offset_seconds": torch.tensor([float(clips[place].offset_seconds) for place in kept], dtype=torch.float64),
        }
        if self._device.type == "cuda":
            facts = {name: tensor.pin_memory().to(self._device, non_blocking=True) for name, tensor in facts.items()}
            for tensor in tensors.values():
                tensor.record_stream(torch.cuda.current_stream(self._device))
        return AVBatch(
            frames=tensors["frames"], audio=tensors["audio"], spectrogram=tensors.get("spectrogram"), **facts
        )


def _frame_seconds(clip: ClipRead) -> list[float]:
    """Media times of a clip's frames, each the float nearest to the exact value."""
    times = clip.video.times
    tick, origin = times.time_base, times.origin
    scale = tick.numerator * origin.denominator
    shift = origin.numerator * tick.denominator
    unit = tick.denominator * origin.denominator
    return [(pts * scale - shift) / unit for pts in times.pts_of(clip.frames).tolist()]


class _Run:
    """One pass: the engine works in a thread of its own, the training loop takes finished batches."""

    def __init__(self, engine: Engine, batches: Iterator[list[tuple[Clip, ClipRead]]]) -> None:
        self._ready: queue.Queue[tuple[list[Clip], Delivered] | Exception | None] = queue.Queue(_BATCHES_READY)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(engine, batches), name="avloader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[list[Clip], Delivered]]:
        while True:
            item = self._ready.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item

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

    def _work(self, engine: Engine, batches: Iterator[list[tuple[Clip, ClipRead]]]) -> None:
        pending: deque[list[Clip]] = deque()

        def reads() -> Iterator[list[ClipRead]]:
            for batch in batches:
                pending.append([clip for clip, _ in batch])
                yield [read for _, read in batch]

        try:
            with contextlib.closing(engine.run(reads(), self._stopped)) as run:  # type: ignore[type-var]
                for delivered in run:
                    if not self._put((pending.popleft(), delivered)):
                        return
            self._put(None)
        except Exception as error:
            self._put(error)

    def _put(self, item: tuple[list[Clip], Delivered] | Exception | None) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return True
        return False


class _Resources:
    """What has to be ended when a loader is closed or goes: knows nothing of the loader, so that it can go."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.run: weakref.ref[_Run] | None = None

    def stop_run(self) -> None:
        """End the pass that is under way."""
        run = self.run() if self.run is not None else None
        if run is not None:
            run.close()
        self.run = None

    def close(self) -> None:
        """End everything; the engine can be made anew."""
        self.stop_run()
        if self.engine is not None:
            self.engine.close()
            self.engine = None


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be an int")
    if value < 1:
        raise ValueError(f"{name}={value} must be 1 or more")


def _check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")


def _checked_size(size: object) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or len(sides) != 2:
        raise TypeError(f"size={size!r} must be (height, width), an int, or None")
    for side in sides:
        _check_positive("size", side)
    return sides[0], sides[1]


def _checked_normalize(normalize: object) -> Normalize:
    if normalize is None or normalize == "per_clip":
        return cast(Normalize, normalize)
    message = f'normalize={normalize!r} must be (mean, std) with three numbers each, "per_clip", or None'
    if not isinstance(normalize, Sequence) or isinstance(normalize, str) or len(normalize) != 2:
        raise TypeError(message)
    try:
        mean, std = (tuple(float(value) for value in channel) for channel in normalize)
    except (TypeError, ValueError):
        raise TypeError(message) from None
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
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
