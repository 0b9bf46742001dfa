"""Proves synchrony by learning: trains the lip-sync example, and lets the network say how far media are out of sync.

    python tools/prove_sync.py                     # some minutes; writes sync_by_learning.json and .md beside itself
    python tools/prove_sync.py --epochs 2 --speakers 8 --output DIR     # a short form of it

1. Top-1 and error over 31 offsets of held-out faces.
2. The same training on films whose sound is one frame early must be off by one frame, and nothing else.
3. On every kind of container of the ground-truth media, filled with a held-out face, the offset must be found to be 0;
   beside it the same for a loader of the usual kind, which takes frames by index / fps and sound from the whole file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soxr
import torch
from make_truth_media import CATALOG, Content, Picture, Recipe, make

from avloader import AVLoader, ManifestError, build_manifest

EXAMPLES = Path(__file__).parent.parent / "examples"
NUM_FRAMES, FPS, RATE = 75, 25, 16000
INTERVALS = ((0.6, 4.2), (6.2, 9.9))
EPOCHS = 3  # random windows of each interval


def train(folder: Path, arguments: Sequence[str]) -> tuple[str, float]:
    """Run the example; what it prints, and how long it took."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), *sys.path])}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "05_lipsync_training.py"), str(folder), *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return done.stdout.strip(), time.perf_counter() - begin


