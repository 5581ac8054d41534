"""Job array of SLURM: one command for each task, submitted and waited for by `sbatch --wait`."""

import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from src.errors import UserError

#: Replaced by the number of the task when the command runs.
TASK = "$SLURM_ARRAY_TASK_ID"


def run_array(command: Sequence[str], tasks: int, options: Sequence[str], logs: Path, key: str) -> None:
    """Run `command` once for each task in a job array and wait for the end of all; a signal cancels them.

    Args:
        command: program and arguments, in which `TASK` becomes the number of the task, from 0 on.
        tasks: number of tasks.
        options: further options of sbatch, such as `--partition=cpu`.
        logs: folder for the tasks' output.
        key: key of `options`, for messages.

    Raises:
        UserError: there is no sbatch, it rejects the job, or a task ends with another code than 0.
    """
    logs.mkdir(parents=True, exist_ok=True)
    # shlex.quote writes a word with a $ between single quotes, which end for the number.
    words = [shlex.quote(word).replace(TASK, f"'\"{TASK}\"'") for word in command]
    output = [f"--output={logs / 'task-%a.log'}", f"--array=0-{tasks - 1}"]
    submit = ["sbatch", "--wait", "--parsable", *output, *options, f"--wrap=exec {' '.join(words)}"]
    try:
        process = subprocess.Popen(submit, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError as error:
        raise UserError("this machine has no sbatch; start it on a login node of the SLURM cluster") from error
    job = errors = ""
    with process:
        assert process.stdout is not None  # both are pipes
        assert process.stderr is not None
        try:
            job = process.stdout.readline().strip().partition(";")[0]
            errors = process.stderr.read()
        except BaseException:
            if job:
                with suppress(OSError):
                    subprocess.run(["scancel", job], check=False)
            process.kill()
            raise
    code = process.returncode
    if not job:
        raise UserError(f"sbatch rejected the job ({' '.join(errors.split())}); correct {key}={list(options)}")
    if code:
        raise UserError(f"a task of SLURM job {job} ended with code {code}; see {logs}, then run again to continue")
