"""Out-of-sync sampling: distributions, exact offsets, guards, labels; what is delivered, measured on known media."""

from __future__ import annotations

import csv
import itertools
import wave
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import TruthMedia
from scipy.stats import chisquare
from truth import CATALOG, delay_of, known_sound, linear_frames, linear_sound, linear_window, read_number

from avloader import AVLoader, Manifest, ManifestError, build_manifest
from avloader.batch import AVBatch
from avloader.epochs import Clip
from avloader.offsets import (
    AllPairs,
    BinaryOffsets,
    FixedOffsets,
    GridOffsets,
    OffsetRule,
    OtherClip,
    OtherStart,
    from_itu,
    from_synchformer,
    from_syncnet,
    from_voxceleb2,
)
from avloader.plan import Plan, PlanOptions

MEDIA = ("mp4_25", "mp4_29_97", "mkv_aac", "variable_rate", "picture_late", "mpegts_29_97")
INTERVALS = [("", ""), ("0", "4.5"), ("1.01", "7.3"), ("2.5", "6")]
ITU = (Fraction(-125, 1000), Fraction(45, 1000))


def build(folder: Path, rows: Iterable[Sequence[object]]) -> Manifest:
    """A manifest of rows (path, start, end, label, audio_path, av_offset)."""
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end", "label", "audio_path", "av_offset"])
        writer.writerows([*row, *[""] * (6 - len(row))] for row in rows)
    return build_manifest(folder / "clips.csv", media_root=folder, output=folder / "manifest", progress=False)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, truth_media: TruthMedia) -> Manifest:
    """Every interval of every medium, each medium with another offset of its own."""
    rows = [
        (truth_media[name], *interval, number, "", number / 100)
        for number, name in enumerate(MEDIA)
        for interval in INTERVALS
    ]
    return build(tmp_path_factory.mktemp("offsets"), rows)


def plan_of(manifest: Manifest, rule: OffsetRule | None, *, epoch: int = 0, **options: Any) -> Plan:
    defaults: dict[str, Any] = {"num_frames": 5, "stride": 2, "audio_seconds": Fraction(2, 5), "clips": "random"}
    return Plan(manifest, PlanOptions(offsets=rule, **(defaults | options)), epoch=epoch)


def clips_of(plan: Plan) -> list[Clip]:
    return [clip for clips in plan.clips([range(len(plan))]) for clip in clips]


def start_times(manifest: Manifest, row: int, options: PlanOptions) -> dict[int, Fraction]:
    """Frames of a row at which a window can start, and when they are shown."""
    facts = manifest.row(row)
    times = linear_frames(facts.path).times[: facts.stop_frame]
    video = manifest.media(facts.media_id).video
    assert video is not None
    end = video.times.seconds(facts.stop_frame) if facts.stop_frame < len(video.times) else video.times.stop_seconds
    last = (options.num_frames - 1) * options.stride

    def fits(frame: int) -> bool:
        if options.fps is None:
            return frame + last < facts.stop_frame
        return times[frame] + last / options.fps <= times[-1] + (end - times[-1]) / 2

    return {frame: times[frame] for frame in range(facts.first_frame, facts.stop_frame) if fits(frame)}


def p_value(counts: Iterable[int], expected: Iterable[float] | None = None) -> float:
    counts = np.array(list(counts), np.float64)
    weights = np.ones(len(counts)) if expected is None else np.array(list(expected), np.float64)
    return float(chisquare(counts, weights * counts.sum() / weights.sum()).pvalue)


# The rules by themselves ----------------------------------------------------------------------------------------------

ITEMS = np.arange(200_000)


def test_grid_classes_and_jitter_are_uniform_and_independent() -> None:
    rule = GridOffsets(max_seconds=2, num_classes=21, jitter_seconds=0.05)
    ticks, labels = rule.draw(ITEMS, seed=4, epoch=2)
    assert p_value(np.bincount(labels, minlength=21)) > 0.01
    centres = np.round(2e6 * (labels / 10 - 1)).astype(np.int64)
    assert rule.unit == Fraction(1, 10**6)
    jitter = ticks - centres
    assert (jitter.min(), jitter.max()) == (-50_000, 50_000)  # both ends are reached
    joint = np.histogram2d(labels, jitter, bins=(21, 10))[0]
    assert p_value(joint.ravel()) > 0.01
    for tick, label in zip(ticks[:300].tolist(), labels[:300].tolist(), strict=True):
        assert rule.label(tick * rule.unit) == label


