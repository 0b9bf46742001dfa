"""The loader delivers the same clips however it runs, says what went wrong, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import gc
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TruthMedia
from truth import linear_frames, linear_rgb, linear_window, read_number, snr_db

from avloader import AVLoader, DecodeError, Manifest, ManifestError, MelSpectrogram, Spectrogram, build_manifest
from avloader.batch import AVBatch
from avloader.gathering import Horizon, Part, fill
from avloader.reading import Route
from avloader.schedule import RouteOptions

NUM_FRAMES, STRIDE = 8, 2
SIZE = (36, 64)
MEL = MelSpectrogram(n_fft=256, hop_length=80, n_mels=20)
INTERVALS = [("0", "2.4"), ("2.4", "6.13"), ("4", ""), ("0.5", "1.14")]
MEDIA = ["mp4_25", "three_b_frames", "no_edit_list", "stereo_44100"]

on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])


def build(rows: Iterable[Sequence[object]], folder: Path) -> Manifest:
    """A manifest of rows (path, start, end, label[, audio_path])."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end", "label", "audio_path"])
        for row in rows:
            writer.writerow([*row, *[""] * (5 - len(row))])
    return build_manifest(folder / "clips.csv", media_root=folder, output=folder / "manifest", progress=False)


@pytest.fixture(scope="session")
def manifest(truth_media: TruthMedia, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    rows = [
        (truth_media[name], start, end, f"class {number}")
        for name in MEDIA
        for number, (start, end) in enumerate(INTERVALS)
    ]
    made = build(rows, tmp_path_factory.mktemp("loader"))
    assert len(made) == len(rows)
    return made


def loader_of(manifest: Manifest | str | Path, **options: Any) -> AVLoader:
    defaults: dict[str, Any] = {
        "batch_size": 7,
        "num_frames": NUM_FRAMES,
        "stride": STRIDE,
        "size": SIZE,
        "normalize": None,
        "features": MEL,
        "device": "cpu",
        "num_workers": 1,
    }
    return AVLoader(manifest, **(defaults | options))


@dataclass(frozen=True)
class Seen:
    """One delivered clip, by value."""

    facts: tuple[Any, ...]
    frames: bytes
    audio: bytes
    spectrogram: bytes

    @property
    def row(self) -> int:
        row: int = self.facts[0]
        return row


def clips_of(batches: Iterable[AVBatch]) -> list[Seen]:
    """What the batches hold, clip by clip."""
    seen = []
    for batch in batches:
        assert batch.spectrogram is not None
        for place in range(len(batch)):
            facts = (
                int(batch.row[place]),
                int(batch.label[place]),
                tuple(batch.frame_seconds[place].tolist()),
                float(batch.audio_start_seconds[place]),
                tuple(batch.audio_valid[place].tolist()),
                float(batch.offset_seconds[place]),
            )
            tensors = (batch.frames[place], batch.audio[place], batch.spectrogram[place])
            seen.append(Seen(facts, *(tensor.cpu().numpy().tobytes() for tensor in tensors)))
    return seen


def run(manifest: Manifest, *, epoch: int = 0, **options: Any) -> list[Seen]:
    """One epoch of a loader that is closed again."""
    with loader_of(manifest, **options) as loader:
        loader.set_epoch(epoch)
        return clips_of(loader)


def check_same(got: Sequence[Seen], expected: Sequence[Seen], device: str = "cpu") -> None:
    """The same clips: on the CPU to the bit, on a GPU the same pictures with other rounding."""
    assert [clip.facts for clip in got] == [clip.facts for clip in expected]
    if device == "cpu":
        assert got == expected
        return
    for one, other in zip(got, expected, strict=True):
        pictures = [np.frombuffer(clip.frames, np.uint8).astype(np.int64) for clip in (one, other)]
        assert np.abs(pictures[0] - pictures[1]).mean() < 4
        sounds = [np.frombuffer(clip.audio, np.float32) for clip in (one, other)]
        np.testing.assert_allclose(*sounds, atol=1e-6, rtol=0)
        bins = [np.frombuffer(clip.spectrogram, np.float32) for clip in (one, other)]
        np.testing.assert_allclose(*bins, atol=1e-2, rtol=1e-3)


def frame_indices(path: str, seconds: Iterable[float]) -> list[int]:
    """The frames that a linear decode shows at these times."""
    times = [float(time) for time in linear_frames(path).times]
    return [times.index(second) for second in seconds]


@pytest.fixture(scope="session")
def reference(manifest: Manifest) -> list[Seen]:
    """One epoch: one worker, clips one by one."""
    return run(manifest, num_workers=1, batch_size=1)


# The same clips everywhere --------------------------------------------------------------------------------------------


def test_the_reference_holds_every_window_of_every_row_in_order(manifest: Manifest, reference: list[Seen]) -> None:
    expected = []
    for number in range(len(manifest)):
        row = manifest.row(number)
        times = [float(time) for time in linear_frames(row.path).times]
        for first in range(row.first_frame, row.stop_frame - (NUM_FRAMES - 1) * STRIDE, NUM_FRAMES * STRIDE):
            frames = range(first, first + NUM_FRAMES * STRIDE, STRIDE)
            expected.append((number, row.label, tuple(times[frame] for frame in frames), times[first]))
    assert [clip.facts[:3] for clip in reference] == [facts[:3] for facts in expected]
    for clip, (*_, start) in zip(reference, expected, strict=True):
        assert abs(clip.facts[3] - start) <= 0.5 / 44100


@on_both
@pytest.mark.parametrize(("num_workers", "batch_size"), [(1, 7), (1, 32), (2, 1), (2, 7), (3, 32)])
def test_neither_workers_nor_batch_size_change_the_clips(
    manifest: Manifest, reference: list[Seen], num_workers: int, batch_size: int, device: str
) -> None:
    with loader_of(manifest, num_workers=num_workers, batch_size=batch_size, device=device) as loader:
        batches = list(loader)
        assert len(batches) == len(loader) == -(-len(reference) // batch_size)
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    check_same(clips_of(batches), reference, device)


@pytest.mark.parametrize(
    ("num_lanes", "piece_clips", "batch_size"), [(1, 4, 7), (3, 4, 7), (8, 1, 7), (5, 3, 4), (2, 7, 7), (3, 5, 32)]
)
def test_lanes_that_share_batches_change_nothing_and_begin_few_at_a_time(
    manifest: Manifest,
    reference: list[Seen],
    monkeypatch: pytest.MonkeyPatch,
    num_lanes: int,
    piece_clips: int,
    batch_size: int,
) -> None:
    """As NVDEC's lanes work on a GPU: a batch comes in pieces, from several threads, ahead of its time."""
    awaited, ahead = [0], list[int]()
    move = Horizon.move

    def moved(self: Horizon, number: int) -> None:
        awaited[0] = number
        move(self, number)

    def filled(parts: Sequence[Part], outputs: dict[str, torch.Tensor]) -> None:
        ahead.append(parts[0].batch.number - awaited[0])
        fill(parts, outputs)

    monkeypatch.setattr(Horizon, "move", moved)
    monkeypatch.setattr("avloader.lanes.fill", filled)
    with loader_of(manifest, batch_size=batch_size) as loader:
        routes: dict[Route, RouteOptions] = {None: RouteOptions(num_lanes, piece_clips)}
        loader._decoding = dataclasses.replace(loader._decoding, routes=routes)
        for _ in range(2):
            batches = []
            for batch in loader:
                time.sleep(0.01)  # so that lanes get ahead as far as they may
                batches.append(batch)
            check_same(clips_of(batches), reference)
    assert max(ahead) < math.ceil(num_lanes * piece_clips / batch_size) + 2


@on_both
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_put_together_deliver_each_clip_once_in_the_plans_order(
    manifest: Manifest, reference: list[Seen], world_size: int, device: str
) -> None:
    batches: list[list[AVBatch]] = []
    for rank in range(world_size):
        with loader_of(manifest, batch_size=7, rank=rank, world_size=world_size, device=device) as loader:
            batches.append(list(loader))
            assert len(batches[-1]) == len(loader)
    steps = max(map(len, batches))
    in_order = [rank[step] for step in range(steps) for rank in batches if step < len(rank)]
    check_same(clips_of(in_order), reference, device)


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(state))
    return copied


def through_torch(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    copied: dict[str, Any] = torch.load(file, weights_only=True)
    return copied


@on_both
def test_resumed_at_any_batch_the_rest_is_what_was_not_delivered(
    manifest: Manifest, reference: list[Seen], device: str
) -> None:
    with loader_of(manifest, device=device) as first, loader_of(manifest, device=device) as second:
        states = [first.state_dict()]
        for batch in first:
            states.append(first.state_dict())
            del batch
        for number, state in enumerate(states):
            second.load_state_dict((through_json, through_torch)[number % 2](state))
            assert second.state_dict() == state
            check_same(clips_of(second), reference[7 * number :], device)
            assert second.state_dict()["epoch"] == 1


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 3), (3, 4)])
def test_resumed_with_another_world_and_batch_size_exactly_the_rest_is_delivered(
    manifest: Manifest, world_size: int, batch_size: int
) -> None:
    options = {"shuffle": True, "seed": 5}
    whole = run(manifest, **options)
    states = []
    for rank in range(2):
        with loader_of(manifest, rank=rank, world_size=2, **options) as loader:
            batches = iter(loader)
            next(batches), next(batches)
            states.append(loader.state_dict())
    assert states[0] == states[1]
    rest: list[list[AVBatch]] = []
    for rank in range(world_size):
        with loader_of(manifest, rank=rank, world_size=world_size, batch_size=batch_size, **options) as loader:
            loader.load_state_dict(states[0])
            rest.append(list(loader))
    in_order = [rank[step] for step in range(max(map(len, rest))) for rank in rest if step < len(rank)]
    assert clips_of(in_order) == whole[2 * 2 * 7 :]


