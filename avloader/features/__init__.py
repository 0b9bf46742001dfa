"""Features of sound, numerically equal to what models are trained on.

::

    sound --> base: scope, whole numbers, pre-emphasis --> spectra, speech, banks --> scales --> normalizations

The options keep librosa's names, defaults and meaning where librosa has them. An STFT column is a *hop*; a *frame* is a
picture. Every feature maps sound [shape=(num_samples,)] to float32 [shape=(num_bins, num_hops)]: `compute` does it on
the CPU (`transforms`), `build` makes a node of DALI, on the GPU or the CPU; they differ by rounding. This folder is the
only place with DALI's operators of sound. DALI is imported when a node is built, not before.
"""

from avloader.features.base import Feature
from avloader.features.normalizations import Affine, Normalization, Standardize
from avloader.features.scales import Decibels, Ln, Log10, Scale
from avloader.features.segments import Segments, Waveform
from avloader.features.spectra import MFCC, MelSpectrogram, Spectrogram
from avloader.features.speech import KaldiFilterBank, SpeechFilterBank, SpeechMFCC

__all__ = [
    "MFCC",
    "Affine",
    "Decibels",
    "Feature",
    "KaldiFilterBank",
    "Ln",
    "Log10",
    "MelSpectrogram",
    "Normalization",
    "Scale",
    "Segments",
    "Spectrogram",
    "SpeechFilterBank",
    "SpeechMFCC",
    "Standardize",
    "Waveform",
]
