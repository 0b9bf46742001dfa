"""Every example runs as its first lines say, and does what it is an example of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from avloader.demo import ANNOTATIONS

EXAMPLES = Path(__file__).parent.parent / "examples"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), *sys.path]),
}  # where the package is not installed


def _run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(EXAMPLES / name), *arguments],
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
        assert len(path.read_text().splitlines()) < 60, path.name


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
