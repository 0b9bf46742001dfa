"""How a picture becomes what is delivered: scaled, cropped, its colours put in order. Integers only, no media."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["Color", "Crop", "Interpolation", "PictureOptions"]

Crop = Literal["center", "random", "bottom"]
Color = Literal["rgb", "bgr", "grey"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureOptions:
    """What is made of a picture; validated on construction.

    Attributes:
        size: (height, width) to deliver; None: the stored size.
        resize: What the picture is scaled to before `size` is cut out of it: (height, width), or an int: its shorter
            side, the longer one in proportion, rounded down. None: straight to `size`.
        crop: Where `size` is cut out: "center" (torchvision's rounding), "random" (another place for each clip and
            epoch), "bottom" (in the middle of the lowest rows).
        color: "rgb"; "bgr", as OpenCV reads pictures; "grey": 0.299 red + 0.587 green + 0.114 blue, one channel.
        interpolation: "bilinear" or "bicubic", both over all of the pixels that become one.

    Raises:
        TypeError, ValueError: If an option is not what is said above.
    """

    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    crop: Crop = "center"
    color: Color = "rgb"
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        for name, kind in (("crop", Crop), ("color", Color), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(map(repr, get_args(kind)))
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {choices}")
        if self.size is not None:
            _check_sides("size", self.size)
        if self.resize is None:
            if self.crop != "center":
                raise ValueError(f"crop={self.crop!r} needs resize=: what the picture is scaled to before the crop")
            return
        if self.size is None:
            raise ValueError(f"resize={self.resize!r} needs size=(height, width): what is cut out")
        if isinstance(self.resize, int):
            sides = self.resize, self.resize
            _check_sides("resize", sides)
        else:
            sides = self.resize
            _check_sides("resize", sides)
        if sides[0] < self.size[0] or sides[1] < self.size[1]:
            raise ValueError(f"size={self.size} must be at most resize={self.resize} in height and width")

    @property
    def num_channels(self) -> int:
        """3, or 1 for "grey"."""
        return 1 if self.color == "grey" else 3

    @property
    def is_cropped(self) -> bool:
        """Whether `size` is cut out of a larger picture."""
        return self.resize is not None

    def scaled(self, stored: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that a picture stored with that height and width is scaled to."""
        if self.resize is None:
            return self.size or stored
        if not isinstance(self.resize, int):
            return self.resize
        height, width = stored
        if height <= width:
            return self.resize, self.resize * width // height
        return self.resize * height // width, self.resize

    def corner(self, stored: tuple[int, int], draws: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """(top, left) of what is cut out of the scaled picture.

        Args:
            stored: (height, width) as stored.
            draws: Random numbers below 2**32 for both, for "random".
        """
        if self.resize is None or self.size is None:
            return 0, 0
        scaled = self.scaled(stored)
        room = scaled[0] - self.size[0], scaled[1] - self.size[1]
        if self.crop == "random":
            return draws[0] * (room[0] + 1) >> 32, draws[1] * (room[1] + 1) >> 32
        middle = round(room[0] / 2), round(room[1] / 2)  # halves to the even number, as torchvision's CenterCrop
        return (room[0], middle[1]) if self.crop == "bottom" else middle


def _check_sides(name: str, sides: object) -> None:
    if not isinstance(sides, Sequence) or len(sides) != 2:
        raise TypeError(f"{name}={sides!r} must be (height, width)")
    for side in sides:
        if not isinstance(side, int) or isinstance(side, bool):
            raise TypeError(f"{name}={side!r} must be an int")
        if side < 1:
            raise ValueError(f"{name}={side} must be 1 or more")
