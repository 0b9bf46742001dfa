"""Augmentation of sound and picture: exact, keyed, and in step.

Every transform works on a batch of tensors, on CPU or GPU, and draws for each clip by itself, keyed by
(seed, epoch, clip, name): the result does not depend on the batch, its order, or what was drawn before. ::

    from avloader.augment import AddBackgroundNoise, ClipKeys, Compose, Gain, LowPassFilter, SoundBank

    bank = SoundBank.from_files("noises", sample_rate=16000)
    augment = Compose([AddBackgroundNoise(bank, p=0.8), Gain(p=1.0), LowPassFilter(p=0.2)])
    result = augment(audio, keys=ClipKeys(clips, seed=0, epoch=3), sample_rate=16000, lengths=lengths)
    result.audio, result.parameters["AddBackgroundNoise"]["snr_db"]

A chain may hold transforms of sound, of pictures, and of both: called, it augments sound; `augment_frames` augments the
pictures of the same clips.
"""

from avloader.augment.bank import ImpulseResponseBank, SoundBank
from avloader.augment.base import Augmented, AugmentedFrames, Node, PictureTransform, Transform
from avloader.augment.compose import Compose, OneOf, SomeOf
from avloader.augment.filters import BandPassFilter, BandStopFilter, HighPassFilter, LowPassFilter
from avloader.augment.joint import AVTimeMask, JointSpeed, Reverse, Shift
from avloader.augment.keys import ClipKeys
from avloader.augment.level import (
    BitCrush,
    Clip,
    ClippingDistortion,
    Gain,
    GainTransition,
    Normalize,
    PolarityInversion,
    TanhDistortion,
)
from avloader.augment.masks import SpecAugment, TimeMask
from avloader.augment.noise import AddBackgroundNoise, AddColorNoise, Mix
from avloader.augment.picture import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    PictureMask,
    RandomCrop,
    RandomErasing,
)
from avloader.augment.room import ApplyImpulseResponse

__all__ = [
    "AVTimeMask",
    "AddBackgroundNoise",
    "AddColorNoise",
    "ApplyImpulseResponse",
    "Augmented",
    "AugmentedFrames",
    "BandPassFilter",
    "BandStopFilter",
    "BitCrush",
    "Clip",
    "ClipKeys",
    "ClippingDistortion",
    "ColorJitter",
    "Compose",
    "Gain",
    "GainTransition",
    "GaussianBlur",
    "Grayscale",
    "HighPassFilter",
    "HorizontalFlip",
    "ImpulseResponseBank",
    "JointSpeed",
    "LowPassFilter",
    "Mix",
    "Node",
    "Normalize",
    "OneOf",
    "PictureMask",
    "PictureTransform",
    "PolarityInversion",
    "RandomCrop",
    "RandomErasing",
    "Reverse",
    "Shift",
    "SomeOf",
    "SoundBank",
    "SpecAugment",
    "TanhDistortion",
    "TimeMask",
    "Transform",
]
