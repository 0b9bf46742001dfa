"""Milliseconds a batch of augmentation, beside the libraries that users know; writes its figures to a file.

    python tools/bench_augment.py --output tools/bench_augment_cpu.json
    python tools/bench_augment.py --device cuda --output tools/bench_augment_gpu.json

Batches of 32 and 128 clips of 10 s at 16 kHz: noise + gain + low-pass, and each transform alone, applied to every clip.
Sound is where it is augmented, noises are files on disk; what comes out is one tensor of the batch. What each library
delivers is checked before it is timed: what is wrong is said in its row. Then all libraries take turns; a figure is the
median of the rounds, of wall time and of the processor time of all threads.

Libraries that are not installed are left out and named: audiomentations (with soundfile; numpy_minmax, numpy_rms),
torch_audiomentations (with julius, torch_pitch_shift, primePy; torchaudio is stood in for where it does not load),
fast_audiomentations (from its repository; GPU only).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import types
import warnings
import wave
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from avloader import augment
from avloader.workers import available_cores

RATE, SECONDS, NUM_NOISES, NOISE_SECONDS = 16000, 10, 8, 15
SIZES = (32, 128)
PEERS = ("audiomentations", "torch_audiomentations", "fast_audiomentations")
PACKAGES = ("avloader", "audiomentations", "torch-audiomentations", "fast-audiomentations", "numpy", "torch", "triton")

Batch = torch.Tensor
Apply = Callable[[Batch], Batch]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        apply: By library.
        check: Says what is wrong with (before, after), or "".
    """

    apply: dict[str, Apply]
    check: Callable[[Batch, Batch], str]


def main() -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each library (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="clips a batch (default: 32 128)")
    parser.add_argument("--only", nargs="+", default=(), help="rows of the table (default: all)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="of PyTorch (default: all cores)")
    parser.add_argument("--output", type=Path, help="write the figures there, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # of the other libraries
    device = torch.device(arguments.device)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="avloader-bench-") as folder:
        noises = write_noises(Path(folder))
        missing: dict[str, str] = {}
        results = []
        for size in arguments.sizes:
            batch = speech_like(size).to(device)
            for name, case in cases(Path(folder), noises, device, missing).items():
                if not arguments.only or name in arguments.only:
                    results += measure(name, case, batch, arguments.rounds)
                    console.print(f"[dim]{size} clips, {name}[/dim]")
    report(console, results, missing)
    if arguments.output:
        facts = {
            "machine": machine(device),
            "threads": arguments.threads,
            "packages": packages(),
            "left_out": missing,
            "rounds": arguments.rounds,
            "results": results,
        }
        arguments.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def speech_like(size: int) -> Batch:
    """Noise that swells and fades four times a second, another in each clip [shape=(size, RATE * SECONDS)]."""
    random = np.random.default_rng(0)
    t = np.arange(RATE * SECONDS) / RATE
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * (4 * t + random.uniform(size=(size, 1))))
    return torch.from_numpy((0.1 * swell * random.normal(size=(size, len(t)))).astype(np.float32))


def write_noises(folder: Path) -> list[npt.NDArray[np.float32]]:
    """Noise files of 16 bits, and what they hold."""
    random = np.random.default_rng(1)
    noises = []
    for number in range(NUM_NOISES):
        whole = (3000 * random.normal(size=RATE * NOISE_SECONDS)).clip(-32767, 32767).astype("<i2")
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(whole.tobytes())
        noises.append((whole / 32768).astype(np.float32))
    return noises


