"""Facts of many media: worker processes probe them, a file on disk keeps them until the manifest is written."""

from __future__ import annotations

import functools
import os
import pickle
import tempfile
import time
from collections.abc import Collection, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from avloader.distribute import run_tasks
from avloader.errors import MediaError
from avloader.media import MediaInfo, Prober
from avloader.workers import WorkerDied, available_cores

__all__ = ["ProbedMedia", "probe_all"]

_MEDIA_OF_A_WORKER = 64  # for fewer media a process does not pay
_CACHED = 4096  # facts that are kept in memory: rows of one medium mostly follow one another


class ProbedMedia:
    """Facts of media by path, or why there are none. In memory a medium takes its path and a place in the file.

    Args:
        folder: Where the file lies; it has no name and is gone with the process.
    """

    def __init__(self, folder: str) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._places: dict[str, int] = {}
        self._load = functools.lru_cache(maxsize=_CACHED)(self._load_from)

    def __enter__(self) -> ProbedMedia:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, path: str, facts: MediaInfo | MediaError) -> None:
        """Keep the facts of a medium; a path is added once."""
        self._places[path] = self._file.seek(0, os.SEEK_END)
        pickle.dump(facts, self._file, pickle.HIGHEST_PROTOCOL)

    def get(self, path: str) -> MediaInfo | MediaError | None:
        """The facts of a medium; None if they were not added."""
        place = self._places.get(path)
        return None if place is None else self._load(place)

    def _load_from(self, place: int) -> MediaInfo | MediaError:
        self._file.seek(place)
        facts: MediaInfo | MediaError = pickle.load(self._file)
        return facts


def probe_all(
    paths: Collection[str], media: ProbedMedia, *, num_workers: int | None, progress: bool | None, engine: str = "local"
) -> None:
    """Add the facts of every medium, with a progress bar on standard error once that has taken two seconds.

    Args:
        paths: The media.
        media: Where to add them.
        engine: Where the workers run: "local" or "ray" (`avloader.distribute.run_tasks`).
        num_workers: Worker processes, > 0; None: one a core.
        progress: Show the progress bar; None: if standard error is a terminal.
    """
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=not shown)
    task = bar.add_task("Probing media", total=len(paths))
    begin = time.monotonic()
    started = False
    try:
        for path, facts in _probe_each(paths, engine, num_workers):
            media.add(path, facts)
            bar.advance(task)
            if shown and not started and time.monotonic() - begin > 2:
                bar.start()
                started = True
    finally:
        if started:
            bar.stop()


def _probe_each(
    paths: Collection[str], engine: str, num_workers: int | None
) -> Iterator[tuple[str, MediaInfo | MediaError]]:
    if engine == "local":
        num_workers = min(num_workers or available_cores(), len(paths) // _MEDIA_OF_A_WORKER)
        if num_workers < 2:
            prober = Prober()
            yield from ((path, prober(path)) for path in paths)
            return
    for path, result in run_tasks("avloader.media:Prober", paths, engine=engine, num_workers=num_workers):
        if isinstance(result, WorkerDied):  # FFmpeg crashed in it
            result = MediaError(result.cause, path=path, remedy="Replace the file", code="unreadable")
        yield path, result
