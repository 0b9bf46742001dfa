"""Pictures of clips before and after augmentation: what is drawn in them is what the loader delivers."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from conftest import TruthMedia
from PIL import Image

from avloader import AVLoader, Manifest, build_manifest, preview
from avloader.augment import (
    AddBackgroundNoise,
    ApplyImpulseResponse,
    AVTimeMask,
    ColorJitter,
    Compose,
    Gain,
    HorizontalFlip,
    JointSpeed,
    Mix,
    Node,
    OneOf,
    Shift,
    SoundBank,
    SpecAugment,
)
from avloader.augment.text import parse_augment, transform_names
from avloader.cli import main

RATE = 48000
BANK = SoundBank(
    [np.random.default_rng(0).normal(size=9000).astype(np.float32)], sample_rate=RATE, names=["a/rain.wav"]
)


@pytest.fixture(scope="module")
def manifest(truth_media: TruthMedia, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("preview")
    lines = ["path,start,end,label", f"{truth_media['mp4_25']},0.2,3,0", f"{truth_media['mp4_25']},4,8,0"]
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return build_manifest(folder / "clips.csv", media_root=folder, output=folder / "manifest", progress=False)


def chain() -> Node:
    return Compose(
        [
            JointSpeed(p=1, speeds=["3/4", "5/4"]),
            AddBackgroundNoise(BANK, p=1),
            Gain(p=1, name="louder"),
            HorizontalFlip(p=1),
            ColorJitter(p=0),
            AVTimeMask(p=1, min_frames=1, max_frames=3),
        ]
    )


@pytest.mark.parametrize("augment", [chain(), Gain(p=1), OneOf([HorizontalFlip(p=1), JointSpeed(p=1, speeds=[2])])])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_clip_after_augmentation_is_what_the_loader_delivers(manifest: Manifest, augment: Node, epoch: int) -> None:
    options = {"num_frames": 6, "stride": 2}
    with AVLoader(
        manifest, batch_size=2, size=None, normalize=None, features=None, sample_rate=RATE, clips="first", device="cpu",
        num_workers=1, seed=7, augment=augment, **options,
    ) as loader:  # fmt: skip
        loader.set_epoch(epoch)
        (batch,) = loader
    for row in (0, 1):
        pair = preview.augment_clip(manifest, row, augment, seed=7, epoch=epoch, **options)
        assert np.array_equal(pair.after.frames, batch.frames[row].permute(0, 2, 3, 1).numpy())
        np.testing.assert_allclose(pair.after.audio, batch.audio[row].numpy(), rtol=0, atol=1e-6)
        seconds = batch.frame_seconds[row].numpy()
        expected = seconds[0] + (seconds - seconds[0]) / float(pair.speed)
        np.testing.assert_allclose(pair.after.frame_seconds, expected, rtol=0, atol=1e-9)
        plain = preview.read_clip(manifest, row, **options)
        assert np.array_equal(pair.before.frames, plain.frames)
        assert np.array_equal(pair.before.audio, plain.audio)


def test_each_transform_is_named_with_what_it_drew(manifest: Manifest) -> None:
    pair = preview.augment_clip(manifest, 0, chain(), seed=1)
    lines = dict(line.partition(": ")[::2] for line in pair.drawn)
    assert list(lines) == ["JointSpeed", "AddBackgroundNoise", "louder", "HorizontalFlip", "ColorJitter", "AVTimeMask"]
    assert lines["JointSpeed"] == f"speed={float(pair.speed):g}"
    assert "sound=rain.wav" in lines["AddBackgroundNoise"]
    assert lines["HorizontalFlip"] == ""
    assert lines["ColorJitter"] == "left out"
    factor = 10 ** (float(lines["louder"].removeprefix("gain_db=")) / 20)
    alone = preview.augment_clip(manifest, 0, Gain(p=1, name="louder"), seed=1)
    np.testing.assert_allclose(alone.after.audio, alone.before.audio * factor, rtol=1e-3, atol=1e-7)


def test_masks_of_features_are_said_not_to_be_shown(manifest: Manifest) -> None:
    pair = preview.augment_clip(manifest, 0, Compose([Gain(p=0), SpecAugment()]))
    assert pair.drawn == ("Gain: left out", "SpecAugment: changes the loader's features, not what is shown here")


def test_what_breaks_sync_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="Shift cannot be applied to clips with pictures"):
        preview.augment_clip(manifest, 0, Compose([Gain(), Shift()]))


@pytest.mark.parametrize("height", [None, 900])
def test_a_quieter_clip_is_drawn_quieter_below_the_other(
    manifest: Manifest, tmp_path: Path, height: int | None
) -> None:
    pair = preview.augment_clip(manifest, 0, Gain(p=1, min_gain_db=-20, max_gain_db=-20), num_frames=6)
    figure = preview.draw_pair(pair, width=1000, height=height)
    preview.save(figure, tmp_path / "pair.png")
    with Image.open(tmp_path / "pair.png") as image:
        assert image.width == 1000
        assert height is None or image.height == height
    panels = [axes for axes in figure.axes if axes.images and axes.images[0].get_cmap().name == "magma"]
    before, after = (axes.images[0].get_array() for axes in panels)
    loud = before > -40
    np.testing.assert_allclose((before - after)[loud], 20, atol=0.01)
    assert panels[0].get_xlim() == panels[1].get_xlim()
    assert panels[0].get_position().y0 > panels[1].get_position().y1, "before stands over after"
    assert {text.get_text() for text in figure.texts} >= {"after augmentation", "Gain: gain_db=-20"}


def test_the_command_line_draws_and_says_what_was_drawn(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "a.png"
    options = ["--output", str(picture), "--frames", "4", "--width", "800", "--seed", "7", "--epoch", "2", "--json"]
    assert main(["preview", str(manifest.path), *options, "--augment", "Gain(p=1), HorizontalFlip(p=0)"]) == 0
    expected = preview.augment_clip(
        manifest, 0, Compose([Gain(p=1), HorizontalFlip(p=0)]), num_frames=4, seed=7, epoch=2
    )
    assert json.loads(capsys.readouterr().out)["augmentation"] == list(expected.drawn)
    with Image.open(picture) as image:
        assert image.width == 800
    assert main(["preview", str(manifest.path), *options, "--augment", "Gain(p=2)"]) == 2
    assert capsys.readouterr().err.endswith("error: augmentation 'Gain(p=2)': Gain: p=2 must be in [0, 1]\n")


def test_text_is_the_transform_that_it_names(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "click.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.array([0, 9000, 100], "<i2").tobytes())
    assert parse_augment("Gain(min_gain_db=-3, p=1)", sample_rate=8000) == Gain(min_gain_db=-3, p=1)
    assert parse_augment(" Gain(), HorizontalFlip(p=1) ", sample_rate=8000) == Compose([Gain(), HorizontalFlip(p=1)])
    nested = parse_augment("OneOf([Gain(), JointSpeed(speeds=['3/4', 1.1])], weights=(1, 2))", sample_rate=8000)
    assert nested == OneOf([Gain(), JointSpeed(speeds=["3/4", 1.1])], weights=(1, 2))
    for text, kind in (
        (f"AddBackgroundNoise({str(tmp_path)!r}, p=1)", AddBackgroundNoise),
        (f"Mix(sounds={str(tmp_path / 'click.wav')!r})", Mix),
        (f"ApplyImpulseResponse({str(tmp_path)!r})", ApplyImpulseResponse),
    ):
        node = parse_augment(text, sample_rate=16000)
        assert isinstance(node, kind)
        bank = node.responses if isinstance(node, ApplyImpulseResponse) else node.sounds
        assert (len(bank), bank.sample_rate) == (1, 16000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("Gain(", "cannot be read: .* was never closed"),
        ("Gain(p=1);", "cannot be read"),
        ("Gain", r"Gain needs brackets: Gain\(\)"),
        ("Loud(p=1)", "there is no Loud; transforms are AVTimeMask, .*TimeMask"),
        ("augment.Gain()", "there is no augment.Gain"),
        ("__import__('os').abort()", "there is no __import__"),
        ("ClipKeys([1])", "there is no ClipKeys"),
        ("Gain(p=1), 3", "3 is no transform"),
        ("[Gain()]", "is no transform"),
        ("Gain(p=open)", "open is neither a transform nor a number, text or list"),
        ("Gain(**{})", "names? the arguments"),
        ("Gain(loud=1)", "Gain got an unexpected keyword argument 'loud'"),
        ("Gain(min_gain_db='loud')", "min_gain_db='loud' must be a number"),
        ("RandomCrop()", "missing 1 required positional argument: 'size'"),
        ("AddBackgroundNoise(p=1)", r"needs the path of a file or folder: AddBackgroundNoise\('sounds'\)"),
        ("Mix(3)", "needs the path of a file or folder"),
    ],
)
def test_text_that_is_no_transform_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_augment(text, sample_rate=16000)


def test_every_transform_can_be_named() -> None:
    names = transform_names()
    assert {"AVTimeMask", "Compose", "JointSpeed", "OneOf", "SomeOf", "TimeMask"} <= set(names)
    assert not {"ClipKeys", "Node", "SoundBank", "Transform", "PictureTransform"} & set(names)
