"""Which lane runs which clips: batches are cut into pieces, the pieces of a route go to its lanes in turn.

A route is a way that clips take through the engine: NVDEC for pictures of one size (a reader that is given two sizes
writes the frames of one past the memory of the other), or the CPU. The loader gives every clip its route; here nothing
is chosen by time, so that the same clips go the same way in every run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from avloader.gathering import Gathering, Part
from avloader.reading import ClipRead, ReadBatch, Route

__all__ = ["Piece", "RouteOptions", "Schedule", "Scheduled"]

_PATIENCE = 8  # batches that a piece waits for clips to fill it


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """How the clips of a route are run.

    Attributes:
        num_lanes: Lanes side by side, > 0.
        piece_clips: Clips that a lane runs at a time, > 0.
    """

    num_lanes: int
    piece_clips: int


@dataclass(slots=True, eq=False)
class Piece:
    """Clips that one lane runs at a time.

    Attributes:
        number: Place in the order of all pieces.
        route: The way that its clips take.
        clips: Its clips, in the order of the plan.
        parts: What they are parts of, until it is settled.
        lane: The lane of the route that runs it; -1 as long as further clips may join it.
    """

    number: int
    route: Route
    clips: list[ClipRead] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    lane: int = -1

    @property
    def is_closed(self) -> bool:
        """Whether no further clip joins it."""
        return self.lane >= 0

    def settle(self, read: ReadBatch) -> None:
        """Tell the batches, which hold its clips by now, what is known of them; it no longer knows those batches."""
        for part in self.parts:
            for index, place in enumerate(part.places, part.first):
                part.batch.valid[place] = read.valid[index]
                if index in read.errors:
                    part.batch.errors[place] = read.errors[index]
        self.parts = []

    @property
    def is_settled(self) -> bool:
        """Whether its clips are where they belong."""
        return self.is_closed and not self.parts


@dataclass(slots=True, eq=False)
class Scheduled:
    """A batch, and the pieces that its clips are in.

    Attributes:
        batch: The batch.
        pieces: In their order.
    """

    batch: Gathering
    pieces: list[Piece] = field(default_factory=list)


class Schedule:
    """Cuts batches into pieces, as far ahead as it is told.

    Args:
        batches: The batches, in order.
        routes: Options of every route that a clip may take.
        route_of: The route of a clip.
        batch_size: Clips of a full batch.
        announce: Called with each piece as soon as it is closed.
    """

    def __init__(
        self,
        batches: Iterable[Sequence[ClipRead]],
        *,
        routes: Mapping[Route, RouteOptions],
        route_of: Callable[[ClipRead], Route],
        batch_size: int,
        announce: Callable[[Piece], None],
    ) -> None:
        self._source = iter(batches)
        self._routes, self._route_of, self._batch_size, self._announce = routes, route_of, batch_size, announce
        self._ahead: deque[Scheduled] = deque()
        self._open: dict[Route, tuple[Piece, int]] = {}  # with the number of the batch that it was begun in
        self._pending: dict[tuple[Route, int], deque[Piece]] = {}
        self._turn = dict.fromkeys(routes, 0)
        self._num_pieces = self._num_pulled = 0
        self.clips_ahead = 0
        self.is_exhausted = False

    def pull(self) -> bool:
        """Look at one batch more; False if there is none."""
        batch = next(self._source, None)
        if batch is None:
            self.is_exhausted = True
            for route in list(self._open):
                self._close(route)
            return False
        scheduled = Scheduled(Gathering(batch, self._num_pulled))
        for place, clip in enumerate(batch):
            self._join(scheduled, place, clip)
        for route, (piece, begun) in list(self._open.items()):
            # What a lane does for a piece costs much the same for few clips as for many, and NVDEC's reader even fills
            # short ones up, at the cost of decoding: they end short only with an epoch, or if such clips are rare.
            is_over = len(batch) < self._batch_size or self._num_pulled - begun >= _PATIENCE
            if is_over and piece.clips:
                self._close(route)
        self._ahead.append(scheduled)
        self.clips_ahead += len(batch)
        self._num_pulled += 1
        return True

    def next(self) -> Scheduled | None:
        """The next batch, once no further clip joins its pieces; None after the last."""
        while not self._ahead or not all(piece.is_closed for piece in self._ahead[0].pieces):
            if not self.pull() and not self._ahead:
                return None
        scheduled = self._ahead.popleft()
        self.clips_ahead -= len(scheduled.batch.clips)
        scheduled.pieces.sort(key=lambda piece: piece.number)
        return scheduled

    def take(self, route: Route, lane: int, num_clips: int) -> list[Piece]:
        """Closed pieces of a lane that nobody took, in order, at most so many clips but one piece if there is any."""
        pending = self._pending.get((route, lane), deque())
        taken: list[Piece] = []
        count = 0
        while pending and (not taken or count + len(pending[0].clips) <= num_clips):
            taken.append(pending.popleft())
            count += len(taken[-1].clips)
        return taken

    def _join(self, scheduled: Scheduled, place: int, clip: ClipRead) -> None:
        route = self._route_of(clip)
        if route not in self._open:
            self._open[route] = Piece(self._num_pieces, route), self._num_pulled
            self._num_pieces += 1
        piece, _ = self._open[route]
        if not piece.parts or piece.parts[-1].batch is not scheduled.batch:
            piece.parts.append(Part(scheduled.batch, len(piece.clips)))
            scheduled.pieces.append(piece)
        piece.parts[-1].places.append(place)
        piece.clips.append(clip)
        if len(piece.clips) == self._routes[route].piece_clips:
            self._close(route)

    def _close(self, route: Route) -> None:
        piece, _ = self._open.pop(route)
        piece.lane = self._turn[route]
        self._turn[route] = (piece.lane + 1) % self._routes[route].num_lanes
        self._pending.setdefault((route, piece.lane), deque()).append(piece)
        self._announce(piece)
