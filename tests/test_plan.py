"""The plan against a slow, obvious version in fractions; order, randomness and shares of ranks."""

from __future__ import annotations

import bisect
import csv
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from conftest import TruthMedia

from avloader.epochs import Clip, batches, num_batches
from avloader.errors import ManifestError
from avloader.manifest import Manifest, build_manifest
from avloader.plan import Plan, PlanOptions, ShortRow

MEDIA = ("mp4_25", "mp4_29_97", "mkv_aac", "variable_rate", "picture_late")
INTERVALS = [("", ""), ("0", "0.5"), ("1.01", "3.3"), ("3.3", "3.4"), ("4", "4.05"), ("2.5", "6"), ("8.5", "99")]


def build(folder: Path, truth_media: TruthMedia, lines: list[tuple[str, ...]]) -> Manifest:
    table = folder / "clips.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "start", "end", "label", "av_offset"))
        writer.writerows((truth_media[name].name, *rest) for name, *rest in lines)
    return build_manifest(table, media_root=truth_media.folder, output=folder / "manifest", progress=False)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, truth_media: TruthMedia) -> Manifest:
    """Every interval of every medium, the media taking turns."""
    lines = [(name, *interval, str(number), "0.04") for number, interval in enumerate(INTERVALS) for name in MEDIA]
    return build(tmp_path_factory.mktemp("mixed"), truth_media, lines)


@pytest.fixture(scope="module")
def constant(tmp_path_factory: pytest.TempPathFactory, truth_media: TruthMedia) -> Manifest:
    """Forty rows of one medium at 25 frames per second."""
    lines = [("mp4_25", str(number / 8), str(number / 8 + 1.5), "3", "") for number in range(40)]
    return build(tmp_path_factory.mktemp("constant"), truth_media, lines)