@on_both
def test_shuffle_depends_on_seed_and_epoch_alone(manifest: Manifest, reference: list[Seen], device: str) -> None:
    orders = {}
    for seed in (0, 1):
        with loader_of(manifest, shuffle=True, seed=seed, device=device) as loader:
            for epoch in range(3):
                orders[seed, epoch] = clips_of(loader)  # each pass is the next epoch
    by_facts = {clip.facts: clip for clip in reference}
    for order in orders.values():
        assert sorted(clip.facts for clip in order) == sorted(by_facts)
        check_same(order, [by_facts[clip.facts] for clip in order], device)
    assert len({tuple(clip.facts for clip in order) for order in orders.values()}) == 6
    with loader_of(manifest, shuffle=True, seed=1, batch_size=3, num_workers=1, device="cpu") as loader:
        loader.set_epoch(2)
        check_same(orders[1, 2], clips_of(loader), device)


@pytest.mark.parametrize("windows", ["first", "center", "random"])
def test_one_window_of_a_row_is_where_it_should_be(manifest: Manifest, windows: str) -> None:
    span = 1 + (NUM_FRAMES - 1) * STRIDE
    with loader_of(manifest, clips=windows) as loader:
        epochs = [clips_of(loader) for _ in range(2)]
    assert windows == "random" or epochs[0] == epochs[1]
    starts = []
    for epoch in epochs:
        assert [clip.row for clip in epoch] == list(range(len(manifest)))
        for clip in epoch:
            row = manifest.row(clip.row)
            (first,) = frame_indices(row.path, clip.facts[2][:1])
            shown = np.frombuffer(clip.frames, np.uint8).reshape(NUM_FRAMES, 3, *SIZE).transpose(0, 2, 3, 1)
            assert [read_number(frame) for frame in shown] == list(range(first, first + span, STRIDE))
            before, after = first - row.first_frame, row.stop_frame - (first + span)
            assert before >= 0 <= after
            assert windows != "first" or before == 0
            assert windows != "center" or before <= after <= before + 1
            starts.append(first)
    if windows == "random":
        assert starts[: len(manifest)] != starts[len(manifest) :]
        assert run(manifest, clips="random", num_workers=1, batch_size=3) == epochs[0]
        assert run(manifest, clips="random", seed=1) != epochs[0]


