"""How batches are put together from what several lanes delivered."""

from __future__ import annotations

import pytest
import torch

from avloader.engine import Gathered


def gathered(whole: dict[str, torch.Tensor], *parts: list[int]) -> Gathered:
    """A batch whose clips came in parts, each with the clips at these places."""
    slices = [{name: tensor[part] for name, tensor in whole.items()} for part in parts]
    return Gathered((), (), {}, slices, [place for part in parts for place in part])


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4]], [[1, 2, 4], [0, 3]], [[4], [0, 2], [1, 3]]], ids=len)
def test_every_clip_stands_where_it_was_asked_for(parts: list[list[int]]) -> None:
    whole = {
        "frames": torch.arange(5 * 6).view(5, 2, 3).to(torch.uint8),
        "audio": torch.arange(5.0)[:, None] + torch.tensor([0.25, 0.5]),
        "augmentation": torch.tensor([True, False, False, True, False]),  # one value a clip
    }
    joined = gathered(whole, *parts).joined().tensors
    assert list(joined) == list(whole)
    for name, tensor in whole.items():
        assert joined[name].dtype == tensor.dtype
        assert torch.equal(joined[name], tensor), name
