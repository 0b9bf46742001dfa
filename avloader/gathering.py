"""A batch while its clips come in: they leave the graph piece by piece, in lanes that work side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from avloader.errors import AVLoaderError
from avloader.reading import ClipRead

__all__ = ["Gathering", "Horizon", "Part", "fill"]

_PATIENCE = 0.1  # seconds after which a lane that waits asks whether it was stopped


class Gathering:
    """A batch, filled by the threads of several lanes.

    Args:
        clips: What was asked for.
        number: Its place in the order of all batches.

    Attributes:
        clips, number: The same.
        tensors: The graph's outputs by name, one entry a clip, also for the clips that failed.
        valid: The range of samples that exist in the medium, one a clip.
        errors: What went wrong, by place in the batch.
    """

    def __init__(self, clips: Sequence[ClipRead], number: int) -> None:
        self.clips, self.number = clips, number
        self.tensors: dict[str, torch.Tensor] = {}
        self.valid = [(0, 0)] * len(clips)
        self.errors: dict[int, AVLoaderError] = {}
        self._lock = threading.Lock()

    def like(self, name: str, output: torch.Tensor) -> torch.Tensor:
        """The batch's tensor for an output, which holds some of the clips."""
        with self._lock:
            if name not in self.tensors:
                self.tensors[name] = torch.empty(
                    (len(self.clips), *output.shape[1:]), dtype=output.dtype, device=output.device
                )
            return self.tensors[name]


class Horizon:
    """Up to which batch the lanes may put clips: a batch takes its whole memory as soon as its first clip comes.

    Args:
        num_batches: How many may be begun at a time, > 0.
    """

    def __init__(self, num_batches: int) -> None:
        self._num_batches = num_batches
        self._stop = num_batches
        self._waiting: list[tuple[int, threading.Event]] = []
        self._lock = threading.Lock()

    def move(self, number: int) -> None:
        """Let so many batches be begun, the first of them `number`, which is waited for next."""
        with self._lock:
            self._stop = number + self._num_batches
            due = [event for awaited, event in self._waiting if awaited < self._stop]
            self._waiting = [pair for pair in self._waiting if pair[0] >= self._stop]
        for event in due:
            event.set()

    def wait(self, number: int, stopped: threading.Event) -> bool:
        """Wait until batch `number` may be begun; False if `stopped` was set before."""
        with self._lock:
            if number < self._stop:
                return True
            event = threading.Event()
            self._waiting.append((number, event))
        while not event.wait(_PATIENCE):
            if stopped.is_set():
                return False
        return True


@dataclass(slots=True, eq=False)
class Part:
    """Clips of one piece that belong to one batch.

    Attributes:
        batch: The batch.
        first: The first of them in the piece; they follow one another there.
        places: Where they stand in the batch.
    """

    batch: Gathering
    first: int
    places: list[int] = field(default_factory=list)


def fill(parts: Sequence[Part], outputs: Mapping[str, torch.Tensor]) -> None:
    """Put what left the graph where it belongs: on the CPU as it is where it makes a whole batch, else copied.

    Args:
        parts: What the clips are parts of.
        outputs: The graph's outputs by name, one entry a clip; on a GPU perhaps more, from the clips' end on.
    """
    (part, *others) = parts
    if not others and _is_whole(part, outputs.values()):
        part.batch.tensors = dict(outputs)
        return
    # Few calls and few tensors: for each of them PyTorch lets Python's lock go, and a lane waits until it gets it back.
    places = torch.tensor([place for part in parts for place in part.places])
    places_on: dict[torch.device, Sequence[torch.Tensor]] = {}
    for name, output in outputs.items():
        if output.device not in places_on:
            there = places.to(output.device, non_blocking=True)
            places_on[output.device] = there.split_with_sizes([len(part.places) for part in parts])
        for part, where in zip(parts, places_on[output.device], strict=True):
            own = part.batch.like(name, output)
            own.index_copy_(0, where, output[part.first : part.first + len(part.places)])


def _is_whole(part: Part, outputs: Iterable[torch.Tensor]) -> bool:
    """Whether the outputs are the batch, in memory that nobody needs any more."""
    in_order = list(range(len(part.batch.clips))) == part.places
    return in_order and all(output.device.type == "cpu" and len(output) == len(part.places) for output in outputs)
