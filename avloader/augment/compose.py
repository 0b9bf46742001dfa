"""Chains and choices of transforms, each clip for itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import numpy.typing as npt

from avloader.augment.base import Active, Node
from avloader.augment.checks import check_integer, check_number
from avloader.augment.keys import Draw

__all__ = ["Compose", "OneOf", "SomeOf"]


@dataclass(frozen=True)
class _Group(Node):
    transforms: Sequence[Node]
    _: KW_ONLY
    p: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.transforms, Sequence) or not all(isinstance(node, Node) for node in self.transforms):
            raise TypeError(f"transforms={self.transforms!r} must be a sequence of transforms")
        if not self.transforms:
            raise ValueError("transforms must hold at least one transform")
        object.__setattr__(self, "transforms", tuple(self.transforms))

    @property
    def children(self) -> Sequence[Node]:
        """The nodes of the group."""
        return self.transforms


@dataclass(frozen=True, kw_only=True)
class Compose(_Group):
    """All of them, in order.

    Args:
        transforms: Transforms or groups.
        p: Probability, for each clip, that the chain is applied at all.
        name: See `Node`.
    """

    def _choose(
        self, draw: Draw, words: dict[str, Draw], names: dict[int, str], mask: npt.NDArray[np.bool_]
    ) -> Iterator[Active]:
        for node in self.transforms:
            yield from node._activate(words, names, mask)


@dataclass(frozen=True, kw_only=True)
class OneOf(_Group):
    """One of them for each clip; its own `p` still counts.

    Args:
        transforms: Transforms or groups.
        p: Probability, for each clip, that one is applied at all.
        name: See `Node`.
        weights: How likely each is, numbers of at least 0; None: equally.
    """

    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is None:
            return
        if len(self.weights) != len(self.transforms):
            raise ValueError(f"weights={self.weights!r} must be {len(self.transforms)} numbers, one a transform")
        for weight in self.weights:
            check_number("weights", weight, 0)
        if not sum(self.weights) > 0:
            raise ValueError(f"weights={self.weights!r} must not all be 0")
        object.__setattr__(self, "weights", tuple(self.weights))

    def _choose(
        self, draw: Draw, words: dict[str, Draw], names: dict[int, str], mask: npt.NDArray[np.bool_]
    ) -> Iterator[Active]:
        weights = np.ones(len(self.transforms)) if self.weights is None else np.array(self.weights, np.float64)
        edges = np.cumsum(weights) / weights.sum()
        edges[np.flatnonzero(weights)[-1] :] = 1.0
        choice = np.searchsorted(edges, draw.uniform(1), side="right")
        for number, node in enumerate(self.transforms):
            yield from node._activate(words, names, mask & (choice == number))


@dataclass(frozen=True, kw_only=True)
class SomeOf(_Group):
    """Some of them for each clip, in the given order; their own `p` still counts.

    Args:
        transforms: Transforms or groups.
        p: Probability, for each clip, that any is applied at all.
        name: See `Node`.
        num_transforms: How many, a number or a range (least, most), drawn for each clip; None as the most: all.
    """

    num_transforms: int | tuple[int, int | None] = (1, None)

    def __post_init__(self) -> None:
        super().__post_init__()
        least, most = self._limits
        check_integer("num_transforms", least, 0)
        check_integer("num_transforms", most, least)
        if most > len(self.transforms):
            raise ValueError(f"num_transforms={self.num_transforms} must be at most {len(self.transforms)}")

    @property
    def _limits(self) -> tuple[int, int]:
        if not isinstance(self.num_transforms, tuple):
            return self.num_transforms, self.num_transforms
        least, most = self.num_transforms
        return least, len(self.transforms) if most is None else most

    def _choose(
        self, draw: Draw, words: dict[str, Draw], names: dict[int, str], mask: npt.NDArray[np.bool_]
    ) -> Iterator[Active]:
        least, most = self._limits
        count = draw.integers(1, least, most + 1)
        num_nodes = len(self.transforms)
        # The clip takes the nodes with the smallest numbers; the node in the low bits makes every number distinct.
        numbers = draw.words[2 : 2 + num_nodes] * np.uint64(num_nodes) + np.arange(num_nodes, dtype=np.uint64)[:, None]
        rank = numbers.argsort(axis=0).argsort(axis=0)
        for number, node in enumerate(self.transforms):
            yield from node._activate(words, names, mask & (rank[number] < count))
