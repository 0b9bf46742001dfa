"""Prepared media against their sources: the same clips, whatever the source is, however often the work was stopped."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import TruthMedia
from test_sync import Row, build, rows_of
from truth import CATALOG, delay_of, linear_frames, linear_sound, read_number, snr_db

from avloader import AVLoader, Manifest, ManifestError, PrepareOptions, build_manifest, prepare_manifest, probe
from avloader.batch import AVBatch
from avloader.cli import main

NUM_FRAMES = 8
RATE = 16000
NAMES = [
    name
    for name, recipe in CATALOG.items()
    if recipe.picture is not None and recipe.sound is not None and name != "hour"
]
CROSS_SECTION = ["mp4_29_97", "cut", "sound_late", "picture_late", "sound_hole", "mkv_aac", "mpegts", "variable_rate"]


def sources(names: Sequence[str], media: TruthMedia, folder: Path) -> tuple[Manifest, list[Row]]:
    """A manifest of several intervals of each medium, one with its sound in a side-car file."""
    rows = [row for name in names for row in rows_of(CATALOG[name], media)]
    if "picture_for_sidecar" in names:
        picture = media["picture_for_sidecar"]
        rows += [Row(picture, media["sidecar_flac"], Fraction(2), Fraction(3))]
    return build(rows, folder), rows


def batches(manifest: Manifest, num_frames: int = NUM_FRAMES) -> list[AVBatch]:
    loader = AVLoader(
        manifest,
        batch_size=16,
        num_frames=num_frames,
        size=(144, 256),
        normalize=None,
        sample_rate=RATE,
        audio_seconds=Fraction(2, 5),
        features=None,
        clips="first",
        device="cpu",
    )
    with loader:
        return list(loader)


def clips(manifest: Manifest, num_frames: int = NUM_FRAMES) -> list[dict[str, Any]]:
    """Every row's clip: a dict of arrays."""
    names = ("frames", "audio", "frame_seconds", "audio_start_seconds", "audio_valid", "label", "row")
    return [
        {name: getattr(batch, name)[place].numpy() for name in names}
        for batch in batches(manifest, num_frames)
        for place in range(len(batch.row))
    ]


def numbers(clip: dict[str, Any]) -> list[int]:
    return [read_number(frame.transpose(1, 2, 0)) for frame in clip["frames"]]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "rows.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_sound(old: dict[str, Any], new: dict[str, Any], shift: float = 0.0) -> None:
    """The same sound within 0.1 ms of each other, and it exists for the same samples."""
    assert abs(new["audio_start_seconds"] + shift - old["audio_start_seconds"]) < 1e-4
    assert np.abs(new["audio_valid"] - old["audio_valid"]).max() <= 2
    first, stop = old["audio_valid"]
    if stop - first < 200 or not old["audio"][first + 100 : stop - 100].any():
        assert np.abs(new["audio"]).max() < 2e-2
        return
    inner = slice(first + 50, stop - 50)
    assert abs(delay_of(new["audio"][inner], old["audio"][inner])) / RATE < 1e-4


@pytest.mark.parametrize("clips_only", [False, True])
def test_at_the_same_rate_the_same_clips_are_delivered(
    truth_media: TruthMedia, tmp_path: Path, clips_only: bool
) -> None:
    names = CROSS_SECTION if clips_only else NAMES
    constant = [name for name in names if "variable" not in name]
    manifest, _ = sources(constant, truth_media, tmp_path)
    options = PrepareOptions(fps=None, clips_only=clips_only, margin=Fraction(1, 2))
    prepared = prepare_manifest(manifest, output=tmp_path / "out", options=options, progress=False).manifest
    assert len(prepared) == len(manifest), prepared.rejected()
    assert all(prepared.media(number).nvdec_reason == "" for number in set(prepared.media_id.tolist()))
    moved = table(tmp_path / "out")
    for old, new, line in zip(clips(manifest), clips(prepared), moved, strict=True):
        shift = float(line["shift_seconds"])
        assert clips_only or shift == 0
        assert (old["row"], old["label"]) == (new["row"], new["label"])
        assert numbers(new) == numbers(old), line["source_path"]
        # mkv stores milliseconds.
        tick = 1e-3 if line["source_path"].endswith((".mkv", ".webm")) else 2e-6
        assert np.abs(new["frame_seconds"] + shift - old["frame_seconds"]).max() <= tick, line["source_path"]
        if tick < 1e-4:
            check_sound(old, new, shift)