@pytest.mark.parametrize(("max_seconds", "num_classes"), [(2, 21), (Fraction(15, 25), 31), (Fraction(1001, 2000), 4)])
def test_grid_offsets_are_exactly_those_of_the_grid(max_seconds: Fraction, num_classes: int) -> None:
    rule = GridOffsets(max_seconds=max_seconds, num_classes=num_classes)
    ticks, labels = rule.draw(ITEMS[:2000], seed=0, epoch=0)
    exact = [-max_seconds + Fraction(2 * label, num_classes - 1) * max_seconds for label in range(num_classes)]
    assert {tick * rule.unit for tick in ticks.tolist()} == set(exact)
    assert all(tick * rule.unit == exact[label] for tick, label in zip(ticks.tolist(), labels.tolist(), strict=True))


@pytest.mark.parametrize("guard", [0, Fraction(1, 10)])
def test_binary_offsets_are_uniform_within_the_band_and_beyond_its_guard(guard: Fraction) -> None:
    rule = BinaryOffsets(probability=0.3, guard_seconds=guard, max_seconds=1)
    ticks, labels = rule.draw(ITEMS, seed=1, epoch=0)
    assert p_value(np.bincount(labels), [0.3, 0.7]) > 0.01
    inside, outside = ticks[labels == 1], ticks[labels == 0]
    low, high = -125_000, 45_000
    assert (inside.min(), inside.max()) == (low, high) or len(inside) < 5 * (high - low)
    assert low <= inside.min() < low + 100
    assert high - 100 < inside.max() <= high
    assert p_value(np.histogram(inside, bins=17, range=(low, high + 1))[0]) > 0.01
    below, above = outside[outside < 0], outside[outside > 0]
    reach = round(guard * 10**6)
    assert below.max() < low - reach
    assert above.min() > high + reach
    assert -1_000_000 <= below.min() < -999_900
    assert 999_900 < above.max() <= 1_000_000
    lengths = [1_000_000 + low - reach, 1_000_000 - high - reach]
    assert p_value([len(below), len(above)], lengths) > 0.01
    assert p_value(np.histogram(below, bins=20, range=(-1_000_000, low - reach))[0]) > 0.01
    assert p_value(np.histogram(above, bins=20, range=(high + reach + 1, 1_000_001))[0]) > 0.01
    for tick, label in zip(ticks[:300].tolist(), labels[:300].tolist(), strict=True):
        assert rule.label(tick * rule.unit) == label


def test_binary_offsets_reach_every_microsecond_up_to_both_ends_and_none_of_the_guard() -> None:
    micro = Fraction(1, 10**6)
    rule = BinaryOffsets(in_sync=(-2 * micro, 3 * micro), guard_seconds=micro, max_seconds=7 * micro)
    ticks, labels = rule.draw(ITEMS, seed=0, epoch=0)
    assert set(ticks[labels == 1].tolist()) == {-2, -1, 0, 1, 2, 3}
    assert set(ticks[labels == 0].tolist()) == {-7, -6, -5, -4, 5, 6, 7}
    assert p_value(Counter(ticks[labels == 0].tolist()).values()) > 0.01


def test_a_band_of_one_offset_and_sure_chances_are_allowed() -> None:
    rule = BinaryOffsets(probability=0, in_sync=(0, 0))
    ticks, labels = rule.draw(ITEMS[:100], seed=0, epoch=0)
    assert not ticks.any()
    assert labels.all()
    assert OtherStart(probability=1).is_out(ITEMS[:1000], seed=0, epoch=0).all()
    assert not OtherClip(probability=0).is_out(ITEMS[:1000], seed=0, epoch=0).any()


@pytest.mark.parametrize(
    "rule", [GridOffsets(jitter_seconds=0.05), BinaryOffsets()], ids=lambda rule: type(rule).__name__
)
def test_draws_depend_on_seed_and_epoch_and_not_on_their_neighbours(rule: GridOffsets | BinaryOffsets) -> None:
    whole = rule.draw(ITEMS[:5000], seed=3, epoch=1)
    part = rule.draw(np.array([4321, 17]), seed=3, epoch=1)
    assert [values[[4321, 17]].tolist() for values in whole] == [values.tolist() for values in part]
    for seed, epoch in ((4, 1), (3, 2)):
        assert (rule.draw(ITEMS[:5000], seed=seed, epoch=epoch)[0] != whole[0]).mean() > 0.9


