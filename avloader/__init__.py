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
    from avloader.features import MFCC, Decibels, Ln, Log10, MelSpectrogram, Spectrogram
    from avloader.loader import AVBatch, AVLoader
    from avloader.manifest import Manifest, build_manifest
    from avloader.media import MediaInfo, probe
    from avloader.pipeline import AudioVisualPipeline

__all__ = [
    "MFCC",
    "AVBatch",
    "AVLoader",
    "AVLoaderError",
    "AnnotationError",
    "AudioVisualPipeline",
    "Decibels",
    "DecodeError",
    "Ln",
    "Log10",
    "Manifest",
    "ManifestError",
    "MediaError",
    "MediaInfo",
    "MelSpectrogram",
    "Spectrogram",
    "SyncError",
    "build_manifest",
    "probe",
]

_LAZY = {
    "AVBatch": "loader",
    "AVLoader": "loader",
    "AudioVisualPipeline": "pipeline",
    "Decibels": "features",
    "Ln": "features",
    "Log10": "features",
    "MFCC": "features",
    "Manifest": "manifest",
    "MediaInfo": "media",
    "MelSpectrogram": "features",
    "Spectrogram": "features",
    "build_manifest": "manifest",
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
