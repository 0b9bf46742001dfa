"""CSV files with a header, and CSV files without one."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence

from avloader.annotations.base import BadAnnotation, LineError
from avloader.annotations.lines import Lines, Record, bad, delimiter_error, file_error, read_records
from avloader.timeline import parse_seconds

__all__ = ["is_number", "is_youtube_id", "read_header", "read_plain_table", "read_rows", "split_line"]

_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")


def read_header(source: Lines, required: Sequence[str]) -> list[str]:
    """Column names from the first line that is not blank.

    Raises:
        AnnotationError: If a required column is missing, a name stands twice or is empty, or the delimiter is no comma.
    """
    line = source.first()
    source.give_back([line])
    record = next(read_records(source))
    if isinstance(record, BadAnnotation):
        cause = f"its header cannot be read: {record.message}"
        raise file_error(source.path, cause, "Mend the header", line=record.line)
    names = [name.strip() for name in record.fields]
    missing = [name for name in required if name not in names]
    if missing:
        error = delimiter_error(source, line, len(required))
        if error:
            raise error
        cause = f"its header lacks the column {missing[0]!r}: it has {', '.join(map(repr, names))}"[:400]
        remedy = f"The header must name {','.join(required)}; a column may be left empty"
        raise file_error(source.path, cause, remedy, line=record.line)
    for index, name in enumerate(names):
        if not name:
            cause = f"column {index + 1} of its header has no name"
            raise file_error(source.path, cause, "Name it, or remove it (pandas: index=False)", line=record.line)
        if name in names[:index]:
            cause = f"its header names the column {name!r} twice"
            raise file_error(source.path, cause, "Rename or remove one of the two", line=record.line)
    return names


def read_rows(source: Lines, names: Sequence[str]) -> Iterator[Record | BadAnnotation]:
    """The records below a header, each with as many fields as the header has."""
    for record in read_records(source):
        if isinstance(record, Record) and len(record.fields) != len(names):
            fault = LineError("bad_line", f"expected {len(names)} fields as in the header, got {len(record.fields)}")
            yield bad(record.line, fault, record.text)
        else:
            yield record


def read_plain_table(
    source: Lines, columns: Sequence[str], numbers: Sequence[str], *, comment: str | None = None, hint: str = ""
) -> Iterator[Record | BadAnnotation]:
    """The records of a file without a header.

    Args:
        source: The lines.
        columns: What the fields mean.
        numbers: The columns that hold numbers; by them a header is told from a record.
        comment: What a comment line begins with, or None.
        hint: Added to the message about a wrong number of fields.

    Raises:
        AnnotationError: If the file is empty, has a header, or its delimiter is no comma.
    """
    source.give_back([source.first()])
    for index, record in enumerate(read_records(source, comment=comment)):
        if isinstance(record, BadAnnotation):
            yield record
            continue
        if not index:
            _refuse_other_tables(source, record, columns, numbers)
        if len(record.fields) != len(columns):
            expected = f"expected {len(columns)} fields ({', '.join(columns)}), got {len(record.fields)}"
            yield bad(record.line, LineError("bad_line", expected + hint), record.text)
        else:
            yield record


def is_youtube_id(text: str) -> bool:
    """Whether `text` can be the id of a YouTube video."""
    return _YOUTUBE_ID.fullmatch(text) is not None


def is_number(text: str) -> bool:
    """Whether `text` is a finite number."""
    try:
        parse_seconds(text)
    except ValueError:
        return False
    return True


def _refuse_other_tables(source: Lines, record: Record, columns: Sequence[str], numbers: Sequence[str]) -> None:
    error = None
    if len(record.fields) < len(columns):
        error = delimiter_error(source, record.text, len(columns))
    if error:
        raise error
    values = [value for name, value in zip(columns, record.fields, strict=False) if name in numbers]
    if values and all(_is_word(value) for value in values):
        cause = "its first record looks like a header, which this format has not"
        remedy = f"Remove it, or name the right format; the columns of this one are {','.join(columns)}"
        raise file_error(source.path, cause, remedy, line=record.line)


def _is_word(text: str) -> bool:
    word = text.strip().lower()
    return word[:1].isalpha() and not any(map(str.isdigit, word)) and word not in ("nan", "inf", "infinity")


def split_line(line: str, delimiter: str) -> list[str]:
    """The fields of one line; none if it is no CSV by itself."""
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True), [])
    except csv.Error:
        return []
