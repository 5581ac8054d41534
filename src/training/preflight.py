"""Checks before a training starts: its evaluation data, its strategy, its disk space.

A run that cannot work here is rejected before its model is built and before anything is overwritten. Whether it fits
the memory is checked even before its data is opened (`memory.py`).
"""

import functools
import logging
import shutil
from pathlib import Path

from torch._subclasses.fake_tensor import FakeTensorMode

from src.checks.quick import run_quick_checks
from src.errors import UserError, one_line
from src.files import format_bytes, write_atomic
from src.launch.job import Job
from src.models.optim.base import count_state
from src.settings.read import Settings
from src.training.fsdp import require_shardable
from src.training.run import Run, build_gpt

log = logging.getLogger(__name__)

#: Metrics that the LightningModule logs.
LOGGED = ("val/loss", "train/loss")
#: Rows, pictures and logs of a run, generously.
REST_BYTES = 16 * 2**20


def preflight(run: Run) -> None:
    """Reject a run that cannot be evaluated or saved here, or whose strategy breaks the contract.

    Raises:
        UserError: the first check that failed, and what to change.
    """
    settings = run.settings
    require_shardable(settings)
    settings.evaluation.check(run.tokenizer, settings.model.vocab_size, settings.model.block_size)
    check_library_parts(settings, run.job.folder)
    if run.job.rank:
        return
    check_quickly(settings, run.job)
    keep = settings.safety.keep_checkpoints + len(settings.trainer.kept_steps)
    check_disk(run.job.folder, n_numbers=count_numbers(settings), keep=keep)


def check_quickly(settings: Settings, job: Job) -> None:
    """Run the quick checks where they are configured, unless the run resumes or has been checked.

    Raises:
        UserError: the first fault.
    """
    if settings.config["check"] == "quick" and not job.resumes and not job.checked:
        run_quick_checks(settings)


def check_library_parts(settings: Settings, folder: Path) -> None:
    """Build the configured callbacks and profiler once, so that a wrong argument is found before training.

    Raises:
        UserError: one cannot be built, or monitors a metric that no run logs.
    """
    makers = [("callbacks", make) for make in settings.callbacks]
    if settings.profiler is not None:
        makers.append(("profiler", functools.partial(settings.profiler, folder / "profiler")))
    for section, make in makers:
        try:
            part = make()
        except Exception as error:  # of a library, or of the user
            raise UserError(f"{section} cannot be built: {one_line(error)}") from error
        monitor = getattr(part, "monitor", None)
        if isinstance(monitor, str) and monitor not in LOGGED:
            raise UserError(
                f"callbacks: {type(part).__name__} monitors {monitor}, which is not logged; use {' or '.join(LOGGED)}"
            )


def count_numbers(settings: Settings) -> int:
    """Count the float32 numbers of a checkpoint, parameters and optimizer state, on tensors without memory.

    A model that reads values, which such tensors lack, is built for real.
    """

    def count() -> int:
        gpt = build_gpt(settings)
        return sum(p.numel() for p in gpt.parameters()) + count_state(gpt, settings.optimizer)

    try:
        with FakeTensorMode():
            return count()
    except ValueError:
        raise
    except Exception as error:
        log.debug("the model cannot be built on fake tensors: %s", one_line(error))
        return count()


def check_disk(folder: Path, *, n_numbers: int, keep: int) -> None:
    """Write a probe file where checkpoints go, and compare the free space with what the run will write.

    Args:
        folder: the run folder.
        n_numbers: float32 numbers of one checkpoint.
        keep: number of checkpoints that stay (`safety.keep_checkpoints` and `trainer.keep_steps`).

    Raises:
        UserError: the folder cannot be written to, or has too little space.
    """
    checkpoints = folder / "checkpoints"
    probe = checkpoints / ".probe"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_atomic(probe, b"probe")
        probe.unlink()
        free = shutil.disk_usage(checkpoints).free
        found = (file for path in checkpoints.glob("*.ckpt") for file in (path.iterdir() if path.is_dir() else [path]))
        stats = map(Path.stat, found)
        present = sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values())  # a file has several names
    except OSError as error:
        raise UserError(
            f"{checkpoints} cannot be written to ({one_line(error)}); choose another hydra.run.dir"
        ) from error
    one = 4 * n_numbers + 2**20
    needed = (keep + 2) * one + REST_BYTES  # one more while it is written, and the best
    if free + present < needed:
        raise UserError(
            f"{folder} has {format_bytes(free)} of free space, and the run writes up to {format_bytes(needed)} "
            f"({keep} + 2 checkpoints of {format_bytes(one)}); make room, choose another hydra.run.dir "
            "or lower safety.keep_checkpoints or trainer.keep_steps"
        )
