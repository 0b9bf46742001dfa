"""AudioVisualPipeline by itself, with DALI's own iterator, from the two tables of a manifest.

python examples/04_dali_pipeline.py [FOLDER] [cpu|gpu]
"""

import sys
from pathlib import Path

from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from avloader import AudioVisualPipeline, MelSpectrogram, build_manifest
from avloader.demo import demo_clip

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
device = sys.argv[2] if len(sys.argv) > 2 else "gpu"
folder.mkdir(parents=True, exist_ok=True)
video = demo_clip()
table = folder / "clips.csv"
rows = [f"{video.name},{start / 25},{(start + 32) / 25},bunny" for start in range(0, 100, 20)]
table.write_text("\n".join(["path,start,end,label", *rows]))
manifest = Path(build_manifest(table, media_root=video.parent, output=folder / "manifest").path)

pipe = AudioVisualPipeline(
    manifest / "file_list.txt",
    manifest / "audio_offsets.csv",
    batch_size=2,
    num_frames=16,
    size=(224, 224),
    sample_rate=16000,
    features=MelSpectrogram(n_fft=512, hop_length=160, n_mels=80),
    device=device,
)
iterator = DALIGenericIterator(
    pipe,
    pipe.output_names,
    size=pipe.num_clips,
    auto_reset=True,
    last_batch_policy=LastBatchPolicy.PARTIAL,
    last_batch_padded=True,
)
for number, (batch,) in enumerate(iterator):
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in batch.items())
    print(f"batch {number} on {batch['frames'].device}: {shapes}; rows {batch['row'].flatten().tolist()}")
