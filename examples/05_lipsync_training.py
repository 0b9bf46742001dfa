"""Learns lip sync from faces that talk, in the manner of SyncNet, and finds by how much held-out clips are out of sync.

Run it: `python examples/05_lipsync_training.py [FOLDER] [--resume]`
on two processes: `torchrun --nproc-per-node 2 examples/05_lipsync_training.py [FOLDER]`

Each picture of a clip must find its own sound among those of all pictures of the clip (`AllPairs`). Then the network
says for held-out faces which of 31 offsets, -15 to 15 frames, was put in (`GridOffsets`). It can be stopped at any step
and resumed: the losses are those of a run that was never stopped.
"""

import argparse
import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import torch
from rich.progress import track
from talking_faces import Speaker, make_films
from torch import distributed, nn

from avloader import AllPairs, AVBatch, AVLoader, GridOffsets, Ln, MelSpectrogram, build_manifest

MAX_FRAMES = 15  # offsets that are told apart, to both sides
FPS = 25
MEL = MelSpectrogram(n_fft=512, win_length=400, hop_length=160, n_mels=40, scale=Ln())
LENS = 5  # frames, and as much sound, that one embedding sees


class SyncNet(nn.Module):
    """Scores how well five frames from i on fit the sound of five frames from j on [shape=(B, F - 4, F - 4)]."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Sequential(
            *(nn.Conv3d(3, 16, (LENS, 5, 5), stride=(1, 2, 2)), nn.BatchNorm3d(16), nn.ReLU()),
            *(nn.Conv3d(16, 32, (1, 3, 3), stride=(1, 2, 2)), nn.BatchNorm3d(32), nn.ReLU()),
            *(nn.Conv3d(32, 32, (1, 3, 3), stride=(1, 2, 2)), nn.BatchNorm3d(32), nn.ReLU()),
        )
        self.describe = nn.Linear(32 * 4 * 4, 64)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.hear = nn.Sequential(
            *(nn.BatchNorm1d(40), nn.Conv1d(40, 64, 5, padding=2), nn.BatchNorm1d(64), nn.ReLU()),
            *(nn.Conv1d(64, 128, 4 * LENS, stride=4), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 64, 1)),
        )

    def forward(self, frames: torch.Tensor, spectrogram: torch.Tensor) -> torch.Tensor:  # noqa: D102
        seen = self.describe(self.see(frames.transpose(1, 2)).transpose(1, 2).flatten(2))
        heard = self.hear(spectrogram).transpose(1, 2)  # four columns of the spectrogram are one frame
        normalize = nn.functional.normalize
        return self.scale * normalize(seen, dim=2) @ normalize(heard, dim=2).transpose(1, 2)


def find_offsets(model: nn.Module, batch: AVBatch) -> torch.Tensor:
    """Frames by which the sound of each clip leads [shape=(B,)]: SyncNet's search, picture i with sound i - k."""
    with torch.no_grad():
        pairs = model(batch.frames, batch.spectrogram)
    scores = [torch.diagonal(pairs, -shift, 1, 2).mean(dim=1) for shift in range(-MAX_FRAMES, MAX_FRAMES + 1)]
    return torch.stack(scores, dim=1).argmax(dim=1) - MAX_FRAMES


def make_manifest(folder: Path, films: list[Path], *, num_rows: int) -> None:
    """A manifest of films of twelve seconds, each cut into rows of equal length."""
    length = 12 / num_rows
    rows = [f"{film.absolute()},{row * length},{(row + 1) * length},x" for film in films for row in range(num_rows)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clips.csv").write_text("\n".join(["path,start,end,label", *rows]))
    build_manifest(folder / "clips.csv", media_root=folder, output=folder / "manifest", progress=False)


def make_loader(folder: Path, **options) -> AVLoader:
    """A random clip of each row, at one frame rate whatever rates the films have."""
    return AVLoader(
        folder / "manifest", fps=FPS, size=(48, 48), normalize="per_clip", features=MEL, clips="random", **options
    )


def evaluate(model: nn.Module, folder: Path, device: str, num_epochs: int = 5) -> list[tuple[int, int]]:
    """The offsets that were put into held-out clips and those that are found, in frames."""
    grid = GridOffsets(max_seconds=Fraction(MAX_FRAMES, FPS), num_classes=2 * MAX_FRAMES + 1)
    found = []
    model.eval()
    with make_loader(folder, batch_size=8, num_frames=75, offsets=grid, rank=0, world_size=1, device=device) as loader:
        for batch in itertools.chain.from_iterable(itertools.repeat(loader, num_epochs)):
            found += zip((batch.sync_label - MAX_FRAMES).tolist(), find_offsets(model, batch).tolist(), strict=True)
    return found


def main() -> None:
    """Train and test, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("lipsync"))
    parser.add_argument("--speakers", type=int, default=32, help="a quarter of them is held out")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--lead-frames", type=int, default=0, help="learn from films whose sound is so early")
    parser.add_argument("--resume", action="store_true", help="go on where the last run was stopped")
    parser.add_argument("--stop-after", type=int, help="stop after so many steps, as if interrupted")
    options = parser.parse_args()
    if "RANK" in os.environ:  # torchrun
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"

    speakers = [Speaker(number, number, number) for number in range(options.speakers)]
    held_out = speakers[: options.speakers // 4]
    lead = Fraction(options.lead_frames, FPS)
    if rank == 0:
        make_manifest(
            options.folder / "train", make_films(options.folder, speakers[len(held_out) :], lead=lead), num_rows=4
        )
        make_manifest(options.folder / "test", make_films(options.folder, held_out), num_rows=2)
    if processes > 1:
        distributed.barrier()
    train = make_loader(
        options.folder / "train", batch_size=8 // processes, num_frames=32, offsets=AllPairs(),
        shuffle=True, last_batch="drop", device=device,
    )  # fmt: skip

    torch.manual_seed(0)
    model = SyncNet().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    checkpoint, losses = options.folder / "checkpoint.pt", []
    if options.resume:
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        train.load_state_dict(state["loader"])
        losses = state["losses"]
    learner = nn.parallel.DistributedDataParallel(model) if processes > 1 else model
    num_steps = min(options.epochs * len(train), options.stop_after or 10**9)

    def batches() -> Iterator[AVBatch]:
        while len(losses) < num_steps:
            yield from train  # each pass is the next epoch, and the first one goes on where the last run was stopped

    shown = track(batches(), "training", num_steps, completed=len(losses), disable=rank > 0, transient=True)
    for batch in itertools.islice(shown, num_steps - len(losses)):
        scores = learner(batch.frames, batch.spectrogram)
        target = batch.sync_label[:, : scores.shape[1]]
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if rank == 0 and (len(losses) % 20 == 0 or len(losses) == num_steps):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": train.state_dict()}
            torch.save({**state, "losses": losses}, checkpoint)
    train.close()
    if rank == 0:
        print(f"{len(losses)} steps on {processes} x {device}, loss {losses[0]:.3f} ... {losses[-1]:.3f}")
    if rank == 0 and not options.stop_after:
        errors = [abs(answer - asked) for asked, answer in evaluate(model, options.folder / "test", device)]
        right, mean = errors.count(0) / len(errors), sum(errors) / len(errors)
        print(
            f"{len(errors)} held-out clips: top-1 of {2 * MAX_FRAMES + 1} offsets {right:.1%}, error {mean:.3f} frames"
        )
    if processes > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
