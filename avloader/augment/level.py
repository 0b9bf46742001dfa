"""Level and shape of the waveform: gain, gain transition, polarity, clipping, tanh, normalization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from avloader.augment.base import Transform
from avloader.augment.checks import check_choice, check_integer, check_number, check_range
from avloader.augment.energy import bits_for, energy, peaks
from avloader.augment.keys import Draw
from avloader.augment.rows import Clips, Columns, Rows, scaled

__all__ = [
    "BitCrush",
    "Clip",
    "ClippingDistortion",
    "Gain",
    "GainTransition",
    "Normalize",
    "PolarityInversion",
    "TanhDistortion",
]


def _amplitude(decibels: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return (10.0 ** (decibels / 20.0)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Gain(Transform):
    """Multiply by ``10 ** (gain_db / 20)``.

    Args:
        min_gain_db: Least gain in dB.
        max_gain_db: Greatest gain in dB.
        p: See `Node`.
        name: See `Node`.

    Returns ``gain_db``, uniform between the two.
    """

    min_gain_db: float = -12.0
    max_gain_db: float = 12.0

    num_words = 1
    is_gain = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_gain_db", "max_gain_db")

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        decibels = draw.uniform(1, self.min_gain_db, self.max_gain_db)
        return {"gain_db": decibels, "scale": _amplitude(decibels)}

    def reported(self, columns: Columns) -> Columns:  # noqa: D102
        return {"gain_db": columns["gain_db"]}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        raise NotImplementedError("the chain hands gains on")


@dataclass(frozen=True, kw_only=True)
class PolarityInversion(Transform):
    """Multiply by -1.

    Args:
        p: See `Node`.
        name: See `Node`.
    """

    is_gain = True

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        return {"scale": np.full(len(clips.start), -1.0, np.float32)}

    def reported(self, columns: Columns) -> Columns:  # noqa: D102
        return {}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        raise NotImplementedError("the chain hands gains on")


@dataclass(frozen=True, kw_only=True)
class GainTransition(Transform):
    """Go from one gain to another, evenly in dB.

    Args:
        min_gain_db: Least gain in dB, of both.
        max_gain_db: Greatest gain in dB, of both.
        min_duration: Least length of the way from one to the other.
        max_duration: Greatest length of it.
        duration_unit: ``"seconds"``, ``"samples"``, or ``"fraction"`` of the clip.
        p: See `Node`.
        name: See `Node`.

    Returns ``start_gain_db``, ``end_gain_db``, the sample ``t0`` at which the way begins (it may lie before the clip)
    and ``fade_time_samples``, its length.
    """

    min_gain_db: float = -24.0
    max_gain_db: float = 6.0
    min_duration: float = 0.2
    max_duration: float = 6.0
    duration_unit: Literal["seconds", "samples", "fraction"] = "seconds"

    num_words = 4
    takes_scale = True
    is_loop = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_gain_db", "max_gain_db")
        check_range(self, "min_duration", "max_duration", 0)
        check_choice("duration_unit", self.duration_unit, ("seconds", "samples", "fraction"))

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        unit = clips.length if self.duration_unit == "fraction" else np.ones_like(clips.length)
        if self.duration_unit == "seconds":
            unit = unit * clips.sample_rate
        least, most = (np.round(unit * value).astype(np.int64) for value in (self.min_duration, self.max_duration))
        fade = np.maximum(draw.integers(1, least, most + 1), 3)
        return {
            "start_gain_db": draw.uniform(3, self.min_gain_db, self.max_gain_db),
            "end_gain_db": draw.uniform(4, self.min_gain_db, self.max_gain_db),
            "fade_time_samples": fade,
            "t0": clips.start + draw.integers(2, 2 - fade, np.maximum(clips.length - 1, 3 - fade)),
        }

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        if not rows.audio.is_cuda:
            from avloader.augment import loops

            result, host = rows.empty(), rows.host
            start, end = host["start_gain_db"], host["end_gain_db"]
            fade = host["fade_time_samples"]
            loops.gain_transition(rows.audio.numpy(), host["scale"], host["t0"], fade, start, end, result.numpy())
            return result
        columns = {key: column.float()[:, None] for key, column in rows.columns.items()}
        first, last, steps = columns["start_gain_db"], columns["end_gain_db"], columns["fade_time_samples"] - 1
        way = ((rows.positions() - rows.columns["t0"].int()[:, None]) / steps).clamp_(0, 1)
        decibels = way.mul_(last - first).add_(first)
        curve = decibels.mul_(math.log(10) / 20).exp_().mul_(columns["scale"])
        return torch.mul(rows.audio, curve, out=rows.empty())


@dataclass(frozen=True, kw_only=True)
class Clip(Transform):
    """Cut off what lies outside [a_min, a_max].

    Args:
        a_min: Least sample, at most 0.
        a_max: Greatest sample, at least 0.
        p: See `Node`.
        name: See `Node`.
    """

    a_min: float = -1.0
    a_max: float = 1.0

    is_loop = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("a_min", self.a_min, high=0)
        check_number("a_max", self.a_max, low=0)

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        return {}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        return _clipped(
            rows, *(torch.full_like(rows.start, edge, dtype=torch.float32) for edge in (self.a_min, self.a_max))
        )


def _clipped(rows: Rows, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The sound within [low, high] of each clip, float32 [shape=(R,)]."""
    result = rows.empty()
    if result.is_cuda:
        return torch.clamp(rows.audio, low[:, None], high[:, None], out=result)
    from avloader.augment import loops

    loops.clip(rows.audio.numpy(), low.numpy(), high.numpy(), result.numpy())
    return result


