from __future__ import annotations

import json
import os
import tracemalloc
from fractions import Fraction
from pathlib import Path

import pytest

from avloader.annotations import FORMATS, Annotation, BadAnnotation, detect_format, read_annotations
from avloader.errors import AnnotationError

SAMPLES = Path(__file__).parent.parent / "manifests" / "formats"
HEADER = "path,start,end,label\n"


@pytest.fixture
def write(tmp_path):
    def write_file(content):
        path = tmp_path / "annotations.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def only(entries):
    (entry,) = entries
    return entry


def faults(entries):
    return [(entry.line, entry.code) for entry in entries if isinstance(entry, BadAnnotation)]


def file_fault(path, **options):
    with pytest.raises(AnnotationError) as caught:
        list(read_annotations(path, **options))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("sample", sorted(SAMPLES.iterdir()), ids=lambda path: path.name)
def test_every_sample_is_detected_and_has_no_bad_line(sample):
    expected = {"clips.csv": "csv", "clips.jsonl": "jsonl"}.get(sample.name, sample.stem)
    assert detect_format(sample) == expected
    entries = list(read_annotations(sample))
    assert len(entries) >= 2
    assert faults(entries) == []
    assert entries == list(read_annotations(str(sample), format=expected))


def test_every_format_is_described_in_one_line():
    assert list(FORMATS) == ["csv", "jsonl", "vggsound", "audioset", "avspeech", "kinetics"]
    assert all(each.description and "\n" not in each.description for each in FORMATS.values())
    assert all(each.default_template in each.read.__doc__ for each in FORMATS.values() if each.default_template)


def test_csv_keeps_every_field_exactly(write):
    path = write("id,label,path,start,end,audio_path,av_offset,take\nx,Grüße,a b.mp4,0.1,1e1,a.wav,-0.04,007\n")
    assert only(read_annotations(path)) == Annotation(
        line=2,
        path="a b.mp4",
        start=Fraction(1, 10),
        end=Fraction(10),
        label="Grüße",
        audio_path="a.wav",
        av_offset=Fraction(-1, 25),
        id="x",
        extra={"take": "007"},
    )


def test_empty_times_mean_the_whole_medium(write):
    entry = only(read_annotations(write(HEADER + "a.mp4,,,\n")))
    assert (entry.start, entry.end, entry.label, entry.id, entry.audio_path) == (None, None, "", None, None)


def test_bom_crlf_and_blank_lines_do_not_matter(write):
    path = write(b"\xef\xbb\xbf\r\npath,start,end,label\r\n\r\na.mp4,0,1,x\r\n  \r\nb.mp4,1,2,y")
    assert [(entry.line, entry.path, entry.label) for entry in read_annotations(path)] == [
        (4, "a.mp4", "x"),
        (6, "b.mp4", "y"),
    ]


def test_a_record_counts_from_its_first_line_when_quotes_hold_line_ends(write):
    path = write(HEADER + 'a.mp4,0,1,"one\ntwo ""and"" three"\nb.mp4,2,1,x\nc.mp4,1,2,y\n')
    entries = list(read_annotations(path))
    assert [entry.line for entry in entries] == [2, 4, 5]
    assert entries[0].label == 'one\ntwo "and" three'
    assert faults(entries) == [(4, "empty_interval")]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("a.mp4,NaN,1,x", "bad_number"),
        ("a.mp4,0,inf,x", "bad_number"),
        ("a.mp4,zero,1,x", "bad_number"),
        ("a.mp4,1e999999,,x", "bad_number"),
        ('a.mp4,"1,5",2,x', "bad_number"),
        ("a.mp4,-1,1,x", "bad_time"),
        ("a.mp4,,-1,x", "bad_time"),
        ("a.mp4,2,1,x", "empty_interval"),
        ("a.mp4,1,1.000,x", "empty_interval"),
        ("a.mp4,,0,x", "empty_interval"),
        (",0,1,x", "missing_field"),
        ("a.mp4,0,1", "bad_line"),
        ("a.mp4,0,1,x,y", "bad_line"),
        ("a\0.mp4,0,1,x", "bad_line"),
        ('a.mp4,0,1,"x"y', "bad_line"),
        ('a.mp4,0,1,"x', "bad_line"),
        ("a.mp4,0,1," + "x" * 200_000, "bad_line"),
        ("a.mp4,0,1," + "x" * 3_000_000, "bad_line"),
    ],
    ids=lambda value: value[:24],
)
def test_a_bad_csv_line_is_reported_and_the_next_line_is_read(write, line, code):
    before, bad, after = read_annotations(write(f"{HEADER}a.mp4,0,1,x\n{line}\nb.mp4,0,1,x\n"))
    assert (before.line, before.path, after.line, after.path) == (2, "a.mp4", 4, "b.mp4")
    assert isinstance(bad, BadAnnotation)
    assert (bad.line, bad.code) == (3, code)
    assert bad.message
    assert "\n" not in bad.message
    assert len(bad.message) < 400
    assert bad.text == (line if len(line) <= 200 else line[:197] + "...")


