"""What decodes what: chosen once, when a loader is made, from the manifest, the options and the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch

from avloader.errors import ManifestError
from avloader.manifest import Manifest
from avloader.reading import Route
from avloader.routes import MOST_SIZES, choose_cpu_share, choose_routes, num_nvdec_engines
from avloader.schedule import RouteOptions
from avloader.timeline import round_half_up
from avloader.workers import available_cores

__all__ = ["Decode", "Decoding", "DecodingOptions", "choose_decoding", "decoding_of_sound", "longest_span"]

Decode = Literal["auto", "nvdec", "cpu"]

_CORES_FOR_TRAINING = 4  # on which no process decodes or reads if the GPU decodes too
_MEMORY_LIMIT = 6_200_000_000  # bytes of the GPU's memory for decoding, if nothing is said
_MEMORY_PART = 0.5  # of the GPU's memory at most


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingOptions:
    """What a user may say about decoding.

    Attributes:
        decode: "nvdec", "cpu", or "auto".
        cpu_share: The part of NVDEC's clips that the CPU decodes in its place, in [0, 1]; "auto": as many as make both
            end at the same time.
        lanes: NVDEC's readers side by side, > 0; "auto": one more than the GPU has decoder engines.
        memory_limit: Bytes of the GPU's memory for decoding, > 0; "auto": 6.2 GB, or half of what the GPU has.
        num_workers: Processes that decode and read sound, > 0; None: one a core, but for four cores where the GPU
            decodes too; torchrun's processes share the cores.

    Raises:
        TypeError, ValueError: If an option is not what is said above.
    """

    decode: Decode
    cpu_share: Fraction | Literal["auto"]
    lanes: int | Literal["auto"]
    memory_limit: int | Literal["auto"]
    num_workers: int | None


@dataclass(frozen=True, slots=True)
class Decoding:
    """What decodes what.

    Attributes:
        nvdec_sizes: (width, height) of the pictures that NVDEC decodes; empty: the CPU decodes all.
        cpu_share: The part of them that the CPU decodes in its place.
        routes: The ways that clips take.
        num_workers: Processes that decode and read sound.
        sentence: All that, and why, for people.
    """

    nvdec_sizes: frozenset[tuple[int, int]]
    cpu_share: Fraction
    routes: Mapping[Route, RouteOptions]
    num_workers: int
    sentence: str


def choose_decoding(
    manifest: Manifest,
    options: DecodingOptions,
    *,
    device: torch.device,
    batch_size: int,
    reader_frames: int,
    output_bytes: int,
) -> Decoding:
    """Choose.

    Args:
        manifest: The media.
        options: What the user says.
        device: Where the graph runs.
        batch_size: Clips of a batch.
        reader_frames: Source frames that NVDEC's reader holds of a clip.
        output_bytes: Bytes of a delivered clip.

    Raises:
        ValueError: If NVDEC is asked for and there is none.
        ManifestError: If NVDEC is asked for and cannot take every medium.
    """
    on_gpu = device.type == "cuda"
    where = f"the graph runs on GPU {device.index}" if on_gpu else "the graph runs on the CPU"
    if options.decode == "nvdec" and not on_gpu:
        raise ValueError(f'decode="nvdec" needs a GPU, but device is {str(device)!r}')
    num_engines = num_nvdec_engines(device.index or 0) if on_gpu and options.decode != "cpu" else 0
    if options.decode == "nvdec" and not num_engines:
        raise ValueError('decode="nvdec" needs a GPU with video decoder, but the driver offers none to this process')

    media = _Media(manifest)
    if options.decode == "nvdec" and (media.num_refused or len(media.rows_of_size) > MOST_SIZES):
        raise ManifestError(
            f"NVDEC's reader cannot take {media.refusal()}",
            path=manifest.path,
            remedy='Use decode="auto" or "cpu", or encode the media as H.264 mp4 of constant rate',
        )
    if options.decode == "cpu":
        reason = "the CPU decodes as asked"
    elif not on_gpu:
        reason = "the CPU decodes because there is no GPU in use"
    elif not num_engines:
        reason = "the CPU decodes because the driver offers no video decoder to this process"
    elif not media.rows_of_size:
        reason = f"the CPU decodes because NVDEC's reader cannot take {media.refusal()}"
    else:
        return _with_nvdec(
            media,
            options,
            num_engines=num_engines,
            where=where,
            device=device,
            batch_size=batch_size,
            reader_frames=reader_frames,
            output_bytes=output_bytes,
        )
    routes: dict[Route, RouteOptions] = {None: RouteOptions(num_lanes=1, piece_clips=batch_size)}
    num_workers = options.num_workers or _own_cores()
    return Decoding(frozenset(), Fraction(1), routes, num_workers, f"{reason}; {where}")


def decoding_of_sound(options: DecodingOptions, *, device: torch.device, batch_size: int) -> Decoding:
    """The same for sound alone: the CPU decodes.

    Args:
        options: What the user says; of it, `num_workers` counts.
        device: Where the graph runs.
        batch_size: Clips of a batch.
    """
    routes: dict[Route, RouteOptions] = {None: RouteOptions(num_lanes=1, piece_clips=batch_size)}
    where = f"GPU {device.index}" if device.type == "cuda" else "the CPU"
    sentence = f"the CPU decodes sound; the graph runs on {where}"
    return Decoding(frozenset(), Fraction(1), routes, options.num_workers or _own_cores(), sentence)


def _with_nvdec(
    media: _Media,
    options: DecodingOptions,
    *,
    num_engines: int,
    where: str,
    device: torch.device,
    batch_size: int,
    reader_frames: int,
    output_bytes: int,
) -> Decoding:
    is_shared = options.decode == "auto" and options.cpu_share != 0
    num_workers = options.num_workers or max(_own_cores() - _CORES_FOR_TRAINING, 1)
    if not is_shared:
        share = Fraction(0)
    elif options.cpu_share == "auto":
        share = choose_cpu_share(num_workers, num_engines)
    else:
        share = options.cpu_share
    if options.memory_limit == "auto":
        whole = torch.cuda.get_device_properties(device.index).total_memory
        memory_limit = min(_MEMORY_LIMIT, round(_MEMORY_PART * whole))
    else:
        memory_limit = options.memory_limit
    routes = choose_routes(
        media.rows_of_size,
        cpu_fraction=1 - (1 - share) * (1 - media.refused_rows_part),
        batch_size=batch_size,
        num_frames=reader_frames,
        output_bytes=output_bytes,
        num_lanes=num_engines + 1 if options.lanes == "auto" else options.lanes,
        memory_limit=memory_limit,
    )
    nvdec = {route: lanes for route, lanes in routes.items() if route is not None}
    num_lanes = sum(lanes.num_lanes for lanes in nvdec.values())
    pieces = sorted({lanes.piece_clips for lanes in nvdec.values()})
    taken = "every medium" if not media.num_refused else f"{media.num_used - media.num_refused} media"
    sentence = (
        f"NVDEC decodes {taken} as {'asked' if options.decode == 'nvdec' else 'its reader can take them'}, in "
        f"{num_lanes} lanes of {' to '.join(map(str, pieces[:: max(len(pieces) - 1, 1)]))} clips at a time"
    )
    if share:
        sentence += f"; the CPU decodes {float(share):.0%} of their clips beside it, in {num_workers} processes"
    if media.num_refused:
        sentence += f"; the CPU decodes the other media because NVDEC's reader cannot take {media.refusal()}"
    return Decoding(frozenset(nvdec), share, routes, num_workers, f"{sentence}; {where}")


def _own_cores() -> int:
    """Cores for this process: torchrun says how many processes share the machine."""
    return max(available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


class _Media:
    """What NVDEC can take of the media that rows use for their picture.

    Attributes:
        num_used: Media.
        num_refused: Those of them that NVDEC's reader cannot take.
        refused_rows_part: The part of all rows that use these.
        rows_of_size: Rows by the (width, height) of the others.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest, pictures = manifest, manifest.media_pictures
        rows_of_medium = np.bincount(manifest.media_id, minlength=manifest.num_media)
        used = rows_of_medium > 0
        self._refused = np.flatnonzero(used & ~pictures.nvdec)
        self.num_used, self.num_refused = int(used.sum()), len(self._refused)
        self.refused_rows_part = Fraction(int(rows_of_medium[self._refused].sum()), len(manifest))
        taken = np.flatnonzero(used & pictures.nvdec)
        sizes, which = np.unique(pictures.width[taken] << 32 | pictures.height[taken], return_inverse=True)
        rows = np.bincount(which, weights=rows_of_medium[taken], minlength=len(sizes))
        self.rows_of_size = {
            divmod(size, 1 << 32): int(count) for size, count in zip(sizes.tolist(), rows.tolist(), strict=True)
        }

    def refusal(self) -> str:
        """What NVDEC cannot take, and why."""
        if not self.num_refused:
            return f"pictures of {len(self.rows_of_size)} sizes: it has a reader for each of {MOST_SIZES} at most"
        example = self._manifest.media(int(self._refused[0]))
        return f"{self.num_refused} of {self.num_used} media ({os.path.basename(example.path)}: {example.nvdec_reason})"


def longest_span(manifest: Manifest, num_frames: int, stride: int, fps: Fraction) -> int:
    """Source frames from the first to the last of a clip at `fps`, at most."""
    rates = manifest.media_rates
    used = np.unique(rates.kind[manifest.used_media])
    fastest = max(rates.average_rate[kind] for kind in used.tolist() if kind >= 0)
    return 2 + round_half_up((num_frames - 1) * stride / fps * fastest)