# In the plan ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [None, Fraction(25)], ids=str)
@pytest.mark.parametrize("windows", ["random", "all", "center", "first"])
@pytest.mark.parametrize("guard", [0, Fraction(1, 3), "clip"], ids=str)
def test_other_starts_are_exact_and_never_inside_the_guard(
    mixed: Manifest, fps: Fraction | None, windows: Any, guard: Any
) -> None:
    plan = plan_of(mixed, OtherStart(probability=0.5, guard_seconds=guard), fps=fps, clips=windows, num_frames=4)
    least = Fraction(8, 25) if guard == "clip" and fps else Fraction(2, 5) if guard == "clip" else guard
    least = max(least, Fraction(2, 5)) if guard == "clip" else least
    labels = Counter()
    for epoch in range(3):
        for clip in clips_of(plan.of_epoch(epoch)):
            starts = start_times(mixed, clip.row, plan.options)
            shown = starts[clip.frames[0]]
            offset = clip.offset_seconds
            assert offset is not None
            heard = clip.audio_start + mixed.row(clip.row).av_offset
            assert heard == shown + offset
            assert clip.audio_row == clip.row
            assert heard in starts.values()
            labels[clip.sync_label] += 1
            assert (abs(offset) >= least and offset != 0) if clip.sync_label == 0 else offset == 0
    assert set(labels) == {0, 1}


def test_other_starts_reach_all_that_are_allowed_equally(mixed: Manifest) -> None:
    rule = OtherStart(probability=1, guard_seconds=Fraction(1, 2))
    for row in (1, 13):  # 25 frames a second and variable rate, some four seconds of each
        plan = plan_of(mixed, rule, clips="first")
        starts = start_times(mixed, row, plan.options)
        first = min(starts.values())
        allowed = sorted(time - first for time in starts.values() if time - first >= Fraction(1, 2))
        epochs = 40 * len(allowed)
        drawn = Counter(plan.of_epoch(epoch).clip(row).offset_seconds for epoch in range(epochs))
        assert set(drawn) <= set(allowed)
        assert p_value(drawn[offset] for offset in allowed) > 0.01


@pytest.mark.parametrize("fps", [None, Fraction(25)], ids=str)
@pytest.mark.parametrize("windows", ["random", "all", "center", "first"])
@pytest.mark.parametrize(
    "rule",
    [GridOffsets(max_seconds=1, num_classes=5, jitter_seconds=0.05), BinaryOffsets(max_seconds=0.7)],
    ids=lambda rule: type(rule).__name__,
)
def test_shifted_sound_stays_where_sound_in_sync_could_be(
    mixed: Manifest, fps: Fraction | None, windows: Any, rule: GridOffsets | BinaryOffsets
) -> None:
    plan = plan_of(mixed, rule, fps=fps, clips=windows)
    reach = max(rule.range)
    for row in range(len(mixed)):
        times = sorted(start_times(mixed, row, plan.options).values())
        room = [time for time in times if windows == "random" or times[0] + reach <= time <= times[-1] - reach]
        has_room = bool(room) and times[-1] - times[0] >= reach
        assert has_room == (row not in {short.row for short in plan.short_rows})
    labels, offsets = Counter(), set()
    for epoch in range(4):
        for clip in clips_of(plan.of_epoch(epoch)):
            starts = start_times(mixed, clip.row, plan.options)
            offset = clip.offset_seconds
            assert offset is not None
            heard = clip.audio_start + mixed.row(clip.row).av_offset
            assert heard == starts[clip.frames[0]] + offset
            assert min(starts.values()) <= heard <= max(starts.values())
            assert clip.sync_label == rule.label(offset)
            labels[clip.sync_label] += 1
            offsets.add(offset)
    assert len(labels) == (5 if isinstance(rule, GridOffsets) else 2)
    assert len(offsets) > 50


