"""What is left to do of a job whose sweep has been here before.

A job is known by the hash of its configuration. Below the sweep's folder, a completed record with the hash
stands for the job; a stopped run of that hash in the job's own folder goes on; a diverged one would diverge again.
"""

import dataclasses
import logging

from src.callbacks.run_record import read_result
from src.errors import UserError
from src.launch.job import COMPLETED, DIVERGED, Job, TaskEnd
from src.settings.read import Settings
from src.training.run_folder import config_hash

log = logging.getLogger(__name__)


def left_to_do(job: Job, settings: Settings) -> Job | TaskEnd:
    """The job as it is to be run, or how it ended when it ran.

    Raises:
        UserError: the job's folder holds another run.
    """
    if job.sweep is None or job.rank or job.resumes:
        return job
    wanted = config_hash({**settings.config, "resume": None})
    for path in sorted(job.sweep.rglob("result.json")):
        try:
            result = read_result(path.parent) or {}
        except ValueError as error:  # of another job, mostly; this job's own is read below
            log.warning("%s", error)
            continue
        if result.get("config_hash") == wanted and result.get("status") == "completed":
            log.info("%s is completed with this configuration; the job is skipped", path.parent)
            line = f"completed earlier in {path.parent}, val_loss {result['val_loss']:.4f}"
            return TaskEnd(COMPLETED, line, result["val_loss"])
    here = read_result(job.folder)
    if here is None or (here.get("status") == "interrupted" and "config_hash" not in here):  # before it began
        return job
    if here.get("config_hash") != wanted:
        raise UserError(
            f"{job.folder} holds another run; give a new hydra.sweep.dir, or move that folder out of the sweep's"
        )
    if here["status"] == "diverged":
        return TaskEnd(DIVERGED, f"diverged earlier: {here['reason']}")
    log.info("%s was %s at step %s; going on", job.folder, here["status"], here["steps"])
    return dataclasses.replace(job, resumes=True)
