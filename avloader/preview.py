"""A picture of one clip: its frames as a film strip over the log-mel spectrogram of its sound, on one time axis.

The left edge of each thumbnail stands at the presentation time of its frame, and a thin line carries that time down
through the waveform and the spectrogram. Works without DALI and torch: clips are read straight from a manifest.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from avloader.errors import ManifestError
from avloader.resample import resample, resample_margin
from avloader.timeline import round_half_up

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from avloader.audio import AudioReader
    from avloader.augment import Node
    from avloader.batch import AVBatch
    from avloader.manifest import Manifest

__all__ = [
    "DPI",
    "PreviewClip",
    "PreviewPair",
    "augment_clip",
    "clip_of_batch",
    "draw",
    "draw_clip",
    "draw_pair",
    "read_clip",
    "save",
]

DPI = 160
"""Pixels an inch; type sizes are in points, so a wider picture holds more, not larger type."""

# Inches. The strip and the spectrogram share their left and right edge, so that one time axis serves both.
_LEFT, _RIGHT = 0.62, 0.74
_TITLE, _TIMES, _WAVE, _AXIS = 0.56, 0.26, 0.42, 0.46
_SPECTROGRAM, _MIN_SPECTROGRAM, _PAIR_SPECTROGRAM = 2.0, 0.8, 1.5
_PAIR_GAP, _LINE_HEIGHT = 0.22, 0.19  # above what is said of the clip after augmentation
_WAVE_SHARE = 0.07  # of the height of a tall picture
_MIN_THUMB, _MAX_THUMB_HEIGHT = 0.62, 2.4
_STRIP_PAD, _ROW_GAP, _THUMB_GAP = 0.07, 0.05, 0.03

_INK, _MUTED, _BAND, _LINE, _WAVE_INK, _NOTHING = "#1b1f24", "#6a737d", "#14161b", "#d9480f", "#3b5b8c", "#e9ecef"
_COLOURS, _DB_RANGE, _NUM_MELS, _HIGHEST_HERTZ = "magma", 80.0, 96, 12000.0
_WINDOW_SECONDS = 0.032
_TIME = "media time, seconds"
_SMALL, _NORMAL, _LARGE = 6.5, 7.5, 10.5


@dataclass(frozen=True, eq=False, kw_only=True)
class PreviewClip:
    """One clip as arrays, all times on the media timeline.

    Attributes:
        frames: uint8 [shape=(F, H, W, 3)], RGB, F > 0.
        frame_seconds: float64 [shape=(F,)], presentation times, non-decreasing.
        stop_seconds: When the last frame ends.
        audio: float32 [shape=(N,)], range -1 to 1.
        sample_rate: Samples per second, > 0.
        audio_start_seconds: Time of the first sample.
        audio_valid: Half-open range of samples that exist in the media.
        title: What the clip is, in a few words.
        caption: Facts about it, in one line.
    """

    frames: npt.NDArray[np.uint8]
    frame_seconds: npt.NDArray[np.float64]
    stop_seconds: float
    audio: npt.NDArray[np.float32]
    sample_rate: int
    audio_start_seconds: float
    audio_valid: tuple[int, int]
    title: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[3] != 3 or not len(self.frames):
            raise ValueError(f"frames has shape {self.frames.shape}; allowed is (F, H, W, 3) with F > 0")
        if self.frame_seconds.shape != (len(self.frames),):
            raise ValueError(f"frame_seconds has shape {self.frame_seconds.shape}; allowed is ({len(self.frames)},)")

    @property
    def sound_stop_seconds(self) -> float:
        """Time at which the last sample ends."""
        return self.audio_start_seconds + len(self.audio) / self.sample_rate


def read_clip(
    manifest: Manifest, row: int = 0, *, num_frames: int = 16, stride: int = 1, speed: Fraction = Fraction(1)
) -> PreviewClip:
    """The first clip of a manifest row, with its sound at the medium's own rate.

    Args:
        manifest: An opened manifest.
        row: 0 <= row < len(manifest).
        num_frames: Frames to show, > 0; fewer if the row holds fewer.
        stride: Source frames between two shown ones, > 0.
        speed: Take picture and sound from that many times as long a stretch, and play it as long as the others: times
            after the first frame are those of the medium divided by it.

    Raises:
        ValueError: If an argument is out of range.
        ManifestError: If the row's medium lacks picture or sound.
        DecodeError: If frames or sound cannot be decoded.
    """
    from avloader.audio import AudioReader
    from avloader.video import VideoReader

    for name, value in (("num_frames", num_frames), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if not 0 <= row < len(manifest):
        raise ValueError(f"row={row} is outside the manifest: allowed is 0 to {len(manifest) - 1}")
    manifest.check_streams("both")
    record = manifest.row(row)
    video, sound = manifest.media(record.media_id).video, manifest.media(record.audio_id).audio
    if video is None or sound is None:
        missing = "video stream" if video is None else "sound"
        raise ManifestError(f"the medium has no {missing}", path=record.path, row=row)
    # The frame nearest to each place, the earlier of two, as the plan chooses it.
    places = [record.first_frame + math.ceil(k * stride * speed - Fraction(1, 2)) for k in range(num_frames + 1)]
    indices = [place for place in places[:num_frames] if place < record.stop_frame]
    following = places[len(indices)]
    times = video.times
    stop = times.seconds(following) if following < len(times) else times.stop_seconds
    first = times.seconds(indices[0])
    with VideoReader(record.path, stream_index=video.stream_index, keyframe_pts=video.keyframe_pts) as reader:
        frames = reader.read([times.pts(index) for index in indices]).transpose(0, 2, 3, 1)
    rate = sound.sample_rate
    begin = round_half_up((first - record.av_offset - sound.start_seconds) * rate)
    with AudioReader(record.audio_path, sound) as listener:
        samples, valid = _read_sound(listener, begin, round_half_up((stop - first) / speed * rate), rate, speed)
    audio_start = sound.start_seconds + Fraction(begin, rate)
    return PreviewClip(
        frames=frames,
        frame_seconds=np.array([float(first + (times.seconds(index) - first) / speed) for index in indices]),
        stop_seconds=float(first + (stop - first) / speed),
        audio=samples,
        sample_rate=rate,
        audio_start_seconds=float(audio_start),
        audio_valid=valid,
        title=_title(manifest, row),
        caption=_caption(len(indices), float(first), float(audio_start), rate),
    )


def _read_sound(
    reader: AudioReader, start: int, num_samples: int, rate: int, speed: Fraction
) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
    """Sound from native sample `start` on, `speed` times as fast, and which of its samples exist."""
    if speed == 1:
        return reader.read(start, start + num_samples)
    rates = {"in_rate": rate * speed.numerator, "out_rate": rate * speed.denominator}
    margin = resample_margin(**rates)
    native, valid = reader.read(start - margin, start + math.ceil(num_samples * speed) + margin)
    first, stop = (min(max(math.ceil((index - margin) / speed), 0), num_samples) for index in valid)
    sound = resample(native, **rates, num_samples=num_samples)
    sound[:first] = sound[max(first, stop) :] = 0
    return sound, (first, max(first, stop))


@dataclass(frozen=True, eq=False, kw_only=True)
class PreviewPair:
    """One clip before and after augmentation.

    Attributes:
        before: As the loader delivers it without augmentation.
        after: The same, augmented.
        drawn: What was drawn, for each transform: its name and values.
        speed: So many seconds of the medium play in one of `after`.
    """

    before: PreviewClip
    after: PreviewClip
    drawn: tuple[str, ...]
    speed: Fraction = Fraction(1)


def augment_clip(
    manifest: Manifest,
    row: int,
    node: Node,
    *,
    num_frames: int = 16,
    stride: int = 1,
    seed: int = 0,
    epoch: int = 0,
) -> PreviewPair:
    """The first clip of a manifest row, as `read_clip` gives it, and augmented.

    Args:
        manifest: An opened manifest.
        row: 0 <= row < len(manifest).
        node: What happens to it, for the sound's own rate.
        num_frames: Frames to show, > 0; fewer if the row holds fewer.
        stride: Source frames between two shown ones, > 0.
        seed: Of the draws: those that a loader with this seed makes for the same clip.
        epoch: Another one draws anew.

    Raises:
        ValueError: If an argument is out of range, or the augmentation would break sync.
        ManifestError, DecodeError: As for `read_clip`.
    """
    import torch

    from avloader.augment.base import activations, augment_pictures, augment_sound
    from avloader.augment.clips import ClipSpeeds, clip_keys

    node.check_sync()
    before = source = read_clip(manifest, row, num_frames=num_frames, stride=stride)
    rows, starts = np.array([row]), np.array([manifest.row(row).first_frame])
    keys = clip_keys(rows, starts, seed=seed, epoch=epoch)
    speeds = ClipSpeeds.of(node, seed=seed)
    drawn: dict[str, dict[str, torch.Tensor]] = {}
    speed = Fraction(1)
    if speeds is not None:
        name, drawn[name] = speeds.columns(keys)
        speed = speeds.factors[int(speeds.choose(rows, starts, epoch)[0])]
        source = read_clip(manifest, row, num_frames=num_frames, stride=stride, speed=speed)
    video = manifest.media(manifest.row(row).media_id).video
    is_even = video is not None and video.times.table is None
    sound = augment_sound(
        node,
        torch.from_numpy(source.audio[None]),
        keys=keys,
        sample_rate=source.sample_rate,
        lengths=[source.audio_valid],
        num_frames=len(source.frames),
        fps=len(source.frames) / (source.stop_seconds - float(source.frame_seconds[0])) if is_even else None,
        origin=0,
    )
    frames = torch.from_numpy(np.ascontiguousarray(source.frames.transpose(0, 3, 1, 2)))[None]
    pictures = augment_pictures(node, frames, keys=keys)
    for name, columns in (*sound.parameters.items(), *pictures.parameters.items()):
        drawn[name] = drawn.get(name, {}) | columns
    after = replace(
        source, frames=pictures.frames[0].permute(0, 2, 3, 1).contiguous().numpy(), audio=sound.audio[0].numpy()
    )
    nodes = {name: leaf for leaf, name, _, _ in activations(node, keys)}
    lines = tuple(_drawn_text(node, name, drawn.get(name)) for name, node in nodes.items())
    return PreviewPair(before=before, after=after, drawn=lines, speed=speed)


def _drawn_text(node: Node, name: str, columns: Mapping[str, torch.Tensor] | None) -> str:
    """A transform with what it drew for one clip."""
    if columns is None:
        return f"{name}: changes the loader's features, not what is shown here"
    if not bool(columns["active"][0]):
        return f"{name}: left out"
    values = []
    for key, column in columns.items():
        if key == "active" or column.ndim > 1:
            continue
        value = column[0].item()
        names = getattr(getattr(node, f"{key}s", None), "names", None)  # of a bank's sounds or responses
        shown = Path(names[value]).name if names else f"{value:.4g}" if isinstance(value, float) else str(value)
        values.append(f"{key}={shown}")
    return f"{name}: {', '.join(values)}" if values else name


def clip_of_batch(batch: AVBatch, index: int = 0, *, sample_rate: int, manifest: Manifest | None = None) -> PreviewClip:
    """One clip of a batch.

    Args:
        batch: What `AVLoader` delivers. Normalized frames are stretched to their own range.
        index: 0 <= index < the batch's size.
        sample_rate: The loader's `sample_rate`.
        manifest: Names the file and the label in the title.

    Raises:
        ValueError: If `index` is out of range.
    """
    if batch.frames is None or batch.audio is None:
        raise ValueError('batch must hold pictures and sound, as with the loader\'s streams="both"')
    num_clips = len(batch.row)
    if not 0 <= index < num_clips:
        raise ValueError(f"index={index} is outside the batch: allowed is 0 to {num_clips - 1}")
    frames = batch.frames[index].permute(0, 2, 3, 1).cpu().numpy()
    if frames.dtype != np.uint8:
        low, high = float(frames.min()), float(frames.max())
        frames = np.rint((frames - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    seconds = batch.frame_seconds[index].cpu().numpy()
    audio = batch.audio[index].float().cpu().numpy()
    audio_start = float(batch.audio_start_seconds[index])
    valid = [int(bound) for bound in batch.audio_valid[index]]
    last = float(np.median(np.diff(seconds))) if len(seconds) > 1 else len(audio) / sample_rate
    row = int(batch.row[index])
    return PreviewClip(
        frames=frames,
        frame_seconds=seconds,
        stop_seconds=float(seconds[-1]) + last,
        audio=audio,
        sample_rate=sample_rate,
        audio_start_seconds=audio_start,
        audio_valid=(valid[0], valid[1]),
        title=f"row {row}" if manifest is None else _title(manifest, row),
        caption=_caption(len(frames), float(seconds[0]), audio_start, sample_rate),
    )


def draw(
    batch: AVBatch,
    index: int = 0,
    *,
    sample_rate: int,
    manifest: Manifest | None = None,
    width: int = 1600,
    height: int | None = None,
) -> Figure:
    """Draw one clip of a batch: see `clip_of_batch` and `draw_clip`."""
    return draw_clip(
        clip_of_batch(batch, index, sample_rate=sample_rate, manifest=manifest), width=width, height=height
    )


def draw_clip(clip: PreviewClip, *, width: int = 1600, height: int | None = None) -> Figure:
    """Draw one clip.

    The spectrogram is computed for the picture (96 mel bands, window of 32 ms) from the clip's own sound.

    Args:
        clip: What to draw.
        width: Pixels, 600 to 8000.
        height: Pixels, 400 to 8000; None: as the frames need.

    Returns:
        A figure without any global state behind it; write it with `save`.

    Raises:
        ValueError: If a size is out of range.
    """
    return _draw([clip], [], label=_TIME, width=width, height=height)


def draw_pair(pair: PreviewPair, *, width: int = 1600, height: int | None = None) -> Figure:
    """Draw a clip before over after augmentation, on one time axis and one scale of loudness.

    Args:
        pair: What to draw.
        width: Pixels, 600 to 8000.
        height: Pixels, 400 to 8000; None: as the frames need.

    Raises:
        ValueError: If a size is out of range.
    """
    label = (
        _TIME
        if pair.speed == 1
        else f"seconds as played; after augmentation {float(pair.speed):g} of the medium in one"
    )
    return _draw([pair.before, pair.after], pair.drawn, label=label, width=width, height=height)


def _draw(clips: Sequence[PreviewClip], drawn: Sequence[str], *, label: str, width: int, height: int | None) -> Figure:
    """Clips one below the other; above the second what was drawn for it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _check_size("width", width, 600)
    if height is not None:
        _check_size("height", height, 400)
    spans = [_time_span(clip) for clip in clips]
    span = min(first for first, _ in spans), max(last for _, last in spans)
    plot_inches = width / DPI - _LEFT - _RIGHT
    lines = _wrapped(drawn, int(plot_inches * 72 / (_NORMAL * 0.55)))
    heading = _PAIR_GAP + (1.3 + len(lines)) * _LINE_HEIGHT if len(clips) > 1 else 0.0
    share = None if height is None else (height / DPI - _TITLE - heading - _AXIS) / len(clips)
    wave_inches = max(_WAVE, _WAVE_SHARE * height / DPI / len(clips)) if height else _WAVE
    room = None if share is None else share - _TIMES - wave_inches - _MIN_SPECTROGRAM
    layouts = [_strip_layout(clip, plot_inches / (span[1] - span[0]), room) for clip in clips]
    if share is None:
        sound_inches = _SPECTROGRAM if len(clips) == 1 else _PAIR_SPECTROGRAM
        panels = [layout.inches + _TIMES + wave_inches + sound_inches for layout in layouts]
        height = round((_TITLE + sum(panels) + heading + _AXIS) * DPI)
    else:
        panels = [share] * len(clips)
    assert height is not None
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    top = height / DPI - _TITLE
    _draw_title(figure, clips[0])
    scale = _Scale(span, max(_peak(clip) for clip in clips), max(_loudest(clip) for clip in clips))
    for number, (clip, layout, inches) in enumerate(zip(clips, layouts, panels, strict=True)):
        if number:
            _draw_heading(figure, top - _PAIR_GAP, lines)
            top -= heading
        bottom = top - inches
        _draw_panel(
            figure, clip, layout, (top, bottom), wave_inches, scale, label=label if number == len(clips) - 1 else None
        )
        top = bottom
    return figure


