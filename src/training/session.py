"""Phases of a training run, in their order.

    read        validate the configuration
    launch      instead of the rest, where this process launches ranks: check the strategy, run the rest on each rank
    open_run    open data, record and the checkpoint to resume from
    preflight   reject what cannot work on this machine (`preflight.py`)
    fit         build the model, open the loggers, train; roll back where the guard says so
    close       state the result, draw the curve, print the table

All but the first two take the `Run` of this process; nothing else is shared between them.
"""

import contextlib
import logging
from collections.abc import Iterator

from src.callbacks.best_effort import BestEffort
from src.callbacks.guard import DivergedError
from src.callbacks.run_record import RunRecord, Status, read_result
from src.datamodules.base import BatchSpec, TokenDataModule, build_data, count_micro_steps
from src.datamodules.shards.format import ShardError
from src.errors import CheckpointError, Interrupted, UserError, one_line, raise_user_errors
from src.launch.elastic import launch_ranks
from src.launch.job import COMPLETED, DIVERGED, Job, TaskEnd
from src.launch.stop_request import StopRequest
from src.models.gpt import GPT
from src.models.lightning_module import LanguageModel
from src.settings.read import Settings, read_settings
from src.training.branch import check_strategy, earlier_rollbacks, find_branch
from src.training.cluster import explain_rendezvous
from src.training.memory import check_memory
from src.training.preflight import check_quickly
from src.training.process import adapt_to_processor, prepare_process
from src.training.resume import find_resume
from src.training.rollback import find_before, roll_back
from src.training.run import Run, build_initial_gpt, skipped_batches
from src.training.run_folder import begin_record, complete_record, record_progress
from src.training.trainer import build_trainer, open_loggers

log = logging.getLogger(__name__)


# ---- 1. read


