"""`AVBatch`: what a loader delivers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

import torch

__all__ = ["AVBatch"]

# Not `| None`, as in typeshed: a loader of pictures and sound never leaves one out, and its users need not ask.
_Tensor = torch.Tensor | Any


@dataclass(frozen=True, slots=True, eq=False)
class AVBatch:
    """One batch: B clips of F frames with their sound.

    With the loader's ``streams="audio"`` what is said of frames is None, with ``streams="video"`` what is said of
    sound; so is `offset_seconds` with either.

    Attributes:
        frames: Pictures [shape=(B, F, C, H, W)], RGB unless another `color` is asked for; float32 normalized, or uint8.
        audio: Sound [shape=(B, N)], float32, mono, at the loader's `sample_rate`; sample 0 belongs to frame 0. Clips
            that are shorter are followed by zeros.
        spectrogram: Features of `audio` [shape=(B, bins, hops)], of `Segments` [shape=(B, S, bins, hops)], float32;
            None if the loader makes none. Where the loader delivers clips of any length (``streams="audio"``,
            ``audio_seconds=None``), they are those of each clip alone, followed by zeros; else those of all N samples.
        label: Class ids [shape=(B,)], int64.
        row: Manifest rows [shape=(B,)], int64.
        frame_seconds: Presentation time of each frame on the media timeline [shape=(B, F)], float64.
        audio_start_seconds: Time of sample 0 on the media timeline [shape=(B,)], float64.
        audio_valid: Range [first, stop) of samples that exist in the media [shape=(B, 2)], int64; the others are zero.
        offset_seconds: Offset put in on purpose [shape=(B,)], float64; 0: in sync; positive: sound leads; NaN: the
            sound is another row's.
        audio_row: Manifest rows whose sound it is [shape=(B,)], int64; `row`, but for `OtherClip`.
        audio_length: Samples of each clip [shape=(B,)], int64; N, but for clips of sound alone that are shorter.
        spectrogram_length: Hops of the feature of so many samples [shape=(B,)], int64.
        sync_label: What the loader's `offsets` rule calls the offset [shape=(B,); (B, F) for `AllPairs`], int64;
            None without a rule.
        augmentation: What `augment` drew for each clip, columns by the transform's name, such as
            ``augmentation["Gain"]["gain_db"]``; None without it.
    """

    frames: _Tensor
    audio: _Tensor
    spectrogram: torch.Tensor | None
    label: torch.Tensor
    row: torch.Tensor
    frame_seconds: _Tensor = None
    audio_start_seconds: _Tensor = None
    audio_valid: _Tensor = None
    offset_seconds: _Tensor = None
    audio_row: _Tensor = None
    audio_length: _Tensor = None
    spectrogram_length: torch.Tensor | None = None
    sync_label: torch.Tensor | None = None
    augmentation: dict[str, dict[str, torch.Tensor]] | None = None

    def __len__(self) -> int:
        """Clips in the batch."""
        return len(self.row)

    @property
    def pair_offset_seconds(self) -> torch.Tensor:
        """Offset between picture i and the sound from the time of picture j on [shape=(B, F, F)], float64.

        Raises:
            ValueError: If the batch holds only one of them.
        """
        if self.frame_seconds is None or self.offset_seconds is None:
            raise ValueError("the batch holds only pictures or only sound, so there is no offset between them")
        start = self.frame_seconds + self.offset_seconds[:, None]
        return start[:, None, :] - self.frame_seconds[:, :, None]

    @property
    def audio_mask(self) -> torch.Tensor:
        """Which samples of `audio` are the clip's [shape=(B, N)], bool; the others are padding.

        Raises:
            ValueError: If the batch holds no sound.
        """
        return _mask(self.audio, self.audio_length, "sound")

    @property
    def spectrogram_mask(self) -> torch.Tensor:
        """Which hops of `spectrogram` are the clip's [shape=(B, hops)], bool; the others are padding.

        Raises:
            ValueError: If the batch holds no feature.
        """
        return _mask(self.spectrogram, self.spectrogram_length, "feature of sound")

    def __repr__(self) -> str:
        lines = [f"  {name}: {_shape_text(tensor)}" for name, tensor in self._tensors()]
        lines.append(f"  augmentation: {', '.join(self.augmentation) if self.augmentation else None}")
        return "\n".join(["AVBatch:", *lines])

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> AVBatch:
        """The same batch with every tensor on `device`."""
        moved = {
            name: None if tensor is None else tensor.to(device, non_blocking=non_blocking)
            for name, tensor in self._tensors()
        }
        drawn = self.augmentation
        if drawn is not None:
            drawn = {
                name: {key: column.to(device, non_blocking=non_blocking) for key, column in columns.items()}
                for name, columns in drawn.items()
            }
        return AVBatch(**cast(dict[str, torch.Tensor], moved), augmentation=drawn)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of all tensors until `stream` has done what is queued on it by the time they go."""
        for tensor in (self.frames, self.audio, self.spectrogram, self.row):  # the others share the memory of `row`
            if tensor is not None:
                tensor.record_stream(stream)
        for columns in (self.augmentation or {}).values():
            for column in columns.values():
                if column.is_cuda:
                    column.record_stream(stream)

    def _tensors(self) -> list[tuple[str, torch.Tensor | None]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self) if field.name != "augmentation"]


def _mask(tensor: torch.Tensor | None, length: torch.Tensor | None, what: str) -> torch.Tensor:
    if tensor is None or length is None:
        raise ValueError(f"the batch holds no {what}")
    return torch.arange(tensor.shape[-1], device=length.device) < length[:, None]


def _shape_text(tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return "None"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
