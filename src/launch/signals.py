"""Signal handlers of the whole process: it exits with the right code while it still imports or composes, too.

This module imports little, because it runs before the imports that take seconds. A training installs handlers of its
own on top (`stop_request.py`), which finish the step; before, between and after jobs these here are active.
"""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from src.errors import Interrupted, exit_code

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class SignalState:
    """First stop signal that this process received; an `Interrupted` may be lost, as an import may catch anything."""

    received: int | None = None

    def raise_if_received(self) -> None:
        """Raise `Interrupted` again if a stop signal arrived and its exception was swallowed."""
        if self.received is not None:
            raise Interrupted(self.received)


#: Signal state of this process; handlers of signals have no other place to write to.
SIGNAL_STATE = SignalState()


def stop_with_parent(every_s: float = 0.5) -> None:
    """Send SIGTERM to this process, once, when its parent has ended.

    The operating system's own signal (PR_SET_PDEATHSIG) comes once for each thread of the parent, and the second stop
    signal ends a process at once.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


def die_with_parent(parent: int) -> None:
    """Let the operating system kill this process as soon as `parent`, which started it, has ended.

    A suspended process is killed, too. Where the system has no such request, the process gets a SIGTERM.
    """
    if sys.platform != "linux":
        stop_with_parent()
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)


def run_guarded(start: Callable[[], int]) -> int:
    """Run the whole process under signal handlers; return its exit code."""
    own = os.getpid()

    def stop(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a fork of this process
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        elif SIGNAL_STATE.received is not None:  # the second signal does not wait
            os._exit(exit_code(signum))
        else:
            SIGNAL_STATE.received = signum
            raise Interrupted(signum)

    for signum in STOP_SIGNALS:
        signal.signal(signum, stop)
    try:
        code = start()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _drop_output():
            raise
        code = 128 + signal.SIGPIPE
    except (Interrupted, KeyboardInterrupt) as stopped:
        print(f"{stopped or 'stopped by SIGINT'}", file=sys.stderr)
        code = exit_code(stopped.signum if isinstance(stopped, Interrupted) else signal.SIGINT)
    for signum in STOP_SIGNALS:  # only the shutdown of the interpreter remains
        signal.signal(signum, lambda *_: os._exit(code))
    return code


def _drop_output() -> bool:
    """Return whether the reader of standard output has closed it, as `head` does; discard further output then."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    is_closed = any(event & select.POLLERR for _, event in output.poll(0))
    if is_closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_closed
