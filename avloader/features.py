"""Features of sound as DALI nodes, numerically equal to librosa's.

The options keep librosa's names, defaults and meaning. An STFT column is a *hop*; a *frame* is a picture. Every feature
maps sound [shape=(num_samples,)] to float32 [shape=(num_bins, num_hops)] on either device.

DALI is imported when a node is built, not before.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

__all__ = [
    "MFCC",
    "Decibels",
    "Feature",
    "Ln",
    "Log10",
    "MelSpectrogram",
    "Scale",
    "Spectrogram",
]

Window = str | Sequence[str | float]
"""A window's name, its name and parameters such as ``("kaiser", 8.0)``, or `win_length` weights."""

_LEAST = float(np.finfo(np.float32).tiny)  # a smaller clamp would be 0 in float32 and its logarithm infinite


def _check_integer(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r} must be an integer")
    if value < minimum:
        raise ValueError(f"{name}={value} must be at least {minimum}")


def _check_number(name: str, value: object, minimum: float, *, above: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} must be a number")
    if not math.isfinite(value) or value < minimum or (above and value == minimum):
        raise ValueError(f"{name}={value} must be finite and {'above' if above else 'at least'} {minimum:g}")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")


@dataclass(frozen=True, kw_only=True)
class Decibels:
    """``10 log10(max(x + add, amin) / max(ref, amin))`` of power x, ``20 log10(...)`` of amplitude x.

    librosa's `power_to_db` and `amplitude_to_db`.

    Args:
        ref: The power (amplitude) that is 0 dB, above 0, or ``"max"``: the greatest of each clip.
        amin: Smaller values are raised to this, 1.2e-38 or more. None: 1e-10 for power, 1e-5 for amplitude.
        add: Added to every value before that, at least 0.
        top_db: Nothing lies further than this below the greatest value of its clip; None: no such limit.
    """

    ref: float | Literal["max"] = 1.0
    amin: float | None = None
    add: float = 0.0
    top_db: float | None = 80.0

    def __post_init__(self) -> None:
        if isinstance(self.ref, str):
            _check_choice("ref", self.ref, ("max",))
        else:
            _check_number("ref", self.ref, 0, above=True)
        if self.amin is not None:
            _check_number("amin", self.amin, _LEAST)
        _check_number("add", self.add, 0)
        if self.top_db is not None:
            _check_number("top_db", self.top_db, 0)

    def _apply(self, values: DataNode, power: int) -> DataNode:
        from nvidia.dali import fn
        from nvidia.dali import math as dali_math

        factor = 20.0 / power
        amin = self.amin if self.amin is not None else 1e-10 ** (power / 2)
        decibels = factor * dali_math.log10(dali_math.max(values + self.add, np.float32(amin)))
        if self.ref == "max":
            decibels -= factor * dali_math.log10(dali_math.max(fn.reductions.max(values), np.float32(amin)))
        else:
            decibels -= factor * math.log10(max(self.ref, amin))
        if self.top_db is None:
            return decibels
        return dali_math.max(decibels, fn.reductions.max(decibels) - self.top_db)


@dataclass(frozen=True, kw_only=True)
class _Logarithm:
    amin: float = 1e-10
    add: float = 0.0

    def __post_init__(self) -> None:
        _check_number("amin", self.amin, _LEAST)
        _check_number("add", self.add, 0)

    def _clamped(self, values: DataNode) -> DataNode:
        from nvidia.dali import math as dali_math

        return dali_math.max(values + self.add, np.float32(self.amin))


@dataclass(frozen=True, kw_only=True)
class Ln(_Logarithm):
    """``ln(max(x + add, amin))``: ``Ln(add=1e-6)`` is ln(x + 1e-6).

    Args:
        amin: Smaller values are raised to this, 1.2e-38 or more.
        add: Added to every value before that, at least 0.
    """

    def _apply(self, values: DataNode, power: int) -> DataNode:
        from nvidia.dali import math as dali_math

        return dali_math.log(self._clamped(values))


