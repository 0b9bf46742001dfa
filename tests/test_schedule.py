"""Batches are cut into pieces and put together again: nothing is lost, and no lane waits for one that waits for it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, cast

import pytest

from avloader.reading import ClipRead, Route
from avloader.routes import choose_cpu_share, choose_routes, goes_to_cpu
from avloader.schedule import Piece, RouteOptions, Schedule

SMALL, LARGE = (64, 48), (128, 96)
ROUTES: dict[Route, RouteOptions] = {
    None: RouteOptions(num_lanes=1, piece_clips=4),
    SMALL: RouteOptions(num_lanes=3, piece_clips=4),
    LARGE: RouteOptions(num_lanes=2, piece_clips=2),
}


def clip(number: int, route: Route) -> ClipRead:
    return cast(ClipRead, SimpleNamespace(row=number, route=route))  # a schedule looks at nothing else


def schedule_of(batches: Sequence[Sequence[ClipRead]], announced: list[Piece]) -> Schedule:
    return Schedule(batches, routes=ROUTES, route_of=lambda clip: clip.route, batch_size=4, announce=announced.append)


def random_batches(num_clips: int, seed: int) -> list[list[ClipRead]]:
    draw = random.Random(seed)
    clips = [clip(number, draw.choice([None, SMALL, SMALL, SMALL, LARGE])) for number in range(num_clips)]
    return [clips[first : first + 4] for first in range(0, num_clips, 4)]


@pytest.mark.parametrize("seed", range(20))
def test_every_clip_stands_in_one_piece_and_in_its_place(seed: int) -> None:
    batches, announced = random_batches(203, seed), list[Piece]()
    schedule = schedule_of(batches, announced)
    for batch in batches:
        scheduled = schedule.next()
        assert scheduled is not None
        assert list(scheduled.batch.clips) == batch
        found = {
            place: piece.clips[part.first + index]
            for piece in scheduled.pieces
            for part in piece.parts
            if part.batch is scheduled.batch
            for index, place in enumerate(part.places)
        }
        assert [found[place] for place in range(len(batch))] == batch
        assert all(piece.is_closed and piece in announced for piece in scheduled.pieces)
    assert schedule.next() is None
    assert Counter(entry.row for piece in announced for entry in piece.clips) == Counter(range(203))
    for piece in announced:
        assert {entry.route for entry in piece.clips} == {piece.route}
        assert len(piece.clips) <= ROUTES[piece.route].piece_clips


@pytest.mark.parametrize("seed", range(20))
def test_a_lane_is_asked_for_its_pieces_in_its_own_order(seed: int) -> None:
    batches, announced = random_batches(203, seed), list[Piece]()
    schedule = schedule_of(batches, announced)
    asked: list[Piece] = []
    while scheduled := schedule.next():
        asked += [piece for piece in scheduled.pieces if piece not in asked]
    for route, options in ROUTES.items():
        turns = [piece for piece in announced if piece.route == route]
        for lane in range(options.num_lanes):
            own = turns[lane :: options.num_lanes]
            assert [piece for piece in asked if (piece.route, piece.lane) == (route, lane)] == own
            taken: list[Piece] = []
            while pieces := schedule.take(route, lane, 8):
                assert sum(len(piece.clips) for piece in pieces) <= 8
                taken += pieces
            assert taken == own


@pytest.mark.parametrize("other", [SMALL, None], ids=["NVDEC alone", "NVDEC and CPU"])
def test_pieces_are_full_but_at_the_end_of_an_epoch(other: Route) -> None:
    clips = [clip(number, other if number % 2 else SMALL) for number in range(22)]
    epoch = [*(clips[first : first + 4] for first in range(0, 20, 4)), clips[20:]]
    announced: list[Piece] = []
    schedule = schedule_of(epoch * 3, announced)
    while schedule.next():
        pass
    lengths = {route: [len(piece.clips) for piece in announced if piece.route == route] for route in (SMALL, None)}
    if other is None:
        assert lengths == {SMALL: [4, 4, 3] * 3, None: [4, 4, 3] * 3}
    else:
        assert lengths[SMALL] == [4, 4, 4, 4, 4, 2] * 3


def test_a_piece_does_not_wait_for_ever_for_clips_of_a_rare_size() -> None:
    clips = [[clip(4 * number + place, SMALL) for place in range(4)] for number in range(40)]
    clips[3][1] = clip(13, LARGE)
    schedule = schedule_of(clips, [])
    for _ in range(4):
        schedule.next()
    assert schedule.clips_ahead <= 4 * 9


def test_one_piece_is_handed_out_even_if_it_is_longer_than_asked_for() -> None:
    announced: list[Piece] = []
    schedule = schedule_of([[clip(number, SMALL) for number in range(4)]], announced)
    schedule.next()
    assert schedule.take(SMALL, 0, 1) == announced
    assert schedule.take(SMALL, 0, 1) == []


# Which clip goes which way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [Fraction(0), Fraction(1, 3), Fraction(45, 100), Fraction(9, 10), Fraction(1)])
@pytest.mark.parametrize("stride", [1, 2, 3, 7, 16, 64])
def test_the_cpus_share_is_spread_evenly_also_over_the_positions_of_one_rank(share: Fraction, stride: int) -> None:
    for begin in (0, 5, 1000):
        count = sum(goes_to_cpu(begin + stride * number, share) for number in range(1000))
        assert abs(count - 1000 * share) <= 30
    if stride == 1:
        for begin in range(500):
            count = sum(goes_to_cpu(begin + number, share) for number in range(16))
            assert abs(count - 16 * share) < 3


def test_the_cpus_share_grows_with_its_cores() -> None:
    shares = [choose_cpu_share(cores, 7) for cores in (1, 4, 12, 60)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1


def options(**more: Any) -> dict[Route, RouteOptions]:
    given: dict[str, Any] = {
        "clips_of_size": {(1920, 1080): 1000},
        "cpu_fraction": Fraction(0),
        "batch_size": 16,
        "num_frames": 16,
        "output_bytes": 16 * 224 * 224 * 12,
        "num_lanes": 8,
        "memory_limit": None,
    }
    return choose_routes(**(given | more))


def test_one_size_has_all_lanes_and_whole_batches() -> None:
    assert options() == {None: RouteOptions(1, 16), (1920, 1080): RouteOptions(8, 16)}


@pytest.mark.parametrize("limit", [8e9, 4e9, 2e9])
def test_less_memory_means_fewer_clips_at_a_time(limit: float) -> None:
    route = options(memory_limit=int(limit))[1920, 1080]
    clip_bytes = 16 * 1920 * 1080 * 3
    assert route.num_lanes == 8
    assert 1 <= route.piece_clips < 16
    assert route.piece_clips == 1 or 8 * route.piece_clips * clip_bytes < limit


def test_the_cpu_takes_no_more_at_a_time_than_its_share_of_a_batch_where_the_others_take_few() -> None:
    routes = options(cpu_fraction=Fraction(42, 100), memory_limit=4_000_000_000)
    assert routes[1920, 1080].piece_clips == 1
    assert routes[None].piece_clips == 7
    assert options(cpu_fraction=Fraction(42, 100))[None].piece_clips == 16
    assert options(clips_of_size={}, cpu_fraction=Fraction(1))[None].piece_clips == 16


def test_lanes_go_to_the_sizes_by_their_work() -> None:
    routes = options(clips_of_size={(1920, 1080): 600, (640, 360): 600, (320, 240): 3})
    lanes = {route: each.num_lanes for route, each in routes.items()}
    assert lanes[1920, 1080] > lanes[640, 360] >= lanes[320, 240] == 1
    assert routes[320, 240].piece_clips == 1


def test_only_the_commonest_sizes_have_readers() -> None:
    sizes = {(16 * (number + 1), 48): 100 + number for number in range(40)}
    routes = options(clips_of_size=sizes)
    assert len(routes) == 17
    assert all(route is None or sizes[route] >= 124 for route in routes)
