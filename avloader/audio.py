"""Windows of sound by sample position, from a container's audio stream or a side-car file."""

from __future__ import annotations

from types import TracebackType

import numpy as np
import numpy.typing as npt

from avloader.media import AudioInfo

__all__ = ["AudioReader"]


class AudioReader:
    """Sound of one medium. Keeps the container open between calls; not safe for use from two threads.

    Args:
        path: The medium or side-car file.
        info: Facts of its audio stream.
    """

    def __init__(self, path: str, info: AudioInfo) -> None:
        raise NotImplementedError

    def read(
        self, start: int, stop: int, out: npt.NDArray[np.float32] | None = None
    ) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
        """Samples [start, stop) at the native rate, mono (mean of the channels), as a plain linear decode gives them.

        Args:
            start, stop: Sample positions counted from sample 0 of `info`; may be negative or past the end.
            out: float32 [shape=(stop - start,)] to write into; None: a new array.

        Returns:
            float32 [shape=(stop - start,)], range about -1 to 1, zeros where the medium has no sound (holes too); and
            the half-open range, relative to `start`, of samples that exist in the medium (holes inside it included).

        Raises:
            DecodeError: If sound that should be there cannot be decoded.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        raise NotImplementedError

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
