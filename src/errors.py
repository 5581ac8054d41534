"""Errors and exit codes: errors of the user, failed saves, interruptions, and their form in one line."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Error of the user, in one sentence: key, value, bound, way out."""


class CheckpointError(RuntimeError):
    """Failure to write a checkpoint; the earlier ones are intact."""


class Interrupted(BaseException):  # like KeyboardInterrupt, which `except Exception` does not catch
    """Request to stop the run, with the number of its signal.

    Args:
        signum: number of the signal.
        reason: what stopped the run, one line.
        agreed: all ranks stop after the same step.
    """

    def __init__(self, signum: int, reason: str = "", *, agreed: bool = False) -> None:
        super().__init__(reason or f"stopped by {signal.Signals(signum).name}")
        self.signum, self.agreed = signum, agreed


def exit_code(signum: int) -> int:
    """Return the exit code of an interrupted run: 130 after SIGINT, 143 after any other signal."""
    return 128 + (signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


@contextmanager
def raise_user_errors() -> Iterator[None]:
    """Turn `ValueError` and `OSError` into `UserError`: what the user asked for is at fault, not the code."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(one_line(error)) from error
