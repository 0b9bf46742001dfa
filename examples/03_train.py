"""A small training loop on synchronized batches: does this sound belong to these frames?

Run it: `python examples/03_train.py [FOLDER]`

Half of each batch gets the sound of its neighbour, so the two encoders must learn what goes with what.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from avloader import AVLoader, Decibels, MelSpectrogram, build_manifest
from avloader.demo import demo_clip

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
folder.mkdir(parents=True, exist_ok=True)
video = demo_clip()
table = folder / "clips.csv"
rows = [f"{video.name},{start / 25},{(start + 16) / 25},bunny" for start in range(0, 116, 4)]
table.write_text("\n".join(["path,start,end,label", *rows]))
loader = AVLoader(
    build_manifest(table, media_root=video.parent, output=folder / "manifest"),
    batch_size=8,
    num_frames=8,
    stride=2,
    size=(64, 64),
    normalize="per_clip",
    features=MelSpectrogram(n_fft=512, hop_length=160, n_mels=40, scale=Decibels()),
    shuffle=True,
    last_batch="drop",
)
device = "cuda" if torch.cuda.is_available() else "cpu"

torch.manual_seed(0)
see = nn.Sequential(nn.Conv3d(3, 8, 5, stride=(1, 4, 4)), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Flatten()).to(device)
hear = nn.Sequential(nn.Conv1d(40, 16, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Flatten()).to(device)
judge = nn.Sequential(nn.Linear(8 * 8 + 16 * 4, 32), nn.ReLU(), nn.Linear(32, 1)).to(device)
optimizer = torch.optim.Adam([*see.parameters(), *hear.parameters(), *judge.parameters()], lr=1e-3)

for epoch in range(3):
    loader.set_epoch(epoch)  # another order in each epoch, the same on every machine
    for host_batch in loader:
        batch = host_batch.to(device)
        sound = batch.spectrogram / 40 + 1
        swapped = torch.arange(len(sound), device=device) % 2 == 1
        sound = torch.where(swapped[:, None, None], sound.roll(1, 0), sound)
        seen, heard = see(batch.frames.transpose(1, 2)), hear(sound)
        match = judge(torch.cat([seen, heard], dim=1))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(match, 1.0 - swapped.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: {len(loader)} batches, loss {loss.item():.3f}")