@pytest.mark.parametrize(("fps", "clips_only"), [("25", False), ("25", True), ("30", False), ("50", True)])
def test_at_another_rate_each_frame_is_the_nearest_of_the_source(
    truth_media: TruthMedia, tmp_path: Path, fps: str, clips_only: bool
) -> None:
    manifest, rows = sources([*CROSS_SECTION, "mp4_59_94", "variable_rate_b_frames"], truth_media, tmp_path)
    options = PrepareOptions(fps=Fraction(fps), clips_only=clips_only)
    prepared = prepare_manifest(manifest, output=tmp_path / "out", options=options, progress=False).manifest
    assert len(prepared) == len(rows), prepared.rejected()
    lines = table(tmp_path / "out")
    alone = {row.picture for row in rows if row.picture.name == "cut.mp4"}
    for clip, row, line in zip(clips(prepared, 3), rows, lines, strict=True):
        frames = linear_frames(row.picture)
        times = np.array([float(time) for time in frames.times])
        seconds = clip["frame_seconds"] + float(line["shift_seconds"])
        assert np.allclose(np.diff(seconds), 1 / float(Fraction(fps)), atol=1e-9)
        for shown, instant in zip(numbers(clip), seconds, strict=True):
            error = np.abs(times - instant)
            assert error[frames.numbers.index(shown)] <= error.min() + 1e-6, (row, instant)
        begun = abs(float(line["start_seconds"]) + float(line["shift_seconds"]) - float(line["source_start_seconds"]))
        assert begun <= 0.5 / float(Fraction(fps)) + 1e-6
        if clips_only and row.picture in alone and row.start == 0:
            assert begun < 1e-9
        # The sound that is delivered is that of the instant of the first frame.
        sound = linear_sound(row.picture)
        begin = round((clip["audio_start_seconds"] + float(line["shift_seconds"]) - float(sound.start)) * sound.rate)
        assert abs(clip["audio_start_seconds"] - clip["frame_seconds"][0]) <= 0.5 / sound.rate + 1e-9
        first, stop = (round(edge * sound.rate / RATE) for edge in clip["audio_valid"])
        if sound.rate != 48000 or stop - first < 4800 or not sound.samples[begin + first : begin + stop].any():
            continue
        expected = sound.samples[begin + first : begin + stop : 3]  # band-limited to 5 kHz: no filter is needed
        heard = clip["audio"][clip["audio_valid"][0] :][: len(expected)]
        assert abs(delay_of(heard, expected)) / RATE < 1e-4


def test_the_sound_cache_begins_at_media_time_0_and_still_says_where_there_is_sound(
    truth_media: TruthMedia, tmp_path: Path
) -> None:
    names = ["sound_late", "sound_short", "sound_hole", "mov_pcm", "picture_for_sidecar"]
    manifest, _ = sources(names, truth_media, tmp_path)
    for sound_format in ("wav", "flac"):
        options = PrepareOptions(sound_only=True, sound_format=sound_format)
        out = tmp_path / sound_format
        prepared = prepare_manifest(manifest, output=out, options=options, progress=False).manifest
        assert len(prepared) == len(manifest)
        for row in range(len(prepared)):
            before, after = manifest.row(row), prepared.row(row)
            assert (after.path, after.first_frame, after.stop_frame) == (
                before.path,
                before.first_frame,
                before.stop_frame,
            )
            truth = linear_sound(before.audio_path)
            audio = prepared.media(after.audio_id).audio
            assert audio is not None
            assert audio.start_seconds == 0
            late = round(truth.start * truth.rate)
            assert abs(audio.silence - late) <= 1
            with av.open(after.audio_path) as container:
                blocks = [frame.to_ndarray().ravel() for frame in container.decode(audio=0)]
            cached = np.concatenate(blocks) / 32768
            assert not cached[: audio.silence].any()
            length = min(len(cached) - audio.silence, len(truth.samples))
            assert abs(len(cached) - audio.silence - len(truth.samples)) <= 1
            assert np.abs(cached[audio.silence :][:length] - truth.samples[:length]).max() <= 1 / 32768
        for old, new in zip(clips(manifest), clips(prepared), strict=True):
            assert np.array_equal(old["frames"], new["frames"])
            assert old["audio_valid"].tolist() == new["audio_valid"].tolist()
            # Two samples of 16 bits: 90 dB below full scale, however faint the sound is.
            assert np.abs(new["audio"] - old["audio"]).max() <= 2 / 32768