@dataclass(frozen=True)
class _Scale:
    """What all clips of a figure share: seconds of both edges, the greatest sample, the power of the loudest bin."""

    span: tuple[float, float]
    peak: float
    power: float


def _draw_panel(
    figure: Figure,
    clip: PreviewClip,
    layout: _StripLayout,
    edges: tuple[float, float],
    wave_inches: float,
    scale: _Scale,
    *,
    label: str | None,
) -> None:
    """Strip, times, waveform and spectrogram of one clip between two heights in inches; `label`: of its time axis."""
    top, bottom = edges
    bounds = [top]
    for inches in (layout.inches, _TIMES, wave_inches):
        bounds.append(bounds[-1] - inches)
    strip, times, wave, spectrogram = (
        _axes(figure, low, high, scale.span) for high, low in zip(bounds, [*bounds[1:], bottom], strict=True)
    )
    _draw_strip(strip, clip, layout, scale.span)
    _draw_times(times, clip, scale.span)
    _draw_wave(wave, clip, scale.peak)
    _draw_spectrogram(figure, spectrogram, clip, (bottom, bounds[-1]), scale, label=label)
    for axes in (wave, spectrogram):
        _mark_frames(axes, clip, over_image=axes is spectrogram)
        _mark_missing_sound(axes, clip, name_it=axes is spectrogram)


