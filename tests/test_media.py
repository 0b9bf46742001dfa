"""Tests of `probe`: what it says of a file is what a plain linear decode shows and plays."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
import wave
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import TruthMedia, every_recipe
from make_truth_media import CATALOG, Picture, Recipe, Sound, make
from truth import linear_frames, linear_sound

from avloader import headers
from avloader.audio import AudioReader
from avloader.errors import MediaError
from avloader.media import MediaInfo, Prober, probe
from avloader.mp4 import read_movie
from avloader.source import open_source
from avloader.video import VideoReader

# Which of the catalog's files need a look at every packet, and why.
PACKETS = {"no_edit_list": "its sound has a hole", "fragmented": "fragmented", "sound_hole": "its sound has a hole"}

NVDEC_REASONS = {
    "fragmented": "fragmented mp4",
    "variable_rate": "variable frame rate",
    "variable_rate_b_frames": "variable frame rate",
    "intra_refresh": "gradual refresh instead of key frames",
    "hevc": "codec hevc",
    "hevc_open_gop": "codec hevc",
    "webm": "codec vp9",
    "mkv_truly_odd_size": "codec vp9",
    "mpegts": "container mpegts",
    "mpegts_29_97": "container mpegts",
    "avi_mpeg4": "container avi",
    "avi_mjpeg": "container avi",
}


def is_mp4(recipe: Recipe) -> bool:
    return recipe.file_name.endswith((".mp4", ".mov", ".m4a"))


def check_against_linear_decode(path: Path, unknown_samples: int = 0) -> MediaInfo:
    """What `probe` says, after comparing it with a linear decode."""
    info = probe(path)
    if info.video is not None:
        frames, times = linear_frames(path), info.video.times
        assert times.pts_of(np.arange(len(times))).tolist() == frames.pts
        assert [times.seconds(index) for index in range(len(times))] == frames.times
        assert set(info.video.keyframe_pts.tolist()) <= set(frames.pts)
    if info.audio is not None:
        sound = linear_sound(path)
        assert (info.audio.start_seconds, info.audio.sample_rate) == (sound.start, sound.rate)
        assert list(info.audio.gaps) == sound.holes
        assert 0 <= len(sound.samples) - info.audio.num_samples <= unknown_samples
    return info


@every_recipe
def test_frames_and_sound_are_those_of_a_linear_decode(recipe: Recipe, truth_media: TruthMedia) -> None:
    if recipe.name == "hour":
        pytest.skip("decoding an hour takes too long here; test_an_hour_is_told_by_its_header looks at it")
    # In Matroska the varying packets of Vorbis end somewhere within a millisecond.
    info = check_against_linear_decode(truth_media[recipe.name], 48 if recipe.name == "mkv_vorbis" else 0)
    assert (info.video is None, info.audio is None) == (recipe.picture is None, recipe.sound is None)
    if info.video is not None:
        assert info.video.times_from == ("header" if is_mp4(recipe) and recipe.name not in PACKETS else "packets")


SHORT_SOUND = Sound(seconds=Fraction(12, 5))


def short_picture(codec: str = "libx264", **more: Any) -> Picture:
    return Picture(num_frames=60, gop=20, codec=codec, **more)


def make_short(
    folder: Path, ending: str, picture: Picture | None = None, sound: Sound | None = None, name: str = "short"
) -> Path:
    return make(Recipe(name, f"{name}.{ending}", picture, sound), folder)


def remux(
    source: Path,
    target: Path,
    keep: Callable[[int], bool] = lambda number: True,
    shift_seconds: int = 0,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Copies the packets of all streams whose number in their stream is to be kept, later by `shift_seconds`."""
    with av.open(str(source)) as given, av.open(str(target), "w", options=options or {}) as output:
        copies = {stream.index: output.add_stream_from_template(stream) for stream in given.streams}
        if rotation:
            copies[0].set_display_rotation(rotation)
        counts = dict.fromkeys(copies, 0)
        for packet in given.demux():
            if not packet.size:
                continue
            index = packet.stream_index
            if keep(counts[index]):
                shift = int(shift_seconds / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = copies[index]
                output.mux(packet)
            counts[index] += 1
    return target


INTERLACED = (("x264-params", "keyint=20:min-keyint=20:open-gop=0:tff=1"), ("flags", "+ildct+ilme"))


@pytest.mark.parametrize("ending", ["mp4", "ts", "mkv"])
def test_interlaced_pictures_count_as_frames_not_as_fields(ending: str, tmp_path: Path) -> None:
    path = make_short(tmp_path, ending, short_picture(height=160, options=INTERLACED), SHORT_SOUND)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    info = check_against_linear_decode(path)
    assert info.video is not None
    assert info.video.frame_rate == 25
    assert info.nvdec_reason == ("container mpegts" if ending == "ts" else "interlaced")


def test_hidden_reference_frames_of_vp8_are_not_shown(tmp_path: Path) -> None:
    plain = make_short(tmp_path, "webm", short_picture("libvpx"), name="plain")
    path = tmp_path / "hidden.webm"
    with av.open(str(plain)) as source, av.open(str(path), "w") as output:
        copy = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if not packet.size:
                continue
            data = bytearray(bytes(packet))
            if number in (7, 31):
                data[0] &= ~0x10  # show_frame
            changed = av.Packet(bytes(data))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, copy
            output.mux(changed)
    video = check_against_linear_decode(path).video
    assert video is not None
    assert len(video.times) == 58


def test_hevc_in_a_transport_stream(tmp_path: Path) -> None:
    check_against_linear_decode(make_short(tmp_path, "ts", short_picture("libx265"), SHORT_SOUND))


@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="this PyAV has no AV1 encoder")
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_av1(ending: str, tmp_path: Path) -> None:
    picture = short_picture("libsvtav1", options=(("preset", "12"),))
    check_against_linear_decode(make_short(tmp_path, ending, picture))


