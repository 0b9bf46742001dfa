"""Is a manifest still true? Media unchanged, and a plain linear decode of some of them says the same."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

from avloader.errors import ManifestError
from avloader.manifest import Manifest, ManifestRow
from avloader.source import open_container
from avloader.timeline import FrameTimes

__all__ = ["Finding", "check_manifest"]

_REBUILD = "Build the manifest again"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as the manifest says.

    Attributes:
        row: The manifest row, or None if it concerns the manifest as a whole.
        path: The file concerned.
        what: What is wrong, as a phrase without a full stop.
        remedy: What to do, as a sentence without a full stop.
    """

    row: int | None
    path: str
    what: str
    remedy: str


def check_manifest(manifest: Manifest, *, sample: int = 8) -> list[Finding]:
    """Compare a manifest with its files.

    Sizes and digests of all tables and sizes and modification times of all media are compared; the media of `sample`
    rows, evenly spaced in the manifest, are decoded from beginning to end.

    Args:
        manifest: An opened manifest; open it with ``check_media=False`` to get all differences instead of an error.
        sample: Rows to decode, >= 0.

    Returns:
        What is not as it should be; empty if all is well.
    """
    if sample < 0:
        raise ValueError(f"sample must be at least 0, got {sample}")
    findings = []
    try:
        manifest.check_tables(texts=True)
    except ManifestError as error:
        findings.append(Finding(None, error.path or manifest.path, error.cause, error.remedy))
    changed = set()
    for media_id, what in manifest.changed_media():
        changed.add(media_id)
        path = manifest.media(media_id).path
        findings.append(Finding(manifest.row_of_media(media_id), path, what, _REBUILD))
    sample = min(sample, len(manifest))
    rows = [manifest.row(number * len(manifest) // sample) for number in range(sample)]
    rows = [row for row in rows if not {row.media_id, row.audio_id} & changed]
    return findings + list(_compare(manifest, sorted(rows, key=lambda row: row.media_id)))


def _compare(manifest: Manifest, rows: list[ManifestRow]) -> Iterator[Finding]:
    """What a linear decode says against rows, which are sorted by medium."""
    decoded: tuple[int, npt.NDArray[np.int64]] | None = None
    for row in rows:
        path = row.path
        try:
            if manifest.streams != "audio":
                video = manifest.media(row.media_id).video
                if video is None:
                    yield Finding(row.row, path, "the manifest says that it has no picture", _REBUILD)
                    continue
                if decoded is None or decoded[0] != row.media_id:
                    decoded = row.media_id, np.fromiter(_linear_pts(path, video.stream_index), np.int64)
                what = _wrong_frames(row, video.times, decoded[1])
                if what:
                    yield Finding(row.row, path, what, _REBUILD)
                    continue
            if manifest.streams != "video":
                path = row.audio_path
                what = _wrong_sound(manifest, row)
                if what:
                    yield Finding(row.row, path, what, _REBUILD)
        except (av.FFmpegError, OSError) as error:
            what = f"a linear decode fails ({error.strerror or error})"
            yield Finding(row.row, path, what, "Leave the medium out, or convert it")


def _wrong_frames(row: ManifestRow, times: FrameTimes, pts: npt.NDArray[np.int64]) -> str:
    """What is wrong with a row's frames, against the pts of a linear decode; "" if nothing is."""
    if len(pts) != times.num_frames:
        return f"a linear decode shows {len(pts)} frames, the manifest says {times.num_frames}"
    expected = times.pts_of(np.arange(row.first_frame, row.stop_frame))
    wrong = np.flatnonzero(pts[row.first_frame : row.stop_frame] != expected)
    if not len(wrong):
        return ""
    frame = row.first_frame + int(wrong[0])
    shown, said = (float(times.pts_to_media_time(value)) for value in (int(pts[frame]), times.pts(frame)))
    return f"a linear decode shows frame {frame} at {shown:.6f} s, the manifest says {said:.6f} s"


def _wrong_sound(manifest: Manifest, row: ManifestRow) -> str:
    """What is wrong with where a row's sound starts; "" if nothing is."""
    audio = manifest.media(row.audio_id).audio
    if audio is None:
        return "the manifest says that it has no sound"
    with contextlib.closing(_linear_pts(row.audio_path, audio.stream_index)) as sound:
        sound_pts = next(sound, None)
    if sound_pts is None:
        return "a linear decode gives no sound"
    sound_start = sound_pts * audio.time_base - audio.origin
    row_start = row.start_seconds - (row.av_offset if manifest.streams == "both" else 0)
    start = (row_start - sound_start) * audio.sample_rate
    if abs(start - row.audio_start_sample) > Fraction(1, 2):
        return f"the sound starts at sample {float(start):.1f}, the manifest says {row.audio_start_sample}"
    return ""


def _linear_pts(path: str, stream_index: int) -> Generator[int, None, None]:
    """Pts of every frame of a stream, in the order in which a decoder gives them."""
    with open_container(path) as container:
        stream = container.streams[stream_index] if stream_index < len(container.streams) else None
        if not isinstance(stream, (av.VideoStream, av.AudioStream)) or stream.codec_context is None:
            return
        for frame in container.decode(stream):
            if frame.pts is not None:
                yield frame.pts
