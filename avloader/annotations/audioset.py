"""AudioSet: ``*_segments.csv``."""

from __future__ import annotations

from collections.abc import Iterator

from avloader.annotations.base import Annotation, AnnotationFormat, BadAnnotation
from avloader.annotations.lines import Lines, Record, convert
from avloader.annotations.tables import is_number, is_youtube_id, read_plain_table
from avloader.annotations.template import MediaTemplate, dataset_annotation

__all__ = ["AUDIOSET"]

_COLUMNS = ("id", "start", "end", "label")
_TEMPLATE = "{id}_{start_ms}_{end_ms}.mp4"
_FIELDS = ("id", "start", "end", "start_ms", "end_ms")


def read_audioset(path: str, media_template: str | None = None) -> Iterator[Annotation | BadAnnotation]:
    """Comment lines with ``#``, no header; ``id, start, end, "labels"`` with a space after each comma.

    The label is the whole quoted list of class ids as one text: ``/m/09x0r,/t/dd00088``.

    Default template: ``{id}_{start_ms}_{end_ms}.mp4``, a file that holds the clip alone, so that the whole file is
    annotated. With a template without times, such as ``{id}.mp4``, the file is the whole video and the interval is
    [start, end) of it.
    """
    template = MediaTemplate(media_template or _TEMPLATE, _FIELDS)

    def parse(record: Record) -> Annotation:
        texts = dict(zip(_COLUMNS, record.fields, strict=True))
        return dataset_annotation(record.line, template, texts, texts.pop("start"), texts.pop("end"))

    with Lines(path) as source:
        hint = "; a list of labels must stand in quotes"
        yield from convert(read_plain_table(source, _COLUMNS, ("start", "end"), comment="#", hint=hint), parse)


def _recognize(fields: list[str]) -> bool:
    if fields[0].startswith("#"):
        return True
    return len(fields) == len(_COLUMNS) and is_youtube_id(fields[0]) and all(map(is_number, fields[1:3]))


AUDIOSET = AnnotationFormat(
    name="audioset",
    description=f'AudioSet segments CSV: id, start, end, "labels"; media {_TEMPLATE}',
    read=read_audioset,
    recognize=_recognize,
    default_template=_TEMPLATE,
    template_fields=_FIELDS,
)