def _wrapped(texts: Sequence[str], length: int) -> list[str]:
    """Texts in lines of at most so many characters, as many in each as it holds."""
    lines: list[str] = []
    for text in texts:
        joined = f"{lines[-1]}  ·  {text}" if lines else text
        if lines and len(joined) <= length:
            lines[-1] = joined
        else:
            lines.append(_shorten(text, length))
    return lines


def _draw_heading(figure: Figure, top: float, lines: Sequence[str]) -> None:
    wide, tall = figure.get_size_inches()
    for number, text in enumerate(["after augmentation", *lines]):
        height = (top - (number + 0.5) * _LINE_HEIGHT) / tall
        is_first = not number
        label = figure.text(
            _LEFT / wide,
            height,
            text,
            size=_LARGE if is_first else _NORMAL,
            color=_INK,
            weight="bold" if is_first else "normal",
            va="center",
        )
        label.set_parse_math(False)


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure that `draw` made, as PNG whatever the name.

    Raises:
        OSError: If the file cannot be written.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # a name in a script without a font
        figure.savefig(path, dpi=DPI, format="png")


@dataclass(frozen=True)
class _StripLayout:
    """Frame `k` stands in row ``k % num_rows``. A thumbnail is `width` by `height` inches and `seconds` wide."""

    num_rows: int
    width: float
    height: float
    seconds: float

    @property
    def inches(self) -> float:
        return 2 * _STRIP_PAD + self.num_rows * self.height + (self.num_rows - 1) * _ROW_GAP


