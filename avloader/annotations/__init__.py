"""One small reader per annotation format."""

from avloader.annotations.base import Annotation, BadAnnotation

__all__ = ["Annotation", "BadAnnotation"]
