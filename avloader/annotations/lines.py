"""Lines and CSV records of an annotation file, one at a time, with the line each begins on."""

from __future__ import annotations

import csv
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from avloader.annotations.base import Annotation, BadAnnotation, LineError
from avloader.errors import AnnotationError

__all__ = [
    "OTHER_DELIMITERS",
    "Lines",
    "Record",
    "bad",
    "check_line",
    "convert",
    "delimiter_error",
    "file_error",
    "read_records",
]

OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}

_MAX_LINE_BYTES = 1 << 20
_MAX_TEXT = 200


def file_error(path: str, cause: str, remedy: str, *, line: int | None = None, code: str = "") -> AnnotationError:
    """An `AnnotationError` that counts lines, not rows."""
    return AnnotationError(cause, path=path, row=line, remedy=remedy, code=code, row_name="line")


class Lines:
    r"""The lines of a UTF-8 file, each with its line end; never more of the file in memory than one of them needs.

    A line ends at "\n" alone, so that line numbers agree with those of editors and of ``sed -n``.

    Attributes:
        number: 1-based number of the line handed out last.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.number = 0
        self._returned: deque[str] = deque()
        try:
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):
                cause = "it is a folder, not a regular file" if stat.S_ISDIR(mode) else "it is not a regular file"
                raise file_error(path, cause, "Name the annotation file itself")
            self._file = open(path, "rb")  # noqa: SIM115 - closed by __exit__
        except FileNotFoundError:
            raise file_error(path, "there is no such file", "Check the path", code="missing_file") from None
        except OSError as error:
            raise self._cannot_read(error) from error

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else self._read()
        self.number += 1
        return line

    def give_back(self, lines: list[str]) -> None:
        """Hand the last lines out again."""
        self._returned.extendleft(reversed(lines))
        self.number -= len(lines)

    def first(self) -> str:
        """The first line that is not blank.

        Raises:
            AnnotationError: If there is none, or the file is no text in lines.
        """
        for line in self:
            if line.strip():
                if "\0" in line:
                    cause = "it is a binary file, not text: it holds NUL bytes"
                    raise file_error(self.path, cause, "Save it as UTF-8 text", line=self.number)
                if "\r" in line.rstrip("\r\n"):
                    cause = "its lines end with a carriage return alone"
                    raise file_error(self.path, cause, "Convert it: tr '\\r' '\\n'", line=self.number)
                return line
        raise file_error(self.path, "it is empty", "Name a file that holds annotations")

    def _read(self) -> str:
        try:
            data = self._file.readline(_MAX_LINE_BYTES)
            if not data:
                raise StopIteration
            rest = data
            while len(rest) == _MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = self._file.readline(_MAX_LINE_BYTES)
        except OSError as error:
            raise self._cannot_read(error) from error
        if not self.number and data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise file_error(self.path, "it is UTF-16, not UTF-8", "Convert it: iconv -f utf-16 -t utf-8")
        if rest is not data:
            return data.decode(errors="replace")  # `check_line` refuses it
        try:
            return data.decode("utf-8" if self.number else "utf-8-sig")
        except UnicodeDecodeError as error:
            if b"\0" in data:
                cause = "it is a binary file, not text"
                raise file_error(self.path, cause, "Name a table of clips", line=self.number + 1) from None
            cause = f"it is not UTF-8 text (byte 0x{data[error.start]:02x})"
            remedy = "Convert it, for example: iconv -f latin1 -t utf-8"
            raise file_error(self.path, cause, remedy, line=self.number + 1) from None

    def _cannot_read(self, error: OSError) -> AnnotationError:
        return file_error(self.path, f"it cannot be read ({error.strerror})", "Check the path and its permissions")


def check_line(line: str) -> None:
    """Refuse a line that no record can hold."""
    if "\0" in line:
        raise LineError("bad_line", "the line holds NUL bytes")
    if len(line) > _MAX_LINE_BYTES // 4 and len(line.encode()) >= _MAX_LINE_BYTES:
        raise LineError("bad_line", f"the line is {_MAX_LINE_BYTES} bytes long or longer")


def bad(line: int, fault: LineError, text: str) -> BadAnnotation:
    """The fault of a line, with the beginning of its text."""
    text = text.rstrip("\r\n")
    return BadAnnotation(
        line, fault.code, str(fault), text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 3]}..."
    )


class Record(NamedTuple):
    """One record of a CSV file.

    Attributes:
        line: 1-based line on which it begins.
        fields: Its fields as text.
        text: Its lines as written.
    """

    line: int
    fields: list[str]
    text: str


class _RecordLines:
    """Feeds the CSV parser, and remembers which lines went into the record at hand."""

    def __init__(self, source: Lines, comment: str | None) -> None:
        self._source = source
        self._comment = comment
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for line in self._source:
            if not self.taken and (not line.strip() or (self._comment and line.lstrip().startswith(self._comment))):
                continue
            self.taken.append(line)
            check_line(line)
            return line
        if self.taken:
            raise LineError("bad_line", "a quote is opened and not closed")
        raise StopIteration


def read_records(source: Lines, *, comment: str | None = None) -> Iterator[Record | BadAnnotation]:
    """CSV records; blank lines and comment lines between them are skipped.

    A record that cannot be parsed costs its first line only: reading goes on with the next physical line.

    Args:
        source: The lines.
        comment: What a comment line begins with, or None if the format has none.
    """
    feed = _RecordLines(source, comment)
    parser = csv.reader(feed, skipinitialspace=True, strict=True)
    while True:
        feed.taken = []
        try:
            fields = next(parser)
        except StopIteration:
            return
        except (csv.Error, LineError) as error:
            fault = _parser_fault(error, len(feed.taken))
            source.give_back(feed.taken[1:])
            yield bad(source.number, fault, feed.taken[0])
        else:
            yield Record(source.number - len(feed.taken) + 1, fields, "".join(feed.taken))


def _parser_fault(error: csv.Error | LineError, num_lines: int) -> LineError:
    if isinstance(error, LineError):
        return error
    if num_lines > 1:
        return LineError("bad_line", f"a quote is opened and not closed properly ({error})")
    return LineError("bad_line", f"the line is not valid CSV ({error})")


def convert(
    records: Iterator[Record | BadAnnotation], parse: Callable[[Record], Annotation]
) -> Iterator[Annotation | BadAnnotation]:
    """Every record as an annotation, or as what is wrong with it."""
    for record in records:
        if isinstance(record, BadAnnotation):
            yield record
            continue
        try:
            annotation = parse(record)
        except LineError as fault:
            yield bad(record.line, fault, record.text)
        else:
            yield annotation


def delimiter_error(source: Lines, line: str, num_fields: int) -> AnnotationError | None:
    """What to raise if `line` has `num_fields` fields or more when it is split at something other than commas."""
    for delimiter, name in OTHER_DELIMITERS.items():
        if line.count(delimiter) >= num_fields - 1:
            cause = f"its fields are separated by {name}, expected commas"
            return file_error(source.path, cause, "Save it as CSV with commas", line=source.number)
    return None
