"""One small reader per annotation format.

What the times of a data set mean follows from how its media are named. If the media template holds a time
(``{id}_{start:06d}.mp4``), the file was cut to the clip: the annotation is the whole file, and the times in the
original video are kept in `extra` as ``source_start`` and ``source_end``. If not (``{id}.mp4``), the file is the whole
video and the times are used as they are. Cuts that carry no time in their name belong in the project's own CSV.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

from avloader.annotations.audioset import AUDIOSET
from avloader.annotations.avspeech import AVSPEECH
from avloader.annotations.base import Annotation, AnnotationFormat, BadAnnotation
from avloader.annotations.kinetics import KINETICS
from avloader.annotations.lines import OTHER_DELIMITERS, Lines, file_error
from avloader.annotations.project import CSV, JSONL
from avloader.annotations.tables import split_line
from avloader.annotations.template import MediaTemplate
from avloader.annotations.vggsound import VGGSOUND

__all__ = ["FORMATS", "Annotation", "AnnotationFormat", "BadAnnotation", "detect_format", "read_annotations"]

FORMATS: dict[str, AnnotationFormat] = {
    each.name: each for each in (CSV, JSONL, VGGSOUND, AUDIOSET, AVSPEECH, KINETICS)
}
"""Every format by name, in the order in which `detect_format` tries them."""

_LINES_TO_DETECT = 20


def read_annotations(
    path: str | os.PathLike[str], *, format: str = "auto", media_template: str | None = None
) -> Iterator[Annotation | BadAnnotation]:
    """Read an annotation file line by line; memory does not grow with its length.

    Args:
        path: The annotation file, UTF-8.
        format: A name in `FORMATS`, or "auto" to look at the first lines.
        media_template: Path of an annotation's medium with `str.format` fields, such as ``"{id}_{start:06d}.mp4"``;
            None: the format's `default_template`. The fields are those of its `template_fields`.

    Yields:
        An `Annotation`, or a `BadAnnotation` that says why a line is none, in the order of the file.

    Raises:
        AnnotationError: If the file as a whole cannot be used.
        ValueError: If `format` is not known, or `media_template` is not usable with it.
    """
    if format != "auto" and format not in FORMATS:
        raise ValueError(f"format {format!r} is not known; it can be auto, {', '.join(FORMATS)}")
    chosen = FORMATS[detect_format(path) if format == "auto" else format]
    if media_template is not None:
        if not chosen.template_fields:
            raise ValueError(
                f"media_template {media_template!r} cannot be used with format {chosen.name!r}: "
                "its column path names the media"
            )
        MediaTemplate(media_template, chosen.template_fields)
    return chosen.read(os.fspath(path), media_template)


def detect_format(path: str | os.PathLike[str]) -> str:
    """The name in `FORMATS` of the format that the first lines of a file look like.

    Raises:
        AnnotationError: If the file cannot be read, or looks like none.
    """
    name = os.fspath(path)
    with Lines(name) as source:
        first, number = source.first(), source.number
        for line in itertools.chain([first], itertools.islice(source, _LINES_TO_DETECT - 1)):
            found = _recognize(line, ",")
            if found:
                return found
    for delimiter, words in OTHER_DELIMITERS.items():
        if _recognize(first, delimiter):
            cause = f"its fields are separated by {words}, expected commas"
            raise file_error(name, cause, "Save it as CSV with commas", line=number)
    cause = f"its format cannot be told from its first line {first.strip()[:80]!r}"
    remedy = f"The project's own CSV begins with path,start,end,label; or name the format: {', '.join(FORMATS)}"
    raise file_error(name, cause, remedy, line=number)


def _recognize(line: str, delimiter: str) -> str | None:
    fields = [line.strip()] if line.lstrip().startswith(("{", "[")) else split_line(line, delimiter)
    names = [field.strip() for field in fields]
    return next((each.name for each in FORMATS.values() if names and each.recognize(names)), None)