def _strip_layout(clip: PreviewClip, inches_per_second: float, room: float | None) -> _StripLayout:
    """As many rows as it takes for thumbnails to be large enough to see something, at most four."""
    steps = np.diff(np.append(clip.frame_seconds, clip.stop_seconds))
    # A frame that is held long must not shrink the others, nor a repeated one (step 0) make them vanish.
    positive = steps[steps > 0]
    step = float(np.quantile(positive, 0.1)) if len(positive) else 1.0
    aspect = clip.frames.shape[1] / clip.frames.shape[2]
    pitch = step * inches_per_second
    limit = _MAX_THUMB_HEIGHT if room is None else min(_MAX_THUMB_HEIGHT, max(room, 0.4) - 2 * _STRIP_PAD)
    num_rows = min(4, len(clip.frames), max(1, math.ceil(_MIN_THUMB / pitch - 0.05)))
    width = num_rows * pitch - _THUMB_GAP
    height = min(width * aspect, (limit - (num_rows - 1) * _ROW_GAP) / num_rows)
    width = height / aspect
    return _StripLayout(num_rows, width, height, width / inches_per_second)


def _time_span(clip: PreviewClip) -> tuple[float, float]:
    first = min(float(clip.frame_seconds[0]), clip.audio_start_seconds)
    last = max(clip.stop_seconds, clip.sound_stop_seconds)
    return first, last if last > first else first + 1.0


