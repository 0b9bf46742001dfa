"""Banks of sounds to mix in: decoded once, held as 16-bit samples, on the GPU where they fit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from avloader.augment.checks import check_integer
from avloader.errors import MediaError

__all__ = ["ImpulseResponseBank", "SoundBank"]

_MOST_BYTES = 2 * 2**30
_MOST_PART = 0.05  # of the GPU's memory
_FULL_SCALE = 32767.0


class SoundBank:
    """Sounds of one sample rate, mono.

    Each sound is kept as 16-bit samples scaled to its own peak (noise 98 dB below it), so a bank of an hour at 16 kHz
    takes 115 MB. The first use on a GPU copies the bank there if it fits into `device_bytes`; else each batch copies
    the stretches that it needs. What is drawn from a bank does not depend on that.

    Args:
        sounds: float32 arrays [shape=(n,)], n > 0, finite.
        sample_rate: Samples per second, > 0.
        names: What to call them, one each; None: their numbers.
        device_bytes: Most bytes to hold on a GPU; None: 2 GiB or 5 % of its memory, whichever is less.

    Attributes:
        sample_rate: Samples per second.
        names: What the sounds are called.
        length: Samples of each, int64 [shape=(n,)].
        samples: Those of all, int16, one sound after another.

    Raises:
        TypeError, ValueError: An argument is not what is said above.
    """

    def __init__(
        self,
        sounds: Sequence[npt.NDArray[np.float32]],
        *,
        sample_rate: int,
        names: Sequence[str] | None = None,
        device_bytes: int | None = None,
    ) -> None:
        check_integer("sample_rate", sample_rate, 1)
        if device_bytes is not None:
            check_integer("device_bytes", device_bytes, 0)
        arrays = _checked(sounds)
        self.sample_rate = sample_rate
        self.names = [str(number) for number in range(len(arrays))] if names is None else list(names)
        if len(self.names) != len(arrays):
            raise ValueError(f"names has {len(self.names)} entries for {len(arrays)} sounds")
        self.length = np.array([len(array) for array in arrays], np.int64)
        self._first = np.cumsum(self.length) - self.length
        self._step = np.empty(len(arrays))
        self.samples = np.empty(int(self.length.sum()), np.int16)
        for number, array in enumerate(arrays):
            step = float(np.abs(array).max()) / _FULL_SCALE or 1.0
            first = self._first[number]
            np.rint(array / step, out=self.samples[first : first + len(array)], casting="unsafe")
            self._step[number] = step
        self._device_bytes = device_bytes
        self._resident: dict[torch.device, torch.Tensor] = {}

    @classmethod
    def from_files(
        cls,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        sample_rate: int,
        device_bytes: int | None = None,
    ) -> SoundBank:
        """Decode files, or all files in a folder and its subfolders, and resample them.

        Args:
            paths: Sound or video files, or a folder.
            sample_rate: Of the bank, > 0.
            device_bytes: As for the class.

        Raises:
            MediaError: If a file cannot be read or has no sound.
        """
        check_integer("sample_rate", sample_rate, 1)
        names = _file_names(paths)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            sounds = list(pool.map(lambda name: _decode(name, sample_rate), names))
        return cls(sounds, sample_rate=sample_rate, names=names, device_bytes=device_bytes)

    def __len__(self) -> int:
        return len(self.length)

    def __repr__(self) -> str:
        seconds = len(self.samples) / self.sample_rate
        return f"SoundBank({len(self)} sounds, {seconds:.1f} s at {self.sample_rate} Hz)"

    def step(self, sound: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """What a unit of the spans is worth, a sound [shape=(R,)]."""
        return self._step[sound]

    def sound(self, number: int) -> npt.NDArray[np.float32]:
        """One sound [shape=(n,)], as it is mixed in."""
        first = self._first[number]
        samples = self.samples[first : first + self.length[number]]
        result: npt.NDArray[np.float32] = (samples * self._step[number]).astype(np.float32)
        return result

    def spans(
        self,
        host: dict[str, npt.NDArray[np.int64]],
        columns: dict[str, torch.Tensor],
        num_samples: int,
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where stretches of sounds are on a GPU.

        Args:
            host: ``sound``: which one; ``offset``: its sample that stands at ``start``; ``start``, ``stop``: where in
                the clip it stands. int64 [shape=(R,)] each.
            columns: ``first``, ``length``, ``offset``, ``start`` on the device.
            num_samples: N.
            device: Which one.

        Returns:
            Samples, int16 [shape=(M,)], and for each clip where in them its sound begins, how long that is (behind its
            end comes its beginning again), and its sample that stands at ``start``, int64 [shape=(R,)] each.
        """
        resident = self._on(device)
        if resident is not None:
            return resident, columns["first"], columns["length"], columns["offset"]
        pinned = torch.zeros(len(host["sound"]), num_samples, dtype=torch.int16, pin_memory=True)
        self._fill(pinned.numpy(), host)
        streamed = pinned.to(device, non_blocking=True).view(-1)
        first = torch.arange(len(pinned), device=device) * num_samples + columns["start"]
        return streamed, first, torch.full_like(first, num_samples), torch.zeros_like(first)

    def places(self, sound: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
        """``first`` and ``length`` of sounds, for `spans`."""
        return {"first": self._first[sound], "length": self.length[sound]}

    def _fill(self, out: npt.NDArray[np.int16], host: dict[str, npt.NDArray[np.int64]]) -> None:
        names = ("sound", "offset", "start", "stop")
        for row, (sound, offset, start, stop) in enumerate(zip(*(host[name].tolist() for name in names), strict=True)):
            first, length = int(self._first[sound]), int(self.length[sound])
            samples = self.samples[first : first + length]
            at = start
            while at < stop:
                count = min(length - offset, stop - at)
                out[row, at : at + count] = samples[offset : offset + count]
                at, offset = at + count, 0

    def _on(self, device: torch.device) -> torch.Tensor | None:
        """The bank on a GPU, if it fits."""
        if device not in self._resident:
            limit = self._device_bytes
            if limit is None:
                limit = min(_MOST_BYTES, int(_MOST_PART * torch.cuda.get_device_properties(device).total_memory))
            if self.samples.nbytes > limit:
                return None
            self._resident[device] = torch.from_numpy(self.samples).to(device)
        return self._resident[device]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_resident": {}}


class ImpulseResponseBank:
    """Impulse responses of rooms, each shifted so that its direct path, its greatest absolute value, stands at time 0.

    Args:
        responses: float32 arrays [shape=(n,)], n > 0, finite, not silent.
        sample_rate: Samples per second, > 0.
        names: What to call them, one each; None: their numbers.
        max_seconds: What lies further behind the direct path is cut off.

    Raises:
        TypeError, ValueError: An argument is not what is said above.
    """

    def __init__(
        self,
        responses: Sequence[npt.NDArray[np.float32]],
        *,
        sample_rate: int,
        names: Sequence[str] | None = None,
        max_seconds: float = 2.0,
    ) -> None:
        check_integer("sample_rate", sample_rate, 1)
        arrays = _checked(responses)
        if not max_seconds > 0:
            raise ValueError(f"max_seconds={max_seconds} must be above 0")
        self.sample_rate = sample_rate
        self.names = [str(number) for number in range(len(arrays))] if names is None else list(names)
        if len(self.names) != len(arrays):
            raise ValueError(f"names has {len(self.names)} entries for {len(arrays)} responses")
        direct = [int(np.abs(array).argmax()) for array in arrays]
        for number, (array, index) in enumerate(zip(arrays, direct, strict=True)):
            if array[index] == 0:
                raise ValueError(f"response {self.names[number]} is silent")
        after = max(len(array) - index for array, index in zip(arrays, direct, strict=True))
        after = min(after, max(round(max_seconds * sample_rate), 1))
        self.middle = max(direct)
        self.taps = np.zeros((len(arrays), self.middle + after), np.float32)
        for row, array, index in zip(self.taps, arrays, direct, strict=True):
            cut = array[: index + after]
            row[self.middle - index : self.middle - index + len(cut)] = cut / array[index]
        self._resident: dict[torch.device, torch.Tensor] = {}

    @classmethod
    def from_files(
        cls,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        sample_rate: int,
        max_seconds: float = 2.0,
    ) -> ImpulseResponseBank:
        """Decode files, or all files in a folder and its subfolders, and resample them.

        Raises:
            MediaError: If a file cannot be read or has no sound.
        """
        check_integer("sample_rate", sample_rate, 1)
        names = _file_names(paths)
        sounds = [_decode(name, sample_rate) for name in names]
        return cls(sounds, sample_rate=sample_rate, names=names, max_seconds=max_seconds)

    def __len__(self) -> int:
        return len(self.taps)

    def on(self, device: torch.device) -> torch.Tensor:
        """All responses [shape=(n, taps)], float32; the direct path is 1 and stands at `middle`."""
        if device not in self._resident:
            self._resident[device] = torch.from_numpy(self.taps).to(device)
        return self._resident[device]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_resident": {}}


def _checked(sounds: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    arrays = [np.asarray(sound, np.float32) for sound in sounds]
    if not arrays:
        raise ValueError("a bank must hold at least one sound")
    for number, array in enumerate(arrays):
        if array.ndim != 1 or not len(array):
            raise ValueError(f"sound {number} must have shape (n,), n > 0, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"sound {number} holds values that are not finite")
    return arrays


def _file_names(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    if isinstance(paths, (str, os.PathLike)):
        folder = Path(paths)
        if not folder.is_dir():
            return [os.fspath(paths)]
        names = sorted(os.fspath(path) for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    else:
        names = [os.fspath(path) for path in paths]
    if not names:
        raise ValueError(f"paths={paths!r} holds no file")
    return names


def _decode(name: str, sample_rate: int) -> npt.NDArray[np.float32]:
    """The whole sound of a file."""
    import soxr

    from avloader.audio import AudioReader
    from avloader.media import probe

    info = probe(name).audio
    if info is None:
        raise MediaError("has no sound", path=name, remedy="Leave the file out", code="no_audio")
    with AudioReader(name, info) as reader:
        sound, _ = reader.read(0, info.num_samples)
    result: npt.NDArray[np.float32] = soxr.resample(sound, info.sample_rate, sample_rate, quality="HQ")
    return result
