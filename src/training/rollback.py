"""guard=rollback: return to the last checkpoint before a divergence and skip the data that led to it.

The rollbacks are stated in result.json; the batch of a step follows from them and the step alone, so a run that is
killed after a rollback continues as if it had not been.
"""

import logging

from torch import distributed

from src.callbacks.checkpoints import list_steps, step_of
from src.callbacks.guard import DivergedError
from src.errors import one_line
from src.training.resume import set_aside_after
from src.training.run import Resume, Rollback, Run, skipped_batches

log = logging.getLogger(__name__)


def roll_back(run: Run, error: DivergedError) -> None:
    """Return to the newest checkpoint before `error.began`; drop what came after it; then state the rollback.

    A process that is killed in between meets the same divergence again and rolls back to the same step.

    Raises:
        DivergedError: every checkpoint is from after the divergence began.
    """
    _wait_for_all_ranks()  # rank 0 has finished the save in flight, so that all see the same files
    resume, has_any = agree_on_checkpoint(run, error.began)
    if resume is None and has_any:
        raise error
    step = resume.step if resume else 0
    _wait_for_all_ranks()  # every rank has chosen its checkpoint
    event = Rollback(at=error.step, to=step, reason=one_line(error))
    log.warning("ROLLBACK to step %d, skipping the data up to step %d: %s", step, error.step, event["reason"])
    if run.record.writes and resume:
        set_aside_after(run.checkpoints, step, resume.path)
    run.record.keep_until(step)
    run.rollbacks = [*run.rollbacks, event]
    run.record.update(rollbacks=run.rollbacks, steps=step)
    _wait_for_all_ranks()  # rank 0 has set the later checkpoints aside
    run.resume = resume
    run.data.skipped = skipped_batches(run.rollbacks)


def agree_on_checkpoint(run: Run, began: int) -> tuple[Resume | None, bool]:
    """Return rank 0's newest checkpoint before step `began`, and whether there are any.

    Under a launcher the folder that Hydra gives to another rank is empty.
    """
    found = [(find_before(run, began), any(run.checkpoints.glob("*.ckpt")))]
    if distributed.is_initialized():
        distributed.broadcast_object_list(found)
    return found[0]


def find_before(run: Run, began: int) -> Resume | None:
    """Return the newest checkpoint before step `began` by its name; the trainer verifies it when it loads it."""
    found = [Resume(path, step_of(path)) for path in list_steps(run.checkpoints)]
    if not found and run.resume is not None and run.resume.path.exists():
        found = [run.resume]  # the folder had nothing but last.ckpt, and nothing was saved since
    return max((r for r in found if r.step < began), key=lambda r: r.step, default=None)


def _wait_for_all_ranks() -> None:
    if distributed.is_initialized():
        distributed.barrier()
