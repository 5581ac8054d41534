"""How things end badly: the user's mistakes, interruptions, and how they read in one line."""

import signal


class UserError(ValueError):
    """The user's mistake, in one clear sentence: the key, the value, the bound, the way out."""


class Interrupted(BaseException):  # like KeyboardInterrupt, not an error
    """The run was asked to stop; carries the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def one_line(error: BaseException) -> str:
    """An exception's message in one line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
