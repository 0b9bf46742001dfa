"""Tests of exact time."""

from __future__ import annotations

import itertools
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from avloader.timeline import (
    ANNOTATION_TOLERANCE,
    FrameTimes,
    parse_rational,
    parse_seconds,
    pts_to_seconds,
    round_half_up,
    rounding,
    samples_to_seconds,
    seconds_to_samples,
    seconds_to_text,
)

NTSC = Fraction(30000, 1001)
NUM_FRAMES = 100_000


def ntsc_times(num_frames: int = NUM_FRAMES, first_pts: int = 0, origin: Fraction = Fraction(0)) -> FrameTimes:
    return FrameTimes(Fraction(1, 30000), origin, first_pts, 1001, num_frames)


def as_table(times: FrameTimes) -> FrameTimes:
    table = times.pts_of(np.arange(len(times)))
    return FrameTimes(times.time_base, times.origin, times.first_pts, times.step_pts, len(times), table)


def milliseconds(seconds: Fraction) -> Fraction:
    return Fraction(round_half_up(seconds * 1000), 1000)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1/2", 1), ("-1/2", 0), ("3/2", 2), ("-3/2", -1), ("49/100", 0), ("-51/100", -1), ("7", 7), ("-7", -7)],
)
def test_halves_are_rounded_upwards_on_both_sides_of_zero(value: str, expected: int) -> None:
    assert round_half_up(Fraction(value)) == expected


def test_rounding_is_never_off_by_more_than_a_half() -> None:
    for numerator, denominator in itertools.product(range(-60, 61), range(1, 13)):
        value = Fraction(numerator, denominator)
        assert -Fraction(1, 2) < round_half_up(value) - value <= Fraction(1, 2)


def test_samples_and_seconds_convert_there_and_back() -> None:
    for rate in (8000, 44100, 48000):
        for sample in (0, 1, -5, 12345, 10**10 + 7):
            assert seconds_to_samples(samples_to_seconds(sample, rate), rate) == sample
    assert pts_to_seconds(1001, Fraction(1, 30000)) == 1 / NTSC


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("12.345", Fraction(12345, 1000)),
        (" 1e-3 ", Fraction(1, 1000)),
        ("-0.5", Fraction(-1, 2)),
        (0.1, Fraction(1, 10)),
        (3, Fraction(3)),
        (np.float64(2.5), Fraction(5, 2)),
        (Decimal("0.333"), Fraction(333, 1000)),
        (Fraction(1, 3), Fraction(1, 3)),
        ("0e-400", Fraction(0)),
    ],
)
def test_seconds_are_read_exactly(value: object, expected: Fraction) -> None:
    assert parse_seconds(value) == expected


@pytest.mark.parametrize(
    "value",
    ["nan", "inf", "-inf", float("nan"), float("inf"), "1e999999", "1e-999999", "1e19", "", "abc", "1:30", None, True],
)
def test_what_is_no_plausible_number_of_seconds_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"seconds$"):
        parse_seconds(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (Fraction(3, 2), "1.5"),
        (1 / NTSC, "0.033366667"),
        (Fraction(-1, 4), "-0.25"),
        (Fraction(10), "10"),
        (Fraction(0), "0"),
        (Fraction(-1, 10**10), "0"),
    ],
)
def test_seconds_are_written_to_the_nanosecond_without_trailing_zeros(seconds: Fraction, text: str) -> None:
    assert seconds_to_text(seconds) == text
    assert abs(parse_seconds(text) - seconds) <= Fraction(1, 2 * 10**9)


def test_rates_are_read_as_rationals() -> None:
    assert parse_rational("30000/1001") == NTSC
    assert parse_rational("29.97") == Fraction(2997, 100)
    assert parse_rational(25) == 25
    assert parse_rational(12.5) == Fraction(25, 2)


@pytest.mark.parametrize("value", ["0", "-25", "1/0", "nan", "inf", "", "fast", None])
def test_a_rate_that_is_not_positive_and_finite_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"number$"):
        parse_rational(value)


@pytest.mark.parametrize("times", [ntsc_times(), as_table(ntsc_times())], ids=["constant", "table"])
def test_adjacent_intervals_rounded_to_milliseconds_share_no_frame_and_lose_none(times: FrameTimes) -> None:
    # Every frame's own time as a CSV would give it, at each bound.
    bounds = [milliseconds(times.seconds(frame)) for frame in range(0, NUM_FRAMES, 7)]
    expected_first = range(0, NUM_FRAMES, 7)
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        assert times.frames_between(start, end) == (expected_first[index], expected_first[index + 1])


def test_a_millisecond_start_and_end_select_the_frames_that_exact_ones_select() -> None:
    times = ntsc_times()
    for frame in range(NUM_FRAMES):
        exact = times.seconds(frame)
        assert times.first_frame_from(milliseconds(exact) - ANNOTATION_TOLERANCE) == frame


def test_the_tolerance_is_half_a_millisecond_at_both_bounds() -> None:
    times = FrameTimes(Fraction(1, 10**6), Fraction(0), 0, 40_000, 10)
    tick = Fraction(1, 10**6)
    at = times.seconds(3)
    assert times.frames_between(at + ANNOTATION_TOLERANCE, None)[0] == 3
    assert times.frames_between(at + ANNOTATION_TOLERANCE + tick, None)[0] == 4
    assert times.frames_between(Fraction(0), at + ANNOTATION_TOLERANCE)[1] == 3
    assert times.frames_between(Fraction(0), at + ANNOTATION_TOLERANCE + tick)[1] == 4


