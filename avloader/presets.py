"""Input contracts of published models: what each model's own code would compute, as options of `AVLoader`.

::

    loader = AVLoader(manifest, preset="wav2lip", batch_size=32)
    for batch in loader:
        pictures, sound = loader.preset.inputs(batch)  # (32, 15, 48, 96), (32, 1, 80, 16)

Data, not code: one record a model, with its source. Every option can be given to the loader as well, and counts then.
Where a model draws (windows, crops), a preset holds what it trains with; its remarks name what it evaluates with, and
what is not delivered.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from avloader.features import (
    MFCC,
    Affine,
    Decibels,
    Feature,
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
from avloader.pictures import Color, Crop, Interpolation
from avloader.plan import SoundPlace, Windows

if TYPE_CHECKING:
    import torch

    from avloader.batch import AVBatch

__all__ = ["PRESETS", "Preset", "find_preset"]

Normalize = tuple[Sequence[float], Sequence[float]] | None


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The input contract of a model.

    The layouts are written with spaces between axes: B clips, F frames, C channels, H and W of a picture, S segments, M
    bins and T hops of a feature; parentheses make one axis of several, 1 is an axis of length one, another number
    repeats what stands there.

    Attributes:
        name: What `AVLoader` knows it by.
        title: What it is the input of.
        source: Repository, commit, and the files that say so.
        frames_layout: Shape of the pictures as the model takes them.
        sound_layout: Shape of the sound's feature as the model takes it.
        frame_segments: (frames of a segment, frames from one to the next): the axis S of pictures; None: none.
        remarks: What it evaluates with, what differs, what is not delivered.
        num_frames, stride, fps, size, resize, crop, color, interpolation, normalize, sample_rate, audio_seconds,
            audio_from, features, clips: Options of `AVLoader`.
    """

    name: str
    title: str
    source: str
    frames_layout: str
    sound_layout: str
    frame_segments: tuple[int, int] | None = None
    remarks: tuple[str, ...] = ()

    num_frames: int
    stride: int = 1
    fps: Fraction | int | None = 25
    size: tuple[int, int] | None
    resize: int | tuple[int, int] | None = None
    crop: Crop = "center"
    color: Color = "rgb"
    interpolation: Interpolation = "bilinear"
    normalize: Normalize
    sample_rate: int = 16000
    audio_seconds: Fraction | int | None = None
    audio_from: SoundPlace = "clip"
    features: Feature | None
    clips: Windows = "random"

    @property
    def options(self) -> dict[str, Any]:
        """The options of `AVLoader` that it stands for."""
        own = {"name", "title", "source", "frames_layout", "sound_layout", "frame_segments", "remarks"}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in own}

    def inputs(self, batch: AVBatch) -> tuple[torch.Tensor | Any, torch.Tensor | Any]:
        """Pictures and the feature of the sound in the model's own layouts; views of the batch, where that is possible.

        What the loader's `streams` leaves out is None.

        Raises:
            ValueError: If the batch holds sound, but no feature of it.
        """
        frames, sound = batch.frames, batch.spectrogram
        if frames is not None:
            axes = ["B", "F", "C", "H", "W"]
            if self.frame_segments is not None:
                frames, axes = frames.unfold(1, *self.frame_segments), ["B", "S", "C", "H", "W", "F"]
            frames = _arranged(frames, axes, self.frames_layout)
        if sound is not None:
            sound_axes = ["B", "S", "M", "T"] if sound.ndim == 4 else ["B", "M", "T"]
            sound = _arranged(sound, sound_axes, self.sound_layout)
        elif batch.audio is not None:
            raise ValueError(f"preset {self.name!r} has a feature of sound, but the batch holds none")
        return frames, sound