def _axes(figure: Figure, bottom: float, top: float, span: tuple[float, float]) -> Axes:
    """Axes over the full time span between two heights in inches, bare."""
    wide, tall = figure.get_size_inches()
    axes = figure.add_axes((_LEFT / wide, bottom / tall, (wide - _LEFT - _RIGHT) / wide, (top - bottom) / tall))
    axes.set_xlim(*span)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _draw_title(figure: Figure, clip: PreviewClip) -> None:
    wide, tall = figure.get_size_inches()
    room = wide - _LEFT - _RIGHT
    for text, inches, size, colour, weight in (
        (clip.title, 0.21, _LARGE, _INK, "bold"),
        (clip.caption, 0.40, _NORMAL, _MUTED, "normal"),
    ):
        fitted = _shorten(text, int(room * 72 / (size * 0.55)))
        label = figure.text(
            _LEFT / wide, 1 - inches / tall, fitted, size=size, color=colour, weight=weight, va="center"
        )
        label.set_parse_math(False)


def _draw_strip(axes: Axes, clip: PreviewClip, layout: _StripLayout, span: tuple[float, float]) -> None:
    from PIL import Image

    axes.set_ylim(0, layout.inches)
    first, last = span
    # In several rows the last thumbnails end after the clip: the strip runs on into the margin.
    gap = layout.seconds * _THUMB_GAP / layout.width
    end = max(last, float(clip.frame_seconds[-1]) + layout.seconds + gap)
    axes.fill_between([first, end], 0, layout.inches, color=_BAND, linewidth=0, zorder=0, clip_on=False)
    pixels = (max(1, round(layout.width * DPI)), max(1, round(layout.height * DPI)))
    for index, (frame, seconds) in enumerate(zip(clip.frames, clip.frame_seconds, strict=True)):
        row = index % layout.num_rows
        top = layout.inches - _STRIP_PAD - row * (layout.height + _ROW_GAP)
        thumb = np.asarray(Image.fromarray(frame).resize(pixels, Image.Resampling.LANCZOS))
        extent = (seconds, seconds + layout.seconds, top - layout.height, top)
        axes.imshow(thumb, extent=extent, aspect="auto", interpolation="nearest", zorder=2, clip_on=False)
        axes.vlines(seconds, 0, top, color=_LINE, linewidth=0.8, zorder=1, clip_on=False)
        axes.vlines(seconds, top - layout.height, top, color=_LINE, linewidth=0.8, zorder=3)
    axes.set_xlim(first, last)
    axes.set_ylim(0, layout.inches)


