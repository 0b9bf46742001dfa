"""Sound read straight from the file: which windows it serves, and that it serves no wrong one."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from conftest import TruthMedia
from truth import linear_sound

from avloader.direct import DirectSound, open_direct
from avloader.media import AudioInfo, probe


def opened(path: Path) -> tuple[DirectSound, AudioInfo]:
    info = probe(path).audio
    assert info is not None
    direct = open_direct(str(path), info)
    assert direct is not None
    return direct, info


def window(direct: DirectSound, first: int, last: int) -> npt.NDArray[np.float32] | None:
    out = np.full(last - first, np.nan, np.float32)
    return out if direct.read(first, last, out) else None


def served(direct: DirectSound, first: int, last: int) -> npt.NDArray[np.float32]:
    found = window(direct, first, last)
    assert found is not None, (first, last)
    return found


@pytest.mark.parametrize("name", ["mp4_25", "cut_between_frames", "sound_late", "stereo_44100",
                                  "mono_16000", "surround", "sidecar_m4a", "sidecar_wav", "sidecar_flac"])  # fmt: skip
def test_it_serves_the_inside_of_plain_media_as_a_linear_decode_gives_it(name: str, truth_media: TruthMedia) -> None:
    direct, info = opened(truth_media[name])
    linear = linear_sound(truth_media[name]).samples
    draw = random.Random(name)
    inside = 20 * 1024, info.num_samples - 4 * 1024
    for first in [*draw.sample(range(inside[0], inside[1] - 9000), 30), *range(30_000, 90_000, 2500)]:
        last = first + draw.choice((1, 700, 9000))
        assert np.array_equal(served(direct, first, last), linear[first:last]), (first, last)
    direct.close()


@pytest.mark.parametrize("name", ["mp4_25", "mono_16000", "sidecar_m4a", "sidecar_flac"])
def test_it_serves_the_beginning_too(name: str, truth_media: TruthMedia) -> None:
    direct, _ = opened(truth_media[name])
    assert np.array_equal(served(direct, 0, 9000), linear_sound(truth_media[name]).samples[:9000])


@pytest.mark.parametrize(("bits", "num_channels"), [(16, 2), (24, 1), (24, 6)])
def test_it_serves_flac_as_a_linear_decode_gives_it(bits: int, num_channels: int, tmp_path: Path) -> None:
    path, random_ = tmp_path / "sound.flac", np.random.default_rng(0)
    sound = random_.uniform(-1, 1, (100_000, num_channels))
    soundfile.write(path, sound, 44100, subtype=f"PCM_{bits}")
    direct, _ = opened(path)
    linear = linear_sound(path).samples
    for first in [0, 0, 5000, 99_000, *random_.integers(0, 99_000, 20).tolist()]:
        assert np.array_equal(served(direct, first, first + 1000), linear[first : first + 1000])
    assert window(direct, 99_500, 100_001) is None
    direct.close()


@pytest.mark.parametrize("damage", ["zeros", "noise", "cut"])
def test_of_damaged_flac_it_serves_nothing_wrong(damage: str, tmp_path: Path) -> None:
    path, random_ = tmp_path / "sound.flac", np.random.default_rng(0)
    soundfile.write(path, random_.uniform(-1, 1, 200_000), 16000)
    direct, info = opened(path)
    linear = linear_sound(path).samples
    direct.close()
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if damage == "cut":
        del data[middle:]
    else:
        data[middle : middle + 300] = bytes(300) if damage == "zeros" else random_.bytes(300)
    path.write_bytes(data)
    damaged = open_direct(str(path), info)
    assert damaged is not None
    refused = 0
    for first in range(0, 199_000, 1000):
        served = window(damaged, first, first + 1000)
        refused += served is None
        assert served is None or np.array_equal(served, linear[first : first + 1000])
    assert refused >= (90 if damage == "cut" else 1)
    damaged.close()


@pytest.mark.parametrize(
    "name", ["fragmented", "no_edit_list", "mkv_aac", "mpegts", "sound_hole", "mp3_in_mp4", "mov_pcm", "mkv_opus"]
)
def test_media_that_leave_a_doubt_are_left_to_the_demuxer(name: str, truth_media: TruthMedia) -> None:
    info = probe(truth_media[name]).audio
    assert info is not None
    assert open_direct(str(truth_media[name]), info) is None


def test_facts_that_do_not_fit_the_file_are_refused(truth_media: TruthMedia) -> None:
    _, info = opened(truth_media["mp4_25"])
    for wrong in (
        replace(info, frame_size=2048),
        replace(info, sample_rate=44100, time_base=Fraction(1, 44100)),
        replace(info, gaps=((5, 9),)),
        replace(info, codec="mp3"),
    ):
        assert open_direct(str(truth_media["mp4_25"]), wrong) is None, wrong
    wav, info = opened(truth_media["sidecar_wav"])
    wav.close()
    for wrong in (replace(info, num_samples=info.num_samples + 1), replace(info, num_channels=2)):
        assert open_direct(str(truth_media["sidecar_wav"]), wrong) is None, wrong


@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
def test_damage_is_never_served(filler: bytes, truth_media: TruthMedia, tmp_path: Path) -> None:
    path = truth_media["mp4_25"]
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 12000] = 12000 * filler
    broken = tmp_path / path.name
    broken.write_bytes(data)
    info = probe(path).audio
    assert info is not None
    direct = open_direct(str(broken), info)
    assert direct is not None
    linear = linear_sound(path).samples
    refused = 0
    for first in range(0, info.num_samples - 12_000, 4000):
        found = window(direct, first, first + 8000)
        refused += found is None
        assert found is None or np.array_equal(found, linear[first : first + 8000]), first
    assert 1 <= refused <= 30
    direct.close()


@pytest.mark.parametrize("name", ["mp4_25", "sidecar_wav"])
def test_a_file_that_shrank_is_never_served(name: str, truth_media: TruthMedia, tmp_path: Path) -> None:
    copy = tmp_path / truth_media[name].name
    copy.write_bytes(truth_media[name].read_bytes())
    direct, info = opened(copy)
    os.truncate(copy, copy.stat().st_size // 2)
    late = info.num_samples - 20_000
    assert window(direct, late, late + 5000) is None
    if name == "mp4_25":
        assert window(direct, 30_000, 35_000) is not None
    direct.close()


def test_no_file_stays_open(truth_media: TruthMedia) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for name in ("mp4_25", "sidecar_wav"):
        for closes in (True, False):
            direct, _ = opened(truth_media[name])
            window(direct, 30_000, 35_000)
            if closes:
                direct.close()
                direct.close()
            del direct
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["mp4_25", "sound_late", "sidecar_m4a"])
def test_its_beginning_is_the_same_whatever_the_decoder_has_decoded_before(name: str, truth_media: TruthMedia) -> None:
    linear = linear_sound(truth_media[name]).samples
    for path in (truth_media["mp4_25"], truth_media[name]):  # decoders go from one file to the next
        direct, _ = opened(path)
        direct.read(100_000, 140_000, np.empty(40_000, np.float32))
        if path == truth_media[name]:
            found = window(direct, 0, 9000)
            assert found is None or np.array_equal(found, linear[:9000])
        direct.close()
