"""Makes media whose frames carry their number and whose sound is known to the sample.

Every file follows a `Recipe`. Frame `i` shows the number `i` as black and white blocks that fill the picture
(`draw`, and `read_number` to read it back after any resizing), over a texture that moves. The sound is noise below
5 kHz (`sound_samples`), so that the place of any window of it is unique and measurable to a fraction of a sample.
Sample 0 of the sound belongs to the source time `sound.delay`, frame `i` to `picture.times()[i]`.

    python tools/make_truth_media.py truth/                     # all of them
    python tools/make_truth_media.py truth/ mp4_25 mpegts       # some
    python tools/make_truth_media.py --list
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.stream
import numpy as np
import numpy.typing as npt

__all__ = [
    "CATALOG",
    "FILLER_NUMBER",
    "NUMBERED",
    "Content",
    "Picture",
    "Recipe",
    "Sound",
    "draw",
    "main",
    "make",
    "read_number",
    "sound_of",
    "sound_samples",
]

NUMBER_BITS = 24
CHECK_BITS = 8
CODE_ROWS, CODE_COLUMNS = 4, 8
DARK, BRIGHT = 48, 208
TEXTURE_AMPLITUDE = 20

FILLER_NUMBER = 2**NUMBER_BITS - 1
"""What the frames between the numbered stretches of a sparse file show."""

SOUND_RMS = 0.1
SOUND_BAND_HZ = 5000

# Weights of the channels; their mean is 1, so that the mean of the channels is the sound itself. LFE carries none.
CHANNEL_GAINS = {
    "mono": (1.0,),
    "stereo": (1.25, 0.75),
    "5.1": (1.5, 0.5, 1.75, 0.0, 1.25, 1.0),
}


@dataclass(frozen=True)
class Picture:
    """What the video stream shows and how it is coded.

    Attributes:
        rate: Frames per second; for a variable rate, of the clock in which `frame_ticks` count.
        num_frames: Frames encoded.
        frame_ticks: Presentation times in units of 1 / rate, for a variable rate; None: 0, 1, 2 ...
        width, height: Pixels.
        codec: FFmpeg's encoder.
        pixel_format: As stored.
        gop: Frames from one key frame to the next.
        num_b_frames: B-frames in a row.
        open_gop: Whether B-frames refer across a key frame that follows them in display order.
        options: Further options of the encoder.
        delay: Source time of frame 0 in seconds, a multiple of 1 / rate.
    """

    rate: Fraction = Fraction(25)
    num_frames: int = 250
    frame_ticks: tuple[int, ...] | None = None
    width: int = 256
    height: int = 144
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    gop: int = 50
    num_b_frames: int = 2
    open_gop: bool = False
    options: tuple[tuple[str, str], ...] = ()
    delay: Fraction = Fraction(0)

    def ticks(self) -> tuple[int, ...]:
        """Source time of every frame, in units of 1 / rate."""
        first = self.delay * self.rate
        if first.denominator != 1:
            raise ValueError(f"delay {self.delay} is not a multiple of 1 / {self.rate}")
        return tuple(first.numerator + tick for tick in self.frame_ticks or range(self.num_frames))

    def times(self) -> tuple[Fraction, ...]:
        """Source time of every frame, in seconds."""
        return tuple(tick / self.rate for tick in self.ticks())

    def encoder_options(self) -> dict[str, str]:
        """All options of the encoder: a fixed pattern of frame types, so that a file is what its recipe says."""
        options = {"g": str(self.gop), "bf": str(self.num_b_frames)}
        if self.codec == "libx264":
            options |= {"preset": "ultrafast", "crf": "23", "sc_threshold": "0", "b_strategy": "0"}
            options["x264-params"] = f"keyint={self.gop}:min-keyint={self.gop}:open-gop={int(self.open_gop)}"
        elif self.codec == "libx265":
            options |= {"preset": "ultrafast", "crf": "24"}
            options["x265-params"] = (
                f"keyint={self.gop}:min-keyint={self.gop}:open-gop={int(self.open_gop)}:bframes={self.num_b_frames}"
                ":scenecut=0:b-adapt=0:log-level=error"
            )
        elif self.codec == "libvpx-vp9":
            options = {"g": str(self.gop), "deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"}
        elif self.codec in ("mpeg4", "mjpeg"):
            options |= {"qscale": "4"}
        return options | dict(self.options)


@dataclass(frozen=True)
class Sound:
    """What the audio stream plays and how it is coded.

    Attributes:
        rate: Samples per second.
        seconds: Length of the sound that is encoded.
        layout: "mono", "stereo" or "5.1".
        codec: FFmpeg's encoder.
        bit_rate: Bits per second, for a lossy codec.
        delay: Source time of sample 0 in seconds.
        hole: Source times between which packets are lost, or None.
        seed: Names the noise; "" stands for the recipe's name.
    """

    rate: int = 48000
    seconds: Fraction = Fraction(10)
    layout: str = "mono"
    codec: str = "aac"
    bit_rate: int = 128_000
    delay: Fraction = Fraction(0)
    hole: tuple[Fraction, Fraction] | None = None
    seed: str = ""

    @property
    def num_samples(self) -> int:
        """Samples that are encoded."""
        return int(self.seconds * self.rate)


@dataclass(frozen=True)
class Recipe:
    """How one file is made.

    Attributes:
        name: Key in the catalog.
        file_name: Name of the file; its ending selects the container.
        picture, sound: The streams, or None.
        container_options: Options of the muxer.
        cut: Source time at which the file is cut without decoding, from the key frame before, which an edit list hides.
        islands: For a file that is mostly filler: the stretches of frames [first, stop) that carry their number and
            have sound, at multiples of the GOP, the last one to the end. Empty: everything.
    """

    name: str
    file_name: str
    picture: Picture | None = field(default_factory=Picture)
    sound: Sound | None = field(default_factory=Sound)
    container_options: tuple[tuple[str, str], ...] = ()
    cut: Fraction | None = None
    islands: tuple[tuple[int, int], ...] = ()

    @property
    def sound_seed(self) -> str:
        """Names the noise of this file."""
        return self.sound.seed or self.name if self.sound else ""


# Pictures -------------------------------------------------------------------------------------------------------------


def _code_bits(number: int) -> npt.NDArray[np.uint8]:
    """The bits of `number` and of its check value [shape=(32,)], scattered so that counting changes many blocks."""
    if not 0 <= number < 2**NUMBER_BITS:
        raise ValueError(f"number must be in [0, 2**{NUMBER_BITS}), got {number}")
    data = number.to_bytes(NUMBER_BITS // 8, "big")
    check = zlib.crc32(data) & (2**CHECK_BITS - 1)
    return np.unpackbits(np.frombuffer(data + bytes([check]), dtype=np.uint8))


@functools.lru_cache(maxsize=4)
def _texture(height: int, width: int) -> npt.NDArray[np.int16]:
    """Smooth noise, larger than the picture, over which the picture pans [shape=(height + 64, width + 256)]."""
    rng = np.random.default_rng(7)
    rows, columns = height + 64, width + 256
    coarse = rng.uniform(-1, 1, (rows // 8 + 2, columns // 8 + 2))
    row, column = np.arange(rows) / 8, np.arange(columns) / 8
    fine = np.stack([np.interp(column, np.arange(coarse.shape[1]), line) for line in coarse])
    fine = np.stack([np.interp(row, np.arange(coarse.shape[0]), line) for line in fine.T]).T
    texture: npt.NDArray[np.int16] = np.rint(fine * TEXTURE_AMPLITUDE).astype(np.int16)
    return texture


@functools.lru_cache(maxsize=4)
def _block_of_pixel(height: int, width: int) -> npt.NDArray[np.intp]:
    """Index of the code block that each pixel belongs to [shape=(height, width)]."""
    rows = np.arange(height) * CODE_ROWS // height
    columns = np.arange(width) * CODE_COLUMNS // width
    return rows[:, None] * CODE_COLUMNS + columns[None, :]


def draw(number: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A picture that shows `number` over a texture that moves with it; filler has none, since it must cost little.

    Args:
        number: 0 <= number < 2**24.
        height: Pixels.
        width: Pixels.

    Returns:
        uint8 [shape=(3, height, width)], planes Y, U, V.
    """
    down, across = number % 64, 2 * number % 256
    texture = _texture(height, width)[down : down + height, across : across + width] * (number != FILLER_NUMBER)
    levels = np.where(_code_bits(number), BRIGHT, DARK).astype(np.int16)
    luma = levels[_block_of_pixel(height, width)] + texture
    return np.stack([luma, 128 + 2 * texture, 128 - texture]).astype(np.uint8)


