"""How the work is shared out: which sizes NVDEC decodes, in how many lanes, and what the CPU decodes beside it.

Only the manifest and the options decide which clip goes which way, so that a run repeats to the bit, resumed or not.
How many lanes run, and how many clips each takes at a time, is a matter of speed and memory alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from fractions import Fraction

from avloader.reading import Route
from avloader.schedule import RouteOptions

__all__ = ["MOST_SIZES", "choose_cpu_share", "choose_routes", "goes_to_cpu", "num_nvdec_engines"]

MOST_SIZES = 16  # picture sizes that NVDEC decodes, each with a reader of its own; the CPU decodes rarer ones
_CORE_AS_ENGINE = Fraction(42, 100)  # what a CPU core decodes, of what one of an H200's engines does
_GOLDEN = 11400714819323198485  # 2**64 / golden ratio: multiples of it, modulo 2**64, are spread evenly
_FRAME_NS, _MEGAPIXEL_NS = 0.15, 0.65  # milliseconds that an H200's engine takes for a frame, and for each megapixel
_READER_CLIPS = 2.5  # clips that a reader holds besides those that it delivers at a time
_READER_FACTOR = 1.2  # DALI's pool gives out more than is asked for
_OUTPUTS_PER_LANE = 3  # of a piece: twice in DALI, once in the batches that are begun
_LANES_TWICE = 2  # lanes whose successor has begun
_LANE_BYTES = 60 * 2**20  # of a decoder


def num_nvdec_engines(device_id: int) -> int:
    """Video decoder engines of a GPU for H.264; 0 if the driver's decoder library is missing or knows none."""
    import torch

    try:
        library = ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return 0
    torch.zeros(1, device=torch.device("cuda", device_id))  # the call needs the GPU's context
    with torch.cuda.device(device_id):
        caps = _DecodeCaps(codec=4, chroma_format=1)  # H.264, 4:2:0
        if library.cuvidGetDecoderCaps(ctypes.byref(caps)) != 0 or not caps.is_supported:
            return 0
    return max(int(caps.num_engines), 1)


class _DecodeCaps(ctypes.Structure):
    """CUVIDDECODECAPS of NVIDIA's Video Codec SDK, nvcuvid.h."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("chroma_format", ctypes.c_int),
        ("bit_depth_minus_8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("is_supported", ctypes.c_ubyte),
        ("num_engines", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_macroblocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("rest", ctypes.c_uint * 12),
    )


def choose_cpu_share(num_workers: int, num_engines: int) -> Fraction:
    """The part of NVDEC's clips that the CPU decodes in its place, so that both are done at the same time.

    Args:
        num_workers: Processes that decode, each with a core.
        num_engines: NVDEC's engines.
    """
    cpu = num_workers * _CORE_AS_ENGINE
    return (cpu / (cpu + num_engines)).limit_denominator(100)


def goes_to_cpu(position: int, share: Fraction) -> bool:
    """Whether the CPU decodes the clip at a place of the epoch's order: `share` of any run of them, evenly spread."""
    # In integers, which takes a fifth of the time of comparing with `share` * 2**64.
    return (position + 1) * _GOLDEN % 2**64 * share.denominator < share.numerator * 2**64


def choose_routes(
    clips_of_size: Mapping[tuple[int, int], int],
    *,
    cpu_fraction: Fraction,
    batch_size: int,
    num_frames: int,
    output_bytes: int,
    num_lanes: int,
    memory_limit: int | None,
) -> dict[Route, RouteOptions]:
    """The routes of a manifest.

    Args:
        clips_of_size: How many rows NVDEC can take, by (width, height).
        cpu_fraction: The part of all clips that the CPU decodes.
        batch_size: Clips of a batch.
        num_frames: Source frames that the reader holds of a clip.
        output_bytes: Bytes of a clip as it is delivered.
        num_lanes: NVDEC's lanes over all sizes; each size has at least one.
        memory_limit: Bytes of the GPU's memory for the lanes; None: as much as is fastest.

    Returns:
        The CPU's route, and one for each of the commonest sizes.
    """
    sizes = sorted(clips_of_size, key=lambda size: (-clips_of_size[size], size))[:MOST_SIZES]
    total = sum(clips_of_size[size] for size in sizes)
    work = {
        (width, height): clips_of_size[width, height] * (_FRAME_NS + _MEGAPIXEL_NS * width * height / 1e6)
        for width, height in sizes
    }
    lanes = {size: max(round(num_lanes * work[size] / sum(work.values())), 1) for size in sizes}
    routes: dict[Route, RouteOptions] = {None: RouteOptions(num_lanes=1, piece_clips=batch_size)}
    budget = None if memory_limit is None else memory_limit / (sum(lanes.values()) + min(_LANES_TWICE, len(lanes)))
    for size in sizes:
        part = (1 - cpu_fraction) * clips_of_size[size] / total
        piece_clips = max(min(round(batch_size * part) if len(sizes) > 1 else batch_size, batch_size), 1)
        if budget is not None:
            clip_bytes = num_frames * size[0] * size[1] * 3 * _READER_FACTOR
            fitting = (budget - _LANE_BYTES - _READER_CLIPS * clip_bytes) / (
                clip_bytes + _OUTPUTS_PER_LANE * output_bytes
            )
            piece_clips = max(min(piece_clips, int(fitting)), 1)
        routes[size] = RouteOptions(num_lanes=lanes[size], piece_clips=piece_clips)
    if sizes:  # the CPU's clips wait in their batches for NVDEC's: the more at a time, the more batches are begun
        largest = max(routes[size].piece_clips for size in sizes)
        routes[None] = RouteOptions(1, min(max(largest, round(batch_size * cpu_fraction), 1), batch_size))
    return routes
