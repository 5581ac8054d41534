"""Jobs of Hydra: how `run.py` starts, runs the task of a job in its folder, and exits.

    run.py: enter(main)      arguments of stored runs and launchers, then Hydra composes the configuration
        main: run_job        one job of the invocation: its folder, its outcome
            run_task         lock the folder, open run.log, call `src.tasks.<task>.run(job)`, map errors to codes

Exit codes: 0 completed; 2 an error of the user, in one line; 3 diverged; 130 and 143 interrupted after a checkpoint,
by SIGINT and by SIGTERM, SIGUSR1, SIGUSR2 or `trainer.max_time`; 1 any other error, or a sweep in which a job failed.
"""

import logging
import math
import os
import re
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.errors import Interrupted, UserError, exit_code, one_line
from src.launch.arguments import STORED, use_stored_config
from src.launch.command_line import check_name, expand_home, tidy_arguments
from src.launch.compositions import GROUP, name_compositions, register_compositions
from src.launch.folder_lock import lock_folder
from src.launch.hydra_plugins import prepare_plugins
from src.launch.optuna_storage import KEY as STORAGE
from src.launch.optuna_storage import find_storage_error
from src.launch.outcomes import (
    COMPLETED,
    DIVERGED,
    FAILED,
    USER_ERROR,
    JobFailedError,
    Outcome,
    Outcomes,
    record_interruption,
)
from src.launch.run_log import open_log, remove_empty, remove_traces
from src.launch.signals import SIGNAL_STATE, stop_with_parent
from src.launch.suggestions import explain
from src.launch.world import read_world

__all__ = ["COMPLETED", "DIVERGED", "FAILED", "USER_ERROR", "Job", "TaskEnd", "enter", "run_job", "run_task"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One job of an invocation.

    Args:
        folder: run folder.
        config: composed configuration.
        resumes: continue from the checkpoint in the folder.
        overrides: overrides of the command line.
        rank: rank of this process; only rank 0 writes.
        checked: the process that launched this rank has checked the strategy.
        sweep: folder of the sweep that the job is part of.
    """

    folder: Path
    config: DictConfig
    resumes: bool
    overrides: tuple[str, ...] = ()
    rank: int = 0
    checked: bool = False
    sweep: Path | None = None


@dataclass(frozen=True)
class TaskEnd:
    """Return value of a task: exit code, one line for the user, and a value to minimize for sweepers."""

    code: int
    line: str
    value: float | None = None


def enter(main: Callable[[], Any], outcomes: Outcomes) -> int:
    """Run Hydra's `main`, print an error of the user as one line, and return the exit code of the process."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them and exiting with 1
    try:
        if read_world().launcher == "torchrun":
            stop_with_parent()  # an agent that is killed leaves its workers behind
        sys.argv[1:] = prepare_plugins(use_stored_config(name_compositions(tidy_arguments(sys.argv[1:]))))
        register_compositions()
        if read_world().rank and not any(a.lstrip("+").startswith("resume=") for a in sys.argv):
            # Hydra makes a folder in every process; only that of rank 0 is the run folder.
            with tempfile.TemporaryDirectory() as folder:
                sys.argv.append(f"hydra.run.dir={folder}")
                main()
        else:
            main()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error, sys.argv[1:])}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # the reader of the output has gone, see `signals.py`
        raise
    except ConnectionError as error:  # a launcher's, to its cluster
        print(f"error: {one_line(error)}; start the server or correct its address", file=sys.stderr)
        return USER_ERROR
    except OSError as error:  # Hydra makes the run folder before the job starts
        print(
            f"error: the run folder cannot be made ({one_line(error)}); choose another hydra.run.dir",
            file=sys.stderr,
        )
        return USER_ERROR
    except Exception as error:
        if not (isinstance(error, JobFailedError | ValueError) and outcomes.is_caused_by_jobs(error)):
            SIGNAL_STATE.raise_if_received()  # a launcher's library may have wrapped it
            cause = find_storage_error(error)
            if cause is None:
                raise
            kept = "the study keeps its finished trials, and runs their folders"
            print(f"error: {STORAGE} failed ({one_line(cause)}); {kept}", file=sys.stderr)
            outcomes.report()
            return FAILED
    except (Interrupted, KeyboardInterrupt) as stop:
        outcomes.report()
        return exit_code(stop.signum if isinstance(stop, Interrupted) else signal.SIGINT)
    outcomes.report()
    if all(job.code == USER_ERROR for job in outcomes.jobs):
        for sweep in {job.folder.parent for job in outcomes.jobs}:
            remove_empty(sweep, "multirun.yaml")
    return outcomes.exit_code()


