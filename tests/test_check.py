"""`check_manifest` finds what a linear decode shows and a manifest does not say."""

from __future__ import annotations

import dataclasses
import os
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from conftest import TruthMedia

from avloader.check import check_manifest
from avloader.manifest import Manifest, build_manifest
from avloader.media import AudioInfo, MediaInfo, VideoInfo, probe

NAMES = ("mp4_25", "variable_rate", "cut", "no_edit_list", "sound_late", "mkv_aac", "mkv_opus", "mpegts", "mp3_in_mp4")


def build(folder: Path, truth_media: TruthMedia, names: tuple[str, ...]) -> Manifest:
    media = folder / "media"
    media.mkdir(exist_ok=True)
    lines = ["path,start,end,label"]
    for name in names:
        copy = shutil.copy2(truth_media[name], media)
        lines += [f"{Path(copy).name},0.5,1.5,x", f"{Path(copy).name},2,,x"]
    (folder / "clips.csv").write_text("\n".join(lines))
    return build_manifest(folder / "clips.csv", media_root=media, output=folder / "manifest", progress=False)


def test_a_true_manifest_has_no_findings(tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, truth_media, NAMES)
    assert len(manifest) == 2 * len(NAMES)
    assert check_manifest(manifest, sample=100) == []


def test_every_changed_medium_is_found_and_not_decoded(tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, truth_media, ("mp4_25", "cut", "mkv_aac"))
    os.utime(tmp_path / "media" / "mp4_25.mp4", (1, 1))
    (tmp_path / "media" / "mkv_aac.mkv").unlink()
    findings = check_manifest(Manifest.open(manifest.path, check_media=False), sample=100)
    assert [(finding.row, Path(finding.path).name) for finding in findings] == [(0, "mp4_25.mp4"), (4, "mkv_aac.mkv")]
    assert "was modified" in findings[0].what
    assert "cannot be reached" in findings[1].what
    assert all(finding.remedy for finding in findings)


def test_a_changed_text_file_is_found(tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, truth_media, ("mp4_25",))
    path = Path(manifest.path, "file_list.txt")
    path.write_text(path.read_text().replace(" 0 ", " 1 ", 1))
    (finding,) = check_manifest(Manifest.open(manifest.path), sample=0)
    assert (finding.row, finding.path) == (None, str(path))
    assert "content was changed" in finding.what


def wrong_rate(medium: MediaInfo, video: VideoInfo, audio: AudioInfo) -> MediaInfo:
    times = dataclasses.replace(video.times, step_pts=video.times.step_pts + 1)
    return dataclasses.replace(medium, video=dataclasses.replace(video, times=times))


def wrong_count(medium: MediaInfo, video: VideoInfo, audio: AudioInfo) -> MediaInfo:
    times = dataclasses.replace(video.times, num_frames=video.times.num_frames + 1)
    return dataclasses.replace(medium, video=dataclasses.replace(video, times=times))


def wrong_sound(medium: MediaInfo, video: VideoInfo, audio: AudioInfo) -> MediaInfo:
    return dataclasses.replace(medium, audio=dataclasses.replace(audio, start_pts=audio.start_pts - 1024))


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (wrong_rate, "a linear decode shows frame 13 at 0.520000 s, the manifest says 0.52"),
        (wrong_count, "a linear decode shows 250 frames, the manifest says 251"),
        (wrong_sound, "the sound starts at sample 24960.0, the manifest says 25984"),
    ],
)
def test_a_wrong_probe_is_found(
    tmp_path: Path, truth_media: TruthMedia, monkeypatch: pytest.MonkeyPatch, wrong: Any, what: str
) -> None:
    def probe_wrongly(path: str) -> MediaInfo:
        medium = probe(path)
        return wrong(medium, medium.video, medium.audio)

    monkeypatch.setattr("avloader.media.probe", probe_wrongly)
    findings = check_manifest(build(tmp_path, truth_media, ("mp4_25",)), sample=1)
    assert [finding.row for finding in findings] == [0]
    assert what in findings[0].what


def test_media_that_no_longer_decode_are_found(tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, truth_media, ("mp4_25",))
    medium = tmp_path / "media" / "mp4_25.mp4"
    status = medium.stat()
    medium.write_bytes(bytes(status.st_size))
    os.utime(medium, ns=(status.st_atime_ns, status.st_mtime_ns))
    (finding, *_) = check_manifest(manifest, sample=1)
    assert finding.path == str(medium)
    assert "a linear decode fails" in finding.what


def test_the_rows_are_chosen_by_a_fixed_rule(tmp_path: Path, truth_media: TruthMedia) -> None:
    manifest = build(tmp_path, truth_media, ("mp4_25", "cut"))
    asked = []
    row = manifest.row
    manifest.row = lambda number: asked.append(number) or row(number)  # type: ignore[method-assign, func-returns-value]
    check_manifest(manifest, sample=2)
    assert asked == [0, 2]
    assert manifest.row(0).start_seconds == Fraction(13, 25)


def test_a_negative_sample_is_refused(tmp_path: Path, truth_media: TruthMedia) -> None:
    with pytest.raises(ValueError, match="sample must be at least 0, got -1"):
        check_manifest(build(tmp_path, truth_media, ("mp4_25",)), sample=-1)
