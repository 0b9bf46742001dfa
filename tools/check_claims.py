"""What tutorials say about DALI and sound, tried out: each claim is run as it is written and the outcome recorded.

    python tools/check_claims.py --output tools/claims.json

Needs no GPU: what a GPU decides is asked of DALI's list of kernels. `tools/claims.md` cites the outcomes.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import warnings
import wave
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import numpy.typing as npt
import scipy.signal
from nvidia.dali import backend, fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

RATE, NUM_FILES = 16000, 8
_WHISPER_HOP, _WHISPER_SECONDS = 160, 30


def main() -> None:
    """Try every claim, print and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the outcomes there, as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="avloader-claims-") as folder:
        files = write_sounds(Path(folder))
        outcomes = {claim: tried(attempt, files) for claim, attempt in CLAIMS.items()}
    for claim, outcome in outcomes.items():
        print(f"{claim}: {outcome}")
    if arguments.output:
        packages = {name: version(name) for name in ("nvidia-dali-cuda120", "librosa", "numpy")}
        facts = {"python": platform.python_version(), "packages": packages, "outcomes": outcomes}
        arguments.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def write_sounds(folder: Path) -> list[str]:
    """Files of 1 to 4.5 s: noise that swells."""
    random = np.random.default_rng(0)
    names = []
    for number in range(NUM_FILES):
        length = RATE + number * RATE // 2
        whole = 3000 * random.normal(size=length) * np.linspace(0.1, 1, length)
        names.append(str(folder / f"{number}.wav"))
        with wave.open(names[-1], "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(whole.clip(-32767, 32767).astype("<i2").tobytes())
    return names


def tried(attempt: Callable[[list[str]], str], files: list[str]) -> str:
    """What it says, or the first line of what it raises."""
    try:
        return attempt(files)
    except Exception as error:  # failing is an outcome
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        at = lines.index("encountered:") + 1 if "encountered:" in lines else 0
        cause = lines[at].removesuffix(" Valid layouts are:") if lines else ""
        return f"fails with {type(error).__name__}: {cause}"


def outputs(define: Callable[[], Any], *, batch_size: int = 4) -> list[Any]:
    """What a graph on the CPU gives for one batch."""

    def graph() -> Any:
        nodes = define()
        return tuple(nodes) if isinstance(nodes, list) else nodes

    pipe = pipeline_def(graph)(batch_size=batch_size, num_threads=1, device_id=None)
    pipe.build()
    return [[np.asarray(part) for part in output.as_cpu()] for output in pipe.run()]


def decoded(files: list[str], **options: Any) -> Any:
    """Two outputs: sound, rate."""
    data, _ = fn.readers.file(files=files, name="files")
    return fn.decoders.audio(data, **options)


def audio_on_gpu(files: list[str]) -> str:
    """Sound is decoded on the GPU: ``fn.decoders.audio(..., device="mixed")``."""
    registered = {
        "cpu": backend.RegisteredCPUOps(),
        "mixed": backend.RegisteredMixedOps(),
        "gpu": backend.RegisteredGPUOps(),
    }
    return f"registered for {', '.join(kind for kind, names in registered.items() if 'decoders__Audio' in names)} alone"


def default_device(files: list[str]) -> str:
    """Operators run on the GPU by default."""
    found = []

    def define() -> Any:
        sound, _ = decoded(files, dtype=types.FLOAT, downmix=True)
        spectrum = fn.spectrogram(sound, nfft=512)
        found.append(spectrum.device)
        return spectrum

    outputs(define)
    return f"on the {found[0]}"


def reader_gives_rate(files: list[str]) -> str:
    """``audio, sr = fn.readers.file(...)``."""
    _, second = outputs(lambda: fn.readers.file(files=files))
    return f"the second output is the file's label, here {int(second[0][0])}, not its rate"


def decoder_is_one_value(files: list[str]) -> str:
    """``audio = fn.decoders.audio(...)``, then an operator of `audio`."""
    made = outputs(lambda: fn.spectrogram(decoded(files, dtype=types.FLOAT, downmix=True), nfft=512))
    return f"it is two, sound and rate: {len(made)} spectrograms, the second of shape {made[1][0].shape} of the rate"


def window_function(files: list[str]) -> str:
    """``window_fn=fn.window.hann``."""
    return str(fn.window.hann)


def mfcc_of_sound(files: list[str]) -> str:
    """``fn.mfcc(audio, sample_rate=..., num_mfcc=...)``."""

    def define() -> Any:
        return fn.mfcc(decoded(files, dtype=types.FLOAT, downmix=True)[0], sample_rate=RATE, num_mfcc=13)

    return str(outputs(define)[0][0].shape)


def mel_against_librosa(files: list[str]) -> str:
    """DALI's mel spectrogram is librosa's."""
    sound = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    expected = librosa.feature.melspectrogram(
        y=sound, sr=RATE, n_fft=512, hop_length=160, win_length=400, n_mels=80, pad_mode="reflect"
    )
    differences = []
    for window in (None, scipy.signal.get_window("hann", 400).tolist()):

        def define(window: list[float] | None = window) -> Any:
            source = fn.external_source(source=lambda: [sound], batch=True, ndim=1, dtype=types.FLOAT)
            more = {} if window is None else {"window_fn": window}
            spectrum = fn.spectrogram(source, nfft=512, window_length=400, window_step=160, power=2, **more)
            return fn.mel_filter_bank(spectrum, sample_rate=RATE, nfilter=80, freq_high=RATE / 2)

        got = outputs(define, batch_size=1)[0][0]
        differences.append(float(np.abs(got - expected).max() / expected.max()))
    return f"differs by {differences[0]:.1e} of the maximum with its own window, {differences[1]:.1e} with librosa's"


def whisper_shape(files: list[str]) -> str:
    """Thirty seconds are 3000 columns, as Whisper wants."""
    silence = np.zeros(RATE * _WHISPER_SECONDS, np.float32)

    def define() -> Any:
        source = fn.external_source(source=lambda: [silence], batch=True, ndim=1, dtype=types.FLOAT)
        return fn.spectrogram(source, nfft=400, window_length=400, window_step=_WHISPER_HOP)

    return f"{outputs(define, batch_size=1)[0][0].shape[1]} columns"


def random_resized_crop(files: list[str]) -> str:
    """``fn.random_resized_crop`` crops sound."""
    define = lambda: fn.random_resized_crop(decoded(files, dtype=types.FLOAT, downmix=True)[0], size=[RATE])  # noqa: E731
    return str(outputs(define)[0][0].shape)


def flip_of_sound(files: list[str]) -> str:
    """``fn.flip`` reverses sound."""
    return str(outputs(lambda: fn.flip(decoded(files, dtype=types.FLOAT, downmix=True)[0]))[0][0].shape)


def iterator_without_name(files: list[str]) -> str:
    """A `DALIGenericIterator` without `reader_name` ends an epoch."""

    def define() -> Any:
        data, label = fn.readers.file(files=files, name="files")
        return fn.pad(fn.decoders.audio(data, dtype=types.FLOAT, downmix=True)[0], fill_value=0), label

    counts = []
    for name in (None, "files"):
        iterator = DALIGenericIterator(
            [pipeline_def(define)(batch_size=4, num_threads=1, device_id=None)],
            ["sound", "label"],
            reader_name=name,
            last_batch_policy=LastBatchPolicy.PARTIAL,
            auto_reset=True,
        )
        count = 0
        for _ in iterator:
            count += 1
            if count == 20:
                break
        counts.append("20 and more" if count == 20 else str(count))
    return f"{counts[0]} batches of 2; with it {counts[1]}"


def draws_of_batches(files: list[str]) -> str:
    """With a seed DALI's draws are the same whatever the batch size."""

    def drawn(batch_size: int) -> npt.NDArray[np.float32]:
        def define() -> Any:
            return fn.random.uniform(range=[0.0, 1.0])

        pipe = pipeline_def(define)(batch_size=batch_size, num_threads=1, device_id=None, seed=42)
        pipe.build()
        runs = [np.array([float(np.asarray(value)) for value in pipe.run()[0]]) for _ in range(8 // batch_size)]
        return np.concatenate(runs)

    one, again, two = drawn(4), drawn(4), drawn(2)
    same = int((one == two).sum())
    return f"the same twice: {bool((one == again).all())}; in batches of 2 instead of 4: {same} of 8 draws"


def crop_in_padding(files: list[str]) -> str:
    """A crop of 1 s that begins at a part of 0 to 1 of the file lies in it."""
    lengths = np.random.default_rng(0).uniform(1, 5, 100_000)
    begin = np.random.default_rng(1).uniform(size=len(lengths)) * lengths
    return f"of files of 1 to 5 s {np.mean(begin + 1 > lengths):.0%} of crops reach past the end"


def sound_in_memory(files: list[str]) -> str:
    """Ten seconds at 16 kHz, float32."""
    return f"{10 * RATE * 4 / 1e6:.2f} MB a clip, {32 * 10 * RATE * 4 / 1e6:.1f} MB for 32"


def kinds_of_sound(files: list[str]) -> str:
    """`decoders.audio` reads what videos hold (AAC in mp4)."""
    import av

    path = str(Path(files[0]).with_suffix(".m4a"))
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(outputs(lambda: decoded([path]), batch_size=1)[0][0].shape)


CLAIMS: dict[str, Callable[[list[str]], str]] = {
    "audio_on_gpu": audio_on_gpu,
    "default_device": default_device,
    "reader_gives_rate": reader_gives_rate,
    "decoder_is_one_value": decoder_is_one_value,
    "window_function": window_function,
    "mfcc_of_sound": mfcc_of_sound,
    "mel_against_librosa": mel_against_librosa,
    "whisper_shape": whisper_shape,
    "random_resized_crop": random_resized_crop,
    "flip_of_sound": flip_of_sound,
    "iterator_without_name": iterator_without_name,
    "draws_of_batches": draws_of_batches,
    "crop_in_padding": crop_in_padding,
    "sound_in_memory": sound_in_memory,
    "kinds_of_sound": kinds_of_sound,
}


if __name__ == "__main__":
    main()
