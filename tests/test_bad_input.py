"""Bad input, end to end through the command line: one line names file, row, cause and remedy; the rest still works.

Every case is one fault in a set-up that is good without it. What is expected of it stands in the table: the exit code,
the words that the message must hold, and which rows must be kept or rejected for which reason.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import pytest
from make_truth_media import Picture, Recipe, Sound, make
from PIL import Image

from avloader.cli import main
from avloader.errors import AVLoaderError, ManifestError
from avloader.loader import AVLoader
from avloader.manifest import Manifest

HEADER = "path,start,end,label"
SIDE_CAR = f"{HEADER},audio_path"
GOOD = ("good.mp4,0,1,cat", "good.mp4,1,2,dog")
BUILD = ("manifest", "clips.csv", "--media-root", "videos", "--output", "out")
PREVIEW = ("preview", "out", "--output", "picture.png", "--frames", "4", "--width", "600")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}

_SMALL = Picture(num_frames=50, gop=25, width=128, height=96)
_SHORT = Sound(seconds=2)


# The set-up -----------------------------------------------------------------------------------------------------------


class Room:
    """A folder that is good as it is: two rows of one medium. A case spoils it."""

    def __init__(self, root: Path, stock: Mapping[str, Path]) -> None:
        self.root = root
        self.stock = stock
        self.videos = root / "videos"
        self.table = root / "clips.csv"
        self.out = root / "out"
        self.videos.mkdir()
        self.add("good.mp4")
        self.write(*GOOD)

    @property
    def good(self) -> Path:
        """The medium of the two good rows."""
        return self.videos / "good.mp4"

    def write(self, *rows: str, header: str = HEADER) -> None:
        """Write the annotation file."""
        self.table.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")

    def add(self, name: str, stock: str = "good.mp4") -> Path:
        """Copy a medium of the stock."""
        path = self.videos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self.stock[stock], path)
        return path

    def build(self) -> None:
        """Build a manifest, which must succeed."""
        assert main(BUILD) == 0

    def rejected(self) -> list[dict[str, str]]:
        with (self.out / "rejected.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def litter(self) -> list[str]:
        """What unfinished builds have left."""
        return [path.name for path in self.root.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small media, made once."""
    folder = tmp_path_factory.mktemp("stock")
    slower = replace(_SMALL, rate=Fraction(24000, 1001), num_frames=48)
    recipes = (
        Recipe("good", "good.mp4", _SMALL, _SHORT),
        Recipe("other", "other.mp4", replace(_SMALL, gop=10), _SHORT),
        Recipe("slower", "slower.mp4", slower, _SHORT),
        Recipe("silent", "silent.mp4", _SMALL, None),
        Recipe("matroska", "matroska.mkv", _SMALL, _SHORT),
        Recipe("sound", "sound.wav", None, replace(_SHORT, codec="pcm_s16le")),
    )
    return {recipe.file_name: make(recipe, folder) for recipe in recipes}


@pytest.fixture
def room(tmp_path: Path, stock: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Room:
    root = tmp_path / "room"
    root.mkdir()
    monkeypatch.chdir(root)
    return Room(root, stock)


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    """A command in this process; what FFmpeg or Arrow might write to the streams directly is seen as well."""
    capfd.readouterr()
    try:
        code = main(arguments)
    except SystemExit as exit_info:
        code = int(exit_info.code or 0)
    captured = capfd.readouterr()
    return Outcome(code, captured.out, captured.err)


def finish(process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=60)
    return Outcome(process.returncode, out, err)


def start(*arguments: str, before: str = "", **more: object) -> subprocess.Popen[str]:
    """A command in a process of its own, after the statements `before`."""
    code = f"import sys\nfrom avloader import cli, manifest\n{before}\nsys.exit(cli.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **{"env": ENVIRONMENT, **more},  # type: ignore[call-overload]
    )