def read_number(rgb: npt.NDArray[np.uint8]) -> int:
    """The number that a picture shows, resized or not.

    Args:
        rgb: uint8 [shape=(H, W, 3)], at least 64 x 32 pixels.

    Raises:
        ValueError: If it shows no number clearly: another picture, or a mixture of two.
    """
    tall, wide = rgb.shape[0] / CODE_ROWS, rgb.shape[1] / CODE_COLUMNS
    levels = []
    for row, column in itertools.product(range(CODE_ROWS), range(CODE_COLUMNS)):
        middle_rows = slice(round((row + 1 / 4) * tall), round((row + 3 / 4) * tall))
        middle_columns = slice(round((column + 1 / 4) * wide), round((column + 3 / 4) * wide))
        levels.append(rgb[middle_rows, middle_columns].mean())
    level = np.array(levels)
    if ((level > 100) & (level < 156)).any():
        raise ValueError(f"no number is readable: block levels {np.rint(level).astype(int).tolist()}")
    *data, check = np.packbits(level > 128).tolist()
    if zlib.crc32(bytes(data)) & (2**CHECK_BITS - 1) != check:
        raise ValueError(f"no number is readable: the check bits of {int.from_bytes(bytes(data), 'big')} are wrong")
    return int.from_bytes(bytes(data), "big")


