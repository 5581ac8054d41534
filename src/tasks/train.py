"""task=train: pretrain, validate, evaluate, record; stops and goes on."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.loggers import Logger

from src.callbacks.best_effort import BestEffort
from src.callbacks.guard import DivergedError
from src.callbacks.loggers import RunInfo
from src.callbacks.run_record import RunRecord, Status, read_result
from src.callbacks.stop import StopRequest
from src.checks.quick import quick
from src.datamodules.base import BatchSpec, TokenDataModule, build_data, count_micro_steps
from src.datamodules.shards.format import ShardError
from src.errors import Interrupted, UserError, one_line
from src.launch.job import COMPLETED, DIVERGED, Job, TaskEnd
from src.launch.ranks import other_ranks
from src.models.formats.pretrained import load_weights
from src.models.gpt import GPT
from src.models.lightning_module import LanguageModel
from src.models.optim.adamw import moment_count
from src.settings.read import Settings, read_settings
from src.training import rollback
from src.training import run_folder as run_files
from src.training.place import check_place
from src.training.preflight import check_memory
from src.training.process import prepare_process
from src.training.resume import left_to_do
from src.training.run import build_gpt
from src.training.trainer import TrainerParts, build_trainer

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Train to `trainer.max_steps`, or say why not.

    Raises:
        UserError: a mistake in what was asked; nothing has been overwritten.
        Interrupted: a signal, after the checkpoint.
    """
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()  # they print by themselves; run.log takes what they say
        logging.getLogger(name).propagate = True
    request = StopRequest(grace_s=60.0)
    with request.installed():
        with user_mistakes():
            settings = read_settings(job.config)
            request.grace_s = settings.safety.grace_s
            left = left_to_do(job, settings)
            if isinstance(left, TaskEnd):
                return left
            job = left
            earlier = read_result(job.folder) or {}
            done = earlier.get("status") == "completed" and earlier["steps"] >= settings.trainer.max_steps
            if job.resumes and done:
                log.info("%s is completed; nothing to do (a larger trainer.max_steps goes on)", job.folder)
                return TaskEnd(COMPLETED, "completed earlier")
            if job.rank == 0:
                check_memory(settings)
            session = Session(job, settings, request)
            if settings.config["check"] == "quick" and job.rank == 0 and not job.resumes:
                quick(settings)
            if job.rank == 0:
                n_params = sum(p.numel() for p in session.gpt.parameters())
                check_place(
                    job.folder,
                    n_numbers=n_params + moment_count(session.gpt, settings.optimizer),
                    keep=settings.safety.keep_checkpoints,
                )
        return session.run()