def check_error(outcome: Outcome, command: str, words: Sequence[str]) -> None:
    """One line that begins with the command, ends as a sentence and holds the words; nothing else is written."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    line = outcome.err.rstrip("\n")
    assert line.startswith(f"avloader {command}: error: ")
    assert "Traceback" not in line
    assert not re.search(r"Errno|Error\(|0x[0-9a-f]{6}", line)
    for word in words:
        assert word in line


def top_level_boxes(data: bytes) -> dict[bytes, tuple[int, int]]:
    """Where the boxes of an mp4 file begin and end."""
    boxes, place = {}, 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        boxes[data[place + 4 : place + 8]] = place, place + size
        place += size
    return boxes


def keep_time(path: Path, change: Callable[[Path], object]) -> None:
    """Change a file in a way that its size and time do not tell."""
    status = path.stat()
    change(path)
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def overwrite(path: Path, box: bytes, first: float = 0.3, last: float = 0.7) -> None:
    """Fill a part of a box with other bytes."""
    data = bytearray(path.read_bytes())
    begin, end = top_level_boxes(bytes(data))[box]
    begin, end = (int(begin + 16 + (end - begin - 16) * part) for part in (first, last))
    data[begin:end] = bytes((37 * place + 11) % 251 for place in range(end - begin))
    path.write_bytes(data)


# Lines that cannot be kept --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BadRow:
    """A line between good ones.

    Attributes:
        name: Of the case.
        line: The line.
        code: Why it is rejected.
        words: What the message holds.
        arrange: Makes what the line names.
        medium: The medium that `inspect` must refuse as well, with the same words; "" if it is fine by itself.
        header: Of the annotation file; the good lines are filled up with empty fields.
    """

    name: str
    line: str
    code: str
    words: tuple[str, ...]
    arrange: Callable[[Room], object] = lambda room: None
    medium: str = ""
    header: str = HEADER


def _bad_medium(
    name: str, code: str, words: tuple[str, ...], arrange: Callable[[Path, Room], object], file: str = "bad.mp4"
) -> BadRow:
    return BadRow(
        name,
        f'"{file}",0,1,cat',
        code,
        (f"videos/{file}: ", *words),
        lambda room: arrange(room.videos / file, room),
        medium=f"videos/{file}",
    )


def _cut(path: Path, room: Room, *, keep: float) -> None:
    data = room.good.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def _without_moov(path: Path, room: Room) -> None:
    data = room.good.read_bytes()
    begin, end = top_level_boxes(data)[b"moov"]
    path.write_bytes(data[:begin] + data[end:])


def _cut_after_moov(path: Path, room: Room) -> None:
    with av.open(room.good) as source, av.open(path, "w", options={"movflags": "faststart"}) as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    path.write_bytes(data[: len(data) * 2 // 3])


def _broken_moov(path: Path, room: Room) -> None:
    shutil.copy(room.good, path)
    overwrite(path, b"moov")


BAD_ROWS = (
    # Times
    BadRow("zero_length_interval", "good.mp4,1,1,cat", "empty_interval", ("end (1 s) must lie after start (1 s)",)),
    BadRow("end_before_start", "good.mp4,2,1,cat", "empty_interval", ("end (1 s) must lie after start (2 s)",)),
    BadRow("interval_between_two_frames", "good.mp4,1.01,1.02,cat", "empty_interval", ("no frame", "[1.01, 1.02) s")),
    BadRow("nan", "good.mp4,nan,1,cat", "bad_number", ("start: ", "'nan'", "finite")),
    BadRow("infinity", "good.mp4,0,inf,cat", "bad_number", ("end: ", "'inf'", "finite")),
    BadRow("negative", "good.mp4,-1,1,cat", "bad_time", ("start must be at least 0 s", "-1")),
    BadRow("number_out_of_all_range", "good.mp4,0,1e400,cat", "bad_number", ("end: ", "1e400")),
    BadRow("comma_as_decimal_point", 'good.mp4,"0,5",1,cat', "bad_number", ("start: ", "'0,5'", "write 0.5")),
    BadRow("time_with_colons", "good.mp4,0:00,0:01,cat", "bad_number", ("start: ", "'0:00'", "write 65.5")),
    BadRow("beyond_the_end", "good.mp4,7,8,cat", "outside_media", ("[7, 8) s", "[0, 2) s")),
    # Lines
    BadRow("too_few_fields", "good.mp4,0,1", "bad_line", ("4 fields", "got 3")),
    BadRow("too_many_fields", "good.mp4,0,1,cat,dog", "bad_line", ("4 fields", "got 5")),
    BadRow("open_quote", '"good.mp4,0,1,cat', "bad_line", ("quote",)),
    BadRow("empty_path", ",0,1,cat", "missing_field", ("path is empty",)),
    BadRow("null_character", "go\0od.mp4,0,1,cat", "bad_line", ("NUL",)),
    # Streams
    BadRow(
        "sound_in_place_of_video",
        "sound.wav,0,1,cat",
        "no_video",
        ("/videos/sound.wav: ", "no picture"),
        lambda room: room.add("sound.wav", "sound.wav"),
    ),
    BadRow(
        "no_sound",
        "silent.mp4,0,1,cat",
        "no_audio",
        ("/videos/silent.mp4: ", "no sound", "audio_path"),
        lambda room: room.add("silent.mp4", "silent.mp4"),
    ),
    BadRow(
        "missing_side_car",
        "good.mp4,0,1,cat,gone.wav",
        "missing_file",
        ("/videos/gone.wav: there is no such file",),
        header=SIDE_CAR,
    ),
    BadRow(
        "side_car_without_sound",
        "good.mp4,0,1,cat,silent.mp4",
        "no_audio",
        ("/videos/silent.mp4", "no sound"),
        lambda room: room.add("silent.mp4", "silent.mp4"),
        header=SIDE_CAR,
    ),
    # Media
    _bad_medium("missing_file", "missing_file", ("there is no such file", "Check"), lambda path, room: None),
    _bad_medium("folder_in_place_of_a_file", "unreadable", ("folder", "Name a file"), lambda path, room: path.mkdir()),
    _bad_medium("empty_file", "unreadable", ("is empty", "complete copy"), lambda path, room: path.touch()),
    _bad_medium(
        "text_renamed_to_mp4", "unreadable", ("not a media file",), lambda path, room: path.write_text("hello\n" * 99)
    ),
    _bad_medium("mp4_without_moov", "unreadable", ("complete copy",), _without_moov),
    _bad_medium("mp4_cut_before_moov", "unreadable", ("cut off", "complete copy"), lambda p, r: _cut(p, r, keep=0.5)),
    _bad_medium("mp4_cut_after_moov", "unreadable", ("cut off", "bytes are missing", "complete copy"), _cut_after_moov),
    _bad_medium(
        "mp4_of_ten_bytes", "unreadable", ("cut off",), lambda path, room: path.write_bytes(room.good.read_bytes()[:10])
    ),
    _bad_medium("broken_moov", "no_streams", ("complete copy",), _broken_moov),
    _bad_medium("named_pipe", "unreadable", ("not a regular file",), lambda path, room: os.mkfifo(path)),
    _bad_medium("link_in_a_circle", "unreadable", ("symbolic links",), lambda path, room: path.symlink_to(path.name)),
    _bad_medium(
        "dangling_link", "missing_file", ("there is no such file",), lambda path, room: path.symlink_to("gone.mp4")
    ),
    _bad_medium("name_too_long", "unreadable", ("name too long",), lambda path, room: None, file="a" * 300 + ".mp4"),
    _bad_medium("file_in_a_file", "missing_file", ("there is no such file",), lambda p, r: None, file="good.mp4/a.mp4"),
)
BAD_ROW_IDS = [case.name for case in BAD_ROWS]


@pytest.mark.parametrize("case", BAD_ROWS, ids=BAD_ROW_IDS)
def test_a_bad_row_is_rejected_by_its_line_and_the_good_ones_stay(
    case: BadRow, room: Room, capfd: pytest.CaptureFixture[str]
) -> None:
    case.arrange(room)
    fill = "," * case.header.count(",")
    first, second = (line + fill[line.count(",") :] for line in GOOD)
    room.write(first, case.line, second, header=case.header)

    built = run(capfd, *BUILD)
    assert (built.code, built.err) == (0, ""), built
    (reason,) = room.rejected()
    assert (reason["line"], reason["code"]) == ("3", case.code)
    for word in case.words:
        assert word in reason["message"]
    table = next(line for line in built.out.splitlines() if line.startswith(case.code))
    assert f"line 3: {reason['message']}" in table

    checked = run(capfd, "check", "out", "--sample", "2")
    assert (checked.code, checked.err) == (0, "")
    assert run(capfd, *BUILD, "--strict").code == 1


@pytest.mark.parametrize("case", BAD_ROWS, ids=BAD_ROW_IDS)
def test_a_file_of_bad_rows_alone_is_an_error_that_names_the_first(
    case: BadRow, room: Room, capfd: pytest.CaptureFixture[str]
) -> None:
    case.arrange(room)
    room.write(case.line, header=case.header)
    check_error(run(capfd, *BUILD), "manifest", ("/clips.csv: ", f"1 {case.code}", "line 2: ", *case.words))
    assert not room.out.exists()
    assert not room.litter()


@pytest.mark.parametrize("case", [case for case in BAD_ROWS if case.medium], ids=lambda case: case.name)
def test_inspect_refuses_a_bad_medium_in_the_same_words(
    case: BadRow, room: Room, capfd: pytest.CaptureFixture[str]
) -> None:
    case.arrange(room)
    check_error(run(capfd, "inspect", case.medium), "inspect", case.words)
    check_error(run(capfd, "inspect", case.medium, "--json"), "inspect", case.words)


# Commands that must fail ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    """A command that must end with exit code 2 and one line.

    Attributes:
        name: Of the case.
        command: Its arguments.
        words: What the line holds.
        arrange: Spoils the set-up.
        built: Whether there is a good manifest before that.
    """

    name: str
    command: tuple[str, ...]
    words: tuple[str, ...]
    arrange: Callable[[Room], object] = lambda room: None
    built: bool = False


def _bad_table(name: str, text: str | bytes, words: tuple[str, ...], *more: str) -> Refused:
    data = text.encode() if isinstance(text, str) else text
    return Refused(name, (*BUILD, *more), ("clips.csv", *words), lambda room: room.table.write_bytes(data))


def _bad_manifest(name: str, words: tuple[str, ...], arrange: Callable[[Room], object]) -> Refused:
    return Refused(name, PREVIEW, words, arrange, built=True)


def _edit_json(room: Room, **changes: object) -> None:
    path = room.out / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _cut_file(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def _flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


TEXT = "\n".join((HEADER, *GOOD, ""))
REBUILD = "Build the manifest again"
REFUSED = (
    # The annotation file
    Refused("missing_table", BUILD, ("clips.csv", "no such file", "Check the path"), lambda room: room.table.unlink()),
    Refused("folder_as_table", ("manifest", "videos", *BUILD[2:]), ("videos", "folder", "Name the annotation file")),
    Refused(
        "video_as_table",
        ("manifest", "videos/good.mp4", *BUILD[2:]),
        ("good.mp4", "binary file", "Name a table of clips"),
    ),
    _bad_table("empty_table", "", ("is empty",)),
    _bad_table("table_of_blank_lines", "\n \n", ("is empty",)),
    _bad_table("header_only", f"{HEADER}\n", ("holds no annotation",)),
    _bad_table("semicolons", TEXT.replace(",", ";"), ("(line 1)", "semicolons", "Save it as CSV with commas")),
    _bad_table("tabs", TEXT.replace(",", "\t"), ("(line 1)", "tabs", "Save it as CSV with commas")),
    _bad_table("semicolons_with_format", TEXT.replace(",", ";"), ("semicolons",), "--format", "csv"),
    _bad_table(
        "duplicate_header", TEXT.replace("end,label", "end,label,end"), ("(line 1)", "'end' twice", "Rename or remove")
    ),
    _bad_table(
        "missing_column", "path,start,label\ngood.mp4,0,cat\n", ("(line 1)", "lacks the column 'end'", "must name")
    ),
    _bad_table("column_without_name", TEXT.replace("path", ",path"), ("(line 1)", "column 1", "index=False")),
    _bad_table("no_header", "\n".join(GOOD), ("(line 1)", "path,start,end,label", "kinetics")),
    _bad_table("unknown_text", "hello world\n", ("(line 1)", "'hello world'", "path,start,end,label", "vggsound")),
    _bad_table("utf16", TEXT.encode("utf-16"), ("UTF-16", "iconv")),
    _bad_table(
        "latin1", (TEXT + "good.mp4,0,1,caf\u00e9\n").encode("latin-1"), ("(line 4)", "not UTF-8", "0xe9", "iconv")
    ),
    _bad_table("old_mac_line_ends", TEXT.replace("\n", "\r"), ("carriage return", "Convert")),
    _bad_table("json_list", '[{"path": "good.mp4"}]', ("one JSON document", "jq")),
    _bad_table("format_of_another_kind", TEXT, ("(line 1)", "header", "the right format"), "--format", "vggsound"),
    _bad_table("format_kinetics_for_csv", TEXT, ("(line 1)", "'youtube_id'"), "--format", "kinetics"),
    # Arguments
    Refused("unknown_format", (*BUILD, "--format", "vggsund"), ("'vggsund'", "vggsound", "csv")),
    Refused("template_for_csv", (*BUILD, "--media-template", "{id}.mp4"), ("--media-template", "csv", "path")),
    Refused(
        "template_with_unknown_field",
        (*BUILD, "--format", "vggsound", "--media-template", "{video}.mp4"),
        ("--media-template", "{video}", "{id}"),
    ),
    Refused("no_workers", (*BUILD, "--workers", "0"), ("--workers", "'0'", "at least 1")),
    Refused(
        "media_root_missing",
        ("manifest", "clips.csv", "--media-root", "vidoes", *BUILD[4:]),
        ("/vidoes: ", "no such folder", "media paths start from"),
    ),
    Refused(
        "media_root_is_a_file",
        ("manifest", "clips.csv", "--media-root", "clips.csv", *BUILD[4:]),
        ("/clips.csv: ", "not a folder", "media paths start from"),
    ),
    Refused(
        "root_not_utf8",
        ("manifest", "clips.csv", "--media-root", "caf\udce9", *BUILD[4:]),
        ("UTF-8", "Rename"),
        lambda room: shutil.copytree(room.videos, "caf\udce9"),
    ),
    Refused("inspect_of_a_name_not_utf8", ("inspect", "caf\udce9.mp4"), ("caf", "no such file")),
    Refused("inspect_of_a_name_of_two_lines", ("inspect", "two\nlines.mp4"), ("two lines.mp4", "no such file")),
    Refused("inspect_of_nothing", ("inspect", ""), ("no such file",)),
    # The output folder
    Refused(
        "output_is_another_folder",
        BUILD,
        ("/out: ", "not a manifest", "Name another"),
        lambda room: room.out.joinpath("thesis").mkdir(parents=True),
    ),
    Refused(
        "output_is_another_folder_with_a_manifest_json",
        BUILD,
        ("/out: ", "not a manifest", "index.html", "Name another"),
        lambda room: [
            room.out.mkdir(),
            (room.out / "manifest.json").write_text("{}"),
            (room.out / "index.html").touch(),
        ],
    ),
    Refused("output_not_utf8", (*BUILD[:4], "--output", "caf\udce9"), ("/caf", "not UTF-8", "Name another")),
    Refused("output_is_a_file", BUILD, ("/out: ", "not a folder", "Name another"), lambda room: room.out.touch()),
    Refused(
        "output_below_a_file",
        (*BUILD[:4], "--output", "clips.csv/out"),
        ("clips.csv/out: ", "cannot be written", "/clips.csv is not a folder", "Name another"),
    ),
    Refused("output_name_too_long", (*BUILD[:4], "--output", "a" * 300), ("too long", "Name another")),
    # The manifest
    Refused("no_manifest", PREVIEW, ("/out: there is no manifest here", "avloader manifest")),
    Refused(
        "manifest_is_a_video",
        ("check", "videos/good.mp4"),
        ("good.mp4: there is no manifest here", "avloader manifest"),
    ),
    Refused(
        "manifest_is_a_folder_of_videos",
        ("check", "videos"),
        ("videos: there is no manifest here", "avloader manifest"),
    ),
    Refused(
        "manifest_json_in_place_of_its_folder", ("check", "out/manifest.json"), ("Name its folder", "/out"), built=True
    ),
    _bad_manifest(
        "tampered_clips",
        ("clips.parquet", "content was changed", REBUILD),
        lambda r: keep_time(r.out / "clips.parquet", _flip_byte),
    ),
    _bad_manifest(
        "tampered_media",
        ("media.arrow", "content was changed", REBUILD),
        lambda r: keep_time(r.out / "media.arrow", _flip_byte),
    ),
    _bad_manifest("truncated_table", ("clips.parquet", "bytes", REBUILD), lambda r: _cut_file(r.out / "clips.parquet")),
    _bad_manifest(
        "missing_table_of_the_manifest",
        ("media.arrow", "missing", REBUILD),
        lambda r: (r.out / "media.arrow").unlink(),
    ),
    _bad_manifest(
        "another_schema_version",
        ("manifest.json", "version 7", "reads 1", REBUILD),
        lambda r: _edit_json(r, schema_version=7),
    ),
    _bad_manifest(
        "manifest_json_cut", ("manifest.json", "not JSON", REBUILD), lambda r: _cut_file(r.out / "manifest.json")
    ),
    _bad_manifest(
        "manifest_json_empty", ("manifest.json", "not JSON", REBUILD), lambda r: os.truncate(r.out / "manifest.json", 0)
    ),
    _bad_manifest(
        "manifest_json_of_something_else",
        ("manifest.json", "schema version None", "another program"),
        lambda r: (r.out / "manifest.json").write_text('{"name": "web"}'),
    ),
    _bad_manifest(
        "manifest_json_with_wrong_types",
        ("manifest.json", "num_rows, files", REBUILD),
        lambda r: _edit_json(r, files=[1], num_rows="two"),
    ),
    Refused(
        "missing_list",
        ("check", "out"),
        ("audio_offsets.csv", "missing", REBUILD),
        lambda r: (r.out / "audio_offsets.csv").unlink(),
        built=True,
    ),
    # Media that changed
    _bad_manifest(
        "file_replaced",
        ("/good.mp4 (row 0): ", "bytes", "build the manifest again"),
        lambda r: r.add("good.mp4", "other.mp4"),
    ),
    _bad_manifest(
        "file_touched",
        ("/good.mp4 (row 0): ", "modified", "build the manifest again"),
        lambda r: os.utime(r.good, (1, 1)),
    ),
    _bad_manifest(
        "file_deleted", ("/good.mp4 (row 0): ", "No such file", "Bring the file back"), lambda r: r.good.unlink()
    ),
    _bad_manifest(
        "file_truncated", ("/good.mp4 (row 0): ", "bytes", "Bring the file back"), lambda r: _cut_file(r.good)
    ),
    _bad_manifest(
        "file_became_a_folder",
        ("/good.mp4 (row 0): ", "not a file any more", "build the manifest again"),
        lambda r: [r.good.unlink(), r.good.mkdir()],
    ),
    _bad_manifest(
        "corrupted_header_at_the_same_time_stamp",
        ("/good.mp4 (row 0): ", "intact copy"),
        lambda r: keep_time(r.good, lambda p: overwrite(p, b"moov")),
    ),
    # The picture
    Refused("no_such_row", (*PREVIEW, "--row", "2"), ("--row", "2", "0 to 1"), built=True),
    Refused("negative_row", (*PREVIEW, "--row", "-1"), ("--row", "-1"), built=True),
    Refused(
        "picture_in_a_missing_folder",
        ("preview", "out", "--output", "gone/picture.png"),
        ("gone/picture.png", "no such file or directory"),
        built=True,
    ),
    Refused("picture_is_a_folder", ("preview", "out", "--output", "videos"), ("videos", "directory"), built=True),
    Refused("picture_too_wide", (*PREVIEW[:-1], "9000"), ("width", "9000", "8000"), built=True),
)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_a_command_that_cannot_work_says_why_in_one_line(
    case: Refused, room: Room, capfd: pytest.CaptureFixture[str]
) -> None:
    if case.built:
        room.build()
    case.arrange(room)
    before = sorted(room.root.rglob("*"))
    check_error(run(capfd, *case.command), case.command[0], case.words)
    assert sorted(room.root.rglob("*")) == before


# Unusual input that must work -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Works:
    """Input that looks bad and is not.

    Attributes:
        name: Of the case.
        arrange: Makes the annotation file.
        frames: [first, stop) of every row that must be kept, by its frames; the medium has 50, 25 a second.
        more: Further arguments of `manifest`.
    """

    name: str
    arrange: Callable[[Room], object]
    frames: tuple[tuple[int, int], ...]
    more: tuple[str, ...] = ()


BOTH = ((0, 25), (25, 50))


def _text(name: str, text: str, frames: tuple[tuple[int, int], ...] = BOTH) -> Works:
    return Works(name, lambda room: room.table.write_bytes(text.encode()), frames)


def _named(name: str, file: str) -> Works:
    def arrange(room: Room) -> None:
        room.add(file)
        with room.table.open("w", encoding="utf-8", newline="") as table:
            csv.writer(table).writerows([HEADER.split(","), [file, 0, 1, "cat"], [file, 1, 2, "dog"]])

    return Works(name, arrange, BOTH)


def _bad_title(room: Room) -> None:
    data = room.good.read_bytes()
    assert b"SoundHandler" in data
    room.good.write_bytes(data.replace(b"SoundHandler", b"S\xf6undHandler"))


def _linked(room: Room) -> None:
    (room.videos / "a link.mp4").symlink_to(room.add("deep/er/good.mp4"))
    room.write("a link.mp4,0,1,cat", "deep/er/../../good.mp4,1,2,dog")


def _side_car(room: Room) -> None:
    room.add("silent.mp4", "silent.mp4")
    room.add("sound.wav", "sound.wav")
    room.write("silent.mp4,0,1,cat,sound.wav", "silent.mp4,1,2,dog,sound.wav", header=SIDE_CAR)


def _vggsound(room: Room) -> None:
    room.add("0123456789a.mp4")
    room.table.write_text('0123456789a,1,"cat, dog",train\n')


WORKS = (
    _text("byte_order_mark", "\ufeff" + TEXT),
    _text("crlf", TEXT.replace("\n", "\r\n")),
    _text("no_line_end_at_the_end", TEXT.rstrip()),
    _text("blank_lines_and_spaces", TEXT.replace(",", ", ").replace("\n", "\n\n")),
    _text("other_order_of_columns", "label,end,start,path\ncat,1,0,good.mp4\ndog,2,1,good.mp4\n"),
    _text("label_with_comma", TEXT.replace("cat", '"cat, dog"')),
    _text("label_with_a_formula", TEXT.replace("cat", "=1+1")),
    _text("partly_beyond_the_end", f"{HEADER}\ngood.mp4,1,9,cat\n", ((25, 50),)),
    _text("whole_medium", f"{HEADER}\ngood.mp4,,,\n", ((0, 50),)),
    _text("number_with_exponent", f"{HEADER}\ngood.mp4,1e-1,1.0E0,cat\n", ((3, 25),)),
    _text("duplicate_ids", f"{HEADER},id\ngood.mp4,0,1,cat,a\ngood.mp4,1,2,dog,a\n"),
    _text("the_same_row_twice", f"{HEADER}\n{GOOD[0]}\n{GOOD[0]}\n", ((0, 25), (0, 25))),
    _text("two_hundred_rows_of_one_medium", "\n".join((HEADER, *GOOD * 100)), BOTH * 100),
    _named("path_with_spaces", "a  b/c d.mp4"),
    _named("path_with_commas", "a,b.mp4"),
    _named("path_with_quotes", "a\"b'c.mp4"),
    _named("path_with_a_line_break", "a\nb.mp4"),
    _named("path_with_non_ascii_letters", "\u043a\u043e\u0448\u043a\u0430 \u732b \U0001f408.mp4"),
    _named("path_with_shell_characters", "$(x) `y` *?[0] #&;%20.mp4"),
    _named("path_like_an_address", "http:/x/file:y.mp4"),
    _named("path_like_an_option", "-i.mp4"),
    _named("path_without_extension", "good"),
    Works("title_that_is_not_utf8", _bad_title, BOTH),
    Works("links_and_dots", _linked, BOTH),
    Works("side_car_for_a_silent_video", _side_car, BOTH),
    Works("template", _vggsound, ((25, 50),), ("--media-template", "{id}.mp4")),
)


@pytest.mark.parametrize("case", WORKS, ids=lambda case: case.name)
def test_unusual_input_that_is_not_bad_works_in_every_command(
    case: Works, room: Room, capfd: pytest.CaptureFixture[str]
) -> None:
    case.arrange(room)
    built = run(capfd, *BUILD, "--strict", *case.more)
    assert (built.code, built.err) == (0, ""), built
    manifest = Manifest.open("out")
    assert list(zip(manifest.first_frame.tolist(), manifest.stop_frame.tolist(), strict=True)) == list(case.frames)
    last = manifest.row(len(manifest) - 1)
    for command in (("check", "out", "--sample", "2"), ("inspect", last.path), ("inspect", last.audio_path, "--json")):
        outcome = run(capfd, *command)
        assert (outcome.code, outcome.err) == (0, ""), outcome
    drawn = run(capfd, *PREVIEW, "--row", str(len(manifest) - 1), "--json")
    assert (drawn.code, drawn.err) == (0, "")
    assert json.loads(drawn.out)["frame_seconds"][0] == case.frames[-1][0] / 25
    with Image.open("picture.png") as picture:
        assert picture.width == 600


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_a_terminal_cannot_show_are_shown_by_their_codes(encoding: str, room: Room) -> None:
    for name, shown in (("caf\udce9.mp4", "caf\\udce9.mp4"), ("\u732b.mp4", "\u732b.mp4")):
        shutil.copy(room.good, name)
        if encoding == "ascii":
            shown = shown.replace("\u732b", "\\u732b")
        for more in ((), ("--json",)):
            outcome = finish(start("inspect", name, *more, env={**ENVIRONMENT, "PYTHONIOENCODING": encoding}))
            assert (outcome.code, outcome.err) == (0, "")
            assert shown in outcome.out
        assert json.loads(outcome.out)["path"] == name


# What `check` finds ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finds:
    """A fault after the manifest was built.

    Attributes:
        name: Of the case.
        arrange: Makes the fault.
        words: What the finding holds.
        sample: Rows to decode.
        row: The row that it names.
    """

    name: str
    arrange: Callable[[Room], object]
    words: tuple[str, ...]
    sample: int = 0
    row: int | None = 0


FINDS = (
    Finds("file_replaced", lambda r: r.add("good.mp4", "other.mp4"), ("/good.mp4", "bytes", REBUILD)),
    Finds("file_touched", lambda r: os.utime(r.good, (1, 1)), ("/good.mp4", "modified", REBUILD)),
    Finds("file_deleted", lambda r: r.good.unlink(), ("/good.mp4", "No such file", REBUILD)),
    Finds("file_truncated", lambda r: _cut_file(r.good), ("/good.mp4", "bytes", REBUILD)),
    Finds("file_deleted_and_rows_decoded", lambda r: r.good.unlink(), ("/good.mp4", "No such file", REBUILD), sample=2),
    Finds(
        "list_edited", lambda r: keep_time(r.out / "file_list.txt", _flip_byte), ("file_list.txt", "changed"), row=None
    ),
    Finds(
        "corrupted_header",
        lambda r: keep_time(r.good, lambda p: overwrite(p, b"moov")),
        ("/good.mp4", "linear decode"),
        sample=1,
    ),
    Finds(
        "corrupted_pictures",
        lambda r: keep_time(r.good, lambda p: overwrite(p, b"mdat", 0, 1)),
        ("/good.mp4", "linear decode"),
        sample=1,
    ),
)


@pytest.mark.parametrize("case", FINDS, ids=lambda case: case.name)
def test_check_names_what_is_not_as_it_was_and_exits_with_1(
    case: Finds, room: Room, capfd: pytest.CaptureFixture[str]
) -> None:
    room.add("second.mp4")
    room.write(*GOOD, "second.mp4,0,1,cat")
    room.build()
    case.arrange(room)
    outcome = run(capfd, "check", "out", "--sample", str(case.sample), "--json")
    assert (outcome.code, outcome.err) == (1, ""), outcome
    (finding,) = json.loads(outcome.out)["findings"]
    assert finding["row"] == case.row
    text = f"{finding['path']}: {finding['what']}. {finding['remedy']}"
    for word in case.words:
        assert word in text
    outcome = run(capfd, "check", "out", "--sample", str(case.sample))
    assert (outcome.code, outcome.err) == (1, "")
    assert finding["what"] in outcome.out


def test_corrupted_pictures_are_refused_in_one_line(room: Room, capfd: pytest.CaptureFixture[str]) -> None:
    room.build()
    keep_time(room.good, lambda path: overwrite(path, b"mdat", 0, 1))
    check_error(run(capfd, *PREVIEW), "preview", ("/good.mp4 (row 0): the picture ", "intact copy"))


# The loader -----------------------------------------------------------------------------------------------------------


def test_mixed_frame_rates_are_refused_by_the_loader_with_what_to_do(room: Room) -> None:
    room.add("slower.mp4", "slower.mp4")
    room.write(*GOOD, "slower.mp4,0,1,cat")
    room.build()
    with pytest.raises(ManifestError, match=r"row 2.*fps=") as caught:
        AVLoader("out", batch_size=2, num_frames=4, device="cpu")
    assert "\n" not in str(caught.value)
    assert "24000/1001" in str(caught.value)
    with AVLoader(
        "out", batch_size=3, num_frames=4, size=32, fps=12, clips="first", device="cpu", num_workers=1
    ) as loader:
        assert [batch.row.tolist() for batch in loader] == [[0, 1, 2]]


def test_rows_too_short_for_a_clip_are_refused_by_the_loader_with_what_to_do(room: Room) -> None:
    room.build()
    with pytest.raises(ManifestError, match=r"spans 26 frames, rows have up to 25\. Ask for fewer frames") as caught:
        AVLoader("out", batch_size=2, num_frames=26, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_medium_that_goes_bad_under_the_loader_is_named_with_its_row_or_skipped(room: Room) -> None:
    room.add("second.mp4")
    room.write(*GOOD, "second.mp4,0,1,cat")
    room.build()
    keep_time(room.good, lambda path: overwrite(path, b"mdat", 0, 1))
    options = {"batch_size": 1, "num_frames": 4, "size": 32, "clips": "first", "device": "cpu", "num_workers": 1}
    with AVLoader("out", **options) as loader, pytest.raises(AVLoaderError) as caught:
        list(loader)
    assert (caught.value.row, caught.value.path) == (0, str(room.good))
    with AVLoader("out", **options, on_error="skip") as loader:
        assert [batch.row.tolist() for batch in loader] == [[2]]
        assert [clip.row for clip in loader.skipped] == [0, 1]


# Processes, permissions, full disks -----------------------------------------------------------------------------------

NOBODY = 65534


@pytest.fixture
def open_room(room: Room, stock: dict[str, Path]) -> Iterator[Room]:
    """A room below folders that every user may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Room(Path(name), stock)


