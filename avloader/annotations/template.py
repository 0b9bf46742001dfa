"""Media paths made from the fields of an annotation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from string import Formatter

from avloader.annotations.base import Annotation, LineError, interval, number
from avloader.timeline import round_half_up, seconds_to_text

__all__ = ["TIME_FIELDS", "MediaTemplate", "dataset_annotation"]

TIME_FIELDS = ("start", "end", "start_ms", "end_ms")

_SPEC = re.compile(r"[<>^=]?0?[0-9]{0,3}(\.[0-9]{1,2})?[dfgs]?")


class MediaTemplate:
    """A path with `str.format` fields, such as ``"{id}_{start:06d}.mp4"``.

    `start` and `end` are seconds ("30", "12.5"; ``:06d`` needs whole seconds, ``:010.6f`` takes any), `start_ms` and
    `end_ms` are milliseconds, rounded to integers.

    Attributes:
        names_times: Whether a time is part of the name. Such a file holds the annotated clip alone.

    Raises:
        ValueError: If it uses other fields than `fields`, or lacks ``{id}``, or cannot be formatted.
    """

    def __init__(self, text: str, fields: Sequence[str]) -> None:
        self._text = text
        try:
            parts = [part for part in Formatter().parse(text) if part[1] is not None]
            for _, name, spec, conversion in parts:
                if name not in fields or conversion or not _SPEC.fullmatch(spec or ""):
                    raise ValueError(f"{{{name}{':' if spec else ''}{spec}}} cannot be used")
            if "id" not in (part[1] for part in parts):
                raise ValueError("{id} is missing")
            text.format(**{name: 0 if name in TIME_FIELDS else "x" for name in fields})
        except (ValueError, IndexError, KeyError) as error:
            allowed = ", ".join(f"{{{name}}}" for name in fields)
            raise ValueError(
                f"media_template {text!r} is not usable: {error}; its fields can be {allowed}, "
                "each with a width or precision such as {start:06d}"
            ) from None
        self._names = tuple(dict.fromkeys(str(part[1]) for part in parts))
        self.names_times = any(name in TIME_FIELDS for name in self._names)

    def path(self, texts: Mapping[str, str], start: Fraction, end: Fraction) -> str:
        """The media path of one annotation."""
        values: dict[str, object] = {"start": _plain(start), "end": _plain(end)}
        values |= {"start_ms": round_half_up(start * 1000), "end_ms": round_half_up(end * 1000)}
        for name, value in texts.items():
            if name not in self._names:
                continue
            if not value:
                raise LineError("missing_field", f"{name} is empty, the media path needs it")
            if "/" in value or value in (".", ".."):
                raise LineError("bad_line", f"{name} {value!r} cannot be part of a file name")
            values[name] = value
        try:
            return self._text.format(**values)
        except ValueError:
            times = f"{seconds_to_text(start)} s to {seconds_to_text(end)} s"
            raise LineError("bad_time", f"{times} does not fit the media template {self._text!r}") from None


def dataset_annotation(
    line: int, template: MediaTemplate, texts: Mapping[str, str], start: str, end: str | Fraction
) -> Annotation:
    """An annotation of a data set that names media by id, and by times of the video that they were cut from.

    A file whose name holds a time was cut to the clip: the annotation is the whole file, and the times within the
    original video are kept as the extra columns ``source_start`` and ``source_end``. Any other file is the whole video:
    the times are used as they are.

    Args:
        line: Where it stands.
        template: Names the medium.
        texts: The other columns; "id" and "label" become those of the annotation.
        start: Seconds, as written.
        end: Seconds, as written; or a length to add to `start`.
    """
    begin = _required("start", start)
    stop = begin + end if isinstance(end, Fraction) else _required("end", end)
    interval(begin, stop)
    if not texts["id"]:
        raise LineError("missing_field", "id is empty, the media path needs it")
    path = template.path(texts, begin, stop)
    extra = {name: value for name, value in texts.items() if name not in ("id", "label")}
    label = texts.get("label", "")
    if not template.names_times:
        return Annotation(line, path, begin, stop, label, id=texts["id"], extra=extra)
    source_end = end.strip() if isinstance(end, str) else seconds_to_text(stop)
    extra |= {"source_start": start.strip(), "source_end": source_end}
    return Annotation(line, path, label=label, id=texts["id"], extra=extra)


def _required(name: str, text: str) -> Fraction:
    if not text.strip():
        raise LineError("missing_field", f"{name} is empty, it must be a number of seconds")
    return number(name, text)


def _plain(seconds: Fraction) -> int | Decimal:
    # Fraction has no format codes before Python 3.12, and float would not be exact.
    return int(seconds) if seconds.denominator == 1 else Decimal(seconds_to_text(seconds))