@dataclass(frozen=True, kw_only=True)
class BitCrush(Transform):
    """Round samples to fewer bits: to multiples of ``1 / (2 ** bit_depth / 2 + 1)``.

    Args:
        min_bit_depth: Least number of bits, in [1, 32].
        max_bit_depth: Greatest number.
        p: See `Node`.
        name: See `Node`.

    Returns ``bit_depth``.
    """

    min_bit_depth: int = 5
    max_bit_depth: int = 10

    num_words = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("min_bit_depth", self.min_bit_depth, 1)
        check_integer("max_bit_depth", self.max_bit_depth, 1)
        check_range(self, "min_bit_depth", "max_bit_depth", 1, 32)

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        depth = draw.integers(1, self.min_bit_depth, self.max_bit_depth + 1)
        return {"bit_depth": depth, "steps": (2.0 ** (depth - 1) + 1).astype(np.float32)}

    def reported(self, columns: Columns) -> Columns:  # noqa: D102
        return {"bit_depth": columns["bit_depth"]}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        steps = rows.columns["steps"]
        return scaled(rows, steps).round_().div_(steps[:, None])


def _percentiles(rows: Rows, *percents: npt.NDArray[np.float64], absolute: bool) -> list[torch.Tensor]:
    """Percentiles of each clip's own samples as `numpy.percentile` gives them, float32 [shape=(R,)] each."""
    values = rows.audio
    last = rows.host["stop"] - rows.host["start"] - 1
    places = [percent / 100 * last for percent in percents]
    lower = [np.floor(place).astype(np.int64) for place in places]
    upper = [np.minimum(index + 1, last) for index in lower]
    if values.device.type == "cpu":
        from avloader.augment import loops

        bits = np.empty((len(values), 2 * len(places)), np.int32)
        ranks = np.stack([*lower, *upper], axis=1)
        samples = values.numpy().view(np.int32)
        loops.order_statistics(samples, rows.host["start"], rows.host["stop"], ranks, absolute, bits)
        near = list(torch.from_numpy(bits.view(np.float32)).unbind(1))
    else:
        t = rows.positions()
        outside = (t < rows.start[:, None]) | (t >= rows.stop[:, None])
        values = values.abs() if absolute else values
        ordered = values.masked_fill(outside, float("inf")).sort(dim=1).values
        wanted_places = np.stack([*lower, *upper], axis=1)
        index_tensor = torch.from_numpy(wanted_places).pin_memory().to(values.device, non_blocking=True)
        near = list(ordered.gather(1, index_tensor).unbind(1))
    result = []
    for number, (place, index) in enumerate(zip(places, lower, strict=True)):
        fraction = torch.from_numpy(place - index)
        if values.device.type != "cpu":
            fraction = fraction.pin_memory().to(values.device, non_blocking=True)
        low, high = near[number].double(), near[number + len(lower)].double()
        result.append((low + (high - low) * fraction).float())
    return result


