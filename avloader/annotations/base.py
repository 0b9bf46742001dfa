"""What every annotation reader yields, and what every reader needs to make it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from avloader.timeline import parse_seconds

__all__ = ["Annotation", "AnnotationFormat", "BadAnnotation", "LineError", "check_path", "interval", "number"]


@dataclass(frozen=True, slots=True)
class Annotation:
    """One labelled interval of one medium, as the annotation file states it.

    Attributes:
        line: 1-based line (JSON Lines, CSV) where it stands in its file.
        path: Media path as written, relative to `media_root` (or absolute).
        start: Start in seconds on the media timeline; None: the start of the medium.
        end: End (exclusive) in seconds on the media timeline; None: the end of the medium.
        label: Class name or integer id as text; "" if there is none.
        audio_path: Side-car sound on the same timeline, or None.
        av_offset: Offset already in the file, in seconds; positive: sound leads.
        id: The annotation's own identifier, or None.
        extra: Other columns, kept as text.
    """

    line: int
    path: str
    start: Fraction | None = None
    end: Fraction | None = None
    label: str = ""
    audio_path: str | None = None
    av_offset: Fraction = Fraction(0)
    id: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadAnnotation:
    """A line that cannot become an `Annotation`; it ends as a row of ``rejected.csv``.

    Attributes:
        line: 1-based line where it stands.
        code: Reason code: "bad_number", "bad_time", "empty_interval", "missing_field" or "bad_line".
        message: One sentence naming the field, the value and what is allowed.
        text: The line as written, shortened to 200 characters.
    """

    line: int
    code: str
    message: str
    text: str


@dataclass(frozen=True)
class AnnotationFormat:
    """One format that `read_annotations` understands.

    Attributes:
        name: How ``--format`` names it.
        description: One line for ``--help``.
        read: Reads the file at a path, given a media template (None: `default_template`).
        recognize: Whether the fields of a line, split at its commas, look like this format.
        default_template: How its media are usually named; None where the file itself names them.
        template_fields: What a media template may use.
    """

    name: str
    description: str
    read: Callable[[str, str | None], Iterator[Annotation | BadAnnotation]]
    recognize: Callable[[list[str]], bool]
    default_template: str | None = None
    template_fields: tuple[str, ...] = ()


class LineError(Exception):
    """Why one line cannot become an annotation; the readers turn it into a `BadAnnotation`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def number(name: str, value: object) -> Fraction:
    """An exact finite number from a field."""
    try:
        return parse_seconds(value)
    except ValueError as error:
        hint = "; write 65.5, not 1:05.5" if ":" in str(value) else "; write 0.5, not 0,5" if "," in str(value) else ""
        raise LineError("bad_number", f"{name}: {_shorten(str(error))}{hint}") from None


def interval(start: Fraction | None, end: Fraction | None) -> tuple[Fraction | None, Fraction | None]:
    """The same interval, if it begins at or after 0 and ends after it begins."""
    for name, value in (("start", start), ("end", end)):
        if value is not None and value.numerator < 0:
            raise LineError("bad_time", f"{name} must be at least 0 s, got {float(value):g}")
    if end is not None and end.numerator * (start.denominator if start else 1) <= (
        start.numerator * end.denominator if start else 0
    ):
        raise LineError("empty_interval", f"end ({float(end):g} s) must lie after start ({float(start or 0):g} s)")
    return start, end


def check_path(name: str, path: str) -> str:
    """The same path, if a file can have it."""
    if not path.strip():
        raise LineError("missing_field", f"{name} is empty, it must name a file")
    if "\0" in path:
        raise LineError("bad_line", f"{name} holds a NUL character, which no file name can")
    return path


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-60:]}"
