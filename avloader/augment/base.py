"""What transforms have in common, and how a chain of them runs.

All randomness is drawn first, on the host, for the whole batch and all transforms at once; what was drawn goes to the
device in one copy. Each transform then works on the clips that it was drawn for, and on no others: their samples keep
their bits. Gains are not applied one by one but handed on to the next transform that reads the sound anyway.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from avloader.augment.checks import check_number
from avloader.augment.keys import ClipKeys, Draw, draws, name_tag
from avloader.augment.rows import Clips, Columns, Pictures, Rows, scaled, ship
from avloader.threads import workers

__all__ = [
    "Augmented",
    "AugmentedFrames",
    "FeatureTransform",
    "Node",
    "PictureTransform",
    "ReadingTransform",
    "Transform",
    "activations",
    "augment_features",
    "augment_pictures",
    "augment_sound",
]

Active = tuple["Leaf", str, npt.NDArray[np.bool_]]

# Sound of so many clips goes through the whole chain at a time, to stay in the caches; more if it is only looped over.
_CPU_BYTES, _LOOPED_BYTES = 2**20, 2**23


@dataclass(frozen=True, slots=True)
class Augmented:
    """What a chain returns.

    Attributes:
        audio: The sound [shape=(B, N)], float32, on the device of the input.
        parameters: What was drawn, by the transform's name: columns [shape=(B,)] such as ``snr_db``, zero where
            ``active`` is False, and tensors such as ``noise`` [shape=(B, N)]. Columns are on the CPU, unless they were
            computed from the sound.
    """

    audio: torch.Tensor
    parameters: dict[str, dict[str, torch.Tensor]]

    def __repr__(self) -> str:
        return f"Augmented({tuple(self.audio.shape)} on {self.audio.device}; {', '.join(self.parameters)})"


@dataclass(frozen=True, slots=True)
class AugmentedFrames:
    """What `Node.augment_frames` returns.

    Attributes:
        frames: The pictures [shape=(B, F, C, H, W)], as the input in type and device.
        parameters: What was drawn, by the transform's name, as in `Augmented`.
    """

    frames: torch.Tensor
    parameters: dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Node(ABC):
    """A transform or a group of them.

    Args:
        p: Probability that it is applied, for each clip by itself, in [0, 1].
        name: What its draws are keyed by and its parameters are returned under; None: its class's name, from the
            second of a class on with a number (``"Gain.2"``).
    """

    p: float = 0.5
    name: str | None = None

    num_words: ClassVar[int] = 0  # random words a clip, besides the one for p
    breaks_sync: ClassVar[str] = ""  # why sound and picture no longer agree after it

    def __post_init__(self) -> None:
        check_number("p", self.p, 0, 1)
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise TypeError(f"name={self.name!r} must be text or None")

    @property
    def children(self) -> Sequence[Node]:
        """The nodes of a group."""
        return ()

    def __call__(
        self,
        audio: torch.Tensor,
        *,
        keys: ClipKeys,
        sample_rate: int,
        lengths: npt.ArrayLike | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        origin: int = 0,
    ) -> Augmented:
        """Augment the sound of a batch; transforms of pictures leave it alone.

        Args:
            audio: Sound [shape=(B, N)], float32, on CPU or GPU; zeros beyond the clips' lengths. It is not changed.
            keys: Which clips these are; the draws depend on nothing else but the options and the lengths.
            sample_rate: Samples per second, > 0.
            lengths: Samples of each clip [shape=(B,)], or ranges [first, stop) [shape=(B, 2)]; None: all N. A tensor
                on a GPU is waited for.
            num_frames: Pictures of each clip, for transforms of both.
            fps: Pictures per second, for transforms of both.
            origin: The sample at which the first picture is shown, for transforms of both.

        Raises:
            TypeError, ValueError: An argument is not what is said above.
        """
        self._check_alone()
        return augment_sound(
            self,
            audio,
            keys=keys,
            sample_rate=sample_rate,
            lengths=lengths,
            num_frames=num_frames,
            fps=fps,
            origin=origin,
        )

    def augment_frames(self, frames: torch.Tensor, *, keys: ClipKeys) -> AugmentedFrames:
        """Augment the pictures of a batch; transforms of sound leave them alone.

        Args:
            frames: Pictures [shape=(B, F, C, H, W)], uint8, or float32 in 0-255 units, on CPU or GPU. Not changed.
            keys: Which clips these are, the same as for the sound.

        Raises:
            TypeError, ValueError: An argument is not what is said above.
        """
        self._check_alone()
        return augment_pictures(self, frames, keys=keys)

    def transforms_below(self) -> list[Node]:
        """All transforms of the group, or the transform itself."""
        nodes = [node for child in self.children for node in child.transforms_below()]
        return nodes if self.children else [self]

    def check_sync(self) -> None:
        """Refuse what would move sound against picture.

        Raises:
            ValueError: If the transform, or one of the group, does; it says why.
        """
        for node in self.transforms_below():
            if node.breaks_sync:
                raise ValueError(
                    f"{type(node).__name__} cannot be applied to clips with pictures: {node.breaks_sync}; apply it to "
                    "sound alone, or leave it out"
                )

    def _check_alone(self) -> None:
        for node in self.transforms_below():
            if isinstance(node, ReadingTransform):
                raise ValueError(
                    f"{type(node).__name__} changes what is read of a clip: give it to AVLoader(augment=...), "
                    "not to tensors"
                )

    def _activate(self, words: dict[str, Draw], names: dict[int, str], mask: npt.NDArray[np.bool_]) -> Iterator[Active]:
        """The transforms in order, each with the clips that it is applied to."""
        draw = words[names[id(self)]]
        yield from self._choose(draw, words, names, mask & (draw.uniform(0) < self.p))

    @abstractmethod
    def _choose(
        self, draw: Draw, words: dict[str, Draw], names: dict[int, str], mask: npt.NDArray[np.bool_]
    ) -> Iterator[Active]:
        """The same, once it is known which clips the node itself is applied to."""


@dataclass(frozen=True, kw_only=True)
class Leaf(Node):
    """One transform."""

    def _choose(
        self, draw: Draw, words: dict[str, Draw], names: dict[int, str], mask: npt.NDArray[np.bool_]
    ) -> Iterator[Active]:
        yield self, names[id(self)], mask


@dataclass(frozen=True, kw_only=True)
class ReadingTransform(Leaf):
    """One transform that changes what is read of a clip: the plan asks for it, and no tensor is changed after that."""


@dataclass(frozen=True, kw_only=True)
class PictureTransform(Leaf):
    """One transform of pictures, the same for all frames of a clip."""

    needs_rgb: ClassVar[bool] = False  # whether the channels have to be red, green, blue
    is_for_all: ClassVar[bool] = False  # whether it has to work on all clips, told which are active

    @abstractmethod
    def draw_frames(self, draw: Draw, pictures: Pictures) -> Columns:
        """What is random, for every clip [shape=(B, ...)]; word 0 is for p."""

    @abstractmethod
    def apply_to_frames(self, frames: torch.Tensor, columns: dict[str, torch.Tensor]) -> torch.Tensor:
        """The pictures after it, a new tensor. Row i depends on row i alone."""


@dataclass(frozen=True, kw_only=True)
class FeatureTransform(Leaf):
    """One transform of spectrograms."""

    @abstractmethod
    def draw_features(
        self, draw: Draw, active: npt.NDArray[np.bool_], num_bins: int, num_hops: npt.NDArray[np.int64]
    ) -> Columns:
        """What is random, for every clip [shape=(B, ...)]; nothing is done to those that are not active."""

    @abstractmethod
    def apply_to_features(self, features: torch.Tensor, columns: dict[str, torch.Tensor]) -> torch.Tensor:
        """The spectrograms after it, a new tensor; "num_hops" is a column too. Row i depends on row i alone."""


@dataclass(frozen=True, kw_only=True)
class Transform(Leaf):
    """One transform of sound."""

    takes_scale: ClassVar[bool] = False  # whether it applies the gain in column "scale" on its way
    is_gain: ClassVar[bool] = False  # whether it is nothing but the gain in column "scale"
    is_loop: ClassVar[bool] = False  # whether the CPU does it in few passes over the samples

    @abstractmethod
    def draw(self, draw: Draw, clips: Clips) -> Columns:
        """What is random, for every clip [shape=(B, ...)]; word 0 is for p."""

    @abstractmethod
    def apply(self, rows: Rows) -> torch.Tensor:
        """The sound after it, a new tensor [shape=(R, N)]. Row i depends on row i alone."""

    def reported(self, columns: Columns) -> Columns:
        """The columns to return."""
        return columns

    def measured(self, num_samples: int) -> dict[str, tuple[int, ...]]:
        """What `apply` returns besides, by name: its shape for one clip; float32, or float64 where that is ()."""
        return {}


@dataclass(frozen=True, kw_only=True)
class _Scale(Transform):
    """Gains that no transform took."""

    takes_scale = True
    is_loop = True

    def draw(self, draw: Draw, clips: Clips) -> Columns:
        raise NotImplementedError

    def apply(self, rows: Rows) -> torch.Tensor:
        return scaled(rows, rows.columns["scale"])


@dataclass(slots=True)
class _Step:
    """A transform with its clips and what was drawn for them."""

    transform: Transform
    name: str
    rows: npt.NDArray[np.int64]
    columns: Columns


class _Chain:
    """A node and all below it, named."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self._names: dict[int, str] = {}
        self._num_words: dict[str, int] = {}
        self._nodes: list[Node] = []
        counts: dict[str, int] = {}
        self._add(root, counts)
        if len({name_tag(name) for name in self._num_words}) < len(self._num_words):
            raise ValueError(f"two of the names {', '.join(self._num_words)} draw the same; give another name= to one")

    def _add(self, node: Node, counts: dict[str, int]) -> None:
        name = node.name
        if name is None:
            kind = type(node).__name__
            counts[kind] = counts.get(kind, 0) + 1
            name = kind if counts[kind] == 1 else f"{kind}.{counts[kind]}"
        if name in self._num_words or id(node) in self._names:
            raise ValueError(f"two transforms are named {name!r}; give name= to one, and use no transform object twice")
        self._names[id(node)] = name
        self._num_words[name] = 2 + node.num_words + len(node.children)
        self._nodes.append(node)
        for child in node.children:
            self._add(child, counts)

    def activations(self, keys: ClipKeys) -> Iterator[tuple[Leaf, str, Draw, npt.NDArray[np.bool_]]]:
        words = draws(keys, self._num_words)
        for leaf, name, active in self._root._activate(words, self._names, np.ones(len(keys), np.bool_)):
            yield leaf, name, words[name], active

    def run(self, audio: torch.Tensor, keys: ClipKeys, clips: Clips) -> Augmented:
        parameters: dict[str, dict[str, torch.Tensor]] = {}
        steps = self._plan(audio, keys, clips, parameters)
        if not steps:
            return Augmented(audio.clone(), parameters)
        if audio.device.type != "cpu":
            return Augmented(_run_group(audio, 0, len(audio), steps, clips, parameters, None), parameters)
        audio = audio.contiguous()
        result = torch.from_numpy(np.empty(audio.shape, np.float32))  # which the system gives in huge pages
        num_threads = torch.get_num_threads()
        is_looped = all(step.transform.is_loop for step in steps)
        most = (_LOOPED_BYTES if is_looped else _CPU_BYTES) // (4 * max(clips.num_samples, 1))
        group = max(min(most, -(-len(audio) // num_threads)), 1)

        def run_group(first: int) -> None:
            stop = min(first + group, len(audio))
            out = result[first:stop]
            done = _run_group(audio, first, stop, steps, clips, parameters, out)
            if done is not out:
                out.copy_(done)

        for _ in workers().map(run_group, range(0, len(audio), group)):
            pass
        return Augmented(result, parameters)

    def run_frames(self, frames: torch.Tensor, keys: ClipKeys) -> AugmentedFrames:
        parameters: dict[str, dict[str, torch.Tensor]] = {}
        result = frames
        for transform, name, draw, active in self.activations(keys):
            if not isinstance(transform, PictureTransform):
                continue
            size, num_frames, _, height, width = result.shape
            columns = transform.draw_frames(draw, Pictures(size, num_frames, height, width))
            parameters[name] = _reported(active, columns)
            rows = np.flatnonzero(active)
            if transform.is_for_all:
                result = transform.apply_to_frames(result, ship(columns | {"active": active}, frames.device))
            elif len(rows) == size:
                result = transform.apply_to_frames(result, ship(columns, frames.device))
            elif len(rows):
                shipped = ship({key: column[rows] for key, column in columns.items()} | {"rows": rows}, frames.device)
                some = shipped.pop("rows")
                result = result.index_copy(0, some, transform.apply_to_frames(result[some], shipped))
        return AugmentedFrames(result.clone() if result is frames else result, parameters)

    def run_features(
        self, features: torch.Tensor, keys: ClipKeys, num_hops: npt.NDArray[np.int64]
    ) -> tuple[torch.Tensor, dict[str, dict[str, torch.Tensor]]]:
        parameters: dict[str, dict[str, torch.Tensor]] = {}
        for transform, name, draw, active in self.activations(keys):
            if isinstance(transform, FeatureTransform):
                columns = transform.draw_features(draw, active, features.shape[1], num_hops)
                parameters[name] = _reported(active, columns)
                features = transform.apply_to_features(
                    features, ship(columns | {"num_hops": num_hops}, features.device)
                )
        return features, parameters

    def _plan(
        self, audio: torch.Tensor, keys: ClipKeys, clips: Clips, parameters: dict[str, dict[str, torch.Tensor]]
    ) -> list[_Step]:
        """Draw everything."""
        words = draws(keys, self._num_words)
        everyone = clips.length > 0
        scale = np.ones(len(keys), np.float32)
        steps: list[_Step] = []
        for transform, name, active in self._root._activate(words, self._names, everyone):
            if not isinstance(transform, Transform):
                continue
            columns = transform.draw(words[name], clips)
            rows = np.flatnonzero(active)
            is_all = 0 < len(rows) == len(active)
            parameters[name] = _reported(active, transform.reported(columns))
            if not is_all or audio.device.type == "cpu":  # else it comes for all clips at once
                for key, shape in transform.measured(audio.shape[1]).items():
                    dtype = torch.float32 if shape else torch.float64
                    parameters[name][key] = torch.zeros(len(audio), *shape, dtype=dtype, device=audio.device)
            if not len(rows):
                continue
            chosen = dict(columns) if is_all else {key: column[rows] for key, column in columns.items()}
            if transform.is_gain:
                scale[rows] *= chosen["scale"]
                continue
            if transform.takes_scale:
                chosen["scale"] = scale[rows]
                scale[rows] = 1.0
            else:
                _add_scale(steps, scale, rows)
            steps.append(_Step(transform, name, rows, chosen))
        _add_scale(steps, scale, np.arange(len(keys)))
        return steps


def augment_sound(
    node: Node,
    audio: torch.Tensor,
    *,
    keys: ClipKeys,
    sample_rate: int,
    lengths: npt.ArrayLike | None,
    num_frames: int | None,
    fps: float | None,
    origin: int,
) -> Augmented:
    """`Node.__call__` for clips that were read as the chain's transforms of reading want it."""
    clips = _checked(audio, keys, sample_rate, lengths)
    clips = dataclasses.replace(clips, num_frames=num_frames, fps=fps, origin=origin)
    return _Chain(node).run(audio, keys, clips)


def augment_pictures(node: Node, frames: torch.Tensor, *, keys: ClipKeys) -> AugmentedFrames:
    """`Node.augment_frames` for clips that were read as the chain's transforms of reading want it."""
    if not isinstance(frames, torch.Tensor) or frames.ndim != 5 or frames.dtype not in (torch.uint8, torch.float32):
        raise TypeError("frames must be a uint8 or float32 tensor of shape (B, F, C, H, W)")
    if len(keys) != len(frames):
        raise ValueError(f"keys has {len(keys)} clips, but frames has {len(frames)}")
    return _Chain(node).run_frames(frames, keys)


def augment_features(
    node: Node, features: torch.Tensor, *, keys: ClipKeys, num_hops: npt.ArrayLike | None = None
) -> tuple[torch.Tensor, dict[str, dict[str, torch.Tensor]]]:
    """The spectrograms of a batch after the chain's transforms of spectrograms, and what was drawn.

    Args:
        node: The chain.
        features: float32 [shape=(B, bins, hops)], on CPU or GPU. Not changed.
        keys: Which clips these are.
        num_hops: Hops of each clip [shape=(B,)], on the CPU; None: all.

    Raises:
        ValueError: An argument is not what is said above.
    """
    if features.ndim != 3 or len(features) != len(keys):
        raise ValueError(
            f"spectrogram must have shape ({len(keys)}, bins, hops), one a key, got {tuple(features.shape)}"
        )
    size, _, most = features.shape
    lengths = np.full(size, most) if num_hops is None else np.asarray(num_hops).astype(np.int64)
    return _Chain(node).run_features(features, keys, lengths)


def activations(node: Node, keys: ClipKeys) -> Iterator[tuple[Leaf, str, Draw, npt.NDArray[np.bool_]]]:
    """The transforms in order: name, draws, and the clips that each is applied to."""
    return _Chain(node).activations(keys)


def _reported(active: npt.NDArray[np.bool_], columns: Columns) -> dict[str, torch.Tensor]:
    result = {"active": torch.from_numpy(active)}
    is_all = active.all()
    for key, column in columns.items():
        if is_all:
            shown = column.copy()
        else:
            mask = active.reshape(-1, *[1] * (column.ndim - 1))
            shown = np.where(mask, column, 0).astype(column.dtype)
        result[key] = torch.from_numpy(shown)
    return result


def _add_scale(steps: list[_Step], scale: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> None:
    """Have the gains applied that `rows` still wait for."""
    waiting = rows[scale[rows] != 1.0]
    if len(waiting):
        steps.append(_Step(_Scale(), "", waiting, {"scale": scale[waiting]}))
        scale[waiting] = 1.0


def _run_group(
    audio: torch.Tensor,
    first: int,
    stop: int,
    steps: Sequence[_Step],
    clips: Clips,
    parameters: dict[str, dict[str, torch.Tensor]],
    out: torch.Tensor | None,
) -> torch.Tensor:
    """Clips [first, stop) through all steps; in `out`, or elsewhere."""
    here: list[tuple[_Step, bool, Columns]] = []
    flat = _ends(clips, slice(first, stop))
    for step in steps:
        low, high = (
            np.searchsorted(step.rows, (first, stop)) if stop - first < len(clips.start) else (0, len(step.rows))
        )
        if low == high:
            continue
        rows = step.rows[low:high]
        columns = {key: column[low:high] for key, column in step.columns.items()}
        flat |= {f"{len(here)} {key}": column for key, column in columns.items()}
        columns |= {"start": clips.start[rows], "stop": clips.stop[rows]}
        is_all = len(rows) == stop - first
        if not is_all:
            flat |= {f"{len(here)} {key}": column for key, column in _ends(clips, rows).items()}
            flat[f"{len(here)} rows"] = rows - first
        here.append((step, is_all, columns))
    shipped = ship(flat, audio.device)
    result, is_own = audio[first:stop], False
    for number, (step, is_all, host) in enumerate(here):
        some = None if is_all else shipped[f"{number} rows"]
        start, end = (shipped[key if is_all else f"{number} {key}"] for key in ("start", "stop"))
        work = Rows(
            audio=result if some is None else result[some],
            sample_rate=clips.sample_rate,
            start=start,
            stop=end,
            is_full=bool((host["start"] == 0).all() and (host["stop"] == clips.num_samples).all()),
            columns={key: shipped[f"{number} {key}"] for key in step.columns},
            host=host,
            out=out if number == len(here) - 1 and is_all else None,
        )
        changed = step.transform.apply(work)
        if some is not None:
            changed = (result if is_own else result.clone()).index_copy_(0, some, changed)
        result, is_own = changed, True
        for key, value in work.returned.items():
            if key not in parameters[step.name]:
                parameters[step.name][key] = value
                continue
            place = parameters[step.name][key][first:stop]
            if some is None:
                place.copy_(value)
            else:
                place.index_copy_(0, some, value.to(place.dtype))
    return result


def _ends(clips: Clips, rows: slice | npt.NDArray[np.int64]) -> Columns:
    """Where some of the clips begin and end, as transforms want it."""
    return {"start": clips.start[rows].astype(np.int32), "stop": clips.stop[rows].astype(np.int32)}


def _checked(
    audio: torch.Tensor,
    keys: ClipKeys,
    sample_rate: int,
    lengths: npt.ArrayLike | None,
) -> Clips:
    if not isinstance(audio, torch.Tensor) or audio.ndim != 2 or audio.dtype != torch.float32:
        got = f"{audio.dtype} {tuple(audio.shape)}" if isinstance(audio, torch.Tensor) else repr(type(audio).__name__)
        raise TypeError(f"audio must be a float32 tensor of shape (B, N), got {got}")
    if not isinstance(keys, ClipKeys):
        raise TypeError(f"keys={keys!r} must be ClipKeys")
    if len(keys) != len(audio):
        raise ValueError(f"keys has {len(keys)} clips, but audio has {len(audio)}")
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, int):
        raise TypeError(f"sample_rate={sample_rate!r} must be an integer")
    if sample_rate < 1:
        raise ValueError(f"sample_rate={sample_rate} must be 1 or more")
    size, num_samples = audio.shape
    if lengths is None:
        return Clips(num_samples, sample_rate, np.zeros(size, np.int64), np.full(size, num_samples))
    ranges = np.asarray(lengths.cpu() if isinstance(lengths, torch.Tensor) else lengths)
    if ranges.shape not in ((size,), (size, 2)) or (size and ranges.dtype.kind not in "iu"):
        raise ValueError(
            f"lengths must be integers of shape ({size},) or ({size}, 2), got {ranges.dtype} {ranges.shape}"
        )
    ranges = ranges.astype(np.int64)
    start, stop = (np.zeros_like(ranges), ranges) if ranges.ndim == 1 else (ranges[:, 0], ranges[:, 1])
    if not ((start >= 0) & (start <= stop) & (stop <= num_samples)).all():
        raise ValueError(f"lengths must lie in [0, {num_samples}], got {ranges.tolist()}")
    return Clips(num_samples, sample_rate, start, stop)
