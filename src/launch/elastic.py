"""Launch of the ranks of a job on this machine by torchelastic, torchrun's library, and their restarts.

    run.py: a task           validates the configuration, then `launch_ranks`: this process, the agent, trains nothing
        worker.py: run_rank  one process for each rank, which runs the task of this job alone

The agent holds the lock of the run folder, and no rank outlives it. It passes a signal on to all ranks. When a rank fails
it stops the others by SIGTERM and, 30 seconds later, by SIGKILL. A rank that hangs or is suspended fails the collectives
of the others after `safety.rank_timeout_s`. torchelastic's own restarts do not tell a user's error from a machine's, so a
restart is a new launch, of ranks that resume from the last checkpoint.

Source: PyTorch, torch.distributed.launcher.api (elastic_launch).
"""

import dataclasses
import logging
import math
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.errors import Interrupted, UserError, exit_code, one_line
from src.files import ROOT, read_object, write_atomic, write_json
from src.launch.arguments import stored_yaml
from src.launch.job import COMPLETED, DIVERGED, FAILED, USER_ERROR, Job, TaskEnd, load_task
from src.launch.run_log import RunLogHandler, open_log
from src.launch.signals import STOP_SIGNALS
from src.launch.suggestions import explain
from src.launch.world import OWN_RUN_ID, read_world

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

log = logging.getLogger(__name__)

#: Files beside the error files: the job that ranks run, and how it ended on rank 0.
JOB, END = "job.yaml", "end.json"
#: Exit codes of a rank that a signal stopped.
INTERRUPTED = (exit_code(signal.SIGINT), exit_code(signal.SIGTERM))
#: Seconds that the agent waits for its ranks beyond the grace period in which they end by themselves.
SPARE_S = 10


class RankError(RuntimeError):
    """Error of the rank that failed first."""


def launches_ranks(devices: int, restarts: int) -> bool:
    """Return whether this process launches the ranks of its job instead of running it."""
    return not read_world().is_launched and (devices > 1 or restarts > 0)


def launch_ranks(job: Job, *, devices: int, restarts: int, grace_s: float) -> TaskEnd:
    """Run the task of a job on ranks of this machine and return how it ended on rank 0.

    Args:
        job: the job; its ranks get its composed configuration.
        devices: number of ranks.
        restarts: how often ranks of which one died or failed are launched again.
        grace_s: seconds from a signal to the end of a rank.

    Raises:
        UserError: an error of the user that a rank found.
        Interrupted: a signal to this process or to a rank.
        RankError: a rank died or failed, and no restart is left.
    """
    left = restarts
    while True:
        with tempfile.TemporaryDirectory(prefix="reslab-") as folder, _restore_process_state():
            try:
                return _launch(job, Path(folder), devices, grace_s)
            except RankError as error:
                if left == 0:
                    raise
                log.warning("%s; restarting from the last checkpoint (%d of %d)", error, restarts - left + 1, restarts)
        left -= 1
        job = dataclasses.replace(job, resumes=True)


def _launch(job: Job, folder: Path, devices: int, grace_s: float) -> TaskEnd:
    """Run the ranks once; `folder` holds what they read and write beside the run folder."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=OWN_RUN_ID,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        signals_to_handle=",".join(signum.name for signum in STOP_SIGNALS),
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),  # of the error files
        shutdown_timeout=math.ceil(grace_s) + SPARE_S,
    )
    _write_job(job, folder / JOB)
    command = ("-m", "src.launch.worker", str(job.folder), str(folder / JOB), str(os.getpid()))
    try:
        elastic_launch(config, sys.executable)(*command)
    except SignalException as stop:
        end = _read_end(folder)
        if end is not None and end.code in (COMPLETED, DIVERGED):  # the signal came too late to stop it
            return end
        raise Interrupted(stop.sigval, end.line if end else "") from None
    except ChildFailedError as error:
        raise find_cause(error.failures) from None
    end = _read_end(folder)
    if end is None:
        raise RankError("rank 0 ended without a result")
    if end.code not in (COMPLETED, DIVERGED):
        raise Interrupted(end.code - 128, end.line)
    return end


def run_rank(folder: Path, path: Path) -> int:
    """Run a job's task as the rank that the environment names; return the exit code.

    It is 0 where the task ended on all ranks together: completed, diverged, or stopped after the same step. The agent
    then waits for the other ranks. Any other code is the end of this rank alone and ends the others; the error file
    says why.

    Args:
        folder: run folder.
        path: file of the job; rank 0 writes the end of the task beside it.
    """
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    job = _read_job(folder, path)
    get_error_handler().initialize()  # print the stack of a crash in native code
    with open_log(folder, job.rank):
        try:
            end = load_task(job.config)(job)
        except Interrupted as stop:
            end = TaskEnd(exit_code(stop.signum), str(stop))
            if not stop.agreed:
                _record(stop)
                return end.code
        except (UserError, HydraException, OmegaConfBaseException) as error:
            log.debug("rank %d failed:\n%s", job.rank, traceback.format_exc())
            _record(UserError(explain(error)))
            return USER_ERROR
        except Exception as error:
            _record(error)
            return FAILED
    if job.rank == 0:
        write_json(path.with_name(END), dataclasses.asdict(end))
    return COMPLETED


def _record(error: BaseException) -> None:
    """Write the error file; the agent's SIGTERM, which may come now, would leave half of it."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    handlers = {signum: signal.signal(signum, signal.SIG_IGN) for signum in STOP_SIGNALS}
    try:
        get_error_handler().record_exception(error)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def _write_job(job: Job, path: Path) -> None:
    config = cast(dict[str, Any], OmegaConf.to_container(job.config, resolve=True))
    write_atomic(path, stored_yaml({"config": config, "resumes": job.resumes, "overrides": list(job.overrides)}))


