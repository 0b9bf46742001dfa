"""Random second, random gain, log-mel, normalized: seeded, and shared between threads.

python examples/09_sound_augmentation.py [FOLDER]
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from avloader import AVBatch, AVLoader, Decibels, MelSpectrogram, Standardize, build_manifest
from avloader.augment import Gain
from avloader.demo import demo_clip  # a video; WAV, FLAC, Ogg, MP3 and M4A do as well

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
folder.mkdir(parents=True, exist_ok=True)
video = demo_clip()
table = folder / "sounds.csv"
rows = [f"{video.name},{start / 10},{start / 10 + 2}," for start in range(24)]
table.write_text("\n".join(["path,start,end,label", *rows]))
manifest = build_manifest(table, media_root=video.parent, output=folder / "sounds", streams="audio")
mel = MelSpectrogram(n_fft=512, hop_length=160, n_mels=128, scale=Decibels(ref="max"), normalize=Standardize())


def mel_batches(seed: int, rank: int = 0, world_size: int = 1) -> list[AVBatch]:
    """One thread's part of two epochs."""
    loader = AVLoader(
        manifest,
        streams="audio",
        batch_size=8,
        audio_seconds=1,
        clips="random",  # another second of each row in each epoch, never past its end
        augment=Gain(min_gain_db=-3, max_gain_db=2, p=1.0),
        features=mel,
        shuffle=True,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
    with loader:
        return [batch.to("cpu") for _ in range(2) for batch in loader]


def are_equal(one: list[AVBatch], other: list[AVBatch]) -> bool:
    """Whether their features are, to the bit."""
    return all(torch.equal(a.spectrogram, b.spectrogram) for a, b in zip(one, other, strict=True))


first = mel_batches(seed=42)
print(f"{len(first)} batches of {tuple(first[0].spectrogram.shape)}")
print("two runs with one seed are equal:", are_equal(first, mel_batches(seed=42)))
print("and with another seed:", are_equal(first, mel_batches(seed=43)))

with ThreadPoolExecutor(2) as pool:  # each draws for its clips what one thread would
    parts = list(pool.map(lambda rank: mel_batches(42, rank, 2), range(2)))
alone = {clip.numpy().tobytes() for batch in first for clip in batch.audio}
shared = {clip.numpy().tobytes() for part in parts for batch in part for clip in batch.audio}
print(f"two threads share {len(shared)} clips, the same ones:", alone == shared)
