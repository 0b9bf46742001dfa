"""Makes videos of faces that talk: mouth, jaw and voice follow the same movement, so that sound and picture fit.

Run it: `python examples/talking_faces.py [FOLDER] [NUMBER]`

The other examples learn from these. Faces and voices differ in colour, place, size, pitch and formants, files in their
frame rate. The picture of a frame is the face at that frame's very time, and the sound is made of the same movement.
"""

import functools
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SAMPLE_RATE = 16000
RATES = (Fraction(25), Fraction(30000, 1001), Fraction(50), Fraction(30), Fraction(24000, 1001))
_FINE = 1000  # points of the movement a second


@dataclass(frozen=True)
class Speaker:
    """A face and a voice, and what they say in `seconds`; the same numbers make the same film on every machine."""

    face: int
    voice: int
    speech: int
    seconds: int = 12

    @functools.cached_property
    def movement(self) -> np.ndarray:
        """How far the mouth is open and how wide it is, 0 to 1 [shape=(2, seconds * 1000)]: syllables and pauses."""
        rng = np.random.default_rng([1, self.speech])
        aims = np.zeros((2, self.seconds * _FINE + 200))
        place = 0
        while place < aims.shape[1]:
            length = int(rng.integers(90, 280))
            shape = rng.uniform((0.25, 0), 1) if rng.random() < 0.8 else np.array((0, 0.4))
            aims[:, place : place + length] = shape[:, None]
            closed = int(rng.integers(20, 70))  # the consonant after it
            aims[0, place + length : place + length + closed] = 0
            place += length + closed
        smooth = np.hanning(81) / np.hanning(81).sum()
        return np.stack([np.convolve(aim, smooth, "same")[100:-100] for aim in aims])

    def sound(self, lead: Fraction = Fraction(0), rate: int = SAMPLE_RATE) -> np.ndarray:
        """The voice, float32 [shape=(seconds * rate,)]; `lead` seconds early."""
        rng = np.random.default_rng([2, self.voice])
        pitch, size, breath = rng.uniform(90, 230), rng.uniform(0.85, 1.15), rng.uniform(0.002, 0.02)
        time = np.arange(self.seconds * rate) / rate + float(lead)
        opened, width = (np.interp(time * _FINE, np.arange(len(line)), line) for line in self.movement)
        tone = pitch * (1 + 0.08 * np.sin(2 * np.pi * 0.7 * time + self.speech) + 0.1 * opened)
        phase = 2 * np.pi * np.cumsum(tone) / rate
        voice = np.zeros_like(time)
        for harmonic in range(1, 25):
            gain = sum(
                level / (1 + ((harmonic * tone - formant * size) / 120) ** 2)
                for level, formant in ((1, 280 + 520 * opened), (0.6, 900 + 1300 * width), (0.2, 2600))
            )
            voice += gain * np.sin(harmonic * phase)
        noise = np.random.default_rng([3, self.speech]).standard_normal(len(time))
        return (0.25 * opened * voice + breath * noise).clip(-1, 1).astype(np.float32)

    def picture(self, time: float, side: int = 64) -> np.ndarray:
        """The face at a time, uint8 RGB [shape=(side, side, 3)]."""
        rng = np.random.default_rng([4, self.face])
        skin, wall, lips = rng.uniform((120, 80, 60), (240, 200, 180)), rng.uniform(20, 200, 3), rng.uniform(60, 180, 3)
        scale, (left, top) = rng.uniform(0.85, 1.1), rng.uniform(-0.05, 0.05, 2)
        opened, width = self.movement[:, int(np.clip(time * _FINE, 0, self.movement.shape[1] - 1))]
        across, down = np.meshgrid(*[(np.arange(side) + 0.5) / side - 0.5] * 2)
        across = (across - left - 0.02 * np.sin(1.3 * time + self.speech)) / scale
        down = (down - top - 0.02 * np.sin(0.9 * time)) / scale

        def oval(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
            distance = np.hypot((across - x) / half_width, (down - y) / half_height)
            return np.clip((1 - distance) * side * half_height * scale, 0, 1)[..., None]  # soft edges

        image = np.broadcast_to(wall, (side, side, 3))
        chin = 0.05 * opened
        shapes = [
            (oval(0, chin / 2, 0.36, 0.45 + chin / 2), skin),
            (oval(-0.14, -0.16, 0.05, 0.03), (20, 20, 20)),
            (oval(0.14, -0.16, 0.05, 0.03), (20, 20, 20)),
            (oval(0, 0.2 + chin / 2, 0.12 + 0.1 * width, 0.05 + 0.1 * opened), lips * (1, 0.4, 0.4)),
            (oval(0, 0.2 + chin / 2, 0.09 + 0.1 * width, 0.005 + 0.1 * opened), (30, 5, 5)),
        ]
        for mask, colour in shapes:
            image = image + mask * (np.asarray(colour) - image)
        return image.round().astype(np.uint8)


def write_film(path: Path, speaker: Speaker, rate: Fraction, *, lead: Fraction = Fraction(0)) -> None:
    """A video of the speaker at this frame rate, H.264 and AAC; its sound `lead` seconds early."""
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast", "g": "24"})
        video.width = video.height = 64
        video.codec_context.thread_count = 1  # the same bits on every machine
        audio = output.add_stream("aac", rate=SAMPLE_RATE, layout="mono", bit_rate=96000)
        packets = []
        for number in range(int(speaker.seconds * rate)):
            frame = av.VideoFrame.from_ndarray(speaker.picture(float(number / rate)), format="rgb24")
            frame.pts = number
            packets += video.encode(frame)
        sound = speaker.sound(lead)
        for start in range(0, len(sound), 1024):
            block = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts = SAMPLE_RATE, start
            packets += audio.encode(block)
        packets += [*video.encode(None), *audio.encode(None)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)


def make_films(folder: Path, speakers: list[Speaker], *, lead: Fraction = Fraction(0)) -> list[Path]:
    """A film of each speaker, the frame rates taking turns; those that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, speaker in enumerate(speakers):
        name = f"face{speaker.face}_voice{speaker.voice}_speech{speaker.speech}_{round(lead * 1000)}ms.mp4"
        paths.append(folder / name)
        if not paths[-1].exists():
            write_film(paths[-1].with_suffix(".part.mp4"), speaker, RATES[number % len(RATES)], lead=lead)
            paths[-1].with_suffix(".part.mp4").rename(paths[-1])
    return paths


if __name__ == "__main__":
    films = make_films(
        Path(sys.argv[1] if len(sys.argv) > 1 else "faces"),
        [Speaker(number, number, number) for number in range(int(sys.argv[2]) if len(sys.argv) > 2 else 3)],
    )
    print("\n".join(film.name for film in films))
