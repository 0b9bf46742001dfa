"""How batches are filled with what several lanes deliver."""

from __future__ import annotations

import threading
from typing import cast

import pytest
import torch

from avloader.gathering import Gathering, Horizon, Part, fill
from avloader.reading import ClipRead


def batch_of(num_clips: int) -> Gathering:
    return Gathering(cast("list[ClipRead]", [None] * num_clips), 0)  # a batch looks at nothing but their number


def outputs_of(num_clips: int) -> dict[str, torch.Tensor]:
    return {
        "frames": torch.arange(num_clips * 6).view(num_clips, 2, 3).to(torch.uint8),
        "audio": torch.arange(float(num_clips))[:, None] + torch.tensor([0.25, 0.5]),
        "augmentation": torch.arange(num_clips) % 2 == 0,  # one value a clip
    }


@pytest.mark.parametrize("pieces", [[[0, 1, 2, 3, 4]], [[1, 2, 4], [0, 3]], [[4], [0, 2], [1, 3]]], ids=len)
@pytest.mark.parametrize("extra", [0, 2])
def test_every_clip_stands_where_it_was_asked_for(pieces: list[list[int]], extra: int) -> None:
    whole, batch = outputs_of(5), batch_of(5)
    for places in reversed(pieces):
        padded = places + places[-1:] * extra  # NVDEC's reader fills short pieces up
        fill([Part(batch, 0, places)], {name: tensor[padded] for name, tensor in whole.items()})
    assert list(batch.tensors) == list(whole)
    for name, tensor in whole.items():
        assert batch.tensors[name].dtype == tensor.dtype
        assert torch.equal(batch.tensors[name], tensor), name


def test_a_piece_that_crosses_batches_fills_its_part_of_each() -> None:
    piece, first, second = outputs_of(5), batch_of(3), batch_of(4)
    fill([Part(first, 0, [2, 1]), Part(second, 2, [3, 0, 1])], piece)
    for name, tensor in piece.items():
        assert torch.equal(first.tensors[name][[2, 1]], tensor[:2]), name
        assert torch.equal(second.tensors[name][[3, 0, 1]], tensor[2:]), name


def test_a_whole_batch_of_the_cpu_is_not_copied() -> None:
    outputs, batch = outputs_of(3), batch_of(3)
    fill([Part(batch, 0, [0, 1, 2])], outputs)
    assert all(batch.tensors[name] is tensor for name, tensor in outputs.items())


def test_lanes_may_fill_a_batch_at_the_same_time() -> None:
    whole = outputs_of(64)
    for _ in range(50):
        batch, together = batch_of(64), threading.Barrier(8)

        def work(lane: int, batch: Gathering = batch, together: threading.Barrier = together) -> None:
            places = list(range(lane, 64, 8))
            together.wait()
            fill([Part(batch, 0, places)], {name: tensor[places] for name, tensor in whole.items()})

        threads = [threading.Thread(target=work, args=(lane,)) for lane in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(batch.tensors[name], tensor) for name, tensor in whole.items())


def test_lanes_begin_no_batch_before_its_time() -> None:
    horizon, stopped = Horizon(3), threading.Event()
    assert all(horizon.wait(number, stopped) for number in range(3))
    waiting = {number: threading.Event() for number in (3, 4, 7)}

    def work(number: int) -> None:
        assert horizon.wait(number, stopped)
        waiting[number].set()

    threads = [threading.Thread(target=work, args=(number,)) for number in waiting]
    for thread in threads:
        thread.start()
    assert not any(event.wait(0.05) for event in waiting.values())
    horizon.move(1)
    assert waiting[3].wait(10)
    assert not any(waiting[number].wait(0.05) for number in (4, 7))
    horizon.move(5)
    assert all(event.wait(10) for event in waiting.values())
    for thread in threads:
        thread.join()


def test_a_lane_that_is_stopped_waits_no_longer() -> None:
    horizon, stopped = Horizon(1), threading.Event()
    threading.Timer(0.05, stopped.set).start()
    assert not horizon.wait(1, stopped)