def test_a_frame_on_the_boundary_belongs_to_the_next_interval() -> None:
    times = FrameTimes(Fraction(1, 25), Fraction(0), 0, 1, 100)
    assert times.frames_between(Fraction(0), Fraction(1)) == (0, 25)
    assert times.frames_between(Fraction(1), Fraction(2)) == (25, 50)


def test_an_interval_outside_the_medium_is_cut_or_empty() -> None:
    times = FrameTimes(Fraction(1, 25), Fraction(0), 0, 1, 100)
    assert times.frames_between(Fraction(-5), Fraction(500)) == (0, 100)
    assert times.frames_between(Fraction(3), None) == (75, 100)
    first, stop = times.frames_between(Fraction(500), None)
    assert first == stop == 100
    first, stop = times.frames_between(Fraction(2), Fraction(1))
    assert first == stop


@pytest.mark.parametrize(("first_pts", "origin"), [(0, 0), (2002, 0), (-5005, 0), (7, Fraction(1, 17))])
def test_a_table_and_a_constant_spacing_answer_alike(first_pts: int, origin: Fraction) -> None:
    constant = ntsc_times(200, first_pts, Fraction(origin))
    table = as_table(constant)
    assert (constant.is_constant, table.is_constant) == (True, False)
    assert len(constant) == len(table) == 200
    assert constant.start_seconds == table.start_seconds
    assert constant.stop_seconds == table.stop_seconds
    instants = [Fraction(n, 997) - 1 for n in range(8000)] + [constant.seconds(frame) for frame in range(200)]
    for instant in instants:
        assert constant.first_frame_from(instant) == table.first_frame_from(instant)
        assert constant.nearest_frame(instant) == table.nearest_frame(instant)
    np.testing.assert_array_equal(constant.pts_of([0, 199, 5]), table.pts_of([0, 199, 5]))


def test_the_nearest_frame_is_the_one_that_a_search_of_all_finds() -> None:
    times = FrameTimes.from_pts(
        [3, 10, 11, 40, 41, 90], time_base=Fraction(1, 10), origin=Fraction(1, 5), last_duration=4
    )
    for step in range(-40, 400):
        instant = Fraction(step, 40)
        distances = [abs(times.seconds(frame) - instant) for frame in range(len(times))]
        assert times.nearest_frame(instant) == distances.index(min(distances))


def test_equal_spacing_is_found_and_stored_as_constant() -> None:
    times = FrameTimes.from_pts([5, 8, 11], time_base=Fraction(1), origin=Fraction(0), last_duration=7)
    assert (times.table, times.first_pts, times.step_pts, len(times)) == (None, 5, 3, 3)


def test_the_last_frame_of_a_table_lasts_as_long_as_stated_or_as_the_one_before() -> None:
    stated = FrameTimes.from_pts([0, 1, 5], time_base=Fraction(1), origin=Fraction(0), last_duration=9)
    unknown = FrameTimes.from_pts([0, 1, 5], time_base=Fraction(1), origin=Fraction(0), last_duration=0)
    single = FrameTimes.from_pts([4], time_base=Fraction(1), origin=Fraction(0), last_duration=0)
    assert (stated.stop_seconds, unknown.stop_seconds, single.stop_seconds) == (14, 9, 5)


@pytest.mark.parametrize(("pts", "message"), [([], "at least one"), ([1, 1], "increasing"), ([2, 1], "increasing")])
def test_pts_that_are_no_frame_times_are_refused(pts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameTimes.from_pts(pts, time_base=Fraction(1), origin=Fraction(0), last_duration=1)


@pytest.mark.parametrize("index", [-1, 200])
def test_a_frame_that_does_not_exist_has_no_pts(index: int) -> None:
    for times in (ntsc_times(200), as_table(ntsc_times(200))):
        with pytest.raises(IndexError, match="outside"):
            times.pts(index)
        with pytest.raises(IndexError, match="not all inside"):
            times.pts_of([0, index])


@pytest.mark.parametrize("scale", [Fraction(1), Fraction(48000, 90000), Fraction(10**9, 30000), Fraction(7, 3)])
@pytest.mark.parametrize("offset", [0, Fraction(1, 2), Fraction(-1001, 30000), Fraction(22050, 7), Fraction(-3, 2)])
def test_rounding_in_one_step_is_the_only_rounding_rule(scale: Fraction, offset: Fraction) -> None:
    rounded = rounding(scale, offset)
    for value in (*range(-50, 50), 10**9 + 7, -(10**9)):
        assert rounded(value) == round_half_up(value * scale + offset)


@pytest.mark.parametrize(
    "text", ["0", "7", "007", "1.5", "12.345678901", "0.040", "99999999999999.999", " 1.5 ", "5.", ".5"]
)
def test_plain_decimals_are_read_as_all_others(text: str) -> None:
    assert parse_seconds(text) == Fraction(Decimal(text.strip()))


@pytest.mark.parametrize("text", ["", ".", "1.2.3", "1.-5", "1,5", "--1", "1.5s", "nan"])
def test_what_only_begins_like_a_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        parse_seconds(text)
