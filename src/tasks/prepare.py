"""task=prepare: write a folder of token shards with its manifest from documents.

    python run.py task=prepare prepare.output=<folder> [prepare.source=<files or data set>]
    python run.py data.path=<folder>

On many machines that share the folder, N tasks tokenize, and one process writes the shards:

    python run.py task=prepare prepare.output=<folder> prepare.tasks=N prepare.executor=slurm   all of it
    python run.py task=prepare prepare.output=<folder> prepare.tasks=N prepare.task=0           one task, on each
    python run.py task=prepare prepare.output=<folder> prepare.tasks=N                          what is missing

An interrupted preparation continues when it is run again.
"""

import logging
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from src.datamodules.prepare.parts import PARTS
from src.datamodules.prepare.prepare import PrepareKeys, prepare, prepare_task
from src.datamodules.tokenization.open import GPT2
from src.errors import UserError, one_line, raise_user_errors
from src.files import ROOT
from src.launch.job import COMPLETED, Job, TaskEnd
from src.launch.slurm_array import TASK, run_array
from src.launch.stop_request import StopRequest
from src.settings.sections import read_section

log = logging.getLogger(__name__)

#: Context length of many models; a validation shard must hold one window at least.
USUAL_BLOCK = 1024


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
    if manifest.shards[0].tokens <= USUAL_BLOCK:
        log.warning(
            "the validation shard has %d tokens; model.block_size must be smaller: give a larger prepare.val_tokens or "
            "more text for a longer context",
            manifest.shards[0].tokens,
        )
    log.info("train on it with: %s", format_training(keys.output, manifest.tokenizer))
    return TaskEnd(COMPLETED, line)


def format_training(output: str, tokenizer: Mapping[str, Any]) -> str:
    """Return the command that trains on prepared shards, quoted for a shell; other ids than GPT-2's state their number.

    Args:
        output: folder of the shards.
        tokenizer: statement of their tokenizer.
    """
    vocabulary = [] if tokenizer["name"] == GPT2 else [f"model.vocab_size={tokenizer['n_vocab']}"]
    return shlex.join(["python", "run.py", f"data.path={output}", *vocabulary])


def _run_on_slurm(job: Job, keys: PrepareKeys) -> None:
    """Run the command line of this job once for each task, in a job array."""
    folder = (Path(keys.output) / PARTS).absolute()
    own = ["prepare.executor=local", f"hydra.run.dir='{folder}/run-{TASK}'", f"prepare.task={TASK}"]
    command = [sys.executable, str(ROOT / "run.py"), *job.overrides, *own]
    log.info("submitting %d tasks to SLURM; their output is in %s", keys.tasks, folder)
    run_array(command, keys.tasks, keys.sbatch, folder, "prepare.sbatch")
