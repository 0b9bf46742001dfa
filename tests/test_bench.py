"""`run_bench` counts right, survives bad media and leaves nothing behind; no test is about time."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import TruthMedia

from avloader import AVLoader, Manifest, ManifestError, build_manifest
from avloader.bare import BareDecoder, Count, count_clips
from avloader.bench import run_bench
from avloader.errors import DecodeError

OPTIONS: dict[str, Any] = {"batch_size": 3, "num_frames": 4, "size": (36, 64), "device": "cpu", "num_workers": 1}


def build(folder: Path, names: list[str], truth_media: TruthMedia) -> Manifest:
    """Two rows each of copies of these media."""
    media = folder / "media of a manifest"
    media.mkdir()
    lines = ["path,start,end,label\n"]
    for name in names:
        copy = shutil.copyfile(truth_media[name], media / truth_media[name].name)
        lines += [f"{copy.name},0,1,a\n", f"{copy.name},2,3,b\n"]
    (folder / "clips.csv").write_text("".join(lines))
    return build_manifest(folder / "clips.csv", media_root=media, output=folder / "manifest", progress=False)


def damage(path: str) -> None:
    """Overwrite all pictures and keep what the file system says of the file."""
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(status.st_size // 20)
        file.write(b"\xff" * (status.st_size * 9 // 10 - status.st_size // 20))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended since
            found.update((task / "children").read_text().split())
    return found


def test_what_comes_in_the_first_third_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now, shown = 0.0, []

    def batches(length: float) -> Any:
        nonlocal now
        for number in itertools.count():
            now += length
            yield 100 if number < 3 else 5

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert count_clips(batches(1), 9, shown.append) == Count(clips=30, batches=6, seconds=6)
    assert shown == [*range(1, 10)]
    assert Count(clips=30, batches=6, seconds=6).rate == 5
    assert count_clips(batches(50), 9, shown.append) == Count(clips=100, batches=1, seconds=50)


def test_the_report_is_of_one_measurement_and_nothing_is_left(tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, ["mp4_25", "stereo_44100"], truth_media)
    before, folders = children(), {*os.listdir("/tmp")}
    report = run_bench(manifest, seconds=0.6, **OPTIONS)
    assert children() == before
    assert not [name for name in {*os.listdir("/tmp")} - folders if name.startswith("avloader-")]
    with AVLoader(manifest, **OPTIONS) as loader:
        assert report.engine == loader.engine
    assert (report.rows, report.skipped_rows, report.fallbacks) == (4, 0, [])
    # 24 clips an epoch, in batches of three.
    assert report.clips == 3 * report.batches > 0
    assert report.clips_per_second * report.seconds == pytest.approx(report.clips)
    assert report.frames_per_second == pytest.approx(4 * report.clips_per_second)
    assert report.step_seconds * 0.8 == pytest.approx(report.seconds / report.batches)
    assert report.steps > 0
    assert 0 < report.wait_median_seconds <= report.wait_p99_seconds <= report.wait_longest_seconds
    assert report.decoder == "libavcodec in 1 process"
    assert report.decoder_share is not None
    assert report.decoder_clips_per_second is not None
    assert report.decoder_share * report.decoder_clips_per_second == pytest.approx(report.clips_per_second)
    assert report.memory_bytes is not None
    assert report.memory_bytes > 50e6  # PyTorch alone
    assert report.gpu_memory_bytes is None


def test_damaged_media_cost_their_clips_and_are_counted(tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, ["mp4_25", "stereo_44100"], truth_media)
    damage(manifest.media(1).path)
    report = run_bench(manifest, seconds=0.6, **OPTIONS)
    assert report.skipped_rows == 2
    assert report.clips > 0
    assert report.decoder_clips_per_second


def test_a_manifest_without_a_readable_clip_is_an_error_that_says_why(tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, ["mp4_25"], truth_media)
    os.remove(manifest.media(0).path)
    before = children()
    with pytest.raises(ManifestError, match=r"an epoch has no batch: .*the file is gone"):
        run_bench(manifest, seconds=0.6, **OPTIONS)
    assert children() == before


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_time_to_measure_must_be_positive(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seconds="):
        run_bench(tmp_path, seconds=seconds, **OPTIONS)


def test_what_is_planned_is_what_is_delivered(tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, ["mp4_25", "stereo_44100"], truth_media)
    with AVLoader(manifest, shuffle=True, **OPTIONS) as loader:
        iterator = iter(loader)
        next(iterator)
        iterator.close()
        loader.load_state_dict(loader.state_dict())  # goes on after the first batch
        planned = loader.planned()
        expected = [next(planned) for _ in range(len(loader) + 3)]
        planned.close()  # type: ignore[attr-defined]
        delivered = list(itertools.islice(itertools.chain(loader, loader), len(expected)))
    for plan, batch in zip(expected, delivered, strict=True):
        assert [read.row for read in plan.reads] == batch.row.tolist()
        times = [read.video.times for read in plan.reads]
        starts = [
            float(time.pts_to_media_time(time.pts(read.frames[0])))
            for time, read in zip(times, plan.reads, strict=True)
        ]
        assert batch.frame_seconds[:, 0].tolist() == pytest.approx(starts)


def test_the_bare_decoder_really_decodes(tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, ["mp4_25", "stereo_44100"], truth_media)
    with AVLoader(manifest, normalize=None, clips="first", **OPTIONS) as loader:
        read = next(loader.planned()).reads[1]
        batch = next(iter(loader))
    decoder = BareDecoder((36, 64), None)
    decoder(read.task(0, with_frames=True))
    assert (decoder._frames == batch.frames[1].numpy()).all()
    damage(read.media.path)
    with pytest.raises(DecodeError):
        BareDecoder((36, 64), None)(read.task(0, with_frames=True))


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"fps": "12.5"}, {"stride": 2}], ids=["source", "fps", "stride"])
def test_on_a_gpu_the_decoder_is_nvdec(options: dict[str, Any], tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, ["mp4_25", "stereo_44100"], truth_media)
    report = run_bench(manifest, seconds=3, decode="nvdec", **(OPTIONS | {"device": "gpu"} | options))
    assert report.engine.startswith("NVDEC decodes every medium as asked")
    assert report.decoder.startswith("NVDEC in ")
    assert report.decoder_share is not None
    assert report.decoder_clips_per_second is not None
    assert report.decoder_share * report.decoder_clips_per_second == pytest.approx(report.clips_per_second)
    assert report.gpu_memory_bytes is not None
    assert report.gpu_memory_bytes > 0  # of the whole GPU: holds where nothing else gives memory back meanwhile


@pytest.mark.gpu
def test_where_nvdec_decodes_nothing_its_limit_is_not_measured(tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, ["mp4_25"], truth_media)
    report = run_bench(manifest, seconds=1, cpu_share=1, **(OPTIONS | {"device": "gpu"}))
    assert report.decoder == "not measured: NVDEC decodes none of the clips"
    assert report.decoder_share is None
    assert report.clips > 0