def test_an_unclosed_quote_costs_its_own_line_alone(write):
    lines = ['"a.mp4,0,1,x'] + [f"{index}.mp4,0,1,x" for index in range(20_000)]
    entries = list(read_annotations(write(HEADER + "\n".join(lines))))
    assert faults(entries) == [(2, "bad_line")]
    assert [entry.line for entry in entries] == list(range(2, 20_003))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"path": "a.mp4", "start": NaN}', "bad_number"),
        ('{"path": "a.mp4", "end": Infinity}', "bad_number"),
        ('{"path": "a.mp4", "start": "1.5"}', "bad_number"),
        ('{"path": "a.mp4", "start": true}', "bad_number"),
        ('{"path": "a.mp4", "av_offset": [1]}', "bad_number"),
        ('{"path": "a.mp4", "start": -1}', "bad_time"),
        ('{"path": "a.mp4", "start": 2, "end": 1}', "empty_interval"),
        ('{"start": 0}', "missing_field"),
        ('{"path": null}', "missing_field"),
        ('{"path": 7}', "bad_line"),
        ('{"path": "a.mp4", "label": 1.5}', "bad_line"),
        ('{"path": "a.mp4", "label": false}', "bad_line"),
        ('{"path": "a.mp4", "id": {}}', "bad_line"),
        ('{"path": "a.mp4", "path": "b.mp4"}', "bad_line"),
        ('{"path": "a\\u0000.mp4"}', "bad_line"),
        ('{"path": "a\\ud800.mp4"}', "bad_line"),
        ('{"path": "a.mp4"', "bad_line"),
        ('["a.mp4"]', "bad_line"),
        ("7", "bad_line"),
        ("[" * 100_000, "bad_line"),
        ('{"path": "a.mp4", "x": "' + "x" * 3_000_000 + '"}', "bad_line"),
    ],
    ids=lambda value: value[:40],
)
def test_a_bad_json_line_is_reported_and_the_next_line_is_read(write, line, code):
    before, bad, after = read_annotations(write(f'{{"path": "a.mp4"}}\n{line}\n{{"path": "b.mp4"}}\n'))
    assert (before.line, after.line, after.path) == (1, 3, "b.mp4")
    assert isinstance(bad, BadAnnotation)
    assert (bad.line, bad.code) == (2, code)
    assert bad.message
    assert "\n" not in bad.message


def test_json_numbers_are_exact_decimals_and_other_values_stay_text(write):
    times = '"start": 0.1, "end": 0.123456789012345678901'
    others = '"label": 3, "n": 12, "ok": true, "l": [1.5]'
    entry = only(read_annotations(write(f'{{"path": "é.mp4", {times}, {others}}}')))
    assert (entry.path, entry.label) == ("é.mp4", "3")
    assert entry.start == Fraction(1, 10)
    assert entry.end == Fraction("0.123456789012345678901")
    assert entry.extra == {"n": "12", "ok": "true", "l": "[1.5]"}


def test_csv_and_json_lines_say_the_same(write):
    path = write(
        "path,start,end,label,audio_path,av_offset,id,take\n"
        'a.mp4,0.1,12.345678901,"x, ""y""",a.wav,-0.04,1,007\n'
        "ü.mp4,0,1e1,,b.wav,0,2,z\n"
    )
    from_csv = list(read_annotations(path))
    lines = []
    for entry in from_csv:
        texts = {name: getattr(entry, name) for name in ("path", "label", "audio_path", "id")} | entry.extra
        times = f'"start": {float(entry.start)!r}, "end": {float(entry.end)!r}, "av_offset": {float(entry.av_offset)!r}'
        lines.append(f"{json.dumps(texts)[:-1]}, {times}}}")
    from_json = list(read_annotations(write("\n" + "\n".join(lines))))
    assert from_json == from_csv


