"""Augmentation of pictures: what is drawn for a clip holds for all of its frames.

On pictures (B, F, C, H, W), RGB, uint8 or float32 in 0-255 units; uint8 in, uint8 out, rounded to nearest.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch

from avloader.augment.base import PictureTransform
from avloader.augment.checks import check_integer, check_number, check_range
from avloader.augment.keys import Draw
from avloader.augment.rows import Columns, Pictures

__all__ = ["ColorJitter", "GaussianBlur", "Grayscale", "HorizontalFlip", "PictureMask", "RandomCrop", "RandomErasing"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as torchvision's grayscale


def _like(result: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """`result` in the type of `frames`, in [0, 255] if that is uint8."""
    if frames.dtype != torch.uint8:
        return result
    return result.round_().clamp_(0, 255).to(torch.uint8)


def _gray(values: torch.Tensor) -> torch.Tensor:
    """Luma [shape=(B, F, 1, H, W)], float32, added up in a fixed order."""
    gray: torch.Tensor = values[:, :, :1] * _LUMA[0]
    return gray.add_(values[:, :, 1:2] * _LUMA[1]).add_(values[:, :, 2:] * _LUMA[2])


def _each(column: torch.Tensor) -> torch.Tensor:
    return column.float()[:, None, None, None, None]


@dataclass(frozen=True)
class RandomCrop(PictureTransform):
    """Cut out a rectangle; clips that `p` leaves out get the one in the middle.

    Args:
        size: (height, width) or one number for both, at most that of the pictures.
        p: See `Node`.
        name: See `Node`.

    Returns ``top`` and ``left``.
    """

    size: int | tuple[int, int]
    _: KW_ONLY
    p: float = 1.0

    num_words = 2
    is_for_all = True

    def __post_init__(self) -> None:
        super().__post_init__()
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        if not isinstance(size, tuple) or len(size) != 2:
            raise TypeError(f"size={self.size!r} must be (height, width) or an integer")
        for side in size:
            check_integer("size", side, 1)
        object.__setattr__(self, "size", size)

    def draw_frames(self, draw: Draw, pictures: Pictures) -> Columns:  # noqa: D102
        height, width = self._sides
        if height > pictures.height or width > pictures.width:
            raise ValueError(
                f"size={self.size} must be at most that of the pictures, {pictures.height}x{pictures.width}"
            )
        return {
            "top": draw.integers(1, 0, pictures.height - height + 1),
            "left": draw.integers(2, 0, pictures.width - width + 1),
        }

    @property
    def _sides(self) -> tuple[int, int]:
        assert isinstance(self.size, tuple)
        return self.size

    def apply_to_frames(self, frames: torch.Tensor, columns: dict[str, torch.Tensor]) -> torch.Tensor:  # noqa: D102
        size, num_frames, channels, full_height, full_width = frames.shape
        height, width = self._sides
        active = columns["active"]
        top = torch.where(active, columns["top"], (full_height - height) // 2)
        left = torch.where(active, columns["left"], (full_width - width) // 2)
        rows = top[:, None] + torch.arange(height, device=frames.device)
        index = rows[:, None, None, :, None].expand(size, num_frames, channels, height, full_width)
        frames = frames.gather(3, index)
        places = left[:, None] + torch.arange(width, device=frames.device)
        return frames.gather(4, places[:, None, None, None, :].expand(size, num_frames, channels, height, width))


@dataclass(frozen=True, kw_only=True)
class HorizontalFlip(PictureTransform):
    """Swap left and right.

    Args:
        p: See `Node`.
        name: See `Node`.
    """

    def draw_frames(self, draw: Draw, pictures: Pictures) -> Columns:  # noqa: D102
        return {}

    def apply_to_frames(self, frames: torch.Tensor, columns: dict[str, torch.Tensor]) -> torch.Tensor:  # noqa: D102
        return frames.flip(-1)


@dataclass(frozen=True, kw_only=True)
class Grayscale(PictureTransform):
    """Luma in all three channels.

    Args:
        p: See `Node`.
        name: See `Node`.
    """

    needs_rgb = True

    def draw_frames(self, draw: Draw, pictures: Pictures) -> Columns:  # noqa: D102
        return {}

    def apply_to_frames(self, frames: torch.Tensor, columns: dict[str, torch.Tensor]) -> torch.Tensor:  # noqa: D102
        return _like(_gray(frames.float()), frames).expand_as(frames)


@dataclass(frozen=True, kw_only=True)
class ColorJitter(PictureTransform):
    """Change brightness, contrast and saturation, in this order, as torchvision does for a picture.

    Factors are uniform in [max(0, 1 - x), 1 + x]. Contrast is about the mean luma of all frames of the clip.

    Args:
        brightness: x of the brightness, at least 0.
        contrast: x of the contrast.
        saturation: x of the saturation.
        p: See `Node`.
        name: See `Node`.

    Returns the factors ``brightness``, ``contrast``, ``saturation``.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4

    num_words = 3
    needs_rgb = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("brightness", "contrast", "saturation"):
            check_number(name, getattr(self, name), 0)

    def draw_frames(self, draw: Draw, pictures: Pictures) -> Columns:  # noqa: D102
        return {
            name: draw.uniform(index, max(0.0, 1 - getattr(self, name)), 1 + getattr(self, name))
            for index, name in enumerate(("brightness", "contrast", "saturation"), start=1)
        }

    def apply_to_frames(self, frames: torch.Tensor, columns: dict[str, torch.Tensor]) -> torch.Tensor:  # noqa: D102
        values = (frames * _each(columns["brightness"])).clamp_(0, 255)
        # The mean of whole numbers does not depend on the order of adding.
        total = (_gray(values) * 256).round_().to(torch.int64).sum(dim=(1, 2, 3, 4)).double()
        mean = _each(total / (256 * values[0, :, 0].numel()))
        values = values.sub_(mean).mul_(_each(columns["contrast"])).add_(mean).clamp_(0, 255)
        gray = _gray(values)
        values = values.sub_(gray).mul_(_each(columns["saturation"])).add_(gray).clamp_(0, 255)
        return _like(values, frames)


