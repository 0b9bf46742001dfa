"""AVSpeech: ``avspeech_train.csv`` and ``avspeech_test.csv``."""

from __future__ import annotations

from collections.abc import Iterator

from avloader.annotations.base import Annotation, AnnotationFormat, BadAnnotation, number
from avloader.annotations.lines import Lines, Record, convert
from avloader.annotations.tables import is_number, is_youtube_id, read_plain_table
from avloader.annotations.template import MediaTemplate, dataset_annotation

__all__ = ["AVSPEECH"]

_COLUMNS = ("id", "start", "end", "face_x", "face_y")
_TEMPLATE = "{id}_{start:010.6f}-{end:010.6f}.mp4"
_FIELDS = ("id", "start", "end", "start_ms", "end_ms")


def read_avspeech(path: str, media_template: str | None = None) -> Iterator[Annotation | BadAnnotation]:
    """No header; ``id,start,end,face_x,face_y``. No labels.

    The face's centre, as parts of the picture's width and height, is kept as the extra columns `face_x` and `face_y`.

    Default template: ``{id}_{start:010.6f}-{end:010.6f}.mp4``, a file that holds the clip alone, so that the whole file
    is annotated. With a template without times, such as ``{id}.mp4``, the file is the whole video and the interval is
    [start, end) of it.
    """
    template = MediaTemplate(media_template or _TEMPLATE, _FIELDS)

    def parse(record: Record) -> Annotation:
        texts = dict(zip(_COLUMNS, record.fields, strict=True))
        for name in ("face_x", "face_y"):
            number(name, texts[name])
        return dataset_annotation(record.line, template, texts, texts.pop("start"), texts.pop("end"))

    with Lines(path) as source:
        yield from convert(read_plain_table(source, _COLUMNS, _COLUMNS[1:]), parse)


def _recognize(fields: list[str]) -> bool:
    return len(fields) == len(_COLUMNS) and is_youtube_id(fields[0]) and all(map(is_number, fields[1:]))


AVSPEECH = AnnotationFormat(
    name="avspeech",
    description=f"AVSpeech CSV: id,start,end,face x,face y; media {_TEMPLATE}",
    read=read_avspeech,
    recognize=_recognize,
    default_template=_TEMPLATE,
    template_fields=_FIELDS,
)
