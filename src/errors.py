"""How things end badly: the user's mistakes, interruptions, and how they read in one line."""

import signal


class UserError(ValueError):
    """The user's mistake, in one clear sentence: the key, the value, the bound, the way out."""


class Interrupted(BaseException):  # like KeyboardInterrupt, not an error
    """The run was asked to stop; carries the signal's number."""

    def __init__(self, signum: int, reason: str = "") -> None:
        super().__init__(reason or f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def exit_code(signum: int) -> int:
    """What an interrupted run leaves with: 130 after SIGINT, 143 after any other signal."""
    return 128 + (signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)


def one_line(error: BaseException) -> str:
    """An exception's message in one line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
