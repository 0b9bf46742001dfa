"""Audiovisual synchronized data loader.

    annotations --> probe --> manifest --> plan --> pipeline --> loader --> training

Names that need PyTorch or DALI are imported when they are first used, so that building and checking manifests starts
fast and runs on machines that have neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from avloader.errors import AnnotationError, AVLoaderError, DecodeError, ManifestError, MediaError, SyncError

if TYPE_CHECKING:
    from avloader.batch import AVBatch
    from avloader.features import (
        MFCC,
        Affine,
        Decibels,
        KaldiFilterBank,
        Ln,
        Log10,
        MelSpectrogram,
        Segments,
        Spectrogram,
        SpeechFilterBank,
        SpeechMFCC,
        Standardize,
        Waveform,
    )
    from avloader.loader import AVLoader
    from avloader.manifest import Manifest, build_manifest
    from avloader.media import MediaInfo, probe
    from avloader.offsets import AllPairs, BinaryOffsets, FixedOffsets, GridOffsets, OtherClip, OtherStart
    from avloader.pipeline import AudioVisualPipeline
    from avloader.prepare import PrepareOptions, prepare_manifest
    from avloader.presets import Preset

__all__ = [
    "MFCC",
    "AVBatch",
    "AVLoader",
    "AVLoaderError",
    "Affine",
    "AllPairs",
    "AnnotationError",
    "AudioVisualPipeline",
    "BinaryOffsets",
    "Decibels",
    "DecodeError",
    "FixedOffsets",
    "GridOffsets",
    "KaldiFilterBank",
    "Ln",
    "Log10",
    "Manifest",
    "ManifestError",
    "MediaError",
    "MediaInfo",
    "MelSpectrogram",
    "OtherClip",
    "OtherStart",
    "PrepareOptions",
    "Preset",
    "Segments",
    "Spectrogram",
    "SpeechFilterBank",
    "SpeechMFCC",
    "Standardize",
    "SyncError",
    "Waveform",
    "build_manifest",
    "prepare_manifest",
    "probe",
]

_LAZY = {
    "AVBatch": "batch",
    "AVLoader": "loader",
    "Affine": "features",
    "AllPairs": "offsets",
    "AudioVisualPipeline": "pipeline",
    "BinaryOffsets": "offsets",
    "Decibels": "features",
    "FixedOffsets": "offsets",
    "GridOffsets": "offsets",
    "KaldiFilterBank": "features",
    "Ln": "features",
    "Log10": "features",
    "MFCC": "features",
    "Manifest": "manifest",
    "MediaInfo": "media",
    "MelSpectrogram": "features",
    "OtherClip": "offsets",
    "OtherStart": "offsets",
    "PrepareOptions": "prepare",
    "Preset": "presets",
    "Segments": "features",
    "Spectrogram": "features",
    "SpeechFilterBank": "features",
    "SpeechMFCC": "features",
    "Standardize": "features",
    "Waveform": "features",
    "build_manifest": "manifest",
    "prepare_manifest": "prepare",
    "probe": "media",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'avloader' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"avloader.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] in ("nvidia", "torch"):
            raise ImportError(
                f"avloader.{name} needs PyTorch and NVIDIA DALI (nvidia-dali-cuda120, Linux only), "
                f"but {error.name} is not installed"
            ) from error
        raise


def __dir__() -> list[str]:
    return sorted(__all__)
