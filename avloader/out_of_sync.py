"""Where the sound of clips is taken from by the rules of out-of-sync sampling (`avloader.offsets`)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from avloader import keyed
from avloader.errors import ManifestError
from avloader.manifest import Manifest
from avloader.offsets import BinaryOffsets, FixedOffset, FixedOffsets, GridOffsets, OffsetRule, OtherStart
from avloader.spacing import Spacing
from avloader.timeline import ANNOTATION_TOLERANCE

__all__ = ["FixedClips", "Induced", "OtherRows", "Room", "SoundStarts"]

_Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Induced:
    """What a rule decided about some clips.

    Attributes:
        ticks: How much later the sound is taken, in multiples of `unit` seconds.
        unit: Seconds.
        is_out: Whether the sound is taken from another start or row.
        labels: What the rule calls them.
    """

    ticks: _Int64
    unit: Fraction
    is_out: npt.NDArray[np.bool_]
    labels: _Int64


@dataclass(frozen=True, slots=True)
class SoundStarts:
    """Where the sound of some clips begins: with these frames of these rows."""

    rows: _Int64
    frames: _Int64


class Room:
    """The starts of windows that leave room for the sound, wherever the rule puts it.

    The sound begins between the first and the last frame of the row at which a window can start.
    """

    def __init__(self, spacing: Spacing, rule: OffsetRule | None, clip_seconds: Fraction, *, is_random: bool) -> None:
        self._spacing, self._rule, self._is_random = spacing, rule, is_random
        self._guard = self._rule.guard(clip_seconds) if isinstance(self._rule, OtherStart) else Fraction(0)

    def starts(self, rows: _Int64, induced: Induced | None = None) -> tuple[_Int64, _Int64]:
        """First frame that a window can start at, and how many there are from there on; none: 0 or less.

        Args:
            rows: Manifest rows.
            induced: Their offsets, for a rule that draws them before the window; None: whatever they will be.
        """
        rule, spacing = self._rule, self._spacing
        if isinstance(rule, (GridOffsets, BinaryOffsets)):
            if not self._is_random:
                return spacing.starts_with_room(rows, *self._range(rows, rule), rule.unit)
            if induced is not None:
                return spacing.starts_with_room(rows, induced.ticks, induced.ticks, rule.unit)
            rooms = [spacing.starts_with_room(rows, ticks, ticks, rule.unit)[1] for ticks in self._range(rows, rule)]
            return spacing.first_starts(rows), np.minimum(*rooms)
        num_starts = spacing.num_starts(rows)
        if isinstance(rule, OtherStart):
            num_starts[spacing.have_lonely_starts(rows, num_starts, self._guard)] = 0
        return spacing.first_starts(rows), num_starts

    def other_starts(self, rows: _Int64, starts: _Int64, random: npt.NDArray[np.uint64]) -> _Int64:
        """Another start of each row, at least the guard away."""
        num_before, next_after, num_after = self._spacing.distant_starts(rows, starts, self._guard)
        drawn = keyed.below(num_before + num_after, random)
        return np.where(drawn < num_before, self._spacing.first_starts(rows) + drawn, next_after + drawn - num_before)

    def extra_frames(self, frame_seconds: Fraction) -> int:
        """Frames that a row needs beside those of a window."""
        rule = self._rule
        if isinstance(rule, OtherStart):
            return 2 * max(math.ceil(self._guard / frame_seconds), 1) - 1
        if isinstance(rule, (GridOffsets, BinaryOffsets)):
            before, after = (math.ceil(abs(offset) / frame_seconds) for offset in rule.range)
            return max(before, after) if self._is_random else before + after
        return 0

    @staticmethod
    def _range(rows: _Int64, rule: GridOffsets | BinaryOffsets) -> tuple[_Int64, _Int64]:
        low, high = rule.range
        ticks = math.floor(low / rule.unit), math.ceil(high / rule.unit)
        return np.full(len(rows), ticks[0]), np.full(len(rows), ticks[1])


class OtherRows:
    """Draws rows that share neither picture nor sound with a given one, all equally likely."""

    def __init__(self, manifest: Manifest, has_clip: npt.NDArray[np.bool_]) -> None:
        self._groups = _connected(manifest)
        rows = np.flatnonzero(has_clip)
        self._rows: _Int64 = rows[np.argsort(self._groups[rows], kind="stable")]
        self._sorted: _Int64 = self._groups[self._rows]
        if self._sorted[0] == self._sorted[-1]:
            raise ManifestError(
                "OtherClip needs rows of two media at least, but all rows with a clip share picture or sound",
                path=manifest.path,
                remedy="Use OtherStart, or add other media",
            )

    def draw(self, rows: _Int64, random: npt.NDArray[np.uint64]) -> _Int64:
        """Another row for each of `rows`."""
        begin, end = (np.searchsorted(self._sorted, self._groups[rows], side=side) for side in ("left", "right"))
        drawn = keyed.below(len(self._rows) - (end - begin), random)
        return self._rows[np.where(drawn < begin, drawn, drawn + end - begin)]


def _connected(manifest: Manifest) -> _Int64:
    """A number for each row, the same for rows that share a medium, directly or through others."""
    media_id, audio_id = manifest.media_id, manifest.audio_id
    if np.array_equal(media_id, audio_id):
        return media_id
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    size = int(max(media_id.max(), audio_id.max())) + 1
    links = coo_matrix((np.ones(len(media_id), np.bool_), (media_id, audio_id)), shape=(size, size))
    component = connected_components(links, directed=False)[1]
    groups: _Int64 = component[media_id].astype(np.int64)
    return groups


class FixedClips:
    """The clips of a table.

    Attributes:
        rows, starts: Manifest row and first frame of each.
    """

    def __init__(self, spacing: Spacing, rule: FixedOffsets) -> None:
        manifest = spacing.manifest
        media = _MediaNames(manifest)
        by_medium = np.argsort(manifest.media_id, kind="stable")
        sorted_ids = manifest.media_id[by_medium]
        found = []
        for line in rule.lines:
            media_id = media.find(line, rule)
            begin, end = np.searchsorted(sorted_ids, [media_id, media_id + 1])
            rows = by_medium[begin:end]
            times = spacing.times(media_id)
            frame = times.nearest_frame(line.start)
            first = manifest.first_frame[rows]
            holding = rows[(first <= frame) & (frame < first + spacing.num_starts(rows))]
            is_near = times.start_seconds <= line.start + ANNOTATION_TOLERANCE and line.start < times.stop_seconds
            if not len(holding) or not is_near:
                raise ManifestError(
                    f"no row of {line.path!r} holds a clip that starts at {float(line.start):g} s",
                    path=rule.table,
                    row=line.line,
                    row_name="line",
                    remedy="Take the line out, or ask for fewer frames",
                )
            found.append((int(holding[0]), frame))
        self.rows: _Int64 = np.array([row for row, _ in found])
        self.starts: _Int64 = np.array([frame for _, frame in found])
        self._unit = Fraction(1, math.lcm(*(line.offset.denominator for line in rule.lines)))
        self._ticks: _Int64 = np.array([int(line.offset / self._unit) for line in rule.lines], np.int64)
        self._labels: _Int64 = np.array([rule.labels.label(line.offset) for line in rule.lines], np.int64)

    def induced(self, clips: _Int64) -> Induced:
        """Offsets and labels of some of them."""
        return Induced(self._ticks[clips], self._unit, np.zeros(len(clips), np.bool_), self._labels[clips])


class _MediaNames:
    """Finds media by path, or by name with or without ending."""

    def __init__(self, manifest: Manifest) -> None:
        self._found: dict[str, list[tuple[str, int]]] = {}
        for media_id in np.unique(manifest.media_id).tolist():
            path = manifest.media(media_id).path
            name = os.path.basename(path)
            for key in {name, os.path.splitext(name)[0]}:
                self._found.setdefault(key, []).append((path, media_id))

    def find(self, line: FixedOffset, rule: FixedOffsets) -> int:
        """The medium that a line names."""
        end = os.path.normpath(line.path)
        media = [
            media_id
            for path, media_id in self._found.get(os.path.basename(end), [])
            if any(name == end or name.endswith(f"{os.sep}{end}") for name in (path, os.path.splitext(path)[0]))
        ]
        if len(media) != 1:
            raise ManifestError(
                f"{line.path!r} names {len(media) or 'none'} of the manifest's media",
                path=rule.table,
                row=line.line,
                row_name="line",
                remedy="Write the paths as in the annotations",
            )
        return media[0]