def unprivileged(room: Room, *arguments: str) -> Outcome:
    """A command as a user without privileges: permissions do not bind root.

    What the command imports is imported before: such a user may not be allowed to read the interpreter's own files.
    """
    before = ""
    if os.geteuid() == 0:
        for path in (room.root, *room.root.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        before = "import os, avloader.check, encodings.utf_8_sig, locale\n"
        before += f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
    return finish(start(*arguments, before=before, cwd=room.root))


def test_media_without_read_permission_are_rejected_and_the_others_kept(open_room: Room) -> None:
    open_room.add("locked.mp4").chmod(0)
    open_room.add("locked/up.mp4").parent.chmod(0)
    open_room.write(GOOD[0], "locked.mp4,0,1,cat", "locked/up.mp4,0,1,cat", GOOD[1])
    outcome = unprivileged(open_room, *BUILD)
    open_room.videos.joinpath("locked").chmod(0o700)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    reasons = open_room.rejected()
    assert [reason["code"] for reason in reasons] == ["unreadable", "unreadable"]
    for reason, name in zip(reasons, ("locked.mp4", "locked/up.mp4"), strict=True):
        assert f"/videos/{name}: " in reason["message"]
        assert "permission" in reason["message"]
    check_error(unprivileged(open_room, "inspect", "videos/locked.mp4"), "inspect", ("locked.mp4: ", "permission"))


def test_a_table_without_read_permission_is_refused(open_room: Room) -> None:
    open_room.table.chmod(0)
    check_error(unprivileged(open_room, *BUILD), "manifest", ("clips.csv: ", "Permission denied", "permissions"))


def test_an_output_without_write_permission_is_refused_before_media_are_read(open_room: Room) -> None:
    open_room.write("bad.mp4,0,1,cat")
    locked = open_room.root / "locked"
    locked.mkdir(mode=0o555)
    for output in ("locked/out", "locked/deep/er/out"):
        outcome = unprivileged(open_room, *BUILD[:4], "--output", output)
        check_error(outcome, "manifest", (f"/{output}: ", "no permission to write", "Name another output"))


def test_a_manifest_without_read_permission_is_refused(open_room: Room) -> None:
    assert unprivileged(open_room, *BUILD).code == 0
    (open_room.out / "clips.parquet").chmod(0)
    outcome = unprivileged(open_room, "check", "out")
    check_error(outcome, "check", ("clips.parquet: ", "Permission denied", "permissions"))
    (open_room.out / "clips.parquet").chmod(0o600)
    (open_room.out / "manifest.json").chmod(0)
    check_error(
        unprivileged(open_room, "check", "out"), "check", ("manifest.json: ", "Permission denied", "permissions")
    )


def many_rows(room: Room, number: int = 20000) -> None:
    room.write(*GOOD * (number // 2))


def test_a_limit_on_file_sizes_leaves_the_older_manifest(room: Room) -> None:
    room.build()
    many_rows(room)
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))"
    outcome = finish(start(*BUILD, before=before))
    check_error(outcome, "manifest", ("/out: ", "cannot be written", "File too large", "make room"))
    assert not room.litter()
    assert len(Manifest.open("out")) == 2


def test_a_full_disk_leaves_nothing(room: Room) -> None:
    disk = room.root / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if (
        os.geteuid()
        or not shutil.which("mount")
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount; the limit on file sizes is tested instead")
    try:
        many_rows(room)
        outcome = finish(start(*BUILD[:4], "--output", "disk/out"))
        check_error(outcome, "manifest", ("/disk/out: ", "cannot be written", "No space left on device", "make room"))
        assert list(disk.iterdir()) == []
        room.write(*GOOD)
        assert main([*BUILD[:4], "--output", "disk/out"]) == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """Wait until something has happened while the process runs."""
    end = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_stopped_while_it_writes_leaves_the_older_manifest(number: signal.Signals, room: Room) -> None:
    room.build()
    many_rows(room, 100000)
    process = start(*BUILD)
    wait_for(process, lambda: any("building" in name for name in room.litter()))
    process.send_signal(number)
    outcome = finish(process)
    if number == signal.SIGINT:
        assert (outcome.code, outcome.out, outcome.err) == (130, "", "avloader: stopped\n")
        assert not room.litter()
    else:
        assert (outcome.code, outcome.out, outcome.err) == (-signal.SIGKILL, "", "")
        assert room.litter()
    assert len(Manifest.open("out")) == 2
    room.write(GOOD[0])
    room.build()
    assert len(Manifest.open("out")) == 1
    assert not room.litter()


def children(process: subprocess.Popen[str]) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(number) for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    return []


def test_ctrl_c_while_processes_read_media_ends_them_all_without_a_word(room: Room) -> None:
    source = room.add("matroska.mkv", "matroska.mkv")
    names = [f"{number}.mkv" for number in range(2000)]
    for name in names:
        os.link(source, room.videos / name)
    room.write(*(f"{name},0,1,cat" for name in names))
    process = start(*BUILD, "--workers", "2", start_new_session=True)
    wait_for(process, lambda: len(children(process)) >= 2)
    time.sleep(0.5)  # they are past their imports, and at work
    found = children(process)
    os.killpg(process.pid, signal.SIGINT)
    outcome = finish(process)
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "avloader: stopped\n")
    assert not room.out.exists()
    assert not room.litter()
    assert not [child for child in found if Path(f"/proc/{child}").exists()]


def test_an_output_that_nobody_reads_is_no_error(room: Room) -> None:
    room.build()
    for command in (("inspect", "videos/good.mp4"), ("check", "out", "--sample", "1"), BUILD, (*BUILD, "--json")):
        read, write = os.pipe()
        os.close(read)
        code = "import sys; from avloader.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, *command], stdout=write, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (0, b"")
