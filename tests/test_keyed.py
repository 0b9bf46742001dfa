"""Philox against its published known answers, and what is derived from it."""

from __future__ import annotations

import numpy as np
import pytest

from avloader import keyed
from avloader.keyed import Purpose

# Known-answer tests that the authors of Philox publish with Random123: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, answer: str) -> None:
    first, second, third, fourth = (np.array([int(word, 16)], np.uint64) for word in counter.split())
    low, high = (int(word, 16) for word in key.split())
    words = keyed.philox((first, second, third, fourth), (low, high))
    assert " ".join(f"{int(word[0]):08x}" for word in words) == answer


def test_a_draw_depends_on_its_own_item_only() -> None:
    items = np.array([7, 3, 2**40, 0, 40_000])
    together = keyed.bits(items, seed=5, epoch=2, purpose=Purpose.WINDOW)
    alone = [keyed.bits([item], seed=5, epoch=2, purpose=Purpose.WINDOW)[0] for item in items]
    assert together.tolist() == alone
    assert keyed.bits(np.arange(40_001), seed=5, epoch=2, purpose=Purpose.WINDOW)[40_000] == together[4]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 6},
        {"seed": 5 + 2**32},
        {"epoch": 3},
        {"purpose": Purpose.SHUFFLE},
    ],
)
def test_every_part_of_the_key_counts(other: dict[str, int]) -> None:
    key = {"seed": 5, "epoch": 2, "purpose": Purpose.WINDOW}
    assert not np.intersect1d(keyed.bits(range(100), **key), keyed.bits(range(100), **(key | other))).size  # type: ignore[arg-type]


def test_items_beyond_32_bits_draw_differently() -> None:
    low, high = keyed.bits([1, 1 + 2**32], seed=0, epoch=0, purpose=Purpose.WINDOW)
    assert low != high


def test_numbers_below_a_limit_are_exact_and_even() -> None:
    random = np.array([0, 2**64 - 1, 2**63, 0x123456789ABCDEF0], np.uint64)
    for limit in (1, 2, 10, 2**31 - 1):
        expected = [int(value) * limit >> 64 for value in random]
        assert keyed.below(np.full(4, limit), random).tolist() == expected
    draws = keyed.below(np.full(60_000, 6), keyed.bits(range(60_000), seed=1, epoch=0, purpose=Purpose.WINDOW))
    counts = np.bincount(draws, minlength=6)
    assert len(counts) == 6
    assert abs(counts - 10_000).max() < 500  # five standard deviations


@pytest.mark.parametrize("num_items", [1, 2, 255, 256, 257, 40_000])
def test_a_permutation_holds_every_item_once(num_items: int) -> None:
    order = keyed.permutation(num_items, seed=0, epoch=0)
    assert np.array_equal(np.sort(order), np.arange(num_items))


def test_permutations_of_three_items_are_equally_frequent() -> None:
    orders = [tuple(keyed.permutation(3, seed=seed, epoch=0).tolist()) for seed in range(3000)]
    counts = np.unique(np.array(orders), axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert abs(counts - 500).max() < 105  # five standard deviations


def test_a_permutation_never_changes_between_versions() -> None:
    assert keyed.permutation(8, seed=1, epoch=2).tolist() == [5, 7, 6, 2, 1, 4, 3, 0]