def test_the_last_batch_is_partial_or_dropped(manifest: Manifest, reference: list[Seen]) -> None:
    size = 10
    assert len(reference) % size
    whole = len(reference) // size
    for last_batch, expected in (("partial", len(reference)), ("drop", whole * size)):
        with loader_of(manifest, batch_size=size, last_batch=last_batch) as loader:
            assert len(loader) == whole + (last_batch == "partial")
            batches = list(loader)
        assert len(batches) == whole + (last_batch == "partial")
        assert clips_of(batches) == reference[:expected]


def test_passes_advance_the_epoch_and_set_epoch_goes_anywhere(manifest: Manifest) -> None:
    with loader_of(manifest, shuffle=True) as loader:
        first, second = clips_of(loader), clips_of(loader)
        assert loader.state_dict()["epoch"] == 2
        loader.set_epoch(0)
        assert clips_of(loader) == first
        loader.set_epoch(1)
        assert clips_of(loader) == second


def test_an_epoch_whose_last_batch_was_taken_is_over_though_its_end_was_not_asked_for(manifest: Manifest) -> None:
    """Lightning counts batches, and leaves the iterator where it is."""
    with loader_of(manifest, shuffle=True) as loader:
        epochs = [clips_of(loader) for _ in range(3)]
        loader.set_epoch(0)
        iterators = []
        for epoch in epochs:
            iterators.append(iter(loader))
            assert clips_of(itertools.islice(iterators[-1], len(loader))) == epoch
            del iterators[:-1]  # the one before goes when the next one runs
        loader.set_epoch(1)
        for number, _ in enumerate(loader, start=1):
            if number == len(loader):
                break
        assert loader.state_dict()["epoch"] == 1
        loader.set_epoch(2)
        assert clips_of(loader) == epochs[2]


def test_after_a_break_the_next_pass_starts_the_epoch_again(manifest: Manifest) -> None:
    with loader_of(manifest, shuffle=True) as loader:
        for number, _ in enumerate(loader):
            if number == 2:
                break
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == (0, 21)
        whole = clips_of(loader)
        assert loader.state_dict()["epoch"] == 1
        loader.load_state_dict(state)
        for _ in loader:
            break
        assert loader.state_dict()["position"] == 28
        assert clips_of(loader) == whole[21:]


def test_the_start_of_a_second_iterator_ends_the_first_one(manifest: Manifest, reference: list[Seen]) -> None:
    with loader_of(manifest) as loader:
        one, other = iter(loader), iter(loader)
        assert clips_of([next(one)]) == reference[:7]
        assert clips_of([next(other)]) == reference[:7]
        assert list(one) == []
        assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (0, 7)
        assert clips_of(other) == reference[7:]
        assert loader.state_dict()["epoch"] == 1


def test_closing_in_the_middle_ends_the_iterator_and_keeps_the_state(manifest: Manifest, reference: list[Seen]) -> None:
    loader = loader_of(manifest)
    batches = iter(loader)
    next(batches)
    loader.close()
    assert list(batches) == []
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (0, 7)
    assert clips_of(loader) == reference  # iterating again starts its processes again
    loader.close()
    loader.close()


def test_set_epoch_in_the_middle_of_a_pass_speaks_of_the_next_one(manifest: Manifest) -> None:
    with loader_of(manifest, shuffle=True) as loader:
        batches = iter(loader)
        begin = clips_of([next(batches)])
        loader.set_epoch(7)
        rest = clips_of(batches)
        assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (7, 0)
        seventh = clips_of(loader)
        loader.set_epoch(0)
        assert clips_of(loader) == begin + rest
    assert run(manifest, shuffle=True, epoch=7) == seventh


def test_the_state_counts_what_was_delivered_not_what_was_read_ahead(manifest: Manifest) -> None:
    with loader_of(manifest, batch_size=2) as loader:
        batches = iter(loader)
        next(batches)
        time.sleep(0.5)  # the worker processes go on reading meanwhile
        assert loader.state_dict()["position"] == 2
        copied = copy.deepcopy(loader.state_dict())
        next(batches)
        assert loader.state_dict()["position"] == 4
        assert copied["position"] == 2