@dataclass(frozen=True, kw_only=True)
class RandomErasing(PictureTransform):
    """Fill a rectangle, the same in all frames.

    Args:
        min_area: Least part of the picture that is filled, in (0, 1].
        max_area: Greatest part.
        min_ratio: Least width over height.
        max_ratio: Greatest width over height; ratios are uniform in their logarithm.
        value: What it is filled with, in [0, 255].
        p: See `Node`.
        name: See `Node`.

    Returns ``top``, ``left``, ``height``, ``width``.
    """

    min_area: float = 0.02
    max_area: float = 0.33
    min_ratio: float = 0.3
    max_ratio: float = 3.3
    value: float = 0.0

    num_words = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_area", "max_area", 0, 1)
        check_range(self, "min_ratio", "max_ratio", 1e-3)
        check_number("value", self.value, 0, 255)

    def draw_frames(self, draw: Draw, pictures: Pictures) -> Columns:  # noqa: D102
        area = draw.uniform(1, self.min_area, self.max_area) * pictures.height * pictures.width
        ratio = np.exp(draw.uniform(2, math.log(self.min_ratio), math.log(self.max_ratio)))
        height = np.clip(np.rint(np.sqrt(area / ratio)).astype(np.int64), 1, pictures.height)
        width = np.clip(np.rint(np.sqrt(area * ratio)).astype(np.int64), 1, pictures.width)
        top = draw.integers(3, 0, pictures.height - height + 1)
        left = draw.integers(4, 0, pictures.width - width + 1)
        return {"top": top, "left": left, "height": height, "width": width}

    def apply_to_frames(self, frames: torch.Tensor, columns: dict[str, torch.Tensor]) -> torch.Tensor:  # noqa: D102
        inside = []
        for first, length, size in (("top", "height", frames.shape[3]), ("left", "width", frames.shape[4])):
            place = torch.arange(size, device=frames.device) - columns[first][:, None]
            inside.append((place >= 0) & (place < columns[length][:, None]))
        rectangle = inside[0][:, None, None, :, None] & inside[1][:, None, None, None, :]
        return frames.masked_fill(rectangle, self.value)


