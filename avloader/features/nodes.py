"""Constants for DALI's arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

__all__ = ["constant_for"]


def constant_for(node: DataNode, values: npt.ArrayLike) -> DataNode:
    """Numbers as float32 on the device of `node`: DALI's arithmetic does not mix the two."""
    from nvidia.dali import types

    return types.Constant(np.asarray(values, np.float32), device=node.device)
