"""Filter banks and MFCC of speech recognition: Kaldi's and python_speech_features'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from avloader.features.banks import apply_bank, as_bank, kaldi_bank, speech_bank
from avloader.features.base import Columns
from avloader.features.checks import check_flag, check_integer, check_number
from avloader.features.nodes import constant_for
from avloader.features.scales import Ln, Scale
from avloader.features.sound import edged, frames_of, power_of_frames, resized, with_edges
from avloader.features.transforms import spectrum

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

__all__ = ["KaldiFilterBank", "SpeechFilterBank", "SpeechMFCC"]

_FLOAT32_EPSILON = float(np.finfo(np.float32).eps)
_FLOAT64_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True)
class _Speech(Columns):
    """Stretches of `win_length` samples that start each `hop_length`, zero-padded to a power of two."""

    hop_length: int = 160
    win_length: int = 400
    n_mels: int = 26
    fmin: float = 0.0
    fmax: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("win_length", self.win_length, 2)
        check_integer("n_mels", self.n_mels, 1)
        check_number("fmin", self.fmin, 0)
        if self.fmax is not None:
            check_number("fmax", self.fmax, self.fmin, above=True)

    @property
    def _n_fft(self) -> int:
        return 1 << (self.win_length - 1).bit_length()

    def _bands_to(self, sample_rate: int) -> float:
        check_integer("sample_rate", sample_rate, 1)
        fmax = self.fmax if self.fmax is not None else sample_rate / 2
        if not self.fmin < fmax <= sample_rate / 2:
            raise ValueError(f"fmin={self.fmin} and fmax={fmax} must lie within 0 and {sample_rate / 2:g} Hz, in order")
        return float(fmax)


@dataclass(frozen=True, kw_only=True)
class KaldiFilterBank(_Speech):
    """Kaldi's log filter bank: ``torchaudio.compliance.kaldi.fbank(window_type="hanning", dither=0)``.

    Each stretch of sound lies wholly in the clip (Kaldi's `snip_edges`); it is taken less its own mean, pre-emphasized
    by itself, windowed and zero-padded to a power of two. Beside these, the options of `Columns`, but for scope:
    `subtract_mean`, `num_columns`, `normalize` and others.

    Args:
        win_length: Samples of a stretch.
        hop_length: Samples from one to the next.
        n_mels: Bands.
        fmin: Lower edge of the lowest band in Hz.
        fmax: Upper edge of the highest band in Hz; None: half of the sample rate.
        remove_mean: Whether each stretch is taken less its own mean.
        stretch_preemphasis: x[t] - stretch_preemphasis * x[t - 1] in each stretch; its first sample stands before
            itself.
        scale: A logarithm; Kaldi's has a floor of 1.19e-7.
    """

    n_mels: int = 128
    fmin: float = 20.0
    remove_mean: bool = True
    stretch_preemphasis: float = 0.97
    scale: Scale | None = Ln(amin=_FLOAT32_EPSILON)  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("remove_mean", self.remove_mean)
        check_number("stretch_preemphasis", self.stretch_preemphasis, 0)
        if self.scope != "clip":
            raise ValueError(f"scope={self.scope!r} must be 'clip'")

    @property
    def num_bins(self) -> int:
        """`n_mels`, times `stack`."""
        return self.n_mels * self.stack

    @property
    def _reach(self) -> tuple[int, int]:
        return 0, self.win_length

    def _own_columns(self, num_samples: int) -> int:
        check_integer("num_samples", num_samples, self.win_length)
        return 1 + (num_samples - self.win_length) // self.hop_length

    def compute(  # noqa: D102
        self, audio: npt.NDArray[np.float32], *, sample_rate: int, valid: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        bank = as_bank(
            kaldi_bank,
            sample_rate=sample_rate,
            n_fft=self._n_fft,
            n_mels=self.n_mels,
            fmin=float(self.fmin),
            fmax=self._bands_to(sample_rate),
        )
        bands = spectrum(
            self._heard(audio, keep_mean=self.remove_mean),
            self._num_kept(self._own_columns(len(audio))),
            window=np.hanning(self.win_length).astype(np.float32),
            n_fft=self._n_fft,
            hop_length=self.hop_length,
            bank=bank,
            remove_mean=self.remove_mean,
            preemphasis=self.stretch_preemphasis,
        )
        return self._completed(bands if self.scale is None else self.scale.compute(bands, 2))

    def build(  # noqa: D102
        self, audio: DataNode, *, device: Literal["cpu", "gpu"], sample_rate: int, valid: DataNode | None = None
    ) -> DataNode:
        from nvidia.dali import fn

        bank = kaldi_bank(
            sample_rate=sample_rate,
            n_fft=self._n_fft,
            n_mels=self.n_mels,
            fmin=float(self.fmin),
            fmax=self._bands_to(sample_rate),
        )
        audio = self._sound(audio, device)
        num_columns = (audio.shape()[0] - self.win_length) // self.hop_length + 1
        frames = frames_of(audio, num_columns, length=self.win_length, hop_length=self.hop_length)
        if self.remove_mean:
            frames = frames - fn.reductions.mean(frames, axes=[1], keep_dims=True)
        if self.stretch_preemphasis:
            before = fn.cat(frames[:, :1], frames[:, :-1], axis=1)
            frames = frames - self.stretch_preemphasis * before
        power = power_of_frames(frames, np.hanning(self.win_length).astype(np.float32), self._n_fft)
        bands = apply_bank(self._cut(power), bank)
        return self._finished(bands if self.scale is None else self.scale.apply(bands, 2))


@dataclass(frozen=True, kw_only=True)
class SpeechFilterBank(_Speech):
    """python_speech_features' `logfbank`.

    By default it sees 16-bit sound, as that package does where it is given what `scipy.io.wavfile` reads. Stretches are
    not windowed; those that reach past the end are filled up with zeros. Beside these, the options of `Columns`: scope,
    stack, normalize and others.

    Args:
        win_length: Samples of a stretch.
        hop_length: Samples from one to the next.
        n_mels: Bands.
        fmin: Lower edge of the lowest band in Hz.
        fmax: Upper edge of the highest band in Hz; None: half of the sample rate.
        n_fft: Samples of a transform, at least `win_length`; None: the next power of two.
        int16: The sound in the whole numbers of a 16-bit file.
        preemphasis: x[t] - preemphasis * x[t - 1], over the whole sound.
        scale: A logarithm.
    """

    int16: bool = True
    preemphasis: float = 0.97
    n_fft: int | None = None
    scale: Scale | None = Ln(amin=_FLOAT64_EPSILON)  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_fft is not None:
            check_integer("n_fft", self.n_fft, self.win_length)

    @property
    def num_bins(self) -> int:
        """`n_mels`, times `stack`."""
        return self.n_mels * self.stack

    @property
    def _n_fft(self) -> int:
        return self.n_fft or super()._n_fft

    @property
    def _reach(self) -> tuple[int, int]:
        return 0, self.win_length

    def _own_columns(self, num_samples: int) -> int:
        check_integer("num_samples", num_samples, 1)
        return 1 + -(-max(num_samples - self.win_length, 0) // self.hop_length)

    def _sums(
        self,
        audio: npt.NDArray[np.float32],
        sample_rate: int,
        valid: tuple[int, int] | None,
        *,
        with_sum: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Power over n_fft in the bands [shape=(n_mels, num_columns)]; with that of all bins as one band more."""
        audio = self._heard(audio)
        if self.scope == "medium":
            if valid is not None:
                audio = edged(audio, valid, mirror=False)
            if self.preemphasis:
                audio = audio[1:]  # was there for the sample after it
            num_columns = 1 + max(len(audio) - self.win_length, 0) // self.hop_length
        else:
            num_columns = self._own_columns(len(audio))
        bank = as_bank(
            speech_bank,
            factor=1.0 / self._n_fft,
            with_sum=with_sum,
            sample_rate=sample_rate,
            n_fft=self._n_fft,
            n_mels=self.n_mels,
            fmin=float(self.fmin),
            fmax=self._bands_to(sample_rate),
        )
        return spectrum(
            audio,
            self._num_kept(num_columns),
            window=np.ones(self.win_length, np.float32),
            n_fft=self._n_fft,
            hop_length=self.hop_length,
            bank=bank,
        )

    def _levels(self, bands: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return bands if self.scale is None else self.scale.compute(bands, 2)

    def _power(self, audio: DataNode, device: str, valid: DataNode | None) -> DataNode:
        """Power over n_fft [shape=(n_fft // 2 + 1, num_columns)]."""
        from nvidia.dali import fn
        from nvidia.dali import math as dali_math

        audio = self._sound(audio, device)
        if self.scope == "medium":
            if valid is not None:
                audio = with_edges(audio, valid[0], valid[1], mirror=False)
            if self.preemphasis:
                audio = audio[1:]  # was there for the sample after it
            beyond = dali_math.max(audio.shape()[0] - self.win_length, 0) // self.hop_length
        else:
            beyond = dali_math.max(audio.shape()[0] - self.win_length + self.hop_length - 1, 0) // self.hop_length
        power = fn.spectrogram(
            resized(audio, beyond * self.hop_length + self._n_fft),
            nfft=self._n_fft,
            window_length=self._n_fft,
            window_step=self.hop_length,
            window_fn=[1.0] * self.win_length + [0.0] * (self._n_fft - self.win_length),
            center_windows=False,
            power=2,
        )
        return self._cut(power) * (1.0 / self._n_fft)

    def _bands(self, power: DataNode, sample_rate: int) -> DataNode:
        bank = speech_bank(
            sample_rate=sample_rate,
            n_fft=self._n_fft,
            n_mels=self.n_mels,
            fmin=float(self.fmin),
            fmax=self._bands_to(sample_rate),
        )
        bands = apply_bank(power, bank)
        return bands if self.scale is None else self.scale.apply(bands, 2)

    def compute(  # noqa: D102
        self, audio: npt.NDArray[np.float32], *, sample_rate: int, valid: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        return self._completed(self._levels(self._sums(audio, sample_rate, valid)))

    def build(  # noqa: D102
        self, audio: DataNode, *, device: Literal["cpu", "gpu"], sample_rate: int, valid: DataNode | None = None
    ) -> DataNode:
        return self._finished(self._bands(self._power(audio, device, valid), sample_rate))


@dataclass(frozen=True, kw_only=True)
class SpeechMFCC(SpeechFilterBank):
    """python_speech_features' `mfcc`: the cosine transform of `SpeechFilterBank`.

    Beside these, the options of `SpeechFilterBank`.

    Args:
        n_mfcc: Coefficients, at most `n_mels`.
        lifter: Coefficient k (from 0) is weighted by 1 + lifter / 2 * sin(pi * k / lifter); 0: not at all.
        energy: Whether the logarithm of the stretch's energy stands in the place of coefficient 0.
    """

    n_mfcc: int = 13
    lifter: float = 22.0
    energy: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("n_mfcc", self.n_mfcc, 1)
        if self.n_mfcc > self.n_mels:
            raise ValueError(f"n_mfcc={self.n_mfcc} must be at most n_mels={self.n_mels}")
        check_number("lifter", self.lifter, 0)
        check_flag("energy", self.energy)

    @property
    def num_bins(self) -> int:
        """`n_mfcc`, times `stack`."""
        return self.n_mfcc * self.stack

    def compute(  # noqa: D102
        self, audio: npt.NDArray[np.float32], *, sample_rate: int, valid: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        from scipy.fft import dct

        sums = self._sums(audio, sample_rate, valid, with_sum=self.energy)
        cepstra = dct(self._levels(sums[: self.n_mels]), type=2, axis=0, norm="ortho")[: self.n_mfcc]
        if self.lifter:
            cepstra *= self._lifting.astype(np.float32)
        if self.energy:
            cepstra[0] = Ln(amin=_FLOAT64_EPSILON).compute(sums[self.n_mels :], 2)[0]
        return self._completed(cepstra)

    @property
    def _lifting(self) -> npt.NDArray[np.float64]:
        """Factors of the coefficients [shape=(n_mfcc, 1)]."""
        number = np.arange(self.n_mfcc)[:, None]
        weights: npt.NDArray[np.float64] = 1 + self.lifter / 2 * np.sin(np.pi * number / self.lifter)
        return weights

    def build(  # noqa: D102
        self, audio: DataNode, *, device: Literal["cpu", "gpu"], sample_rate: int, valid: DataNode | None = None
    ) -> DataNode:
        from nvidia.dali import fn

        power = self._power(audio, device, valid)
        cepstra = fn.mfcc(self._bands(power, sample_rate), n_mfcc=self.n_mfcc, dct_type=2, normalize=True, lifter=0.0)
        if self.lifter:
            cepstra = cepstra * constant_for(cepstra, self._lifting)
        if self.energy:
            total = Ln(amin=_FLOAT64_EPSILON).apply(fn.reductions.sum(power, axes=[0], keep_dims=True), 2)
            cepstra = fn.reshape(total, layout="") if self.n_mfcc == 1 else _with_first(total, cepstra)
        return self._finished(cepstra)


def _with_first(first: DataNode, rows: DataNode) -> DataNode:
    """`rows` with another first one."""
    from nvidia.dali import fn

    return fn.cat(fn.reshape(first, layout=""), fn.reshape(rows[1:], layout=""), axis=0)
