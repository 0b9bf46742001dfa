"""Noise and other sound mixed in at an exact level.

The level is ``gain = ratio * sqrt(Ex / En)`` with the energies Ex of the clip and En of the very stretch of noise that
is mixed in, over the clip's own samples. Nothing is mixed in where either is silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from avloader.augment.bank import SoundBank
from avloader.augment.base import Transform
from avloader.augment.checks import check_choice, check_range
from avloader.augment.convolve import convolve
from avloader.augment.energy import Energy, bits_for, energy
from avloader.augment.keys import Draw, white_noise
from avloader.augment.rows import Clips, Columns, Rows

__all__ = ["AddBackgroundNoise", "AddColorNoise", "Mix"]

_DECIBELS_AN_OCTAVE = 20 * np.log10(2.0)  # of an amplitude proportional to frequency
_COLOR_FFT = 2048


def _gain(columns: dict[str, torch.Tensor], of_sound: Energy | None, noise_energy: torch.Tensor) -> torch.Tensor:
    """The factor of the noise, float64 [shape=(R,)]; on the CPU."""
    target = columns["energy"] if of_sound is None else of_sound.value() * columns["scale"].double().square()
    return torch.where((noise_energy > 0) & (target > 0), columns["ratio"] * (target / noise_energy).sqrt_(), 0.0)


@dataclass(frozen=True, kw_only=True)
class _Noise(Transform):
    """What is mixed in at a signal-to-noise ratio."""

    takes_scale = True
    _private: ClassVar[tuple[str, ...]] = ("ratio", "bits", "energy", "first", "length", "noise_key", "taps", "step")

    def reported(self, columns: Columns) -> Columns:
        """The columns to return."""
        return {key: column for key, column in columns.items() if key not in self._private}

    def measured(self, num_samples: int) -> dict[str, tuple[int, ...]]:
        """The noise's gain."""
        return {"gain": ()}


