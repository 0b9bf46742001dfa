"""Spectrograms, mel spectrograms and MFCC, numerically equal to librosa's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from avloader.features.banks import mel_bank
from avloader.features.base import Columns
from avloader.features.checks import check_choice, check_flag, check_integer, check_number
from avloader.features.nodes import constant_for
from avloader.features.scales import Decibels, Scale
from avloader.features.sound import edged, frames_of, mirrored, power_of_frames, with_edges
from avloader.features.transforms import Bank, spectrum

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

__all__ = ["MFCC", "MelSpectrogram", "Spectrogram", "window_weights"]

Window = str | Sequence[str | float]
"""A window's name, its name and parameters such as ``("kaiser", 8.0)``, or `win_length` weights."""


@dataclass(frozen=True, kw_only=True)
class _Spectral(Columns):
    """The short-time Fourier transform under a feature."""

    n_fft: int = 2048
    win_length: int | None = None
    window: Window = "hann"
    center: bool = True
    padding: int | None = None
    pad_mode: Literal["constant", "reflect"] = "constant"
    detrend: bool = False
    power: int = 2
    magnitude_add: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("n_fft", self.n_fft, 2)
        if self.win_length is not None:
            check_integer("win_length", self.win_length, 1)
            if self.win_length > self.n_fft:
                raise ValueError(f"win_length={self.win_length} must be at most n_fft={self.n_fft}")
        check_flag("center", self.center)
        if self.padding is not None:
            check_integer("padding", self.padding, 1)
            if not self.center or self.pad_mode != "reflect" or self.scope != "clip":
                raise ValueError(
                    f"padding={self.padding} needs center=True, pad_mode='reflect' and scope='clip'; else it is None"
                )
        check_choice("pad_mode", self.pad_mode, ("constant", "reflect"))
        check_flag("detrend", self.detrend)
        if self.detrend and (self.center or self.scope == "medium"):
            raise ValueError("detrend=True needs center=False and scope='clip'")
        check_choice("power", self.power, (1, 2))
        check_number("magnitude_add", self.magnitude_add, 0)
        if self.magnitude_add and self.power != 1:
            raise ValueError(f"magnitude_add={self.magnitude_add} needs power=1")
        if not isinstance(self.window, str):
            if not isinstance(self.window, (Sequence, np.ndarray)):
                raise TypeError(f"window={self.window!r} must be a name, a tuple of name and parameters, or weights")
            # A tuple keeps the options hashable and equal to their like.
            object.__setattr__(self, "window", tuple(self.window))
        window_weights(self.window, self.win_length or self.n_fft, self.n_fft)

    @property
    def _reach(self) -> tuple[int, int]:
        before = self.n_fft // 2 if self.center else 0
        return before, self.n_fft - before

    def _own_columns(self, num_samples: int) -> int:
        check_integer("num_samples", num_samples, 1 if self.center and self.padding is None else self._least_samples)
        padding = 0
        if self.center:
            padding = 2 * (self.n_fft // 2 if self.padding is None else self.padding)
        return 1 + (num_samples + padding - self.n_fft) // self.hop_length

    @property
    def _least_samples(self) -> int:
        """What the sound must have, where it is not padded with zeros or DALI does not do it."""
        return self.n_fft if self.padding is None else max(self.padding + 1, self.n_fft - 2 * self.padding)

    def _spectrogram(
        self,
        audio: DataNode,
        device: str,
        valid: DataNode | None,
        bands: Callable[[DataNode], DataNode] | None = None,
    ) -> DataNode:
        """Amplitude or power [shape=(n_fft // 2 + 1, num_columns)], or what `bands` makes of its bins."""
        from nvidia.dali import fn
        from nvidia.dali import math as dali_math

        audio = self._sound(audio, device)
        weights = window_weights(self.window, self.win_length or self.n_fft, self.n_fft)
        center = self.center
        if self.scope == "medium":
            if valid is not None:
                audio = with_edges(audio, valid[0], valid[1], mirror=self.pad_mode == "reflect")
            if self.preemphasis:
                audio = audio[1:]  # was there for the sample after it
            center = False
        elif self.padding is not None:
            audio, center = mirrored(audio, self.padding), False
        power = 2 if self.magnitude_add else int(self.power)
        # On the CPU each transform as a row takes a third less time, with the bands' own.
        is_turned = bands is not None and device == "cpu" and not self.detrend
        if self.detrend:
            num_columns = (audio.shape()[0] - self.n_fft) // self.hop_length + 1
            frames = frames_of(audio, num_columns, length=self.n_fft, hop_length=self.hop_length)
            spectrogram = power_of_frames(
                frames - fn.reductions.mean(frames, axes=[1], keep_dims=True), weights, self.n_fft
            )
            if power == 1:
                spectrogram = dali_math.sqrt(spectrogram)
        else:
            # The weights are centred in n_fft samples here, as librosa does, and are never DALI's own (half a sample
            # off).
            spectrogram = fn.spectrogram(
                audio,
                nfft=self.n_fft,
                window_length=self.n_fft,
                window_step=self.hop_length,
                window_fn=weights.tolist(),
                center_windows=center,
                reflect_padding=self.pad_mode == "reflect",
                power=power,
                layout="tf" if is_turned else "ft",
            )
        if self.magnitude_add:
            spectrogram = dali_math.sqrt(spectrogram + self.magnitude_add)
        if bands is not None:
            spectrogram = bands(spectrogram)
        if is_turned:
            spectrogram = fn.transpose(spectrogram, perm=[1, 0], output_layout="ft")
        if center and self.n_fft % 2:
            # DALI centres an odd window on every multiple of the hop up to num_samples inclusive, librosa short of it.
            num_samples = audio.shape()[0]  # DALI's method has no annotations
            spectrogram = spectrogram[:, : (num_samples - 1) // self.hop_length + 1]
        return self._cut(spectrogram)

    def _spectrum(
        self, audio: npt.NDArray[np.float32], valid: tuple[int, int] | None, bank: Bank | None = None
    ) -> npt.NDArray[np.float32]:
        """The same as `_spectrogram` on the CPU."""
        audio = self._heard(audio)
        if self.scope == "medium":
            if valid is not None:
                audio = edged(audio, valid, mirror=self.pad_mode == "reflect")
            if self.preemphasis:
                audio = audio[1:]  # was there for the sample after it
        elif self.center:
            padding = self.n_fft // 2 if self.padding is None else self.padding
            audio = np.pad(audio, padding, mode=self.pad_mode)
        return spectrum(
            audio,
            self._num_kept(1 + (len(audio) - self.n_fft) // self.hop_length),
            window=window_weights(self.window, self.win_length or self.n_fft, self.n_fft),
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            bank=bank,
            power=self.power,
            magnitude_add=self.magnitude_add,
            remove_mean=self.detrend,
        )

    def _levels(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return values if self.scale is None else self.scale.compute(values, self.power)

    def _scaled(self, values: DataNode) -> DataNode:
        return values if self.scale is None else self.scale.apply(values, self.power)


@dataclass(frozen=True, kw_only=True)
class Spectrogram(_Spectral):
    """Amplitude or power of the short-time Fourier transform: ``abs(librosa.stft(...)) ** power``.

    Beside these, the options of `Columns`: scope, scale, normalize and others.

    Args:
        n_fft: Samples of a transform, 2 or more.
        hop_length: Samples from one column to the next, 1 or more.
        win_length: Samples under the window, which stands in the middle of `n_fft`; None: `n_fft`.
        window: A name that `scipy.signal.get_window` knows, or a tuple of the name and its parameters such as
            ``("kaiser", 8.0)``, or a sequence of `win_length` weights.
        center: Hop t is centred on sample t * hop_length, the sound padded at both ends; else it starts there.
        padding: By so many samples, instead of ``n_fft // 2``; for ``pad_mode="reflect"``.
        pad_mode: ``"constant"`` pads with zeros, ``"reflect"`` mirrors the sound at its first and last sample.
        detrend: Each stretch under the window less its mean; for sound that is not centred.
        power: 1 for amplitude, 2 for power.
        magnitude_add: The amplitude is sqrt(power + magnitude_add).
        density: The power in a band of 1 Hz, of both signs of frequency: ``scipy.signal.spectrogram``'s scaling.
        average_pairs: Bin 0, then the means of bins 1 and 2, 3 and 4, and so on.
    """

    density: bool = False
    average_pairs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("density", self.density)
        check_flag("average_pairs", self.average_pairs)
        if self.density and (self.power != 2 or self.n_fft % 2):
            raise ValueError("density=True needs power=2 and an even n_fft")
        if self.average_pairs and self.n_fft % 4:
            raise ValueError(f"average_pairs=True needs an n_fft that is a multiple of 4, not {self.n_fft}")

    @property
    def num_bins(self) -> int:
        """``n_fft // 2 + 1``, or about half of that with `average_pairs`, times `stack`."""
        return (1 + self.n_fft // (4 if self.average_pairs else 2)) * self.stack

    def compute(  # noqa: D102
        self, audio: npt.NDArray[np.float32], *, sample_rate: int, valid: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        values = self._spectrum(audio, valid)
        if self.density:
            values *= self._density(sample_rate).astype(np.float32)
        if self.average_pairs:
            pairs = values[1:].reshape(self.n_fft // 4, 2, -1)
            values = np.concatenate([values[:1], pairs.mean(axis=1)])
        return self._completed(self._levels(values))

    def _density(self, sample_rate: int) -> npt.NDArray[np.float64]:
        """Factors of the bins [shape=(n_fft // 2 + 1, 1)]."""
        weights = window_weights(self.window, self.win_length or self.n_fft, self.n_fft).astype(np.float64)
        factor = np.full((self.n_fft // 2 + 1, 1), 2.0 / (sample_rate * np.sum(weights**2)))
        factor[[0, -1]] /= 2
        return factor

    def build(  # noqa: D102
        self, audio: DataNode, *, device: Literal["cpu", "gpu"], sample_rate: int, valid: DataNode | None = None
    ) -> DataNode:
        from nvidia.dali import fn

        values = self._spectrogram(audio, device, valid)
        if self.density:
            values = values * constant_for(values, self._density(sample_rate))
        if self.average_pairs:
            pairs = fn.reshape(values[1:], shape=[self.n_fft // 4, 2, -1], layout="")
            values = fn.cat(fn.reshape(values[:1], layout=""), fn.reductions.mean(pairs, axes=[1]), axis=0)
        return self._finished(self._scaled(values))


@dataclass(frozen=True, kw_only=True)
class _Mel(_Spectral):
    n_mels: int = 128
    fmin: float = 0.0
    fmax: float | None = None
    htk: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("n_mels", self.n_mels, 1)
        check_number("fmin", self.fmin, 0)
        if self.fmax is not None:
            check_number("fmax", self.fmax, self.fmin, above=True)

    def _bands_to(self, sample_rate: int) -> float:
        check_integer("sample_rate", sample_rate, 1)
        fmax = self.fmax if self.fmax is not None else sample_rate / 2
        if not self.fmin < fmax <= sample_rate / 2:
            name = "fmin" if self.fmax is None else "fmax"
            raise ValueError(
                f"{name}={getattr(self, name)} must be {'below' if self.fmax is None else 'at most'} half of the "
                f"sample rate, {sample_rate / 2:g} Hz"
            )
        return fmax

    def _bands(
        self, audio: npt.NDArray[np.float32], sample_rate: int, norm: str | None, valid: tuple[int, int] | None
    ) -> npt.NDArray[np.float32]:
        """The same as `_mel` on the CPU."""
        fmax = self._bands_to(sample_rate)
        bank = mel_bank(
            sample_rate=sample_rate,
            n_fft=self.n_fft,
            n_mels=self.n_mels,
            fmin=float(self.fmin),
            fmax=float(fmax),
            htk=self.htk,
            norm=norm,
        )
        return self._spectrum(audio, valid, bank)

    def _mel(
        self, audio: DataNode, device: str, sample_rate: int, norm: str | None, valid: DataNode | None
    ) -> DataNode:
        from nvidia.dali import fn

        fmax = self._bands_to(sample_rate)
        # DALI infers n_fft from the number of bins, which is one too few if n_fft is odd; only their spacing matters.
        num_fft = 2 * (self.n_fft // 2)
        bands = functools.partial(
            fn.mel_filter_bank,
            sample_rate=sample_rate * num_fft / self.n_fft,
            nfilter=self.n_mels,
            freq_low=float(self.fmin),
            freq_high=float(fmax),
            mel_formula="htk" if self.htk else "slaney",
            normalize=norm == "slaney",
        )
        return self._spectrogram(audio, device, valid, bands)


@dataclass(frozen=True, kw_only=True)
class MelSpectrogram(_Mel):
    """Spectrogram in mel bands: `librosa.feature.melspectrogram`, then `scale`.

    Beside these, the options of `Columns`: scope, scale, normalize and others.

    Args:
        n_fft: Samples of a transform, 2 or more.
        hop_length: Samples from one column to the next, 1 or more.
        win_length: Samples under the window, which stands in the middle of `n_fft`; None: `n_fft`.
        window: A name, a tuple of name and parameters, or `win_length` weights; see `Spectrogram`.
        center: Hop t is centred on sample t * hop_length, the sound padded at both ends; else it starts there.
        padding: By so many samples, instead of ``n_fft // 2``; for ``pad_mode="reflect"``.
        pad_mode: ``"constant"`` pads with zeros, ``"reflect"`` mirrors the sound at its first and last sample.
        detrend: Each stretch under the window less its mean; for sound that is not centred.
        power: 1 for amplitude, 2 for power.
        magnitude_add: The amplitude is sqrt(power + magnitude_add).
        n_mels: Bands.
        fmin: Lower edge of the lowest band in Hz.
        fmax: Upper edge of the highest band in Hz; None: half of the sample rate.
        htk: The HTK formula of the mel scale; else Slaney's.
        norm: ``"slaney"``: each band has area 1; None: each has height 1.
    """

    norm: Literal["slaney"] | None = "slaney"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("norm", self.norm, ("slaney", None))

    @property
    def num_bins(self) -> int:
        """`n_mels`, times `stack`."""
        return self.n_mels * self.stack

    def compute(  # noqa: D102
        self, audio: npt.NDArray[np.float32], *, sample_rate: int, valid: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        return self._completed(self._levels(self._bands(audio, sample_rate, self.norm, valid)))

    def build(  # noqa: D102
        self, audio: DataNode, *, device: Literal["cpu", "gpu"], sample_rate: int, valid: DataNode | None = None
    ) -> DataNode:
        return self._finished(self._scaled(self._mel(audio, device, sample_rate, self.norm, valid)))


@dataclass(frozen=True, kw_only=True)
class MFCC(_Mel):
    """Mel-frequency cepstral coefficients: `librosa.feature.mfcc`, the cosine transform of the scaled mel bands.

    Beside these, the options of `Columns`: scope, normalize and others.

    Args:
        n_fft: Samples of a transform, 2 or more.
        hop_length: Samples from one column to the next, 1 or more.
        win_length: Samples under the window, which stands in the middle of `n_fft`; None: `n_fft`.
        window: A name, a tuple of name and parameters, or `win_length` weights; see `Spectrogram`.
        center: Hop t is centred on sample t * hop_length, the sound padded at both ends; else it starts there.
        padding: By so many samples, instead of ``n_fft // 2``; for ``pad_mode="reflect"``.
        pad_mode: ``"constant"`` pads with zeros, ``"reflect"`` mirrors the sound at its first and last sample.
        detrend: Each stretch under the window less its mean; for sound that is not centred.
        power: 1 for amplitude, 2 for power.
        magnitude_add: The amplitude is sqrt(power + magnitude_add).
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

    scale: Scale | None = Decibels()  # noqa: RUF009 - frozen
    n_mfcc: int = 20
    dct_type: Literal[1, 2, 3] = 2
    norm: Literal["ortho"] | None = "ortho"
    lifter: float = 0.0
    mel_norm: Literal["slaney"] | None = "slaney"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("n_mfcc", self.n_mfcc, 1)
        if self.n_mfcc > self.n_mels:
            raise ValueError(f"n_mfcc={self.n_mfcc} must be at most n_mels={self.n_mels}")
        check_choice("dct_type", self.dct_type, (1, 2, 3))
        check_choice("norm", self.norm, ("ortho", None))
        check_choice("mel_norm", self.mel_norm, ("slaney", None))
        check_number("lifter", self.lifter, 0)
        if self.dct_type == 1 and self.norm is not None:
            raise ValueError("norm='ortho' does not go with dct_type=1; pass norm=None")
        if self.dct_type == 1 and self.n_mels < 2:
            raise ValueError(f"dct_type=1 needs n_mels of at least 2, not {self.n_mels}")

    @property
    def num_bins(self) -> int:
        """`n_mfcc`, times `stack`."""
        return self.n_mfcc * self.stack

    def compute(  # noqa: D102
        self, audio: npt.NDArray[np.float32], *, sample_rate: int, valid: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        from scipy.fft import dct

        levels = self._levels(self._bands(audio, sample_rate, self.mel_norm, valid))
        coefficients = dct(levels, type=self.dct_type, axis=0, norm=self.norm)[: self.n_mfcc]
        if self.lifter:
            number = np.arange(1, self.n_mfcc + 1)
            coefficients *= (1 + self.lifter / 2 * np.sin(np.pi * number / self.lifter)).astype(np.float32)[:, None]
        return self._completed(coefficients)

    def build(  # noqa: D102
        self, audio: DataNode, *, device: Literal["cpu", "gpu"], sample_rate: int, valid: DataNode | None = None
    ) -> DataNode:
        from nvidia.dali import fn

        coefficients = fn.mfcc(
            self._scaled(self._mel(audio, device, sample_rate, self.mel_norm, valid)),
            n_mfcc=self.n_mfcc,
            dct_type=self.dct_type,
            normalize=self.norm == "ortho",
            lifter=float(self.lifter),
        )
        # Without a norm DALI's sums are half of scipy's, for every type.
        return self._finished(coefficients if self.norm == "ortho" else 2.0 * coefficients)


@functools.lru_cache(maxsize=64)
def window_weights(window: Window, win_length: int, n_fft: int) -> npt.NDArray[np.float32]:
    """A window's weights in the middle of `n_fft` samples, zeros around them [shape=(n_fft,)].

    Raises:
        ValueError: If there is no such window.
    """
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