@contextlib.contextmanager
def user_mistakes() -> Iterator[None]:
    """What goes wrong while a run is put together lies in what was asked for."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(one_line(error)) from error


class Session:
    """One process's part in one run: everything built and checked, nothing trained yet."""

    def __init__(self, job: Job, settings: Settings, request: StopRequest) -> None:
        self.job, self.settings, self.request = job, settings, request
        prepare_process(settings.trainer)
        self.data = self._build_data()
        settings.evaluation.check(settings.model.vocab_size, settings.model.block_size)
        self.gpt = self._initial()
        self.resume = run_files.checkpoint_to_resume(job, settings, self.data.identity())
        place = RunInfo(job.folder, settings.name, self.resume.step if self.resume else 0)
        self.best_effort = BestEffort()
        self.loggers: list[Logger] = []
        if job.rank == 0:
            self.loggers = self.best_effort.wrap_loggers(make(place) for make in settings.loggers)
        self.record = RunRecord(job.folder, writes=job.rank == 0)
        self.tokens_per_step = self.data.global_batch_size * settings.model.block_size
        self.rollbacks: list[rollback.Event] = self.record.result.get("rollbacks", []) if job.resumes else []
        self.data.skipped = rollback.skips(self.rollbacks)

    def _initial(self) -> GPT:
        gpt = build_gpt(self.settings)
        if self.job.config.init_from is not None:
            load_weights(gpt, Path(self.job.config.init_from))
        return gpt

    def _build_data(self) -> TokenDataModule:
        settings = self.settings
        spec = BatchSpec(
            settings.model.block_size, settings.model.vocab_size, settings.seed, settings.trainer.max_steps
        )
        data = build_data(settings.data, spec)
        count_micro_steps(data.micro_batch_size, data.global_batch_size, settings.trainer.devices)
        data.prepare_data()
        data.setup()
        return data

    def run(self) -> TaskEnd:
        """Train and evaluate; states the outcome in the record."""
        run_files.open_record(
            self.job, self.settings, self.record, self.data, self.gpt, self.resume, self.best_effort
        )
        n_ranks = self.settings.trainer.devices
        resumes = self.resume is not None
        try:
            with other_ranks(
                self.job.folder,
                n_ranks,
                resumes=resumes,
                timeout_s=self.settings.safety.rank_timeout_s,
                on_lost=self._on_lost,
                on_interrupted=self.request.pass_on,
            ):
                self._fit_guarded()
        except DivergedError as error:
            reason = f"{one_line(error)}; checkpoints/ holds weights from before it, if any were due"
            self.record.update(steps=error.began - 1, tokens=(error.began - 1) * self.tokens_per_step)
            self._state("diverged", reason)
            log.error("diverged: %s", reason)
            return TaskEnd(DIVERGED, f"diverged: {reason}")
        except Interrupted as stop:
            self._state("interrupted", str(stop))
            raise
        except ShardError as error:
            self._state("failed", one_line(error))
            raise UserError(one_line(error)) from error
        except Exception as error:
            if self.request.signum:  # another rank left on it, and this one missed it in the middle of a step
                self._state("interrupted", f"{self.request.reason}; {one_line(error)}")
                raise Interrupted(self.request.signum) from error
            self._state("failed", f"{type(error).__name__}: {one_line(error)}")
            raise
        if self.job.rank:
            return TaskEnd(COMPLETED, "completed")
        value = run_files.close_record(self.job, self.record, self.best_effort)
        return TaskEnd(COMPLETED, f"completed, val_loss {value:.4f}", value)

    def _state(self, status: Status, reason: str) -> None:
        """State a bad end; where that cannot be written, what led to it is still the news."""
        try:
            self.record.finish(status, reason)
        except OSError as error:
            log.error("result.json could not be written: %s", one_line(error))

    def _on_lost(self, reason: str) -> None:
        log.error("failed: %s", reason)
        self._state("failed", reason)

    def _fit_guarded(self) -> None:
        """Train; on divergence go back and skip what led there, as often as `guard.rollbacks` says."""
        while True:
            try:
                self._fit()
                return
            except DivergedError as error:
                if len(self.rollbacks) >= self.settings.guard.rollbacks:
                    raise
                back = rollback.go_back(self.job, self.record, self.rollbacks, error)
                self.rollbacks = back.events
                self.data.skipped = rollback.skips(self.rollbacks)
                self.resume = back.resume
                self.gpt = self._initial()

    def _fit(self) -> None:
        module = LanguageModel(
            self.gpt,
            self.settings.optimizer,
            self.settings.schedule,
            compile_trunk=self.settings.trainer.compile,
            seed=self.settings.seed,
        )
        trainer = build_trainer(
            TrainerParts(
                self.job,
                self.settings,
                self.request,
                self.record,
                self.loggers,
                self.best_effort,
                self.tokens_per_step,
                self.data.identity(),
                self.resume.step if self.resume else 0,
            )
        )
        try:
            path = self.resume.path if self.resume else None
            trainer.fit(module, datamodule=self.data, ckpt_path=path, weights_only=True)
        finally:
            with contextlib.suppress(
                OSError
            ):  # it would hide what ended the training; its own end writes again
                run_files.note_progress(self.record, trainer, self.tokens_per_step)
        self.request.check()
        if trainer.global_step < self.settings.trainer.max_steps and not trainer.should_stop:
            raise RuntimeError(
                f"training ended at step {trainer.global_step} of {self.settings.trainer.max_steps}, unasked"
            )
