"""What can go wrong with data.

    AVLoaderError
    ├── AnnotationError   the annotation file as a whole cannot be used
    ├── MediaError        a media file cannot be opened or lacks what is needed
    ├── ManifestError     a manifest folder is missing, damaged, or does not match its media
    ├── DecodeError       frames or sound of a clip cannot be read
    └── SyncError         an engine returned something other than what the plan asked for

Wrong arguments are not data: they raise `ValueError` or `TypeError`.
"""

from __future__ import annotations

import os

__all__ = ["AVLoaderError", "AnnotationError", "DecodeError", "ManifestError", "MediaError", "SyncError"]


class AVLoaderError(Exception):
    """A fault in the data, told in one line: where, what, and what to do.

    Args:
        cause: What is wrong, as a phrase without a full stop.
        path: The file concerned.
        row: The manifest row, or the line of the annotation file (see `row_name`).
        remedy: What the reader can do about it, as a sentence without a full stop.
        code: A short machine-readable reason such as ``"missing_file"``; empty if there is none.
        row_name: What `row` counts: ``"row"`` (manifest) or ``"line"`` (annotation file).
    """

    def __init__(
        self,
        cause: str,
        *,
        path: str | os.PathLike[str] | None = None,
        row: int | None = None,
        remedy: str = "",
        code: str = "",
        row_name: str = "row",
    ) -> None:
        self.cause = cause
        self.path = None if path is None else os.fspath(path)
        self.row = row
        self.remedy = remedy
        self.code = code
        self.row_name = row_name
        where = " ".join(part for part in (self.path or "", f"({row_name} {row})" if row is not None else "") if part)
        message = f"{where}: {cause}" if where else cause
        super().__init__(f"{message}. {remedy}." if remedy else f"{message}.")

    def __reduce__(self) -> tuple[object, ...]:
        # The default would pass the whole message as `cause` when an error crosses a process boundary.
        state = (self.cause, self.path, self.row, self.remedy, self.code, self.row_name)
        return _rebuild, (type(self), *state)

    def at_row(self, row: int) -> AVLoaderError:
        """The same error, naming manifest row `row`."""
        return type(self)(self.cause, path=self.path, row=row, remedy=self.remedy, code=self.code)


def _rebuild(
    kind: type[AVLoaderError], cause: str, path: str | None, row: int | None, remedy: str, code: str, row_name: str
) -> AVLoaderError:
    return kind(cause, path=path, row=row, remedy=remedy, code=code, row_name=row_name)


class AnnotationError(AVLoaderError):
    """The annotation file as a whole cannot be used (a single bad line is rejected, not raised)."""


class MediaError(AVLoaderError):
    """A media file cannot be opened, or lacks a stream, or states no times."""


class ManifestError(AVLoaderError):
    """A manifest folder is missing, damaged, of another schema version, or does not match its media."""


class DecodeError(AVLoaderError):
    """Frames or sound that the manifest promises cannot be decoded."""


class SyncError(AVLoaderError):
    """An engine delivered other rows or frames than the plan asked for; nothing is paired by guess."""