def cases(
    folder: Path, noises: list[npt.NDArray[np.float32]], device: torch.device, missing: dict[str, str]
) -> dict[str, Case]:
    """The rows of the table."""
    bank = augment.SoundBank(noises, sample_rate=RATE)
    rooms = augment.ImpulseResponseBank([room()], sample_rate=RATE)
    own: dict[str, tuple[augment.Node, Callable[[Batch, Batch], str]]] = {
        "noise + gain + low-pass": (
            augment.Compose([augment.AddBackgroundNoise(bank, p=1), augment.Gain(p=1), augment.LowPassFilter(p=1)]),
            is_changed,
        ),
        "AddBackgroundNoise": (augment.AddBackgroundNoise(bank, p=1), has_snr(3, 30)),
        "AddColorNoise": (augment.AddColorNoise(p=1), is_noisy(5, 40)),
        "Gain": (augment.Gain(p=1), is_scaled(10 ** (-12 / 20), 10 ** (12 / 20))),
        "GainTransition": (augment.GainTransition(p=1), is_changed),
        "PolarityInversion": (augment.PolarityInversion(p=1), is_scaled(-1, -1)),
        "LowPassFilter": (augment.LowPassFilter(p=1, min_cutoff_freq=1000, max_cutoff_freq=1000), passes(1000, "low")),
        "HighPassFilter": (
            augment.HighPassFilter(p=1, min_cutoff_freq=1000, max_cutoff_freq=1000),
            passes(1000, "high"),
        ),
        "BandPassFilter": (augment.BandPassFilter(p=1), is_changed),
        "BandStopFilter": (augment.BandStopFilter(p=1), is_changed),
        "ApplyImpulseResponse": (augment.ApplyImpulseResponse(rooms, p=1), is_changed),
        "Clip": (augment.Clip(p=1, a_min=-0.1, a_max=0.1), is_clipped),
        "ClippingDistortion": (augment.ClippingDistortion(p=1, min_percentile_threshold=10), is_changed),
        "TanhDistortion": (augment.TanhDistortion(p=1), is_changed),
        "TimeMask": (augment.TimeMask(p=1), is_changed),
        "Normalize": (augment.Normalize(p=1), is_normalized),
    }
    others: dict[str, dict[str, Apply]] = {}
    for peer, make in zip(PEERS, (audiomentations_of, torch_audiomentations_of, fast_audiomentations_of), strict=True):
        try:
            others[peer] = make(folder, noises, device)
        except Exception as error:  # whatever keeps it from running here is said
            missing[peer] = f"{type(error).__name__}: {error}".splitlines()[0]
    result = {}
    for name, (node, check) in own.items():
        apply: dict[str, Apply] = {"avloader": avloader_of(node)}
        apply |= {peer: found[name] for peer, found in others.items() if name in found}
        result[name] = Case(apply, check)
    return result


