"""task=prepare: write a folder of token shards with its manifest from documents.

    python run.py task=prepare prepare.output=<folder> [prepare.source=<files or data set>]
    python run.py data=fineweb10b data.path=<folder>

On many machines that share the folder, N tasks tokenize, and one process writes the shards:

    python run.py task=prepare prepare.output=<folder> prepare.tasks=N prepare.executor=slurm   all of it
    python run.py task=prepare prepare.output=<folder> prepare.tasks=N prepare.task=0           one task, on each
    python run.py task=prepare prepare.output=<folder> prepare.tasks=N                          what is missing

An interrupted preparation continues when it is run again.
"""

import logging
import sys
from functools import partial
from pathlib import Path

from src.datamodules.prepare.parts import PARTS
from src.datamodules.prepare.prepare import PrepareKeys, prepare, prepare_task
from src.errors import UserError, one_line, raise_user_errors
from src.files import ROOT
from src.launch.job import COMPLETED, Job, TaskEnd
from src.launch.slurm_array import TASK, run_array
from src.launch.stop_request import StopRequest
from src.settings.sections import read_section

log = logging.getLogger(__name__)

#: Validation tokens of data=fineweb10b.
FINEWEB_VAL_TOKENS = 10_485_760


def run(job: Job) -> TaskEnd:
    """Run one task, or all of them and write the shards.

    Raises:
        UserError: a key, the source or the output is at fault; complete parts and shards stay valid.
        Interrupted: a signal arrived; running again continues.
    """
    with raise_user_errors():
        keys = read_section("prepare", job.config.prepare, PrepareKeys)
    with StopRequest(grace_s=60.0).installed():
        try:
            return _run_one(keys) if keys.task is not None else _run_all(job, keys)
        except OSError as error:
            raise UserError(f"prepare.source={keys.source}: {one_line(error)}; make it readable") from error


def _run_one(keys: PrepareKeys) -> TaskEnd:
    missing = prepare_task(keys)
    line = f"task {keys.task} of {keys.tasks} is complete"
    if missing:
        line += f"; {missing} parts of other tasks are missing"
    else:
        line += f" and so are the others; prepare.tasks={keys.tasks} without prepare.task writes the shards"
    log.info("%s", line)
    return TaskEnd(COMPLETED, line)


def _run_all(job: Job, keys: PrepareKeys) -> TaskEnd:
    manifest = prepare(keys, partial(_run_on_slurm, job, keys) if keys.executor == "slurm" else None)
    bad = ", ".join(f"{n:,} {reason}" for reason, n in manifest.bad_documents.items())
    line = (
        f"{manifest.documents:,} documents, {manifest.tokens:,} tokens in {len(manifest.shards)} shards in "
        f"{keys.output}; documents left out: {bad or 'none'}"
    )
    log.info("%s", line)
    # null: as many as there are, up to 2^20; data=fineweb10b asks for more than a small validation shard has.
    is_small = manifest.shards[0].tokens <= FINEWEB_VAL_TOKENS
    fits = " data.val_tokens=null" if is_small else ""
    log.info("train on it with data=fineweb10b data.path=%s%s", keys.output, fits)
    return TaskEnd(COMPLETED, line)


def _run_on_slurm(job: Job, keys: PrepareKeys) -> None:
    """Run the command line of this job once for each task, in a job array."""
    folder = (Path(keys.output) / PARTS).absolute()
    own = ["prepare.executor=local", f"hydra.run.dir='{folder}/run-{TASK}'", f"prepare.task={TASK}"]
    command = [sys.executable, str(ROOT / "run.py"), *job.overrides, *own]
    log.info("submitting %d tasks to SLURM; their output is in %s", keys.tasks, folder)
    run_array(command, keys.tasks, keys.sbatch, folder, "prepare.sbatch")