def test_a_state_of_other_data_or_other_options_is_refused(manifest: Manifest) -> None:
    with loader_of(manifest) as loader:
        state = loader.state_dict()
    with pytest.raises(ValueError, match=r"another plan: .*seed=0.* this loader has .*seed=1"):
        loader_of(manifest, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="another manifest"):
        loader.load_state_dict(state | {"manifest": "0"})
    with pytest.raises(ValueError, match="version 99"):
        loader.load_state_dict(state | {"version": 99})
    with pytest.raises(TypeError, match="state=17"):
        loader.load_state_dict(17)  # type: ignore[arg-type]


def test_more_batches_than_a_stretch_holds_stay_in_order(truth_media: TruthMedia, tmp_path: Path) -> None:
    rows = [(truth_media["all_intra"], f"{number % 240 * 0.04:.2f}", "", "a") for number in range(560)]
    made = build(rows, tmp_path)
    options = {"num_frames": 1, "stride": 1, "size": (18, 32), "clips": "first", "features": None}
    with loader_of(made, batch_size=1, **options) as loader:
        seen = []
        for batch in loader:
            seen += batch.row.tolist()
            assert batch.frame_seconds[0, 0] == pytest.approx(batch.row[0] % 240 * 0.04)
    assert seen == list(range(560))


