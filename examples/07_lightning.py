"""A Lightning data module: the lip-sync network of example 05 under `Trainer`, resumed in the middle of an epoch.

Run it: `python examples/07_lightning.py [FOLDER] [MAX_STEPS] [CHECKPOINT]` (needs `pip install lightning`)

The loader is a stateful iterable that knows its length, rank and world size, and its batches know `.to(device)`: so
Lightning needs no wrapper, and its checkpoints hold where the loader stands.
"""

import runpy
import sys
from pathlib import Path

import lightning
import torch
from talking_faces import Speaker, make_films
from torch import nn

from avloader import AllPairs, AVBatch, AVLoader

lipsync = runpy.run_path(str(Path(__file__).with_name("05_lipsync_training.py")))


class TalkingFaces(lightning.LightningDataModule):
    """Makes the films once, and a loader in every process."""

    def __init__(self, folder: Path, num_speakers: int = 4) -> None:
        super().__init__()
        self.folder, self.speakers = folder, [Speaker(number, number, number) for number in range(num_speakers)]

    def prepare_data(self) -> None:
        """In one process."""
        lipsync["make_manifest"](self.folder / "train", make_films(self.folder, self.speakers), num_rows=4)

    def train_dataloader(self) -> AVLoader:
        """In every process: rank and world size come from torch.distributed."""
        return lipsync["make_loader"](
            self.folder / "train", batch_size=4, num_frames=32, offsets=AllPairs(), shuffle=True, last_batch="drop"
        )


class LipSync(lightning.LightningModule):
    """The network, its loss, its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = lipsync["SyncNet"]()
        self.losses = []

    def training_step(self, batch: AVBatch, index: int) -> torch.Tensor:
        """Each picture finds its own sound."""
        scores = self.network(batch.frames, batch.spectrogram)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), batch.sync_label[:, : scores.shape[1]].flatten())
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as in example 05."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "lightning")
    max_steps = int(sys.argv[2]) if len(sys.argv) > 2 else 24
    torch.manual_seed(0)
    trainer = lightning.Trainer(max_steps=max_steps, logger=False, enable_checkpointing=False, accelerator="auto")
    model = LipSync()
    trainer.fit(model, TalkingFaces(folder), ckpt_path=sys.argv[3] if len(sys.argv) > 3 else None)
    trainer.save_checkpoint(folder / "lightning.ckpt")
    print("losses", " ".join(f"{loss:.9g}" for loss in model.losses))
