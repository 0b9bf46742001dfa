"""Every example runs as its first lines say, and does what it is an example of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from avloader.demo import ANNOTATIONS

EXAMPLES = Path(__file__).parent.parent / "examples"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), *sys.path]),
}  # where the package is not installed


# A network that is trained, stopped, resumed and tested takes more lines than a first look.
LONG = {"05_lipsync_training.py": 165, "06_classification.py": 65, "07_lightning.py": 70, "talking_faces.py": 140}


def _run(name: str, *arguments: str, launcher: Sequence[str] = ()) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", *launcher, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested_and_short():
    tested = set(re.findall(r'_run\("(\w+\.py)"', Path(__file__).read_text()))
    assert tested == {path.name for path in EXAMPLES.glob("*.py")}
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < LONG.get(path.name, 60), path.name


def test_the_lines_of_python_in_the_readme_print_what_it_says(tmp_path):
    readme = (EXAMPLES.parent / "README.md").read_text()
    code, output = re.findall(r"```python\n(.*?)```.*?```\n(.*?)```", readme, re.DOTALL)[0]
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "clips.csv").write_text(ANNOTATIONS)
    environment = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == output


def test_01_manifest(tmp_path):
    lines = _run("01_manifest.py", str(tmp_path)).splitlines()
    assert lines[0] == "3 rows of 1 medium, labels ['stretching', 'waking', 'yawning']"
    assert lines[1] == "row 0: frames [0, 32), 0.000 s to 1.280 s, waking"
    assert lines[2] == "row 1: frames [32, 64), 1.280 s to 2.560 s, stretching"
    assert lines[3] == "row 2: frames [64, 132), 2.560 s to 5.280 s, yawning"
    assert [line.split(":")[0] for line in lines[4:]] == ["rejected, outside_media", "rejected, missing_file"]


def test_02_look_at_a_batch(tmp_path):
    text = _run("02_look_at_a_batch.py", str(tmp_path))
    (milliseconds,) = re.findall(r"at most (\S+) ms from its first frame", text)
    assert float(milliseconds) <= 0.5 / 16
    with Image.open(tmp_path / "batch.png") as image:
        assert image.width == 1600


def test_03_train(tmp_path):
    losses = [
        float(loss) for loss in re.findall(r"epoch \d: 3 batches, loss (\S+)", _run("03_train.py", str(tmp_path)))
    ]
    assert len(losses) == 3
    assert all(0 < loss < 2 for loss in losses)


def _check_pipeline(text: str, device: str) -> None:
    lines = text.splitlines()
    assert len(lines) == 3
    assert all(f"on {device}" in line for line in lines)
    assert "frames (2, 16, 3, 224, 224), audio (2, 10240), spectrogram (2, 80, 65)" in lines[0]
    assert [line.split("rows ")[1] for line in lines] == ["[0, 1]", "[2, 3]", "[4]"]


def test_04_dali_pipeline_on_the_cpu(tmp_path):
    _check_pipeline(_run("04_dali_pipeline.py", str(tmp_path), "cpu"), "cpu")


@pytest.mark.gpu
def test_04_dali_pipeline_on_the_gpu(tmp_path):
    _check_pipeline(_run("04_dali_pipeline.py", str(tmp_path), "gpu"), "cuda:0")


@pytest.fixture(scope="module")
def lipsync(tmp_path_factory):
    """Where the lip-sync example keeps its films; they are made once."""
    return tmp_path_factory.mktemp("lipsync")


def _train_lipsync(folder: Path, *arguments: str, launcher: Sequence[str] = ()) -> tuple[str, dict]:
    sizes = ("--speakers", "8", "--epochs", "3")
    text = _run("05_lipsync_training.py", str(folder), *sizes, *arguments, launcher=launcher)
    return text, torch.load(folder / "checkpoint.pt", weights_only=True)


def test_05_lipsync_training_resumed_within_an_epoch_has_the_losses_of_a_run_that_was_not_stopped(lipsync):
    text, whole = _train_lipsync(lipsync)
    assert len(whole["losses"]) == 9
    assert "9 steps on 1 x c" in text
    (right,) = re.findall(r"20 held-out clips: top-1 of 31 offsets (\S+)%, error \S+ frames", text)
    assert float(right) > 20  # chance is 3 %
    _, stopped = _train_lipsync(lipsync, "--stop-after", "5")
    assert (stopped["loader"]["epoch"], stopped["loader"]["position"]) == (1, 16)  # of 24 clips
    assert stopped["losses"] == whole["losses"][:5]
    _, resumed = _train_lipsync(lipsync, "--resume")
    assert resumed["losses"] == whole["losses"]
    for name, weights in whole["model"].items():
        assert torch.equal(weights, resumed["model"][name]), name


def test_05_lipsync_training_on_two_processes(lipsync):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    text, state = _train_lipsync(lipsync, "--stop-after", "4", launcher=launcher)
    assert text.count("4 steps on 2 x c") == 1
    assert (state["loader"]["epoch"], state["loader"]["position"]) == (1, 8)  # of both together


def test_06_classification(tmp_path):
    (right,) = re.findall(r"9 classes, other speech: (\S+)% right", _run("06_classification.py", str(tmp_path), "6"))
    assert float(right) > 40  # chance is 11 %; who hears or sees only is right in a third at most


def test_07_lightning_resumes_within_an_epoch(tmp_path):
    pytest.importorskip("lightning")

    def losses(*arguments: str) -> list[str]:
        text = _run("07_lightning.py", str(tmp_path), *arguments)
        return next(line for line in text.splitlines() if line.startswith("losses")).split()[1:]

    whole = losses("7")  # four steps an epoch
    assert losses("3") == whole[:3]
    assert losses("7", str(tmp_path / "lightning.ckpt")) == whole[3:]
    assert len(set(whole)) == 7


@pytest.mark.parametrize("num_processes", [1, 2])
def test_08_sound_features(tmp_path, num_processes):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes))
    text = _run("08_sound_features.py", str(tmp_path), launcher=launcher if num_processes > 1 else ())
    pattern = r"rank (\d), (\w+): (\d) batches, the first \(4, (\d+), (\d+)\), (\d+)% of the samples are sound"
    found = {(int(rank), name): tuple(map(int, rest)) for rank, name, *rest in re.findall(pattern, text)}
    assert len(found) == 3 * num_processes
    for (_, name), (num_batches, bins, hops, heard) in found.items():
        assert num_batches == 8 // num_processes
        assert bins == {"mel_spectrogram": 80, "mfcc": 13, "whisper": 80}[name]
        assert hops == 3000 if name == "whisper" else 40 < hops <= 200
        assert heard < 6 if name == "whisper" else heard > 80


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_09_sound_augmentation(tmp_path, device, monkeypatch):
    if device == "cpu":
        monkeypatch.setitem(ENVIRONMENT, "CUDA_VISIBLE_DEVICES", "")
    lines = _run("09_sound_augmentation.py", str(tmp_path)).splitlines()
    assert lines == [
        "6 batches of (8, 128, 101)",
        "two runs with one seed are equal: True",
        "and with another seed: False",
        "two threads share 48 clips, the same ones: True",
    ]


def test_talking_faces_say_what_their_mouths_do(tmp_path):
    """The louder, the wider open: the dark of the mouth follows the sound without delay."""
    for name in _run("talking_faces.py", str(tmp_path), "2").split():
        with av.open(str(tmp_path / name)) as container:
            rate = float(container.streams.video[0].average_rate)
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        with av.open(str(tmp_path / name)) as container:
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        opened = np.array([(frame[36:] < 45).sum() for frame in frames], np.float64)
        middles = (np.arange(len(frames)) / rate * 16000).astype(int)
        loud = np.array([np.abs(sound[max(middle - 200, 0) : middle + 200]).mean() for middle in middles])
        shifts = range(-5, 6)
        fits = [np.corrcoef(opened[10:-10], np.roll(loud, shift)[10:-10])[0, 1] for shift in shifts]
        assert shifts[int(np.argmax(fits))] == 0
        assert max(fits) > 0.7