def find_preset(preset: str | Preset) -> Preset:
    """The preset of that name; a preset is itself.

    Raises:
        ValueError, TypeError: If there is none.
    """
    if isinstance(preset, Preset):
        return preset
    if not isinstance(preset, str):
        raise TypeError(f"preset={preset!r} must be the name of a preset, or a Preset")
    if preset not in PRESETS:
        close = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"preset={preset!r}{hint} must be one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def _arranged(tensor: torch.Tensor, axes: list[str], layout: str) -> torch.Tensor:
    """`tensor` with other axes, as `Preset` says."""
    groups = [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", layout)]
    named = [name for group in groups for name in group if not name.isdigit()]
    tensor = tensor.permute([axes.index(name) for name in named])
    lengths = dict(zip(named, tensor.shape, strict=True))
    shape, repeats = [], []
    for group in groups:
        is_new = group[0].isdigit()
        length = 1
        for name in group:
            length *= 1 if name.isdigit() else lengths[name]
        shape.append(length)
        repeats.append(int(group[0]) if is_new else length)
    return tensor.reshape(shape).expand(repeats)


# Pictures ------------------------------------------------------------------------------------------------------------

_UNCHANGED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # 0 to 255
_TO_ONE = ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
_HALF = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_CLIP = (
    (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255),
    (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255),
)
_LIPS = ((0.421 * 255,), (0.165 * 255,))

# Sound ---------------------------------------------------------------------------------------------------------------

_WAV2LIP_MEL = MelSpectrogram(
    n_fft=800,
    hop_length=200,
    pad_mode="reflect",
    power=1,
    n_mels=80,
    fmin=55,
    fmax=7600,
    preemphasis=0.97,
    scope="medium",
    scale=Decibels(ref=10, amin=1e-5, top_db=None),
    normalize=Affine(mean=-50, std=12.5, low=-4, high=4),
)
_AST_NORM = Affine(mean=-4.2677393, std=2 * 4.5689974)


def _whisper(n_mels: int) -> MelSpectrogram:
    return MelSpectrogram(
        n_fft=400,
        hop_length=160,
        pad_mode="reflect",
        n_mels=n_mels,
        num_columns=3000,
        scale=Log10(amin=1e-10, span=8),
        normalize=Affine(mean=-4, std=4),
    )


def _kaldi(n_mels: int, num_columns: int, normalize: Affine) -> KaldiFilterBank:
    return KaldiFilterBank(n_mels=n_mels, subtract_mean=True, num_columns=num_columns, normalize=normalize)


def _mmaudio(n_fft: int, n_mels: int, fmax: float, scale: Log10 | Ln) -> MelSpectrogram:
    hop_length = n_fft // 4
    return MelSpectrogram(
        n_fft=n_fft,
        hop_length=hop_length,
        pad_mode="reflect",
        padding=(n_fft - hop_length) // 2,
        power=1,
        magnitude_add=1e-9,
        n_mels=n_mels,
        fmax=fmax,
        scale=scale,
    )


# Remarks -------------------------------------------------------------------------------------------------------------

_FACES = "The model is trained on face crops: cut them out of the videos before."
_MEAN_OF_CHANNELS = "The model takes channel 1 of the sound; here it is the mean of all channels."
_NO_PICTURES = (
    "A model of sound: the one picture that comes along is scaled to 224 and not normalized; "
    "streams='audio' leaves it out."
)
_ROW_END = (
    "Sound goes on past the end of a row, up to the end of its medium, and is zero after that; with streams='audio' "
    "it is zero after its row."
)
_PADDED_REFLECT = "The ends of the medium are mirrored, as in librosa 0.7; later versions of it fill up with zeros."
_WHOLE_FILE = "The feature is cut out of that of the medium's whole sound, counted from the medium's first frame."
_NEGATIVES = "Out-of-sync sampling is an option of the loader, not of the preset."
_MMAUDIO = (
    "The model's two streams of pictures are two presets, mmaudio_16k and mmaudio_16k_clip; two loaders with the same "
    "seed and clips='first' deliver the same clips.",
    "The model resamples by torchaudio's best Kaiser window, here soxr does; it cuts sound to [-1, 1], here it is not "
    "cut. It leaves out short and silent clips.",
)

_ALL = (
    Preset(
        name="syncnet",
        title="SyncNet, finding the offset",
        source="joonson/syncnet_python 6efbb1c: SyncNetInstance.py, SyncNetModel.py, run_pipeline.py; "
        "python_speech_features 0.6: base.py",
        frames_layout="B C F H W",
        sound_layout="B 1 M T",
        num_frames=5,
        size=(224, 224),
        color="bgr",
        normalize=_UNCHANGED,
        features=SpeechMFCC(scope="medium"),
        clips="all",
        remarks=(
            _FACES,
            _WHOLE_FILE,
            "The model scans windows one frame apart; clips='all' steps by five.",
        ),
    ),
    Preset(
        name="syncnet_fbank",
        title="SyncNet, training (FBank model)",
        source="joonson/syncnet_trainer 15e5cfc: DatasetLoader.py, models/SyncNetModelFBank.py",
        frames_layout="B C F H W",
        sound_layout="B M T",
        num_frames=30,
        size=(224, 224),
        color="bgr",
        normalize=_UNCHANGED,
        audio_seconds=Fraction(640 * 30 + 240, 16000),
        features=MelSpectrogram(
            n_fft=512,
            win_length=400,
            hop_length=160,
            pad_mode="reflect",
            n_mels=40,
            fmax=8000,
            htk=True,
            norm=None,
            int16=True,
            scale=Ln(add=1e-6),
            normalize=Standardize(over="bin"),
            trim=(1, 1),
        ),
        remarks=(
            _FACES,
            "With other num_frames give audio_seconds=(640 * num_frames + 240) / 16000.",
            "The model computes the feature itself, from sound in whole numbers: 32768 * batch.audio.",
            "The model's code begins the pictures one frame before the sound, unexplained; here they begin together.",
            "All pairs within a clip are negatives: `AllPairs`.",
        ),
    ),
    Preset(
        name="wav2lip",
        title="Wav2Lip, lip-sync discriminator",
        source="Rudrabha/Wav2Lip 5c90fa9: color_syncnet_train.py, audio.py, hparams.py",
        frames_layout="B (F C) H W",
        sound_layout="B 1 M T",
        num_frames=5,
        size=(48, 96),
        resize=(96, 96),
        crop="bottom",
        color="bgr",
        normalize=_TO_ONE,
        features=_WAV2LIP_MEL,
        remarks=(
            _FACES,
            _WHOLE_FILE,
            "The sound begins on column floor(80 * frame / 25), up to 10 ms before the first picture, as in the model.",
            _PADDED_REFLECT,
            "The model scales pictures by OpenCV without averaging: store face crops at 96x96 to have the same pixels.",
            "The generator's second window of faces and its five mel windows are not delivered.",
            _NEGATIVES,
        ),
    ),
    Preset(
        name="latentsync",
        title="LatentSync, SyncNet on pixels",
        source="bytedance/LatentSync a229c39: data/syncnet_dataset.py, utils/audio.py, scripts/train_syncnet.py",
        frames_layout="B (F C) H W",
        sound_layout="B 1 M T",
        num_frames=16,
        size=(128, 256),
        resize=(256, 256),
        crop="bottom",
        interpolation="bicubic",
        normalize=_HALF,
        features=_WAV2LIP_MEL,
        remarks=(
            "The model is trained on affine face crops of 256x256: cut them out of the videos before.",
            _WHOLE_FILE,
            "The sound begins on column floor(80 * frame / 25), up to 10 ms before the first picture, as in the model.",
            _PADDED_REFLECT,
            "The latent model: size=(256, 256), resize=None, crop='center', then its own autoencoder.",
            "The UNet's Whisper features and reference window are not delivered.",
            _NEGATIVES,
        ),
    ),
    Preset(
        name="synchformer",
        title="Synchformer, 14 segments of 0.64 s",
        source="v-iashin/Synchformer b66668a: configs/sync.yaml, dataset/transforms.py",
        frames_layout="B S F C H W",
        sound_layout="B S 1 M T",
        frame_segments=(16, 8),
        num_frames=16 + 13 * 8,
        size=(224, 224),
        resize=256,
        crop="random",
        normalize=_HALF,
        features=Segments(
            feature=MelSpectrogram(
                n_fft=1024,
                win_length=400,
                hop_length=160,
                pad_mode="reflect",
                n_mels=128,
                fmax=8000,
                htk=True,
                norm=None,
                scale=Ln(add=1e-6),
                num_columns=66,
                normalize=_AST_NORM,
            ),
            num_segments=14,
            length=10240,
            step=5120,
        ),
        remarks=(
            "To evaluate: crop='center'.",
            "The segments begin with the clip, and last 4.8 of the model's 5 s.",
            "The model's augmentations (flip, jitter, noise, and others) are not part of it.",
            "Offsets on a grid of 21 classes over +-2 s, with +-0.05 s of jitter: `GridOffsets`.",
        ),
    ),
    Preset(
        name="sparsesync",
        title="SparseSync",
        source="v-iashin/SparseSync a5bee8a: configs/sparse_sync.yaml, dataset/transforms.py",
        frames_layout="B F C H W",
        sound_layout="B 1 M T",
        num_frames=125,
        size=(224, 224),
        resize=256,
        crop="random",
        normalize=_IMAGENET,
        features=Spectrogram(
            n_fft=512,
            hop_length=128,
            pad_mode="reflect",
            scale=Ln(add=1e-6),
            normalize=Standardize(over="bin", epsilon=1e-6, epsilon_in="deviation", unbiased=True),
        ),
        remarks=("To evaluate: crop='center'.", "Offsets on a grid of 21 classes over +-2 s: `GridOffsets`."),
    ),
    Preset(
        name="avhubert",
        title="AV-HuBERT",
        source="facebookresearch/av_hubert 258fb50: avhubert/hubert_dataset.py, avhubert/utils.py",
        frames_layout="B C F H W",
        sound_layout="B M T",
        num_frames=50,
        size=(88, 88),
        resize=(96, 96),
        crop="random",
        color="grey",
        normalize=_LIPS,
        features=SpeechFilterBank(scope="medium", stack=4, normalize=Standardize(over="hop")),
        remarks=(
            "The model is trained on mouth crops of 96x96: cut them out of the videos before.",
            _WHOLE_FILE,
            "To evaluate: crop='center'. Flips are not part of it.",
            "Utterances vary in length; here every clip has num_frames.",
        ),
    ),
    Preset(
        name="auto_avsr",
        title="Auto-AVSR",
        source="mpc001/auto_avsr 182b628: datamodule/transforms.py, datamodule/av_dataset.py",
        frames_layout="B F C H W",
        sound_layout="B T M",
        num_frames=50,
        size=(88, 88),
        resize=(96, 96),
        crop="random",
        color="grey",
        normalize=_LIPS,
        features=Waveform(normalize=Standardize(epsilon=1e-8)),
        remarks=(
            "The model is trained on mouth crops of 96x96: cut them out of the videos before.",
            "To evaluate: crop='center'. Masks in time and babble are not part of it.",
            "Utterances vary in length; here every clip has num_frames, and its sound is normalized by itself.",
        ),
    ),
    Preset(
        name="whisper",
        title="Whisper up to large-v2; what sources call Whisper-style",
        source="openai/whisper c0d2f62: whisper/audio.py",
        frames_layout="B F C H W",
        sound_layout="B M T",
        num_frames=1,
        fps=None,
        size=(224, 224),
        normalize=None,
        audio_seconds=30,
        features=_whisper(80),
        clips="first",
        remarks=(_NO_PICTURES, _ROW_END),
    ),
    Preset(
        name="whisper_large_v3",
        title="Whisper large-v3 and turbo",
        source="openai/whisper c0d2f62: whisper/audio.py",
        frames_layout="B F C H W",
        sound_layout="B M T",
        num_frames=1,
        fps=None,
        size=(224, 224),
        normalize=None,
        audio_seconds=30,
        features=_whisper(128),
        clips="first",
        remarks=(_NO_PICTURES, _ROW_END),
    ),
    Preset(
        name="ast",
        title="Audio Spectrogram Transformer",
        source="YuanGongND/ast 31088be: src/dataloader.py",
        frames_layout="B F C H W",
        sound_layout="B T M",
        num_frames=1,
        fps=None,
        size=(224, 224),
        normalize=None,
        audio_seconds=10,
        features=_kaldi(128, 1024, _AST_NORM),
        clips="first",
        remarks=(_NO_PICTURES, _MEAN_OF_CHANNELS, _ROW_END, "Mixup and masks are not part of it."),
    ),
    Preset(
        name="cav_mae",
        title="CAV-MAE",
        source="YuanGongND/cav-mae 68fe8c2: src/dataloader.py, src/preprocess/extract_video_frame.py",
        frames_layout="B (F C) H W",
        sound_layout="B T M",
        num_frames=1,
        fps=None,
        size=(224, 224),
        resize=224,
        normalize=_IMAGENET,
        audio_seconds=10,
        audio_from="row",
        features=_kaldi(128, 1024, Affine(mean=-5.081, std=4.4849)),
        remarks=(
            _MEAN_OF_CHANNELS,
            _ROW_END,
            "The model draws one of ten pictures spread over the clip, here it is any picture; to evaluate: "
            "clips='center'.",
            "Mixup, noise and shifts are not part of it.",
        ),
    ),
    Preset(
        name="imagebind",
        title="ImageBind, sound and pictures of 10 s",
        source="facebookresearch/ImageBind 53680b0: imagebind/data.py",
        frames_layout="B S C F H W",
        sound_layout="B S 1 M T",
        frame_segments=(2, 2),
        num_frames=10,
        fps=1,
        size=(224, 224),
        resize=224,
        normalize=_CLIP,
        audio_seconds=10,
        features=Segments(
            feature=_kaldi(128, 204, Affine(mean=-4.268, std=9.138)), num_segments=3, length=32000, step=64000
        ),
        clips="first",
        remarks=(
            _ROW_END,
            "Of each 2 s the model takes the first and the last picture, here the first and that at 1 s.",
            "The model takes three crops of each picture; here it is the middle one.",
        ),
    ),
    Preset(
        name="languagebind",
        title="LanguageBind, sound and pictures of 10 s",
        source="PKU-YuanGroup/LanguageBind 7070c53: languagebind/audio/processing_audio.py, "
        "languagebind/video/processing_video.py",
        frames_layout="B C F H W",
        sound_layout="B 3 M T",
        num_frames=8,
        fps=Fraction(175, 249),
        size=(224, 224),
        resize=224,
        normalize=_CLIP,
        audio_seconds=Fraction(1036, 100),
        features=_kaldi(112, 1036, _AST_NORM),
        clips="first",
        remarks=(
            _MEAN_OF_CHANNELS,
            _ROW_END,
            "The eight pictures lie as in 10 s of 25 frames/s: from the first to the last one.",
            "Of sound longer than 10.36 s the model takes three chunks, shorter than 5.18 s it repeats; here the three "
            "are one, and zeros follow.",
        ),
    ),
    Preset(
        name="avid",
        title="AVID-CMA, Kinetics",
        source="facebookresearch/AVID-CMA 4538e40: configs/main/avid/kinetics/Cross-N1024.yaml, "
        "datasets/preprocessing.py, datasets/video_db.py",
        frames_layout="B C F H W",
        sound_layout="B 1 T M",
        num_frames=8,
        fps=16,
        size=(224, 224),
        resize=(256, 256),
        crop="random",
        normalize=_IMAGENET,
        sample_rate=24000,
        audio_seconds=2,
        audio_from="around",
        features=Spectrogram(
            n_fft=1024,
            hop_length=240,
            pad_mode="reflect",
            average_pairs=True,
            num_columns=200,
            scale=Decibels(top_db=100),
        ),
        remarks=(
            "The model normalizes by a mean and a deviation of each bin, kept in a file of its repository: give "
            "features= with normalize=Affine(mean=..., std=...), the deviation plus 1e-5.",
            "To evaluate: crop='center'. The model trains on crops of random size, with flips and jitter of colours.",
        ),
    ),
    Preset(
        name="vggsound",
        title="VGGSound, sound classification",
        source="hche11/VGGSound 9bbc749: datasets/dataloader.py",
        frames_layout="B F C H W",
        sound_layout="B 1 M T",
        num_frames=1,
        fps=None,
        size=(224, 224),
        normalize=None,
        audio_seconds=10,
        features=Spectrogram(
            n_fft=512,
            hop_length=159,
            window=("tukey", 0.25),
            center=False,
            detrend=True,
            density=True,
            scale=Ln(add=1e-7),
            normalize=Standardize(epsilon=1e-9, epsilon_in="deviation"),
        ),
        clips="first",
        remarks=(
            _NO_PICTURES,
            "Sound shorter than 10 s is repeated by the model; here zeros follow. It cuts sound to [-1, 1], here it is "
            "not cut.",
        ),
    ),
    Preset(
        name="talknet",
        title="TalkNet, who is speaking",
        source="TaoRuijie/TalkNet-ASD 6d68214: dataLoader.py, model/talkNetModel.py",
        frames_layout="B F (C H) W",
        sound_layout="B T M",
        num_frames=50,
        size=(112, 112),
        color="grey",
        normalize=((0.4161 * 255,), (0.1688 * 255,)),
        features=SpeechMFCC(scope="medium"),
        remarks=(
            _FACES,
            _WHOLE_FILE,
            "At another rate than 25, as stored: fps=None and features=SpeechMFCC(scope='medium', n_fft=512, "
            "win_length=round(10000 / rate), hop_length=round(4000 / rate)).",
            "Tracks vary in length; here every clip has num_frames. Labels of single frames are not delivered.",
        ),
    ),
    Preset(
        name="mmaudio_16k",
        title="MMAudio at 16 kHz, pictures for synchrony",
        source="hkchengrex/MMAudio 974010a: mmaudio/data/extraction/vgg_sound.py, mmaudio/ext/mel_converter.py",
        frames_layout="B F C H W",
        sound_layout="B M T",
        num_frames=200,
        size=(224, 224),
        resize=224,
        interpolation="bicubic",
        normalize=_HALF,
        audio_seconds=8,
        features=_mmaudio(1024, 80, 8000, Log10(amin=1e-5)),
        clips="first",
        remarks=_MMAUDIO,
    ),
    Preset(
        name="mmaudio_16k_clip",
        title="MMAudio at 16 kHz, pictures for CLIP",
        source="hkchengrex/MMAudio 974010a: mmaudio/data/extraction/vgg_sound.py, mmaudio/ext/mel_converter.py",
        frames_layout="B F C H W",
        sound_layout="B M T",
        num_frames=64,
        fps=8,
        size=(384, 384),
        interpolation="bicubic",
        normalize=_TO_ONE,
        audio_seconds=8,
        features=_mmaudio(1024, 80, 8000, Log10(amin=1e-5)),
        clips="first",
        remarks=_MMAUDIO,
    ),
    Preset(
        name="mmaudio_44k",
        title="MMAudio at 44.1 kHz, pictures for synchrony",
        source="hkchengrex/MMAudio 974010a: mmaudio/data/extraction/vgg_sound.py, mmaudio/ext/mel_converter.py",
        frames_layout="B F C H W",
        sound_layout="B M T",
        num_frames=200,
        size=(224, 224),
        resize=224,
        interpolation="bicubic",
        normalize=_HALF,
        sample_rate=44100,
        audio_seconds=Fraction(353280, 44100),
        features=_mmaudio(2048, 128, 22050, Ln(amin=1e-5)),
        clips="first",
        remarks=_MMAUDIO,
    ),
    Preset(
        name="power_spectrogram",
        title="Power spectrogram, 25 ms windows each 10 ms",
        source="sources/000 (DALI for audio), section Spectrogram",
        frames_layout="B F C H W",
        sound_layout="B M T",
        num_frames=25,
        size=(224, 224),
        normalize=_IMAGENET,
        features=Spectrogram(n_fft=512, win_length=400, hop_length=160, pad_mode="reflect"),
        remarks=("The source's window, fn.window.hann, does not exist; here it is librosa's periodic Hann window.",),
    ),
    Preset(
        name="mel_spectrogram",
        title="Mel spectrogram in decibels, 80 bands",
        source="sources/000 (DALI for audio), section Mel Spectrogram",
        frames_layout="B F C H W",
        sound_layout="B M T",
        num_frames=25,
        size=(224, 224),
        normalize=_IMAGENET,
        features=MelSpectrogram(
            n_fft=512,
            win_length=400,
            hop_length=160,
            pad_mode="reflect",
            n_mels=80,
            fmax=8000,
            scale=Decibels(amin=1e-8, top_db=None),
        ),
        remarks=("The source leaves DALI's own window, which lies half a sample off; here it is librosa's.",),
    ),
    Preset(
        name="mfcc",
        title="MFCC, 13 of 80 bands",
        source="sources/000 (DALI for audio), section MFCC",
        frames_layout="B F C H W",
        sound_layout="B M T",
        num_frames=25,
        size=(224, 224),
        normalize=_IMAGENET,
        features=MFCC(
            n_fft=512,
            win_length=400,
            hop_length=160,
            pad_mode="reflect",
            n_mels=80,
            fmax=8000,
            n_mfcc=13,
            scale=Decibels(amin=1e-8, top_db=None),
        ),
        remarks=("The source calls fn.mfcc on sound, which DALI refuses: it takes the mel spectrogram above.",),
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
"""All presets by name."""