def read(job: Job, stop: StopRequest) -> Settings:
    """Validate the job's configuration and apply it to this process."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()  # their records reach run.log through the root logger
        logging.getLogger(name).propagate = True
    adapt_to_processor(job)
    settings = read_settings(job.config)
    stop.grace_s = settings.safety.grace_s
    prepare_process(settings.trainer)
    return settings


def launch(job: Job, settings: Settings, stop: StopRequest) -> TaskEnd:
    """Check the strategy, train on ranks that this process launches, and record a failure.

    Raises:
        UserError: the strategy breaks the contract, or a rank found an error of the user.
        Interrupted: a signal or `trainer.max_time`, after the checkpoint.
        RankError: a rank died or failed more often than `trainer.restarts` allows.
    """
    check_quickly(settings, job)
    keys, before = settings.trainer, read_result(job.folder)
    try:
        return launch_ranks(job, devices=keys.devices, restarts=keys.restarts, grace_s=settings.safety.grace_s)
    except (Interrupted, Exception) as error:
        if isinstance(error, Interrupted):
            stop.agree(error.signum)  # SLURM sends the signal to this process, too; the end is recorded first
        record = RunRecord(job.folder, writes=True)
        if record.result != (before or {}):  # else a rank rejected the run before it began
            status: Status = "interrupted" if isinstance(error, Interrupted) else "failed"
            reason = str(error) if isinstance(error, Interrupted) else f"{type(error).__name__}: {one_line(error)}"
            _record_end(record, status, reason)
        raise


# ---- 2. open


def open_run(job: Job, settings: Settings, stop: StopRequest) -> Run:
    """Open the data, the record and the checkpoint to resume from.

    Raises:
        UserError: the model does not fit this machine, or the data or the checkpoint cannot be used.
    """
    if job.rank == 0:
        check_memory(settings)  # before data is fetched or tokenized for a run that cannot fit
    data = _open_data(settings)
    resume = find_resume(job.folder, settings, data.identity()) if job.resumes else None
    run = Run(job, settings, stop, data, RunRecord(job.folder, writes=job.rank == 0), BestEffort(), resume)
    if job.resumes:
        run.rollbacks = run.record.result.get("rollbacks", [])
    if resume is None and settings.config.get("branch_from") is not None:
        run.resume, run.branches = find_branch(settings, data.identity()), True
        run.rollbacks = earlier_rollbacks(settings)
    data.skipped = skipped_batches(run.rollbacks)
    return run


def _open_data(settings: Settings) -> TokenDataModule:
    keys, model = settings.trainer, settings.model
    spec = BatchSpec(model.block_size, model.vocab_size, settings.seed, keys.max_steps, keys.overfit_batches)
    data = build_data(settings.data, spec)
    count_micro_steps(data.micro_batch_size, data.global_batch_size, keys.world_size)
    data.prepare_data()
    data.setup()
    return data


# ---- 3. preflight: `preflight.py`

# ---- 4. fit


def fit(run: Run) -> None:
    """Train to `trainer.max_steps` on all ranks and record a failure.

    Raises:
        DivergedError: training diverged more often than `guard.rollbacks` allows.
        Interrupted: a signal or `trainer.max_time`, after the checkpoint.
        UserError: the data changed or cannot be read any more.
    """
    with raise_user_errors():
        gpt = build_initial_gpt(run)
        if run.branches:
            check_strategy(gpt, run)
        if run.job.rank == 0:  # after everything that may reject the run: some loggers open a run elsewhere
            open_loggers(run)
        begin_record(run, gpt)
    with _record_failures(run):
        while True:
            try:
                return _fit_once(run, gpt)
            except DivergedError as error:
                if len(run.rollbacks) >= run.settings.guard.rollbacks:
                    raise
                roll_back(run, error)
                gpt = build_initial_gpt(run)


def _fit_once(run: Run, gpt: GPT) -> None:
    """Train from `run.resume`, or from step 0, to the last step."""
    settings = run.settings
    module = LanguageModel(
        gpt,
        settings.optimizer,
        settings.schedule,
        compile_trunk=settings.trainer.compile,
        seed=settings.seed,
        checkpoint_activations=settings.trainer.checkpoint_activations,
        val_sets=run.data.validation_sets(),
        document_mark=run.data.document_mark(),
    )
    trainer = build_trainer(run)
    try:
        path = run.resume.path if run.resume else None
        with explain_rendezvous(trainer, settings.safety.rank_timeout_s):
            trainer.fit(module, datamodule=run.data, ckpt_path=path, weights_only=True)
    finally:
        # A full disk here must not hide what ended the training; the record is written again at the end.
        with contextlib.suppress(OSError):
            record_progress(run, trainer)
    run.stop.check()
    if trainer.global_step < settings.trainer.max_steps and not trainer.should_stop:
        raise RuntimeError(
            f"training ended at step {trainer.global_step} of {settings.trainer.max_steps} without a request to stop"
        )


@contextlib.contextmanager
def _record_failures(run: Run) -> Iterator[None]:
    """Write to the record how a failing block ended."""
    try:
        yield
    except DivergedError as error:
        steps = error.began - 1
        run.record.update(steps=steps, tokens=steps * run.tokens_per_step)
        _record_end(run.record, "diverged", _explain_divergence(run, error))
        raise
    except Interrupted as stop:
        _record_end(run.record, "interrupted", str(stop))
        raise
    except ShardError as error:
        _record_end(run.record, "failed", one_line(error))
        raise UserError(one_line(error)) from error
    except Exception as error:
        if _is_aborted_by_peer(run, error):
            log.error("stopped in the middle of a step: %s: %s", type(error).__name__, one_line(error))
            _record_end(run.record, "interrupted", f"{run.stop.reason}; {one_line(error)}")
            raise Interrupted(run.stop.signum) from error
        _record_end(run.record, "failed", f"{type(error).__name__}: {one_line(error)}")
        raise


def _is_aborted_by_peer(run: Run, error: Exception) -> bool:
    """Return whether another rank ended on the signal at once, while this one was in the middle of a step.

    A checkpoint that cannot be written, and whatever fails after the ranks agreed to stop, is a failure: a launcher that
    starts an interrupted run again would repeat it forever.
    """
    is_pending = run.stop.signum and not run.stop.agreed
    return bool(is_pending) and run.settings.trainer.world_size > 1 and not isinstance(error, CheckpointError)


def _explain_divergence(run: Run, error: DivergedError) -> str:
    if run.job.rank:  # only rank 0 sees the checkpoints: under a launcher the folder of another rank is empty
        return one_line(error)
    healthy = find_before(run, error.began)
    kept = "there is no earlier checkpoint"  # none was due, or those that were have been pruned
    if healthy is not None:
        kept = f"the newest checkpoint before it is of step {healthy.step}"
    return f"{one_line(error)}; {kept}"


def _record_end(record: RunRecord, status: Status, reason: str) -> None:
    """Write the end to the record; if that fails, the error that ended the run stays the one reported."""
    try:
        record.finish(status, reason)
    except OSError as error:
        log.error("result.json could not be written: %s", one_line(error))


# ---- 5. close


def close(run: Run) -> TaskEnd:
    """Record the final loss, draw the loss curve, print the table."""
    if run.job.rank:
        return TaskEnd(COMPLETED, "completed")
    with _record_failures(run):
        loss = complete_record(run)
    return TaskEnd(COMPLETED, f"completed, val_loss {loss:.4f}", loss)


def close_diverged(run: Run, error: DivergedError) -> TaskEnd:
    """Report a divergence that is already in the record."""
    reason = _explain_divergence(run, error)
    log.error("diverged: %s", reason)
    return TaskEnd(DIVERGED, f"diverged: {reason}")
