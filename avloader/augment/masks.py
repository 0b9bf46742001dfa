"""Masks: time masks on sound, time and frequency masks on spectrograms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from avloader.augment.base import FeatureTransform, Transform, augment_features
from avloader.augment.checks import check_choice, check_integer, check_number, check_range
from avloader.augment.keys import ClipKeys, Draw
from avloader.augment.rows import Clips, Columns, Rows

__all__ = ["SpecAugment", "TimeMask"]

_FADE = -0.70912  # https://signalsmith-audio.co.uk/writing/2021/cheap-energy-crossfade/, equal gain


@dataclass(frozen=True, kw_only=True)
class TimeMask(Transform):
    """Silence a stretch of each clip.

    Args:
        min_band_part: Least part of the clip, in [0, 1].
        max_band_part: Greatest part.
        fade_duration: Seconds over which the sound fades out and in, inside the stretch.
        mask_location: Where: ``"start"``, ``"end"``, ``"random"``.
        p: See `Node`.
        name: See `Node`.

    Returns ``t0``, the stretch's first sample, and ``t``, its length.
    """

    min_band_part: float = 0.01
    max_band_part: float = 0.2
    fade_duration: float = 0.005
    mask_location: Literal["start", "end", "random"] = "random"

    num_words = 2
    takes_scale = True
    is_loop = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_band_part", "max_band_part", 0, 1)
        check_number("fade_duration", self.fade_duration, 0)
        check_choice("mask_location", self.mask_location, ("start", "end", "random"))

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        least, most = ((clips.length * part).astype(np.int64) for part in (self.min_band_part, self.max_band_part))
        t = draw.integers(1, least, most + 1)
        room = clips.length - t
        place = {"start": np.zeros_like(t), "end": room, "random": draw.integers(2, 0, room + 1)}
        return {"t": t, "t0": clips.start + place[self.mask_location]}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        most = round(rows.sample_rate * self.fade_duration)
        if not rows.audio.is_cuda:
            from avloader.augment import loops

            result, host = rows.empty(), rows.host
            fade = np.minimum(host["t"] // 2, most)
            shape = np.float32(_FADE)
            loops.time_mask(rows.audio.numpy(), host["scale"], host["t0"], host["t"], fade, shape, result.numpy())
            return result
        length, first = rows.columns["t"].int()[:, None], rows.columns["t0"].int()[:, None]
        fades = (length // 2).clamp_(max=most)
        has_fade = fades >= 2
        lead, steps = torch.where(has_fade, 0, 1), torch.where(has_fade, fades - 1, 1)
        positions = rows.positions()
        # How far inside the stretch, as a part of the fade: 0 at its edge and outside, 1 where it is silent.
        inside = torch.minimum(positions - first, first + length - 1 - positions)
        depth = ((inside + lead) / steps).clamp_(0, 1)
        rest = 1 - depth
        product = depth * rest
        curve = (product * (1 + _FADE * product)).add_(rest).square_().mul_(rows.columns["scale"][:, None])
        return torch.mul(rows.audio, curve, out=rows.empty())


@dataclass(frozen=True, kw_only=True)
class SpecAugment(FeatureTransform):
    """Mask bands and stretches of spectrograms (Park et al., 2019), without time warping, which would break sync.

    Widths are uniform in [0, param], places uniform where the mask fits, as `torchaudio.transforms.SpecAugment` with
    ``iid_masks=True``. Time masks stay inside the clip's own hops. In a loader it works on the batch's spectrogram, by
    itself on any tensor.

    Args:
        n_time_masks: Stretches of time.
        time_mask_param: Greatest width of one, hops.
        n_freq_masks: Bands of frequency.
        freq_mask_param: Greatest width of one, bins.
        max_time_part: A time mask is no wider than this part of the clip, in (0, 1].
        value: What masked values become: a number, or ``"mean"`` of the clip's own hops, or ``"min"`` of them.
        p: See `Node`.
        name: See `Node`.

    Returns ``time_start``, ``time_width``, ``freq_start``, ``freq_width`` [shape=(B, n)].
    """

    p: float = 1.0
    n_time_masks: int = 2
    time_mask_param: int = 100
    n_freq_masks: int = 2
    freq_mask_param: int = 27
    max_time_part: float = 1.0
    value: float | Literal["mean", "min"] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("n_time_masks", "time_mask_param", "n_freq_masks", "freq_mask_param"):
            check_integer(field, getattr(self, field), 0)
        check_number("max_time_part", self.max_time_part, 0, 1)
        if isinstance(self.value, str):
            check_choice("value", self.value, ("mean", "min"))
        else:
            check_number("value", self.value)

    @property
    def num_words(self) -> int:  # type: ignore[override]  # as many as there are masks
        """Random words a clip."""
        return 2 * (self.n_time_masks + self.n_freq_masks)

    def draw_features(  # noqa: D102
        self, draw: Draw, active: npt.NDArray[np.bool_], num_bins: int, num_hops: npt.NDArray[np.int64]
    ) -> Columns:
        cap = np.minimum((num_hops * self.max_time_part).astype(np.int64), self.time_mask_param)
        bins = np.full(len(active), num_bins)
        result: Columns = {}
        word = 1
        for kind, count, most, length in (
            ("time", self.n_time_masks, cap, num_hops),
            ("freq", self.n_freq_masks, np.minimum(bins, self.freq_mask_param), bins),
        ):
            starts, widths = np.zeros((len(active), count), np.int64), np.zeros((len(active), count), np.int64)
            for number in range(count):
                width = np.where(active, draw.integers(word, 0, most + 1), 0)
                widths[:, number] = width
                starts[:, number] = draw.integers(word + 1, 0, length - width + 1)
                word += 2
            result |= {f"{kind}_start": starts, f"{kind}_width": widths}
        return result

    def __call__(  # type: ignore[override]  # of spectrograms, not of sound
        self, spectrogram: torch.Tensor, *, keys: ClipKeys, num_hops: npt.ArrayLike | None = None
    ) -> torch.Tensor:
        """A masked copy.

        Args:
            spectrogram: float32 [shape=(B, bins, hops)], on CPU or GPU.
            keys: Which clips these are.
            num_hops: Hops of each clip [shape=(B,)], on the CPU; None: all.
        """
        return augment_features(self, spectrogram, keys=keys, num_hops=num_hops)[0]

    def apply_to_features(self, features: torch.Tensor, columns: dict[str, torch.Tensor]) -> torch.Tensor:  # noqa: D102
        size, num_bins, most = features.shape
        masked = torch.zeros((), dtype=torch.bool, device=features.device)
        for kind, length, shape in (("time", most, (size, 1, most)), ("freq", num_bins, (size, num_bins, 1))):
            index = torch.arange(length, device=features.device)
            first = columns[f"{kind}_start"][:, :, None]
            hit = ((index >= first) & (index < first + columns[f"{kind}_width"][:, :, None])).any(dim=1)
            masked = masked | hit.view(shape)
        return torch.where(masked, self._value(features, columns["num_hops"]), features)

    def _value(self, spectrogram: torch.Tensor, num_hops: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.value, str):
            return torch.full((), self.value, dtype=spectrogram.dtype, device=spectrogram.device)
        beyond = torch.arange(spectrogram.shape[2], device=spectrogram.device) >= num_hops[:, None, None]
        if self.value == "min":
            return spectrogram.masked_fill(beyond, float("inf")).amin(dim=(1, 2), keepdim=True)
        # In whole numbers, so that the mean does not depend on the order of adding.
        whole = (spectrogram.double() * 2.0**24).round_().to(torch.int64).masked_fill_(beyond, 0)
        count = (num_hops * spectrogram.shape[1]).double()
        return (whole.sum(dim=(1, 2)) / count / 2.0**24).float()[:, None, None]