CUTS = [
    (
        "vggsound",
        '-x123456789,30,"a, b",test\n',
        "-x123456789_000030.mp4",
        {"split": "test", "source_start": "30", "source_end": "40"},
    ),
    (
        "audioset",
        '# note "\n-x123456789, 30.000, 40.000, "/m/1,/t/2"\n',
        "-x123456789_30000_40000.mp4",
        {"source_start": "30.000", "source_end": "40.000"},
    ),
    (
        "avspeech",
        "-x123456789,30.033333,40.5,0.5,0.25\n",
        "-x123456789_030.033333-040.500000.mp4",
        {"face_x": "0.5", "face_y": "0.25", "source_start": "30.033333", "source_end": "40.5"},
    ),
    (
        "kinetics",
        "label,youtube_id,time_start,time_end,split,is_cc\nx,-x123456789,30,40,val,0\n",
        "-x123456789_000030_000040.mp4",
        {"split": "val", "is_cc": "0", "source_start": "30", "source_end": "40"},
    ),
    (
        "kinetics",
        "youtube_id,time_start,time_end,split\n-x123456789,30,40,test\n",
        "-x123456789_000030_000040.mp4",
        {"split": "test", "source_start": "30", "source_end": "40"},
    ),
]


@pytest.mark.parametrize(("name", "text", "media", "extra"), CUTS)
def test_a_file_named_by_times_is_annotated_as_a_whole(write, name, text, media, extra):
    path = write(text)
    assert detect_format(path) == name
    entry = only(read_annotations(path))
    assert (entry.path, entry.start, entry.end, entry.id, entry.extra) == (media, None, None, "-x123456789", extra)


@pytest.mark.parametrize(("name", "text", "media", "extra"), CUTS)
def test_times_are_used_as_they_are_where_the_file_is_the_whole_video(write, name, text, media, extra):
    entry = only(read_annotations(write(text), format=name, media_template="videos/{id}.mkv"))
    assert (entry.path, entry.start, entry.end) == (
        "videos/-x123456789.mkv",
        Fraction(extra["source_start"]),
        Fraction(extra["source_end"]),
    )
    assert entry.extra == {key: value for key, value in extra.items() if not key.startswith("source_")}


def test_labels_of_data_sets_are_kept_whole(write):
    assert only(read_annotations(write(CUTS[0][1]))).label == "a, b"
    assert only(read_annotations(write(CUTS[1][1]))).label == "/m/1,/t/2"
    assert only(read_annotations(write(CUTS[2][1]))).label == ""
    assert only(read_annotations(write(CUTS[4][1]))).label == ""


def test_a_template_can_use_label_folders_and_milliseconds(write):
    path = write("label,youtube_id,time_start,time_end,split\nair drumming,x,1,2.5,val\na/b,y,1,2,val\n,z,1,2,val\n")
    good, slash, empty = read_annotations(path, media_template="{label}/{id}_{start_ms}_{end_ms}.mp4")
    assert good.path == "air drumming/x_1000_2500.mp4"
    assert (slash.code, empty.code) == ("bad_line", "missing_field")


@pytest.mark.parametrize(
    "template",
    ["{name}.mp4", "{}.mp4", "{id", "id.mp4", "{label}.mp4", "{id:06d}", "{id.x}", "{id!r}", "{id}{start:{end}}", ""],
)
def test_a_bad_template_is_refused_with_the_fields_it_can_use(template):
    with pytest.raises(ValueError, match=r"media_template .*\{id\}, \{label\}, .*\{start_ms\}"):
        read_annotations(SAMPLES / "vggsound.csv", media_template=template)


def test_a_template_is_refused_where_the_file_names_its_media():
    with pytest.raises(ValueError, match=r"media_template .* 'csv'"):
        read_annotations(SAMPLES / "clips.csv", media_template="{id}.mp4")


def test_an_unknown_format_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'vgg'.*csv, jsonl, vggsound"):
        read_annotations(SAMPLES / "vggsound.csv", format="vgg")


@pytest.mark.parametrize(
    ("name", "lines", "expected"),
    [
        ("vggsound", "x,a,l,train\nx,nan,l,train\nx,-1,l,train\n,1,l,train\nx,1,l\nx,1.5,l,t\nx,,l,t\na/b,1,l,t", None),
        ("audioset", "x,a,9,l\nx,nan,9,l\nx,-1,9,l\n,1,9,l\nx,1,9,l,m\nx,3,2,l\nx,,2,l\n../x,1,2,l", "empty_interval"),
    ],
)
def test_bad_lines_of_a_data_set_are_reported_one_by_one(write, name, lines, expected):
    entries = list(read_annotations(write("ok,1,2,l\n" + lines), format=name))
    codes = ["bad_number", "bad_number", "bad_time", "missing_field", "bad_line", expected or "bad_time"]
    assert faults(entries) == list(enumerate([*codes, "missing_field", "bad_line"], start=2))