@pytest.mark.parametrize("row", [1, 13])
def test_a_random_window_is_uniform_among_those_that_its_offset_leaves_room_for(mixed: Manifest, row: int) -> None:
    rule = GridOffsets(max_seconds=2, num_classes=3)
    plan = plan_of(mixed, rule)
    starts = start_times(mixed, row, plan.options)
    first, last = min(starts.values()), max(starts.values())
    epochs = [plan.of_epoch(epoch).clip(row) for epoch in range(6000)]
    assert p_value(Counter(clip.sync_label for clip in epochs).values()) > 0.01
    for label, offset in enumerate((-2, 0, 2)):
        allowed = [frame for frame, time in starts.items() if first <= time + offset <= last]
        drawn = Counter(clip.frames[0] for clip in epochs if clip.sync_label == label)
        assert set(drawn) <= set(allowed)
        assert p_value(drawn[frame] for frame in allowed) > 0.01


def test_several_clips_of_a_row_draw_each_for_itself(mixed: Manifest) -> None:
    clips = clips_of(plan_of(mixed, GridOffsets(max_seconds=1, num_classes=21), clips="all"))
    of_row = [clip.sync_label for clip in clips if clip.row == 0]
    assert len(of_row) > 10
    assert len(set(of_row)) > 5


def test_sound_of_another_clip_is_of_another_medium_and_every_row_is_equally_likely(mixed: Manifest) -> None:
    plan = plan_of(mixed, OtherClip(probability=0.8))
    drawn: Counter[int] = Counter()
    for epoch in range(400):
        for clip in clips_of(plan.of_epoch(epoch)):
            other = mixed.row(clip.audio_row)
            assert clip.audio_id == other.audio_id
            if clip.sync_label == 1:
                assert clip.audio_row == clip.row
                assert clip.offset_seconds == 0
                continue
            assert other.path != mixed.row(clip.row).path
            assert clip.offset_seconds is None
            assert clip.audio_start + other.av_offset in start_times(mixed, clip.audio_row, plan.options).values()
            if clip.row < len(INTERVALS):
                drawn[clip.audio_row] += 1
    assert p_value(drawn[row] for row in range(len(INTERVALS), len(mixed))) > 0.01


def test_rows_that_share_a_picture_or_a_sound_are_no_negatives_of_each_other(
    tmp_path: Path, truth_media: TruthMedia
) -> None:
    picture, sound = truth_media["mp4_25"], truth_media["sidecar_wav"]
    rows = [
        (picture, 0, 4, "", ""),
        (picture, 2, 8, "", sound),  # the picture of row 0
        (truth_media["picture_for_sidecar"], 0, 6, "", sound),  # the sound of row 1
        (truth_media["three_b_frames"], 0, 6, "", ""),
        (truth_media["no_b_frames"], 0, 6, "", ""),
    ]
    plan = plan_of(build(tmp_path, rows), OtherClip(probability=1))
    pairs = {(clip.row, clip.audio_row) for epoch in range(60) for clip in clips_of(plan.of_epoch(epoch))}
    assert pairs == {(row, other) for row in range(3) for other in (3, 4)} | {
        (row, other) for row in (3, 4) for other in range(5) if other != row
    }


def test_one_medium_alone_has_no_other_clip(tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, [(truth_media["mp4_25"], start, start + 3, "") for start in range(5)])
    with pytest.raises(ManifestError, match=r"OtherClip needs rows of two media .*Use OtherStart"):
        plan_of(manifest, OtherClip())


def test_rows_without_room_are_short_and_say_what_they_need(tmp_path: Path, truth_media: TruthMedia) -> None:
    rows = [(truth_media[name], 1, Fraction(end), "") for name in ("mp4_25", "variable_rate") for end in ("2", "6")]
    manifest = build(tmp_path, [(path, start, float(end), label) for path, start, end, label in rows])
    cases: list[tuple[OffsetRule, str, int]] = [
        (OtherStart(), "random", 9 + 1),
        (OtherStart(guard_seconds="clip"), "random", 9 + 2 * 10 - 1),
        (GridOffsets(max_seconds=1, num_classes=3), "random", 9 + 25),
        (GridOffsets(max_seconds=1, num_classes=3), "center", 9 + 50),
        (BinaryOffsets(max_seconds=1), "first", 9 + 50),
        (AllPairs(), "random", 9),
    ]
    for rule, windows, needed in cases:
        short = {row.row: row for row in plan_of(manifest, rule, clips=windows).short_rows}
        assert (0 in short) == (needed > 25)
        assert 1 not in short
        assert 3 not in short
        if 0 in short:
            assert (short[0].num_frames, short[0].needed_frames) == (25, needed)
    # Exactly as many frames as needed suffice.
    exact = build(tmp_path, [(truth_media["mp4_25"], 1, 1 + frames / 25, "") for frames in (28, 27, 34, 33, 59, 58)])
    for rule, windows, row in (
        (OtherStart(guard_seconds="clip"), "random", 0),
        (GridOffsets(max_seconds=1, num_classes=3), "random", 2),
        (GridOffsets(max_seconds=1, num_classes=3), "all", 4),
    ):
        short_rows = {short.row for short in plan_of(exact, rule, clips=windows).short_rows}
        assert row not in short_rows
        assert row + 1 in short_rows


