"""Checkpoints: `step<n>.ckpt`, the last few of them, under the second names `last.ckpt` and `best.ckpt`.

A checkpoint is written beside its place, forced to disk and renamed; its SHA-256 stands beside it, in the format of
sha256sum. It holds tensors and plain values only, and loads with `weights_only=True` once every byte is checked.
`last.ckpt` is the newest; `best.ckpt` the one of the lowest validation loss.
"""

import contextlib
import functools
import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from src.callbacks.guard import Guard
from src.callbacks.run_record import RunRecord
from src.errors import one_line
from src.files import fsync_folder, sha256_file, write_atomic

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; those before it are whole."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint file, renamed into place after it and its hash are safe on the disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:  # Any: Lightning's own signature
        """Write `checkpoint` to `path`; what was at `path` stays whole until then."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            _write_hash(target, sha256_file(part))
            part.replace(target)
        except BaseException as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            if isinstance(error, OSError | RuntimeError):  # torch's writer turns the first into the second
                raise CheckpointError(f"{target} cannot be written: {one_line(error)}") from error
            raise
        fsync_folder(target.parent)

    def then(self, do: Callable[[], None]) -> None:
        """Do what needs the file in its place."""
        do()

    def check(self) -> None:
        """Raise what went wrong with a file, where that was not said at once."""

    def wait(self) -> None:
        """Return once every file is in its place."""

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., object] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Tensors and plain values on the CPU, of a file that is whole; nothing else is ever loaded."""
        return read_checkpoint(Path(path))


def hash_file(path: Path) -> Path:
    """Where the hash of a file stands."""
    return path.with_name(f"{path.name}.sha256")


def _write_hash(path: Path, sha256: str) -> None:
    write_atomic(hash_file(path), f"{sha256}  {path.name}\n")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU, after checking every byte of it against its hash and the archive's own sums.

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
        _check_hash(path)
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


def _check_hash(path: Path) -> None:
    """Compare with the hash beside the file, where there is one.

    A second name is given before its hash is written, so until then it answers to the hash of its first name.
    """
    if not hash_file(path).exists():
        return
    actual = sha256_file(path)
    if not any(hashed.read_text().startswith(actual) for hashed in path.parent.glob("*.ckpt.sha256")):
        raise ValueError(
            f"{path}: damaged, its SHA-256 is not the one in {hash_file(path).name}; "
            "give another checkpoint or start a new run"
        )


class Checkpoints(L.Callback):
    """Saves every so many steps, at the end, when training stops early, and at the best validation so far.

    Args:
        folder: where they go.
        every_steps: optimizer steps between two saves.
        keep: saves that are kept.
        identity: plain values saved along, that say which run the checkpoint belongs to.
        record: its rows are forced to disk before each save.
        guard: lets only sound weights through.
        files: writes them; the trainer's own.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_steps: int,
        keep: int,
        identity: Mapping[str, object],
        record: RunRecord,
        guard: Guard,
        files: AtomicCheckpointIO,
    ) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.keep = keep
        self.identity = dict(identity)
        self.record = record
        self.guard = guard
        self.files = files
        self.best_loss = float("inf")
        self.best_step = 0

    def note_validation(self, trainer: L.Trainer, loss: float) -> None:
        """Keep this step as the best, if its validation loss is the lowest so far."""
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.files.check()
        step = trainer.global_step
        best = self.best_step == step
        due = step % self.every_steps == 0 or step == trainer.max_steps or trainer.should_stop
        if not (best or due):
            return
        self.guard.check_weights(step, pl_module)
        self.record.sync()
        path = self.folder / f"step{step:08d}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            self.files.then(functools.partial(self._name, path, best))
        self.record.update(steps=step, seconds=self.record.seconds())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.files.wait()

    def _name(self, path: Path, best: bool) -> None:
        link_over(path, self.folder / "last.ckpt")
        if best:
            link_over(path, self.folder / "best.ckpt")
        for old in sorted(self.folder.glob("step*.ckpt"))[: -self.keep]:
            old.unlink()
            hash_file(old).unlink(missing_ok=True)

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
    if hash_file(source).exists():
        _write_hash(target, hash_file(source).read_text().split()[0])
