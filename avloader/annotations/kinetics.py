"""Kinetics 400, 600 and 700: ``train.csv``, ``val.csv`` and ``test.csv``."""

from __future__ import annotations

from collections.abc import Iterator

from avloader.annotations.base import Annotation, AnnotationFormat, BadAnnotation
from avloader.annotations.lines import Lines, Record, convert
from avloader.annotations.tables import read_header, read_rows
from avloader.annotations.template import MediaTemplate, dataset_annotation

__all__ = ["KINETICS"]

_REQUIRED = ("youtube_id", "time_start", "time_end")
_TEMPLATE = "{id}_{start:06d}_{end:06d}.mp4"
_FIELDS = ("id", "label", "split", "start", "end", "start_ms", "end_ms")


def read_kinetics(path: str, media_template: str | None = None) -> Iterator[Annotation | BadAnnotation]:
    """A header with ``label,youtube_id,time_start,time_end,split``, and ``is_cc`` in Kinetics 400.

    Test lists have no column `label`. All columns but these are kept.

    Default template: ``{id}_{start:06d}_{end:06d}.mp4``; where files lie in a folder for each class:
    ``{label}/{id}_{start:06d}_{end:06d}.mp4``. Such a file holds the clip alone, so that the whole file is annotated
    (it often lasts less than the list says). With a template without times, such as ``{id}.mp4``, the file is the whole
    video and the interval is [start, end) of it.
    """
    template = MediaTemplate(media_template or _TEMPLATE, _FIELDS)
    with Lines(path) as source:
        header = read_header(source, _REQUIRED)

        def parse(record: Record) -> Annotation:
            texts = dict(zip(header, record.fields, strict=True))
            texts["id"] = texts.pop("youtube_id")
            return dataset_annotation(record.line, template, texts, texts.pop("time_start"), texts.pop("time_end"))

        yield from convert(read_rows(source, header), parse)


KINETICS = AnnotationFormat(
    name="kinetics",
    description=f"Kinetics 400/600/700 CSV: label,youtube_id,time_start,time_end,split; media {_TEMPLATE}",
    read=read_kinetics,
    recognize=lambda fields: set(_REQUIRED) <= set(fields),
    default_template=_TEMPLATE,
    template_fields=_FIELDS,
)
