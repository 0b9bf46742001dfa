"""From a table of clips to a manifest: what was kept, what was rejected and why.

python examples/01_manifest.py [FOLDER]
"""

import sys
from pathlib import Path

from avloader import build_manifest
from avloader.demo import demo_clip  # a real clip of 5.3 s with sound; put your own videos here

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
folder.mkdir(parents=True, exist_ok=True)
video = demo_clip()

# Times are seconds on the media timeline, start included, end excluded; an empty end is that of the medium.
table = folder / "clips.csv"
table.write_text(
    "path,start,end,label\n"
    f"{video.name},0,1.28,waking\n"
    f"{video.name},1.28,2.56,stretching\n"
    f"{video.name},2.56,,yawning\n"
    f"{video.name},7,8,yawning\n"  # beyond the end
    "another.mp4,0,1,yawning\n"  # no such file
)

manifest = build_manifest(table, media_root=video.parent, output=folder / "manifest")

print(f"{len(manifest)} rows of {manifest.num_media} medium, labels {manifest.labels}")
for number in range(len(manifest)):
    row = manifest.row(number)
    print(
        f"row {row.row}: frames [{row.first_frame}, {row.stop_frame}), "
        f"{float(row.start_seconds):.3f} s to {float(row.stop_seconds):.3f} s, {manifest.labels[row.label]}"
    )
for rejected in manifest.rejected():
    print(f"rejected, {rejected['code']}: {rejected['message']}")
