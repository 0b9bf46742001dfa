"""Annotations and media become one folder of tables; from one record per row, so that they cannot disagree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from avloader.media import MediaInfo

__all__ = ["Manifest", "ManifestRow", "build_manifest"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One kept annotation, resolved on its media.

    Attributes:
        row: Its number in the manifest.
        path: Absolute path of the medium.
        audio_path: Absolute path of the sound: the medium itself or a side-car file.
        media_id, audio_id: Rows of ``media.parquet``.
        first_frame, stop_frame: The frames [first_frame, stop_frame) of the medium.
        start_seconds, stop_seconds: Media time of the first frame and of the end of the last one.
        label: Class id.
        av_offset: Seconds; offset already in the file, positive: sound leads.
        id: The annotation's own identifier, or None.
        extra: The annotation's other columns.
    """

    row: int
    path: str
    audio_path: str
    media_id: int
    audio_id: int
    first_frame: int
    stop_frame: int
    start_seconds: Fraction
    stop_seconds: Fraction
    label: int
    av_offset: Fraction
    id: str | None
    extra: dict[str, str]


class Manifest:
    """An opened manifest folder. Columns are read when first asked for; picklable by its path.

    Attributes:
        path: The folder.
        labels: Names of the classes; a class id is an index into it where labels were names.
        fingerprint: Hex digest of the tables' content: the identity of the data set.
        num_rejected: Rows of ``rejected.csv``.
    """

    path: str
    labels: list[str]
    fingerprint: str
    num_rejected: int

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, check_media: bool = True) -> Manifest:
        """Open the folder at `path`.

        Args:
            path: A folder that `build_manifest` wrote.
            check_media: Compare size and modification time of every medium with what was recorded.

        Raises:
            ManifestError: Missing, of another schema version, tampered or truncated, or media changed.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    # Columns, one entry a row, as read-only arrays: what `plan` computes with.
    media_id: npt.NDArray[np.int64]
    audio_id: npt.NDArray[np.int64]
    first_frame: npt.NDArray[np.int64]
    stop_frame: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    av_offset_ns: npt.NDArray[np.int64]

    @property
    def num_media(self) -> int:
        """Rows of ``media.parquet``."""
        raise NotImplementedError

    def media(self, media_id: int) -> MediaInfo:
        """Facts of one medium, its path absolute (cached)."""
        raise NotImplementedError

    def row(self, row: int) -> ManifestRow:
        """One row, for people and for error messages; `plan` uses the columns."""
        raise NotImplementedError

    def rejected(self) -> list[dict[str, str]]:
        """The rows of ``rejected.csv``."""
        raise NotImplementedError


def build_manifest(
    annotations: str | os.PathLike[str],
    *,
    media_root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    format: str = "auto",
    media_template: str | None = None,
    num_workers: int | None = None,
    progress: bool | None = None,
) -> Manifest:
    """Resolve annotations on their media and write a manifest folder.

    Args:
        annotations: The annotation file.
        media_root: Folder that relative media paths start from.
        output: Folder to write; replaced as a whole if it is a manifest already.
        format: Name of the annotation format, or "auto".
        media_template: How to make a media path from an annotation's fields, for example "{id}_{start:06d}.mp4".
        num_workers: Processes that probe media; None: one a core.
        progress: Show a progress bar; None: if standard error is a terminal.

    Returns:
        The opened manifest.

    Raises:
        AnnotationError: If the annotation file as a whole cannot be used.
        ManifestError: If no row can be kept, or `output` exists and is not a manifest.
    """
    raise NotImplementedError


_UNUSED: Sequence[int] = ()
