"""Building, opening and refusing manifests, on real media."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import truth
from conftest import TruthMedia

import avloader
from avloader.errors import AnnotationError, ManifestError, MediaError
from avloader.manifest import Manifest, build_manifest
from avloader.media import probe
from avloader.probing import ProbedMedia, probe_all
from avloader.timeline import seconds_to_samples

HEADER = ("path", "start", "end", "label")


@pytest.fixture
def media(tmp_path: Path, truth_media: TruthMedia) -> Path:
    """A folder of its own with a few media, that a test may spoil."""
    folder = tmp_path / "media"
    folder.mkdir()
    for name in ("mp4_25", "sound_late", "picture_late", "variable_rate", "no_sound", "sidecar_wav", "mkv_aac"):
        shutil.copy2(truth_media[name], folder)
    (folder / "text.mp4").write_text("no medium")
    return folder


def write_csv(path: Path, lines: Sequence[Sequence[object]], header: Sequence[str] = HEADER) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)
    return path


def build(media: Path, lines: Sequence[Sequence[object]], header: Sequence[str] = HEADER, **more: Any) -> Manifest:
    table = write_csv(media.parent / "clips.csv", lines, header)
    output = more.pop("output", media.parent / "manifest")
    return build_manifest(table, media_root=media, output=output, progress=False, **more)


def read_csv(path: str, name: str) -> list[dict[str, str]]:
    with open(os.path.join(path, name), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_stand_where_their_annotations_stood(media: Path) -> None:
    good = [("mp4_25.mp4", "", "", "a"), ("mp4_25.mp4", 3, 4, "b")]
    manifest = build(media, [("sound_late.mp4", 1, 2, "b"), ("none.mp4", 0, 1, "c"), *good])
    rows = [manifest.row(row) for row in range(len(manifest))]
    assert [row.line for row in rows] == [2, 4, 5]
    assert [Path(row.path).name for row in rows] == ["sound_late.mp4", "mp4_25.mp4", "mp4_25.mp4"]
    assert [(row.first_frame, row.stop_frame) for row in rows] == [(25, 50), (0, 250), (75, 100)]
    assert manifest.media_id.tolist() == manifest.audio_id.tolist() == [0, 1, 1]
    assert manifest.num_media == 2
    assert manifest.labels == ["a", "b", "c"]  # a class keeps its id whichever media are missing
    assert manifest.label.tolist() == [1, 0, 1]
    assert manifest.num_classes == 3


def test_columns_are_read_only_integers(media: Path) -> None:
    manifest = build(media, [("mp4_25.mp4", 0, 1, "7"), ("mp4_25.mp4", 1, 2, "-2")])
    for name in ("media_id", "audio_id", "first_frame", "stop_frame", "label", "av_offset_ns"):
        column = getattr(manifest, name)
        assert column.dtype == np.int64
        assert column.shape == (2,)
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 1


@pytest.mark.parametrize(
    ("labels", "ids", "names"),
    [
        (["10", "2", "2"], [10, 2, 2], []),
        (["10", "2", "two"], [0, 1, 2], ["10", "2", "two"]),
        (["b", "", "é"], [0, -1, 1], ["b", "é"]),
        (["3", "", "4"], [3, -1, 4], []),
        (["", "", ""], [-1, -1, -1], []),
    ],
)
def test_labels_are_ids_if_all_are_integers_else_sorted_names(
    media: Path, labels: list[str], ids: list[int], names: list[str]
) -> None:
    manifest = build(media, [("mp4_25.mp4", number, number + 1, label) for number, label in enumerate(labels)])
    assert manifest.label.tolist() == ids
    assert manifest.labels == names


@pytest.mark.parametrize("name", ["mp4_25", "sound_late", "picture_late", "variable_rate", "mkv_aac"])
def test_a_row_has_the_frames_and_sound_of_a_linear_decode(media: Path, truth_media: TruthMedia, name: str) -> None:
    path = truth_media[name]
    frames, sound = truth.linear_frames(path), truth.linear_sound(path)
    start, end, offset = Fraction("1.3"), Fraction("2.75"), Fraction("0.02")
    header = (*HEADER, "av_offset", "id", "speaker")
    manifest = build(media, [(path.name, "1.3", "2.75", "x", "0.02", "k1", "Ann, B.")], header)
    row = manifest.row(0)
    shown = [number for number, seconds in enumerate(frames.times) if start <= seconds < end]
    assert (row.first_frame, row.stop_frame) == (shown[0], shown[-1] + 1)
    assert row.start_seconds == frames.times[shown[0]]
    assert row.stop_seconds == frames.times[shown[-1] + 1]
    exact = (row.start_seconds - offset - sound.start) * sound.rate
    assert abs(row.audio_start_sample - exact) <= Fraction(1, 2)
    assert row.audio_num_samples == seconds_to_samples(row.stop_seconds - row.start_seconds, sound.rate)
    assert (row.av_offset, row.id, row.extra) == (offset, "k1", {"speaker": "Ann, B."})

    offsets = read_csv(manifest.path, "audio_offsets.csv")[0]
    assert int(offsets["start_sample"]) == row.audio_start_sample
    assert int(offsets["num_samples"]) == row.audio_num_samples
    assert int(offsets["sample_rate"]) == sound.rate
    assert abs(Fraction(offsets["start_seconds"]) - (row.start_seconds - offset)) < Fraction(1, 10**9)
    listed = Path(manifest.path, "file_list.txt").read_text().split()
    assert listed == [str(media / path.name), "0", str(row.first_frame), str(row.stop_frame)]


def test_sound_that_starts_late_gives_a_negative_start_sample(media: Path) -> None:
    row = build(media, [("sound_late.mp4", 0, 1, "x")]).row(0)
    sound = truth.linear_sound(media / "sound_late.mp4")
    assert row.audio_start_sample == -sound.start * sound.rate < 0


def test_media_facts_survive_the_way_through_the_table(media: Path) -> None:
    names = ("mp4_25.mp4", "variable_rate.mp4", "mkv_aac.mkv")
    manifest = build(media, [(name, 0, 1, "x") for name in names])
    for media_id, name in enumerate(names):
        expected, found = probe(media / name), manifest.media(media_id)
        assert found.path == str(media / name)
        assert found.audio == expected.audio
        assert found.video is not None
        assert expected.video is not None
        compare(found.video.times, expected.video.times)
        compare(found.video, expected.video, skip={"times"})
        compare(found, expected, skip={"video", "audio", "path"})


def compare(found: object, expected: object, skip: frozenset[str] | set[str] = frozenset()) -> None:
    for name in set(expected.__dataclass_fields__) - skip:  # type: ignore[attr-defined]
        value, wanted = getattr(found, name), getattr(expected, name)
        assert type(value) is type(wanted), name
        assert np.array_equal(value, wanted) if isinstance(wanted, np.ndarray) else value == wanted, name


def test_a_sidecar_gives_sound_to_a_medium_without_any(media: Path) -> None:
    lines = [("no_sound.mp4", 1, 2, "x", "sidecar.wav"), ("no_sound.mp4", 1, 2, "x", "")]
    manifest = build(media, lines, (*HEADER, "audio_path"))
    row = manifest.row(0)
    assert len(manifest) == 1
    assert row.audio_path == str(media / "sidecar.wav")
    assert (row.media_id, row.audio_id, row.audio_start_sample) == (0, 1, 48000)
    assert manifest.media(1).video is None
    assert manifest.media_rates.kind.tolist()[1] == -1
    assert [rejected["code"] for rejected in manifest.rejected()] == ["no_audio"]


REJECTED = [
    (("none.mp4", 0, 1, "x"), "missing_file", "none.mp4"),
    (("text.mp4", 0, 1, "x"), "unreadable", "text.mp4"),
    (("sidecar.wav", 0, 1, "x"), "no_video", "no picture"),
    (("no_sound.mp4", 0, 1, "x"), "no_audio", "no sound"),
    (("mp4_25.mp4", "1.001", "1.039", "x"), "empty_interval", r"[1.001, 1.039) s"),
    (("mp4_25.mp4", 12, 13, "x"), "outside_media", r"[12, 13) s lies outside the picture's, [0, 10) s"),
    (("mp4_25.mp4", 10, "", "x"), "outside_media", r"[10, end) s"),
    (("mp4_25.mp4", "one", 2, "x"), "bad_number", "one"),
]


def test_every_annotation_ends_as_a_row_or_with_a_reason(media: Path) -> None:
    good = ("mp4_25.mp4", 9, 99, "x")  # cut to the medium
    manifest = build(media, [good, *(line for line, _, _ in REJECTED), good])
    assert manifest.stop_frame.tolist() == [250, 250]
    rejected = manifest.rejected()
    assert [row["code"] for row in rejected] == [code for _, code, _ in REJECTED]
    assert [row["line"] for row in rejected] == [str(number + 3) for number in range(len(REJECTED))]
    for row, (_, _, words) in zip(rejected, REJECTED, strict=True):
        assert words in row["message"]
        assert "\n" not in row["message"]
    assert manifest.num_rejected == len(rejected) == sum(manifest.reasons.values())
    assert manifest.reasons["outside_media"] == 2
    assert rejected[-3]["path"] == "mp4_25.mp4"


def test_adjacent_intervals_share_no_frame_and_lose_none(media: Path) -> None:
    bounds = ["0", "0.333", "1.2004", "1.9996", "2.04", "5"]
    manifest = build(media, [("mp4_25.mp4", *pair, "x") for pair in itertools.pairwise(bounds)])
    assert manifest.first_frame.tolist()[1:] == manifest.stop_frame.tolist()[:-1]
    assert (manifest.first_frame[0], manifest.stop_frame[-1]) == (0, 125)


def test_a_medium_named_many_times_is_probed_once(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed = []
    monkeypatch.setattr("avloader.media.probe", lambda path: probed.append(path) or probe(path))
    names = ["mp4_25.mp4", "./mp4_25.mp4", "../media/mp4_25.mp4", str(media / "mp4_25.mp4"), "mkv_aac.mkv"] * 20
    assert len(build(media, [(name, 0, 1, "x") for name in names])) == 100
    assert sorted(probed) == [str(media / "mkv_aac.mkv"), str(media / "mp4_25.mp4")]


@pytest.mark.parametrize("name", ["a b, c.mp4", 'quo"te.mp4', "größe ★.mp4", "tab\there.mp4", "two  spaces.m p4"])
def test_unusual_paths_work_and_stand_in_the_file_list_without_white_space(media: Path, name: str) -> None:
    os.rename(media / "mp4_25.mp4", media / name)
    manifest = Manifest.open(build(media, [(name, 0, 1, "x"), (name, 1, 2, "x")]).path)
    assert manifest.row(1).path == str(media / name)
    lines = Path(manifest.path, "file_list.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split()[1:] for line in lines] == [["0", "0", "25"], ["1", "25", "50"]]
    assert all(os.path.samefile(line.split()[0], media / name) for line in lines)
    assert {row["path"] for row in read_csv(manifest.path, "audio_offsets.csv")} == {str(media / name)}


def test_a_line_stays_even_where_no_link_can_help(media: Path) -> None:
    os.rename(media / "mp4_25.mp4", media / "a b.mp4")
    manifest = build(media, [("a b.mp4", 0, 1, "x")], output=media / "my manifest")
    line = Path(manifest.path, "file_list.txt").read_text()
    assert line == f"{media}/my%20manifest/links/0.mp4 0 0 25\n"


def test_symbolic_links_are_kept_as_named(media: Path) -> None:
    (media / "link.mp4").symlink_to("mp4_25.mp4")
    manifest = build(media, [("link.mp4", 0, 1, "x")])
    assert manifest.row(0).path == str(media / "link.mp4")
    Manifest.open(manifest.path)


def test_no_row_at_all_is_an_error_that_says_why(media: Path) -> None:
    with pytest.raises(ManifestError, match=r"1 missing_file, 1 no_audio; the first is line 2: .*none.mp4.*media root"):
        build(media, [("none.mp4", 0, 1, "x"), ("no_sound.mp4", 0, 1, "x")])
    assert sorted(os.listdir(media.parent)) == ["clips.csv", "media"]


def test_a_missing_annotation_file_is_an_annotation_error(media: Path) -> None:
    with pytest.raises(AnnotationError, match=r"nothing\.csv"):
        build_manifest(media / "nothing.csv", media_root=media, output=media / "out")


def test_another_folder_or_file_is_never_replaced(media: Path) -> None:
    for output in (media, media / "mp4_25.mp4"):
        with pytest.raises(ManifestError, match="Name another output"):
            build(media, [("mp4_25.mp4", 0, 1, "x")], output=output)
    assert (media / "mp4_25.mp4").is_file()


def test_an_output_that_cannot_be_written_is_a_manifest_error(media: Path) -> None:
    with pytest.raises(ManifestError, match=r"it cannot be written: .* is not a folder"):
        build(media, [("mp4_25.mp4", 0, 1, "x")], output=media / "mp4_25.mp4" / "manifest")


def test_paths_that_are_not_utf8_are_rejected(media: Path) -> None:
    odd = media.parent / "odd\udcff"
    shutil.copytree(media, odd)
    good = (media / "mp4_25.mp4", 0, 1, "x")
    table = write_csv(media.parent / "clips.csv", [("mp4_25.mp4", 0, 1, "x"), good])
    manifest = build_manifest(table, media_root=odd, output=media.parent / "manifest", progress=False)
    assert [row["code"] for row in manifest.rejected()] == ["unreadable"]
    assert len(Manifest.open(manifest.path)) == 1


def test_a_manifest_is_replaced_as_a_whole(media: Path) -> None:
    first = build(media, [(name, 0, 1, "x") for name in ("mp4_25.mp4", "mkv_aac.mkv")])
    second = build(media, [("mp4_25.mp4", 0, 1, "x")])
    assert (first.path, len(Manifest.open(first.path))) == (second.path, 1)
    assert first.fingerprint != second.fingerprint
    assert sorted(os.listdir(media.parent)) == ["clips.csv", "manifest", "media"]


def test_a_failed_build_leaves_the_older_manifest(media: Path) -> None:
    build(media, [("mp4_25.mp4", 0, 1, "x")])
    with pytest.raises(ManifestError):
        build(media, [("none.mp4", 0, 1, "x")])
    assert len(Manifest.open(media.parent / "manifest")) == 1
    assert sorted(os.listdir(media.parent)) == ["clips.csv", "manifest", "media"]


BUILD_AND_STALL = """
import sys, time
from avloader import manifest, tables
write = tables.TableWriter.finish
def finish(self, options):
    write(self, options)
    print("written", flush=True)
    time.sleep(60)
