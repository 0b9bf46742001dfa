"""The project's own two formats: CSV with a header, and JSON Lines with the same fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction

from avloader.annotations.base import (
    Annotation,
    AnnotationFormat,
    BadAnnotation,
    LineError,
    check_path,
    interval,
    number,
)
from avloader.annotations.lines import Lines, Record, bad, check_line, convert, file_error
from avloader.annotations.tables import read_header, read_rows

__all__ = ["CSV", "JSONL"]

_REQUIRED = ("path", "start", "end", "label")
_KNOWN = (*_REQUIRED, "audio_path", "av_offset", "id")
_NO_OFFSET = Fraction(0)


def read_csv(path: str, media_template: str | None = None) -> Iterator[Annotation | BadAnnotation]:
    """CSV with the header ``path,start,end,label``, in any order.

    `start` and `end` are seconds on the media timeline, empty for the start and the end of the medium. Optional
    columns: `audio_path`, `av_offset` and `id`; all others are kept as text. Spaces after a comma do not count.
    """
    with Lines(path) as source:
        names = read_header(source, _REQUIRED)
        others = [name for name in names if name not in _KNOWN]

        def parse(record: Record) -> Annotation:
            return _annotation(record.line, dict(zip(names, record.fields, strict=True)), others)

        yield from convert(read_rows(source, names), parse)


def read_jsonl(path: str, media_template: str | None = None) -> Iterator[Annotation | BadAnnotation]:
    """One JSON object a line, with the fields of the CSV; all but `path` may be missing or null.

    Times are numbers and are read as the exact decimals that they are written as. Values of other fields that are no
    texts are kept as their JSON text.
    """
    with Lines(path) as source:
        first = source.first().strip()
        if first.startswith("[") or first == "{":
            cause = "it is one JSON document, expected one object a line"
            raise file_error(path, cause, "Convert it, for example: jq -c '.[]'", line=source.number)
        source.give_back([first])
        for line in source:
            if not line.strip():
                continue
            try:
                check_line(line)
                texts = _object(line)
                annotation = _annotation(source.number, texts, [name for name in texts if name not in _KNOWN])
            except LineError as fault:
                yield bad(source.number, fault, line)
            else:
                yield annotation


def _annotation(line: int, texts: Mapping[str, str], others: Sequence[str]) -> Annotation:
    start, end = interval(_optional("start", texts), _optional("end", texts))
    audio_path = texts.get("audio_path", "")
    return Annotation(
        line=line,
        path=check_path("path", texts.get("path", "")),
        start=start,
        end=end,
        label=texts.get("label", ""),
        audio_path=check_path("audio_path", audio_path) if audio_path else None,
        av_offset=_optional("av_offset", texts) or _NO_OFFSET,
        id=texts.get("id") or None,
        extra={name: texts[name] for name in others},
    )


def _optional(name: str, texts: Mapping[str, str]) -> Fraction | None:
    text = texts.get(name, "")
    return number(name, text) if text.strip() else None


def _object(line: str) -> dict[str, str]:
    """The fields of a JSON object as text, null left out."""
    try:
        value = json.loads(line, parse_float=Decimal, object_pairs_hook=_without_repeats)
        if not isinstance(value, dict):
            raise LineError("bad_line", f"expected a JSON object, got {_kind(value)}")
        texts = {name: _text(name, field) for name, field in value.items() if field is not None}
        # A lone surrogate is legal in JSON, and neither a path nor a table can hold it.
        "".join((*texts, *texts.values())).encode()
    except UnicodeEncodeError:
        raise LineError("bad_line", "the line holds half of a surrogate pair, which is no character") from None
    except (ValueError, RecursionError) as error:
        raise LineError("bad_line", f"the line is not valid JSON ({error})") from None
    return texts


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise LineError("bad_line", "a name stands twice in the JSON object")
    return fields


def _text(name: str, value: object) -> str:
    is_numeric = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    if name in ("start", "end", "av_offset") and not is_numeric:
        raise LineError("bad_number", f"{name} must be a number, got {_kind(value)}")
    if name in ("path", "audio_path") and not isinstance(value, str):
        raise LineError("bad_line", f"{name} must be a text, got {_kind(value)}")
    is_integer = is_numeric and isinstance(value, int)
    if name in ("label", "id") and not (isinstance(value, str) or is_integer):
        raise LineError("bad_line", f"{name} must be a text or an integer, got {_kind(value)}")
    if isinstance(value, str):
        return value
    return str(value) if is_numeric else json.dumps(value, ensure_ascii=False, default=float)


def _kind(value: object) -> str:
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    names = {bool: "true or false", dict: "an object", list: "a list", type(None): "null"}
    return names.get(type(value), "a number")


CSV = AnnotationFormat(
    name="csv",
    description="the project's own CSV: path,start,end,label and optional columns",
    read=read_csv,
    recognize=lambda fields: "path" in map(str.lower, fields),
)
JSONL = AnnotationFormat(
    name="jsonl",
    description="JSON Lines: one object a line with the fields of the CSV",
    read=read_jsonl,
    recognize=lambda fields: fields[0].startswith(("{", "[")),
)