class Network:
    """A trained network of the example."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(EXAMPLES))
        self.example = runpy.run_path(str(EXAMPLES / "05_lipsync_training.py"))
        self.model = self.example["SyncNet"]()
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.model.eval()
        self.num_steps, self.losses = len(state["losses"]), state["losses"]

    def asked_and_found(self, folder: Path, films: list[Path]) -> list[tuple[int, int]]:
        """Offsets of held-out clips, in frames."""
        self.example["make_manifest"](folder, films, num_rows=2)
        pairs: list[tuple[int, int]] = self.example["evaluate"](self.model, folder, "cpu", 20)
        return pairs

    def found(self, batch: Any) -> list[int]:
        """Offsets of clips, in frames."""
        offsets: list[int] = self.example["find_offsets"](self.model, batch).tolist()
        return offsets


def summary(pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """How far the found offsets are from those asked for."""
    errors = Counter(found - asked for asked, found in pairs)
    return {
        "clips": len(pairs),
        "top-1": errors[0] / len(pairs),
        "mean error, frames": sum(abs(error) * count for error, count in errors.items()) / len(pairs),
        "median of found - asked, frames": statistics.median(found - asked for asked, found in pairs),
        "found - asked": {str(error): errors[error] for error in sorted(errors)},
    }


def face_content(number: int) -> Content:
    """A held-out face, stretched over pictures of any size, and its voice."""
    speaker = runpy.run_path(str(EXAMPLES / "talking_faces.py"))["Speaker"](number % 4, number % 4, 1000 + number, 24)

    def picture(picture: Picture, number: int, time: Fraction) -> av.VideoFrame:
        image = av.VideoFrame.from_ndarray(speaker.picture(float(time)), format="rgb24")
        return image.reformat(width=picture.width, height=picture.height)

    def sound(recipe: Recipe) -> npt.NDArray[np.float32]:
        assert recipe.sound is not None
        samples: npt.NDArray[np.float32] = speaker.sound(recipe.sound.delay, recipe.sound.rate)
        return samples[: recipe.sound.num_samples]

    return Content(picture, sound)


def container_kinds() -> Iterator[Recipe]:
    """Recipes of the ground-truth media that have picture and sound, coded well enough to show a face."""
    for recipe in CATALOG.values():
        if recipe.picture is not None and recipe.sound is not None and not recipe.islands:
            yield replace(recipe, picture=replace(recipe.picture, width=128, height=96))


def with_avloader(network: Network, path: Path, folder: Path) -> list[int]:
    """Offsets that are found in clips of one medium."""
    lines = [f'"{path}",{start},{end},x' for start, end in INTERVALS]
    folder.mkdir()
    (folder / "clips.csv").write_text("\n".join(["path,start,end,label", *lines]), encoding="utf-8")
    manifest = build_manifest(folder / "clips.csv", media_root=folder, output=folder / "manifest", progress=False)
    found = []
    with AVLoader(
        manifest,
        batch_size=2,
        num_frames=NUM_FRAMES,
        fps=FPS,
        size=(48, 48),
        normalize="per_clip",
        features=network.example["MEL"],
        clips="random",
        device="cpu",
        on_error="skip",  # an interval that ends with the medium
        num_workers=1,
    ) as loader:
        for batch in itertools.chain.from_iterable(itertools.repeat(loader, EPOCHS)):
            # Half of the sound is enough; where it is missing there is nothing to find.
            heard = (batch.audio_valid[:, 1] - batch.audio_valid[:, 0]) > batch.audio.shape[1] // 2
            found += [offset for offset, good in zip(network.found(batch), heard.tolist(), strict=True) if good]
    return found


def as_usual(network: Network, path: Path) -> list[int]:
    """The same with frames by index / fps and sound from the whole file, as Wav2Lip and LatentSync load it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        fps = float(stream.average_rate)
        frames = [frame.reformat(48, 48, "rgb24").to_ndarray() for frame in container.decode(video=0)]
    blocks = []
    with av.open(str(path)) as container:
        for block in container.decode(audio=0):
            rate = block.sample_rate
            samples = block.to_ndarray()
            if not block.format.is_planar:
                samples = samples.reshape(-1, block.layout.nb_channels).T
            scale = 2.0**15 if samples.dtype == np.int16 else 2.0**31 if samples.dtype == np.int32 else 1.0
            blocks.append(samples.mean(axis=0) / scale)
    sound = soxr.resample(np.concatenate(blocks), rate, RATE).astype(np.float32)
    found = []
    for start, end in INTERVALS:
        for first in np.linspace(start, end - NUM_FRAMES / FPS, EPOCHS):
            index = int(first * fps)
            places = [int(index + number * fps / FPS) for number in range(NUM_FRAMES)]
            begin = int(index / fps * RATE)
            window = sound[begin : begin + NUM_FRAMES * RATE // FPS]
            if places[-1] < len(frames) and len(window) == NUM_FRAMES * RATE // FPS:
                found += network.found(_Clip(np.stack([frames[place] for place in places]), window, network))
    return found


class _Clip:
    """A batch of one clip for the network, prepared as the loader prepares it."""

    def __init__(self, frames: npt.NDArray[np.uint8], sound: npt.NDArray[np.float32], network: Network) -> None:
        import librosa

        pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float()
        self.frames = (pictures - pictures.mean()) / pictures.std()
        mel = network.example["MEL"]
        power = librosa.feature.melspectrogram(
            y=sound, sr=RATE, n_fft=mel.n_fft, win_length=mel.win_length, hop_length=mel.hop_length, n_mels=mel.n_mels
        )
        self.spectrogram = torch.from_numpy(np.log(np.maximum(power, mel.scale.amin)).astype(np.float32))[None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the proof; 0 if it holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="where to write the result")
    parser.add_argument("--speakers", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--kinds", nargs="*", help="names of container kinds (default: all)")
    options = parser.parse_args(argv)
    size = ["--speakers", str(options.speakers), "--epochs", str(options.epochs)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        said, seconds = train(folder / "right", size)
        print(said)
        right = Network(folder / "right")
        held_out = sorted((folder / "right").glob("*_0ms.mp4"))
        held_out = [film for film in held_out if int(film.name.split("_")[0][4:]) < options.speakers // 4]
        report: dict[str, Any] = {
            "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
            "versions": {
                "python": platform.python_version(),
                **{module.__name__: module.__version__ for module in (torch, np, av)},
            },
            "training": {"steps": right.num_steps, "seconds": round(seconds), "last loss": right.losses[-1]},
            "held-out": summary(right.asked_and_found(folder / "held", held_out)),
        }
        print(json.dumps(report["held-out"]))
        train(folder / "early", [*size, "--lead-frames", "1"])
        early = Network(folder / "early")
        films = sorted((folder / "early").glob("*_40ms.mp4"))[: len(held_out)]
        report["trained one frame early"] = summary(early.asked_and_found(folder / "early held", held_out))
        report["one frame early, heard by the network that was trained right"] = summary(
            right.asked_and_found(folder / "early films", films)
        )
        report["one frame early, heard by the network that was trained so"] = summary(
            early.asked_and_found(folder / "early own", films)
        )
        print(json.dumps(report["trained one frame early"]))
        report["containers"] = {}
        for number, recipe in enumerate(container_kinds()):
            if options.kinds and recipe.name not in options.kinds:
                continue
            path = make(recipe, folder, face_content(number))
            try:
                ours = with_avloader(right, path, folder / recipe.name)
            except ManifestError as error:
                raise SystemExit(f"{recipe.name}: {error}") from error
            usual = as_usual(right, path)
            path.unlink()
            report["containers"][recipe.name] = {"avloader": ours, "as usual": usual}
            print(f"{recipe.name:24} avloader {ours}, as usual {usual}")
    holds = check(report)
    report["holds"] = holds
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "sync_by_learning.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.output / "sync_by_learning.md").write_text(as_text(report), encoding="utf-8")
    print(json.dumps(holds))
    return 0 if all(holds.values()) else 1


def check(report: dict[str, Any]) -> dict[str, bool]:
    """What was to be shown."""
    held, early = report["held-out"], report["trained one frame early"]
    return {
        "top-1 of 31 offsets is at least 90 %": held["top-1"] >= 0.9,
        "mean error is less than 0.3 frame": held["mean error, frames"] < 0.3,
        "training one frame early is found as one frame": early["found - asked"].get("-1", 0) >= 0.9 * early["clips"],
        "the offset of every container is found to be 0": all(
            found["avloader"] and set(found["avloader"]) == {0} for found in report["containers"].values()
        ),
    }


def as_text(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    training = report["training"]
    lines = [
        "# Sync proven by learning",
        "",
        "Made by `tools/prove_sync.py`; all numbers are in `sync_by_learning.json`. "
        f"The network of `examples/05_lipsync_training.py` took {training['steps']} steps. With making media and "
        f"a test it took {training['seconds']} s on {report['machine']}. A frame is 40 ms; positive: sound leads.",
        "",
        "| network, clips | clips | top-1 of 31 | mean error, frames | median of found - asked |",
        "|---|---|---|---|---|",
    ]
    names = {
        "held-out": "trained right, held-out faces",
        "trained one frame early": "trained on sound one frame early, held-out faces in sync",
        "one frame early, heard by the network that was trained right": "trained right, sound one frame early",
        "one frame early, heard by the network that was trained so": "trained on sound one frame early, such sound",
    }
    for key, name in names.items():
        part = report[key]
        lines.append(
            f"| {name} | {part['clips']} | {part['top-1']:.1%} | {part['mean error, frames']:.3f} | "
            f"{part['median of found - asked, frames']:+g} |"
        )
    lines += [
        "",
        "Faces in the containers of the ground-truth media, all in sync: the offset that the network finds in clips of "
        "avloader, and in clips cut as usual (frame index / average fps, sound of the whole file from its start; "
        "decoded by the same FFmpeg). In brackets: how many clips.",
        "",
        "| container | avloader, frames | as usual, frames |",
        "|---|---|---|",
    ]
    for name, found in report["containers"].items():
        lines.append(f"| {name} | {_counts(found['avloader'])} | {_counts(found['as usual'])} |")
    lines += ["", *(f"* {what}: **{'yes' if held else 'no'}**" for what, held in report["holds"].items()), ""]
    return "\n".join(lines)


def _counts(values: Sequence[int]) -> str:
    counts = Counter(values)
    return (
        ", ".join(f"{value:+d} ({counts[value]})" if value else f"0 ({counts[0]})" for value in sorted(counts)) or "-"
    )


if __name__ == "__main__":
    raise SystemExit(main())
