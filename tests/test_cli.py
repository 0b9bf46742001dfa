"""The command line, in process through `main`, and a few times for real."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from avloader.annotations import FORMATS
from avloader.cli import main
from avloader.demo import demo_clip

COMMANDS = ["demo", "manifest", "inspect", "check", "preview", "presets", "bench"]


# The commands run from other folders; where the package is not installed, they find it here.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}


def _run(*arguments: str | os.PathLike[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "avloader.cli", *map(os.fspath, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=120, env=ENVIRONMENT)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three good rows of a real clip, a row past its end and one of a file that is not there."""
    path = tmp_path / "clips.csv"
    path.write_text(
        "path,start,end,label\n"
        "bigbuckbunny.mp4,0,1.28,waking\n"
        "bigbuckbunny.mp4,1.28,2.56,stretching\n"
        "bigbuckbunny.mp4,2.56,,yawning\n"
        "bigbuckbunny.mp4,7,8,yawning\n"
        "another.mp4,0,1,yawning\n"
    )
    return path


def _manifest_arguments(table: Path, *more: str) -> list[str]:
    return [
        "manifest",
        str(table),
        "--media-root",
        str(demo_clip().parent),
        "--output",
        str(table.parent / "out"),
        *more,
    ]


@pytest.fixture
def manifest(table: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(_manifest_arguments(table)) == 0
    capsys.readouterr()
    return table.parent / "out"


def _error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=["avloader", *COMMANDS])
def test_help_has_examples_and_exits_with_0(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert "examples:\n  avloader " in text


def test_help_of_manifest_names_every_format(capsys):
    with pytest.raises(SystemExit):
        main(["manifest", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert not [name for name in ["auto", *FORMATS] if name not in words]


def test_help_imports_nothing_heavy():
    code = (
        "import sys, avloader.cli\n"
        "heavy = {'torch', 'nvidia', 'matplotlib', 'librosa', 'numpy', 'av', 'pyarrow', 'rich'}\n"
        "try: avloader.cli.main(['manifest', '--help'])\n"
        "except SystemExit: sys.exit(bool(heavy & {*sys.modules}))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["inspect"],
        ["manifest", "clips.csv"],
        ["manifest", "clips.csv", "--media-root", ".", "--output", "out", "--workers", "0"],
        ["check", "out", "--sample", "-1"],
        ["preview", "out"],
        ["preview", "out", "--output", "a.png", "--row", "first"],
        ["bench"],
        ["bench", "out", "--batch-size", "0"],
        ["bench", "out", "--size", "224"],
        ["bench", "out", "--size", "224,0"],
        ["bench", "out", "--fps", "fast"],
        ["bench", "out", "--decode", "gpu"],
        ["bench", "out", "--seconds", "long"],
    ],
)
def test_a_wrong_argument_is_told_in_one_line_and_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "--help" in _error_line(capsys)


def test_manifest_prints_what_was_kept_and_why_the_rest_was_not(table, capsys):
    assert main(_manifest_arguments(table)) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split()[0]: line.split()[1] for line in lines[1:4]}
    assert cells == {"kept": "3", "outside_media": "1", "missing_file": "1"}
    assert any(str(table.parent / "out" / "rejected.csv") in line for line in lines)
    assert any("avloader preview" in line for line in lines)


def test_manifest_as_json(table, capsys):
    assert main(_manifest_arguments(table, "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kept"] == 3
    assert result["rejected"] == 2
    assert result["reasons"] == {"outside_media": 1, "missing_file": 1}
    assert result["media"] == 1
    assert result["labels"] == 3
    assert Path(result["manifest"]).is_dir()


def test_manifest_of_sound_alone(table, capsys):
    assert main(_manifest_arguments(table, "--streams", "audio", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["streams"] == "audio"
    facts = json.loads(Path(result["manifest"], "manifest.json").read_text())
    assert facts["streams"] == "audio"
    assert main(["check", result["manifest"]]) == 0
    capsys.readouterr()
    assert main(["preview", result["manifest"], "--output", str(table.parent / "row.png")]) == 2
    assert "its rows hold sound alone" in capsys.readouterr().err


def test_strict_exits_with_1_if_a_row_was_rejected_and_still_writes_the_manifest(table, capsys):
    assert main(_manifest_arguments(table, "--strict")) == 1
    assert (table.parent / "out" / "manifest.json").is_file()
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:4]))
    assert main(_manifest_arguments(table, "--strict")) == 0


def test_manifest_without_a_row_to_keep_is_an_error(table, capsys):
    table.write_text("path,start,end,label\nanother.mp4,0,1,yawning\n")
    assert main(_manifest_arguments(table)) == 2
    assert "another.mp4" in _error_line(capsys)
    assert not (table.parent / "out").exists()


def test_an_unknown_format_is_refused_with_those_that_exist(table, capsys):
    assert main(_manifest_arguments(table, "--format", "vggsund")) == 2
    line = _error_line(capsys)
    assert "vggsund" in line
    assert "vggsound" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "missing.mp4"],
        ["inspect", "."],
        ["manifest", "missing.csv", "--media-root", ".", "--output", "out"],
        ["check", "missing"],
        ["preview", "missing", "--output", "a.png"],
        ["demo", "--device", "quantum"],
        ["bench", "missing"],
    ],
    ids=" ".join,
)
def test_an_error_is_one_line_that_names_its_cause(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    line = _error_line(capsys) if arguments[0] != "demo" else capsys.readouterr().err
    assert line.startswith(f"avloader {arguments[0]}: error: ")
    assert line.count("\n") == 1
    assert (arguments[-1] if arguments[0] in ("inspect", "demo") else arguments[1]) in line


def test_inspect_tells_times_rates_and_engines(capsys):
    assert main(["inspect", str(demo_clip())]) == 0
    facts = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "h264 yuv420p, 1280x720" in facts["picture"]
    assert "132 at constant 25 frames/s" in facts["frames"]
    assert "0.000000 s to 5.280000 s" in facts["shown"]
    assert "1, 132 frames each" in facts["key frames"]
    assert "aac, 48000 Hz, 6 channels" in facts["sound"]
    assert facts["NVDEC engine"].endswith("yes")
    assert facts["CPU engine"].endswith("yes")


def test_inspect_as_json_holds_exact_rates(truth_media, capsys):
    assert main(["inspect", "--json", str(truth_media["mp4_29_97"])]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["video"]["frame_rate"] == "30000/1001"
    assert facts["video"]["num_frames"] == 300
    assert facts["video"]["longest_group"] == 60
    assert facts["engines"]["nvdec"] == {"usable": True, "reason": ""}


def test_inspect_says_why_an_engine_cannot_take_a_file(truth_media, capsys):
    assert main(["inspect", str(truth_media["variable_rate"])]) == 0
    facts = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "variable, " in facts["frames"]
    assert " no: " in facts["NVDEC engine"]
    assert facts["CPU engine"].endswith("yes")


def test_inspect_of_a_file_without_sound_or_picture(truth_media, capsys):
    assert main(["inspect", str(truth_media["no_sound"])]) == 0
    out = capsys.readouterr().out
    assert "sound         none" in out
    assert "no: no sound" in out
    assert main(["inspect", "--json", str(truth_media["sidecar_wav"])]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["video"] is None
    assert facts["engines"]["cpu"] == {"usable": False, "reason": "no picture"}


def test_inspect_lists_holes_in_the_sound(truth_media, capsys):
    assert main(["inspect", str(truth_media["sound_hole"])]) == 0
    (hole,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("hole")]
    start, end = float(hole.split()[1]), float(hole.split()[4])
    assert start == pytest.approx(4, abs=0.05)
    assert end == pytest.approx(6, abs=0.05)


def test_check_of_a_true_manifest_exits_with_0(manifest, capsys):
    assert main(["check", str(manifest), "--sample", "2"]) == 0
    assert "all well" in capsys.readouterr().out


def test_check_of_changed_media_exits_with_1_and_names_the_file(table, truth_media, capsys):
    media = table.parent / "media"
    media.mkdir()
    (media / "clip.mp4").write_bytes(truth_media["mp4_25"].read_bytes())
    table.write_text("path,start,end,label\nclip.mp4,0,1,a\n")
    out = table.parent / "out"
    assert main(["manifest", str(table), "--media-root", str(media), "--output", str(out)]) == 0
    os.utime(media / "clip.mp4", (1, 1))
    capsys.readouterr()
    assert main(["check", str(out), "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["path"].endswith("clip.mp4")
    assert main(["check", str(out)]) == 1
    assert "clip.mp4" in capsys.readouterr().out
    assert main(["preview", str(out), "--output", str(table.parent / "a.png")]) == 2
    assert "clip.mp4" in _error_line(capsys)


def test_preview_writes_a_picture_of_the_row_that_was_asked_for(manifest, tmp_path, capsys):
    picture = tmp_path / "row 1.png"
    arguments = ["preview", str(manifest), "--output", str(picture), "--row", "1", "--frames", "6", "--stride", "2"]
    assert main([*arguments, "--width", "900", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["frame_seconds"] == pytest.approx([1.28 + 0.08 * k for k in range(6)], abs=1e-9)
    assert abs(result["audio_start_seconds"] - 1.28) <= 0.5 / 48000
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert image.width == 900


def test_preview_of_a_row_that_is_not_there_is_an_error(manifest, tmp_path, capsys):
    assert main(["preview", str(manifest), "--output", str(tmp_path / "a.png"), "--row", "3"]) == 2
    assert "row=3 is outside the manifest: allowed is 0 to 2" in _error_line(capsys)


def test_preview_into_a_folder_that_is_not_there_is_an_error(manifest, tmp_path, capsys):
    assert main(["preview", str(manifest), "--output", str(tmp_path / "none" / "a.png")]) == 2
    assert "none/a.png" in _error_line(capsys)


def test_bench_as_json_measures_what_it_was_asked_for(manifest, capsys):
    options = ["--batch-size", "2", "--num-frames", "4", "--stride", "2", "--fps", "12.5", "--size", "48,64"]
    fixed = ["--sample-rate", "8000", "--device", "cpu", "--decode", "cpu", "--workers", "1", "--seconds", "0.3"]
    assert main(["bench", str(manifest), *options, *fixed, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    assert report["manifest"] == str(manifest)
    assert report["rows"] == 3
    assert report["engine"].startswith("the CPU decodes as asked")
    assert report["decoder"] == "libavcodec in 1 process"
    assert report["clips_per_second"] * report["seconds"] == pytest.approx(report["clips"])
    assert report["frames_per_second"] == pytest.approx(4 * report["clips_per_second"])
    assert 0 < report["clips"] <= 2 * report["batches"]
    assert report["gpu_memory_bytes"] is None


def test_bench_prints_a_table_of_the_figures(manifest, capsys):
    options = ["--num-frames", "4", "--size", "stored", "--device", "cpu", "--workers", "2", "--seconds", "0.3"]
    assert main(["bench", str(manifest), *options]) == 0
    out = capsys.readouterr().out
    for pattern in (
        r"^rate +[\d,.]+ clips/s +\d+ clips? in ",
        r"^ +[\d,]+ frames/s$",
        r"^decoder alone +[\d,.]+ clips/s +libavcodec in 2 processes$",
        r"^share of it +\d+%",
        r"^first batch +[\d.]+ s ",
        r"^waits, median +[\d,.]+ ms +of \d+ steps?$",
        r"^waits, 99 % +[\d,.]+ ms ",
        r"^memory +[\d,]+ MB ",
        r"^engine +the CPU decodes because ",
    ):
        assert re.search(pattern, out, re.MULTILINE), (pattern, out)
    assert "skipped" not in out


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--seconds", "0"], "--seconds=0.0 must be above 0"),
        (["--device", "quantum"], "--device='quantum'"),
        (["--device", "cpu", "--decode", "nvdec"], '--decode="nvdec" needs a GPU'),
        (["--device", "cpu", "--num-frames", "1000"], "no row holds a clip"),
    ],
)
def test_what_bench_cannot_measure_is_told_in_one_line(options, cause, manifest, capsys):
    assert main(["bench", str(manifest), *options]) == 2
    line = _error_line(capsys)
    assert line.startswith("avloader bench: error: ")
    assert cause in line


def test_the_demo_delivers_the_right_frames_with_the_right_sound(tmp_path):
    done = _run("demo", "--device", "cpu", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["num_right_frames"] == result["num_frames"] > 0
    assert abs(result["worst_sync_error_seconds"]) < 1e-4
    assert result["failures"] == 0
    assert result["clips_per_second"] > 0
    with Image.open(tmp_path / result["picture"]) as image:
        assert image.width == 1600


def test_the_process_exits_with_2_and_one_line(tmp_path):
    done = _run("inspect", tmp_path / "two\nlines.mp4")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_output_into_a_pipe_that_closes_early_is_no_error():
    command = f"{sys.executable} -m avloader.cli inspect --json {demo_clip()} | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_ctrl_c_exits_with_130_and_without_traceback(tmp_path):
    command = [sys.executable, "-m", "avloader.cli", "demo", "--device", "cpu", "--output", str(tmp_path / "demo")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    with process:
        assert process.stdout is not None
        process.stdout.readline()  # the first step is done: it is past its imports of argparse and at work
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.strip().endswith("avloader: stopped")


def test_without_dali_and_torch_all_but_demo_and_bench_works(manifest, tmp_path):
    code = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("nvidia", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
from avloader.cli import main
sys.exit(main(sys.argv[1:]))
"""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=ENVIRONMENT)

    for arguments in (
        ["inspect", str(demo_clip())],
        ["check", str(manifest), "--sample", "1"],
        ["preview", str(manifest), "--output", str(tmp_path / "a.png")],
    ):
        done = run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
    for arguments in (["demo", "--output", str(tmp_path / "demo")], ["bench", str(manifest)]):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "needs the package 'torch'" in done.stderr
