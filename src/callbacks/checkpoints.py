"""Checkpoints: `step<n>.ckpt`, the newest few and chosen ones, with the second names `last.ckpt` and `best.ckpt`.

A checkpoint is written to a temporary file, flushed to disk and renamed; its SHA-256 stands beside it in the format
of sha256sum. It holds tensors and plain values only, and loads with `weights_only=True` after every byte is checked.
`last.ckpt` is the newest; `best.ckpt` has the lowest validation loss.

With `trainer.strategy=fsdp` a checkpoint is a folder of the same name (`sharded_checkpoint.py`), and its second names
are symbolic links.
"""

import contextlib
import functools
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from src.callbacks.guard import Guard
from src.callbacks.run_record import RunRecord
from src.callbacks.sharded_checkpoint import MANIFEST, read_sharded
from src.callbacks.step_end import StepEndCallback
from src.errors import CheckpointError, one_line
from src.files import fsync_folder, sha256_file, write_atomic


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint format, renamed into place once the file and its hash are on disk."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[Path, dict[str, Any]] = {}

    def hold(self, path: Path, checkpoint: dict[str, Any]) -> None:
        """Keep a checkpoint that was read and verified already; the next load of `path` returns it."""
        self._held[path] = checkpoint

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:  # Any: Lightning's own signature
        """Write `checkpoint` to `path` atomically: readers see the old file or the new one.

        Raises:
            CheckpointError: the file cannot be written; the one before is still there.
        """
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

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint and its hash."""
        if Path(path).is_dir() and not Path(path).is_symlink():
            shutil.rmtree(path)
            return
        Path(path).unlink(missing_ok=True)
        hash_path(Path(path)).unlink(missing_ok=True)

    def defer(self, action: Callable[[], None]) -> None:
        """Run `action` once the last saved file is in place."""
        action()

    def raise_failures(self) -> None:
        """Raise the error of a save that has failed since."""

    def wait(self) -> None:
        """Block until every file is in place."""

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., object] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Return a verified file's tensors and plain values on the CPU; nothing else is ever loaded."""
        held = self._held.pop(Path(path), None)
        return read_checkpoint(Path(path)) if held is None else held


def hash_path(path: Path) -> Path:
    """Return the path of a checkpoint's SHA-256."""
    return path.with_name(f"{path.name}.sha256")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint in the folder of checkpoints."""
    return folder / f"step{step:08d}.ckpt"


def step_of(path: Path) -> int:
    """Return the step that the name of a `step<n>.ckpt` states."""
    return int(path.stem.removeprefix("step"))


def list_steps(folder: Path) -> list[Path]:
    """Return the checkpoints `step<n>.ckpt` of a folder by ascending step, without files of other names."""
    found = [path for path in folder.glob("step*.ckpt") if re.fullmatch(r"step[0-9]+\.ckpt", path.name)]
    return sorted(found, key=step_of)


def identifying_file(path: Path) -> Path:
    """Return the file whose SHA-256 identifies a checkpoint: itself, or a folder's manifest of hashes."""
    return path / MANIFEST if path.is_dir() else path


