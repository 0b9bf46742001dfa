from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from avloader.errors import DecodeError
from avloader.workers import SharedMemory, WorkerDied, WorkerPool

DOER = "worker_tasks:Doer"


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(DOER, {"answer": 42}, num_workers=2) as pool:
        yield pool


def test_each_future_holds_the_result_of_its_own_task(pool: WorkerPool) -> None:
    futures = [pool.submit(("echo", number)) for number in range(200)]
    assert [future.result(20) for future in futures] == list(range(200))


def test_the_first_argument_reaches_every_worker(pool: WorkerPool) -> None:
    futures = [pool.submit(("init", None)) for _ in range(8)]
    assert all(future.result(20) == {"answer": 42} for future in futures)


def test_an_error_arrives_as_it_was_raised(pool: WorkerPool) -> None:
    with pytest.raises(DecodeError) as caught:
        pool.submit(("raise", 3)).result(20)
    assert (caught.value.path, caught.value.row, caught.value.cause) == ("a b.mp4", 3, "spoilt")
    assert str(caught.value) == "a b.mp4 (row 3): spoilt. Cook another."


def test_tasks_run_side_by_side(pool: WorkerPool) -> None:
    pool.submit(("echo", 0)).result(20)
    begin = time.monotonic()
    slow, quick = pool.submit(("sleep", 2.0)), [pool.submit(("sleep", 0.01)) for _ in range(10)]
    # Two of the quick ones may wait behind the slow one, the rest must not.
    while sum(future.done() for future in quick) < 9:
        assert time.monotonic() - begin < 1.9
        time.sleep(0.01)
    assert not slow.done()


def test_a_worker_that_dies_fails_its_own_task_only_and_is_replaced(pool: WorkerPool) -> None:
    futures = [pool.submit(("die" if number in (5, 11) else "echo", number)) for number in range(40)]
    for number, future in enumerate(futures):
        if number in (5, 11):
            with pytest.raises(WorkerDied, match="SIGKILL"):
                future.result(20)
        else:
            assert future.result(20) == number


def test_workers_write_into_shared_memory() -> None:
    memory = SharedMemory(1000)
    try:
        with WorkerPool(DOER, num_workers=2, memory=memory) as pool:
            pids = {pool.submit(("write", place)).result(20) for place in range(0, 1000, 10)}
        content = np.frombuffer(memory.memory, np.uint8)
        assert content[::10].tolist() == [7] * 100
        assert content.sum() == 700
        assert os.getpid() not in pids
    finally:
        del content
        memory.close()


def test_what_cannot_be_made_fails_every_task_with_the_reason() -> None:
    with WorkerPool("worker_tasks:Broken", num_workers=1) as pool:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="no such codec"):
                pool.submit(("echo", 1)).result(20)


def test_map_unordered_yields_every_task_once_and_does_not_run_far_ahead(pool: WorkerPool) -> None:
    drawn = 0

    def tasks() -> Iterator[tuple[str, int]]:
        nonlocal drawn
        for number in range(300):
            drawn += 1
            yield "echo", number

    seen = []
    for count, (task, future) in enumerate(pool.map_unordered(tasks())):
        seen.append(task[1])
        assert future.result() == task[1]
        assert drawn <= count + 40
    assert sorted(seen) == list(range(300))


def test_closing_ends_processes_threads_and_files() -> None:
    gc.collect()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        pool = WorkerPool(DOER, num_workers=2)
        processes = [worker.process for worker in pool._workers]
        waiting = [pool.submit(("sleep", 0.3)) for _ in range(20)]
        pool.close()
        pool.close()
        assert all(process.returncode is not None for process in processes)
        assert all(future.done() for future in waiting)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(("echo", 1))


def test_workers_load_neither_torch_nor_dali_nor_the_users_script(pool: WorkerPool) -> None:
    modules = pool.submit(("modules", None)).result(20)
    assert not {"torch", "nvidia", "pytest"} & set(modules)


SCRIPT = """
import sys, time
print("script runs", flush=True)
from avloader.workers import WorkerPool
pool = WorkerPool({doer!r}, num_workers=2)
print(pool.submit(("echo", 1)).result(), *(worker.process.pid for worker in pool._workers), flush=True)
{rest}
"""


def start_script(rest: str) -> tuple[subprocess.Popen[str], list[int]]:
    tests = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(doer=DOER, rest=rest)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tests.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "script runs\n"
    pids = [int(word) for word in process.stdout.readline().split()[1:]]
    assert len(pids) == 2
    return process, pids


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_script_without_main_guard_runs_once_and_leaves_no_process() -> None:
    process, pids = start_script("print('end')")
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout as output, process.stderr as errors:
        assert (output.read(), errors.read(), process.wait(30)) == ("end\n", "", 0)
    assert gone(pids)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_workers_go_with_an_interrupted_or_killed_parent(kind: signal.Signals) -> None:
    process, pids = start_script("time.sleep(60)")
    os.killpg(process.pid, kind) if kind == signal.SIGINT else process.kill()
    process.communicate(timeout=30)
    assert gone(pids)


def test_num_workers_must_be_positive() -> None:
    with pytest.raises(ValueError, match="num_workers=0"):
        WorkerPool(DOER, num_workers=0)
