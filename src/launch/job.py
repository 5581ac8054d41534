"""Process plumbing of Hydra jobs: errors and exit codes, the run folder and its log, resume.

Exit codes: 0 completed; 2 the user's mistake, in one line; 3 diverged; 130 and 143 interrupted, after a
checkpoint, by SIGINT and by SIGTERM, SIGUSR1 or `trainer.max_time`; 1 anything else, or a sweep in which a job failed.
"""

import logging
import os
import re
import sys
import tempfile
import threading
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
from src.kernels.compile_cache import keep_compiled
from src.launch import outcomes
from src.launch.arguments import arguments_of_a_stored_run, explain
from src.launch.early_end import state_interrupted
from src.launch.folder_lock import FolderInUseError, folder_lock
from src.launch.hydra_plugins import with_launcher
from src.launch.outcomes import COMPLETED, DIVERGED, FAILED, MISTAKE, JobFailedError, Outcome

__all__ = ["COMPLETED", "DIVERGED", "FAILED", "MISTAKE", "Job", "TaskEnd", "enter", "run_job", "run_task"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One job of this invocation: its folder, its configuration, and whether it goes on from a checkpoint.

    `sweep` is the folder of the sweep that the job is part of.
    """

    folder: Path
    config: DictConfig
    resumes: bool
    overrides: tuple[str, ...] = ()
    rank: int = 0
    sweep: Path | None = None


def enter(main: Callable[[], Any]) -> int:
    """Run Hydra's `main` and turn whatever happens into an exit code and, for a mistake, one line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and leaving with 1
    outcomes.begin()
    try:
        sys.argv[1:] = with_launcher(arguments_of_a_stored_run(sys.argv[1:]))
        if outer_rank() and not any(a.startswith("resume=") for a in sys.argv):
            # Rank 0 has the run folder; Hydra makes one for each process all the same.
            with tempfile.TemporaryDirectory() as folder:
                sys.argv.append(f"hydra.run.dir={folder}")
                main()
        else:
            main()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return MISTAKE
    except (JobFailedError, ValueError) as error:
        if not outcomes.explains(error):
            raise
    except (Interrupted, KeyboardInterrupt) as stop:
        outcomes.tell()
        return exit_code(stop.signum if isinstance(stop, Interrupted) else 2)
    outcomes.tell()
    return outcomes.code()


def run_job(config: DictConfig) -> float | None:
    """Run one Hydra job: open its folder, run its task, note how it ended."""
    hydra = HydraConfig.get()
    if config.get("trusted_targets") and not any("trusted_targets=" in a for a in hydra.overrides.task):
        raise UserError("trusted_targets counts on the command line only: a file cannot say that it is trusted")
    keep_compiled()
    sweep = hydra.mode == RunMode.MULTIRUN
    folder = Path(hydra.runtime.output_dir).resolve()
    resumes = config.get("resume") is not None
    root = Path(hydra.sweep.dir).resolve() if sweep else None
    job = Job(folder, config, resumes, tuple(hydra.overrides.task), rank=outer_rank(), sweep=root)
    number = int(hydra.job.num) if sweep else 0
    began = time.monotonic()
    code, line, value = run_task(job)
    outcomes.note(Outcome(number, folder, job.overrides, code, line, time.monotonic() - began))
    if code in (128 + 2, 128 + 15) and outcomes.here():
        raise Interrupted(code - 128)
    if code != COMPLETED and sweep:
        raise JobFailedError(line)  # Hydra runs the other jobs, then raises it again
    return value


def run_task(job: Job) -> tuple[int, str, float | None]:
    """Run the job's task inside its folder; returns exit code, one line on how it went, and its value."""
    if job.rank == 0 and not job.resumes and not job.sweep and (job.folder / "result.json").exists():
        line = f"{job.folder} holds a run already; resume={job.folder} goes on with it"
        print(f"error: {line}", file=sys.stderr)
        return MISTAKE, line, None
    if job.rank:
        return _run_logged(job)
    try:
        with folder_lock(job.folder) as said:
            return _run_logged(job, said)
    except FolderInUseError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE, str(error), None
    except OSError as error:
        line = f"{job.folder} cannot be written to ({one_line(error)}); choose another hydra.run.dir"
        print(f"error: {line}", file=sys.stderr)
        return MISTAKE, line, None


def _run_logged(job: Job, said: str = "") -> tuple[int, str, float | None]:
    close_log = open_log(job)
    if said:
        log.warning("%s", said)
    try:
        if not job.resumes and job.rank == 0:
            write_hydra_folder(job)
        target = OmegaConf.select(job.config, "task._target_")
        if not re.fullmatch(r"src\.tasks\.\w+\.run", str(target)):
            raise UserError(f"task._target_={target} is no task of this project; see --help")
        task = cast(Callable[[Job], "TaskEnd"], get_method(target))
        end = task(job)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        log.debug("the user's mistake:\n%s", traceback.format_exc())
        log.error("error: %s", explain(error))
        return MISTAKE, explain(error), None
    except (Interrupted, KeyboardInterrupt) as stop:
        signum = stop.signum if isinstance(stop, Interrupted) else 2
        reason = str(stop) or "stopped by SIGINT"
        goes_on = (job.folder / "metrics.jsonl").exists()  # a training that has begun
        log.warning("%s%s", reason, f"; python run.py resume={job.folder} goes on" if goes_on else "")
        if not job.rank:
            state_interrupted(job.folder, job.config, reason)
        return exit_code(signum), reason, None
    except Exception as error:
        log.error("failed: %s\n%s", one_line(error), traceback.format_exc())
        return FAILED, f"failed: {one_line(error)}", None
    else:
        return end.code, end.line, end.value
    finally:
        close_log()


@dataclass(frozen=True)
class TaskEnd:
    """What a task hands back: exit code, one line, and its figure of merit."""

    code: int
    line: str
    value: float | None = None


def write_hydra_folder(job: Job) -> None:
    """`.hydra/` as Hydra would write it; done here, so that a refused launch writes nothing."""
    folder = job.folder / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    hydra = HydraConfig.get()
    OmegaConf.save(job.config, folder / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": OmegaConf.to_container(hydra)}), folder / "hydra.yaml")
    OmegaConf.save(OmegaConf.create(list(job.overrides)), folder / "overrides.yaml")


def open_log(job: Job) -> Callable[[], None]:
    """Log to the console (this project's words, others' warnings) and to run.log; returns the undoing."""
    root = logging.getLogger()
    before, before_hook = (root.handlers[:], root.level), threading.excepthook
    threading.excepthook = _note_thread  # a dashboard's thread, mostly: who waits for it says so
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.INFO if job.rank == 0 else logging.CRITICAL)
    console.setFormatter(logging.Formatter("%(message)s"))
    console.addFilter(lambda r: r.name.startswith("src") or r.levelno >= logging.ERROR)
    handlers: list[logging.Handler] = [console]
    if job.rank == 0:
        job.folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(job.folder / "run.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        file.handleError = _tell_once(console)  # type: ignore[method-assign, assignment]  # a full disk must not end a run here
        handlers.append(file)
    root.handlers = handlers
    root.setLevel(logging.INFO)
    logging.getLogger("src").setLevel(logging.DEBUG)
    logging.captureWarnings(True)

    def close() -> None:
        logging.captureWarnings(False)
        for handler in handlers:
            handler.close()
        root.handlers, root.level = before
        threading.excepthook = before_hook

    return close


def _note_thread(args: threading.ExceptHookArgs) -> None:
    log.debug("a thread failed: %s", args.exc_value)


def _tell_once(console: logging.Handler) -> Callable[[logging.LogRecord], None]:
    told: list[bool] = []

    def handle(record: logging.LogRecord) -> None:
        if not told:
            told.append(True)
            text = f"run.log cannot be written and is incomplete: {sys.exc_info()[1]}"
            console.handle(logging.makeLogRecord({**record.__dict__, "msg": text, "args": ()}))

    return handle


def outer_rank() -> int:
    """This process's rank where torchrun or a cluster started it; 0 otherwise."""
    return int(os.environ.get("RANK", "0"))