def _write_hash(path: Path, sha256: str) -> None:
    write_atomic(hash_path(path), f"{sha256}  {path.name}\n")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint on the CPU after checking every byte against its SHA-256 and the archive's checksums.

    Raises:
        ValueError: the file is missing, truncated or damaged, or holds more than tensors and plain values.
    """
    if path.is_dir():
        return read_sharded(path)
    hint = "give another checkpoint or start a new run"
    if not path.is_file():
        raise ValueError(f"{path}: no checkpoint there; {hint}")
    try:
        with zipfile.ZipFile(path) as archive:  # without a hash file, the archive's own checksums
            damaged = None if hash_path(path).exists() else archive.testzip()
        if damaged is not None:
            raise ValueError(f"{path}: damaged at record {damaged}; {hint}")
        _check_hash(path)
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile:
        size = path.stat().st_size
        raise ValueError(f"{path}: not a whole checkpoint ({size} bytes, no archive index); {hint}") from None
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: cannot be loaded ({type(error).__name__}); {hint}") from error
    return checkpoint


def _check_hash(path: Path) -> None:
    """Compare a file with the SHA-256 beside it, if there is one.

    A second name (`last.ckpt`) exists shortly before its own hash does, so the hash of any name in the folder counts.
    """
    if not hash_path(path).exists():
        return
    actual = sha256_file(path)
    if not any(hashed.read_text().startswith(actual) for hashed in path.parent.glob("*.ckpt.sha256")):
        raise ValueError(
            f"{path}: damaged, its SHA-256 is not the one in {hash_path(path).name}; "
            "give another checkpoint or start a new run"
        )


class Checkpoints(StepEndCallback, Checkpoint):
    """Saves every `every_steps` steps, at the end, before an early stop, and at the lowest validation loss so far.

    Not a `ModelCheckpoint`, because three of its private methods would have to be overridden. `_link_checkpoint`
    makes a symbolic link in two steps, without a hash and before a file written in the background exists; here
    `last.ckpt` and `best.ckpt` are hard links, renamed into place after it. `_save_monitor_checkpoint` would
    write the same weights a second time for `best.ckpt`. `_should_skip_saving_checkpoint` and the branch for manual
    optimization of its `on_train_batch_end` (a warning about weights "after optimization" at each save) know neither
    the last step nor a stop by a signal. The schedule that is left takes ten lines.

    Args:
        folder: the folder of the checkpoints.
        every_steps: optimizer steps between two saves.
        keep: number of checkpoints kept, newest first.
        keep_steps: steps that are saved too, and whose checkpoints are never deleted; the record lists them, so that
            a resumed run with other steps keeps those too.
        since: step at which the run branched from another one; the best checkpoint is of a later step.
        identity: plain values saved along, which say which run the checkpoint belongs to.
        record: its rows are flushed to disk before each save.
        guard: checks the weights before each save.
        files: the trainer's checkpoint IO.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_steps: int,
        keep: int,
        keep_steps: Collection[int],
        since: int,
        identity: Mapping[str, object],
        record: RunRecord,
        guard: Guard,
        files: AtomicCheckpointIO,
    ) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.keep = keep
        self.keep_steps = frozenset(keep_steps)
        self.since = since
        self.identity = dict(identity)
        self.record = record
        self.guard = guard
        self.files = files
        self.best_loss = float("inf")
        self.best_step = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.files.raise_failures()
        super().on_train_batch_end(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = trainer.callback_metrics["val/loss"].item()
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, trainer.global_step
        super().on_validation_end(trainer, pl_module)

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        is_best = self.best_step == step
        is_due = step % self.every_steps == 0 or step == trainer.max_steps or trainer.should_stop
        is_kept = step in self.keep_steps
        if not (is_best or is_due or is_kept):
            return
        self.guard.check_weights(step, pl_module)
        self.record.sync()
        if is_kept:
            self.record.update(kept_steps=sorted({*self.record.result.get("kept_steps", []), step}))
        path = checkpoint_path(self.folder, step)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            self.files.defer(functools.partial(self._link_and_prune, path, is_best))
        self.record.update(steps=step, seconds=self.record.seconds())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.files.wait()

    def _link_and_prune(self, path: Path, is_best: bool) -> None:
        """Give a new checkpoint its second names, then delete the oldest ones that are not to be kept."""
        link_over(path, self.folder / "last.ckpt")
        if is_best:
            link_over(path, self.folder / "best.ckpt")
        kept = {checkpoint_path(self.folder, step).name for step in self.record.result.get("kept_steps", [])}
        # A folder has no second name of its own, so the one that a symbolic link names stays.
        kept |= {path.resolve().name for path in (self.folder / "last.ckpt", self.folder / "best.ckpt")}
        for old in list_steps(self.folder)[: -self.keep]:
            if old.name in kept:
                continue
            AtomicCheckpointIO.remove_checkpoint(self.files, old)  # this runs where the file was written

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["reslab"] = {**self.identity, "step": trainer.global_step}

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["best_step"] > self.since:
            self.best_loss, self.best_step = state_dict["best_loss"], state_dict["best_step"]


def link_over(source: Path, target: Path) -> None:
    """Give `source` the second name `target` in its folder, atomically.

    Checkpoints are never modified in place, so a link suffices.
    """
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    if source.is_dir():  # which can have symbolic links only
        part.symlink_to(source.resolve().name, target_is_directory=True)
        part.replace(target)
        hash_path(target).unlink(missing_ok=True)
        return
    part.hardlink_to(source)
    part.replace(target)
    if hash_path(source).exists():
        _write_hash(target, hash_path(source).read_text().split()[0])