def slow_windows(manifest: Manifest, row: int, options: PlanOptions) -> list[tuple[int, ...]]:
    """Frames of the windows of a row, "all" and "first" and "center"; for "random" all that are allowed."""
    facts = manifest.row(row)
    video = manifest.media(facts.media_id).video
    assert video is not None
    first, stop = facts.first_frame, facts.stop_frame
    shown = {frame: video.times.seconds(frame) for frame in range(first, stop)}
    half_frame_after = shown[stop - 1] + (facts.stop_seconds - shown[stop - 1]) / 2
    fps, length = options.fps, options.num_frames * options.stride

    def nearest(seconds: Fraction) -> int:
        after = bisect.bisect_left(range(first, stop), seconds, key=shown.__getitem__)
        neighbours = [frame for frame in (first + after - 1, first + after) if frame in shown]
        return min(neighbours, key=lambda frame: (abs(shown[frame] - seconds), frame))

    def window(start: int) -> tuple[int, ...]:
        instants = range(0, length, options.stride)
        if fps is None:
            return tuple(start + instant for instant in instants)
        return tuple(nearest(shown[start] + instant / fps) for instant in instants)

    def fits(start: int) -> bool:
        last = length - options.stride
        return start + last < stop if fps is None else shown[start] + last / fps <= half_frame_after

    starts = [start for start in shown if fits(start)]
    if options.clips == "first":
        starts = starts[:1]
    elif options.clips == "center":
        starts = starts[(len(starts) - 1) // 2 :][:1]
    elif options.clips == "all":
        chain = starts[:1]
        while chain:
            after = chain[-1] + length
            if fps is not None:
                instant = shown[chain[-1]] + length / fps
                after = max(nearest(instant), chain[-1] + 1) if instant <= half_frame_after else stop
            if after not in starts:
                break
            chain.append(after)
        starts = chain
    return [window(start) for start in starts]


def all_clips(plan: Plan) -> list[Clip]:
    return [plan.clip(position) for position in range(len(plan))]


FPS = [None, Fraction(25), Fraction(10), Fraction(24000, 1001), Fraction(59, 2), Fraction(90)]


@pytest.mark.parametrize("clips", ["all", "first", "center"])
@pytest.mark.parametrize("fps", FPS, ids=str)
@pytest.mark.parametrize(("num_frames", "stride"), [(1, 1), (5, 3), (16, 2)])
def test_windows_are_those_of_the_slow_version(
    mixed: Manifest, clips: Any, fps: Fraction | None, num_frames: int, stride: int
) -> None:
    options = PlanOptions(num_frames=num_frames, stride=stride, fps=fps, clips=clips, audio_seconds=Fraction(1))
    plan = Plan(mixed, options)
    expected = [(row, frames) for row in range(len(mixed)) for frames in slow_windows(mixed, row, options)]
    assert [(clip.row, clip.frames) for clip in all_clips(plan)] == expected
    kept = {row for row, _ in expected}
    assert [short.row for short in plan.short_rows] == [row for row in range(len(mixed)) if row not in kept]


@pytest.mark.parametrize("fps", [None, Fraction(10), Fraction(90)], ids=str)
def test_random_windows_are_among_all_that_fit_and_differ_between_epochs(mixed: Manifest, fps: Fraction | None) -> None:
    options = PlanOptions(num_frames=5, stride=2, fps=fps, clips="random", audio_seconds=Fraction(1), seed=3)
    epochs = [all_clips(Plan(mixed, options, epoch=epoch)) for epoch in range(3)]
    for clips in epochs:
        assert all(clip.frames in slow_windows(mixed, clip.row, options) for clip in clips)
    assert len({tuple(clip.frames for clip in clips) for clips in epochs}) == 3
    assert len({tuple(clip.row for clip in clips) for clips in epochs}) == 1


def test_random_windows_reach_every_start_that_fits(constant: Manifest) -> None:
    options = PlanOptions(num_frames=16, stride=2, clips="random")
    drawn = {Plan(constant, options, epoch=epoch).clip(0).frames for epoch in range(40)}
    assert drawn == set(slow_windows(constant, 0, options))


def test_sound_starts_with_the_first_delivered_frame_less_the_offset(mixed: Manifest) -> None:
    for clip in all_clips(Plan(mixed, PlanOptions(fps=Fraction(12), num_frames=3))):
        video = mixed.media(clip.media_id).video
        assert video is not None
        assert clip.audio_start == video.times.seconds(clip.frames[0]) - Fraction(4, 100)
        assert clip.offset_seconds == 0
        assert clip.label == mixed.label[clip.row]
        assert clip.media_id == clip.audio_id == mixed.media_id[clip.row]


def test_the_length_of_the_sound_follows_the_frames_unless_given(constant: Manifest, mixed: Manifest) -> None:
    plan = Plan(constant, PlanOptions(num_frames=10, stride=2))
    assert plan.clip_seconds == plan.audio_seconds == Fraction(20, 25)
    plan = Plan(mixed, PlanOptions(num_frames=10, stride=2, fps=Fraction(30000, 1001)))
    assert plan.clip_seconds == plan.audio_seconds == Fraction(20 * 1001, 30000)
    plan = Plan(constant, PlanOptions(num_frames=10, audio_seconds=Fraction("0.96")))
    assert plan.clip_seconds == Fraction(10, 25)
    assert plan.audio_seconds == Fraction(96, 100)
    assert Plan(mixed, PlanOptions(num_frames=2, audio_seconds=Fraction(1))).clip_seconds is None


def test_mixed_rates_without_fps_or_audio_length_name_two_rows(mixed: Manifest) -> None:
    with pytest.raises(ManifestError, match=r"row 0 has 25 frames/s .*row 1 has 30000/1001 frames/s .*fps=.*audio_s"):
        Plan(mixed, PlanOptions())


def test_a_variable_rate_alone_counts_as_mixed(tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, truth_media, [("variable_rate", "", "", "", "")])
    with pytest.raises(ManifestError, match="row 0 has a variable frame rate"):
        Plan(manifest, PlanOptions())


def test_short_rows_say_what_they_have_and_what_is_needed(mixed: Manifest) -> None:
    plan = Plan(mixed, PlanOptions(num_frames=5, stride=3, audio_seconds=Fraction(1)))
    line = 2 + 3 * len(MEDIA)  # [3.3, 3.4) of 25 frames/s: shown at 3.32 and 3.36
    row = next(row for row in range(len(mixed)) if mixed.row(row).line == line)
    assert ShortRow(row=row, num_frames=2, needed_frames=13) in list(plan.short_rows)
    plan = Plan(mixed, PlanOptions(num_frames=8, fps=Fraction(5)))
    for short in plan.short_rows:
        assert short.needed_frames > short.num_frames


def test_no_clip_at_all_is_an_error(constant: Manifest) -> None:
    with pytest.raises(ManifestError, match="it spans 1000 frames, rows have up to 38"):
        Plan(constant, PlanOptions(num_frames=1000))


def test_shuffling_changes_the_order_and_nothing_else(constant: Manifest) -> None:
    def content(clips: list[Clip]) -> set[tuple[int, tuple[int, ...], Fraction]]:
        return {(clip.row, clip.frames, clip.audio_start) for clip in clips}

    for windows in ("all", "random"):
        plain = all_clips(Plan(constant, PlanOptions(clips=windows, num_frames=4), epoch=2))
        shuffled = all_clips(Plan(constant, PlanOptions(clips=windows, num_frames=4, shuffle=True), epoch=2))
        assert content(plain) == content(shuffled)
        assert [clip.row for clip in plain] != [clip.row for clip in shuffled]
        assert [clip.position for clip in shuffled] == list(range(len(shuffled)))


def test_the_order_follows_seed_and_epoch(constant: Manifest) -> None:
    def order(seed: int, epoch: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
        plan = Plan(constant, PlanOptions(num_frames=4, shuffle=True, seed=seed), epoch=epoch)
        return tuple((clip.row, clip.frames) for clip in all_clips(plan))

    assert order(1, 0) == order(1, 0)
    assert len({order(1, 0), order(1, 1), order(2, 0)}) == 3


def test_a_clip_does_not_depend_on_which_others_were_asked_for(constant: Manifest) -> None:
    options = PlanOptions(num_frames=2, clips="all", shuffle=True)
    clips = all_clips(Plan(constant, options))
    assert len(clips) > 600  # more than one block
    plan = Plan(constant, options)
    assert [plan.clip(position) for position in (700, 3, 301, 4)] == [clips[position] for position in (700, 3, 301, 4)]


@pytest.mark.parametrize("position", [-1, 40])
def test_positions_outside_the_epoch_are_refused(constant: Manifest, position: int) -> None:
    with pytest.raises(IndexError, match=r"outside \[0, 40\)"):
        Plan(constant, PlanOptions(clips="first")).clip(position)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"num_frames": 0}, ValueError, "num_frames must be at least 1, got 0"),
        ({"num_frames": 2.0}, TypeError, "num_frames must be an integer, got 2.0"),
        ({"stride": -1}, ValueError, "stride must be at least 1"),
        ({"seed": 2**64}, ValueError, "seed must be in"),
        ({"seed": True}, TypeError, "seed must be an integer"),
        ({"fps": 0}, ValueError, "fps must be a positive number"),
        ({"fps": "fast"}, ValueError, "fps must be a positive number"),
        ({"clips": "some"}, ValueError, "clips must be one of all, first, center, random, got 'some'"),
        ({"shuffle": 1}, TypeError, "shuffle must be True or False"),
        ({"audio_seconds": -1}, ValueError, "audio_seconds must be positive"),
        ({"audio_seconds": float("nan")}, ValueError, "audio_seconds must be a positive number"),
    ],
)
def test_wrong_options_name_the_argument_and_what_is_allowed(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        PlanOptions(**options)


def test_rates_and_lengths_may_be_written_in_any_exact_form() -> None:
    options = PlanOptions(fps="30000/1001", audio_seconds=0.1)  # type: ignore[arg-type]
    assert (options.fps, options.audio_seconds) == (Fraction(30000, 1001), Fraction(1, 10))


def shares(num_clips: int, batch_size: int, world_size: int, **more: Any) -> list[list[range]]:
    return [
        list(batches(num_clips, batch_size=batch_size, rank=rank, world_size=world_size, **more))
        for rank in range(world_size)
    ]


def interleaved(ranks: list[list[range]]) -> Iterator[int]:
    for step in itertools.zip_longest(*ranks, fillvalue=range(0)):
        yield from itertools.chain(*step)


@pytest.mark.parametrize("num_clips", [0, 1, 5, 24, 25, 47])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_deliver_every_position_once_in_order(num_clips: int, batch_size: int, world_size: int) -> None:
    ranks = shares(num_clips, batch_size, world_size)
    assert list(interleaved(ranks)) == list(range(num_clips))
    sizes = [[len(batch) for batch in rank] for rank in ranks]
    assert all(0 < size <= batch_size for rank in sizes for size in rank)
    assert max(map(sum, sizes)) - min(map(sum, sizes)) <= 1


@pytest.mark.parametrize("last_batch", ["partial", "drop"])
@pytest.mark.parametrize("start", [0, 6, 13, 100])
def test_num_batches_counts_what_batches_yields(last_batch: Any, start: int) -> None:
    for num_clips, batch_size, world_size in itertools.product((0, 1, 23, 24, 25), (1, 4), (1, 2, 3)):
        ranks = shares(num_clips, batch_size, world_size, last_batch=last_batch, start=start)
        counts = [
            num_batches(
                num_clips, batch_size=batch_size, rank=rank, world_size=world_size, last_batch=last_batch, start=start
            )
            for rank in range(world_size)
        ]
        assert counts == list(map(len, ranks))


def test_dropping_leaves_out_the_last_short_step_of_all_ranks() -> None:
    assert shares(23, 4, 2, last_batch="drop") == [[range(4), range(8, 12)], [range(4, 8), range(12, 16)]]


def test_a_run_resumes_with_another_number_of_ranks() -> None:
    before = list(interleaved([rank[:2] for rank in shares(50, 4, 3)]))
    after = list(interleaved(shares(50, 5, 2, start=len(before))))
    assert before + after == list(range(50))


@pytest.mark.parametrize(
    "arguments", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"last_batch": "pad"}, {"start": -1}, {"rank": -1}]
)
def test_wrong_shares_are_refused_before_the_first_batch(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(arguments)))):
        batches(10, **({"batch_size": 2} | arguments))