tables.TableWriter.finish = finish
manifest.build_manifest(sys.argv[1], media_root=sys.argv[2], output=sys.argv[3])
"""


def test_a_killed_build_leaves_no_half_manifest_and_its_litter_goes_with_the_next(media: Path) -> None:
    old = build(media, [("mp4_25.mp4", 0, 1, "x")])
    table = write_csv(media.parent / "more.csv", [("mp4_25.mp4", 0, 1, "x"), ("mp4_25.mp4", 1, 2, "x")])
    environment = os.environ | {"PYTHONPATH": str(Path(avloader.__file__).parent.parent)}
    command = [sys.executable, "-c", BUILD_AND_STALL, table, media, old.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        assert len(Manifest.open(old.path)) == 1
        build(media, [("mp4_25.mp4", 0, 1, "x")], output=media.parent / "manifest")  # beside a build that is alive
        litter = [name for name in os.listdir(media.parent) if name.startswith(".manifest.building-")]
        assert len(litter) == 1
        process.send_signal(signal.SIGKILL)
    assert len(Manifest.open(old.path)) == 1
    assert (media.parent / litter[0]).is_dir()
    build(media, [("mp4_25.mp4", 0, 1, "x")])
    assert not (media.parent / litter[0]).exists()


def test_a_manifest_that_a_killed_build_had_moved_away_comes_back(media: Path) -> None:
    build(media, [("mp4_25.mp4", 0, 1, "x")])
    litter = media.parent / ".manifest.building-1"
    litter.mkdir()
    (litter / "lock").touch()
    os.rename(media.parent / "manifest", litter / "old")
    with pytest.raises(ManifestError, match="no annotation can be kept"):
        build(media, [("none.mp4", 0, 1, "x")])
    assert len(Manifest.open(media.parent / "manifest")) == 1
    assert not litter.exists()


@pytest.mark.parametrize("name", ["media.arrow", "clips.parquet"])
def test_a_tampered_table_is_refused(media: Path, name: str) -> None:
    path = Path(build(media, [("mp4_25.mp4", 0, 1, "x")]).path, name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=rf"{name}: its content was changed\. Build the manifest again\."):
        Manifest.open(path.parent)


@pytest.mark.parametrize("name", ["media.arrow", "clips.parquet", "file_list.txt", "audio_offsets.csv", "rejected.csv"])
def test_a_truncated_or_missing_file_is_refused(media: Path, name: str) -> None:
    path = Path(build(media, [("mp4_25.mp4", 0, 1, "x")]).path, name)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ManifestError, match=rf"{name}: it has \d+ bytes, \d+ were written"):
        Manifest.open(path.parent)
    path.unlink()
    with pytest.raises(ManifestError, match=rf"{name}: this file of the manifest is missing"):
        Manifest.open(path.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2, this avloader reads 1. Build the manifest again"),
        ({"schema_version": None}, "schema version None"),
        ({"labels": None}, "it lacks labels"),
    ],
)
def test_another_schema_is_refused(media: Path, change: dict[str, Any], message: str) -> None:
    path = Path(build(media, [("mp4_25.mp4", 0, 1, "x")]).path, "manifest.json")
    facts = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))
    with pytest.raises(ManifestError, match=message):
        Manifest.open(path.parent)


def test_tables_without_a_column_are_refused(media: Path) -> None:
    folder = Path(build(media, [("mp4_25.mp4", 0, 1, "x")]).path)
    table = pa.ipc.open_file((folder / "media.arrow").read_bytes()).read_all().drop_columns(["origin"])
    with pa.ipc.new_file(folder / "media.arrow", table.schema) as writer:
        writer.write_table(table)
    facts = json.loads((folder / "manifest.json").read_text())
    content = (folder / "media.arrow").read_bytes()
    facts["files"]["media.arrow"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(ManifestError, match=r"media\.arrow: it lacks the columns origin, another version"):
        Manifest.open(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_a_broken_manifest_json_is_refused(media: Path, text: str) -> None:
    path = Path(build(media, [("mp4_25.mp4", 0, 1, "x")]).path, "manifest.json")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ManifestError, match=r"manifest\.json: .*Build the manifest again"):
        Manifest.open(path.parent)


def test_a_folder_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ManifestError, match=r"there is no manifest here\. Build one with 'avloader manifest'"):
            Manifest.open(path)


def test_changed_media_are_refused_unless_one_says_so(media: Path) -> None:
    lines = [("mkv_aac.mkv", 0, 1, "x"), ("mp4_25.mp4", 0, 1, "x"), ("mp4_25.mp4", 1, 2, "x")]
    path = build(media, lines).path
    medium = media / "mp4_25.mp4"
    os.utime(medium, (1, 1))
    with pytest.raises(ManifestError, match=r"mp4_25\.mp4 \(row 1\): the medium was modified .*check_media=False"):
        Manifest.open(path)
    assert len(Manifest.open(path, check_media=False)) == 3
    os.truncate(medium, 1000)
    with pytest.raises(ManifestError, match="the medium has 1000 bytes, it had"):
        Manifest.open(path)
    medium.unlink()
    with pytest.raises(ManifestError, match=r"cannot be reached any more \(No such file or directory\)"):
        Manifest.open(path)


def test_a_manifest_is_pickled_by_its_path(media: Path) -> None:
    manifest = build(media, [("mp4_25.mp4", 0, 1, "x")])
    data = pickle.dumps(manifest)
    assert len(data) < 1000
    assert pickle.loads(data).row(0) == manifest.row(0)
    build(media, [("mp4_25.mp4", 0, 2, "x")])
    with pytest.raises(ManifestError, match="replaced while it was in use"):
        pickle.loads(data)


def test_a_manifest_crosses_to_another_process(media: Path) -> None:
    manifest = build(media, [("mp4_25.mp4", 0, 1, "x")])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(len, (manifest,)) == 1


def test_the_fingerprint_follows_content_not_place(media: Path, tmp_path: Path) -> None:
    lines = [("mp4_25.mp4", 0, 1, "x"), ("variable_rate.mp4", 1, 2, "y")]
    first = build(media, lines)
    moved = shutil.copytree(media, tmp_path / "elsewhere")
    os.utime(moved / "mp4_25.mp4", (1, 1))
    assert build(moved, lines, output=tmp_path / "second").fingerprint == first.fingerprint
    for other in (lines[::-1], [lines[0], ("variable_rate.mp4", 1, 3, "y")], [lines[0], (*lines[1][:3], "z")]):
        assert build(media, other).fingerprint != first.fingerprint


def test_rows_and_media_outside_the_tables_are_refused(media: Path) -> None:
    manifest = build(media, [("mp4_25.mp4", 0, 1, "x")])
    for number in (-1, 1):
        with pytest.raises(IndexError):
            manifest.row(number)
        with pytest.raises(IndexError):
            manifest.media(number)


def test_more_rows_than_a_chunk_keep_their_order(media: Path) -> None:
    lines = [("mp4_25.mp4", 0, number % 9 + 1, number) for number in range(66_000)]  # a chunk has 65,536
    manifest = build(media, lines)
    assert np.array_equal(manifest.label, np.arange(66_000))
    assert (manifest.row(65_999).label, manifest.row(65_536).stop_frame) == (65_999, 25 * (65_536 % 9 + 1))


@pytest.mark.parametrize("num_workers", [0, -1])
def test_a_wrong_number_of_workers_is_refused(media: Path, num_workers: int) -> None:
    with pytest.raises(ValueError, match="num_workers must be at least 1"):
        build(media, [], num_workers=num_workers)


def test_progress_shows_only_when_asked_for_and_slow(media: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Slowly:
        """Two paths that come late, as those of big media do."""

        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[str]:
            for number in range(3):
                time.sleep(0.8)
                yield str(media / f"none{number}.mp4")

    with ProbedMedia(str(media.parent)) as found:
        probe_all(Slowly(), found, num_workers=1, progress=True)  # type: ignore[arg-type]
        assert "Probing media" in capfd.readouterr().err
        assert isinstance(found.get(str(media / "none2.mp4")), MediaError)
        build(media, [("mp4_25.mp4", 0, 1, "x")])
        probe_all(Slowly(), found, num_workers=1, progress=None)  # type: ignore[arg-type]
        assert capfd.readouterr().err == ""


def test_a_null_in_a_path_is_rejected(media: Path) -> None:
    table = media.parent / "clips.jsonl"
    table.write_text('{"path": "a\\u0000b.mp4"}\n{"path": "mp4_25.mp4"}\n')
    manifest = build_manifest(table, media_root=media, output=media.parent / "manifest", progress=False)
    assert (len(manifest), manifest.num_rejected) == (1, 1)
