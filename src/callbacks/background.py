"""Checkpoints written beside the training: copied to host memory at their step, then written by a thread.

At most one is in flight: the next save waits for it, and so do the end and an interruption. All else is as in
`checkpoints.py`; until a file is in its place the one before it is the newest, so a kill in between costs the steps
since that one and nothing more. What goes wrong in the thread is raised at the next step.
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
    """`AtomicCheckpointIO` in a thread; takes the memory of one more checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._unfinished: list[Future[None]] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:  # Any: Lightning's own signature
        """Copy `checkpoint` now and write it later; waits for the one before it."""
        self.wait()
        copied = on_host(checkpoint, {})
        self._unfinished.append(self._thread.submit(super().save_checkpoint, copied, Path(path)))

    def then(self, do: Callable[[], None]) -> None:
        """Do what needs the file in its place, after it is there; not at all where it could not be written."""
        written = self._unfinished[-1]

        def follow() -> None:
            if written.exception() is None:
                do()

        self._unfinished.append(self._thread.submit(follow))

    def check(self) -> None:
        """Raise what went wrong so far."""
        while self._unfinished and self._unfinished[0].done():
            self._unfinished.pop(0).result()

    def wait(self) -> None:
        """Wait until nothing is in flight; raises what went wrong."""
        while self._unfinished:
            self._unfinished.pop(0).result()

    def teardown(self) -> None:
        """Nothing is in flight after the training, however it ended; its own error is the news."""
        try:
            self.wait()
        except Exception as error:
            log.error("a checkpoint in flight was lost: %s", one_line(error))


def on_host(tree: Any, seen: dict[tuple[object, ...], Tensor]) -> Any:  # plain values and tensors
    """A copy of a tree in the host's memory; tensors that are one stay one."""
    if isinstance(tree, Tensor):
        key = (tree.untyped_storage().data_ptr(), tree.storage_offset(), tree.shape, tree.stride(), tree.dtype)
        if key not in seen:
            seen[key] = torch.empty_like(tree, device="cpu", memory_format=torch.preserve_format).copy_(
                tree.detach()
            )
        return seen[key]
    if isinstance(tree, dict):
        return type(tree)((key, on_host(value, seen)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return type(tree)(on_host(item, seen) for item in tree)
    return tree