DISTRIBUTED = """
import json, sys
import torch
from avloader import AVLoader
folder, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
with AVLoader(f"{folder}/manifest", batch_size=7, num_frames=8, stride=2, size=16, features=None, device="cpu",
              num_workers=1) as loader:
    print(json.dumps([[batch.row.tolist(), batch.frame_seconds[:, 0].tolist()] for batch in loader]))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_rank_and_world_size_come_from_torch_distributed(
    manifest: Manifest, reference: list[Seen], tmp_path: Path
) -> None:
    (tmp_path / "manifest").symlink_to(manifest.path)
    processes = [
        subprocess.Popen([sys.executable, "-c", DISTRIBUTED, str(tmp_path), str(rank)], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    batches = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    in_order = [rank[step] for step in range(max(map(len, batches))) for rank in batches if step < len(rank)]
    got = [clip for rows, seconds in in_order for clip in zip(rows, seconds, strict=True)]
    assert got == [(clip.row, clip.facts[2][0]) for clip in reference]


# Batches --------------------------------------------------------------------------------------------------------------


@on_both
def test_a_batch_has_the_documented_shapes_and_types(manifest: Manifest, device: str) -> None:
    with loader_of(manifest, batch_size=5, normalize=((0, 0, 0), (255, 255, 255)), device=device) as loader:
        batch = next(iter(loader))
    samples = NUM_FRAMES * STRIDE * 16000 // 25
    expected = {
        "frames": ((5, NUM_FRAMES, 3, *SIZE), torch.float32),
        "audio": ((5, samples), torch.float32),
        "spectrogram": ((5, 20, 1 + samples // 80), torch.float32),
        "label": ((5,), torch.int64),
        "row": ((5,), torch.int64),
        "frame_seconds": ((5, NUM_FRAMES), torch.float64),
        "audio_start_seconds": ((5,), torch.float64),
        "audio_valid": ((5, 2), torch.int64),
        "offset_seconds": ((5,), torch.float64),
    }
    kind = "cuda" if device == "gpu" else "cpu"
    for name, (shape, dtype) in expected.items():
        tensor = getattr(batch, name)
        assert (tuple(tensor.shape), tensor.dtype, tensor.device.type) == (shape, dtype, kind), name
    assert len(batch) == 5
    assert [manifest.labels[label] for label in batch.label.tolist()] == ["class 0"] * 3 + ["class 1"] * 2


def test_its_repr_shows_shapes_only(manifest: Manifest) -> None:
    with loader_of(manifest, features=None) as loader:
        batch = next(iter(loader))
    lines = repr(batch).splitlines()
    assert lines[0] == "AVBatch:"
    assert lines[1] == "  frames: (7, 8, 3, 36, 64) uint8 on cpu"
    assert lines[3] == "  spectrogram: None"
    assert lines[6] == "  frame_seconds: (7, 8) float64 on cpu"
    assert len(lines) == 1 + len(dataclasses.fields(AVBatch))


def test_to_moves_every_tensor(manifest: Manifest) -> None:
    for features in (MEL, None):
        with loader_of(manifest, features=features) as loader:
            batch = next(iter(loader))
        moved = batch.to("meta")
        assert (moved.spectrogram is None) == (features is None)
        names = ["frames", "audio", "label", "row", "frame_seconds", "audio_start_seconds", "audio_valid"]
        for name in [*names, "offset_seconds", *(["spectrogram"] if features else [])]:
            assert getattr(moved, name).device.type == "meta"
            assert getattr(moved, name).shape == getattr(batch, name).shape
            assert getattr(batch, name).device.type == "cpu"


@on_both
def test_normalize_is_what_one_computes_by_hand(manifest: Manifest, device: str) -> None:
    mean, std = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
    options = {"clips": "first", "features": None, "device": device}
    with loader_of(manifest, **options) as loader:
        raw = torch.cat([batch.frames.cpu() for batch in loader])
    assert raw.dtype == torch.uint8
    raw = raw.double()
    with loader_of(manifest, normalize=(mean, std), **options) as loader:
        fixed = torch.cat([batch.frames.cpu() for batch in loader])
    shape = (1, 1, 3, 1, 1)
    expected = (raw - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    torch.testing.assert_close(fixed.double(), expected, atol=1e-4, rtol=1e-4)
    with loader_of(manifest, normalize="per_clip", **options) as loader:
        own = torch.cat([batch.frames.cpu() for batch in loader])
    assert own.dtype == torch.float32
    middle, spread = raw.mean((1, 3, 4), keepdim=True), raw.std((1, 3, 4), keepdim=True, unbiased=False)
    torch.testing.assert_close(own.double(), (raw - middle) / spread, atol=1e-3, rtol=1e-3)


def test_size_is_two_sides_or_one_for_both(manifest: Manifest) -> None:
    for size, expected in ((20, (20, 20)), ((20, 33), (20, 33)), ([20, 33], (20, 33)), (None, (144, 256))):
        with loader_of(manifest, size=size, clips="first", batch_size=2) as loader:
            assert next(iter(loader)).frames.shape[-2:] == expected


def test_frames_of_the_stored_size_are_a_linear_decode_to_the_bit(manifest: Manifest) -> None:
    with loader_of(manifest, size=None, num_frames=3, stride=5, clips="center") as loader:
        for batch in loader:
            for frames, seconds, row in zip(
                batch.frames, batch.frame_seconds.tolist(), batch.row.tolist(), strict=True
            ):
                path = manifest.row(row).path
                expected = linear_rgb(path, frame_indices(path, seconds))
                assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), expected)


def test_stored_sizes_that_differ_need_a_size(truth_media: TruthMedia, tmp_path: Path) -> None:
    made = build([(truth_media[name], 0, 2, "a") for name in ("mp4_25", "odd_size")], tmp_path)
    with pytest.raises(ManifestError, match=r"256x144.*Give size="):
        loader_of(made, size=None)


def test_without_features_there_is_sound_only(manifest: Manifest, reference: list[Seen]) -> None:
    with loader_of(manifest, features=None) as loader:
        batches = list(loader)
    assert all(batch.spectrogram is None for batch in batches)
    assert [sound.numpy().tobytes() for batch in batches for sound in batch.audio] == [c.audio for c in reference]


def test_batches_stay_as_they_are_while_later_ones_are_made(manifest: Manifest) -> None:
    with loader_of(manifest, batch_size=2) as loader:
        kept, copies = [], []
        for batch in loader:
            kept.append(batch)
            copies += clips_of([batch])
    assert clips_of(kept) == copies


def test_the_length_of_the_sound_can_be_given(manifest: Manifest) -> None:
    for seconds, samples in ((0.5, 24000), ("0.25", 12000), (Fraction(1, 3), 16000), (None, 16 * 1920)):
        with loader_of(manifest, audio_seconds=seconds, sample_rate=48000, clips="first", batch_size=1) as loader:
            batch = next(iter(loader))
        assert batch.audio.shape == (1, samples)
        path = manifest.row(0).path
        assert snr_db(batch.audio[0].numpy(), linear_window(path, Fraction(0), samples)) > 60


# Arguments ------------------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"batch_size": 0}, ValueError, "batch_size=0 must be 1 or more"),
    ({"batch_size": 2.5}, TypeError, "batch_size=2.5 must be an int"),
    ({"batch_size": True}, TypeError, "batch_size=True must be an int"),
    ({"num_frames": 0}, ValueError, "num_frames must be at least 1, got 0"),
    ({"num_frames": "8"}, TypeError, "num_frames must be an integer, got '8'"),
    ({"stride": -1}, ValueError, "stride must be at least 1, got -1"),
    ({"fps": 0}, ValueError, "fps must be a positive number"),
    ({"fps": "fast"}, ValueError, "fps must be a positive number.*'fast'"),
    ({"size": 0}, ValueError, "size=0 must be 1 or more"),
    ({"size": (224,)}, TypeError, r"size=\(224,\) must be \(height, width\), an int, or None"),
    ({"size": "small"}, TypeError, "size='small' must be"),
    ({"size": (2.5, 3)}, TypeError, "size=2.5 must be an int"),
    ({"normalize": "imagenet"}, TypeError, r"normalize='imagenet' must be \(mean, std\)"),
    ({"normalize": ((0, 0), (1, 1))}, ValueError, r"normalize=\(\(0, 0\), \(1, 1\)\) must be"),
    ({"normalize": ((0, 0, 0), (1, 1, 0))}, ValueError, "every std above 0"),
    ({"normalize": ((0, 0, 0), (1, 1, float("nan")))}, ValueError, "all finite"),
    ({"normalize": 3}, TypeError, "normalize=3 must be"),
    ({"sample_rate": 0}, ValueError, "sample_rate=0 must be 1 or more"),
    ({"sample_rate": 16000.0}, TypeError, "sample_rate=16000.0 must be an int"),
    ({"audio_seconds": 0}, ValueError, "audio_seconds must be positive or None, got 0"),
    ({"audio_seconds": float("nan")}, ValueError, "audio_seconds must be a positive number of seconds"),
    ({"features": "mel"}, TypeError, r"features='mel' must be a feature such as MelSpectrogram"),
    ({"clips": "some"}, ValueError, "clips must be one of all, first, center, random, got 'some'"),
    ({"shuffle": 1}, TypeError, "shuffle must be True or False, got 1"),
    ({"seed": -1}, ValueError, r"seed must be in \[0, 18446744073709551616\), got -1"),
    ({"num_workers": "auto"}, TypeError, "num_workers='auto' must be an int"),
    ({"lanes": 0}, ValueError, 'lanes=0 must be 1 or more, or "auto"'),
    ({"lanes": None}, TypeError, 'lanes=None must be an int, or "auto"'),
    ({"memory_limit": "8 GB"}, TypeError, "memory_limit='8 GB' must be an int, or \"auto\""),
    ({"cpu_share": 2}, ValueError, r"cpu_share=2 must be in \[0, 1\], or \"auto\""),
    ({"cpu_share": "half"}, ValueError, r"cpu_share='half' must be in \[0, 1\]"),
    ({"cpu_share": None}, TypeError, r"cpu_share=None must be in \[0, 1\]"),
    ({"rank": 0}, ValueError, "rank=0 and world_size=None must be given together"),
    ({"rank": 2, "world_size": 2}, ValueError, r"rank=2 must be in \[0, 2\)"),
    ({"rank": 0.5, "world_size": 2}, TypeError, "rank=0.5 must be an int"),
    ({"rank": 0, "world_size": 0}, ValueError, "world_size=0 must be 1 or more"),
    ({"last_batch": "keep"}, ValueError, "last_batch='keep' must be one of 'partial', 'drop'"),
    ({"device": "tpu"}, ValueError, "device='tpu' must be"),
    ({"device": "meta"}, ValueError, "device='meta' must be"),
    ({"device": "cuda:99"}, ValueError, "device='cuda:99'"),
    ({"decode": "fast"}, ValueError, "decode='fast' must be one of 'auto', 'nvdec', 'cpu'"),
    ({"decode": "nvdec"}, ValueError, "decode=.nvdec. needs a GPU"),
    ({"on_error": "ignore"}, ValueError, "on_error='ignore' must be one of 'raise', 'skip'"),
    ({"num_workers": 0}, ValueError, "num_workers=0 must be 1 or more"),
    ({"num_threads": 0}, ValueError, "num_threads=0 must be 1 or more"),
]


@pytest.mark.parametrize(("options", "kind", "message"), WRONG, ids=[str(options) for options, _, _ in WRONG])
def test_a_wrong_argument_is_named_with_its_value(
    manifest: Manifest, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        loader_of(manifest, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_a_wrong_manifest_or_epoch_is_named(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="manifest=None must be a Manifest or the path of its folder"):
        AVLoader(None, batch_size=1)  # type: ignore[arg-type]
    with pytest.raises(ManifestError, match=re.escape(str(tmp_path / "none"))):
        AVLoader(tmp_path / "none", batch_size=1)
    loader = loader_of(manifest)
    with pytest.raises(ValueError, match="epoch=-1"):
        loader.set_epoch(-1)
    with pytest.raises(ValueError, match=f"epoch={2**32}"):
        loader.set_epoch(2**32)
    with pytest.raises(TypeError, match=r"epoch=1\.0"):
        loader.set_epoch(1.0)  # type: ignore[arg-type]


def test_sound_too_short_for_its_features_is_said_when_the_loader_is_made(manifest: Manifest) -> None:
    features = Spectrogram(n_fft=2048, hop_length=512, center=False)
    with pytest.raises(ValueError, match=r"features=.*audio_seconds=0\.032.*num_samples=512"):
        loader_of(manifest, features=features, audio_seconds="0.032")


# Faults ---------------------------------------------------------------------------------------------------------------


@dataclass
class Copies:
    """Four copies of one medium, two rows each; the damage comes to the third."""

    manifest: Manifest
    paths: list[Path]
    damaged: Path

    rows = (4, 5)


@pytest.fixture
def copies(truth_media: TruthMedia, tmp_path: Path) -> Copies:
    paths = [tmp_path / f"{name}.mp4" for name in "abcd"]
    for path in paths:
        shutil.copy(truth_media["mp4_25"], path)
    made = build([(path, start, start + 4, "x") for path in paths for start in (0, 4.5)], tmp_path)
    return Copies(made, paths, paths[2])


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(1, 1))
    other.replace(path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def corrupt(path: Path, begin: float = 0.3, end: float = 0.6) -> None:
    """Zeros over a part of the coded data; size and time stay."""
    before, data = path.stat(), bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    first, stop = (start + int((len(data) - start) * part) for part in (begin, end))
    data[first:stop] = bytes(stop - first)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGE = [delete, replace, truncate, become_a_folder]


@pytest.mark.parametrize("damage", DAMAGE)
@on_both
def test_what_happened_to_a_file_is_one_error_with_file_and_row(
    copies: Copies, damage: Callable[[Path], None], device: str
) -> None:
    damage(copies.damaged)
    seen: list[AVBatch] = []
    with loader_of(copies.manifest, batch_size=4, device=device) as loader, pytest.raises(DecodeError) as caught:
        seen.extend(loader)
    assert {row for batch in seen for row in batch.row.tolist()} <= {0, 1, 2, 3}
    assert (caught.value.path, caught.value.row) == (str(copies.damaged), 4)
    assert str(copies.damaged) in str(caught.value)
    assert "(row 4)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "gone" in str(caught.value) or "replaced or changed" in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_skip_leaves_out_the_clips_of_that_file_and_lists_them(
    copies: Copies, damage: Callable[[Path], None], batch_size: int
) -> None:
    whole = run(copies.manifest)
    damage(copies.damaged)
    with loader_of(copies.manifest, batch_size=batch_size, on_error="skip") as loader:
        batches = list(loader)
    assert all(len(batch) for batch in batches)
    assert clips_of(batches) == [clip for clip in whole if clip.row not in Copies.rows]
    lost = [clip.row for clip in whole if clip.row in Copies.rows]
    assert [skipped.row for skipped in loader.skipped] == lost
    for skipped in loader.skipped:
        assert (skipped.epoch, skipped.path) == (0, str(copies.damaged))
        assert "gone" in skipped.reason or "replaced or changed" in skipped.reason


@pytest.mark.gpu
@pytest.mark.parametrize("damage", DAMAGE)
def test_skip_on_a_gpu_leaves_out_the_clips_of_that_file(copies: Copies, damage: Callable[[Path], None]) -> None:
    whole = run(copies.manifest)
    damage(copies.damaged)
    with loader_of(copies.manifest, batch_size=4, on_error="skip", device="gpu") as loader:
        got = clips_of(loader)
    check_same(got, [clip for clip in whole if clip.row not in Copies.rows], "gpu")
    assert {skipped.row for skipped in loader.skipped} == set(Copies.rows)


def test_of_a_corrupt_file_the_whole_clips_come_and_the_others_are_named(copies: Copies) -> None:
    whole = run(copies.manifest)
    corrupt(copies.damaged)
    with loader_of(copies.manifest, on_error="skip") as loader:
        got = clips_of(loader)
    lost = [clip for clip in whole if clip not in got]
    assert got == [clip for clip in whole if clip not in lost]  # in order, and nothing but true clips
    assert 0 < len(lost) < sum(clip.row in Copies.rows for clip in whole)
    assert [skipped.row for skipped in loader.skipped] == [clip.row for clip in lost]
    assert {skipped.path for skipped in loader.skipped} == {str(copies.damaged)}
    with loader_of(copies.manifest) as loader, pytest.raises(DecodeError, match=re.escape(str(copies.damaged))):
        list(loader)


def test_a_side_car_that_was_replaced_is_not_played(truth_media: TruthMedia, tmp_path: Path) -> None:
    sounds = [tmp_path / "one.wav", tmp_path / "two.wav"]
    for sound in sounds:
        shutil.copy(truth_media["sidecar_wav"], sound)
    picture = truth_media["picture_for_sidecar"]
    made = build([(picture, 1, 3, "a", sound) for sound in sounds], tmp_path)
    replace(sounds[1])
    with loader_of(made, on_error="skip", clips="first") as loader:
        assert [clip.row for clip in clips_of(loader)] == [0]
    (skipped,) = loader.skipped
    assert (skipped.row, skipped.path) == (1, str(sounds[1]))
    assert "replaced or changed" in skipped.reason


def test_after_an_error_the_loader_can_go_on(copies: Copies) -> None:
    data, times = copies.damaged.read_bytes(), copies.damaged.stat()
    whole = run(copies.manifest)
    copies.damaged.unlink()
    with loader_of(copies.manifest, batch_size=3) as loader:
        for _ in range(2):
            with pytest.raises(DecodeError, match="gone"):
                list(loader)
        assert loader.state_dict()["epoch"] == 0
        copies.damaged.write_bytes(data)
        os.utime(copies.damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert clips_of(loader) == whole


def worker_pids(parent: int | None = None) -> list[int]:
    """Worker processes of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == (parent or os.getpid()) and b"avloader.workers" in (entry / "cmdline").read_bytes():
                found.append(pid)
    return found