def numbered_picture(picture: Picture, number: int, time: Fraction) -> av.VideoFrame:
    """The picture with the number `number`."""
    return av.VideoFrame.from_ndarray(draw(number, picture.height, picture.width), format="yuv444p")


def _video_frames(
    picture: Picture, numbers: Iterable[int], ticks: Iterable[int], content: Content
) -> Iterator[av.VideoFrame]:
    for number, tick in zip(numbers, ticks, strict=True):
        frame = content.picture(picture, number, tick / picture.rate).reformat(format=picture.pixel_format)
        frame.pts, frame.time_base = tick, 1 / picture.rate
        yield frame


# Sound ----------------------------------------------------------------------------------------------------------------


def sound_samples(seed: str, rate: int, num_samples: int) -> npt.NDArray[np.float32]:
    """Noise below 5 kHz, RMS 0.1: the same start for every length.

    Args:
        seed: Names the noise.
        rate: Samples per second.
        num_samples: How many.

    Returns:
        float32 [shape=(num_samples,)], mono.
    """
    taps = 257
    noise = np.random.default_rng(zlib.crc32(seed.encode())).standard_normal(num_samples + taps - 1)
    place = np.arange(taps) - taps // 2
    cutoff = 2 * SOUND_BAND_HZ / rate
    kernel = np.sinc(cutoff * place) * np.hanning(taps)
    kernel /= np.sqrt((kernel**2).sum())
    size = 1 << (len(noise) + taps).bit_length()
    filtered = np.fft.irfft(np.fft.rfft(noise, size) * np.fft.rfft(kernel, size), size)
    return (SOUND_RMS * filtered[taps - 1 : taps - 1 + num_samples]).astype(np.float32)


