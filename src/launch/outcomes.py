"""How the jobs of one invocation ended, and the exit code that follows."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

COMPLETED, FAILED, MISTAKE, DIVERGED = 0, 1, 2, 3


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    number: int
    folder: Path
    overrides: tuple[str, ...]
    code: int
    line: str
    seconds: float


class JobFailedError(Exception):
    """A job that did not complete; its outcome has been recorded and told."""


_noted: list[Outcome] = []
#: The process whose exit code it is; a launcher may run jobs in others, whose outcomes come back as exceptions.
_owner: list[int] = []
_elsewhere: list[str] = []


def begin() -> None:
    """An invocation of this process begins."""
    _noted.clear()
    _elsewhere.clear()
    _owner[:] = [os.getpid()]


def here() -> bool:
    """Whether this process is the one whose exit code it is."""
    return _owner == [os.getpid()]


def note(outcome: Outcome) -> None:
    """A job of this process has ended."""
    _noted.append(outcome)


def explains(error: Exception) -> bool:
    """Whether an error out of Hydra only says again what became of the jobs."""
    if isinstance(error, JobFailedError):
        if not _noted:
            _elsewhere.append(str(error))
        return True
    return bool(_noted) and all(
        outcome.code != COMPLETED for outcome in _noted
    )  # nothing for a sweeper to choose


def tell() -> None:
    """A line for each job of a sweep."""
    for line in _elsewhere:
        print(f"error: a job did not complete: {line}", file=sys.stderr)
    if len(_noted) < 2 and not any(outcome.number for outcome in _noted):
        return
    for outcome in _noted:
        what = " ".join(outcome.overrides) or "(no overrides)"
        print(f"#{outcome.number} {what}: {outcome.line} ({outcome.seconds:.0f} s, {outcome.folder})")


def code() -> int:
    """The invocation's exit code: that of its one job, or whether all of a sweep's completed."""
    codes = {outcome.code for outcome in _noted}
    if len(_noted) == 1:
        return codes.pop()
    return FAILED if codes - {COMPLETED} or _elsewhere else COMPLETED