@dataclass(frozen=True, kw_only=True)
class Log10(_Logarithm):
    """``log10(max(x + add, amin))``: ``Log10(amin=1e-10)`` is log10(max(x, 1e-10)).

    Args:
        amin: Smaller values are raised to this, 1.2e-38 or more.
        add: Added to every value before that, at least 0.
    """

    def _apply(self, values: DataNode, power: int) -> DataNode:
        from nvidia.dali import math as dali_math

        return dali_math.log10(self._clamped(values))


Scale = Decibels | Ln | Log10


@dataclass(frozen=True, kw_only=True)
class Feature(ABC):
    """What the features have in common: the short-time Fourier transform under them."""

    n_fft: int = 2048
    hop_length: int = 512
    win_length: int | None = None
    window: Window = "hann"
    center: bool = True
    pad_mode: Literal["constant", "reflect"] = "constant"
    power: int = 2
    scale: Scale | None = None

    def __post_init__(self) -> None:
        _check_integer("n_fft", self.n_fft, 2)
        _check_integer("hop_length", self.hop_length, 1)
        if self.win_length is not None:
            _check_integer("win_length", self.win_length, 1)
            if self.win_length > self.n_fft:
                raise ValueError(f"win_length={self.win_length} must be at most n_fft={self.n_fft}")
        _check_choice("pad_mode", self.pad_mode, ("constant", "reflect"))
        _check_choice("power", self.power, (1, 2))
        if self.scale is not None and not isinstance(self.scale, (Decibels, Ln, Log10)):
            raise TypeError(f"scale={self.scale!r} must be Decibels(...), Ln(...), Log10(...) or None")
        if not isinstance(self.window, str):
            if not isinstance(self.window, (Sequence, np.ndarray)):
                raise TypeError(f"window={self.window!r} must be a name, a tuple of name and parameters, or weights")
            # A tuple keeps the options hashable and equal to their like.
            object.__setattr__(self, "window", tuple(self.window))
        _window_weights(self.window, self.win_length or self.n_fft, self.n_fft)

    @property
    @abstractmethod
    def num_bins(self) -> int:
        """Rows of the result."""

    def num_hops(self, num_samples: int) -> int:
        """Columns of the result for that many samples of sound.

        Raises:
            ValueError: If there are too few: none, or without `center` less than `n_fft`.
        """
        _check_integer("num_samples", num_samples, 1 if self.center else self.n_fft)
        padding = 2 * (self.n_fft // 2) if self.center else 0
        return 1 + (num_samples + padding - self.n_fft) // self.hop_length

    @abstractmethod
    def build(self, audio: DataNode, *, device: Literal["cpu", "gpu"], sample_rate: int) -> DataNode:
        """The feature as a node of the pipeline under definition.

        Args:
            audio: Sound, float32 [shape=(num_samples,)], on the CPU or on `device`; num_samples as in `num_hops`.
            device: Where the feature is computed.
            sample_rate: Samples per second.

        Returns:
            float32 [shape=(num_bins, num_hops)] on `device`. Each clip's result depends on that clip alone.

        Raises:
            ValueError: If an option does not go with the sample rate.
        """

    def _stft(self, audio: DataNode, device: str) -> DataNode:
        from nvidia.dali import fn

        _check_choice("device", device, ("cpu", "gpu"))
        # The weights are centred in n_fft samples here, as librosa does, and are never DALI's own (half a sample off).
        spectrogram = fn.spectrogram(
            audio.gpu() if device == "gpu" else audio,
            nfft=self.n_fft,
            window_length=self.n_fft,
            window_step=self.hop_length,
            window_fn=_window_weights(self.window, self.win_length or self.n_fft, self.n_fft).tolist(),
            center_windows=self.center,
            reflect_padding=self.pad_mode == "reflect",
            power=int(self.power),
        )
        if self.center and self.n_fft % 2:
            # DALI centres an odd window on every multiple of the hop up to num_samples inclusive, librosa short of it.
            num_samples = audio.shape()[0]  # DALI's method has no annotations
            spectrogram = spectrogram[:, : (num_samples - 1) // self.hop_length + 1]
        return spectrogram

    def _scaled(self, values: DataNode) -> DataNode:
        return values if self.scale is None else self.scale._apply(values, self.power)


@dataclass(frozen=True, kw_only=True)
class Spectrogram(Feature):
    """Amplitude or power of the short-time Fourier transform: ``abs(librosa.stft(...)) ** power``.

    Args:
        n_fft: Samples of a transform, 2 or more.
        hop_length: Samples from one hop to the next, 1 or more.
        win_length: Samples under the window, which stands in the middle of `n_fft`; None: `n_fft`.
        window: A name that `scipy.signal.get_window` knows, or a tuple of the name and its parameters such as
            ``("kaiser", 8.0)``, or a sequence of `win_length` weights.
        center: Hop t is centred on sample t * hop_length, the sound padded at both ends; else it starts there.
        pad_mode: ``"constant"`` pads with zeros, ``"reflect"`` mirrors the sound at its first and last sample.
        power: 1 for amplitude, 2 for power.
        scale: `Decibels`, `Ln`, `Log10`, or None to leave it linear.
    """

    @property
    def num_bins(self) -> int:
        """``n_fft // 2 + 1``."""
        return self.n_fft // 2 + 1

    def build(self, audio: DataNode, *, device: Literal["cpu", "gpu"], sample_rate: int) -> DataNode:  # noqa: D102
        return self._scaled(self._stft(audio, device))


@dataclass(frozen=True, kw_only=True)
class _MelFeature(Feature):
    n_mels: int = 128
    fmin: float = 0.0
    fmax: float | None = None
    htk: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_integer("n_mels", self.n_mels, 1)
        _check_number("fmin", self.fmin, 0)
        if self.fmax is not None:
            _check_number("fmax", self.fmax, self.fmin, above=True)

    def _mel(self, audio: DataNode, device: str, sample_rate: int, norm: str | None) -> DataNode:
        from nvidia.dali import fn

        _check_integer("sample_rate", sample_rate, 1)
        fmax = self.fmax if self.fmax is not None else sample_rate / 2
        if not self.fmin < fmax <= sample_rate / 2:
            name = "fmin" if self.fmax is None else "fmax"
            raise ValueError(
                f"{name}={getattr(self, name)} must be {'below' if self.fmax is None else 'at most'} half of the "
                f"sample rate, {sample_rate / 2:g} Hz"
            )
        # DALI infers n_fft from the number of bins, which is one too few if n_fft is odd; only their spacing matters.
        num_fft = 2 * (self.n_fft // 2)
        return fn.mel_filter_bank(
            self._stft(audio, device),
            sample_rate=sample_rate * num_fft / self.n_fft,
            nfilter=self.n_mels,
            freq_low=float(self.fmin),
            freq_high=float(fmax),
            mel_formula="htk" if self.htk else "slaney",
            normalize=norm == "slaney",
        )


@dataclass(frozen=True, kw_only=True)
class MelSpectrogram(_MelFeature):
    """Spectrogram in mel bands: `librosa.feature.melspectrogram`, then `scale`.

    Args:
        n_fft: Samples of a transform, 2 or more.
        hop_length: Samples from one hop to the next, 1 or more.
        win_length: Samples under the window, which stands in the middle of `n_fft`; None: `n_fft`.
        window: A name, a tuple of name and parameters, or `win_length` weights; see `Spectrogram`.
        center: Hop t is centred on sample t * hop_length, the sound padded at both ends; else it starts there.
        pad_mode: ``"constant"`` pads with zeros, ``"reflect"`` mirrors the sound at its first and last sample.
        power: 1 for amplitude, 2 for power.
        scale: `Decibels`, `Ln`, `Log10`, or None to leave it linear.
        n_mels: Bands.
        fmin: Lower edge of the lowest band in Hz.
        fmax: Upper edge of the highest band in Hz; None: half of the sample rate.
        htk: The HTK formula of the mel scale; else Slaney's.
        norm: ``"slaney"``: each band has area 1; None: each has height 1.
    """

    norm: Literal["slaney"] | None = "slaney"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("norm", self.norm, ("slaney", None))

    @property
    def num_bins(self) -> int:
        """`n_mels`."""
        return self.n_mels

    def build(self, audio: DataNode, *, device: Literal["cpu", "gpu"], sample_rate: int) -> DataNode:  # noqa: D102
        return self._scaled(self._mel(audio, device, sample_rate, self.norm))


@dataclass(frozen=True, kw_only=True)
class MFCC(_MelFeature):
    """Mel-frequency cepstral coefficients: `librosa.feature.mfcc`, the cosine transform of the scaled mel bands.

    Args:
        n_fft: Samples of a transform, 2 or more.
        hop_length: Samples from one hop to the next, 1 or more.
        win_length: Samples under the window, which stands in the middle of `n_fft`; None: `n_fft`.
        window: A name, a tuple of name and parameters, or `win_length` weights; see `Spectrogram`.
        center: Hop t is centred on sample t * hop_length, the sound padded at both ends; else it starts there.
        pad_mode: ``"constant"`` pads with zeros, ``"reflect"`` mirrors the sound at its first and last sample.
        power: 1 for amplitude, 2 for power.
        scale: What the cosine transform sees; ``Decibels()`` is librosa's.
        n_mels: Bands.
        fmin: Lower edge of the lowest band in Hz.
        fmax: Upper edge of the highest band in Hz; None: half of the sample rate.
        htk: The HTK formula of the mel scale; else Slaney's.
        mel_norm: ``"slaney"``: each band has area 1; None: each has height 1.
        n_mfcc: Coefficients, at most `n_mels`.
        dct_type: 1, 2 or 3.
        norm: ``"ortho"``: an orthonormal transform (not for type 1); None: as `scipy.fft.dct` does by default.
        lifter: Coefficient k (from 1) is weighted by 1 + lifter / 2 * sin(pi * k / lifter); 0: not at all.
    """

    scale: Scale | None = Decibels()
    n_mfcc: int = 20
    dct_type: Literal[1, 2, 3] = 2
    norm: Literal["ortho"] | None = "ortho"
    lifter: float = 0.0
    mel_norm: Literal["slaney"] | None = "slaney"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_integer("n_mfcc", self.n_mfcc, 1)
        if self.n_mfcc > self.n_mels:
            raise ValueError(f"n_mfcc={self.n_mfcc} must be at most n_mels={self.n_mels}")
        _check_choice("dct_type", self.dct_type, (1, 2, 3))
        _check_choice("norm", self.norm, ("ortho", None))
        _check_choice("mel_norm", self.mel_norm, ("slaney", None))
        _check_number("lifter", self.lifter, 0)
        if self.dct_type == 1 and self.norm is not None:
            raise ValueError("norm='ortho' does not go with dct_type=1; pass norm=None")
        if self.dct_type == 1 and self.n_mels < 2:
            raise ValueError(f"dct_type=1 needs n_mels of at least 2, not {self.n_mels}")

    @property
    def num_bins(self) -> int:
        """`n_mfcc`."""
        return self.n_mfcc

    def build(self, audio: DataNode, *, device: Literal["cpu", "gpu"], sample_rate: int) -> DataNode:  # noqa: D102
        from nvidia.dali import fn

        coefficients = fn.mfcc(
            self._scaled(self._mel(audio, device, sample_rate, self.mel_norm)),
            n_mfcc=self.n_mfcc,
            dct_type=self.dct_type,
            normalize=self.norm == "ortho",
            lifter=float(self.lifter),
        )
        # Without a norm DALI's sums are half of scipy's, for every type.
        return coefficients if self.norm == "ortho" else 2.0 * coefficients


@functools.lru_cache(maxsize=64)
def _window_weights(window: Window, win_length: int, n_fft: int) -> npt.NDArray[np.float32]:
    """The window's weights in the middle of `n_fft` samples, zeros around them."""
    import librosa

    if isinstance(window, tuple) and not any(isinstance(value, str) for value in window):
        if len(window) != win_length:
            raise ValueError(f"window has {len(window)} weights, but must have win_length={win_length}")
        weights = np.asarray(window, np.float64)
        if not np.isfinite(weights).all():
            raise ValueError("window has a weight that is not finite")
    else:
        try:
            weights = librosa.filters.get_window(window, win_length, fftbins=True)
        except (TypeError, ValueError, librosa.ParameterError) as error:
            raise ValueError(f"window={window!r} must be a window of scipy.signal.get_window: {error}") from error
    left = (n_fft - win_length) // 2
    return np.pad(weights, (left, n_fft - win_length - left)).astype(np.float32)
