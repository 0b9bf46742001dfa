"""VGGSound: ``vggsound.csv``."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from avloader.annotations.base import Annotation, AnnotationFormat, BadAnnotation
from avloader.annotations.lines import Lines, Record, convert
from avloader.annotations.tables import is_number, is_youtube_id, read_plain_table
from avloader.annotations.template import MediaTemplate, dataset_annotation

__all__ = ["VGGSOUND"]

CLIP_SECONDS = Fraction(10)

_COLUMNS = ("id", "start", "label", "split")
_TEMPLATE = "{id}_{start:06d}.mp4"
_FIELDS = ("id", "label", "split", "start", "end", "start_ms", "end_ms")


def read_vggsound(path: str, media_template: str | None = None) -> Iterator[Annotation | BadAnnotation]:
    """No header; ``id,start,label,split``, each clip 10 seconds long.

    Default template: ``{id}_{start:06d}.mp4``, a file that holds the 10 seconds alone, so that the whole file is
    annotated. With a template without times, such as ``{id}.mp4``, the file is the whole video and the interval is
    [start, start + 10 s) of it.
    """
    template = MediaTemplate(media_template or _TEMPLATE, _FIELDS)

    def parse(record: Record) -> Annotation:
        texts = dict(zip(_COLUMNS, record.fields, strict=True))
        return dataset_annotation(record.line, template, texts, texts.pop("start"), CLIP_SECONDS)

    with Lines(path) as source:
        yield from convert(read_plain_table(source, _COLUMNS, ("start",)), parse)


def _recognize(fields: list[str]) -> bool:
    if len(fields) != len(_COLUMNS) or not is_youtube_id(fields[0]):
        return False
    return is_number(fields[1]) and not is_number(fields[2])


VGGSOUND = AnnotationFormat(
    name="vggsound",
    description=f"VGGSound CSV: id,start,label,split; media {_TEMPLATE}",
    read=read_vggsound,
    recognize=_recognize,
    default_template=_TEMPLATE,
    template_fields=_FIELDS,
)