@dataclass(frozen=True)
class _FromBank(_Noise):
    sounds: SoundBank

    num_words = 3
    is_loop = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.sounds, SoundBank):
            raise TypeError(f"sounds={self.sounds!r} must be a SoundBank")

    def _draw_span(self, draw: Draw, clips: Clips) -> Columns:
        bank = self.sounds
        if bank.sample_rate != clips.sample_rate:
            raise ValueError(
                f"the bank has sample_rate={bank.sample_rate}, but the sound has {clips.sample_rate}; "
                "make the bank with the same"
            )
        sound = draw.integers(1, 0, len(bank))
        places = bank.places(sound)
        length = places["length"]
        # Any stretch of a sound that is long enough; a shorter one is repeated, beginning anywhere in it.
        offset = draw.integers(2, 0, np.where(length >= clips.length, length - clips.length + 1, length))
        return {"sound": sound, "offset": offset, "bits": bits_for(clips.length), "step": bank.step(sound), **places}

    def _mix_in(self, rows: Rows, *, return_noise: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The mix and, with `return_noise`, the noise as it was mixed in; "gain" is returned."""
        if not rows.audio.is_cuda:
            return self._mix_in_place(rows, return_noise=return_noise)
        from avloader.augment import kernels

        columns = rows.columns
        mixed, noise, rows.returned["gain"] = kernels.mix_span(
            rows.audio,
            *self.sounds.spans(rows.host, columns | {"start": rows.start}, rows.audio.shape[1], rows.audio.device),
            rows.start,
            rows.stop,
            bits=columns["bits"],
            scale=columns["scale"],
            ratio=columns["ratio"],
            energy=columns.get("energy"),
            step=columns["step"],
            return_noise=return_noise,
        )
        return mixed, noise

    def _mix_in_place(self, rows: Rows, *, return_noise: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The same on the CPU, straight from the bank."""
        from avloader.augment import loops

        columns, host, samples = rows.columns, rows.host, self.sounds.samples
        first, length, offset = host["first"], host["length"], host["offset"]
        sums = np.empty(len(first), np.int64)
        loops.span_energies(samples, first, length, offset, host["start"], host["stop"], sums)
        of_sound = None if "energy" in columns else energy(rows.audio, columns["bits"])
        gain = _gain(columns, of_sound, torch.from_numpy(sums).double())
        mixed = rows.empty()
        noise = torch.empty_like(rows.audio) if return_noise else rows.audio.new_empty(0, 0)
        loops.mix_span(
            rows.audio.numpy(),
            host["scale"],
            samples,
            first,
            length,
            offset,
            host["start"],
            host["stop"],
            gain.float().numpy(),
            mixed.numpy(),
            noise.numpy(),
        )
        rows.returned["gain"] = gain / columns["step"]
        return mixed, noise


@dataclass(frozen=True, kw_only=True)
class AddBackgroundNoise(_FromBank):
    """Mix in a stretch of a random sound, at an exact signal-to-noise ratio.

    Args:
        sounds: The noises; a noise shorter than the clip is repeated.
        min_snr_db: Least ratio of the clip's energy to the noise's, in dB.
        max_snr_db: Greatest ratio.
        noise_rms: ``"relative"``: at that ratio; ``"absolute"``: at an RMS of its own, whatever the clip's.
        min_absolute_rms_db: Least RMS of the noise in dB relative to 1, if it is absolute.
        max_absolute_rms_db: Greatest RMS.
        return_noise: Return the noise as it was mixed in, too.
        p: See `Node`.
        name: See `Node`.

    Returns ``sound``, the noise's number in the bank; ``offset``, its sample under the clip's first; ``snr_db`` or
    ``rms_db``; ``gain``, its factor, 0 where the clip or the noise is silent; with `return_noise` ``noise``
    [shape=(B, N)], before any later transform.
    """

    min_snr_db: float = 3.0
    max_snr_db: float = 30.0
    noise_rms: Literal["relative", "absolute"] = "relative"
    min_absolute_rms_db: float = -45.0
    max_absolute_rms_db: float = -15.0
    return_noise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_snr_db", "max_snr_db")
        check_range(self, "min_absolute_rms_db", "max_absolute_rms_db")
        check_choice("noise_rms", self.noise_rms, ("relative", "absolute"))

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        columns = self._draw_span(draw, clips)
        if self.noise_rms == "relative":
            level = draw.uniform(3, self.min_snr_db, self.max_snr_db)
            return columns | {"snr_db": level, "ratio": 10.0 ** (-level / 20)}
        level = draw.uniform(3, self.min_absolute_rms_db, self.max_absolute_rms_db)
        return columns | {"rms_db": level, "ratio": 10.0 ** (level / 20), "energy": clips.length.astype(np.float64)}

    def measured(self, num_samples: int) -> dict[str, tuple[int, ...]]:  # noqa: D102
        return {"gain": (), "noise": (num_samples,)} if self.return_noise else {"gain": ()}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        mixed, noise = self._mix_in(rows, return_noise=self.return_noise)
        if self.return_noise:
            rows.returned["noise"] = noise
        return mixed


@dataclass(frozen=True, kw_only=True)
class Mix(_FromBank):
    """Mix each clip with a stretch of another sound and return both, for source separation.

    The other sound comes from a bank, not from the batch, so that a mixture does not depend on who is in the batch.

    Args:
        sounds: What to mix with.
        min_snr_db: Least ratio of the clip's energy to the other's, in dB.
        max_snr_db: Greatest ratio.
        p: See `Node`.
        name: See `Node`.

    Returns ``sound``, ``offset``, ``snr_db``, ``gain`` as `AddBackgroundNoise` does, and ``sources``
    [shape=(B, 2, N)]: the clip and the other sound, which add up to the mixture, before any later transform.
    """

    p: float = 1.0
    min_snr_db: float = 0.0
    max_snr_db: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_snr_db", "max_snr_db")

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        level = draw.uniform(3, self.min_snr_db, self.max_snr_db)
        return self._draw_span(draw, clips) | {"snr_db": level, "ratio": 10.0 ** (-level / 20)}

    def measured(self, num_samples: int) -> dict[str, tuple[int, ...]]:  # noqa: D102
        return {"gain": (), "sources": (2, num_samples)}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        mixed, noise = self._mix_in(rows, return_noise=True)
        rows.returned["sources"] = torch.stack([rows.audio * rows.columns["scale"][:, None], noise], dim=1)
        return mixed


@dataclass(frozen=True, kw_only=True)
class AddColorNoise(_Noise):
    """Mix in random noise of a colour, at an exact signal-to-noise ratio.

    Args:
        min_snr_db: Least ratio of the clip's energy to the noise's, in dB.
        max_snr_db: Greatest ratio.
        min_f_decay: Least slope of the noise's power spectrum in dB an octave: -6.02 is brown, -3.01 pink, 0 white,
            3.01 blue, 6.02 violet. The slope holds from 1/128 of the sample rate (125 Hz at 16 kHz) upwards.
        max_f_decay: Greatest slope.
        return_noise: Return the noise as it was mixed in, too.
        p: See `Node`.
        name: See `Node`.

    Returns ``snr_db``, ``f_decay``, ``gain``, and with `return_noise` ``noise`` [shape=(B, N)].
    """

    min_snr_db: float = 5.0
    max_snr_db: float = 40.0
    min_f_decay: float = -6.0
    max_f_decay: float = 6.0
    return_noise: bool = False

    num_words = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_snr_db", "max_snr_db")
        check_range(self, "min_f_decay", "max_f_decay", -24, 24)

    def draw(self, draw: Draw, clips: Clips) -> Columns:  # noqa: D102
        level = draw.uniform(1, self.min_snr_db, self.max_snr_db)
        decay = draw.uniform(2, self.min_f_decay, self.max_f_decay)
        columns: Columns = {
            "snr_db": level,
            "f_decay": decay,
            "ratio": 10.0 ** (-level / 20),
            "bits": bits_for(clips.length),
            "noise_key": draw.key(3),
        }
        return columns if self._is_white else columns | {"taps": _color_taps(decay)}

    @property
    def _is_white(self) -> bool:
        return self.min_f_decay == self.max_f_decay == 0

    def measured(self, num_samples: int) -> dict[str, tuple[int, ...]]:  # noqa: D102
        return {"gain": (), "noise": (num_samples,)} if self.return_noise else {"gain": ()}

    def apply(self, rows: Rows) -> torch.Tensor:  # noqa: D102
        num_samples, key = rows.audio.shape[1], rows.columns["noise_key"]
        if self._is_white:
            noise = white_noise(key, num_samples)
        else:
            # As much more at both ends as the filter reaches, so that the noise neither begins nor ends in the clip.
            half = _COLOR_FFT // 2 - 1
            wide = white_noise(key, num_samples + 2 * half)
            reach = torch.full((len(wide),), half, dtype=torch.int32, device=wide.device)
            whole = Rows(wide, rows.sample_rate, rows.start, rows.stop + 2 * half, rows.is_full, {}, {})
            whole.silence_outside(wide)
            noise = convolve(whole, rows.columns["taps"], half, reach)[:, half : half + num_samples].contiguous()
        noise = rows.silence_outside(noise)
        mixed, rows.returned["gain"] = self._mixed(rows, noise)
        if self.return_noise:
            rows.returned["noise"] = noise
        return mixed

    def _mixed(self, rows: Rows, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``scale * x + gain * noise`` and the gain; `noise` becomes gain * noise if it is returned."""
        columns = rows.columns
        bits, scale, ratio = columns["bits"], columns["scale"], columns["ratio"]
        of_sound, of_noise = energy(rows.audio, bits), energy(noise, bits)
        if noise.is_cuda:
            from avloader.augment import kernels

            return kernels.add_noise(
                rows.audio,
                (of_sound.sums, of_sound.peak),
                noise,
                (of_noise.sums, of_noise.peak),
                bits=bits,
                scale=scale,
                ratio=ratio,
                return_noise=self.return_noise,
            )
        from avloader.augment import loops

        gain = _gain(columns, of_sound, of_noise.value())
        result = rows.empty()
        loops.mix(rows.audio.numpy(), scale.numpy(), noise.numpy(), gain.float().numpy(), result.numpy())
        return result, gain


def _color_taps(decay: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Filters with so many dB an octave, zero phase [shape=(R, _COLOR_FFT - 1)]."""
    frequency = np.maximum(np.arange(_COLOR_FFT // 2 + 1), 1) / (_COLOR_FFT // 2)
    magnitude = frequency ** (decay[:, None] / _DECIBELS_AN_OCTAVE)
    magnitude /= np.sqrt(np.mean(magnitude**2, axis=1, keepdims=True))
    taps = np.roll(np.fft.irfft(magnitude, axis=1), _COLOR_FFT // 2 - 1, axis=1)[:, : _COLOR_FFT - 1]
    return (taps * np.hanning(_COLOR_FFT + 1)[1:-1]).astype(np.float32)
