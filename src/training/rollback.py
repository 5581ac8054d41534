"""guard=rollback: back to the last checkpoint from before the trouble, past the data that led there.

The events stand in result.json, and what a step trains on follows from them and its number alone: a run that is
killed afterwards goes on as if it had not been.
"""

import logging
from typing import NamedTuple, TypedDict

from torch import distributed

from src.callbacks.checkpoints import read_checkpoint
from src.callbacks.guard import DivergedError
from src.callbacks.run_record import RunRecord
from src.errors import one_line
from src.launch.job import Job
from src.training.fallback import forget_after, newest_first
from src.training.run_folder import Resume

log = logging.getLogger(__name__)


class Event(TypedDict):
    """One rollback: noticed after step `at`, it went back to step `to` and passed over `at - to` batches."""

    at: int
    to: int
    reason: str


class Back(NamedTuple):
    """Where the run goes on (None: at step 0), and all events so far."""

    resume: Resume | None
    events: list[Event]


def skips(events: list[Event]) -> tuple[tuple[int, int], ...]:
    """For `TokenDataModule.skipped`."""
    return tuple((event["to"], event["at"] - event["to"]) for event in events)


def go_back(job: Job, record: RunRecord, events: list[Event], error: DivergedError) -> Back:
    """Choose the checkpoint; drop all that came after it; then state the event.

    A process killed in between meets the same trouble again, and comes to the same end.

    Raises:
        DivergedError: all checkpoints are from after the trouble began.
    """
    folder = job.folder / "checkpoints"
    found: Resume | None = None
    candidates = newest_first(folder)
    for path in candidates:
        step = int(read_checkpoint(path)["reslab"]["step"])
        if step < error.began and (found is None or step > found.step):
            found = Resume(path, step)
    if candidates and found is None:
        raise error
    step = found.step if found else 0
    _all_ranks()  # all have chosen
    event = Event(at=error.step, to=step, reason=one_line(error))
    log.warning("ROLLBACK to step %d, past the data up to step %d: %s", step, error.step, event["reason"])
    if record.writes:
        if found:
            forget_after(folder, step, found.path)
        record.keep_until(step)
    record.update(rollbacks=[*events, event], steps=step)
    _all_ranks()  # rank 0 has tidied up
    return Back(found, [*events, event])


def _all_ranks() -> None:
    if distributed.is_initialized():
        distributed.barrier()