def test_a_killed_worker_costs_no_clip(manifest: Manifest, reference: list[Seen]) -> None:
    """What it read is read again: the system may have killed it for want of memory."""
    with loader_of(manifest, batch_size=2, num_workers=2, on_error="skip") as loader:
        batches = iter(loader)
        seen = [next(batches)]
        pids = worker_pids()
        assert len(pids) == 2
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

        def end() -> None:
            os.kill(pids[0], signal.SIGKILL)
            os.kill(pids[1], signal.SIGCONT)

        timer = threading.Timer(1.0, end)  # meanwhile what was read is taken, and both have work that waits
        timer.start()
        seen += batches
        timer.join()
        assert len(worker_pids()) == 2
        assert clips_of(seen) == reference
        assert loader.skipped == []
        assert clips_of(loader) == reference  # the next epoch


def test_a_clip_that_kills_its_worker_again_is_an_error_with_file_and_row(manifest: Manifest) -> None:
    with loader_of(manifest, batch_size=2, num_workers=1) as loader:
        batches = iter(loader)
        next(batches)
        over = threading.Event()

        def kill() -> None:
            while not over.wait(0.01):
                for pid in worker_pids():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            with pytest.raises(DecodeError, match="SIGKILL") as caught:
                list(batches)
        finally:
            over.set()
            killer.join()
    assert caught.value.row is not None
    assert caught.value.path == manifest.row(caught.value.row).path


