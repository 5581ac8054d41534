"""Loader of one batch per optimizer step that Lightning can continue in the middle."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.datamodules.shards.format import ShardError
from src.launch.signals import STOP_SIGNALS


class TrainLoader:
    """Batches by optimizer step: the length counts all steps, the iteration begins at `start`.

    Lightning adds the restored batch count to the number it fetched and compares the sum with the length, so a
    resumed loader must not be shorter. There is no state: a step's batch follows from its number.

    Args:
        batch_of: returns the batch of a step (0-based); a pure function.
        start: the first step of the iteration.
        max_steps: the length.
        workers: processes that read ahead; 0 reads in this one.
    """

    def __init__(self, batch_of: Callable[[int], Tensor], *, start: int, max_steps: int, workers: int) -> None:
        self.batch_of, self.start, self.max_steps, self.workers = batch_of, start, max_steps, workers

    def __len__(self) -> int:
        return self.max_steps

    def __iter__(self) -> Iterator[Tensor]:
        loader = DataLoader(
            _StepDataset(self.batch_of),
            sampler=range(self.start, self.max_steps),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=ignore_stop_signals,
        )
        for batch in loader:
            if isinstance(batch, str):
                raise ShardError(batch)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return nothing; that the method exists tells Lightning that the loader can continue in the middle."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Do nothing; see `state_dict`."""


def ignore_stop_signals(worker: int) -> None:
    """Ignore the stop signals in a worker process, except the SIGTERM by which its parent ends it.

    SLURM and Ctrl-C signal every process of a job. A worker that ends first would fail the step, or the checkpoint,
    that its parent still finishes.
    """
    for signum in STOP_SIGNALS:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere the sender of a signal is unknown, and torch's handler ends the worker
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with_parent, daemon=True, name="wait-for-parent").start()


def _end_with_parent() -> None:
    """End this process at a SIGTERM of its parent, which at its own exit waits for a worker that is left."""
    parent = multiprocessing.parent_process()
    while parent is not None and signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent.pid:
        pass
    os._exit(0)


class ValLoader:
    """Validation batches, read again for each validation.

    It has no `__len__`: the ranks' numbers may differ, of which Lightning would warn.

    Args:
        batches: returns an iterator over all of them.
        n_batches: their number.
    """

    def __init__(self, batches: Callable[[], Iterator[Tensor]], n_batches: int) -> None:
        self.batches, self.n_batches = batches, n_batches

    def __iter__(self) -> Iterator[Tensor]:
        return self.batches()


class _StepDataset(Dataset[Tensor | str]):
    """Batches by step, or the message of a `ShardError`, which a worker process would print as a traceback."""

    def __init__(self, batch_of: Callable[[int], Tensor]) -> None:
        self.batch_of = batch_of

    def __getitem__(self, step: int) -> Tensor | str:
        try:
            return self.batch_of(step)
        except ShardError as error:
            return str(error)
