"""How fast the loader is with a manifest on this machine, beside the decoder alone.

Three measurements, each as long as asked for, of which the first third is to warm up: the loader as fast as it can; the
loader with a training step that uses 80 % of that rate; what decodes the pictures, decoding them and nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avloader.bare import Show, count_clips, decoder_rate
from avloader.errors import ManifestError

if TYPE_CHECKING:
    import torch

    from avloader.batch import AVBatch
    from avloader.loader import AVLoader
    from avloader.manifest import Manifest

__all__ = ["BenchReport", "run_bench"]

_USED_RATE = 0.8  # of the loader's rate, by the training step


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """What was measured.

    Attributes:
        manifest: Its folder.
        rows: Its rows.
        engine: What decodes what and why, as `AVLoader.engine` says it.
        fallbacks: What NVDEC's reader failed at, as `AVLoader.fallbacks` says it.
        skipped_rows: Rows of which clips were left out, too short or damaged.
        clips, batches, seconds: What the loader delivered, and in what time.
        clips_per_second, frames_per_second: Its rate.
        first_batch_seconds: From opening the manifest to the first batch.
        step_seconds: The training step that uses 80 % of the rate.
        steps: How many were measured.
        wait_median_seconds, wait_p99_seconds, wait_longest_seconds: How long they waited for their batch.
        decoder: What decoded alone, or why it was not measured.
        decoder_clips_per_second: Its rate, without sound, normalization and features; None: not measured.
        decoder_share: The loader's rate as a part of that one. Above 1 if the CPU decodes beside NVDEC, which alone is
            the decoder then, or where clips share what they need decoded, which the loader makes use of.
        memory_bytes: Memory of the process with its workers, what they share counted once; None: the system hides it.
        gpu_memory_bytes: The GPU's memory that came into use once the loader began, at most; None without a GPU.
    """

    manifest: str
    rows: int
    engine: str
    fallbacks: list[str]
    skipped_rows: int
    clips: int
    batches: int
    seconds: float
    clips_per_second: float
    frames_per_second: float
    first_batch_seconds: float
    step_seconds: float
    steps: int
    wait_median_seconds: float
    wait_p99_seconds: float
    wait_longest_seconds: float
    decoder: str
    decoder_clips_per_second: float | None
    decoder_share: float | None
    memory_bytes: int | None
    gpu_memory_bytes: int | None


def run_bench(
    manifest: Manifest | str | os.PathLike[str], *, seconds: float = 10.0, progress: bool | None = None, **options: Any
) -> BenchReport:
    """Measure.

    Args:
        manifest: An opened manifest, or the path of its folder.
        seconds: How long each of the three measurements takes, > 0.
        progress: Show a progress bar; None: if standard error is a terminal.
        options: Of `AVLoader`; if nothing else is said, clips are shuffled and damaged ones skipped.

    Raises:
        ValueError, TypeError: An argument or option is not what it must be.
        ManifestError: The manifest cannot be used, or no clip of it can be read.
    """
    from avloader.loader import AVLoader

    if not seconds > 0:
        raise ValueError(f"seconds={seconds} must be above 0")
    with _progress_bar(seconds, progress) as show:
        begin = time.perf_counter()
        with AVLoader(manifest, **{"shuffle": True, "on_error": "skip", **options}) as loader:
            on_gpu = loader.device.type == "cuda"
            gpu_before = gpu_peak = _gpu_memory(loader.device) if on_gpu else 0
            with contextlib.closing(_endless(loader)) as batches:
                first = next(batches)
                first_seconds = time.perf_counter() - begin

                def counts() -> Iterator[int]:
                    nonlocal gpu_peak
                    for batch in batches:
                        yield len(batch)
                        if on_gpu:
                            gpu_peak = max(gpu_peak, _gpu_memory(loader.device))

                count = count_clips(counts(), seconds, show("Loader"))
                memory = _memory()
                step = count.seconds / count.batches / _USED_RATE
                waits = _waits(batches, step, seconds, loader.device, show("Training step"))
            skipped = {clip.row for clip in loader.skipped}
            fallbacks = loader.fallbacks
        # The loader's processes and lanes are gone: the decoder has the machine for itself.
        decoder, rate = "not measured: NVDEC's reader fails at some of the media", None
        if not fallbacks:
            height, width = first.frames.shape[-2:]
            with contextlib.closing(loader.planned()) as planned:  # type: ignore[type-var]
                decoder, rate = decoder_rate(
                    (read for batch in planned for read in batch.reads),
                    loader.decoding,
                    size=(height, width),
                    device_id=loader.device.index or 0,
                    skipped=skipped,
                    seconds=seconds,
                    show=show("Decoder alone"),
                )
    return BenchReport(
        manifest=os.fspath(loader.manifest.path),
        rows=len(loader.manifest),
        engine=loader.engine,
        fallbacks=fallbacks,
        skipped_rows=len(skipped),
        clips=count.clips,
        batches=count.batches,
        seconds=count.seconds,
        clips_per_second=count.rate,
        frames_per_second=count.rate * first.frames.shape[1],
        first_batch_seconds=first_seconds,
        step_seconds=step,
        steps=len(waits),
        wait_median_seconds=float(np.median(waits)),
        wait_p99_seconds=float(np.percentile(waits, 99)),
        wait_longest_seconds=max(waits),
        decoder=decoder,
        decoder_clips_per_second=rate,
        decoder_share=count.rate / rate if rate else None,
        memory_bytes=memory,
        gpu_memory_bytes=gpu_peak - gpu_before if on_gpu else None,
    )


@contextlib.contextmanager
def _progress_bar(seconds: float, progress: bool | None) -> Iterator[Callable[[str], Show]]:
    """A bar on standard error over three measurements; gives for the next one, by its name, what moves the bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("Starting", total=3 * seconds)
        number = itertools.count()

        def measurement(name: str) -> Show:
            before = next(number) * seconds
            return lambda passed: bar.update(task, description=name, completed=before + min(passed, seconds))

        yield measurement


