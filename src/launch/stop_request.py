"""Request to stop, by a signal or at a time limit: finish what is under way, then exit.

The handler records the first signal, or exits where there is nothing to finish. A second signal to this process exits at
once unless it follows within `REPEATED_S`, and so does the end of the grace period. `trainer.max_time` and a signal to
another rank request the same stop, but are not a signal to this process: the next one is its first.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from src.errors import Interrupted, exit_code
from src.launch.signals import SIGNAL_STATE, STOP_SIGNALS

#: Seconds in which another signal repeats the first: SLURM signals every process of a task, and a launcher passes it on.
REPEATED_S = 2.0


class StopRequest:
    """Request to stop, by a signal to this process or to another rank.

    Args:
        grace_s: seconds from the first signal to the end of the process, whatever it is doing.
    """

    def __init__(self, *, grace_s: float) -> None:
        self.grace_s = grace_s
        self.signum = 0
        self.reason = ""
        self.deferred = False
        self.agreed = False
        self._began = time.monotonic()
        self._signalled = 0.0
        self._timer: threading.Timer | None = None

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Record the first signal, or raise if nothing is to be finished and no stop is agreed; exit at the second."""
        if self._timer is not None:
            if time.monotonic() >= self._signalled + REPEATED_S:
                os._exit(exit_code(signum))
            return
        self.signum = self.signum or signum
        self.reason = self.reason or f"stopped by {signal.Signals(signum).name}"
        self._signalled = time.monotonic()
        self._timer = threading.Timer(self.grace_s, self._exit_late)
        self._timer.daemon = True
        self._timer.start()
        if not (self.deferred or self.agreed):  # ranks that agreed end together, without a signal's help
            raise Interrupted(signum)

    def _exit_late(self) -> None:
        print(f"not finished {self.grace_s:g} s after the signal (safety.grace_s); exiting", file=sys.stderr)
        os._exit(exit_code(self.signum))

    def agree(self, signum: int) -> None:
        """Adopt the signal on which the ranks agreed.

        Never called with 0: a signal that arrives while the ranks agree on "none" stays recorded for the next step.
        """
        self.signum, self.agreed = signum, True
        self.reason = self.reason or f"stopped by {signal.Signals(signum).name} to another rank"

    def check(self) -> None:
        """Raise `Interrupted` if a signal was recorded."""
        if self.signum:
            raise Interrupted(self.signum, self.reason, agreed=self.agreed)

    def check_time(self, max_s: float | None) -> None:
        """Record a SIGTERM if this process has run for `max_s` seconds."""
        if max_s is not None and not self.signum and time.monotonic() - self._began >= max_s:
            self.signum = signal.SIGTERM
            self.reason = f"trainer.max_time is over ({max_s:g} s)"

    def install(self) -> None:
        """Handle the signals (main thread only)."""
        for signum in STOP_SIGNALS:
            signal.signal(signum, self.handle)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block, then restore the earlier handlers."""
        before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
        self.install()
        SIGNAL_STATE.raise_if_received()
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for signum, handler in before.items():
                signal.signal(signum, handler)
            if self.signum == signal.SIGUSR2 and "SUBMITIT_EXECUTOR" in os.environ:
                signal.raise_signal(signal.SIGUSR2)  # submitit's handler requeues the job, which then resumes