@pytest.mark.parametrize("seconds", [1, 4])
def test_sound_that_is_shorter_or_longer_than_the_picture(seconds: int, tmp_path: Path) -> None:
    path = make_short(tmp_path, "mp4", short_picture(), Sound(seconds=Fraction(seconds)))
    audio = check_against_linear_decode(path).audio
    assert audio is not None
    assert abs(audio.stop_seconds - seconds) < Fraction(1, 20)


@pytest.mark.parametrize("delay", [Fraction(0), Fraction(1, 2)], ids=["early", "late"])
@pytest.mark.parametrize(
    ("ending", "codec"),
    [
        ("mp3", "libmp3lame"),
        ("m4a", "aac"),
        ("aac", "aac"),
        ("ogg", "libopus"),
        ("ogg", "vorbis"),
        ("ogg", "flac"),
        ("wav", "pcm_s16le"),
        ("wav", "pcm_s24le"),
        ("flac", "flac"),
        ("ac3", "ac3"),
        ("mka", "libmp3lame"),
        ("mov", "pcm_s16le"),
        ("ts", "mp2"),
        ("ts", "libopus"),
    ],
)
def test_a_sound_file_of_any_kind(ending: str, codec: str, delay: Fraction, tmp_path: Path) -> None:
    sound = replace(SHORT_SOUND, codec=codec, delay=delay, layout="stereo" if codec == "vorbis" else "mono")
    check_against_linear_decode(make_short(tmp_path, ending, None, sound))


@pytest.mark.parametrize(
    ("codec", "ending"),
    [
        ("libx264", "ts"),
        ("libx264", "mp4"),
        ("libx265", "ts"),
        ("libx265", "mkv"),
        ("mpeg2video", "ts"),
        ("mpeg2video", "mp4"),
    ],
)
@pytest.mark.parametrize("cut", [10, 20])
def test_frames_that_cannot_be_decoded_at_the_beginning_do_not_count(
    codec: str, ending: str, cut: int, tmp_path: Path
) -> None:
    whole = make_short(tmp_path, "mkv", short_picture(codec), name="whole")
    path = remux(whole, tmp_path / f"joined.{ending}", keep=lambda number: number >= cut)
    video = check_against_linear_decode(path).video
    assert video is not None
    assert video.times.first_pts == video.keyframe_pts[0]
    assert len(video.times) <= 40


