"""Memory in proportion to columns, not to Python objects; the same rows and clips as their simple definition."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import bench_scale
import numpy as np
import pytest
from conftest import TruthMedia

from avloader import epochs as epochs_module
from avloader import manifest as manifest_module
from avloader import plan as plan_module
from avloader.annotations import Annotation
from avloader.epochs import batches
from avloader.errors import ManifestError
from avloader.facts import MediaInfo
from avloader.manifest import Manifest, write_manifest
from avloader.media import probe
from avloader.plan import Plan, PlanOptions
from avloader.probing import ProbedMedia
from avloader.tables import MEDIA_PER_CHUNK, ROWS_PER_CHUNK


def grown(small: dict[str, Any], large: dict[str, Any], number: int) -> float:
    """Bytes of peak memory for each of `number` things more."""
    difference: float = large["peak memory, MB"] - small["peak memory, MB"]
    return difference * 2**20 / number


def measured(folder: Path, num_rows: int, num_media: int) -> dict[str, dict[str, Any]]:
    """The steps of the benchmark, each in a process of its own; `verify` fails if rows or clips are wrong."""
    folder.mkdir()
    bench_scale.make_input(folder, num_rows, num_media)
    steps = (bench_scale.build, bench_scale.verify, bench_scale.measure)
    return {step.__name__: bench_scale.in_own_process(step, folder, num_media) for step in steps}


@pytest.mark.timeout(600)
def test_memory_does_not_grow_by_an_object_a_row(tmp_path: Path) -> None:
    few, many = 2 * ROWS_PER_CHUNK, 6 * ROWS_PER_CHUNK  # what lasts is told from what is written at a time
    small = measured(tmp_path / "small", few, 2048)
    large = measured(tmp_path / "large", many, 2048)
    assert large["verify"]["rows"] == many
    # Rows leave the process as they are written. An `Annotation` alone takes some 500 bytes.
    assert grown(small["build"], large["build"], many - few) < 60
    # Six columns, where the clips of a row end, the order of the clips (1.5 a row) and what sorting it needs.
    assert grown(small["measure"], large["measure"], many - few) < 160


@pytest.mark.timeout(600)
def test_memory_does_not_grow_by_the_facts_of_a_medium(tmp_path: Path) -> None:
    few, many = 2 * 4096, 6 * 4096  # more than are kept in memory as objects
    small, large = (measured(tmp_path / str(number), many, number) for number in (few, many))
    # Its path in two dictionaries while it is built; the facts of a medium take 4 KB as objects.
    assert grown(small["build"], large["build"], many - few) < 1000
    # The pages of the mapped table that are looked at, and what comparing some columns of it takes for a moment.
    assert grown(small["measure"], large["measure"], many - few) < 1500


@pytest.fixture(scope="module")
def facts(truth_media: TruthMedia) -> MediaInfo:
    """Facts of ten seconds at 25 frames per second."""
    return probe(truth_media["mp4_25"])


def write(folder: Path, facts: MediaInfo, rows: list[tuple[int, int, int]], num_media: int) -> Manifest:
    """A manifest of rows (medium, first frame, stop frame), the media all one file by many names."""

    def add(media: ProbedMedia) -> None:
        for number in reversed(range(num_media)):
            path = f"/{number}.mp4"
            media.add(path, replace(facts, path=path))

    return write_manifest(
        (
            Annotation(line, f"{medium}.mp4", Fraction(first, 25), Fraction(stop, 25), str(first % 7))
            for line, (medium, first, stop) in enumerate(rows)
        ),
        add,
        labels={str(number) for number in range(7)},
        root="/",
        output=os.fspath(folder / "manifest"),
        options={"annotations": "made"},
    )


def test_rows_and_media_keep_their_places_across_pieces_of_the_tables(tmp_path: Path, facts: MediaInfo) -> None:
    num_media, num_rows = 2 * MEDIA_PER_CHUNK + 5, ROWS_PER_CHUNK + 100
    random = np.random.default_rng(0)
    media = random.integers(0, num_media, num_rows)
    first = random.integers(0, 200, num_rows)
    stop = first + random.integers(1, 50, num_rows)
    rows = list(zip(media.tolist(), first.tolist(), stop.tolist(), strict=True))
    manifest = write(tmp_path, facts, rows, num_media)
    used, places = np.unique(media, return_index=True)
    in_order = used[np.argsort(places)]  # media are numbered as rows first name them
    assert np.array_equal(in_order[manifest.media_id], media)
    assert np.array_equal(manifest.audio_id, manifest.media_id)
    assert np.array_equal(manifest.first_frame, first)
    assert np.array_equal(manifest.stop_frame, stop)
    assert np.array_equal(manifest.label, first % 7)
    for media_id in (0, MEDIA_PER_CHUNK - 1, MEDIA_PER_CHUNK, 2 * MEDIA_PER_CHUNK, len(used) - 1):
        found = manifest.media(media_id)
        assert found.path == f"/{in_order[media_id]}.mp4"
        assert found.video is not None
        assert facts.video is not None
        assert found.video.keyframe_pts.tolist() == facts.video.keyframe_pts.tolist()
        assert found.audio == facts.audio
    for row in (0, ROWS_PER_CHUNK - 1, ROWS_PER_CHUNK, num_rows - 1):
        record = manifest.row(row)
        assert (record.line, record.path) == (row, f"/{media[row]}.mp4")
        assert record.start_seconds == Fraction(int(first[row]), 25)


@pytest.mark.parametrize("clips", ["all", "first", "random"])
def test_clips_do_not_depend_on_how_rows_and_batches_are_taken_together(
    tmp_path: Path, facts: MediaInfo, clips: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(number % 5, number % 97, number % 97 + number * 31 % 40 + 1) for number in range(500)]
    manifest = write(tmp_path, facts, rows, 5)
    options = PlanOptions(num_frames=8, clips=clips, shuffle=True, seed=3)
    whole = Plan(manifest, options, epoch=2)
    expected = [whole.clip(position) for position in range(len(whole))]
    assert len(whole) == sum((stop - first) // 8 if clips == "all" else stop - first >= 8 for _, first, stop in rows)
    monkeypatch.setattr(plan_module, "_ROWS", 7)
    monkeypatch.setattr(epochs_module, "_BLOCK", 24)
    other = Plan(manifest, options, epoch=5).of_epoch(2).prepare()
    assert [short.row for short in other.short_rows] == [
        row for row, (_, first, stop) in enumerate(rows) if stop - first < 8
    ]
    found = {}
    for rank in range(3):
        spans = list(batches(len(other), batch_size=5, rank=rank, world_size=3))
        for span, taken in zip(spans, other.clips(iter(spans)), strict=True):
            assert len(taken) == len(span)
            found.update(zip(span, taken, strict=True))
    assert [found[position] for position in range(len(whole))] == expected


def test_of_many_media_some_are_compared_at_open_and_all_when_asked(
    tmp_path: Path, truth_media: TruthMedia, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_module, "_MEDIA_AT_OPEN", 4)
    names = [os.fspath(tmp_path / f"{number}.mp4") for number in range(8)]
    for name in names:
        shutil.copy2(truth_media["no_b_frames"], name)
    made = write_manifest(
        [Annotation(line, name) for line, name in enumerate(names)],
        lambda media: [media.add(name, probe(name)) for name in names] and None,
        labels={""},
        root="/",
        output=os.fspath(tmp_path / "manifest"),
        options={"annotations": "made"},
    )
    os.utime(names[3], ns=(0, 0))  # between those that are looked at
    assert len(Manifest.open(made.path)) == 8
    assert [media_id for media_id, _ in made.changed_media()] == [3]
    os.utime(names[4], ns=(0, 0))
    with pytest.raises(ManifestError, match=r"4\.mp4 \(row 4\): the medium was modified"):
        Manifest.open(made.path)


def test_probed_media_leave_no_file(tmp_path: Path, facts: MediaInfo) -> None:
    with ProbedMedia(os.fspath(tmp_path)) as media:
        media.add("a", facts)
        media.add("b", replace(facts, path="b"))
        first, second = media.get("a"), media.get("b")
        assert isinstance(first, MediaInfo)
        assert isinstance(second, MediaInfo)
        assert (first.path, second.path) == (facts.path, "b")
        assert media.get("c") is None
        assert not list(tmp_path.iterdir())
