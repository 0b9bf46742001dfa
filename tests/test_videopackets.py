"""Packets read straight from an mp4: the same that FFmpeg's demuxer gives, and none where the header leaves a doubt."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import TruthMedia
from truth import linear_frames

from avloader.errors import DecodeError
from avloader.media import VideoInfo, probe
from avloader.video import VideoReader
from avloader.videopackets import DemuxedPackets, ListedPackets, PacketSource, open_listed

LISTED = (
    "mp4_25",
    "mp4_29_97",
    "no_b_frames",
    "three_b_frames",
    "open_gop",
    "one_gop",
    "all_intra",
    "no_edit_list",
    "cut",
    "sound_late",
    "picture_late",
    "no_sound",
    "variable_rate",
    "intra_refresh",
    "odd_size",
    "mov_pcm",
    "hour",
)
DEMUXED = ("fragmented", "cut_between_frames", "mpegts", "mkv_aac", "webm", "hevc", "avi_mpeg4")

Packets = list[tuple[int | None, bytes]]


def video_of(path: Path) -> VideoInfo:
    video = probe(path).video
    assert video is not None
    return video


def listed_of(path: Path) -> ListedPackets:
    listed = open_listed(os.fspath(path), video_of(path).keyframe_pts, num_threads=1)
    assert listed is not None
    return listed


def rest_of(source: PacketSource, most: int = 200) -> Packets:
    """The packets up to the end, the empty one that drains the decoder included."""
    packets: Packets = []
    while len(packets) < most and (packet := source.next()) is not None:
        packets.append((packet.pts, bytes(packet)))
    return packets


@pytest.mark.parametrize("name", LISTED)
def test_they_are_those_of_the_demuxer_from_every_key_frame_on(name: str, truth_media: TruthMedia) -> None:
    video = video_of(truth_media[name])
    listed = listed_of(truth_media[name])
    demuxed = DemuxedPackets(os.fspath(truth_media[name]), video.stream_index, num_threads=1)
    assert (listed.time_base, listed.average_rate is None) == (demuxed.time_base, demuxed.average_rate is None)
    for key in [*video.keyframe_pts[:3].tolist(), *video.keyframe_pts[-2:].tolist()]:
        assert listed.seek(key)
        assert demuxed.seek(key)
        found, expected = rest_of(listed), rest_of(demuxed)
        assert found == expected
        assert found[0][0] == key
    assert not listed.seek(int(video.keyframe_pts[0]) + 1)


@pytest.mark.parametrize("name", LISTED)
def test_the_decoder_puts_them_in_order_as_after_the_demuxer(name: str, truth_media: TruthMedia) -> None:
    video = video_of(truth_media[name])
    sources = (
        listed_of(truth_media[name]),
        DemuxedPackets(os.fspath(truth_media[name]), video.stream_index, num_threads=1),
    )
    for key in video.keyframe_pts[[0, len(video.keyframe_pts) // 2]].tolist():
        shown = []
        for source in sources:
            assert source.seek(key)
            frames = [frame for _ in range(40) if (packet := source.next()) for frame in source.context.decode(packet)]
            shown.append([(frame.pts, frame.to_ndarray(format="yuv420p").tobytes()) for frame in frames])
        first, second = shown
        hidden = [stamp for stamp, _ in first if stamp not in dict(second)]  # the demuxer lets a cut's pre-roll vanish
        assert first[len(hidden) :] == second
        assert all(stamp < second[0][0] for stamp in hidden)


@pytest.mark.parametrize("name", DEMUXED)
def test_media_that_leave_a_doubt_are_left_to_the_demuxer(name: str, truth_media: TruthMedia) -> None:
    assert open_listed(os.fspath(truth_media[name]), video_of(truth_media[name]).keyframe_pts, num_threads=1) is None


def test_colours_that_only_the_container_names_reach_the_frames(tmp_path: Path, truth_media: TruthMedia) -> None:
    path = tmp_path / "colours.mp4"
    with av.open(str(truth_media["mp4_25"])) as source, av.open(str(path), "w") as target:
        (stream,) = source.streams.video
        copy = target.add_stream_from_template(stream)
        copy.codec_context.colorspace, copy.codec_context.color_range = 1, 2  # BT.709, 0 to 255
        copy.codec_context.color_primaries, copy.codec_context.color_trc = 1, 1
        for packet in source.demux(stream):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    listed = listed_of(path)
    demuxed = DemuxedPackets(os.fspath(path), 0, num_threads=1)
    facts = []
    for source in (listed, demuxed):
        source.rewind()
        frames = [frame for _ in range(9) if (packet := source.next()) for frame in source.context.decode(packet)]
        facts.append(
            [(frame.colorspace, frame.color_range, frame.to_ndarray(format="rgb24").tobytes()) for frame in frames]
        )
    assert facts[0] == facts[1]


def test_a_header_that_names_wrong_places_costs_nothing_but_time(tmp_path: Path, truth_media: TruthMedia) -> None:
    path = tmp_path / "wrong.mp4"  # the header of what was opened before is kept for a while
    path.write_bytes(truth_media["mp4_25"].read_bytes())
    video = video_of(path)
    stamps = video.times.pts_of(range(30, 40)).tolist()
    with VideoReader(str(path), stream_index=video.stream_index, keyframe_pts=video.keyframe_pts) as reader:
        expected = reader.read(stamps)
        assert isinstance(reader._source, ListedPackets)
        reader._source._track.chunk_offset[:] += 7
        reader._source.seek(int(video.keyframe_pts[0]))
        assert np.array_equal(reader.read(stamps), expected)
        assert isinstance(reader._source, DemuxedPackets)


def test_a_file_that_is_cut_off_while_it_is_open_is_an_error(tmp_path: Path, truth_media: TruthMedia) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(truth_media["mp4_25"].read_bytes())
    video = video_of(path)
    with VideoReader(str(path), stream_index=video.stream_index, keyframe_pts=video.keyframe_pts) as reader:
        reader.read(video.times.pts_of(range(10)).tolist())
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(DecodeError, match=r"cut\.mp4"):
            reader.read(video.times.pts_of(range(video.times.num_frames - 5, video.times.num_frames)).tolist())


def test_every_frame_comes_from_every_listed_medium(truth_media: TruthMedia) -> None:
    for name in LISTED[:-1]:
        path = truth_media[name]
        video = video_of(path)
        shown = linear_frames(path)
        with VideoReader(str(path), stream_index=video.stream_index, keyframe_pts=video.keyframe_pts) as reader:
            reader.read(video.times.pts_of(range(len(shown.times))).tolist())
            assert isinstance(reader._source, ListedPackets), name