def test_a_beginning_that_packets_do_not_foretell_is_refused(tmp_path: Path) -> None:
    whole = make_short(tmp_path, "mkv", short_picture("mpeg4"), name="whole")
    path = remux(whole, tmp_path / "joined.mkv", keep=lambda number: number >= 10)
    with pytest.raises(MediaError, match=r"begins between key frames.*Convert it") as caught:
        probe(path)
    assert caught.value.code == "unreadable"


def test_pictures_whose_parameters_are_lost_are_refused(tmp_path: Path) -> None:
    # Key frames of an open GOP do not repeat the parameter sets, which only the part cut off has.
    whole = make_short(tmp_path, "mkv", short_picture(open_gop=True), name="whole")
    path = remux(whole, tmp_path / "joined.ts", keep=lambda number: number >= 20)
    with pytest.raises(MediaError, match="none of its frames can be decoded"):
        probe(path)


def test_the_clock_of_a_transport_stream_may_wrap_around(tmp_path: Path) -> None:
    whole = make_short(tmp_path, "ts", short_picture(), SHORT_SOUND, name="whole")
    wrap_seconds = 2**33 // 90000
    path = remux(
        whole, tmp_path / "wrapped.ts", shift_seconds=wrap_seconds - 1, options={"mpegts_copyts": "1", "muxdelay": "0"}
    )
    info = check_against_linear_decode(path)
    assert info.video is not None
    assert len(info.video.times) == 60
    assert info.video.times.stop_seconds - info.video.times.start_seconds == Fraction(12, 5)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "mov"])
def test_rotation_is_known_in_every_container(ending: str, truth_media: TruthMedia, tmp_path: Path) -> None:
    path = remux(truth_media["no_sound"], tmp_path / f"turned.{ending}", rotation=90)
    video = probe(path).video
    assert video is not None
    with av.open(str(path)) as container:
        assert video.rotation == next(container.decode(video=0)).rotation % 360 == 90


def with_edits(source: Path, target: Path, edits: list[tuple[int, int]]) -> Path:
    """Replaces the only edit list by edits of (duration, media time); the header lies behind the media."""

    def change(data: bytearray) -> None:
        place = data.index(b"elst") - 4
        size = struct.unpack_from(">I", data, place)[0]
        box = struct.pack(">I4sII", 16 + 12 * len(edits), b"elst", 0, len(edits))
        box += b"".join(struct.pack(">IiI", *edit, 0x10000) for edit in edits)
        for kind in (b"edts", b"trak", b"moov"):
            at = data.index(kind, data.index(b"moov")) - 4
            struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + len(box) - size)
        data[place : place + size] = box

    return patched(source, target, change)