def _draw_times(axes: Axes, clip: PreviewClip, span: tuple[float, float]) -> None:
    """Each frame's time beside its line, as many as there is room for."""
    axes.set_ylim(0, 1)
    axes.vlines(clip.frame_seconds, 0, 1, color=_LINE, linewidth=0.8)
    inches_per_second = axes.get_window_extent().width / DPI / (span[1] - span[0])
    free_from = -math.inf
    for seconds in clip.frame_seconds:
        text = f"{seconds:.3f}"
        needed = (len(text) * 0.62 * _SMALL / 72 + 0.08) / inches_per_second
        if seconds >= free_from and seconds + needed <= span[1] + _RIGHT / inches_per_second:
            axes.annotate(
                text,
                (seconds, 0.5),
                (2.5, 0),
                textcoords="offset points",
                size=_SMALL,
                color=_INK,
                va="center",
                annotation_clip=False,
            )
            free_from = seconds + needed


def _draw_wave(axes: Axes, clip: PreviewClip, peak: float) -> None:
    """The envelope: smallest and largest sample of each pixel column."""
    axes.set_ylim(-1, 1)
    columns = max(1, round(axes.get_window_extent().width))
    edges = np.unique(np.linspace(0, len(clip.audio), columns + 1).astype(np.int64))[:-1]
    if not len(edges):
        return
    low, high = np.minimum.reduceat(clip.audio, edges) / peak, np.maximum.reduceat(clip.audio, edges) / peak
    seconds = clip.audio_start_seconds + edges / clip.sample_rate
    axes.fill_between(seconds, 0.92 * low - 0.015, 0.92 * high + 0.015, color=_WAVE_INK, linewidth=0, zorder=2)


