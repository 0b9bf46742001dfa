"""Clips per second of one process a GPU, and proof that together they deliver every clip once.

    torchrun --standalone --nproc-per-node 1 tools/bench_ranks.py --output tools/bench_ranks.json
    torchrun --standalone --nproc-per-node 2 tools/bench_ranks.py --output tools/bench_ranks.json

Checked first: the ranks' shares of a shuffled epoch are disjoint and together the whole; and what one process alone
delivers after it took over in the middle is exactly what was missing. Then all ranks run at the same time.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_gpu
import bench_loader as bench
import torch
import torch.distributed as dist

from avloader import Manifest


def gathered(rows: list[int]) -> list[int]:
    """The rows of all ranks."""
    parts: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def check(manifest: Manifest) -> None:
    """Check that nothing is delivered twice, and nothing left out."""
    device = f"cuda:{os.environ['LOCAL_RANK']}"
    with bench_gpu.loader_of(manifest, shuffle=True, device=device) as loader:
        before: list[int] = []
        state: dict[str, Any] = {}
        rows: list[int] = []
        for number, batch in enumerate(loader):
            rows += batch.row.tolist()
            if number == len(loader) // 2:
                before, state = list(rows), loader.state_dict()
    counts = collections.Counter(gathered(rows))
    assert counts == collections.Counter(range(len(manifest))), "the shares overlap, or do not make the whole"
    had = gathered(before)
    with bench_gpu.loader_of(manifest, shuffle=True, device=device, rank=0, world_size=1) as alone:
        alone.load_state_dict(state)
        rest = [row for batch in alone for row in batch.row.tolist()]
    assert collections.Counter(had + rest) == counts, "another number of ranks did not go on where these stopped"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the figures; those of other numbers of GPUs stay")
    sizes = list(bench_gpu.CLIPS)
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=sizes, metavar="MEDIA", help="(default: all)")
    parser.add_argument("--media", type=Path, help="folder that keeps the media for the next run")
    arguments = parser.parse_args(argv)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as own:
        for name in arguments.sizes:
            recipe = bench.recipes(60)[name]
            shared = [own]
            dist.broadcast_object_list(shared)
            folder = Path(shared[0], recipe.name)
            if rank == 0:
                folder.mkdir()
                medium = bench.medium(recipe, folder, arguments.media)
                bench.random_manifest(medium, recipe, bench_gpu.CLIPS[name], folder)
            dist.barrier()
            manifest = Manifest.open(folder / "manifest")
            if "224" in name:
                check(manifest)
            num_batches = bench_gpu.CLIPS[name] // bench.BATCH_SIZE
            with bench_gpu.loader_of(manifest, device=f"cuda:{torch.cuda.current_device()}") as loader:
                batches = bench_gpu.endless(loader)
                for _ in range(num_batches // 3):
                    next(batches)
                dist.barrier()
                begin = time.perf_counter()
                for _ in range(num_batches):
                    next(batches)
                torch.cuda.synchronize()
                dist.barrier()
                rate = world_size * num_batches * bench.BATCH_SIZE / (time.perf_counter() - begin)
                batches.close()
            results[name] = round(rate, 1)
        dist.barrier()
    if rank == 0:
        bench_gpu.show(f"clips per second, {world_size} GPUs", [results])
        if arguments.output is not None:
            report: dict[str, Any] = {"gpus": {}}
            if arguments.output.exists():
                report = json.loads(arguments.output.read_text())
            report["machine"] = bench.machine("gpu")
            report["gpus"][str(world_size)] = results
            arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