def test_16_bit_mono_sound_is_kept_bit_by_bit(truth_media: TruthMedia, tmp_path: Path) -> None:
    manifest, _ = sources(["mov_pcm"], truth_media, tmp_path)
    options = PrepareOptions(sound_only=True)
    prepared = prepare_manifest(manifest, output=tmp_path / "out", options=options, progress=False).manifest
    assert np.array_equal(linear_sound(prepared.row(0).audio_path).samples, linear_sound(manifest.row(0).path).samples)


def test_resampled_sound_is_what_the_loader_resamples(truth_media: TruthMedia, tmp_path: Path) -> None:
    manifest, _ = sources(["mp4_25", "stereo_44100", "sound_late", "mkv_vorbis"], truth_media, tmp_path)
    options = PrepareOptions(sound_only=True, sample_rate=RATE)
    prepared = prepare_manifest(manifest, output=tmp_path / "out", options=options, progress=False).manifest
    for old, new in zip(clips(manifest), clips(prepared), strict=True):
        check_sound(old, new)
        # Half a source sample of delay is all that may differ: 26 dB at 5 kHz, far more on average.
        assert snr_db(new["audio"], old["audio"]) > 25


@pytest.mark.parametrize("gop", [1, 5, 12])
def test_groups_are_closed_and_of_one_length(truth_media: TruthMedia, tmp_path: Path, gop: int) -> None:
    manifest, _ = sources(["open_gop"], truth_media, tmp_path)
    options = PrepareOptions(gop=gop, short_side=96, box=(16, 8, 200, 120))
    prepared = prepare_manifest(manifest, output=tmp_path / "out", options=options, progress=False).manifest
    video = prepared.media(int(prepared.media_id[0])).video
    assert video is not None
    assert (video.width, video.height, video.codec, video.pixel_format) == (160, 96, "h264", "yuv420p")
    keys = [video.times.first_frame_from(video.times.pts_to_media_time(int(pts))) for pts in video.keyframe_pts]
    assert keys == list(range(0, len(video.times), gop))
    path = prepared.row(0).path
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [packet.pts for packet in packets] == sorted(packet.pts for packet in packets if packet.pts is not None)
    with open(path, "rb") as file:
        head = file.read(4096)
    assert b"moov" in head
    assert b"mdat" not in head[: head.index(b"moov")]


def test_a_box_is_cut_from_the_right_place(truth_media: TruthMedia, tmp_path: Path) -> None:
    manifest, _ = sources(["all_intra"], truth_media, tmp_path)
    options = PrepareOptions(box=(32, 36, 64, 72), crf=0)
    prepared = prepare_manifest(manifest, output=tmp_path / "out", options=options, progress=False).manifest
    with av.open(manifest.row(0).path) as old, av.open(prepared.row(0).path) as new:
        for before, after in zip(old.decode(video=0), new.decode(video=0), strict=True):
            whole = before.to_ndarray(format="gray")
            assert np.array_equal(after.to_ndarray(format="gray"), whole[36:108, 32:96])


def test_rows_keep_labels_identifiers_offsets_and_other_columns(truth_media: TruthMedia, tmp_path: Path) -> None:
    path = truth_media["mp4_29_97"]
    annotations = tmp_path / "clips.csv"
    annotations.write_text(
        "path,start,end,label,id,av_offset,speaker\n"
        f"{path},4,5,zebra,a,0.04,anna\n{path},1,2,apple,b,,bert\n{path},2,3,zebra,c,-0.1,carl\n"
    )
    manifest = build_manifest(annotations, media_root=tmp_path, output=tmp_path / "m", progress=False)
    prepared = prepare_manifest(manifest, output=tmp_path / "out", progress=False).manifest
    assert prepared.labels == manifest.labels == ["apple", "zebra"]
    for before, after in zip(manifest.rows(), prepared.rows(), strict=True):
        for name in ("row", "label", "id", "av_offset", "line", "extra"):
            assert getattr(before, name) == getattr(after, name)
    # Rows 1 and 2 share no frame and lose none at the new rate either.
    assert prepared.stop_frame[1] == prepared.first_frame[2]
    rebuilt = tmp_path / "again.csv"
    row = prepared.row(1)
    rebuilt.write_text(f"path,start,end,label,audio_path\n{row.path},1,2,apple,{row.audio_path}\n")
    again = build_manifest(rebuilt, media_root=tmp_path, output=tmp_path / "m2", progress=False).row(0)
    assert (again.first_frame, again.stop_frame) == (row.first_frame, row.stop_frame)
    assert again.audio_start_sample == row.audio_start_sample