def _peak(clip: PreviewClip) -> float:
    """The greatest absolute sample; something, where there is silence."""
    return max(float(np.abs(clip.audio).max(initial=0)), 1e-4)


def _loudest(clip: PreviewClip) -> float:
    """The greatest power of a mel band; something, where there is silence."""
    return max(float(_mel_power(clip.audio, clip.sample_rate)[0].max()) if len(clip.audio) else 0.0, 1e-9)


def _draw_spectrogram(
    figure: Figure, axes: Axes, clip: PreviewClip, edges: tuple[float, float], scale: _Scale, *, label: str | None
) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor(_NOTHING)
    axes.set_ylim(0, _NUM_MELS)
    if len(clip.audio):
        power, hop = _mel_power(clip.audio, clip.sample_rate)
        decibel = 10 * np.log10(np.maximum(power, 1e-12) / scale.power)
        # Column k is centred on sample k * hop.
        left = clip.audio_start_seconds - hop / 2 / clip.sample_rate
        extent = (left, left + decibel.shape[1] * hop / clip.sample_rate, 0, _NUM_MELS)
        image = axes.imshow(
            decibel,
            extent=extent,
            origin="lower",
            aspect="auto",
            cmap=_COLOURS,
            vmin=-_DB_RANGE,
            vmax=0,
            interpolation="bilinear",
            zorder=1,
        )
        # Half a column reaches past each end of the sound; what no sample covers must not look like sound.
        axes.axvspan(left, clip.audio_start_seconds, color=_NOTHING, linewidth=0, zorder=1.5)
        axes.axvspan(clip.sound_stop_seconds, extent[1], color=_NOTHING, linewidth=0, zorder=1.5)
        _draw_scale(figure, image, *edges)
    axes.set_xlim(*scale.span)
    axes.set_ylim(0, _NUM_MELS)
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=max(3, int(axes.get_window_extent().width / DPI / 0.8)), steps=[1, 2, 5, 10])
    )
    axes.tick_params(axis="both", labelsize=_NORMAL, labelcolor=_INK, color=_MUTED, length=3, width=0.6)
    frequencies, positions = _frequency_ticks(clip.sample_rate)
    axes.set_yticks(positions, [f"{hertz / 1000:g}" for hertz in frequencies])
    if label is not None:
        axes.set_xlabel(label, size=_NORMAL, color=_MUTED, labelpad=3)
    else:
        axes.tick_params(axis="x", labelbottom=False)
    axes.set_ylabel("kHz (mel)", size=_NORMAL, color=_MUTED, labelpad=4)


def _draw_scale(figure: Figure, image: Any, bottom: float, top: float) -> None:
    wide, tall = figure.get_size_inches()
    axes = figure.add_axes(((wide - _RIGHT + 0.1) / wide, bottom / tall, 0.07 / wide, (top - bottom) / tall))
    scale = figure.colorbar(image, cax=axes, ticks=[-80, -60, -40, -20, 0])
    scale.outline.set_visible(False)
    scale.ax.set_yticklabels(["-80", "-60", "-40", "-20", "0 dB"])
    scale.ax.tick_params(labelsize=_SMALL, labelcolor=_MUTED, length=0, pad=2)
    scale.ax.get_yticklabels()[0].set_verticalalignment("bottom")
    scale.ax.get_yticklabels()[-1].set_verticalalignment("top")