@pytest.mark.parametrize("milliseconds", range(0, 2400, 160))
def test_a_row_is_short_if_one_of_its_starts_has_no_other_outside_the_guard(mixed: Manifest, milliseconds: int) -> None:
    guard = Fraction(milliseconds, 1000)
    plan = plan_of(mixed, OtherStart(guard_seconds=guard))
    lonely = set()
    for row in range(len(mixed)):
        times = list(start_times(mixed, row, plan.options).values())
        if any(max(time - times[0], times[-1] - time) < max(guard, Fraction(1, 10**6)) for time in times):
            lonely.add(row)
    assert {short.row for short in plan.short_rows} == lonely


def test_without_a_rule_nothing_is_labelled(mixed: Manifest) -> None:
    for clip in clips_of(plan_of(mixed, None)):
        assert (clip.sync_label, clip.offset_seconds, clip.audio_row) == (None, 0, clip.row)


# A fixed table --------------------------------------------------------------------------------------------------------


def write_table(path: Path, *lines: str, header: str = "path,vstart_sec,offset_sec") -> Path:
    path.write_text("\n".join([header, *lines]), encoding="utf-8")
    return path


def test_a_fixed_table_names_the_clips_of_every_epoch(mixed: Manifest, tmp_path: Path) -> None:
    lines = ["mp4_25,3.44,-1.0", "mp4_25.mp4,0.0,0.4", "variable_rate,1.5,0.2", "mkv_aac.mkv,2.002,0.0"]
    table = write_table(tmp_path / "table.csv", *lines)
    plan = plan_of(mixed, FixedOffsets(table=table), clips="all")
    for epoch in (0, 7):
        clips = clips_of(plan.of_epoch(epoch))
        names = ["mp4_25", "mp4_25", "variable_rate", "mkv_aac"]
        assert [Path(mixed.media(clip.media_id).path).stem for clip in clips] == names
        assert [clip.offset_seconds for clip in clips] == [-1, Fraction(2, 5), Fraction(1, 5), 0]
        assert [clip.sync_label for clip in clips] == [5, 12, 11, 10]
        assert [clip.frames[0] for clip in clips[:2]] == [86, 0]
        for clip, start in zip(clips, (3.44, 0, 1.5, 2.002), strict=True):
            times = linear_frames(mixed.media(clip.media_id).path).times
            nearest = min(range(len(times)), key=lambda frame: abs(times[frame] - Fraction(str(start))))
            assert clip.frames[0] == nearest
            assert clip.offset_seconds is not None
            assert clip.audio_start == times[nearest] + clip.offset_seconds - mixed.row(clip.row).av_offset
    shuffled = clips_of(plan_of(mixed, FixedOffsets(table=table), clips="all", shuffle=True, seed=2))
    assert sorted(clip.frames for clip in shuffled) == sorted(clip.frames for clip in clips)
    binary = plan_of(mixed, FixedOffsets(table=table, labels=BinaryOffsets()), clips="all")
    assert [clip.sync_label for clip in clips_of(binary)] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (["mp4_25,9.99,0"], None, r"table.csv \(line 2\): no row of 'mp4_25' holds a clip that starts at 9.99 s"),
        (["mp4_25,99,0"], None, r"no row of 'mp4_25' holds a clip that starts at 99 s"),
        (["mp4_25,1,0", "nothing,1,0"], None, r"\(line 3\): 'nothing' names none of the manifest's media"),
        (["mp4_25,1,fast"], None, r"\(line 2\): offset_sec: 'fast' is not a number"),
        (["mp4_25,1"], None, r"\(line 2\): offset_sec: '' is not a number"),
        ([], None, r"holds no line"),
        (["mp4_25,1,0"], "a,b,c", r"lacks video_id, vstart_sec, offset_sec.*Write path,vstart_sec,offset_sec"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_line(
    mixed: Manifest, tmp_path: Path, lines: list[str], header: str | None, message: str
) -> None:
    table = write_table(tmp_path / "table.csv", *lines, header=header or "path,vstart_sec,offset_sec")
    with pytest.raises(ManifestError, match=message):
        plan_of(mixed, FixedOffsets(table=table), clips="all")


def test_the_state_of_a_run_tells_tables_apart_by_content(tmp_path: Path) -> None:
    tables = [
        write_table(tmp_path / f"{name}.csv", line) for name, line in (("a", "x,1,0"), ("b", "x,1,0"), ("c", "x,1,1"))
    ]
    one, same, other = (repr(FixedOffsets(table=table)) for table in tables)
    assert one == same != other


# Wrong arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: OtherStart(probability=1.5), ValueError, r"probability=1.5 must be a number in \[0, 1\]"),
        (lambda: OtherStart(probability="often"), TypeError, "probability='often'"),
        (lambda: OtherClip(probability=True), TypeError, "probability=True"),
        (lambda: OtherStart(guard_seconds=-1), ValueError, "guard_seconds=-1 must be at least 0"),
        (lambda: OtherStart(guard_seconds="long"), ValueError, "guard_seconds: 'long' is not a number"),
        (lambda: GridOffsets(num_classes=1), ValueError, "num_classes=1 must be in"),
        (lambda: GridOffsets(num_classes=2.5), TypeError, "num_classes=2.5 must be an int"),
        (lambda: GridOffsets(max_seconds=0), ValueError, "max_seconds=0 must be at least"),
        (lambda: GridOffsets(jitter_seconds=0.1), ValueError, "jitter_seconds=0.1 must be less than half of .* 0.2 s"),
        (lambda: BinaryOffsets(in_sync=(1, 0)), ValueError, r"in_sync=\(1, 0\) must be \(lowest, highest\)"),
        (lambda: BinaryOffsets(in_sync=0.1), TypeError, "in_sync=0.1"),
        (lambda: BinaryOffsets(max_seconds=0.12), ValueError, "max_seconds=0.12 must lie beyond"),
        (lambda: BinaryOffsets(max_seconds=2000), ValueError, "max_seconds=2000 must be at most 1000"),
        (lambda: FixedOffsets(table="no.csv"), ManifestError, r"no.csv: the table of offsets cannot be read"),
        (lambda: PlanOptions(offsets=GridOffsets), TypeError, "must be one of OtherStart, .* or None"),
    ],
)  # fmt: skip
def test_wrong_rules_name_the_argument_and_what_is_allowed(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_a_fixed_table_chooses_the_windows_itself(tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv", "x,1,0")
    with pytest.raises(ValueError, match=r"clips='random' does not go with FixedOffsets.*use \"all\""):
        PlanOptions(offsets=FixedOffsets(table=table), clips="random")


# What is delivered, measured ------------------------------------------------------------------------------------------

NUM_FRAMES, RATE = 6, 48000
MEASURED = ("mp4_25", "mp4_29_97", "sound_late", "picture_late", "cut", "mkv_opus", "mpegts", "variable_rate")


def loader_of(manifest: Manifest, rule: OffsetRule | None, **options: Any) -> AVLoader:
    defaults: dict[str, Any] = {
        "batch_size": 5,
        "num_frames": NUM_FRAMES,
        "size": (72, 128),
        "normalize": None,
        "sample_rate": RATE,
        "audio_seconds": Fraction(1, 4),
        "features": None,
        "clips": "random",
        "shuffle": True,
        "device": "cpu",
        "num_workers": 1,
    }
    return AVLoader(manifest, offsets=rule, **(defaults | options))


def measured(manifest: Manifest, batch: AVBatch, place: int) -> tuple[float, npt.NDArray[np.float32]]:
    """Seconds by which the delivered sound is later in the medium than the delivered picture, by content."""
    row = manifest.row(int(batch.row[place]))
    frames = linear_frames(row.path)
    number = read_number(batch.frames[place, 0].permute(1, 2, 0).numpy())
    shown = frames.times[frames.numbers.index(number)]
    sound = batch.audio[place].numpy()
    whole = linear_sound(row.audio_path)
    heard = float(whole.start) - delay_of(sound, whole.samples) / RATE
    return heard - float(shown), sound


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, truth_media: TruthMedia) -> Manifest:
    rows = [(truth_media[name], 1, 8, number, "", "") for number, name in enumerate(MEASURED)]
    return build(tmp_path_factory.mktemp("known"), rows)


RULES: list[OffsetRule] = [
    OtherStart(guard_seconds="clip"),
    GridOffsets(max_seconds=1, num_classes=11, jitter_seconds=0.05),
    BinaryOffsets(max_seconds=1),
    AllPairs(),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_labels_and_offsets_are_what_is_measured_in_the_delivered_clips(known: Manifest, rule: OffsetRule) -> None:
    seen = 0
    with loader_of(known, rule) as loader:
        for batch in itertools.chain(loader, loader, loader):
            assert batch.sync_label is not None
            for place in range(len(batch)):
                offset, sound = measured(known, batch, place)
                if np.count_nonzero(sound) < len(sound) / 2:
                    continue  # the medium has no sound there
                assert offset == pytest.approx(batch.offset_seconds[place].item(), abs=0.6 / RATE)
                label = batch.sync_label[place]
                if isinstance(rule, (GridOffsets, BinaryOffsets)):
                    assert label == rule.label(Fraction(round(offset, 5)))
                elif isinstance(rule, OtherStart):
                    assert label == (abs(offset) < 1e-4)
                    assert label == 1 or abs(offset) >= 0.24
                else:
                    assert label.tolist() == list(range(NUM_FRAMES))
                seen += 1
    assert seen > 20


def test_all_pairs_know_their_true_offsets(known: Manifest) -> None:
    with loader_of(known, AllPairs()) as loader:
        batch = next(iter(loader))
    pairs = batch.pair_offset_seconds
    assert pairs.shape == (len(batch), NUM_FRAMES, NUM_FRAMES)
    seconds = batch.frame_seconds
    for place, picture, sound in itertools.product(range(len(batch)), range(NUM_FRAMES), range(NUM_FRAMES)):
        assert pairs[place, picture, sound] == seconds[place, sound] - seconds[place, picture]


def test_the_sound_of_another_clip_is_found_where_the_batch_says(known: Manifest) -> None:
    kinds = set()
    with loader_of(known, OtherClip()) as loader:
        for batch in itertools.chain(loader, loader):
            assert batch.sync_label is not None
            for place, (row, other, label) in enumerate(
                zip(batch.row.tolist(), batch.audio_row.tolist(), batch.sync_label.tolist(), strict=True)
            ):
                expected = linear_window(
                    known.row(other).audio_path, Fraction(batch.audio_start_seconds[place].item()), RATE // 4
                )
                if expected.any():
                    assert abs(delay_of(batch.audio[place].numpy(), expected)) < 0.6
                assert label == (row == other) == (not batch.offset_seconds[place].isnan())
                kinds.add(label)
    assert kinds == {0, 1}


def content(batches: Iterable[AVBatch]) -> list[tuple[Any, ...]]:
    """What the batches hold, clip by clip, by value."""
    found = []
    for batch in batches:
        assert batch.sync_label is not None
        for place in range(len(batch)):
            facts = (batch.row, batch.audio_row, batch.sync_label, batch.frame_seconds, batch.audio_start_seconds)
            found.append(
                (
                    *(np.asarray(values[place]).tobytes() for values in (*facts, batch.offset_seconds)),
                    batch.frames[place].numpy().tobytes(),
                    batch.audio[place].numpy().tobytes(),
                )
            )
    return found


@pytest.mark.parametrize("rule", [*RULES, OtherClip()], ids=lambda rule: type(rule).__name__)
def test_the_same_clips_for_any_batch_size_workers_ranks_and_after_resume(known: Manifest, rule: OffsetRule) -> None:
    with loader_of(known, rule, clips="all", num_frames=12, seed=9) as loader:
        loader.set_epoch(3)
        reference = content(loader)
    assert len(reference) > 20
    with loader_of(known, rule, clips="all", num_frames=12, seed=9, batch_size=3, num_workers=2) as loader:
        loader.set_epoch(3)
        assert content(loader) == reference
        loader.set_epoch(3)
        batches = iter(loader)
        begun = content(next(batches) for _ in range(4))
        state = loader.state_dict()
    ranks = []
    for rank in range(2):
        with loader_of(
            known, rule, clips="all", num_frames=12, seed=9, batch_size=2, rank=rank, world_size=2
        ) as loader:
            loader.load_state_dict(state)
            ranks.append(list(loader))
    rest = [rank[step] for step in range(max(map(len, ranks))) for rank in ranks if step < len(rank)]
    assert begun + content(rest) == reference


@pytest.mark.gpu
@pytest.mark.parametrize("rule", [*RULES, OtherClip()], ids=lambda rule: type(rule).__name__)
def test_a_gpu_delivers_the_same_offsets_and_sound(known: Manifest, rule: OffsetRule) -> None:
    found: list[list[AVBatch]] = []
    for device in ("cpu", "gpu"):
        with loader_of(known, rule, device=device) as loader:
            found.append([batch.to("cpu") for batch in loader])
    for one, other in zip(*found, strict=True):
        for name in ("row", "audio_row", "sync_label", "frame_seconds", "audio_start_seconds"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert torch.equal(one.offset_seconds.nan_to_num(99), other.offset_seconds.nan_to_num(99))
        assert torch.allclose(one.audio, other.audio, atol=1e-6, rtol=0)


def test_a_state_of_other_offsets_is_refused(known: Manifest) -> None:
    with loader_of(known, GridOffsets()) as loader:
        state = loader.state_dict()
    with loader_of(known, GridOffsets(num_classes=41)) as loader, pytest.raises(ValueError, match="another plan"):
        loader.load_state_dict(state)


def test_a_batch_without_a_rule_has_no_sync_label(known: Manifest) -> None:
    with loader_of(known, None) as loader:
        batch = next(iter(loader))
    assert batch.sync_label is None
    assert torch.equal(batch.audio_row, batch.row)
    assert not batch.offset_seconds.any()


# The conventions of others --------------------------------------------------------------------------------------------

LEAD = Fraction(2, 25)  # two frames of 25 a second


@pytest.mark.parametrize(
    "av_offset",
    [from_syncnet(2), from_syncnet(4, 50), from_voxceleb2(2), from_synchformer(0.08), from_itu(80)],
    ids=["SyncNet", "SyncNet at 50 frames", "VoxCeleb2", "Synchformer", "ITU"],
)
def test_an_offset_of_the_file_as_others_state_it_is_corrected(
    tmp_path: Path, truth_media: TruthMedia, av_offset: Fraction
) -> None:
    """A file whose sound leads by two frames: what is delivered is the sound that was made for each picture."""
    recipe = CATALOG["picture_for_sidecar"]
    source = known_sound(recipe)
    early = source[int(LEAD * RATE) :]  # everything is heard two frames before it is seen
    with wave.open(str(tmp_path / "early.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.rint(early * 2**15).astype("<i2").tobytes())
    picture = truth_media["picture_for_sidecar"]
    manifest = build(tmp_path, [(picture, 2, 6, "", tmp_path / "early.wav", float(av_offset))])
    with loader_of(manifest, None) as loader:
        (batch,) = loader
    number = read_number(batch.frames[0, 0].permute(1, 2, 0).numpy())
    first = number * RATE // 25
    expected = source[first : first + RATE // 4]
    assert abs(delay_of(batch.audio[0].numpy(), expected)) < 0.1
    assert batch.audio_start_seconds[0] == pytest.approx(number / 25 - 0.08, abs=1e-9)


def test_syncnets_own_search_has_the_sign_of_the_converter() -> None:
    """SyncNet pads the sound by `vshift` and compares picture i with sound i ... i + 2 vshift of that."""
    features = np.random.default_rng(0).standard_normal((60, 8))  # what is seen and heard at each frame of the source
    pictures, sounds, vshift = features[:50], features[2:52], 15  # the sound leads by two frames
    padded = np.pad(sounds, ((vshift, vshift), (0, 0)))
    distances = [np.linalg.norm(padded[i : i + 2 * vshift + 1] - pictures[i], axis=1) for i in range(len(pictures))]
    offset = vshift - int(np.mean(distances, axis=0).argmin())
    assert from_syncnet(offset) == LEAD


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (from_syncnet(-3), Fraction(-3, 25)),
        (from_syncnet(1, "30000/1001"), Fraction(1001, 30000)),
        (from_voxceleb2(-1), Fraction(-1, 25)),
        (from_synchformer("-0.4"), Fraction(-2, 5)),
        (from_itu(-125), Fraction(-1, 8)),
    ],
)
def test_conversions_are_exact(value: Fraction, expected: Fraction) -> None:
    assert value == expected
