"""Tasks spread over processes: of this machine, or of a Ray cluster. The one place that knows Ray."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Generator, Iterable
from typing import Any

from avloader.workers import WorkerDied, WorkerPool, available_cores

__all__ = ["ENGINES", "check_engine", "run_tasks"]

ENGINES = ("local", "ray")

_IN_FLIGHT = 4  # tasks handed to Ray for each core of the cluster, so that none waits for its next one


def check_engine(engine: str) -> None:
    """Refuse an engine that cannot be used, before anything is begun.

    Raises:
        ValueError: If it is not known, or Ray is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "ray" and not _has_ray():
        raise ValueError("engine='ray' needs the package ray: pip install avloader[ray]")


def run_tasks(
    target: str, tasks: Iterable[Any], *, engine: str = "local", num_workers: int | None = None
) -> Generator[tuple[Any, Any], None, None]:
    """Each task with its result, as they finish; a bounded number of them is under way at a time.

    A process that dies in a task gives `WorkerDied` as its result, and the others go on; whatever else a task raises is
    raised here.

    Args:
        target: "module:Class". Each process makes one ``Class(None, None)`` and calls it with each task; with Ray the
            package has to be installed on all machines of the cluster, and to see the same files at the same paths.
        tasks: Picklable.
        engine: "local": processes of this machine; "ray": the cluster that this process is connected to, else the one
            that RAY_ADDRESS names or that runs on this machine, else one that is started here and ended with the
            process.
        num_workers: Tasks at a time, > 0; None: one a core, of the machine or of the cluster.
    """
    if engine == "ray":
        yield from _run_on_ray(target, tasks, num_workers)
        return
    with WorkerPool(target, num_workers=num_workers or available_cores()) as pool:
        for task, future in pool.map_unordered(tasks):
            error = future.exception()
            if error is not None and not isinstance(error, WorkerDied):
                raise error
            yield task, future.result() if error is None else error


def _run_on_ray(target: str, tasks: Iterable[Any], num_workers: int | None) -> Generator[tuple[Any, Any], None, None]:
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False, configure_logging=False)
    # A crash must not be repeated on other machines: it is the medium's fault.
    call = ray.remote(num_cpus=1, max_retries=0)(_call)
    remaining = iter(tasks)
    under_way: dict[Any, Any] = {}
    available: Any = ray.cluster_resources
    limit = num_workers or max(1, int(available().get("CPU", 1))) * _IN_FLIGHT
    try:
        while True:
            while len(under_way) < limit:
                try:
                    task = next(remaining)
                except StopIteration:
                    break
                under_way[call.remote(target, task)] = task
            if not under_way:
                return
            finished, _ = ray.wait(list(under_way))
            for reference in finished:
                task = under_way.pop(reference)
                try:
                    is_error, result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    words = str(error).strip().partition("\n")[0]
                    is_error, result = False, WorkerDied(f"the Ray worker that read it ended ({words})")
                if is_error:
                    raise result
                yield task, result
    finally:
        for reference in under_way:
            ray.cancel(reference, force=True)


def _call(target: str, task: Any) -> tuple[bool, Any]:
    """On a machine of the cluster: the result of a task, or what it raised."""
    try:
        return False, _server(target)(task)
    except Exception as error:  # as it is: Ray would wrap it into another
        return True, error


@functools.cache
def _server(target: str) -> Callable[[Any], Any]:
    module, _, name = target.partition(":")
    server: Callable[[Any], Any] = getattr(importlib.import_module(module), name)(None, None)
    return server


def _has_ray() -> bool:
    return importlib.util.find_spec("ray") is not None