def _sound_islands(recipe: Recipe) -> list[tuple[int, int]]:
    """The samples [start, stop) of the islands that sound, in whole packets of 1024."""
    assert recipe.picture
    assert recipe.sound
    found = []
    for island in recipe.islands:
        start, stop = (int(frame / recipe.picture.rate * recipe.sound.rate) // 1024 * 1024 for frame in island)
        found.append((start, min(stop, recipe.sound.num_samples // 1024 * 1024)))
    return found


def sound_of(recipe: Recipe, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
    """The mono sound of a recipe, samples [start, stop); sample 0 belongs to the source time `sound.delay`."""
    if recipe.sound is None:
        raise ValueError(f"{recipe.name} has no sound")
    stop = recipe.sound.num_samples if stop is None else min(stop, recipe.sound.num_samples)
    if not recipe.islands:
        return sound_samples(recipe.sound_seed, recipe.sound.rate, stop)[start:]
    mono = np.zeros(max(stop - start, 0), dtype=np.float32)
    for number, (first, end) in enumerate(_sound_islands(recipe)):
        left, right = max(first, start), min(end, stop)
        if left < right:
            noise = sound_samples(f"{recipe.sound_seed} {number}", recipe.sound.rate, end - first)
            mono[left - start : right - start] = noise[left - first : right - first]
    return mono


def _audio_frames(sound: Sound, mono: npt.NDArray[np.float32], sample_format: str) -> Iterator[av.AudioFrame]:
    """Frames of 1024 samples in the encoder's sample format; its context regroups them where it wants others."""
    channels = np.outer(CHANNEL_GAINS[sound.layout], mono).clip(-1, 1).astype(np.float32)
    resampler = av.AudioResampler(format=sample_format, layout=sound.layout, rate=sound.rate)
    first = int(sound.delay * sound.rate)
    for start in range(0, len(mono), 1024):
        block = np.ascontiguousarray(channels[:, start : start + 1024])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=sound.layout)
        frame.sample_rate, frame.pts, frame.time_base = sound.rate, first + start, Fraction(1, sound.rate)
        yield from resampler.resample(frame)


# Files ----------------------------------------------------------------------------------------------------------------


def _seconds_per_tick(packet: av.Packet[Any]) -> Fraction:
    return Fraction(packet.time_base.numerator, packet.time_base.denominator)  # PyAV 19 has a rational type of its own


def _packet_time(packet: av.Packet[Any]) -> Fraction:
    assert packet.dts is not None
    return packet.dts * _seconds_per_tick(packet)


def _add_picture(output: av.container.OutputContainer, picture: Picture) -> av.VideoStream:
    stream = output.add_stream(picture.codec, rate=picture.rate, options=picture.encoder_options())
    assert isinstance(stream, av.VideoStream)
    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, picture.pixel_format
    stream.codec_context.time_base = 1 / picture.rate
    stream.codec_context.thread_count = 1  # the same bits on every machine
    if picture.codec == "libx265" and output.format.name == "mp4":
        stream.codec_context.codec_tag = "hvc1"
    return stream


def _add_sound(output: av.container.OutputContainer, sound: Sound) -> av.AudioStream:
    # Noise substitution in AAC depends on everything decoded before: no seek could reproduce a linear decode.
    options = {"aac": {"aac_pns": "0"}, "vorbis": {"strict": "experimental"}}.get(sound.codec, {})
    stream = output.add_stream(sound.codec, rate=sound.rate, layout=sound.layout, options=options)
    assert isinstance(stream, av.AudioStream)
    if not sound.codec.startswith(("pcm", "flac")):
        stream.bit_rate = sound.bit_rate
    return stream


def _encode(
    stream: av.VideoStream | av.AudioStream, frames: Iterable[av.VideoFrame | av.AudioFrame]
) -> list[av.Packet[Any]]:
    packets = [packet for frame in frames for packet in stream.encode(frame)]  # type: ignore[arg-type]
    return packets + list(stream.encode(None))


def _mux(output: av.container.OutputContainer, *streams: list[av.Packet[Any]]) -> None:
    for packet in sorted(itertools.chain(*streams), key=_packet_time):
        output.mux(packet)


def _lose(packets: list[av.Packet[Any]], hole: tuple[Fraction, Fraction]) -> list[av.Packet[Any]]:
    return [packet for packet in packets if not hole[0] <= _packet_time(packet) < hole[1]]


@dataclass(frozen=True)
class Content:
    """What is seen and heard in a file.

    Attributes:
        picture: Makes a frame from the picture's recipe, its number and its source time.
        sound: Makes the mono sound of a recipe [shape=(num_samples,)].
    """

    picture: Callable[[Picture, int, Fraction], av.VideoFrame]
    sound: Callable[[Recipe], npt.NDArray[np.float32]]


NUMBERED = Content(numbered_picture, sound_of)
"""Frames that show their number, and known noise."""


def _make_whole(recipe: Recipe, path: Path, content: Content) -> None:
    with av.open(str(path), "w", options=dict(recipe.container_options)) as output:
        streams = []
        if recipe.picture:
            video = _add_picture(output, recipe.picture)
        if recipe.sound:
            audio = _add_sound(output, recipe.sound)
        if recipe.picture:
            ticks = recipe.picture.ticks()
            streams.append(_encode(video, _video_frames(recipe.picture, range(len(ticks)), ticks, content)))
        if recipe.sound:
            packets = _encode(audio, _audio_frames(recipe.sound, content.sound(recipe), audio.format.name))
            streams.append(_lose(packets, recipe.sound.hole) if recipe.sound.hole else packets)
        _mux(output, *streams)


def _copy(packet: av.Packet[Any], stream: av.stream.Stream, shift: int) -> av.Packet[Any]:
    """The packet again, `shift` ticks later."""
    assert packet.pts is not None
    assert packet.dts is not None
    copy: av.Packet[Any] = av.Packet(bytes(packet))
    copy.stream, copy.time_base, copy.is_keyframe = stream, packet.time_base, packet.is_keyframe
    copy.pts, copy.dts, copy.duration = packet.pts + shift, packet.dts + shift, packet.duration
    return copy


def _sparse_picture(stream: av.VideoStream, recipe: Recipe, picture: Picture) -> list[av.Packet[Any]]:
    """Codes one GOP of filler and the islands in one go, then repeats the filler between the islands."""
    gop = picture.gop
    numbers = [FILLER_NUMBER] * gop + [number for island in recipe.islands for number in range(*island)]
    packets = _encode(stream, _video_frames(picture, numbers, range(len(numbers)), NUMBERED))
    gops = [packets[start : start + gop] for start in range(0, len(packets), gop)]
    source_of = {number // gop: index // gop for index, number in enumerate(numbers) if index >= gop}
    placed = []
    for target in range(-(-picture.num_frames // gop)):
        source = source_of.get(target, 0)
        placed += [_copy(packet, stream, (target - source) * gop) for packet in gops[source]]
    return placed


def _sparse_sound(stream: av.AudioStream, recipe: Recipe, sound: Sound) -> list[av.Packet[Any]]:
    """Codes the islands between stretches of silence in one go, then repeats one packet of silence between them."""
    size, guard = 1024, 8  # AAC: a packet affects itself and its neighbours, and the encoder looks two packets ahead
    pause = np.zeros(2 * guard * size, dtype=np.float32)
    pieces: list[npt.NDArray[np.float32]] = [pause]
    used = 2 * guard
    source_of: dict[int, int] = {}
    for start, stop in _sound_islands(recipe):
        first, count = start // size, (stop - start) // size
        pieces += [sound_of(recipe, start, stop), pause]
        source_of |= {first + index: used + index for index in range(-guard // 2, count + guard // 2)}
        used += count + 2 * guard
    packets = _encode(stream, _audio_frames(sound, np.concatenate(pieces), stream.format.name))
    placed = []
    for target in range(-1, sound.num_samples // size):  # the first packet is priming: its pts is -1024
        source = source_of.get(target, guard)
        placed.append(_copy(packets[source + 1], stream, (target - source) * size))
    return placed


def _make_sparse(recipe: Recipe, path: Path) -> None:
    assert recipe.picture
    assert recipe.sound
    with av.open(str(path), "w", options=dict(recipe.container_options)) as output:
        video, audio = _add_picture(output, recipe.picture), _add_sound(output, recipe.sound)
        _mux(output, _sparse_picture(video, recipe, recipe.picture), _sparse_sound(audio, recipe, recipe.sound))


def _make_cut(recipe: Recipe, cut: Fraction, path: Path, content: Content) -> None:
    """Copies packets from the key frame before `cut`; times count from `cut`, an edit list hides what is before."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / path.name
        _make_whole(recipe, whole, content)
        with av.open(str(whole)) as source, av.open(str(path), "w", options=dict(recipe.container_options)) as output:
            copies = {stream.index: output.add_stream_from_template(stream) for stream in source.streams}
            packets = [
                (packet, packet.pts, packet.dts, _seconds_per_tick(packet))
                for packet in source.demux()
                if packet.pts is not None and packet.dts is not None
            ]
            pictures = [(pts * tick, dts, p.is_keyframe) for p, pts, dts, tick in packets if p.stream.type == "video"]
            key_time = max(seconds for seconds, _, is_key in pictures if is_key and seconds <= cut)
            first_dts = min(dts for seconds, dts, _ in pictures if seconds == key_time)
            kept = []
            for packet, pts, dts, tick in packets:
                is_video = packet.stream.type == "video"
                if dts < first_dts if is_video else pts * tick < key_time:
                    continue
                shift = cut / tick
                if shift.denominator != 1:
                    raise ValueError(f"cut {cut} is not a multiple of {tick}")
                packet.pts, packet.dts = pts - shift.numerator, dts - shift.numerator
                packet.stream = copies[packet.stream.index]
                kept.append(packet)
            _mux(output, kept)


def make(recipe: Recipe, folder: Path, content: Content = NUMBERED) -> Path:
    """Make the file of `recipe` in `folder` and return its path; sparse ones are always numbered."""
    path = folder / recipe.file_name
    if recipe.cut is not None:
        _make_cut(recipe, recipe.cut, path, content)
    elif recipe.islands:
        _make_sparse(recipe, path)
    else:
        _make_whole(recipe, path, content)
    return path


# Catalog --------------------------------------------------------------------------------------------------------------


def _variable_ticks() -> tuple[int, ...]:
    """Milliseconds: steps of 16 to 83, and a hole of two seconds after the 80th frame."""
    steps = np.random.default_rng(83).integers(16, 84, 180)
    steps[80] = 2000
    return (0, *(int(tick) for tick in np.cumsum(steps)))


def _hour() -> Recipe:
    """An hour at 29.97 frames per second, numbered and sounding every ten minutes: shows drift at low cost."""
    picture = Picture(Fraction(30000, 1001), num_frames=107_892, gop=60, width=160, height=96)
    gops = (0, 299, 599, 899, 1199, 1498, 1794)  # from 0 s, about 600 s, 1200 s ... 3590 s
    islands = tuple((first * 60, min((first + 5) * 60, picture.num_frames)) for first in gops)
    sound = Sound(rate=16000, seconds=Fraction(3599), bit_rate=64_000)
    return Recipe("hour", "hour.mp4", picture, sound, islands=islands)


def _catalog() -> dict[str, Recipe]:
    ntsc, film, fast = Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60000, 1001)
    picture, sound = Picture(), Sound()
    ticks = _variable_ticks()
    vp9 = replace(picture, codec="libvpx-vp9", num_b_frames=0)
    fine_movie = (("movie_timescale", "48000"),)
    side_car = replace(sound, seed="sidecar")

    def mp4(name: str, picture: Picture | None = picture, sound: Sound | None = sound, **more: object) -> Recipe:
        return Recipe(name, f"{name}.mp4", picture, sound, **more)  # type: ignore[arg-type]

    recipes = (
        mp4("mp4_25"),
        mp4("mp4_29_97", replace(picture, rate=ntsc, num_frames=300, gop=60)),
        mp4("mp4_23_976", replace(picture, rate=film, num_frames=240, gop=48)),
        mp4("mp4_59_94", replace(picture, rate=fast, num_frames=600, gop=120)),
        mp4("mp4_50", replace(picture, rate=Fraction(50), num_frames=500)),
        mp4("no_b_frames", replace(picture, num_b_frames=0)),
        mp4("three_b_frames", replace(picture, num_b_frames=3, gop=48)),
        mp4("open_gop", replace(picture, num_b_frames=3, gop=28, open_gop=True)),
        mp4("one_gop", replace(picture, num_frames=500, gop=1000), replace(sound, seconds=Fraction(20))),
        mp4("all_intra", replace(picture, gop=1, num_b_frames=0)),
        mp4("no_edit_list", container_options=(("use_editlist", "0"),)),
        mp4("fragmented", container_options=(("movflags", "frag_keyframe+empty_moov"),)),
        mp4("cut", cut=Fraction(532, 100), container_options=fine_movie),
        mp4("cut_between_frames", cut=Fraction(53, 10), container_options=fine_movie),
        mp4("sound_late", sound=replace(sound, delay=Fraction(2, 5)), container_options=fine_movie),
        mp4("picture_late", replace(picture, rate=Fraction(30), num_frames=300, delay=Fraction(1, 2))),
        mp4("sound_short", sound=replace(sound, seconds=Fraction(6))),
        mp4("sound_hole", sound=replace(sound, hole=(Fraction(4), Fraction(6)))),
        mp4("no_sound", sound=None),
        mp4("variable_rate", replace(picture, rate=Fraction(1000), frame_ticks=ticks, num_b_frames=0)),
        mp4("variable_rate_b_frames", replace(picture, rate=Fraction(1000), frame_ticks=ticks, num_b_frames=3, gop=48)),
        mp4("intra_refresh", replace(picture, num_b_frames=0, options=(("intra-refresh", "1"),))),
        mp4("stereo_44100", sound=replace(sound, rate=44100, layout="stereo", bit_rate=192_000)),
        mp4("mono_16000", sound=replace(sound, rate=16000, bit_rate=64_000)),
        mp4("surround", sound=replace(sound, layout="5.1", bit_rate=512_000)),
        mp4("mp3_in_mp4", sound=replace(sound, rate=44100, codec="libmp3lame")),
        mp4("hevc", replace(picture, codec="libx265")),
        mp4("hevc_open_gop", replace(picture, codec="libx265", num_b_frames=3, gop=28, open_gop=True)),
        mp4("odd_size", replace(picture, width=322, height=242)),
        replace(mp4("path_with_spaces"), file_name="a path, with spaces.mp4"),
        mp4("picture_for_sidecar", sound=side_car),
        Recipe("mov_pcm", "mov_pcm.mov", sound=replace(sound, codec="pcm_s16le")),
        Recipe("mkv_opus", "mkv_opus.mkv", sound=replace(sound, codec="libopus")),
        Recipe("mkv_flac", "mkv_flac.mkv", sound=replace(sound, rate=44100, codec="flac")),
        Recipe("mkv_aac", "mkv_aac.mkv", picture=replace(picture, rate=ntsc, num_frames=300)),
        Recipe("mkv_vorbis", "mkv_vorbis.mkv", sound=replace(sound, codec="vorbis", layout="stereo")),
        Recipe("webm", "webm.webm", picture=vp9, sound=replace(sound, codec="libopus")),
        Recipe("mkv_truly_odd_size", "mkv_truly_odd_size.mkv", picture=replace(vp9, width=321, height=243)),
        Recipe("mpegts", "mpegts.ts"),
        Recipe("mpegts_29_97", "mpegts_29_97.ts", picture=replace(picture, rate=ntsc, num_frames=300, gop=60)),
        Recipe(
            "avi_mpeg4",
            "avi_mpeg4.avi",
            picture=replace(picture, codec="mpeg4", num_b_frames=0),
            sound=replace(sound, codec="pcm_s16le", layout="stereo"),
        ),
        Recipe(
            "avi_mjpeg",
            "avi_mjpeg.avi",
            picture=replace(picture, codec="mjpeg", pixel_format="yuvj420p", num_b_frames=0, gop=1),
            sound=replace(sound, codec="pcm_s16le"),
        ),
        Recipe("sidecar_wav", "sidecar.wav", picture=None, sound=replace(side_car, codec="pcm_s16le")),
        Recipe("sidecar_flac", "sidecar.flac", picture=None, sound=replace(side_car, codec="flac")),
        Recipe("sidecar_mp3", "sidecar.mp3", picture=None, sound=replace(side_car, codec="libmp3lame")),
        Recipe("sidecar_m4a", "sidecar.m4a", picture=None, sound=side_car),
        Recipe("sidecar_ogg", "sidecar.ogg", picture=None, sound=replace(side_car, codec="libopus")),
        _hour(),
    )
    return {recipe.name: recipe for recipe in recipes}


CATALOG: dict[str, Recipe] = _catalog()
"""Every recipe by name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", nargs="?", type=Path, help="folder to write to")
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes to make (default: all)")
    parser.add_argument("--list", action="store_true", help="list the recipes and exit")
    arguments = parser.parse_args(argv)
    if arguments.list:
        print("\n".join(f"{recipe.name:24} {recipe.file_name}" for recipe in CATALOG.values()))
        return 0
    if arguments.output is None:
        parser.error("name the folder to write to")
    unknown = [name for name in arguments.names if name not in CATALOG]
    if unknown:
        parser.error(f"no recipe is called {', '.join(unknown)}; --list shows them")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or CATALOG:
        print(make(CATALOG[name], arguments.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