def _mark_frames(axes: Axes, clip: PreviewClip, *, over_image: bool) -> None:
    low, high = axes.get_ylim()
    axes.vlines(clip.frame_seconds, low, high, color=_LINE, linewidth=0.8, alpha=0.8, zorder=0.5)
    if over_image:
        axes.vlines(clip.frame_seconds, low, high, color="white", linewidth=0.6, alpha=0.3, zorder=3)


def _mark_missing_sound(axes: Axes, clip: PreviewClip, *, name_it: bool) -> None:
    """Hatch what the media have no sound for."""
    first, stop = (clip.audio_start_seconds + sample / clip.sample_rate for sample in clip.audio_valid)
    for begin, end in ((clip.audio_start_seconds, first), (stop, clip.sound_stop_seconds)):
        if end <= begin:
            continue
        axes.axvspan(begin, end, facecolor=_NOTHING, edgecolor="#adb5bd", hatch="////", linewidth=0, zorder=4)
        if name_it:
            box = {"facecolor": _NOTHING, "edgecolor": "none", "pad": 2}
            centre = (begin + end) / 2, sum(axes.get_ylim()) / 2
            axes.text(*centre, "no sound", size=_NORMAL, color=_MUTED, ha="center", va="center", bbox=box, zorder=5)


def _mel_power(audio: npt.NDArray[np.float32], sample_rate: int) -> tuple[npt.NDArray[np.float64], int]:
    """Power of mel bands [shape=(_NUM_MELS, hops)], and the hop in samples."""
    import librosa

    window = max(16, round(_WINDOW_SECONDS * sample_rate))
    n_fft = 4 << math.ceil(math.log2(window))  # zero-padded, so that the lowest mel bands are not empty
    hop = max(1, min(window // 4, len(audio) // 800))
    mode: Any = "reflect" if len(audio) > n_fft // 2 else "constant"
    power = librosa.feature.melspectrogram(
        y=np.pad(audio.astype(np.float32), n_fft // 2, mode=mode),
        sr=sample_rate,
        n_fft=n_fft,
        win_length=window,
        hop_length=hop,
        center=False,
        n_mels=_NUM_MELS,
        fmax=min(sample_rate / 2, _HIGHEST_HERTZ),
    )
    return np.asarray(power, dtype=np.float64), hop


def _frequency_ticks(sample_rate: int) -> tuple[list[float], list[float]]:
    import librosa

    top = min(sample_rate / 2, _HIGHEST_HERTZ)
    highest = float(librosa.hz_to_mel(top))
    frequencies = [hertz for hertz in (250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0) if hertz < top]
    # Band b is centred on mel point b + 1 of _NUM_MELS + 2 equally spaced ones.
    return frequencies, [float(librosa.hz_to_mel(hertz)) / highest * (_NUM_MELS + 1) - 0.5 for hertz in frequencies]


def _title(manifest: Manifest, row: int) -> str:
    record = manifest.row(row)
    name = manifest.labels[record.label] if 0 <= record.label < len(manifest.labels) else str(record.label)
    return f"{Path(record.path).name}  ·  row {row}  ·  {name}"


def _caption(num_frames: int, first_seconds: float, audio_start_seconds: float, sample_rate: int) -> str:
    difference = (audio_start_seconds - first_seconds) * 1000
    return (
        f"{num_frames} frames from {first_seconds:.3f} s  ·  sound at {sample_rate} Hz, "
        f"starts {difference:+.3f} ms from the first frame"
    )


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(1, length - 1)] + "…"


def _check_size(name: str, value: int, smallest: int) -> None:
    if not smallest <= value <= 8000:
        raise ValueError(f"{name}={value} is out of range: allowed is {smallest} to 8000 pixels")