def test_two_edits_are_played_one_after_the_other(truth_media: TruthMedia, tmp_path: Path) -> None:
    with av.open(str(truth_media["no_sound"])) as container:
        ticks = int(1 / container.streams.video[0].time_base)
    path = with_edits(
        truth_media["no_sound"], tmp_path / "edits.mov", [(1000, 2 * ticks // 25), (2000, 2 * ticks // 25 + 4 * ticks)]
    )
    video = check_against_linear_decode(path).video
    assert video is not None
    assert video.times_from == "packets"
    assert len(video.times) == 75


def test_of_two_sound_tracks_the_one_that_ffmpeg_calls_best_is_told(tmp_path: Path) -> None:
    first = make_short(tmp_path, "mp4", short_picture(), SHORT_SOUND, name="first")
    second = make_short(tmp_path, "m4a", None, Sound(seconds=Fraction(1), layout="stereo"), name="second")
    path = tmp_path / "two.mp4"
    with av.open(str(first)) as one, av.open(str(second)) as two, av.open(str(path), "w") as output:
        sources = [(one, 0), (one, 1), (two, 0)]
        copies = [output.add_stream_from_template(container.streams[index]) for container, index in sources]
        for container, numbers in ((one, (0, 1)), (two, (2,))):
            for packet in container.demux():
                if packet.size:
                    packet.stream = copies[numbers[packet.stream_index]]
                    output.mux(packet)
    info = probe(path)
    assert info.audio is not None
    with av.open(str(path)) as container:
        best = container.streams.best("audio")
        assert best is not None
        assert info.audio.stream_index == best.index
        num_samples = sum(frame.samples for frame in container.decode(best))
    assert info.audio.num_samples == num_samples


@every_recipe
def test_the_gpu_reader_is_refused_for_a_stated_reason(recipe: Recipe, truth_media: TruthMedia) -> None:
    expected = NVDEC_REASONS.get(recipe.name, "" if recipe.picture else "no video")
    assert probe(truth_media[recipe.name]).nvdec_reason == expected


@pytest.mark.parametrize(
    "name", ["mp4_25", "open_gop", "cut", "mkv_aac", "mpegts", "hevc_open_gop", "intra_refresh", "webm", "avi_mpeg4"]
)
def test_decoding_from_a_key_frame_gives_it_as_a_linear_decode_does(name: str, truth_media: TruthMedia) -> None:
    path = truth_media[name]
    info = probe(path)
    assert info.video is not None
    with av.open(str(path)) as container:
        plain = {frame.pts: frame.to_ndarray() for frame in container.decode(video=0)}
    for pts in info.video.keyframe_pts.tolist():
        with av.open(str(path)) as container:
            packets = itertools.dropwhile(lambda packet: packet.pts != pts, container.demux(video=0))  # noqa: B023
            frame = next(frame for packet in packets for frame in packet.decode() if frame.pts >= pts)
        assert frame.pts == pts
        np.testing.assert_array_equal(frame.to_ndarray(), plain[pts])


@pytest.mark.parametrize(
    "recipe",
    [recipe for recipe in CATALOG.values() if is_mp4(recipe) and recipe.name not in PACKETS],
    ids=lambda r: r.name,
)
def test_tables_and_packets_say_the_same(
    recipe: Recipe, truth_media: TruthMedia, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = truth_media[recipe.name]
    by_tables = probe(path)
    monkeypatch.setattr(headers, "prove", lambda *arguments: None)
    by_packets = probe(path)
    assert by_tables.nvdec_reason == by_packets.nvdec_reason
    if by_tables.video is not None and by_packets.video is not None:
        assert (by_tables.video.times_from, by_packets.video.times_from) == ("header", "packets")
        frames = np.arange(len(by_tables.video.times))
        np.testing.assert_array_equal(by_tables.video.times.pts_of(frames), by_packets.video.times.pts_of(frames))
        np.testing.assert_array_equal(by_tables.video.keyframe_pts, by_packets.video.keyframe_pts)
        assert by_tables.video.times.stop_seconds == by_packets.video.times.stop_seconds
    if by_tables.audio is not None and recipe.name not in ("cut", "cut_between_frames"):
        assert by_tables.audio == by_packets.audio


def test_an_hour_is_told_by_its_header(truth_media: TruthMedia) -> None:
    info = probe(truth_media["hour"])
    assert info.video is not None
    assert info.video.times_from == "header"
    assert info.video.frame_rate == Fraction(30000, 1001)
    recipe = CATALOG["hour"]
    assert recipe.picture is not None
    assert len(info.video.times) == recipe.picture.num_frames


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("mp4_29_97", "30000/1001"),
        ("mkv_aac", "30000/1001"),
        ("mpegts_29_97", "30000/1001"),
        ("mp4_23_976", "24000/1001"),
    ],
)
def test_a_constant_rate_is_found_exactly_also_behind_rounded_time_stamps(
    name: str, rate: str, truth_media: TruthMedia
) -> None:
    video = probe(truth_media[name]).video
    assert video is not None
    assert video.frame_rate == video.average_rate == Fraction(rate)


def test_a_variable_rate_is_no_rate(truth_media: TruthMedia) -> None:
    video = probe(truth_media["variable_rate"]).video
    assert video is not None
    assert video.frame_rate is None
    span = video.times.seconds(len(video.times) - 1) - video.times.start_seconds
    assert video.average_rate == (len(video.times) - 1) / span


@pytest.mark.parametrize(
    ("name", "size"),
    [("mp4_25", 1024), ("mp3_in_mp4", 1152), ("mkv_opus", 960), ("mkv_flac", 4608), ("mkv_vorbis", 0), ("mov_pcm", 1)],
)
def test_the_codec_frame_is_known_or_said_to_vary(name: str, size: int, truth_media: TruthMedia) -> None:
    audio = probe(truth_media[name]).audio
    assert audio is not None
    assert audio.frame_size == size


def patched(source: Path, target: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(source.read_bytes())
    change(data)
    target.write_bytes(data)
    return target


def test_sound_that_is_upsampled_in_decoding_is_counted_at_the_output_rate(tmp_path: Path) -> None:
    plain = tmp_path / "lc.mp4"
    with av.open(str(plain), "w") as output:
        stream = output.add_stream("aac", rate=24000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        noise = np.random.default_rng(1).normal(0, 0.1, (1, 24 * 1024)).astype(np.float32)
        for start in range(0, noise.shape[1], 1024):
            block = np.ascontiguousarray(noise[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 24000, start, Fraction(1, 24000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))

    def announce_sbr(data: bytearray) -> None:
        # The configuration's last byte: SBR present, at 48 kHz (ISO/IEC 14496-3, 1.6.2.1).
        position = data.index(bytes.fromhex("130856e500"))
        data[position + 4] = 0b1_0011_000

    path = patched(plain, tmp_path / "he.mp4", announce_sbr)
    audio, sound = probe(path).audio, linear_sound(path)
    assert audio is not None
    assert sound.rate == 48000
    assert (audio.sample_rate, audio.frame_size, audio.gaps) == (48000, 2048, ())
    assert audio.start_seconds == sound.start
    assert abs(audio.num_samples - len(sound.samples)) <= 2048


@pytest.mark.parametrize(
    ("matrix", "rotation"), [((0, 1, -1, 0), 270), ((-1, 0, 0, -1), 180), ((0, -1, 1, 0), 90), ((1, 0, 0, 1), 0)]
)
def test_rotation_is_what_ffmpeg_says(
    matrix: tuple[int, int, int, int], rotation: int, truth_media: TruthMedia, tmp_path: Path
) -> None:
    def turn(data: bytearray) -> None:
        a, b, c, d = (65536 * value for value in matrix)
        struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)

    path = patched(truth_media["no_sound"], tmp_path / "turned.mp4", turn)
    video = probe(path).video
    assert video is not None
    with av.open(str(path)) as container:
        assert video.rotation == next(container.decode(video=0)).rotation % 360 == rotation


def test_tables_that_ffmpeg_does_not_confirm_are_not_trusted(truth_media: TruthMedia, tmp_path: Path) -> None:
    def play_at_double_speed(data: bytearray) -> None:
        struct.pack_into(">I", data, data.index(b"elst") + 20, 0x20000)

    path = patched(truth_media["no_sound"], tmp_path / "fast.mp4", play_at_double_speed)
    video = probe(path).video
    assert video is not None
    assert video.times_from == "packets"
    assert video.times.pts_of(np.arange(len(video.times))).tolist() == linear_frames(path).pts


def test_tables_that_differ_from_the_index_in_the_middle_only_are_not_trusted(truth_media: TruthMedia) -> None:
    path = str(truth_media["mp4_25"])
    movie = read_movie(path)
    assert movie is not None
    (video_id,) = (number for number, track in movie.tracks.items() if track.ctts is not None)
    ((count, step),) = movie.tracks[video_id].stts.tolist()
    late = np.array([(100, step), (1, 2 * step), (30, step), (1, 0), (count - 132, step)])  # 31 frames, one step late
    tracks = movie.tracks | {video_id: replace(movie.tracks[video_id], stts=late)}
    for tables, is_proved in ((movie, True), (replace(movie, tracks=tracks), False)):
        with open_source(path) as source:
            assert (headers.prove(source, tables) is not None) == is_proved


def cut_off(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    return target


def test_a_file_cut_off_says_so_whether_its_index_is_in_front_or_behind(
    truth_media: TruthMedia, tmp_path: Path
) -> None:
    in_front = tmp_path / "front.mp4"
    with (
        av.open(str(truth_media["no_sound"])) as source,
        av.open(str(in_front), "w", options={"movflags": "faststart"}) as output,
    ):
        copy = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                output.mux(packet)
    for name, path in {"behind": truth_media["no_sound"], "front": in_front}.items():
        with pytest.raises(MediaError, match=r"cut off: [0-9]+ bytes are missing") as caught:
            probe(cut_off(path, tmp_path / f"{name}_half.mp4"))
        assert caught.value.code == "unreadable"


def make_text(path: Path) -> None:
    path.write_text("path,start,end\n" * 100)


def make_box_without_header(path: Path) -> None:
    path.write_bytes(struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + struct.pack(">I4s", 108, b"mdat") + bytes(100))


def make_ogg_without_pages(path: Path) -> None:
    path.write_bytes(b"OggS\0\2")


def make_link_to_nothing(path: Path) -> None:
    path.symlink_to("gone.mp4")


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def make_subtitles(path: Path) -> None:
    path.write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n\n")


@pytest.mark.parametrize(
    ("name", "create", "code", "message"),
    [
        ("nothing.mp4", None, "missing_file", "no such file"),
        ("folder", Path.mkdir, "unreadable", "folder"),
        ("empty.mp4", Path.touch, "unreadable", "empty"),
        ("text.mp4", make_text, "unreadable", "not a media file"),
        ("no_moov.mp4", make_box_without_header, "unreadable", "index"),
        ("pipe", os.mkfifo, "unreadable", "regular file"),
        ("subtitles.srt", make_subtitles, "no_streams", "neither picture nor sound"),
        ("cut.ogg", make_ogg_without_pages, "unreadable", r"not a media file, or cut off.* Name a media file"),
        ("link.mp4", make_link_to_nothing, "missing_file", r"a link to gone\.mp4\. Check where the link leads"),
        ("circle.mp4", make_link_to_itself, "unreadable", "symbolic links.* Replace the links"),
        ("a" * 300, None, "unreadable", "name too long.* Rename it"),
    ],
)
def test_what_is_no_medium_is_told_by_name_cause_and_remedy(
    name: str, create: Callable[[Path], None] | None, code: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if create is not None:
        create(path)
    with pytest.raises(MediaError, match=message) as caught:
        probe(path)
    assert (caught.value.code, caught.value.path) == (code, str(path))
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    assert "Errno" not in str(caught.value)
    assert str(caught.value).count(str(path)) == 1


@pytest.mark.parametrize("kind", [b"mvhd", b"tkhd"])
def test_a_header_whose_boxes_are_too_short_is_unreadable(kind: bytes, truth_media: TruthMedia, tmp_path: Path) -> None:
    def shorten(data: bytearray) -> None:
        place = data.index(kind) - 4
        size = struct.unpack_from(">I", data, place)[0]
        # Eight bytes of it are left, the others become a box of their own.
        struct.pack_into(">I4s4xI4s", data, place, 12, kind, size - 12, b"free")

    path = patched(truth_media["no_sound"], tmp_path / "short_box.mp4", shorten)
    with pytest.raises(MediaError, match=r"a box is too short\. Get an intact copy") as caught:
        probe(path)
    assert (caught.value.code, caught.value.path) == ("unreadable", str(path))


def test_an_error_that_nobody_foresaw_concerns_its_file_alone(
    truth_media: TruthMedia, monkeypatch: pytest.MonkeyPatch
) -> None:
    prober, path = Prober(), str(truth_media["no_sound"])
    with monkeypatch.context() as patch:
        patch.setattr("avloader.media.file_status", lambda path: 1 // 0)
        found = prober(path)
    assert isinstance(found, MediaError)
    assert (found.code, found.path) == ("unreadable", path)
    assert "unexpectedly (ZeroDivisionError: " in str(found)
    assert isinstance(prober(path), MediaInfo)


def test_titles_that_are_not_utf8_do_not_matter(tmp_path: Path) -> None:
    plain = make_short(tmp_path, "mkv", short_picture(), SHORT_SOUND)
    titled = tmp_path / "titled.mkv"
    with av.open(str(plain)) as given, av.open(str(titled), "w") as output:
        output.metadata["title"] = "TITLE-TITLE"
        copies = {stream.index: output.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                output.mux(packet)
    path = tmp_path / "odd.mkv"
    path.write_bytes(titled.read_bytes().replace(b"TITLE-TITLE", b"TITLE\xff\xe4ITLE"))
    info = probe(path)
    assert info.video is not None
    assert info.audio is not None
    video, audio = info.video, info.audio
    with VideoReader(str(path), stream_index=video.stream_index, keyframe_pts=video.keyframe_pts) as pictures:
        assert pictures.read([video.times.pts(30)]).shape[0] == 1
    with AudioReader(str(path), audio) as sound:
        assert sound.read(0, 4800)[1] == (0, 4800)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(truth_media: TruthMedia, tmp_path: Path) -> None:
    path = patched(truth_media["no_sound"], tmp_path / "locked.mp4", lambda data: None)
    path.chmod(0)
    with pytest.raises(MediaError, match="permission") as caught:
        probe(path)
    assert caught.value.code == "unreadable"


def test_a_stream_without_frame_times_asks_to_be_conformed(truth_media: TruthMedia, tmp_path: Path) -> None:
    path = tmp_path / "raw.h264"
    with av.open(str(truth_media["no_sound"])) as source, av.open(str(path), "w", format="h264") as output:
        copy = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                output.mux(packet)
    with pytest.raises(MediaError, match=r"no frame times.*Convert it") as caught:
        probe(path)
    assert caught.value.code == "unreadable"


@pytest.mark.parametrize("name", ["sidecar_m4a", "mp4_25"])
def test_cover_art_is_no_video(name: str, tmp_path: Path, truth_media: TruthMedia) -> None:
    path = tmp_path / "album.m4a"
    with av.open(str(truth_media[name])) as source, av.open(str(path), "w", format="mp4") as output:
        copies = {stream.index: output.add_stream_from_template(stream) for stream in source.streams}
        cover = output.add_stream("mjpeg", rate=1)
        assert isinstance(cover, av.VideoStream)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = 1 << 10  # type: ignore[assignment]  # attached picture
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        pictures = cover.encode(frame.reformat(format="yuvj420p")) + cover.encode(None)
        packets = [packet for packet in source.demux() if packet.size]
        for packet in packets:
            packet.stream = copies[packet.stream_index]
        for item in [*pictures, *packets]:
            output.mux(item)
    info, plain = probe(path), probe(truth_media[name])
    assert (info.video is None) == (plain.video is None)
    if info.video is not None and plain.video is not None:
        assert len(info.video.times) == len(plain.video.times)
    assert info.audio is not None


def test_ffmpeg_writes_nothing_to_the_terminal(truth_media: TruthMedia, tmp_path: Path) -> None:
    broken = patched(
        truth_media["mpegts"], tmp_path / "broken.ts", lambda data: data.__setitem__(slice(5000, 9000), b"x" * 4000)
    )
    make_text(tmp_path / "text.mp4")
    code = (
        "import sys\nfrom avloader.media import probe\nfrom avloader.errors import MediaError\n"
        "for path in sys.argv[1:]:\n    try:\n        probe(path)\n    except MediaError:\n        pass\n"
    )
    command = [sys.executable, "-c", code, str(broken), str(tmp_path / "text.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_probing_again_and_again_leaves_no_open_file(truth_media: TruthMedia, tmp_path: Path) -> None:
    make_text(tmp_path / "text.mp4")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        for name in ("no_sound", "mkv_opus"):
            probe(truth_media[name])
        with pytest.raises(MediaError):
            probe(tmp_path / "text.mp4")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_wav_file_is_told_to_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes(bytes(4 * 12345))
    info = probe(path)
    assert info.audio is not None
    assert (info.audio.sample_rate, info.audio.num_channels, info.audio.num_samples) == (22050, 2, 12345)
    assert (info.audio.start_seconds, info.audio.stop_seconds) == (0, Fraction(12345, 22050))
