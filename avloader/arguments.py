"""Checks of what a user gives to `AVLoader`: each says which argument is wrong, and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, cast

import torch

from avloader.features import Feature
from avloader.pipeline import Normalize
from avloader.plan import Windows
from avloader.sound_plan import SoundOptions

__all__ = [
    "check_choice",
    "check_positive",
    "checked_device",
    "checked_normalize",
    "checked_rank",
    "checked_share",
    "checked_size",
    "sound_options",
]


def check_positive(name: str, value: object, *, or_auto: bool = False) -> None:
    """Check that an argument is an integer of at least 1.

    Raises:
        TypeError, ValueError: If it is not; `or_auto`: the message allows "auto" too, which the caller has let pass.
    """
    other = ', or "auto"' if or_auto else ""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be an int{other}")
    if value < 1:
        raise ValueError(f"{name}={value} must be 1 or more{other}")


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Check that an argument is one of the allowed words.

    Raises:
        ValueError: If it is not.
    """
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")


def sound_options(
    features: Feature | None,
    sample_rate: int,
    audio_seconds: float | str | Fraction | None,
    clips: Windows,
    shuffle: bool,
    seed: int,
    bucket: int | None,
) -> SoundOptions:
    """What a plan of sound alone needs; without `audio_seconds` (seconds) clips last as long as their rows.

    Raises:
        ValueError: If features of whole media are asked for.
    """
    if features is not None and features.grid is not None:
        raise ValueError(f"features={features!r} must have scope='clip' with streams=\"audio\"")
    is_whole = features is not None and audio_seconds is None
    return SoundOptions(
        audio_seconds=cast("Fraction | None", audio_seconds),  # SoundOptions makes it exact
        clips=clips,
        shuffle=shuffle,
        seed=seed,
        bucket=bucket,
        least_seconds=Fraction(features.least_samples, sample_rate) if features and is_whole else Fraction(0),
    )


def checked_share(share: object) -> Fraction | Literal["auto"]:
    """The share of the CPU in [0, 1], exact to a thousandth, or "auto".

    Raises:
        TypeError, ValueError: If it is something else.
    """
    if share == "auto":
        return "auto"
    message = f'cpu_share={share!r} must be in [0, 1], or "auto"'
    if not isinstance(share, (int, float, str, Fraction)) or isinstance(share, bool):
        raise TypeError(message)
    try:
        exact = Fraction(share).limit_denominator(1000)
    except (ValueError, OverflowError):
        raise ValueError(message) from None
    if not 0 <= exact <= 1:
        raise ValueError(message)
    return exact


def checked_size(size: object) -> tuple[int, int] | None:
    """(height, width) of pictures in pixels, > 0; one number stands for both; None: as stored.

    Raises:
        TypeError, ValueError: If it is something else.
    """
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or len(sides) != 2:
        raise TypeError(f"size={size!r} must be (height, width), an int, or None")
    for side in sides:
        check_positive("size", side)
    return sides[0], sides[1]


def checked_normalize(normalize: object, num_channels: int) -> Normalize:
    """(mean, std) in 0-255 units with a value for each channel, std > 0; "per_clip"; or None.

    Raises:
        TypeError, ValueError: If it is something else.
    """
    if normalize is None or normalize == "per_clip":
        return cast(Normalize, normalize)
    count = "three numbers" if num_channels == 3 else "one number"
    message = f'normalize={normalize!r} must be (mean, std) with {count} each, "per_clip", or None'
    if not isinstance(normalize, Sequence) or isinstance(normalize, str) or len(normalize) != 2:
        raise TypeError(message)
    try:
        mean, std = (tuple(float(value) for value in channel) for channel in normalize)
    except (TypeError, ValueError):
        raise TypeError(message) from None
    is_complete = len(mean) == len(std) == num_channels
    if not is_complete or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"{message}; all finite, every std above 0")
    return mean, std


def checked_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank in [0, world size), and world size: those of torch.distributed where none are given.

    Raises:
        TypeError, ValueError: If only one is given, or one is out of range.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank={rank!r} and world_size={world_size!r} must be given together, or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1
    check_positive("world_size", world_size)
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise TypeError(f"rank={rank!r} must be an int")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} must be in [0, {world_size})")
    return rank, world_size


def checked_device(device: object) -> torch.device:
    """The CPU, or a GPU by its index; "auto" is a GPU if there is one.

    Raises:
        ValueError: If it is neither, or PyTorch does not find it.
    """
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device("cuda" + name[3:] if name.startswith("gpu") else name)
    except RuntimeError:
        raise ValueError(f'device={device!r} must be "auto", "cpu", "gpu", or a CUDA device such as "cuda:1"') from None
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f'device={device!r} must be "auto", "cpu", "gpu", or a CUDA device such as "cuda:1"')
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device={device!r} needs a GPU, but PyTorch finds none")
        index = torch.cuda.current_device() if chosen.index is None else chosen.index
        if index >= torch.cuda.device_count():
            raise ValueError(f"device={device!r}: there are GPUs 0 to {torch.cuda.device_count() - 1} only")
        return torch.device("cuda", index)
    return chosen
