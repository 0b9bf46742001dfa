"""Windows of sound equal those of a plain linear decode, from wherever reading starts."""

from __future__ import annotations

import random
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from conftest import TruthMedia
from truth import delay_of, linear_sound, snr_db

from avloader.audio import AudioReader
from avloader.errors import DecodeError
from avloader.media import AudioInfo, probe

BIT_EQUAL = (
    "mp4_25",
    "no_edit_list",
    "fragmented",
    "cut_between_frames",
    "sound_late",
    "sound_hole",
    "stereo_44100",
    "mono_16000",
    "surround",
    "mp3_in_mp4",
    "mov_pcm",
    "mkv_flac",
    "mkv_aac",
    "mkv_vorbis",
    "mpegts",
    "avi_mpeg4",
    "sidecar_wav",
    "sidecar_flac",
    "sidecar_mp3",
    "sidecar_m4a",
)
NEARLY_EQUAL = ("mkv_opus", "webm", "sidecar_ogg")


def sound_info(path: Path) -> AudioInfo:
    audio = probe(path).audio
    assert audio is not None
    return audio


def linear(path: Path, info: AudioInfo, start: int, stop: int) -> npt.NDArray[np.float32]:
    samples = linear_sound(path).samples
    window = np.zeros(stop - start, dtype=np.float32)
    first, last = max(start, 0), min(stop, len(samples))
    if first < last:
        window[first - start : last - start] = samples[first:last]
    return window


def windows_of(name: str, count: int) -> list[tuple[int, int]]:
    draw = random.Random(name)
    found = [(-5000, 3000), (0, 8000), (-900, -3), (count - 4000, count + 4000), (count + 5, count + 900), (7, 7)]
    found += [(start, start + draw.choice((1, 300, 8000, 40000))) for start in draw.sample(range(-3000, count), 25)]
    return found + [(start, start + 5000) for start in range(count // 3, count // 2, 4000)]


@pytest.mark.parametrize("name", BIT_EQUAL + NEARLY_EQUAL)
def test_windows_equal_a_linear_decode_wherever_they_start(name: str, truth_media: TruthMedia) -> None:
    path = truth_media[name]
    info = sound_info(path)
    count = len(linear_sound(path).samples)
    with AudioReader(str(path), info) as reader:
        for start, stop in windows_of(name, count):
            window, valid = reader.read(start, stop)
            expected = linear(path, info, start, stop)
            first, last = max(start, 0), min(stop, count)
            assert valid == ((first - start, last - start) if first < last else (0, 0))
            if name in BIT_EQUAL:
                assert np.array_equal(window, expected), (start, stop)
            elif expected.any():
                head = slice(valid[0], valid[0] + info.sample_rate // 50)
                assert snr_db(window, expected) > 85, (start, stop)
                assert snr_db(window[head], expected[head]) > 85, (start, stop)
                if stop - start >= 8000:
                    assert abs(delay_of(window, expected)) < 0.02
            else:
                assert not window.any()


def test_a_hole_is_silent_and_counts_as_existing(truth_media: TruthMedia) -> None:
    path = truth_media["sound_hole"]
    info = sound_info(path)
    ((begin, end),) = info.gaps
    with AudioReader(str(path), info) as reader:
        window, valid = reader.read(begin - 500, end + 500)
        assert valid == (0, end - begin + 1000)
        assert not window[500:-500].any()
        assert window[:500].any()
        assert np.array_equal(window[-500:], linear(path, info, end, end + 500))
        inside, valid = reader.read(begin + 100, begin + 200)
        assert not inside.any()
        assert valid == (0, 100)


def test_the_sound_that_was_read_does_not_depend_on_the_window(truth_media: TruthMedia) -> None:
    path = truth_media["surround"]
    info = sound_info(path)
    out = np.full(1000, 7, dtype=np.float32)
    with AudioReader(str(path), info) as reader:
        long, _ = reader.read(100_000, 110_000)
        same, _ = reader.read(105_000, 106_000, out=out)
    assert same is out
    assert np.array_equal(long[5000:6000], out)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
def test_every_sample_format_has_full_scale_one(codec: str, tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    left = (0.5 * np.sin(np.arange(4800) / 9)).astype(np.float32)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=48000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([left, -left / 2]), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 48000, 0
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout="stereo", rate=48000)
        for converted in [*resampler.resample(frame), None]:
            output.mux(stream.encode(converted))
    info = sound_info(path)
    with AudioReader(str(path), info) as reader:
        window, valid = reader.read(0, 4800)
    assert valid == (0, 4800)
    assert np.abs(window - left / 4).max() <= (1 / 128 if codec == "pcm_u8" else 2e-5)


@pytest.mark.parametrize("name", ["mp4_25", "mkv_aac", "mpegts", "mkv_flac"])
def test_lost_sound_is_an_error_and_the_rest_is_right(name: str, truth_media: TruthMedia, tmp_path: Path) -> None:
    path = truth_media[name]
    info = sound_info(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 12000] = bytes(12000)
    broken = tmp_path / path.name
    broken.write_bytes(data)
    errors = 0
    with AudioReader(str(broken), info) as reader:
        for start in range(0, info.num_samples - 8000, 8000):
            try:
                window, _ = reader.read(start, start + 8000)
            except DecodeError:
                errors += 1
            else:
                assert snr_db(window, linear(path, info, start, start + 8000)) > 60
    assert 1 <= errors <= 15


def test_a_truncated_file_is_an_error_where_sound_is_gone(truth_media: TruthMedia, tmp_path: Path) -> None:
    path = truth_media["mpegts"]
    info = sound_info(path)
    short = tmp_path / "short.ts"
    short.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with AudioReader(str(short), info) as reader:
        with pytest.raises(DecodeError, match=r"short\.ts: .* is missing"):
            reader.read(info.num_samples - 9000, info.num_samples)
        assert np.array_equal(reader.read(90_000, 95_000)[0], linear(path, info, 90_000, 95_000))


def test_a_file_that_is_not_there_is_a_decode_error(truth_media: TruthMedia, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"gone\.mp4: it cannot be opened"):
        AudioReader(str(tmp_path / "gone.mp4"), sound_info(truth_media["mp4_25"]))


def test_wrong_arguments_are_named(truth_media: TruthMedia) -> None:
    path = truth_media["mp4_25"]
    reader = AudioReader(str(path), sound_info(path))
    with pytest.raises(ValueError, match="stop must not be less than start"):
        reader.read(5, 4)
    with pytest.raises(ValueError, match="out must be float32"):
        reader.read(0, 4, out=np.zeros(4, dtype=np.float32)[:3])
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read(0, 4)
