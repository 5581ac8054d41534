"""Checkpoints written in the background: copied to host memory at their step, written to disk by a thread.

At most one save is in flight: the next one waits for it, and so do the end of training and an interruption. Until a
file is in place, the one before it is the newest, so a kill in between costs the steps since that one. The error of
a failed save is raised at the next step.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.callbacks.checkpoints import AtomicCheckpointIO
from src.errors import one_line

log = logging.getLogger(__name__)


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """`AtomicCheckpointIO` on a thread; holds one more checkpoint in host memory."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: list[Future[None]] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:  # Any: Lightning's own signature
        """Copy `checkpoint` now and write it later; waits for the save before it."""
        self.wait()
        copied = copy_to_host(checkpoint, {})
        self._in_flight.append(self._thread.submit(super().save_checkpoint, copied, Path(path)))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint once the save in flight has replaced it."""
        self.defer(lambda: AtomicCheckpointIO.remove_checkpoint(self, path))

    def defer(self, action: Callable[[], None]) -> None:
        """Run `action` on the thread after the last save; skip it if that save failed."""
        save = self._in_flight[-1] if self._in_flight else None

        def run() -> None:
            if save is None or save.exception() is None:
                action()

        self._in_flight.append(self._thread.submit(run))

    def raise_failures(self) -> None:
        """Raise the error of a save that has failed since."""
        while self._in_flight and self._in_flight[0].done():
            self._in_flight.pop(0).result()

    def wait(self) -> None:
        """Block until nothing is in flight; raise the error of a failed save."""
        while self._in_flight:
            self._in_flight.pop(0).result()

    def teardown(self) -> None:
        """Finish the save in flight after training, however it ended; its error must not hide training's own."""
        try:
            self.wait()
        except Exception as error:
            log.error("a checkpoint in flight was lost: %s", one_line(error))


def copy_to_host(tree: Any, seen: dict[tuple[object, ...], Tensor]) -> Any:  # plain values and tensors
    """Return a copy of a tree in host memory; tensors that share storage still share it in the copy."""
    if isinstance(tree, Tensor):
        key = (tree.untyped_storage().data_ptr(), tree.storage_offset(), tree.shape, tree.stride(), tree.dtype)
        if key not in seen:
            host = torch.empty_like(tree, device="cpu", memory_format=torch.preserve_format)
            seen[key] = host.copy_(tree.detach())
        return seen[key]
    if isinstance(tree, dict):
        return type(tree)((key, copy_to_host(value, seen)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return type(tree)(copy_to_host(item, seen) for item in tree)
    return tree
