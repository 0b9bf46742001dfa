"""Where windows can start in rows, and which of a medium's frames they take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from avloader.manifest import Manifest
from avloader.timeline import FrameTimes

__all__ = ["Spacing"]

_MOST_GRIDS = 256  # tables of uneven frames that are kept

_Int64 = npt.NDArray[np.int64]


class Spacing:
    """Where windows can start, and which frames they take.

    Where frames are evenly spaced, a window that starts at frame s takes the frames s + offset[k], and the next one
    starts at s + step, the same for all media of a kind: arithmetic on columns. Only `fps` on uneven frames needs their
    table. At another speed than 1 the frames of a window lie that many times as far apart.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        num_frames: int,
        stride: int,
        fps: Fraction | None,
        speed: Fraction = Fraction(1),
    ) -> None:
        self.manifest = manifest
        self._num_frames = num_frames
        self._instant_seconds: Fraction | None = None
        self._kind: _Int64 | None = None
        if fps is None:
            self._periods: list[Fraction | None] = [stride * speed]
        else:
            rates = manifest.media_rates
            self._instant_seconds = stride / fps * speed
            self._periods = [None if frame is None else self._instant_seconds / frame for frame in rates.frame_seconds]
            self._kind = rates.kind
        self._is_uneven = np.array([period is None for period in self._periods])
        self._spans = np.array([self._offset(period, self._num_frames - 1) for period in self._periods], np.int64)
        self._steps = np.array([max(self._offset(period, self._num_frames), 1) for period in self._periods], np.int64)
        self._grids: dict[int, _Grid] = {}

    def num_starts(self, rows: _Int64) -> _Int64:
        """How many frames of each row a window can start at, negative where it is much too short."""
        first, stop = self.manifest.first_frame[rows], self.manifest.stop_frame[rows]
        result = stop - first - self._of_kind(self._spans, rows)
        for places, grid in self._uneven(rows):
            result[places] = np.searchsorted(grid.last, stop[places]) - first[places]
        return result

    def first_starts(self, rows: _Int64) -> _Int64:
        """The first frame of each row."""
        first: _Int64 = self.manifest.first_frame[rows]
        return first

    def starts_with_room(self, rows: _Int64, lowest: _Int64, highest: _Int64, unit: Fraction) -> tuple[_Int64, _Int64]:
        """First start and number of those from which sound can be moved by `lowest` ... `highest` units of seconds.

        That is, without leaving the time between the first and the last start of the row.
        """
        first, num_starts = self.first_starts(rows), self.num_starts(rows)
        begin, end = first.copy(), first + num_starts
        for places, frame_seconds, times in self._in_time(rows):
            low, high = lowest[places], highest[places]
            if times is None:
                begin[places] += np.maximum(_ceil_times(-low, unit / frame_seconds), 0)
                end[places] -= np.maximum(_ceil_times(high, unit / frame_seconds), 0)
                continue
            pts, per_tick = _table(times), unit / times.time_base
            earliest = pts[begin[places]] + _ceil_times(-low, per_tick)
            latest = pts[np.maximum(end[places] - 1, 0)] - _ceil_times(high, per_tick)
            begin[places] = np.maximum(begin[places], np.searchsorted(pts, earliest, side="left"))
            end[places] = np.minimum(end[places], np.searchsorted(pts, latest, side="right"))
        return begin, np.minimum(end - begin, num_starts)

    def have_lonely_starts(self, rows: _Int64, num_starts: _Int64, guard: Fraction) -> npt.NDArray[np.bool_]:
        """Whether one of the first `num_starts` starts of each row has no other one that is `guard` seconds away."""
        first = self.first_starts(rows)
        result = num_starts <= 0
        for places, frame_seconds, times in self._in_time(rows):
            if times is None:
                result[places] |= num_starts[places] < 2 * max(math.ceil(guard / frame_seconds), 1)
                continue
            pts, distance = _table(times), max(math.ceil(guard / times.time_base), 1)
            last = np.maximum(first[places] + num_starts[places] - 1, 0)
            with_earlier = np.searchsorted(pts, pts[first[places]] + distance, side="left")
            without_later = np.searchsorted(pts, pts[last] - distance, side="right")
            result[places] |= with_earlier > without_later
        return result

    def distant_starts(self, rows: _Int64, starts: _Int64, guard: Fraction) -> tuple[_Int64, _Int64, _Int64]:
        """Starts that are at least `guard` seconds from `starts`: how many before, the next after, how many after."""
        first, stop = self.first_starts(rows), self.first_starts(rows) + self.num_starts(rows)
        before, after = np.empty_like(first), np.empty_like(first)
        for places, frame_seconds, times in self._in_time(rows):
            if times is None:
                distance = max(math.ceil(guard / frame_seconds), 1)
                before[places], after[places] = starts[places] - distance + 1, starts[places] + distance
                continue
            pts, distance = _table(times), max(math.ceil(guard / times.time_base), 1)
            before[places] = np.searchsorted(pts, pts[starts[places]] - distance, side="right")
            after[places] = np.searchsorted(pts, pts[starts[places]] + distance, side="left")
        return np.maximum(before - first, 0), after, np.maximum(stop - after, 0)

    def _in_time(self, rows: _Int64) -> Iterator[tuple[_Int64, Fraction, FrameTimes | None]]:
        """The places in `rows` of rows whose frames are spaced alike: seconds of a frame, or else a table of times."""
        rates = self.manifest.media_rates
        kinds = rates.kind[self.manifest.media_id[rows]]
        for kind in np.unique(kinds).tolist():
            places, frame_seconds = np.flatnonzero(kinds == kind), rates.frame_seconds[kind]
            if frame_seconds is not None:
                yield places, frame_seconds, None
                continue
            for group, media_id in self._by_medium(rows, places):
                yield group, Fraction(0), self.times(media_id)

    def num_windows(self, rows: _Int64, first: _Int64, num_starts: _Int64) -> _Int64:
        """How many windows each row holds if they follow one another from `first` on."""
        result = -(-np.maximum(num_starts, 0) // self._of_kind(self._steps, rows))
        for places, grid in self._uneven(rows):
            facts = zip(places.tolist(), first[places].tolist(), num_starts[places].tolist(), strict=True)
            for place, begin, length in facts:
                result[place] = sum(1 for _ in grid.walk(begin, begin + length))
        return result

    def window_starts(self, rows: _Int64, first: _Int64, windows: _Int64) -> _Int64:
        """First frames of windows numbered in their rows, from `first` on."""
        result = first + windows * self._of_kind(self._steps, rows)
        for places, grid in self._uneven(rows):
            for place in places.tolist():
                walk = grid.walk(int(first[place]), int(self.manifest.stop_frame[rows[place]]))
                result[place] = next(itertools.islice(walk, int(windows[place]), None))
        return result

    def frames(self, rows: _Int64, starts: _Int64) -> _Int64:
        """The frames of the windows that start at `starts`, [shape=(len(rows), num_frames)]."""
        kinds = np.zeros(len(rows), np.int64) if self._kind is None else self._kind[self.manifest.media_id[rows]]
        result = np.repeat(starts[:, None], self._num_frames, axis=1)
        for kind in np.unique(kinds).tolist():
            period = self._periods[kind]
            if period is not None:
                offsets = [self._offset(period, number) for number in range(self._num_frames)]
                result[kinds == kind] += np.array(offsets, np.int64)
        for places, grid in self._uneven(rows):
            result[places] = grid.nearest(starts[places, None], range(self._num_frames))
        return result

    def needed_frames(self, row: int, extra_frames: Callable[[Fraction], int]) -> int:
        """Source frames that a short row would need; on uneven frames as many as at their average rate.

        Args:
            row: Manifest row.
            extra_frames: How many it needs beside those of a window, given the seconds of a frame.
        """
        media_id = int(self.manifest.media_id[row])
        kind = 0 if self._kind is None else int(self._kind[media_id])
        rates = self.manifest.media_rates
        time_kind = int(rates.kind[media_id])
        frame_seconds = rates.frame_seconds[time_kind] or 1 / rates.average_rate[time_kind]
        extra = extra_frames(frame_seconds)
        if self._periods[kind] is not None:
            needed = int(self._spans[kind]) + 1 + extra
        else:
            assert self._instant_seconds is not None
            needed = self._offset(self._instant_seconds / frame_seconds, self._num_frames - 1) + 1 + extra
        # Uneven frames may be fewer in the same time than on average.
        return max(needed, self.row_length(row) + 1)

    def row_length(self, row: int) -> int:
        """Frames of a row."""
        return int(self.manifest.stop_frame[row] - self.manifest.first_frame[row])

    def times(self, media_id: int) -> FrameTimes:
        """When the frames of a medium are shown."""
        video = self.manifest.media(media_id).video
        assert video is not None
        return video.times

    @staticmethod
    def _offset(period: Fraction | None, number: int) -> int:
        """The frame nearest to instant `number`, `period` frames apart; the earlier of two."""
        return 0 if period is None else max(math.ceil(number * period - Fraction(1, 2)), 0)

    def _of_kind(self, values: _Int64, rows: _Int64) -> _Int64:
        if len(values) == 1 or self._kind is None:
            return values[:1]  # one for all, by broadcasting
        of_row: _Int64 = values[self._kind[self.manifest.media_id[rows]]]
        return of_row

    def _uneven(self, rows: _Int64) -> Iterator[tuple[_Int64, _Grid]]:
        """The places in `rows` of rows that need the table of their medium, medium by medium."""
        if self._kind is None or not self._is_uneven.any():
            return
        places = np.flatnonzero(self._is_uneven[self._kind[self.manifest.media_id[rows]]])
        for group, media_id in self._by_medium(rows, places):
            yield group, self._grid(media_id)

    def _by_medium(self, rows: _Int64, places: _Int64) -> Iterator[tuple[_Int64, int]]:
        """These places in `rows`, medium by medium."""
        if not len(places):
            return
        media = self.manifest.media_id[rows[places]]
        order = np.argsort(media, kind="stable")
        distinct, begins = np.unique(media[order], return_index=True)
        for media_id, group in zip(distinct.tolist(), np.split(places[order], begins[1:]), strict=True):
            yield group, media_id

    def _grid(self, media_id: int) -> _Grid:
        if media_id not in self._grids:
            if len(self._grids) >= _MOST_GRIDS:
                self._grids.clear()
            assert self._instant_seconds is not None
            self._grids[media_id] = _Grid(self.times(media_id), self._instant_seconds, self._num_frames)
        return self._grids[media_id]


class _Grid:
    """Instants at a constant rate on unevenly spaced frames, in integers.

    Attributes:
        last: For a window that starts at each frame, the frame nearest to its last instant; the number of frames if
            that lies more than half a frame after the medium's last frame.
    """

    def __init__(self, times: FrameTimes, instant_seconds: Fraction, num_frames: int) -> None:
        self._pts = times.pts_of(np.arange(times.num_frames))
        ends = np.append(self._pts[1:], self._pts[-1] + times.step_pts)
        self._twice_middle = self._pts + ends  # twice the pts half-way to the next frame
        self._instant_pts = instant_seconds / times.time_base
        self._num_frames = num_frames
        frames = np.arange(times.num_frames)
        self.last: _Int64 = self.nearest(frames, [num_frames - 1])
        self._next = np.maximum(self.nearest(frames, [num_frames]), frames + 1)

    def nearest(self, starts: _Int64, instants: Sequence[int]) -> _Int64:
        """The frame nearest to each instant after the frames `starts` (broadcast); the earlier of two."""
        # An integer is less than a rational exactly if it is less than the integer above that.
        later = np.array([math.ceil(2 * number * self._instant_pts) for number in instants], np.int64)
        return np.searchsorted(self._twice_middle, 2 * self._pts[starts] + later)

    def walk(self, first: int, stop: int) -> Iterator[int]:
        """Starts of the windows that follow one another from `first` on, all before `stop`."""
        while first < stop:
            yield first
            first = int(self._next[first])


def _ceil_times(ticks: _Int64, factor: Fraction) -> _Int64:
    """ceil(ticks * factor), exactly."""
    return -((-ticks * factor.numerator) // factor.denominator)


def _table(times: FrameTimes) -> _Int64:
    """The pts of all frames."""
    return times.pts_of(np.arange(times.num_frames)) if times.table is None else times.table