def _read_job(folder: Path, path: Path) -> Job:
    stored = OmegaConf.load(path)
    assert isinstance(stored, DictConfig)  # `_write_job` wrote it
    rank = read_world().rank
    return Job(folder, stored.config, stored.resumes, tuple(stored.overrides), rank, checked=True)


def _read_end(folder: Path) -> TaskEnd | None:
    """Return how the task ended on rank 0; None where it failed or was killed."""
    path = folder / END
    return TaskEnd(**read_object(path)) if path.exists() else None


def find_cause(failures: "Mapping[int, ProcessFailure]") -> UserError | Interrupted | RankError:
    """Return the error of the rank that failed first, from the exit codes and error files of all that did."""
    rank, first = min(failures.items(), key=lambda item: _read_failure_time(item[1]))
    error: dict[str, Any] = first.error_file_data.get("message", {}) if Path(first.error_file).is_file() else {}
    kind, _, words = error.get("message", "").partition(": ")
    text = one_line(Exception(words or kind))
    if first.exitcode == USER_ERROR and error:
        return UserError(text)
    if first.exitcode in INTERRUPTED and kind in ("", "Interrupted"):
        return Interrupted(first.exitcode - 128, text if error else "")
    if first.exitcode < 0:
        return RankError(f"rank {rank} was killed by {first.signal_name()}")
    if not error:
        return RankError(f"rank {rank} ended with code {first.exitcode}")
    # The agent kills the ranks that do not end by themselves.
    silent = [str(other) for other, failure in failures.items() if failure.exitcode == -signal.SIGKILL]
    if silent and ("timed out" in text.lower() or "timeout" in text.lower()):
        return RankError(f"rank {', '.join(silent)} did not answer in time (safety.rank_timeout_s)")
    failed = RankError(f"rank {rank} failed: {kind}: {text}")
    failed.add_note(error["extraInfo"]["py_callstack"])
    return failed


def _read_failure_time(failure: "ProcessFailure") -> float:
    """Return the time of a failure; torchelastic's own, in whole seconds, where the rank left no error file.

    A rank that a signal ended before it wrote one comes last: the agent sends it after another has failed.
    """
    path = Path(failure.error_file)
    if path.is_file():
        return path.stat().st_mtime
    return math.inf if failure.exitcode in INTERRUPTED else float(failure.timestamp)


@contextmanager
def _restore_process_state() -> Iterator[None]:
    """Let ranks import this project and torchelastic log to run.log only; restore this process at the end."""
    names = ("PYTHONPATH", "TORCHELASTIC_SIGNALS_TO_HANDLE", "SUBMITIT_EXECUTOR")
    before = {name: os.environ.get(name) for name in names}
    handlers = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    logger = logging.getLogger("torch.distributed.elastic")
    logging_before = logger.handlers, logger.propagate
    logger.handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, RunLogHandler)]
    logger.propagate = False  # the console has one line for a rank that fails, by `find_cause`
    os.environ.pop("SUBMITIT_EXECUTOR", None)  # this process alone asks submitit to requeue the job
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), before["PYTHONPATH"])))
    try:
        yield
    finally:
        logger.handlers, logger.propagate = logging_before
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
