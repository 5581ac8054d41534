"""Stopping on a signal, or when the time is up: finish the step, checkpoint, leave.

The handler only notes the signal. Between steps the ranks agree on it (the highest noted number wins) over a group
of their own on the CPU, so that a signal to any one of them stops all of them after the same step and no GPU is
waited for. Outside the training loop, where there is no step to finish, the first signal leaves at once; a second
signal always does, and so does the first one's grace, once it is over. `trainer.max_time` is a SIGTERM to oneself.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import lightning as L
import torch
from torch import distributed

from src.errors import Interrupted, exit_code
from src.launch.signals import STOP_SIGNALS, refuse_to_go_on


class StopRequest:
    """What the process was asked by signals.

    Args:
        grace_s: seconds from the first signal to the end of the process, whatever it is doing.
    """

    def __init__(self, *, grace_s: float) -> None:
        self.grace_s = grace_s
        self.signum = 0
        self.reason = ""
        self.deferred = False
        self._began = time.monotonic()
        self._timer: threading.Timer | None = None

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Note the first signal (or raise, where nothing needs finishing); leave at the second."""
        if self.signum:
            os._exit(exit_code(signum))
        self.signum = signum
        self.reason = f"stopped by {signal.Signals(signum).name}"
        self._timer = threading.Timer(self.grace_s, self._out_of_time)
        self._timer.daemon = True
        self._timer.start()
        if not self.deferred:
            raise Interrupted(signum)

    def _out_of_time(self) -> None:
        print(f"not done {self.grace_s:g} s (safety.grace_s) after the signal: leaving", file=sys.stderr)
        os._exit(exit_code(self.signum))

    def pass_on(self, signum: int) -> None:
        """Have this process do what another rank was told by a signal."""
        if not self.signum:
            os.kill(os.getpid(), signum)

    def agree(self, signum: int) -> None:
        """Stop as every rank does after this step.

        Never called with 0: a signal that comes while the ranks agree on "none" stays noted, for the next step.
        """
        self.signum = signum
        self.reason = self.reason or f"stopped by {signal.Signals(signum).name} to another rank"

    def check(self) -> None:
        """Leave now, if a signal was noted."""
        if self.signum:
            raise Interrupted(self.signum, self.reason)

    def note_time(self, max_s: float | None) -> None:
        """Ask for the end, if this process has been at work for `max_s` seconds."""
        if max_s is not None and not self.signum and time.monotonic() - self._began >= max_s:
            self.signum = signal.SIGTERM
            self.reason = f"trainer.max_time is over ({max_s:g} s)"

    def install(self) -> None:
        """Handle the signals (main thread only)."""
        for signum in STOP_SIGNALS:
            signal.signal(signum, self.handle)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block, then restore what was there."""
        before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
        self.install()
        refuse_to_go_on()
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for signum, handler in before.items():
                signal.signal(signum, handler)


class StopOnSignal(L.Callback):
    """Ends training at a step boundary once any rank was signalled; must come before `Checkpoints`.

    Args:
        request: what this process was asked.
        max_s: seconds of work after which the run is to stop; None for no limit.
        timeout_s: how long the ranks wait for each other here.
    """

    def __init__(self, request: StopRequest, *, max_s: float | None, timeout_s: float) -> None:
        self.request = request
        self.max_s = max_s
        self.timeout_s = timeout_s
        self._group: distributed.ProcessGroup | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.request.install()  # Lightning put its own SIGTERM handler in front when fit began
        self.request.deferred = True
        if trainer.world_size > 1:
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_s))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.request.note_time(self.max_s)
        if self._group is not None:
            flag = torch.tensor(self.request.signum)
            distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=self._group)
            agreed = int(flag.item())
        else:
            agreed = self.request.signum
        if agreed:
            self.request.agree(agreed)
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.request.deferred = False
