"""Outcomes of the jobs of one invocation, and the exit code that follows from them."""

import json
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.errors import one_line
from src.files import read_object, write_atomic
from src.launch.arguments import stored_yaml
from src.launch.world import read_world

log = logging.getLogger(__name__)

COMPLETED, FAILED, USER_ERROR, DIVERGED = 0, 1, 2, 3


@dataclass(frozen=True)
class Outcome:
    """End of one job."""

    number: int
    folder: Path
    overrides: tuple[str, ...]
    code: int
    line: str
    seconds: float


class JobFailedError(Exception):
    """Error of a job that did not complete; its outcome has been recorded and printed."""

    def __init__(self, line: str, code: int = FAILED) -> None:
        super().__init__(line, code)  # both, so that a launcher can pickle it
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass
class Outcomes:
    """Outcomes of the jobs of one invocation of `run.py`.

    A launcher may run jobs in other processes: they get a copy, and what fails there comes back as an exception.
    """

    jobs: list[Outcome] = field(default_factory=list)
    remote_failures: list[str] = field(default_factory=list)
    pid: int = field(default_factory=os.getpid)

    def is_owner(self) -> bool:
        """Return whether this process exits with the code of the invocation."""
        return self.pid == os.getpid()

    def is_caused_by_jobs(self, error: Exception) -> bool:
        """Return whether failed jobs, which are reported, caused an exception of Hydra; record one of another process."""
        if isinstance(error, JobFailedError):
            if not self.jobs:
                self.remote_failures.append(str(error))
            return True
        # With no completed job a sweeper has no best value, and raises an error of its own.
        return bool(self.jobs) and all(job.code != COMPLETED for job in self.jobs)

    def report(self) -> None:
        """Print one line for each job of a sweep."""
        for line in self.remote_failures:
            print(f"error: a job did not complete: {line}", file=sys.stderr)
        if len(self.jobs) < 2 and not any(job.number for job in self.jobs):
            return
        for job in self.jobs:
            overrides = " ".join(job.overrides) or "(no overrides)"
            is_rejected = job.code == USER_ERROR and not job.folder.exists()
            place = "" if is_rejected else f", {job.folder}"
            print(f"#{job.number} {overrides}: {job.line} ({job.seconds:.0f} s{place})")

    def exit_code(self) -> int:
        """Return the code of the only job, or 1 if a job of a sweep did not complete."""
        if len(self.jobs) == 1:
            return self.jobs[0].code
        failed = any(job.code != COMPLETED for job in self.jobs)
        return FAILED if failed or self.remote_failures else COMPLETED


def record_interruption(folder: Path, config: DictConfig, reason: str) -> None:
    """Write status `interrupted` for a training that was stopped before it could do so: while it imported or built.

    Does nothing for other tasks, or where result.json states another end. Writes config.yaml if it is missing, so
    that the run can resume.

    Args:
        folder: run folder, locked by this process.
        config: composed configuration of the job.
        reason: what stopped it, one line.
    """
    path = folder / "result.json"
    if OmegaConf.select(config, "task._target_") != "src.tasks.train.run":
        return
    try:
        result = read_object(path) if path.exists() else {"steps": 0}
        if result.get("status", "running") != "running":
            return
        if not (folder / "config.yaml").exists():
            plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
            own = {"name": plain["name"], "seed": plain["seed"], "max_steps": plain["trainer"]["max_steps"]}
            result = {**own, "launched_by": read_world().job, **result}
            write_atomic(folder / "config.yaml", stored_yaml({**plain, "resume": None, "from_run": None}))
        write_atomic(path, json.dumps({**result, "status": "interrupted", "reason": reason}, indent=2) + "\n")
    except (OSError, ValueError, KeyError, TypeError, OmegaConfBaseException) as error:
        # The process must exit in time, with or without this record.
        log.warning("result.json could not be marked interrupted: %s", one_line(error))