def room() -> npt.NDArray[np.float32]:
    """An impulse response of half a second, the direct path after 3 ms."""
    random = np.random.default_rng(2)
    tail = random.normal(size=RATE // 2) * np.exp(-np.arange(RATE // 2) / 1200) * 0.3
    tail[:48], tail[48] = 0, 1
    return tail.astype(np.float32)


def avloader_of(node: augment.Node) -> Apply:
    """Each call is another epoch, as in training."""
    epoch = [0]

    def apply(batch: Batch) -> Batch:
        epoch[0] += 1
        keys = augment.ClipKeys(np.arange(len(batch)), epoch=epoch[0])
        return node(batch, keys=keys, sample_rate=RATE).audio

    return apply


def audiomentations_of(folder: Path, noises: Any, device: torch.device) -> dict[str, Apply]:
    """One clip after another, as the library works; on the CPU also for a batch on the GPU."""
    import audiomentations as am

    rooms = folder / "rooms"
    rooms.mkdir(exist_ok=True)
    whole = (room() * 30000).astype("<i2")
    with wave.open(str(rooms / "room.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(whole.tobytes())

    def apply_of(transform: Any) -> Apply:
        def apply(batch: Batch) -> Batch:
            clips = batch.cpu().numpy()
            out = np.empty_like(clips)
            for row, clip in enumerate(clips):
                out[row] = transform(clip, RATE)
            return torch.from_numpy(out).to(batch.device)

        return apply

    noise_files = [folder / f"{number}.wav" for number in range(NUM_NOISES)]
    made = {
        "noise + gain + low-pass": am.Compose(
            [am.AddBackgroundNoise(noise_files, p=1.0), am.Gain(p=1.0), am.LowPassFilter(p=1.0)]
        ),
        "AddBackgroundNoise": am.AddBackgroundNoise(noise_files, p=1.0),
        "AddColorNoise": am.AddColorNoise(p=1.0),
        "Gain": am.Gain(p=1.0),
        "GainTransition": am.GainTransition(p=1.0),
        "PolarityInversion": am.PolarityInversion(p=1.0),
        "LowPassFilter": am.LowPassFilter(1000, 1000, p=1.0),
        "HighPassFilter": am.HighPassFilter(1000, 1000, p=1.0),
        "BandPassFilter": am.BandPassFilter(p=1.0),
        "BandStopFilter": am.BandStopFilter(p=1.0),
        "ApplyImpulseResponse": am.ApplyImpulseResponse(rooms, p=1.0),
        "Clip": am.Clip(-0.1, 0.1, p=1.0),
        "ClippingDistortion": am.ClippingDistortion(10, 40, p=1.0),
        "TanhDistortion": am.TanhDistortion(p=1.0),
        "TimeMask": am.TimeMask(fade_duration=0.005, p=1.0),
        "Normalize": am.Normalize(p=1.0),
    }
    return {name: apply_of(transform) for name, transform in made.items()}


def torch_audiomentations_of(folder: Path, noises: Any, device: torch.device) -> dict[str, Apply]:
    """A batch at a time, where the batch is."""
    stand_in_for_torchaudio()
    import torch_audiomentations as ta

    more = {"p": 1.0, "output_type": "tensor", "sample_rate": RATE}

    def apply_of(transform: Any) -> Apply:
        def apply(batch: Batch) -> Batch:
            result: Batch = transform(batch[:, None], sample_rate=RATE)[:, 0]
            return result

        return apply

    noise_files = [str(folder / f"{number}.wav") for number in range(NUM_NOISES)]
    chain = [
        ta.AddBackgroundNoise(noise_files, **more),
        ta.Gain(min_gain_in_db=-12.0, max_gain_in_db=12.0, **more),
        ta.LowPassFilter(**more),
    ]
    made = {
        "noise + gain + low-pass": ta.Compose(chain, output_type="tensor"),
        "AddBackgroundNoise": ta.AddBackgroundNoise(noise_files, **more),
        "AddColorNoise": ta.AddColoredNoise(min_snr_in_db=5.0, max_snr_in_db=40.0, **more),
        "Gain": ta.Gain(min_gain_in_db=-12.0, max_gain_in_db=12.0, **more),
        "PolarityInversion": ta.PolarityInversion(**more),
        "LowPassFilter": ta.LowPassFilter(min_cutoff_freq=999.0, max_cutoff_freq=1001.0, **more),
        "HighPassFilter": ta.HighPassFilter(min_cutoff_freq=999.0, max_cutoff_freq=1001.0, **more),
        "BandPassFilter": ta.BandPassFilter(**more),
        "BandStopFilter": ta.BandStopFilter(**more),
        "Normalize": ta.PeakNormalization(**more),
    }
    return {name: apply_of(transform) for name, transform in made.items()}


def stand_in_for_torchaudio() -> None:
    """What torch_audiomentations wants of torchaudio, where that does not load or has dropped it (from 2.9 on)."""
    try:
        import torchaudio

        if hasattr(torchaudio, "info"):
            return
    except (ImportError, OSError):
        pass

    def info(path: str) -> types.SimpleNamespace:
        with wave.open(path, "rb") as file:
            return types.SimpleNamespace(num_frames=file.getnframes(), sample_rate=file.getframerate(), num_channels=1)

    def load(path: str, frame_offset: int = 0, num_frames: int = -1, **_: Any) -> tuple[torch.Tensor, int]:
        with wave.open(path, "rb") as file:
            file.setpos(frame_offset)
            data = file.readframes(num_frames if num_frames >= 0 else file.getnframes())
            return torch.from_numpy(np.frombuffer(data, "<i2") / np.float32(32768))[None], file.getframerate()

    module: Any = types.ModuleType("torchaudio")
    module.__version__, module.info, module.load = "2.8.0", info, load
    module.transforms, module.functional = types.ModuleType("torchaudio.transforms"), types.ModuleType("functional")
    module.transforms.Resample = torch.nn.Identity
    sys.modules |= {"torchaudio": module, "torchaudio.transforms": module.transforms}


def fast_audiomentations_of(folder: Path, noises: Any, device: torch.device) -> dict[str, Apply]:
    """A batch at a time on the GPU; its noise, which it reads from files, is already there, as in its own benchmark."""
    if device.type != "cuda":
        raise RuntimeError("it runs on a GPU only")
    import fast_audiomentations as fa

    class Noises:
        def __init__(self, size: int) -> None:
            rows = np.stack([noises[row % NUM_NOISES] for row in range(size)])
            self._batch = torch.from_numpy(rows).to(device), torch.full((size,), rows.shape[1], device=device)

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            return self._batch

    def apply_of(transform: Any) -> Apply:
        def apply(batch: Batch) -> Batch:
            result: Batch = transform(samples=batch.clone(), sample_rate=RATE).reshape(len(batch), -1)
            return result

        return apply

    def noise_of() -> Apply:
        made: dict[int, Any] = {}

        def apply(batch: Batch) -> Batch:
            size = len(batch)
            if size not in made:
                noise = fa.AddBackgroundNoise(
                    noises_dataloader=Noises(size), min_snr=3.0, max_snr=30.0, p=1.0, buffer_size=size
                )
                made[size] = noise, torch.full((size,), batch.shape[1], device=device)
            transform, lengths = made[size]
            result: Batch = transform(samples=batch.clone(), samples_lens=lengths, sample_rate=RATE)
            return result.reshape(size, -1)

        return apply

    steps = [
        noise_of(),
        apply_of(fa.Gain(min_gain_in_db=-12.0, max_gain_in_db=12.0, p=1.0)),
        apply_of(fa.LowPassFilter(min_cutoff_freq=150, max_cutoff_freq=7500, p=1.0)),
    ]

    def chain(batch: Batch) -> Batch:
        for step in steps:
            batch = step(batch)
        return batch

    return {
        "noise + gain + low-pass": chain,
        "AddBackgroundNoise": noise_of(),
        "Gain": steps[1],
        "PolarityInversion": apply_of(fa.PolarityInversion(p=1.0)),
        "LowPassFilter": apply_of(fa.LowPassFilter(min_cutoff_freq=1000, max_cutoff_freq=1000, p=1.0)),
        "HighPassFilter": apply_of(fa.HighPassFilter(min_cutoff_freq=1000, max_cutoff_freq=1000, p=1.0)),
        "BandPassFilter": apply_of(fa.BandPassFilter(p=1.0)),
        "BandStopFilter": apply_of(fa.BandStopFilter(p=1.0)),
        "Clip": apply_of(fa.Clip(min=-0.1, max=0.1, p=1.0)),
    }


def is_changed(before: Batch, after: Batch) -> str:
    """Every clip is another one, of the same length and finite."""
    if after.shape != before.shape:
        return f"{after.shape[1] - before.shape[1]:+d} samples"
    if not bool(torch.isfinite(after).all()):
        return "not finite"
    return "" if bool((before != after).any(dim=1).all()) else "some clips unchanged"


def has_snr(low: float, high: float) -> Callable[[Batch, Batch], str]:
    """What was added has an SNR in the range that was asked for."""

    def check(before: Batch, after: Batch) -> str:
        energies = [part.double().square().sum(1) for part in (before, after - before)]
        snr = 10 * torch.log10(energies[0] / energies[1])
        lowest, highest = float(snr.min()), float(snr.max())
        return "" if low - 0.01 < lowest <= highest < high + 0.01 else f"SNR {lowest:.1f} to {highest:.1f} dB"

    return check


def is_noisy(low: float, high: float) -> Callable[[Batch, Batch], str]:
    """`has_snr`, and what was added does not repeat itself every second."""
    snr = has_snr(low, high)

    def check(before: Batch, after: Batch) -> str:
        noise = (after - before).double()
        alike = (noise[:, RATE:] * noise[:, :-RATE]).sum(1) / noise.square().sum(1)
        faults = [snr(before, after), "repeats itself" if float(alike.abs().max()) > 0.5 else ""]
        return ", ".join(fault for fault in faults if fault)

    return check


def is_scaled(low: float, high: float) -> Callable[[Batch, Batch], str]:
    """Every clip is the one before times a number in [low, high]."""

    def check(before: Batch, after: Batch) -> str:
        factor = (before.double() * after.double()).sum(1) / before.double().square().sum(1)
        if float((after - factor[:, None] * before).abs().max()) > 1e-5:
            return "not a multiple"
        return "" if bool(((factor > low - 1e-4) & (factor < high + 1e-4)).all()) else "factor out of range"

    return check


def is_clipped(before: Batch, after: Batch) -> str:
    """Cut off at 0.1."""
    return "" if torch.equal(after, before.clamp(-0.1, 0.1)) else "not clipped"


def is_normalized(before: Batch, after: Batch) -> str:
    """The greatest absolute value is 1."""
    return "" if float((after.abs().amax(1) - 1).abs().max()) < 1e-5 else "peak is not 1"


def passes(hertz: float, kind: str) -> Callable[[Batch, Batch], str]:
    """The band that passes is unchanged, in phase and sign too; the other is 20 dB down or more, an octave away."""

    def check(before: Batch, after: Batch) -> str:
        if after.shape != before.shape:
            return f"{after.shape[1] - before.shape[1]:+d} samples"
        one, two = (torch.fft.rfft(part.double()) for part in (before, after))
        frequency = torch.fft.rfftfreq(before.shape[1], 1 / RATE).to(before.device)
        low, high = frequency < hertz / 2, (frequency > hertz * 2) & (frequency < 7000)
        kept, lost = (low, high) if kind == "low" else (high, low)
        response = (one.conj() * two)[:, kept].sum() / one[:, kept].abs().square().sum()
        left = two[:, lost].abs().square().sum() / one[:, lost].abs().square().sum()
        faults = []
        if float((response - 1).abs()) > 0.15:
            faults.append(f"gain {abs(complex(response)):.2f}, phase {float(response.angle()):.2f}")
        if float(10 * torch.log10(left)) > -15:
            faults.append(f"{float(10 * torch.log10(left)):.0f} dB left")
        return ", ".join(faults)

    return check


def measure(name: str, case: Case, batch: Batch, rounds: int) -> list[dict[str, Any]]:
    """Check each library, then let them take turns."""
    faults: dict[str, str] = {}
    for library, apply in list(case.apply.items()):
        try:
            after = apply(batch.clone())
            faults[library] = case.check(batch, after)
            apply(batch)  # the second time nothing is made any more
        except Exception as error:  # a peer that fails is reported, not timed
            if library == "avloader":
                raise
            faults[library] = f"fails: {type(error).__name__}: {str(error)[:80]}"
            del case.apply[library]
    if faults["avloader"]:
        raise SystemExit(f"{name}: {faults['avloader']}")
    wall: dict[str, list[float]] = {library: [] for library in case.apply}
    cpu: dict[str, list[float]] = {library: [] for library in case.apply}
    for _ in range(rounds):
        for library, apply in case.apply.items():
            repeats = 10 if batch.is_cuda and library in ("avloader", "fast_audiomentations") else 1
            synchronize(batch)
            began, used = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                apply(batch)
            synchronize(batch)
            wall[library].append((time.perf_counter() - began) / repeats * 1000)
            cpu[library].append((time.process_time() - used) / repeats * 1000)
    return [
        {
            "transform": name,
            "clips": len(batch),
            "library": library,
            "milliseconds": round(statistics.median(wall[library]), 4) if library in wall else None,
            "least": round(min(wall[library]), 4) if library in wall else None,
            "cpu_milliseconds": round(statistics.median(cpu[library]), 4) if library in cpu else None,
            "fault": fault,
        }
        for library, fault in faults.items()
    ]


def synchronize(batch: Batch) -> None:
    """Wait for the GPU."""
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)


def report(console: Console, results: list[dict[str, Any]], missing: dict[str, str]) -> None:
    """The table: milliseconds, and how many times as fast as each library avloader is."""
    table = Table(title="milliseconds a batch (times avloader's)")
    for heading in ("transform", "clips", "avloader", *PEERS):
        table.add_column(heading, justify="left" if heading == "transform" else "right")
    rows: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for result in results:
        rows.setdefault((result["transform"], result["clips"]), {})[result["library"]] = result
    for (name, size), found in rows.items():
        own = found["avloader"]["milliseconds"]
        cells = [f"{own:.3f}"]
        for peer in PEERS:
            other = found.get(peer)
            if other is None or other["milliseconds"] is None:
                cells.append("-" if other is None else other["fault"])
                continue
            fault = f"\n{other['fault']}" if other["fault"] else ""
            cells.append(f"{other['milliseconds']:.3f} ({other['milliseconds'] / own:.2f}x){fault}")
        table.add_row(name, str(size), *cells)
    console.print(table)
    for peer, reason in missing.items():
        console.print(f"{peer} is left out: {reason}")


def machine(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    facts: dict[str, Any] = {"python": platform.python_version(), "cores": available_cores(), "cpu": cpu_name()}
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def cpu_name() -> str:
    """The processor's name."""
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def packages() -> dict[str, str]:
    """Versions."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