def _endless(loader: AVLoader) -> Generator[AVBatch]:
    """The batches of one epoch after the other."""
    while True:
        is_empty = True
        for batch in loader:
            is_empty = False
            yield batch
        if is_empty:
            reason = f": {loader.skipped[-1].path}: {loader.skipped[-1].reason}" if loader.skipped else ""
            raise ManifestError(
                f"an epoch has no batch{reason}",
                path=loader.manifest.path,
                remedy="Check the manifest with avloader check, or ask for smaller batches",
            )


def _waits(batches: Iterator[AVBatch], step: float, seconds: float, device: torch.device, show: Show) -> list[float]:
    """How long steps wait for their batches in the last two thirds of the time."""
    train = _training(device)
    waits: list[float] = []
    begin = time.perf_counter()
    while (asked := time.perf_counter()) - begin < seconds or not waits:
        next(batches)
        got = time.perf_counter()
        if asked - begin >= seconds / 3:
            waits.append(got - asked)
        show(got - begin)
        train(got + step)
    return waits


def _training(device: torch.device) -> Callable[[float], None]:
    """A training step up to some moment: the GPU multiplies, the CPU leaves its cores to the loader."""
    if device.type != "cuda":
        return lambda until: time.sleep(max(until - time.perf_counter(), 0))
    import torch

    weights = torch.randn(4096, 4096, device=device)

    def train(until: float) -> None:
        while time.perf_counter() < until:
            weights @ weights
            torch.cuda.synchronize(device)

    return train


def _gpu_memory(device: torch.device) -> int:
    """Bytes of the GPU's memory that are in use."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _memory() -> int | None:
    """Bytes that this process and its children use; None if the system does not tell."""
    processes = {"self"}
    for task in Path("/proc").glob("self/task/*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended since
            processes.update(task.read_text().split())
    num_bytes = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            if process == "self":
                return None
            continue  # it has ended since
        num_bytes += 1024 * next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return num_bytes