@dataclass(frozen=True, kw_only=True)
class ClippingDistortion(Transform):
    """Cut off the greatest and the least samples, a share of each.

    Args:
        min_percentile_threshold: Least share of both together, whole percents in [0, 100].
        max_percentile_threshold: Greatest share.
        p: See `Node`.
        name: See `Node`.

    Returns ``percentile_threshold``; half of it, rounded down, is cut off at each end.
    """

    min_percentile_threshold: int = 0
    max_percentile_threshold: int = 40

    num_words = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("min_percentile_threshold", self.min_percentile_threshold, 0)
        check_integer("max_percentile_threshold", self.max_percentile_threshold, 0)
        check_range(self, "min_percentile_threshold", "max_percentile_threshold", 0, 100)

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        most = self.max_percentile_threshold
        return {"percentile_threshold": draw.integers(1, self.min_percentile_threshold, most + 1)}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        share = (rows.host["percentile_threshold"] // 2).astype(np.float64)
        low, high = _percentiles(rows, share, 100 - share, absolute=False)
        return rows.silence_outside(_clipped(rows, low, high))


@dataclass(frozen=True, kw_only=True)
class TanhDistortion(Transform):
    """``tanh(gain * x)``, the RMS of the clip kept.

    The gain takes to 0.5 the percentile 100 - 99 * distortion_amount of the absolute values.

    Args:
        min_distortion: Least amount, in [0, 1].
        max_distortion: Greatest amount.
        p: See `Node`.
        name: See `Node`.

    Returns ``distortion_amount``.
    """

    min_distortion: float = 0.01
    max_distortion: float = 0.7

    num_words = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_distortion", "max_distortion", 0, 1)

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        return {
            "distortion_amount": draw.uniform(1, self.min_distortion, self.max_distortion),
            "bits": bits_for(clips.length),
        }

    def reported(self, columns: Columns) -> Columns:  # noqa: D102
        return {"distortion_amount": columns["distortion_amount"]}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        (threshold,) = _percentiles(rows, 100 - 99 * rows.host["distortion_amount"], absolute=True)
        distorted = scaled(rows, 0.5 / (threshold + 1e-6)).tanh_()
        before = energy(rows.audio, rows.columns["bits"]).value()
        after = energy(distorted, rows.columns["bits"]).value()
        gain = (before / after).sqrt_().nan_to_num_(1.0, 1.0).float()
        return distorted.mul_(gain[:, None])


@dataclass(frozen=True, kw_only=True)
class Normalize(Transform):
    """Scale each clip to a fixed level; silent clips stay silent.

    Args:
        to: ``"peak"``: the greatest absolute sample becomes `level`; ``"rms"``: the root of the mean square does.
        level: The level, above 0.
        p: See `Node`.
        name: See `Node`.
    """

    p: float = 1.0
    to: Literal["peak", "rms"] = "peak"
    level: float = 1.0

    is_loop = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("to", self.to, ("peak", "rms"))
        check_number("level", self.level, low=1e-6)

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        return {"length": clips.length, "bits": bits_for(clips.length)}

    def reported(self, columns: Columns) -> Columns:  # noqa: D102
        return {}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        if self.to == "peak":
            now = peaks(rows.audio).double()
        else:
            now = (energy(rows.audio, rows.columns["bits"]).value() / rows.columns["length"]).sqrt_()
        gain = torch.where(now > 0, self.level / now, 1.0).float()
        return scaled(rows, gain)
