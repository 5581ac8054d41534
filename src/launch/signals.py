"""Signals from the first moment on: a process that is still importing or composing leaves with its exit code, too.

A leaf, and light: it is imported before everything that takes seconds. What trains puts handlers of its own in
front (`src/callbacks/stop.py`), which finish the step; between jobs and after them these here stand again.
"""

import os
import select
import signal
import sys
from collections.abc import Callable
from types import FrameType

from src.errors import Interrupted, exit_code

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
#: Signals noted: one that was raised and went unheard (an import may catch everything) still counts.
NOTED: list[int] = []


def guarded(start: Callable[[], int]) -> int:
    """Run the whole process under handlers; returns its exit code."""
    own = os.getpid()

    def leave(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a fork of this process
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        elif NOTED:
            os._exit(exit_code(signum))
        else:
            NOTED.append(signum)
            raise Interrupted(signum)

    for signum in STOP_SIGNALS:
        signal.signal(signum, leave)
    try:
        code = start()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():
            raise
        code = 128 + signal.SIGPIPE
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"{stop or 'stopped by SIGINT'}", file=sys.stderr)
        code = exit_code(stop.signum if isinstance(stop, Interrupted) else signal.SIGINT)
    for signum in STOP_SIGNALS:  # all is done: what is left is the interpreter's own end
        signal.signal(signum, lambda *_: os._exit(code))
    return code


def _unread() -> bool:
    """Whether who read the output has left, as `head` does; what is still to be written goes nowhere then."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def refuse_to_go_on() -> None:
    """Raise again what was raised and went unheard."""
    if NOTED:
        raise Interrupted(NOTED[0])