def test_a_face_position_that_is_no_number_is_reported(write):
    assert faults(read_annotations(write("x,1,2,0.5,0.5\nx,1,2,left,0.5\n"), format="avspeech")) == [(2, "bad_number")]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("sample", ["clips.csv", "vggsound.csv", "kinetics.csv", "avspeech.csv"])
@pytest.mark.parametrize("automatic", [True, False])
def test_a_wrong_delimiter_is_named(write, delimiter, sample, automatic):
    text = (SAMPLES / sample).read_text().replace(",", delimiter)
    name = "csv" if sample == "clips.csv" else sample[:-4]
    error = file_fault(write(text), format="auto" if automatic else name)
    assert {";": "semicolons", "\t": "tabs", "|": "vertical bars"}[delimiter] in error.cause
    assert "expected commas" in error.cause
    assert error.row == 1


@pytest.mark.parametrize(
    ("text", "name", "cause", "line"),
    [
        ("", "auto", "empty", None),
        ("\n \n", "csv", "empty", None),
        ("path,start,end\na,0,1\n", "csv", "lacks the column 'label'", 1),
        ("\npath,start,end,label,end\n", "csv", "column 'end' twice", 2),
        (",path,start,end,label\n", "csv", "column 1 of its header has no name", 1),
        ('path,start,end,"label\n', "csv", "header cannot be read", 1),
        ("label,youtube_id,time_start,split\n", "kinetics", "lacks the column 'time_end'", 1),
        ("YouTube ID,start seconds,label,split\nx,1,l,t\n", "vggsound", "looks like a header", 1),
        ("id,start,end,x,y\nx,1,2,0,0\n", "avspeech", "looks like a header", 1),
        ("YTID,start_seconds,end_seconds,labels\nx,1,2,l\n", "audioset", "looks like a header", 1),
        ("hello\nworld\n", "auto", "cannot be told", 1),
        ("a.mp4,0,1,x\nb.mp4,1,2,x\n", "auto", "cannot be told", 1),
        ("Path,Start,End,Label\na.mp4,0,1,x\n", "auto", "lacks the column 'path': it has 'Path'", 1),
        ('[\n{"path": "a.mp4"}\n]\n', "auto", "one JSON document", 1),
        ('{\n"path": "a.mp4"\n}\n', "auto", "one JSON document", 1),
        (HEADER.encode() + b"caf\xe9.mp4,0,1,x\n", "csv", "not UTF-8 text (byte 0xe9)", 2),
        (HEADER.encode("utf-16"), "auto", "UTF-16", None),
        (b"\0\1\2\3", "auto", "NUL", 1),
        (b"path,start,end,label\ra.mp4,0,1,x\r", "auto", "carriage return", 1),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error_with_its_line(write, text, name, cause, line):
    error = file_fault(write(text), format=name)
    assert cause in error.cause
    assert error.row == line


@pytest.mark.parametrize("name", ["auto", *FORMATS])
def test_missing_files_and_folders_are_annotation_errors(tmp_path, name):
    assert file_fault(tmp_path / "none.csv", format=name).code == "missing_file"
    assert "regular file" in file_fault(tmp_path, format=name).cause
    assert "Not a directory" in file_fault(SAMPLES / "clips.csv" / "x", format=name).cause


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_an_annotation_error(write):
    path = write(HEADER)
    path.chmod(0)
    assert "Permission denied" in file_fault(path).cause


def test_reading_begins_before_a_fault_further_down(write):
    entries = read_annotations(write(HEADER.encode() + b"a.mp4,0,1,x\n\xff\n"))
    assert next(entries).path == "a.mp4"
    with pytest.raises(AnnotationError, match=r"\(line 3\)"):
        next(entries)


@pytest.mark.parametrize("name", ["csv", "jsonl", "vggsound"])
def test_memory_does_not_grow_with_the_file(write, name):
    line = {"csv": "a.mp4,0,1,x\n", "jsonl": '{"path": "a.mp4"}\n', "vggsound": "x,1,l,t\n"}[name]
    path = write((HEADER if name == "csv" else "") + line * 20_000)
    tracemalloc.start()
    try:
        num_entries = sum(1 for _ in read_annotations(path, format=name))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_entries == 20_000
    assert peak < 400_000


def test_a_reader_that_is_given_up_closes_its_file(write):
    path = write(HEADER + "a.mp4,0,1,x\n" * 2)
    before = len(os.listdir("/proc/self/fd"))
    entries = read_annotations(path)
    next(entries)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    entries.close()
    assert len(os.listdir("/proc/self/fd")) == before
