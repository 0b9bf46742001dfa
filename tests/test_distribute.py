"""The same work by processes of this machine and on a Ray cluster."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from conftest import TruthMedia
from test_sync import Row, build

from avloader import build_manifest, prepare_manifest
from avloader.distribute import run_tasks
from avloader.workers import WorkerDied

ENGINES = ["local", "ray"]
DOER = "worker_tasks:Doer"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A Ray cluster of two cores on this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
        ray.init(
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 2**20,
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
        )
    yield
    ray.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("engine", ENGINES)
def test_every_task_comes_back_once_with_its_own_result(engine: str) -> None:
    tasks = [("echo", number) for number in range(50)]
    found = list(run_tasks(DOER, tasks, engine=engine, num_workers=2))
    assert sorted(found) == [(task, task[1]) for task in tasks]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_task_that_kills_its_process_is_reported_and_the_others_go_on(engine: str) -> None:
    tasks = [("die" if number == 3 else "echo", number) for number in range(12)]
    found: dict[Any, Any] = dict(run_tasks(DOER, tasks, engine=engine, num_workers=2))
    assert isinstance(found.pop(("die", 3)), WorkerDied)
    assert sorted(found.values()) == [number for number in range(12) if number != 3]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_is_raised_here(engine: str) -> None:
    from avloader import DecodeError

    with pytest.raises(DecodeError, match=r"a b\.mp4 \(row 3\): spoilt"):
        list(run_tasks(DOER, [("echo", 1), ("raise", 3)], engine=engine, num_workers=2))


def test_a_manifest_is_the_same_whoever_builds_it(truth_media: TruthMedia, tmp_path: Path) -> None:
    names = ["mp4_25", "mkv_opus", "variable_rate", "no_sound"]
    annotations = tmp_path / "clips.csv"
    lines = [f"{truth_media[name]},1,2,{name}" for name in names] + ["missing.mp4,0,1,x"]
    annotations.write_text("\n".join(["path,start,end,label", *lines]) + "\n")
    found = []
    for engine in ENGINES:
        build_manifest(annotations, media_root=tmp_path, output=tmp_path / "m", engine=engine, progress=False)
        found.append(contents(tmp_path / "m"))
    assert found[0] == found[1]
    assert b"missing_file" in found[0]["rejected.csv"]


def test_prepared_media_are_the_same_whoever_prepares_them(truth_media: TruthMedia, tmp_path: Path) -> None:
    rows = [Row(truth_media[name], truth_media[name], Fraction(1), Fraction(3)) for name in ("mp4_29_97", "sound_late")]
    bad = tmp_path / "bad.mp4"
    data = bytearray(truth_media["no_b_frames"].read_bytes())
    half = len(data) // 2
    data[half : half + 30_000] = bytes(30_000)
    bad.write_bytes(data)
    manifest = build([*rows, Row(bad, bad, Fraction(1), Fraction(2))], tmp_path)
    found = []
    for engine in ENGINES:
        prepared = prepare_manifest(manifest, output=tmp_path / "out", engine=engine, progress=False)
        assert len(prepared.manifest) == 2
        found.append(contents(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out")
    assert found[0] == found[1]


def test_without_ray_it_says_what_to_install(
    truth_media: TruthMedia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = build([Row(truth_media["mp4_25"], truth_media["mp4_25"], Fraction(1), Fraction(2))], tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"engine='ray' needs the package ray: pip install avloader\[ray\]"):
        prepare_manifest(manifest, output=tmp_path / "out", engine="ray")
    assert not (tmp_path / "out").exists()
