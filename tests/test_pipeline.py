"""AudioVisualPipeline with DALI's own iterator, from the two tables of a manifest."""

from __future__ import annotations

import contextlib
import csv
import gc
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import TruthMedia
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from truth import linear_frames, linear_window, read_number, snr_db

from avloader import (
    AudioVisualPipeline,
    AVLoader,
    DecodeError,
    Manifest,
    ManifestError,
    MelSpectrogram,
    SyncError,
    build_manifest,
)
from avloader.gathering import Gathering, Horizon, Part
from avloader.lanes import Lane, LaneFailedError
from avloader.reading import ClipRead
from avloader.schedule import Piece

NUM_FRAMES = 6
SIZE = (36, 64)
MEL = MelSpectrogram(n_fft=256, hop_length=80, n_mels=20)

# DALI's advice on where the number of clips comes from; on a CPU the graph has no reader to ask.
pytestmark = pytest.mark.filterwarnings("ignore:Please set `reader_name`:Warning")
on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])


def build(folder: Path, rows: list[tuple[Path, str]], output: str = "manifest") -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end", "label"])
        writer.writerows([path, start, f"{float(start) + 1}", "a"] for path, start in rows)
    return build_manifest(folder / "clips.csv", media_root=folder, output=folder / output, progress=False)


