"""Classifies who is seen and who is heard: nine classes of three faces and three voices, so that both are needed.

Run it: `python examples/06_classification.py [FOLDER] [EPOCHS]`
"""

import sys
from pathlib import Path

import torch
from rich.progress import track
from talking_faces import Speaker, make_films
from torch import nn

from avloader import AVLoader, Ln, MelSpectrogram, build_manifest

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "classification")
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 12
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)


def make_loader(name: str, speeches: range, **options) -> AVLoader:
    """Films of all nine pairs, each of these speeches, cut into rows of two seconds."""
    pairs = [(face, voice) for face in range(3) for voice in range(3)]
    lines = ["path,start,end,label"]
    for speech in speeches:
        films = make_films(folder, [Speaker(face, voice, 9 * speech + 3 * face + voice) for face, voice in pairs])
        for (face, voice), film in zip(pairs, films, strict=True):
            lines += [f"{film.name},{second},{second + 2},face {face} voice {voice}" for second in range(0, 12, 2)]
    (folder / f"{name}.csv").write_text("\n".join(lines))
    manifest = build_manifest(folder / f"{name}.csv", media_root=folder, output=folder / name, progress=False)
    mel = MelSpectrogram(n_fft=512, hop_length=160, n_mels=40, scale=Ln(add=1e-6))
    return AVLoader(
        manifest, num_frames=4, stride=3, fps=25, size=(48, 48), features=mel, clips="random", device=device, **options
    )  # fmt: skip


train = make_loader("train", range(1), batch_size=9, shuffle=True)
test = make_loader("test", range(1, 2), batch_size=27)
see = nn.Sequential(nn.Conv3d(3, 16, (1, 5, 5), (1, 4, 4)), nn.ReLU(), nn.AdaptiveAvgPool3d((1, 4, 4)), nn.Flatten())
hear = nn.Sequential(nn.BatchNorm1d(40), nn.Conv1d(40, 32, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
classify = nn.Sequential(nn.Linear(16 * 16 + 32, 64), nn.ReLU(), nn.Linear(64, len(train.manifest.labels)))
model = nn.ModuleList([see, hear, classify]).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for epoch in range(epochs):
    for batch in track(train, f"epoch {epoch}", transient=True):
        scores = classify(torch.cat([see(batch.frames.transpose(1, 2)), hear(batch.spectrogram)], dim=1))
        loss = nn.functional.cross_entropy(scores, batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

model.eval()
with torch.no_grad():
    right = [
        (
            classify(torch.cat([see(batch.frames.transpose(1, 2)), hear(batch.spectrogram)], dim=1)).argmax(dim=1)
            == batch.label
        )
        for batch in test
    ]
print(f"{len(train.manifest.labels)} classes, other speech: {torch.cat(right).float().mean():.1%} right")
