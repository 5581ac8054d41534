"""Checkpoints: `last.ckpt` and `best.ckpt`, written whole or not at all.

A checkpoint is written beside its place, forced to disk and renamed; it holds tensors and plain values
only, and loads with `weights_only=True`. `last.ckpt` is where a run goes on; `best.ckpt` is the lowest
validation loss so far.
"""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from src.artefacts import fsync_folder
from src.callbacks.record import RunRecord


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint file, renamed into place after it is safe on the disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:  # Any: Lightning's own signature
        """Write `checkpoint` to `path`; what was at `path` stays whole until then."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
        fsync_folder(target.parent)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU, after checking every byte of it against the archive's sums.

    Raises:
        ValueError: missing, truncated, damaged, or holding more than tensors and plain values.
    """
    way_out = "give another checkpoint or start a new run"
    if not path.is_file():
        raise ValueError(f"{path}: no checkpoint there; {way_out}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{path}: damaged at record {damaged}; {way_out}")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile:
        size = path.stat().st_size
        raise ValueError(
            f"{path}: not a whole checkpoint ({size} bytes, no archive index); {way_out}"
        ) from None
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: cannot be loaded ({type(error).__name__}); {way_out}") from error
    return checkpoint


class Checkpoints(L.Callback):
    """Saves every so many steps, at the end, and when training stops early; keeps the best.

    Args:
        folder: where they go.
        every_steps: optimizer steps between two saves of `last.ckpt`.
        identity: plain values saved along, that say which run the checkpoint belongs to.
        record: its rows are forced to disk before each save.
    """

    def __init__(
        self, folder: Path, *, every_steps: int, identity: Mapping[str, object], record: RunRecord
    ) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.identity = dict(identity)
        self.record = record
        self.best_loss = float("inf")
        self.best_step = 0

    def note_validation(self, trainer: L.Trainer, loss: float) -> None:
        """Keep this step as the best, if its validation loss is the lowest so far."""
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        step = trainer.global_step
        best = self.best_step == step
        due = step % self.every_steps == 0 or step == trainer.max_steps or trainer.should_stop
        if not (best or due):
            return
        self.record.sync()
        name = "last.ckpt" if due else "best.ckpt"
        trainer.save_checkpoint(self.folder / name)
        self.record.update(steps=step, seconds=self.record.seconds())
        if best and due and trainer.is_global_zero:
            link_over(self.folder / "last.ckpt", self.folder / "best.ckpt")

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["reslab"] = {**self.identity, "step": trainer.global_step}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"best_loss": self.best_loss, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best of an earlier session."""
        self.best_loss, self.best_step = state_dict["best_loss"], state_dict["best_step"]


def link_over(source: Path, target: Path) -> None:
    """Give `source` a second name, atomically; checkpoints are never written in place, so one file serves."""
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    part.hardlink_to(source)
    part.replace(target)
