"""What every annotation reader yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

__all__ = ["Annotation", "BadAnnotation"]


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
        code: Reason code: "bad_number", "empty_interval", "missing_field", "bad_line" ...
        message: One sentence naming the field, the value and what is allowed.
        text: The line as written, shortened to 200 characters.
    """

    line: int
    code: str
    message: str
    text: str