@dataclass(frozen=True, kw_only=True)
class GaussianBlur(PictureTransform):
    """Blur with a Gaussian, the edges repeated beyond the picture.

    Args:
        min_sigma: Least standard deviation, pixels, > 0.
        max_sigma: Greatest; the blur reaches three times as far.
        p: See `Node`.
        name: See `Node`.

    Returns ``sigma``.
    """

    min_sigma: float = 0.1
    max_sigma: float = 2.0

    num_words = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_sigma", "max_sigma", 1e-3, 20)

    def draw_frames(self, draw: Draw, pictures: Pictures) -> Columns:  # noqa: D102
        sigma = draw.uniform(1, self.min_sigma, self.max_sigma)
        place = np.arange(-self._reach, self._reach + 1)
        weights = np.exp(-0.5 * (place / sigma[:, None]) ** 2)
        return {"sigma": sigma, "weights": (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)}

    @property
    def _reach(self) -> int:
        return math.ceil(3 * self.max_sigma)

    def apply_to_frames(self, frames: torch.Tensor, columns: dict[str, torch.Tensor]) -> torch.Tensor:  # noqa: D102
        values = frames.float()
        for dim in (3, 4):
            index = torch.arange(values.shape[dim], device=frames.device)
            total = torch.zeros_like(values)
            for number in range(2 * self._reach + 1):
                moved = (index + (number - self._reach)).clamp_(0, values.shape[dim] - 1)
                total += values.index_select(dim, moved).mul_(_each(columns["weights"][:, number]))
            values = total
        return _like(values, frames)


@dataclass(frozen=True, kw_only=True)
class PictureMask(PictureTransform):
    """Replace some frames that follow one another.

    Args:
        min_frames: Least number of frames, at least 0.
        max_frames: Greatest number; no more than the clip has.
        value: What they are filled with, in [0, 255].
        p: See `Node`.
        name: See `Node`.

    Returns ``first_frame`` and ``num_frames``.
    """

    min_frames: int = 0
    max_frames: int = 10
    value: float = 0.0

    num_words = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("min_frames", self.min_frames, 0)
        check_integer("max_frames", self.max_frames, self.min_frames)
        check_number("value", self.value, 0, 255)

    def draw_frames(self, draw: Draw, pictures: Pictures) -> Columns:  # noqa: D102
        return mask_of_frames(draw, pictures.num_frames, self.min_frames, self.max_frames)

    def apply_to_frames(self, frames: torch.Tensor, columns: dict[str, torch.Tensor]) -> torch.Tensor:  # noqa: D102
        return fill_frames(frames, columns, self.value)


def mask_of_frames(draw: Draw, num_frames: int, least: int, most: int) -> Columns:
    """``first_frame`` and ``num_frames`` of a mask, from words 1 and 2."""
    count = draw.integers(1, min(least, num_frames), min(most, num_frames) + 1)
    return {"first_frame": draw.integers(2, 0, num_frames - count + 1), "num_frames": count}


def fill_frames(frames: torch.Tensor, columns: dict[str, torch.Tensor], value: float) -> torch.Tensor:
    """Frames with those of the mask filled."""
    place = torch.arange(frames.shape[1], device=frames.device) - columns["first_frame"][:, None]
    hit = (place >= 0) & (place < columns["num_frames"][:, None])
    return frames.masked_fill(hit[:, :, None, None, None], value)