def test_short_rows_are_an_error_or_listed(truth_media: TruthMedia, tmp_path: Path) -> None:
    path = truth_media["mp4_25"]
    made = build([(path, 0, 2, "a"), (path, 3, 3.2, "a"), (path, 4, 6, "a")], tmp_path)
    with pytest.raises(ManifestError, match=r"1 of 3 rows are too short: this one has 5 frames.*spans 15") as caught:
        loader_of(made)
    assert (caught.value.row, caught.value.path) == (1, str(path))
    with loader_of(made, on_error="skip", clips="first") as loader:
        assert [clip.row for clip in clips_of(loader)] == [0, 2]
        (skipped,) = loader.skipped
        assert (skipped.epoch, skipped.row, skipped.path) == (0, 1, str(path))
        assert "5 frames" in skipped.reason
    with pytest.raises(ManifestError, match="no row holds a clip"):
        loader_of(made, num_frames=100, on_error="skip")


def test_mixed_frame_rates_need_fps_or_the_length_of_the_sound(truth_media: TruthMedia, tmp_path: Path) -> None:
    made = build([(truth_media[name], 0, 3, "a") for name in ("mp4_25", "mp4_29_97")], tmp_path)
    with pytest.raises(ManifestError, match=r"row 0 has 25 .*row 1 has 30000/1001 .*fps=.*audio_seconds="):
        loader_of(made)
    for options in ({"fps": 20}, {"audio_seconds": 0.5}):
        assert {clip.row for clip in run(made, **options)} == {0, 1}


