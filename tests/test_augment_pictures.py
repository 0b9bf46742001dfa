"""Augmentation of pictures, and of sound and picture together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from avloader.augment import (
    AVTimeMask,
    ClipKeys,
    ColorJitter,
    Compose,
    Gain,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Node,
    OneOf,
    PictureMask,
    RandomCrop,
    RandomErasing,
    Reverse,
    Shift,
)

on_every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

TRANSFORMS: dict[str, Callable[[], Node]] = {
    "crop": lambda: RandomCrop((20, 17), p=0.7),
    "flip": lambda: HorizontalFlip(p=0.7),
    "gray": lambda: Grayscale(p=0.7),
    "color": lambda: ColorJitter(p=0.7),
    "erase": lambda: RandomErasing(p=0.7, value=7),
    "blur": lambda: GaussianBlur(p=0.7),
    "mask": lambda: PictureMask(p=0.7, max_frames=4),
    "both": lambda: AVTimeMask(p=0.7, max_frames=4),
    "all": lambda: Compose(
        [RandomCrop(21), OneOf([ColorJitter(p=1), Grayscale(p=1)]), Gain(), HorizontalFlip(), RandomErasing()]
    ),
}
every_transform = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=list(TRANSFORMS))


def pictures(size: int = 16, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Noise with 5 frames of 24 x 31, every frame another."""
    values = np.random.default_rng(2).integers(0, 256, (size, 5, 3, 24, 31))
    return torch.from_numpy(values).to(dtype)


def run(node: Node, frames: torch.Tensor, device: str = "cpu", clips: Any = None) -> tuple[torch.Tensor, Any]:
    """The result on the CPU."""
    keys = ClipKeys(np.arange(len(frames)) if clips is None else clips, seed=4, epoch=1)
    result = node.augment_frames(frames.to(device), keys=keys)
    assert result.frames.device.type == device
    assert result.frames.dtype == frames.dtype
    return result.frames.cpu(), result.parameters


@on_every_device
@every_transform
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pictures_do_not_depend_on_the_batch(make: Callable[[], Node], device: str, dtype: torch.dtype) -> None:
    frames = pictures(16, dtype)
    before = frames.clone()
    clips = np.arange(16) + 2**40
    whole, _ = run(make(), frames, device, clips)
    assert torch.equal(frames, before), "the input was changed"
    order = np.random.default_rng(0).permutation(16)
    for size in (1, 7, 16):
        for first in range(0, 16, size):
            some = order[first : first + size]
            assert torch.equal(run(make(), frames[some], device, clips[some])[0], whole[some])


@on_every_device
@every_transform
def test_all_frames_of_a_clip_are_treated_alike(make: Callable[[], Node], device: str) -> None:
    if make in (TRANSFORMS["mask"], TRANSFORMS["both"]):
        pytest.skip("masks some of the frames")
    still = pictures()[:, :1].expand(-1, 5, -1, -1, -1).contiguous()
    result, _ = run(make(), still, device)
    assert torch.equal(result, result[:, :1].expand_as(result))
    assert any(result.shape != still.shape or not torch.equal(result[row], still[row]) for row in range(16))


@on_every_device
def test_crop_is_where_it_says_and_in_the_middle_where_it_is_left_out(device: str) -> None:
    frames = pictures()
    result, parameters = run(RandomCrop((20, 17), p=0.6), frames, device)
    columns = parameters["RandomCrop"]
    assert 2 < columns["active"].sum() < 14
    for row in range(16):
        active = bool(columns["active"][row])
        top, left = (int(columns["top"][row]), int(columns["left"][row])) if active else (2, 7)
        assert torch.equal(result[row], frames[row, :, :, top : top + 20, left : left + 17])


@on_every_device
def test_erasing_fills_its_rectangle(device: str) -> None:
    frames = pictures()
    result, parameters = run(RandomErasing(p=1, value=9), frames, device)
    columns = {name: column.tolist() for name, column in parameters["RandomErasing"].items()}
    for row in range(16):
        top, left, height, width = (columns[name][row] for name in ("top", "left", "height", "width"))
        assert 0 <= top <= top + height <= 24
        assert 0 <= left <= left + width <= 31
        expected = frames[row].clone()
        expected[:, :, top : top + height, left : left + width] = 9
        assert torch.equal(result[row], expected)
    area = [height * width / (24 * 31) for height, width in zip(columns["height"], columns["width"], strict=True)]
    assert 0.01 < min(area) < max(area) < 0.4


