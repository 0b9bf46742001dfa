"""Frames on the CPU: exactly the wanted ones, from any container and codec that FFmpeg reads."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt

__all__ = ["VideoReader"]


class VideoReader:
    """Frames of one medium by pts. Keeps the container open between calls; not safe for use from two threads.

    Args:
        path: The medium.
        stream_index: The video stream in its container.
        keyframe_pts: int64, sorted; pts of key frames from which decoding can start (`VideoInfo.keyframe_pts`).
        size: (height, width) to scale to, or None for the stored size.
        num_threads: Threads of the codec.
    """

    def __init__(
        self,
        path: str,
        *,
        stream_index: int,
        keyframe_pts: npt.NDArray[np.int64],
        size: tuple[int, int] | None = None,
        num_threads: int = 1,
    ) -> None:
        raise NotImplementedError

    def read(self, pts: Sequence[int], out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """The frames with these pts, as RGB.

        Args:
            pts: Non-decreasing; a pts may repeat.
            out: uint8 [shape=(len(pts), H, W, 3)] to write into; None: a new array.

        Returns:
            uint8 [shape=(len(pts), H, W, 3)], bit-identical before scaling to a plain linear decode.

        Raises:
            DecodeError: If a frame cannot be had; nothing is substituted.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        raise NotImplementedError

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