def run_job(config: DictConfig, outcomes: Outcomes) -> float | None:
    """Run one job of Hydra, record its outcome, and return its value for sweepers (lower is better)."""
    hydra = HydraConfig.get()
    expand_home(config)
    is_sweep = hydra.mode == RunMode.MULTIRUN
    job = Job(
        Path(hydra.runtime.output_dir).resolve(),
        config,
        resumes=config.get("resume") is not None,
        overrides=tuple(hydra.overrides.task),
        rank=read_world().rank,
        sweep=Path(hydra.sweep.dir).resolve() if is_sweep else None,
    )
    start = time.monotonic()
    try:
        check_launch(job)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        remove_empty(job.folder)
        code, line, value = USER_ERROR, str(error), None
    else:
        code, line, value = run_task(job)
    is_of_study = is_sweep and config.get("study") is not None
    if code == DIVERGED and is_of_study:
        code, value = COMPLETED, math.inf  # a study counts it as a result
    number = int(hydra.job.num) if is_sweep else 0
    if code != COMPLETED or not is_of_study:  # a study reports its runs itself
        outcomes.jobs.append(Outcome(number, job.folder, job.overrides, code, line, time.monotonic() - start))
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM) and outcomes.is_owner():
        raise Interrupted(code - 128)
    if code != COMPLETED and is_sweep:
        raise JobFailedError(line, code)  # Hydra runs the other jobs, then raises it again
    return value


def run_task(job: Job) -> tuple[int, str, float | None]:
    """Run the task of a job inside its locked folder; return exit code, one line on the outcome, and its value."""
    if job.rank:
        return _run_logged(job)
    try:
        if not job.resumes and not job.sweep and (job.folder / "result.json").exists():
            raise UserError(f"{job.folder} holds a run already; continue with: {format_resume(job)}")
        with lock_folder(job.folder) as note:
            end = _run_logged(job, note)
            is_rejected = end[0] == USER_ERROR and not job.resumes
            is_unused = is_rejected and remove_traces(job.folder)
        if is_unused:  # the lock was its last file
            remove_empty(job.folder)
        return end
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR, str(error), None
    except OSError as error:
        line = f"{job.folder} cannot be written to ({one_line(error)}); choose another hydra.run.dir"
        print(f"error: {line}", file=sys.stderr)
        return USER_ERROR, line, None


def _run_logged(job: Job, note: str = "") -> tuple[int, str, float | None]:
    with open_log(job.folder, job.rank):
        if note:
            log.warning("%s", note)
        try:
            if not job.resumes and job.rank == 0:
                write_hydra_folder(job)
            end = load_task(job.config)(job)
        except (UserError, HydraException, OmegaConfBaseException) as error:
            log.debug("error of the user:\n%s", traceback.format_exc())
            log.error("error: %s", explain(error))
            return USER_ERROR, explain(error), None
        except (Interrupted, KeyboardInterrupt) as stop:
            signum = stop.signum if isinstance(stop, Interrupted) else signal.SIGINT
            reason = str(stop) or "stopped by SIGINT"
            has_begun = (job.folder / "metrics.jsonl").exists()
            log.warning("%s%s", reason, f"; continue with: {format_resume(job)}" if has_begun else "")
            if not job.rank:
                record_interruption(job.folder, job.config, reason)
            return exit_code(signum), reason, None
        except Exception as error:
            log.error("failed: %s\n%s", one_line(error), traceback.format_exc())
            return FAILED, f"failed: {one_line(error)}", None
        return end.code, end.line, end.value


def format_resume(job: Job) -> str:
    """Return the command that continues a run, quoted for a shell; a run folder cannot declare its targets trusted."""
    trusted = ",".join(map(str, job.config.get("trusted_targets") or ()))
    arguments = [f"resume={job.folder}", *([f"trusted_targets=[{trusted}]"] if trusted else [])]
    return shlex.join(["python", "run.py", *arguments])


def load_task(config: DictConfig) -> Callable[[Job], TaskEnd]:
    """Return the function of the configured task.

    Raises:
        UserError: `task._target_` is none of this project's.
    """
    target = OmegaConf.select(config, "task._target_")
    if not re.fullmatch(r"src\.tasks\.\w+\.run", str(target)):
        raise UserError(f"task._target_={target} is not a task of this project; see --help")
    return cast(Callable[[Job], TaskEnd], get_method(target))


def check_launch(job: Job) -> None:
    """Reject a configuration that no task may run.

    Raises:
        UserError: a file declares itself trusted, names a composition in another way, or names the run by a path.
    """
    config, hydra = job.config, HydraConfig.get()
    if not job.resumes:
        check_name(str(config.get("name")))
    if config.get("trusted_targets") and not any("trusted_targets=" in a for a in hydra.overrides.task):
        raise UserError("trusted_targets must be given on the command line; a file cannot declare itself trusted")
    if GROUP not in hydra.runtime.choices and not any(map(config.get, STORED)):
        raise UserError(
            f"{GROUP} must name one option or a composition such as {GROUP}=[lns,resformer], got an empty list or, in "
            f"a file, a list; a file names a composition {GROUP}: lns+resformer"
        )


def write_hydra_folder(job: Job) -> None:
    """Write `.hydra/` as Hydra does; Hydra itself would overwrite that of a run that is there."""
    folder = job.folder / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    hydra = HydraConfig.get()
    OmegaConf.save(job.config, folder / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": OmegaConf.to_container(hydra)}), folder / "hydra.yaml")
    OmegaConf.save(OmegaConf.create(list(job.overrides)), folder / "overrides.yaml")
