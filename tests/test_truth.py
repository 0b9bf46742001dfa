"""The ground truth itself: every file is what its recipe says, and the oracle reads it right."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import make_truth_media
import numpy as np
import pytest
import truth
from conftest import TruthMedia, every_recipe
from make_truth_media import CATALOG, CHANNEL_GAINS, FILLER_NUMBER, Recipe, draw, read_number

HALF_WINDOW = 2048
TENTH_OF_A_MILLISECOND = Fraction(1, 10_000)

with_picture = pytest.mark.parametrize("recipe", [r for r in CATALOG.values() if r.picture], ids=lambda r: r.name)
with_sound = pytest.mark.parametrize("recipe", [r for r in CATALOG.values() if r.sound], ids=lambda r: r.name)
inter_coded = pytest.mark.parametrize(
    "recipe",
    [r for r in CATALOG.values() if r.picture and r.picture.codec in ("libx264", "libx265") and r.picture.gop > 1],
    ids=lambda r: r.name,
)


def packets_of(path: Path, kind: str) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(**{kind: 0}) if packet.pts is not None]


def rgb(number: int, width: int = 256, height: int = 144, to: tuple[int, int] | None = None) -> np.ndarray:
    frame = av.VideoFrame.from_ndarray(draw(number, height, width), format="yuv444p")
    wide, tall = to or (width, height)
    return frame.reformat(width=wide, height=tall, format="rgb24").to_ndarray()


def expected_numbers(recipe: Recipe) -> list[int]:
    assert recipe.picture
    times = recipe.picture.times()
    if recipe.islands:
        shown = set(itertools.chain.from_iterable(range(*island) for island in recipe.islands))
        return [number if number in shown else FILLER_NUMBER for number in range(len(times))]
    return [number for number, time in enumerate(times) if recipe.cut is None or time >= recipe.cut]


def picture_shift(recipe: Recipe, path: Path) -> Fraction:
    """Media time minus source time, by the first frame."""
    assert recipe.picture
    frames = truth.linear_frames(path)
    return frames.times[0] - recipe.picture.times()[frames.numbers[0]]


def sound_places(recipe: Recipe) -> list[Fraction]:
    """Source times around which there is sound."""
    assert recipe.sound
    if recipe.islands:
        assert recipe.picture
        return [first / recipe.picture.rate + 4 for first, _ in recipe.islands]
    start, stop = recipe.sound.delay, recipe.sound.delay + recipe.sound.seconds
    places = [start + Fraction(1, 10), *(Fraction(second) for second in (2, 5, 7, 9)), stop - Fraction(1, 10)]
    margin = Fraction(2 * HALF_WINDOW, recipe.sound.rate)
    hole = recipe.sound.hole or (stop, stop)
    return [
        place
        for place in places
        if place >= (recipe.cut or 0) + margin / 2 and place <= stop - margin / 2
        if not hole[0] - margin < place < hole[1] + margin
    ]


@with_picture
def test_every_frame_shows_its_number(recipe: Recipe, truth_media: TruthMedia) -> None:
    assert truth.linear_frames(truth_media[recipe.name]).numbers == expected_numbers(recipe)


@with_picture
def test_frames_are_shown_at_the_times_of_the_recipe(recipe: Recipe, truth_media: TruthMedia) -> None:
    assert recipe.picture
    path = truth_media[recipe.name]
    frames, source = truth.linear_frames(path), recipe.picture.times()
    first = len(source) - len(frames.times)
    shifts = {time - source[first + index] for index, time in enumerate(frames.times)}
    with av.open(str(path)) as container:
        tick = Fraction(1, container.streams.video[0].time_base.denominator)
    assert max(shifts) - min(shifts) <= tick * Fraction(999, 1000)  # half a tick to each side


@with_sound
def test_the_sound_is_where_it_belongs_against_the_picture(recipe: Recipe, truth_media: TruthMedia) -> None:
    assert recipe.sound
    path = truth_media[recipe.name]
    shift = picture_shift(recipe, path) if recipe.picture else Fraction(0)
    if recipe.cut is not None:
        shift = -recipe.cut  # FFmpeg shows the first whole frame at 0, but keeps the sound at its own time
    places = sound_places(recipe)
    assert len(places) >= 3
    for place in places:
        start = round((place - recipe.sound.delay) * recipe.sound.rate) - HALF_WINDOW
        begin = recipe.sound.delay + Fraction(start, recipe.sound.rate) + shift
        known = truth.known_sound(recipe, start, start + 2 * HALF_WINDOW)
        window = truth.linear_window(path, begin, 2 * HALF_WINDOW)
        grid = truth.linear_sound(path).start
        rounding = round((begin - grid) * recipe.sound.rate) - (begin - grid) * recipe.sound.rate
        late = (truth.delay_of(window, known) + float(rounding)) / recipe.sound.rate
        assert abs(late) < TENTH_OF_A_MILLISECOND, f"at {float(place)} s"
        assert np.corrcoef(window, known)[0, 1] > 0.9


@inter_coded
def test_b_frames_come_in_runs_of_the_recipe(recipe: Recipe, truth_media: TruthMedia) -> None:
    assert recipe.picture
    with av.open(str(truth_media[recipe.name])) as container:
        kinds = "".join("-IPB"[int(frame.pict_type)] for frame in itertools.islice(container.decode(video=0), 240))
    longest = max(len(run) for run in kinds.replace("I", "P").split("P"))
    assert longest == recipe.picture.num_b_frames
    assert "P" in kinds


@inter_coded
def test_leading_frames_follow_a_later_key_frame_only_in_an_open_gop(recipe: Recipe, truth_media: TruthMedia) -> None:
    assert recipe.picture
    leading, key_pts = 0, None
    for packet in packets_of(truth_media[recipe.name], "video"):
        key_pts = packet.pts if packet.is_keyframe else key_pts
        assert key_pts is not None
        leading += packet.pts < key_pts
    assert (leading > 10) == recipe.picture.open_gop
    if not recipe.picture.open_gop:
        assert leading == 0


@with_picture
def test_key_frames_are_as_far_apart_as_the_recipe_says(recipe: Recipe, truth_media: TruthMedia) -> None:
    assert recipe.picture
    shown = sorted(packets_of(truth_media[recipe.name], "video"), key=lambda packet: packet.pts)
    keys = np.flatnonzero([packet.is_keyframe for packet in shown])
    if recipe.picture.gop < recipe.picture.num_frames // 2 and ("intra-refresh", "1") not in recipe.picture.options:
        assert len(keys) > 1
        assert set(np.diff(keys)) == {recipe.picture.gop}
    elif recipe.picture.gop > recipe.picture.num_frames:
        assert len(keys) == 1


@every_recipe
def test_streams_are_coded_as_the_recipe_says(recipe: Recipe, truth_media: TruthMedia) -> None:
    names = {"libx264": "h264", "libx265": "hevc", "libvpx-vp9": "vp9", "libmp3lame": ("mp3float", "mp3")}
    with av.open(str(truth_media[recipe.name])) as container:
        assert bool(container.streams.video) == (recipe.picture is not None)
        assert bool(container.streams.audio) == (recipe.sound is not None)
        if recipe.picture:
            video = container.streams.video[0]
            assert video.codec_context.name == names.get(recipe.picture.codec, recipe.picture.codec)
            assert (video.width, video.height) == (recipe.picture.width, recipe.picture.height)
        if recipe.sound:
            audio = container.streams.audio[0]
            codec = recipe.sound.codec.removeprefix("lib")
            assert audio.codec_context.name in names.get(recipe.sound.codec, codec)
            assert (audio.rate, audio.channels) == (recipe.sound.rate, len(CHANNEL_GAINS[recipe.sound.layout]))


@pytest.mark.parametrize("name", ["cut", "cut_between_frames"])
def test_packets_before_a_cut_are_there_but_hidden(name: str, truth_media: TruthMedia) -> None:
    hidden = [packet for packet in packets_of(truth_media[name], "video") if packet.is_discard]
    assert len(hidden) > 20
    assert hidden[0].is_keyframe
    assert truth.linear_frames(truth_media[name]).times[0] == 0


def test_a_hole_in_the_sound_is_two_seconds_of_zeros(truth_media: TruthMedia) -> None:
    sound = truth.linear_sound(truth_media["sound_hole"])
    ((start, stop),) = sound.holes
    assert abs((stop - start) / sound.rate - 2) < 0.025
    assert not sound.samples[start:stop].any()
    assert sound.samples[stop : stop + 2000].any()


@every_recipe
def test_no_other_sound_has_holes(recipe: Recipe, truth_media: TruthMedia) -> None:
    if recipe.sound is None or recipe.sound.hole or recipe.name in ("no_edit_list", "fragmented"):
        pytest.skip("has no sound, or a hole")
    assert truth.linear_sound(truth_media[recipe.name]).holes == []


def test_streams_start_late_where_the_recipe_says(truth_media: TruthMedia) -> None:
    priming = Fraction(1024, 48000)  # which mp4 does not hide when the stream starts late
    assert truth.linear_sound(truth_media["sound_late"]).start == Fraction(2, 5) - priming
    assert truth.linear_frames(truth_media["sound_late"]).times[0] == 0
    assert truth.linear_frames(truth_media["picture_late"]).times[0] == Fraction(1, 2)
    assert truth.linear_sound(truth_media["picture_late"]).start == 0
    assert truth.linear_frames(truth_media["no_edit_list"]).times[0] == Fraction(2, 25)
    short = truth.linear_sound(truth_media["sound_short"])
    assert len(short.samples) / short.rate < truth.linear_frames(truth_media["sound_short"]).times[-1] - 3


def test_a_transport_stream_does_not_start_at_zero(truth_media: TruthMedia) -> None:
    with av.open(str(truth_media["mpegts"])) as container:
        assert truth.container_start(container) > Fraction(1, 100)


def test_a_fragmented_file_has_no_sample_table(truth_media: TruthMedia) -> None:
    assert b"moof" in truth_media["fragmented"].read_bytes()
    with av.open(str(truth_media["fragmented"])) as container:
        assert container.streams.video[0].frames == 0


def test_no_edit_list_is_written_where_the_recipe_says_so(truth_media: TruthMedia) -> None:
    assert b"elst" not in truth_media["no_edit_list"].read_bytes()
    assert b"elst" in truth_media["mp4_25"].read_bytes()


@pytest.mark.parametrize("name", ["variable_rate", "variable_rate_b_frames"])
def test_a_variable_rate_has_steps_of_16_to_83_ms_and_a_hole_of_two_seconds(name: str, truth_media: TruthMedia) -> None:
    steps = np.diff(np.array(truth.linear_frames(truth_media[name]).times, dtype=np.float64))
    assert np.sort(steps)[-1] == pytest.approx(2)
    assert np.sort(steps)[-2] <= 0.0831
    assert steps.min() >= 0.0159
    assert len(np.unique(steps.round(4))) > 30


def test_side_car_files_hold_the_sound_of_the_picture_file(truth_media: TruthMedia) -> None:
    wave = truth.linear_sound(truth_media["sidecar_wav"]).samples
    assert np.abs(wave - truth.known_sound(CATALOG["picture_for_sidecar"])).max() < 2**-15
    assert np.array_equal(truth.linear_sound(truth_media["sidecar_flac"]).samples, wave)


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (96, 320), (321, 243)])
def test_a_number_is_readable_after_resizing(size: tuple[int, int]) -> None:
    for number in (0, 1, 255, 256, 107_891, FILLER_NUMBER):
        assert read_number(rgb(number, to=size)) == number


def test_a_mixture_of_two_pictures_shows_no_number() -> None:
    mixture = (rgb(100).astype(np.uint16) + rgb(101)) // 2
    with pytest.raises(ValueError, match="no number is readable: block levels"):
        read_number(mixture.astype(np.uint8))


def test_a_damaged_block_is_noticed_by_the_check_bits() -> None:
    picture = rgb(100)
    picture[:36, :32] = 255 - picture[:36, :32]
    with pytest.raises(ValueError, match="check bits"):
        read_number(picture)


def test_linear_rgb_gives_the_frames_in_the_order_asked_for(truth_media: TruthMedia) -> None:
    pictures = truth.linear_rgb(truth_media["mp4_25"], [60, 3, 60])
    assert [read_number(picture) for picture in pictures] == [60, 3, 60]


@pytest.mark.parametrize("delay", [-3.25, 0.0, 0.4, 17.5])
def test_delay_of_measures_a_fraction_of_a_sample(delay: float) -> None:
    known = make_truth_media.sound_samples("delay", 48000, 8192)
    shift = np.exp(-2j * np.pi * np.fft.rfftfreq(8192) * delay)
    late = np.fft.irfft(np.fft.rfft(known) * shift)
    assert truth.delay_of(late[1000:7000], known[1000:7000]) == pytest.approx(delay, abs=0.02)


def test_delay_of_finds_a_short_window_in_a_long_one() -> None:
    known = make_truth_media.sound_samples("delay", 48000, 200_000)
    assert truth.delay_of(known, known[150_000:154_000]) == pytest.approx(150_000, abs=0.02)
    assert truth.delay_of(known[150_000:154_000], known) == pytest.approx(-150_000, abs=0.02)


def test_snr_counts_decibels() -> None:
    known = make_truth_media.sound_samples("snr", 48000, 1000)
    assert truth.snr_db(known, known) == float("inf")
    assert truth.snr_db(known * 1.001, known) == pytest.approx(60, abs=0.1)


def test_a_window_outside_the_sound_is_zero(truth_media: TruthMedia) -> None:
    path = truth_media["sidecar_wav"]
    window = truth.linear_window(path, Fraction(-1, 100), 960)
    assert not window[:480].any()
    assert np.array_equal(window[480:], truth.linear_sound(path).samples[:480])
    assert not truth.linear_window(path, Fraction(20), 100).any()


def test_the_noise_starts_the_same_for_every_length() -> None:
    long, short = (make_truth_media.sound_samples("noise", 44100, size) for size in (50_000, 1000))
    assert np.allclose(long[:1000], short, atol=1e-6)
    assert long.std() == pytest.approx(make_truth_media.SOUND_RMS, rel=0.05)


def test_the_tool_lists_and_makes_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_truth_media.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CATALOG)
    assert make_truth_media.main([str(tmp_path / "new"), "sidecar_wav"]) == 0
    assert (tmp_path / "new" / "sidecar.wav").stat().st_size > 900_000
    with pytest.raises(SystemExit):
        make_truth_media.main([str(tmp_path), "nonsense"])
    assert "no recipe is called nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(("must_have", "outcome"), [("", "1 skipped"), ("1", "1 error")])
def test_gpu_tests_without_a_gpu_skip_or_fail(must_have: str, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "test_marked.py").write_text("import pytest\n\n@pytest.mark.gpu\ndef test_it():\n    pass\n")
    folder = Path(__file__).parent
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "-1",
        "FAIL_WITHOUT_GPU": must_have,
        "PYTHONPATH": str(folder),
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "conftest", "-c", "setup.cfg"]
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=folder.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert outcome in done.stdout