@pytest.fixture(scope="session")
def manifest(truth_media: TruthMedia, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Eleven rows in three media, one of them with spaces in its path, in no order of time."""
    names = ["mp4_25", "three_b_frames", "path_with_spaces"]
    rows = [(truth_media[names[number % 3]], f"{number * 3.7 % 8:.2f}") for number in range(11)]
    made = build(tmp_path_factory.mktemp("pipeline"), rows)
    assert len(made) == 11
    return made


def tables(manifest: Manifest) -> tuple[Path, Path]:
    return Path(manifest.path, "file_list.txt"), Path(manifest.path, "audio_offsets.csv")


@contextlib.contextmanager
def pipeline_of(file_list: Path, offsets: Path, **options: Any) -> Iterator[AudioVisualPipeline]:
    defaults: dict[str, Any] = {
        "batch_size": 4,
        "num_frames": NUM_FRAMES,
        "size": SIZE,
        "normalize": None,
        "sample_rate": 48000,
        "device": "cpu",
    }
    with contextlib.closing(AudioVisualPipeline(file_list, offsets, **(defaults | options))) as pipe:
        yield pipe


def iterator_of(pipe: AudioVisualPipeline) -> DALIGenericIterator:
    return DALIGenericIterator(
        pipe,
        pipe.output_names,
        size=pipe.num_clips,
        auto_reset=True,
        last_batch_policy=LastBatchPolicy.PARTIAL,
        last_batch_padded=True,
    )


@on_both
def test_two_epochs_pair_every_row_with_its_own_frames_and_sound(manifest: Manifest, device: str) -> None:
    with pipeline_of(*tables(manifest), device=device) as pipe:
        assert (pipe.num_clips, pipe.output_names) == (11, ["frames", "audio", "row"])
        iterator = iterator_of(pipe)
        for _ in range(2):
            seen = []
            for (batch,) in iterator:
                seen.append(batch["row"].flatten().tolist())
                for place, number in enumerate(seen[-1]):
                    row = manifest.row(number)
                    shown = [read_number(frame) for frame in batch["frames"][place].permute(0, 2, 3, 1).cpu().numpy()]
                    assert shown == list(range(row.first_frame, row.first_frame + NUM_FRAMES))
                    begin = linear_frames(row.path).times[row.first_frame]
                    expected = linear_window(row.path, begin, batch["audio"].shape[1])
                    assert snr_db(batch["audio"][place].cpu().numpy(), expected) > 60, f"row {number}"
            assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


@on_both
def test_it_delivers_what_the_loader_delivers(manifest: Manifest, device: str) -> None:
    options: dict[str, Any] = {"stride": 3, "normalize": "per_clip", "sample_rate": 16000, "features": MEL}
    common = {"batch_size": 4, "num_frames": NUM_FRAMES, "size": SIZE, "device": device}
    decode = "nvdec" if device == "gpu" else "cpu"
    with AVLoader(manifest, clips="first", decode=decode, **common, **options) as loader:
        expected = list(loader)
    with pipeline_of(*tables(manifest), device=device, **options) as pipe:
        for (batch,), other in zip(iterator_of(pipe), expected, strict=True):
            assert torch.equal(batch["row"].flatten(), other.row.cpu())
            for name in ("frames", "audio", "spectrogram"):
                torch.testing.assert_close(batch[name], getattr(other, name), atol=1e-5, rtol=1e-5)
                assert batch[name].shape == getattr(other, name).shape


@pytest.mark.parametrize("output", ["manifest", "a folder, with spaces"])
@on_both
def test_paths_with_spaces_work(truth_media: TruthMedia, tmp_path: Path, output: str, device: str) -> None:
    path = tmp_path / "some media" / "a b, c.mp4"
    path.parent.mkdir()
    shutil.copy(truth_media["mp4_25"], path)
    made = build(tmp_path, [(path, "1"), (path, "4")], output)
    with pipeline_of(*tables(made), device=device) as pipe:
        ((batch,),) = iterator_of(pipe)
    shown = [read_number(frames[0].permute(1, 2, 0).cpu().numpy()) for frames in batch["frames"]]
    assert shown == [25, 100]


def test_the_sound_is_as_long_as_the_frames_unless_said_otherwise(manifest: Manifest) -> None:
    for options, samples in (({}, 6 * 1920), ({"stride": 2}, 12 * 1920), ({"audio_seconds": 0.125}, 6000)):
        with pipeline_of(*tables(manifest), **options) as pipe:
            assert next(iter(iterator_of(pipe)))[0]["audio"].shape == (4, samples)


def test_mixed_frame_rates_need_the_length_of_the_sound(truth_media: TruthMedia, tmp_path: Path) -> None:
    made = build(tmp_path, [(truth_media["mp4_25"], "1"), (truth_media["mp4_29_97"], "1")])
    with pytest.raises(ManifestError, match=r"row 0 has 25 .*row 1 has 30000/1001 .*audio_seconds="):
        AudioVisualPipeline(*tables(made), batch_size=2, num_frames=4, device="cpu")
    with pipeline_of(*tables(made), audio_seconds=Fraction(1, 5)) as pipe:
        ((batch,),) = iterator_of(pipe)
    assert batch["audio"].shape == (2, 9600)


# What is wrong with the tables ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """A way to spoil a table, and what is said about it."""

    name: str
    table: str
    text: str | bytes | None
    cause: str


FIRST = "{path} 0 10 40\n"
HEADER = "row,path,start_sample,num_samples,sample_rate,start_seconds,duration_seconds\n"
WRONG = [
    Wrong("missing list", "file_list.txt", None, "cannot be read (No such file or directory)"),
    Wrong("missing offsets", "audio_offsets.csv", None, "cannot be read (No such file or directory)"),
    Wrong("empty list", "file_list.txt", "", "holds no clip"),
    Wrong("three fields", "file_list.txt", FIRST + "{path} 1 10\n", "(line 2): line '{path} 1 10"),
    Wrong("unquoted space", "file_list.txt", "a b.mp4 0 10 40\n", "(line 1): line 'a b.mp4 0 10 40"),
    Wrong("no number", "file_list.txt", "{path} zero 10 40\n", "(line 1)"),
    Wrong("unknown row", "file_list.txt", FIRST + "{path} 77 10 40\n", "(line 2)"),
    Wrong("blank line", "file_list.txt", FIRST + "\n", "(line 2)"),
    Wrong("binary list", "file_list.txt", b"\xff\xfe\x00", "is not UTF-8 text"),
    Wrong("too few frames", "file_list.txt", "{path} 0 10 15\n", "(row 0): the row has 5 frames"),
    Wrong("beyond the end", "file_list.txt", "{path} 0 246 256\n", "(row 0): the row asks for frame 251"),
    Wrong("other table", "audio_offsets.csv", "a,b\n1,2\n", "is not a table of audio offsets"),
    Wrong("binary offsets", "audio_offsets.csv", b"\xff\xfe\x00", "is not UTF-8 text"),
    Wrong("no row number", "audio_offsets.csv", HEADER + "x,{path},0,1,48000,0,1\n", "is not a table of audio offsets"),
    Wrong("short line", "audio_offsets.csv", HEADER + "0,{path}\n", "file_list.txt (line 1)"),
    Wrong("no time", "audio_offsets.csv", HEADER + "0,{path},0,1,48000,soon,1\n", "file_list.txt (line 1)"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=[wrong.name for wrong in WRONG])
def test_a_bad_table_is_named_with_its_line(truth_media: TruthMedia, tmp_path: Path, wrong: Wrong) -> None:
    path = str(truth_media["mp4_25"])
    media = tmp_path / "plain.mp4"
    media.symlink_to(path)
    made = build(tmp_path, [(media, "1"), (media, "2")])
    table = Path(made.path, wrong.table)
    if wrong.text is None:
        table.unlink()
    elif isinstance(wrong.text, bytes):
        table.write_bytes(wrong.text)
    else:
        table.write_text(wrong.text.replace("{path}", str(media)))
    with pytest.raises(ManifestError, match=re.escape(wrong.cause.replace("{path}", str(media))[:80])) as caught:
        AudioVisualPipeline(*tables(made), batch_size=2, num_frames=NUM_FRAMES, device="cpu")
    assert str(caught.value).startswith((str(table), str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"num_frames": 0}, "num_frames=0 must be 1 or more"),
        ({"stride": -1}, "stride=-1 must be 1 or more"),
        ({"device": "tpu"}, "device='tpu' must be 'cpu' or 'gpu'"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(manifest: Manifest, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), pipeline_of(*tables(manifest), **options):
        pass


def test_a_file_that_vanishes_is_one_error_with_file_and_row(truth_media: TruthMedia, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.mp4" for name in "abc"]
    for path in paths:
        shutil.copy(truth_media["mp4_25"], path)
    made = build(tmp_path, [(path, "1") for path in paths])
    with pipeline_of(*tables(made), batch_size=1) as pipe:
        paths[2].unlink()
        with pytest.raises(DecodeError, match="gone") as caught:
            list(iterator_of(pipe))
    assert (caught.value.path, caught.value.row) == (str(paths[2]), 2)


# The rows that come back are those that were asked for ----------------------------------------------------------------


@pytest.mark.gpu
def test_rows_in_another_order_than_the_reader_was_given_are_a_sync_error(manifest: Manifest, tmp_path: Path) -> None:
    """NVDEC's reader runs over a list of its own: swap two of its lines under a pipeline that is about to start."""
    spoilt = tmp_path / "file_list.txt"
    lines = tables(manifest)[0].read_text().splitlines(keepends=True)

    class Swapped(AudioVisualPipeline):
        def _define(self, file_list: Path | None, *rest: Any) -> Any:
            assert file_list is not None
            assert file_list.read_text().count("\n") == len(lines)
            given = file_list.read_text().splitlines(keepends=True)
            given[5], given[6] = given[6], given[5]
            spoilt.write_text("".join(given))
            return super()._define(spoilt, *rest)

    options = {"batch_size": 4, "num_frames": NUM_FRAMES, "size": SIZE, "device": "gpu"}
    with contextlib.closing(Swapped(*tables(manifest), **options)) as pipe:
        pipe.build()
        assert np.asarray(pipe.run()[-1].as_cpu().as_array()).flatten().tolist() == [0, 1, 2, 3]
        with pytest.raises(SyncError, match="delivered row 6 where row 5 was asked for") as caught:
            pipe.run()
    assert caught.value.row == 5
    assert os.path.samefile(str(caught.value.path), manifest.row(5).path)


def test_the_rows_that_the_graph_returns_are_compared_also_on_a_cpu(manifest: Manifest) -> None:
    class Swapped(AudioVisualPipeline):
        def _feed(self) -> Any:
            *inputs, row = super()._feed()
            if int(row[0][0]) == 4:
                row[1], row[2] = row[2], row[1]
            return (*inputs, row)

    options = {"batch_size": 4, "num_frames": NUM_FRAMES, "size": SIZE, "device": "cpu"}
    with contextlib.closing(Swapped(*tables(manifest), **options)) as pipe:
        iterator = iterator_of(pipe)
        next(iterator)
        with pytest.raises(SyncError, match="delivered row 6 where row 5 was asked for") as caught:
            next(iterator)
    assert caught.value.row == 5
    assert os.path.samefile(str(caught.value.path), manifest.row(5).path)


def test_sound_that_was_overwritten_on_its_way_is_a_sync_error(manifest: Manifest) -> None:
    """Seen on a GPU: pictures written past the end of their buffer, into the sound."""

    class Overwritten(AudioVisualPipeline):
        def _feed(self) -> Any:
            audio, *rest = super()._feed()
            audio = audio.copy()
            audio[2, :16] = -1.9e-38
            return (audio, *rest)

    options = {"batch_size": 4, "num_frames": NUM_FRAMES, "size": SIZE, "device": "cpu"}
    clips = cast("list[ClipRead]", [None] * 4)
    with contextlib.closing(Overwritten(*tables(manifest), **options)) as pipe:
        piece = Piece(0, None, parts=[Part(Gathering(clips, 0), 0, [0, 1, 2, 3])])
        lane = Lane(lambda: pipe, [piece], Horizon(1), stream=None)
        with pytest.raises(SyncError, match="overwritten") as caught:
            lane.take(threading.Event(), 60)
        lane.close()
    assert caught.value.row == 2


def test_a_lane_that_was_given_up_writes_into_no_batch_any_more(manifest: Manifest) -> None:
    """Another lane has filled its batches by then, and the training loop may have them."""
    goes_on = threading.Event()

    class Hanging(AudioVisualPipeline):
        def share_outputs(self, cuda_stream: Any = None) -> Any:
            goes_on.wait(60)
            return super().share_outputs(cuda_stream)

    batch = Gathering(cast("list[ClipRead]", [None] * 4), 0)
    with contextlib.closing(
        Hanging(*tables(manifest), batch_size=4, num_frames=NUM_FRAMES, size=SIZE, device="cpu")
    ) as pipe:
        piece = Piece(0, None, parts=[Part(batch, 0, [0, 1, 2, 3])])
        lane = Lane(lambda: pipe, [piece], Horizon(1), stream=None)
        with pytest.raises(LaneFailedError, match="no batch came"):
            lane.take(threading.Event(), 0.5)
        goes_on.set()
        lane.close()
        while lane.is_running:
            time.sleep(0.01)
    assert not batch.tensors


# Clean-up -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_closed", [True, False])
def test_nothing_is_left(manifest: Manifest, is_closed: bool) -> None:
    def use() -> None:
        pipe = AudioVisualPipeline(*tables(manifest), batch_size=4, num_frames=2, size=SIZE, device="cpu")
        next(iter(iterator_of(pipe)))
        if is_closed:
            pipe.close()
            pipe.close()

    def footprint() -> tuple[int, int]:
        gc.collect()
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    others = set(threading.enumerate())  # such as the threads that augment sound for the whole process
    use()
    before = footprint()
    use()
    deadline = time.monotonic() + 5
    while footprint() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert footprint() == before
    assert not [thread for thread in set(threading.enumerate()) - others if thread.name.startswith("avloader")]


def test_features_that_see_the_whole_medium_are_refused(manifest: Manifest) -> None:
    features = MelSpectrogram(n_fft=256, hop_length=80, n_mels=20, scope="medium")
    with pytest.raises(ValueError, match="must have scope='clip'; AVLoader can deliver those of a medium"):
        AudioVisualPipeline(*tables(manifest), batch_size=1, num_frames=4, features=features, device="cpu")
