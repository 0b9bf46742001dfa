"""Sound alone: mel bands, MFCC and Whisper's input of utterances of any length, on as many GPUs as there are.

python examples/08_sound_features.py [FOLDER]
torchrun --nproc-per-node 2 examples/08_sound_features.py [FOLDER]
"""

import os
import sys
from pathlib import Path

import torch

from avloader import AVLoader, build_manifest
from avloader.demo import demo_clip  # a video; WAV, FLAC, Ogg, MP3 and M4A do as well

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
folder.mkdir(parents=True, exist_ok=True)
rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
if world_size > 1:  # the loader asks PyTorch which part of each epoch is its own
    torch.distributed.init_process_group("gloo")
if torch.cuda.is_available():
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))

if rank == 0:
    video = demo_clip()
    table = folder / "utterances.csv"
    rows = [f"{video.name},{start / 10},{start / 10 + 0.4 + (7 * start) % 16 / 10}," for start in range(32)]
    table.write_text("\n".join(["path,start,end,label", *rows]))
    build_manifest(table, media_root=video.parent, output=folder / "utterances", streams="audio")
if world_size > 1:
    torch.distributed.barrier()

for preset, bucket in (("mel_spectrogram", 8), ("mfcc", 8), ("whisper", None)):
    loader = AVLoader(
        folder / "utterances",
        streams="audio",
        preset=preset,  # or features=MelSpectrogram(...) and others
        batch_size=4,
        shuffle=True,
        bucket=bucket,  # utterances of similar length follow one another; Whisper's are all padded to 30 s
    )
    with loader:
        batches = list(loader)
    heard = sum(int(batch.audio_mask.sum()) for batch in batches) / sum(batch.audio.numel() for batch in batches)
    shapes = [tuple(batch.spectrogram.shape) for batch in batches]
    print(f"rank {rank}, {preset}: {len(batches)} batches, the first {shapes[0]}, {heard:.0%} of the samples are sound")

if world_size > 1:
    torch.distributed.destroy_process_group()
