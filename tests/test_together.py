"""Tasks that share decoding reach one worker together, and each gets its own result."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest

from avloader.together import TaskQueue
from avloader.workers import WorkerDied, WorkerPool


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with WorkerPool("worker_tasks:Together", num_workers=2) as pool:
        pool.submit(["wake"]).result(20)
        yield pool


def hold(queue: TaskQueue) -> list[str]:
    """Keep both workers busy, so that what is queued next waits."""
    futures = [queue.submit("sleep", path=None) for _ in range(4)]
    time.sleep(0.2)
    return [str(future) for future in futures]


def test_what_overlaps_goes_together_and_nothing_else(pool: WorkerPool) -> None:
    queue = TaskQueue(pool)
    hold(queue)
    spans = {name: (begin, end) for name, begin, end in
             [("a", 0, 20), ("b", 100, 120), ("c", 12, 30), ("d", 31, 40), ("e", 30, 30), ("f", 115, 119)]}  # fmt: skip
    futures = {name: queue.submit(name, path="x", span=span) for name, span in spans.items()}
    futures["g"] = queue.submit("g", path="y", span=(0, 20))
    futures["h"] = queue.submit("h", path=None, span=(0, 20))
    filler = [queue.submit("wake", path=None) for _ in range(40)]  # else the last tasks are spread over the workers
    group = {name: future.result(20) for name, future in futures.items()}
    wait(filler)
    assert group == {"a": "ace", "c": "ace", "e": "ace", "b": "bf", "f": "bf", "d": "d", "g": "g", "h": "h"}


def test_short_tasks_go_several_at_a_time(pool: WorkerPool) -> None:
    queue = TaskQueue(pool)
    hold(queue)
    futures = [queue.submit(name, path=None, at_a_time=3) for name in "abcdefg"]
    futures.append(queue.submit("h", path=None))
    filler = [queue.submit("wake", path=None) for _ in range(40)]
    assert [future.result(20) for future in futures] == ["abc"] * 3 + ["def"] * 3 + ["g", "h"]
    wait(filler)


def test_every_task_gets_its_own_result_or_error(pool: WorkerPool) -> None:
    queue = TaskQueue(pool)
    draw = random.Random(0)
    futures = []
    for number in range(300):
        begin = draw.randrange(1000)
        task = ("fail" if number % 7 == 3 else "give", number)
        futures.append(queue.submit(task, path=draw.choice("xyz"), span=(begin, begin + draw.randrange(50))))
    for number, future in enumerate(futures):
        if number % 7 == 3:
            with pytest.raises(LookupError, match=str(number)):
                future.result(20)
        else:
            assert future.result(20) == number


def test_a_worker_that_dies_fails_only_the_task_that_it_died_of(pool: WorkerPool) -> None:
    queue = TaskQueue(pool)
    hold(queue)
    tasks = [("give", 1), "die", ("give", 2), ("give", 3)]
    futures = [queue.submit(task, path="x", span=(0, 9)) for task in tasks]
    filler = [queue.submit("wake", path=None) for _ in range(40)]
    with pytest.raises(WorkerDied, match="exit status 9"):
        futures[1].result(20)
    assert [futures[index].result(20) for index in (0, 2, 3)] == [1, 2, 3]
    wait(filler)


def test_a_task_whose_worker_died_once_is_run_again(pool: WorkerPool, tmp_path: Path) -> None:
    queue = TaskQueue(pool)
    assert queue.submit(("die once", str(tmp_path / "mark")), path=None).result(20) == "alive"


def test_the_last_tasks_are_spread_over_all_workers(pool: WorkerPool) -> None:
    queue = TaskQueue(pool)
    hold(queue)
    futures = [queue.submit(name, path="x", span=(0, 9)) for name in "abcdefgh"]
    assert max(len(future.result(20)) for future in futures) < 4


def test_closing_the_pool_ends_all_waiting(caplog: pytest.LogCaptureFixture) -> None:
    pool = WorkerPool("worker_tasks:Together", num_workers=1)
    queue = TaskQueue(pool)
    futures = [queue.submit("sleep", path="x", span=(0, 9)) for _ in range(30)]
    futures[20].cancel()
    threading.Timer(0.3, pool.close).start()
    done, pending = wait(futures, timeout=20)
    assert not pending
    assert any(isinstance(future.exception(), WorkerDied) for future in done if not future.cancelled())
    pool.close()
    assert not caplog.records  # where a future's callback fails, it is logged, and nothing else tells