def damaged_copy(source: Path, target: Path) -> Path:
    data = bytearray(source.read_bytes())
    begin = len(data) // 2
    data[begin : begin + 30_000] = bytes(30_000)
    target.write_bytes(data)
    return target


def test_what_cannot_be_converted_is_listed_with_its_reason(truth_media: TruthMedia, tmp_path: Path) -> None:
    bad = damaged_copy(truth_media["no_b_frames"], tmp_path / "bad.mp4")
    small, good = truth_media["hour"], truth_media["mp4_25"]
    rows = [Row(path, path, Fraction(1), Fraction(2)) for path in (bad, small, good)]
    manifest = build(rows, tmp_path)
    options = PrepareOptions(box=(100, 0, 150, 144), clips_only=False)
    prepared = prepare_manifest(manifest, output=tmp_path / "out", options=options, progress=False)
    assert [row["source_row"] for row in table(tmp_path / "out")] == ["2"]
    listed = prepared.manifest.rejected()
    assert [row["code"] for row in listed] == ["undecodable", "outside_picture"]
    assert str(bad) in listed[0]["message"]
    assert prepared.num_rejected == 2
    # The damage lies after the row: only what is wanted has to be whole.
    options = PrepareOptions(clips_only=True, margin=Fraction(1, 10))
    assert len(prepare_manifest(manifest, output=tmp_path / "cut", options=options, progress=False).manifest) == 3


def test_no_room_is_told_before_the_work(
    truth_media: TruthMedia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, _ = sources(["mp4_25"], truth_media, tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 100_000))
    with pytest.raises(ManifestError, match=r"there is no room: at least 1\.1 MB are needed, 0\.1 MB are free"):
        prepare_manifest(manifest, output=tmp_path / "out", progress=False)
    assert os.listdir(tmp_path / "out" / "media") == []


def test_a_full_disk_stops_the_work_and_says_so(truth_media: TruthMedia, tmp_path: Path) -> None:
    manifest, _ = sources(["mp4_25"], truth_media, tmp_path)
    # A limit on the size of files gives the same error from the system as a disk that runs full.
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "from avloader.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "prepare", manifest.path, "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot be written (File too large)" in done.stderr
    assert os.listdir(tmp_path / "out" / "media") == []


def test_only_folders_of_prepared_media_are_written_to(truth_media: TruthMedia, tmp_path: Path) -> None:
    manifest, _ = sources(["mp4_25"], truth_media, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ManifestError, match="thesis"):
        prepare_manifest(manifest, output=tmp_path / "mine", progress=False)
    prepare_manifest(manifest, output=tmp_path / "out", progress=False)
    with pytest.raises(ManifestError, match="replace the manifest that it is made from"):
        prepare_manifest(tmp_path / "out" / "manifest", output=tmp_path / "out", progress=False)


def test_finished_files_are_used_again_and_others_are_made_anew(truth_media: TruthMedia, tmp_path: Path) -> None:
    manifest, _ = sources(["mp4_25", "mkv_opus"], truth_media, tmp_path)
    out = tmp_path / "out"
    prepare_manifest(manifest, output=out, progress=False)
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in (out / "media").iterdir()}
    assert len(before) == 4
    first, second = sorted(before)[:2]
    (out / "media" / first).write_bytes(before[first][1][:5000])
    (out / "media" / second).unlink()
    (out / "media" / ".left-123.part.mp4").write_bytes(b"half")
    prepare_manifest(manifest, output=out, progress=False)
    after = {path.name: (path.stat().st_ino, path.read_bytes()) for path in (out / "media").iterdir()}
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    kept = set(before) - {first, second}
    assert all(after[name][0] == before[name][0] for name in kept)
    prepare_manifest(manifest, output=out, options=PrepareOptions(gop=6), progress=False)
    names = {path.name for path in (out / "media").iterdir()}
    assert len(names) == 4
    assert {name for name in names if name.endswith(".wav")} == {name for name in before if name.endswith(".wav")}
    assert not {name for name in names if name.endswith(".mp4")} & set(before)