def test_a_manifest_with_changed_media_does_not_open(copies: Copies) -> None:
    replace(copies.damaged)
    with pytest.raises(ManifestError, match="modified") as caught:
        AVLoader(copies.manifest.path, batch_size=1)
    assert (caught.value.path, caught.value.row) == (str(copies.damaged), 4)


# Clean-up -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """What this process holds of the system."""

    workers: int
    threads: int
    files: int
    folders: int


@pytest.fixture
def footprint(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Footprint]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for _ in range(2):  # what the libraries open once and keep
        run(manifest, clips="first")

    def measure() -> Footprint:
        gc.collect()
        folders = len(list(tmp_path.glob("avloader-*")))
        return Footprint(len(worker_pids()), threading.active_count(), len(os.listdir("/proc/self/fd")), folders)

    return measure


def leave_by_close(manifest: Manifest) -> None:
    loader = loader_of(manifest)
    next(iter(loader))
    loader.close()


def leave_by_with_and_break(manifest: Manifest) -> None:
    with loader_of(manifest) as loader:
        for _ in loader:
            break


def leave_by_exception(manifest: Manifest) -> None:
    def train() -> None:
        for batch in loader_of(manifest):
            raise RuntimeError(f"in the loop over {len(batch)} clips")

    with pytest.raises(RuntimeError, match="in the loop over 7 clips"):
        train()


def leave_by_the_pools_own_thread(manifest: Manifest) -> None:
    """The garbage collector may close a loader in any thread, also in one that others wait for."""
    loader, closed = loader_of(manifest), threading.Event()
    next(iter(loader))

    class Close:
        def begin(self) -> None:
            loader.close()
            closed.set()

        def end(self, result: Any, error: BaseException | None) -> None:
            raise AssertionError("nothing was begun")

    engine = loader._resources.engine
    assert engine is not None
    engine._pool._pool.run([Close()])
    assert closed.wait(20)


def leave_after_the_end(manifest: Manifest) -> None:
    for _ in loader_of(manifest, clips="first"):
        pass


def leave_without_iterating(manifest: Manifest) -> None:
    iter(loader_of(manifest))


def leave_in_the_middle(manifest: Manifest) -> None:
    batches = iter(loader_of(manifest))
    next(batches)


def leave_in_a_cycle(manifest: Manifest) -> None:
    holder: dict[str, Any] = {"loader": loader_of(manifest)}
    holder["batches"] = iter(holder["loader"])
    holder["self"] = holder
    next(holder["batches"])


LEAVES = [
    leave_by_the_pools_own_thread,
    leave_by_close,
    leave_by_with_and_break,
    leave_by_exception,
    leave_after_the_end,
    leave_without_iterating,
    leave_in_the_middle,
    leave_in_a_cycle,
]


@pytest.mark.parametrize("leave", LEAVES)
def test_nothing_is_left(
    manifest: Manifest, footprint: Callable[[], Footprint], leave: Callable[[Manifest], None]
) -> None:
    before = footprint()
    assert (before.workers, before.folders) == (0, 0)
    leave(manifest)
    deadline = time.monotonic() + 5
    while footprint() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert footprint() == before


ENDLESS = """
import sys
from avloader import AVLoader
loader = AVLoader(sys.argv[1], batch_size=2, num_frames=8, size=16, device="cpu", num_workers=2)
while True:
    for batch in loader:
        print("batch", flush=True)
"""


@pytest.mark.parametrize("whom", ["group", "parent"])
def test_an_interrupt_ends_everything(manifest: Manifest, tmp_path: Path, whom: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, manifest.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "batch\n"
    pids = worker_pids(process.pid)
    assert len(pids) == 2
    if whom == "group":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert list(tmp_path.glob("avloader-*")) == []


def resident_bytes() -> int:
    """Of this process and its workers."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in [os.getpid(), *worker_pids()])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat_over_hundreds_of_batches(manifest: Manifest) -> None:
    def batches(loader: AVLoader) -> Iterator[AVBatch]:
        while True:
            yield from loader

    with loader_of(manifest, batch_size=2, num_workers=2, shuffle=True) as loader:
        endless = batches(loader)
        for _ in range(100):
            next(endless)
        gc.collect()
        before = resident_bytes()
        for _ in range(200):
            next(endless)
        gc.collect()
        growth = resident_bytes() - before
        endless.close()
    assert growth < 24 * 2**20, f"{growth / 2**20:.1f} MiB more after 200 batches"
