"""Tests of shortened headers: what is said of a medium is what its whole header makes FFmpeg say."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import TruthMedia, every_recipe
from make_truth_media import CATALOG, Picture, Recipe, Sound, make

from avloader import media
from avloader.errors import MediaError
from avloader.media import probe
from avloader.mp4 import find_header, read_movie
from avloader.shorten import PatchedFile, shorten

# Why these are probed by their whole header.
WHOLE = {
    "cut": "the cut hides more sound than the shortened header keeps",
    "cut_between_frames": "the cut hides more sound than the shortened header keeps",
    "fragmented": "the header holds no samples",
    "intra_refresh": "key frames are not whole pictures",
    "mov_pcm": "of PCM a sample is no packet",
    "no_edit_list": "its sound has a hole",
    "sound_hole": "its sound has a hole",
    "variable_rate": "frames differ in duration",
    "variable_rate_b_frames": "frames differ in duration",
}


def flat(value: Any) -> Any:
    """All facts in what can be compared."""
    if is_dataclass(value):
        return {field.name: flat(getattr(value, field.name)) for field in fields(value)}
    return value.tolist() if isinstance(value, np.ndarray) else value


def facts(path: Path) -> Any:
    """What is said of a file, or why nothing is."""
    try:
        return flat(probe(path))
    except MediaError as error:
        return str(error)


def is_shortened_with_the_same_facts(path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether facts come from a shortened header; they must be those from the whole one."""
    with monkeypatch.context() as patch:
        patch.setattr(media, "_LONG_HEADER", 2**40)
        whole = facts(path)
        patch.setattr(media, "_LONG_HEADER", 0)
        plain, found = media._probe_shortened, []
        patch.setattr(media, "_probe_shortened", lambda *arguments: found.append(plain(*arguments)) or found[-1])
        assert facts(path) == whole
    return bool(found) and found[-1] is not None


@every_recipe
def test_a_shortened_header_tells_the_same_of_all_media(
    recipe: Recipe, truth_media: TruthMedia, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = recipe.file_name.endswith((".mp4", ".mov", ".m4a")) and recipe.name not in WHOLE
    assert is_shortened_with_the_same_facts(truth_media[recipe.name], monkeypatch) == expected


def remuxed(source: Path, target: Path, **options: str) -> Path:
    with av.open(str(source)) as given, av.open(str(target), "w", options=options) as output:
        copies = {stream.index: output.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                output.mux(packet)
    return target


@pytest.mark.parametrize(
    ("ending", "options"),
    [
        ("mp4", {"movflags": "faststart"}),
        ("mp4", {"movflags": "negative_cts_offsets"}),
        ("mp4", {"movflags": "rtphint"}),
        ("mp4", {"video_track_timescale": "90000", "movie_timescale": "90000"}),
        ("mov", {}),
        ("mov", {"write_tmcd": "1"}),
        ("3gp", {}),
    ],
)
def test_other_ways_to_write_the_header(
    ending: str, options: dict[str, str], truth_media: TruthMedia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = remuxed(truth_media["three_b_frames"], tmp_path / f"other.{ending}", **options)
    assert is_shortened_with_the_same_facts(path, monkeypatch) == (options.get("movflags") != "rtphint")


def test_a_picture_much_shorter_than_its_sound_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe("slow", "slow.mp4", Picture(Fraction(2), num_frames=20, gop=10), Sound())
    assert is_shortened_with_the_same_facts(make(recipe, tmp_path), monkeypatch)


def changed(source: Path, target: Path, change: Callable[[bytearray, int], None], kind: bytes) -> Path:
    """The file after a change to the first table of a kind, at its entry count."""
    data = bytearray(source.read_bytes())
    change(data, data.index(kind, data.index(b"moov")) + 8)
    target.write_bytes(data)
    return target


def swap_in_the_middle(data: bytearray, place: int) -> None:
    """Two frames 100 runs from the start change their times; no frame has the time of one of them any more."""
    first = place + 4 + 8 * 100
    (value,) = struct.unpack_from(">i", data, first + 4)
    struct.pack_into(">i", data, first + 4, value + 512)


def move_out_of_the_grid(data: bytearray, place: int) -> None:
    """A frame in the middle comes a third of a frame too late."""
    first = place + 4 + 8 * 100
    (value,) = struct.unpack_from(">i", data, first + 4)
    struct.pack_into(">i", data, first + 4, value + 170)


def move_far(data: bytearray, place: int) -> None:
    """A frame in the middle comes hours later."""
    struct.pack_into(">i", data, place + 4 + 8 * 100 + 4, 2**30)


@pytest.mark.parametrize("change", [swap_in_the_middle, move_out_of_the_grid, move_far])
def test_what_is_uneven_in_the_middle_only_is_not_called_even(
    change: Callable[[bytearray, int], None], truth_media: TruthMedia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed(truth_media["three_b_frames"], tmp_path / "uneven.mp4", change, b"ctts")
    assert not is_shortened_with_the_same_facts(path, monkeypatch)


def test_a_long_frame_in_the_middle_is_seen(
    truth_media: TruthMedia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = replace(CATALOG["no_b_frames"].picture or Picture(), frame_ticks=(*range(120), *range(121, 251)))
    recipe = Recipe("long_frame", "long_frame.mp4", picture, Sound())
    assert not is_shortened_with_the_same_facts(make(recipe, tmp_path), monkeypatch)


@pytest.mark.parametrize("kind", [b"stts", b"stss", b"ctts", b"stsc", b"stsz", b"stco"])
@pytest.mark.parametrize("count", [0, 1, 99, 2**31 - 1])
def test_damaged_tables_are_left_to_the_whole_header(
    kind: bytes, count: int, truth_media: TruthMedia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = 4 if kind == b"stsz" else 0
    path = changed(
        truth_media["three_b_frames"],
        tmp_path / "damaged.mp4",
        lambda data, start: struct.pack_into(">I", data, start + place, count),
        kind,
    )
    is_shortened_with_the_same_facts(path, monkeypatch)


def test_the_header_of_an_hour_is_as_short_as_that_of_ten_minutes(truth_media: TruthMedia) -> None:
    path = str(truth_media["hour"])
    header = find_header(path)
    assert header is not None
    assert header.end - header.begin > 10**6
    shortened = shorten(path, header)
    assert shortened is not None
    assert len(shortened.patch) < 6000
    assert sorted(middle.num_samples for middle in shortened.middles.values()) == [56235, 107892]
    whole = read_movie(path)
    assert whole is not None
    for track_id, middle in shortened.middles.items():
        track, short = whole.tracks[track_id], shortened.movie.tracks[track_id]
        kept = np.r_[0:64, track.num_samples - 32 : track.num_samples]
        np.testing.assert_array_equal(short.composition, track.composition[kept])
        np.testing.assert_array_equal(short.is_key, track.is_key[kept])
        np.testing.assert_array_equal(short.positions(np.arange(96)), track.positions(kept))
        if track.stss is not None:
            keys = track.stss[[1, len(track.stss) // 2, -1]]
            np.testing.assert_array_equal(middle.key_positions, track.positions(keys))


def test_a_patched_file_reads_as_if_it_were_written_so(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    expected = bytes(range(40)) + b"patch" + bytes(range(45, 100))
    file = PatchedFile(str(path), 40, b"patch")
    for first in range(100):
        for size in (1, 3, 7, 50, 200):
            assert file.seek(first) == file.tell() == first
            assert file.read(size) == expected[first : first + size]
    assert file.seek(0, 2) == 100
    file.close()