def contents(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def children_of(folder: Path) -> list[int]:
    """Processes that have a file of `folder` open, or were told about it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                opened = [os.readlink(link) for link in (entry / "fd").iterdir()]
            except OSError:
                continue
            if any(name.startswith(f"{folder}{os.sep}") for name in opened):
                found.append(int(entry.name))
    return found


def test_killed_at_20_random_moments_and_resumed_the_result_is_the_same(
    truth_media: TruthMedia, tmp_path: Path
) -> None:
    names = ["mp4_25", "mp4_59_94", "mkv_opus", "cut", "sound_late", "mpegts", "hevc", "variable_rate"]
    manifest, _ = sources(names, truth_media, tmp_path)
    out = tmp_path / "out"
    begin = time.monotonic()
    prepare_manifest(manifest, output=out, num_workers=2, progress=False)
    duration = time.monotonic() - begin
    expected = contents(out)
    shutil.rmtree(out)
    draw = random.Random(4)
    command = [sys.executable, "-m", "avloader.cli", "prepare", manifest.path, "--output", str(out), "--workers", "2"]
    num_killed, num_seen = 0, set()
    while num_killed < 20:
        left = set(out.glob("media/.*.part.*"))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        # Every other one after the work has begun, however long it takes to get there.
        while num_killed % 2 and process.poll() is None and not set(out.glob("media/.*.part.*")) - left:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, duration / 2))
        if process.poll() is None:
            process.kill()
            num_killed += 1
        _, said = process.communicate()
        if process.returncode != -signal.SIGKILL:  # it came to its end: from the beginning
            assert process.returncode == 0, said
            assert contents(out) == expected
            shutil.rmtree(out)
        elif (out / "media").is_dir():
            num_seen.add(sum(not name.startswith(".") for name in os.listdir(out / "media")))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(num_seen) > 3, "no kill came in the middle of the work"
    assert contents(out) == expected
    deadline = time.monotonic() + 10
    while working := children_of(out):
        assert time.monotonic() < deadline, f"processes {working} are still at work"
        time.sleep(0.1)


def test_a_worker_leaves_when_its_parent_is_killed(truth_media: TruthMedia, tmp_path: Path) -> None:
    hour = truth_media["hour"]
    manifest = build([Row(hour, hour, Fraction(0), Fraction(3000))], tmp_path)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "avloader.cli", "prepare", manifest.path, "--output", str(out), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not children_of(out):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while left := children_of(out):
        assert time.monotonic() < deadline, f"processes {left} work on for nobody"
        time.sleep(0.05)


def test_the_bytes_do_not_depend_on_the_number_of_workers(truth_media: TruthMedia, tmp_path: Path) -> None:
    manifest, _ = sources(["mp4_25", "mp4_29_97", "webm"], truth_media, tmp_path)
    results = []
    for num_workers in (1, 3):
        prepare_manifest(manifest, output=tmp_path / "out", num_workers=num_workers, progress=False)
        results.append(contents(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out")
    assert results[0] == results[1]


def test_two_runs_do_not_work_in_one_folder(truth_media: TruthMedia, tmp_path: Path) -> None:
    import fcntl

    manifest, _ = sources(["mp4_25"], truth_media, tmp_path)
    (tmp_path / "out").mkdir()
    handle = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ManifestError, match="another run prepares into this folder"):
        prepare_manifest(manifest, output=tmp_path / "out", progress=False)
    os.close(handle)


def test_the_command_line(truth_media: TruthMedia, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, _ = sources(["mp4_29_97"], truth_media, tmp_path)
    out = str(tmp_path / "out")
    assert (
        main(["prepare", manifest.path, "--output", out, "--fps", "30000/1001", "--gop", "6", "--short-side", "72"])
        == 0
    )
    assert f"manifest: {out}/manifest" in capsys.readouterr().out
    video = probe(Manifest.open(f"{out}/manifest").row(0).path).video
    assert video is not None
    assert (video.frame_rate, video.width, video.height) == (Fraction(30000, 1001), 128, 72)
    assert main(["check", f"{out}/manifest", "--sample", "3"]) == 0
    for wrong, message in (
        (["--fps", "fast"], "'fast' is not a rational number"),
        (["--box", "1,2,3"], "is not LEFT,TOP,WIDTH,HEIGHT"),
        (["--box", "1,2,30,40"], "--box must be (left, top, width, height), even"),
        (["--sound-only", "--clips-only"], "--sound-only cannot be combined with clips_only"),
        (["--engine", "spark"], "--engine must be one of local, ray, got 'spark'"),
    ):
        try:
            code: Any = main(["prepare", manifest.path, "--output", out, *wrong])
        except SystemExit as left:
            code = left.code
        assert code == 2
        assert message in capsys.readouterr().err
