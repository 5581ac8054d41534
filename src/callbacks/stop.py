"""Stopping on a signal: finish the step, checkpoint, leave.

The handler only notes the signal. Between steps the ranks agree on it (the highest noted number wins), so
that a signal to any one of them stops all of them after the same step. Outside the training loop, where
there is no step to finish, the first signal leaves at once; a second signal always does.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import lightning as L
import torch
from torch import distributed

from src.mistakes import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """What the process was asked by signals."""

    def __init__(self) -> None:
        self.signum = 0
        self.deferred = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Note the first signal (or raise, where nothing needs finishing); leave at the second."""
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum
        if not self.deferred:
            raise Interrupted(signum)

    def check(self) -> None:
        """Leave now, if a signal was noted."""
        if self.signum:
            raise Interrupted(self.signum)

    def install(self) -> None:
        """Handle SIGINT and SIGTERM (main thread only)."""
        for signum in STOP_SIGNALS:
            signal.signal(signum, self.handle)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block, then restore what was there."""
        before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
        self.install()
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


class StopOnSignal(L.Callback):
    """Ends training at a step boundary once any rank was signalled; must come before `Checkpoints`."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.request.install()  # Lightning put its own SIGTERM handler in front when fit began
        self.request.deferred = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        if self._agreed(trainer, pl_module.device):
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.request.deferred = False

    def _agreed(self, trainer: L.Trainer, device: torch.device) -> int:
        if trainer.world_size > 1:
            flag = torch.tensor(self.request.signum, device=device)
            distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
            self.request.signum = int(flag.item())
        return self.request.signum
