"""What a prepared file says of itself: where its media time 0 lies, and where its sound begins.

Everywhere else media time 0 is the container's start, the first thing that it shows or plays. A prepared picture that
starts late has no sound beside it that starts at 0, and a prepared sound that starts late begins with zeros; so both
say it in their comment, and whoever probes them learns the truth without the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["is_prepared", "prepared_comment", "silence_of"]

_COMMENT = re.compile(r"avloader: media time 0 is time stamp 0(?:, the sound begins at sample ([0-9]{1,18}))?")


def prepared_comment(silence: int | None = None) -> str:
    """The comment of a prepared file.

    Args:
        silence: Samples before the sound begins; None: it holds the picture.
    """
    comment = "avloader: media time 0 is time stamp 0"
    return comment if silence is None else f"{comment}, the sound begins at sample {silence}"


def is_prepared(metadata: Mapping[str, str]) -> bool:
    """Whether the time stamps of a container with these metadata are media times."""
    return _COMMENT.fullmatch(metadata.get("comment", "")) is not None


def silence_of(metadata: Mapping[str, str]) -> int:
    """Samples before the sound begins; 0 if nothing is said."""
    match = _COMMENT.fullmatch(metadata.get("comment", ""))
    return int(match.group(1) or 0) if match else 0
