"""One batch, and a picture of one of its clips: frames over the spectrogram on one time axis.

python examples/02_look_at_a_batch.py [FOLDER]
"""

import sys
from pathlib import Path

from avloader import AVLoader, MelSpectrogram, build_manifest, preview
from avloader.demo import demo_clip

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
folder.mkdir(parents=True, exist_ok=True)
video = demo_clip()
table = folder / "clips.csv"
table.write_text(f"path,start,end,label\n{video.name},0,2.56,waking\n{video.name},2.56,5.12,yawning\n")
manifest = build_manifest(table, media_root=video.parent, output=folder / "manifest")

loader = AVLoader(
    manifest,
    batch_size=2,
    num_frames=16,
    stride=2,
    size=(180, 320),
    normalize=None,  # frames as uint8, as one looks at them
    sample_rate=16000,
    features=MelSpectrogram(n_fft=512, hop_length=160, n_mels=80),
    clips="first",
)
print(loader.engine)
batch = next(iter(loader))
print(batch)

difference = batch.audio_start_seconds - batch.frame_seconds[:, 0]
print(f"sound starts at most {difference.abs().max() * 1e3:.3f} ms from its first frame")

picture = folder / "batch.png"
preview.save(preview.draw(batch, 1, sample_rate=16000, manifest=manifest), picture)
print(f"wrote {picture}")