@on_every_device
def test_color_is_its_formula(device: str) -> None:
    frames = pictures(dtype=torch.float32)
    result, parameters = run(ColorJitter(p=1, brightness=0.5, contrast=0.3, saturation=0.7), frames, device)
    luma = np.array([0.299, 0.587, 0.114])[:, None, None]
    for row in range(16):
        bright, contrast, saturation = (
            float(parameters["ColorJitter"][name][row]) for name in ("brightness", "contrast", "saturation")
        )
        values = np.clip(frames[row].double().numpy() * bright, 0, 255)
        mean = (values * luma).sum(1).mean()
        values = np.clip((values - mean) * contrast + mean, 0, 255)
        gray = (values * luma).sum(1, keepdims=True)
        values = np.clip((values - gray) * saturation + gray, 0, 255)
        np.testing.assert_allclose(result[row].numpy(), values, atol=5e-3)


@on_every_device
def test_blur_is_scipys(device: str) -> None:
    from scipy.ndimage import gaussian_filter1d

    frames = pictures(4, torch.float32)
    node = GaussianBlur(p=1, min_sigma=0.3, max_sigma=2.0)
    result, parameters = run(node, frames, device)
    for row in range(4):
        sigma = float(parameters["GaussianBlur"]["sigma"][row])
        expected = frames[row].double().numpy()
        for axis in (-2, -1):
            expected = gaussian_filter1d(expected, sigma, axis=axis, mode="nearest", radius=6)
        np.testing.assert_allclose(result[row].numpy(), expected, atol=1e-3)


@on_every_device
def test_a_mask_of_both_is_at_the_same_time_in_both(device: str) -> None:
    """25 frames/s at 16 kHz: frame k is shown from sample 640 k on."""
    frames = pictures(32, torch.float32) + 1
    audio = torch.ones(32, 5 * 640)
    keys = ClipKeys(np.arange(32))
    node = AVTimeMask(p=1, min_frames=1, max_frames=4)
    sound = node(audio.to(device), keys=keys, sample_rate=16000, num_frames=5, fps=25.0).audio.cpu()
    picture = node.augment_frames(frames.to(device), keys=keys).frames.cpu()
    dark = (picture == 0).all(dim=4).all(dim=3).all(dim=2)
    assert torch.equal(dark.repeat_interleave(640, dim=1), sound == 0)
    assert set(dark.sum(1).tolist()) == {1, 2, 3, 4}
    assert torch.equal(picture[~dark], frames[~dark])


def test_a_mask_of_both_needs_to_know_the_frames() -> None:
    with pytest.raises(ValueError, match="num_frames= and fps="):
        AVTimeMask(p=1)(torch.zeros(1, 10), keys=ClipKeys([0]), sample_rate=16000)


@on_every_device
def test_shift_and_reverse_move_a_clips_own_samples(device: str) -> None:
    audio = torch.arange(1.0, 11).repeat(64, 1)
    audio[:, 8:] = 0
    lengths = np.full(64, 8)
    keys = ClipKeys(np.arange(64))
    for rollover in (True, False):
        result = Shift(p=1, rollover=rollover)(audio.to(device), keys=keys, sample_rate=8, lengths=lengths)
        places = result.parameters["Shift"]["num_places"].tolist()
        assert min(places) == -4
        assert max(places) == 4
        for row, count in enumerate(places):
            expected = np.roll(np.arange(1.0, 9), count)
            if not rollover:
                expected[:count] = 0 if count > 0 else expected[:count]
                expected[8 + min(count, 0) :] = 0
            assert result.audio[row].tolist() == [*expected.tolist(), 0, 0]
    result = Reverse(p=1)(audio.to(device), keys=keys, sample_rate=8, lengths=lengths)
    assert result.audio[0].tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0, 0]


@pytest.mark.parametrize("node", [Shift(), Reverse()])
def test_what_breaks_sync_is_refused_with_pictures(node: Node) -> None:
    chain = Compose([Gain(), OneOf([HorizontalFlip(), node])])
    with pytest.raises(ValueError, match=f"{type(node).__name__} cannot be applied to clips with pictures: it "):
        chain.check_sync()
    Compose([Gain(), HorizontalFlip(), AVTimeMask()]).check_sync()


def test_a_crop_larger_than_the_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be at most that of the pictures, 24x31"):
        run(RandomCrop(40), pictures())
