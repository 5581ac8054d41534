"""task=train: pretrain, validate, evaluate, record; stops and goes on."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from src.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from src.callbacks.dashboard import Dashboard
from src.callbacks.final_evaluation import FinalEvaluation
from src.callbacks.record import RunRecord, read_result
from src.callbacks.stop import StopOnSignal, StopRequest
from src.callbacks.stream_log import StreamLog
from src.callbacks.training_log import ProgressBar, RowWriter, TrainingLog
from src.callbacks.validation import Validation
from src.datamodules.batches import BatchSpec, accumulation
from src.datamodules.fineweb import FineWebDataModule
from src.datamodules.shards import ShardError
from src.launch import COMPLETED, DIVERGED, Job, TaskEnd
from src.mistakes import Interrupted, UserError, one_line
from src.models.gpt import GPT
from src.models.language_model import LanguageModel
from src.models.optimizer import DivergedError
from src.models.pretrained import load_weights
from src.ranks import other_ranks
from src.tasks import run_files
from src.tasks.check import quick
from src.tasks.loggers import RunPlace
from src.tasks.settings import Settings, read_settings
from src.tasks.sweeps import left_to_do

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
    request = StopRequest()
    with request.installed():
        with user_mistakes():
            settings = read_settings(job.config)
            left = left_to_do(job, settings)
            if isinstance(left, TaskEnd):
                return left
            job = left
            earlier = read_result(job.folder) or {}
            done = earlier.get("status") == "completed" and earlier["steps"] >= settings.trainer.max_steps
            if job.resumes and done:
                log.info("%s is completed; nothing to do (a larger trainer.max_steps goes on)", job.folder)
                return TaskEnd(COMPLETED, "completed earlier")
            session = Session(job, settings, request)
            if settings.config["check"] == "quick" and job.rank == 0 and not job.resumes:
                quick(settings)
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
        torch.set_num_threads(settings.trainer.threads)
        if settings.trainer.accelerator == "gpu":
            torch.set_float32_matmul_precision("high")
        self.data = self._build_data()
        settings.evaluation.check(settings.model.vocab_size, settings.model.block_size)
        self.gpt = build_gpt(settings)
        self.resume = run_files.checkpoint_to_resume(job, settings, self.data.identity())
        if self.resume is None and job.config.init_from is not None:
            load_weights(self.gpt, Path(job.config.init_from))
        place = RunPlace(job.folder, settings.name, self.resume.step if self.resume else 0)
        self.loggers: list[Logger] = [make(place) for make in settings.loggers] if job.rank == 0 else []
        self.record = RunRecord(job.folder, writes=job.rank == 0)
        self.tokens_per_step = self.data.global_batch_size * settings.model.block_size

    def _build_data(self) -> FineWebDataModule:
        settings = self.settings
        spec = BatchSpec(
            settings.model.block_size, settings.model.vocab_size, settings.seed, settings.trainer.max_steps
        )
        data: FineWebDataModule = settings.data(spec)
        accumulation(data.micro_batch_size, data.global_batch_size, settings.trainer.devices)
        data.prepare_data()
        data.setup()
        return data

    def run(self) -> TaskEnd:
        """Train and evaluate; states the outcome in the record."""
        run_files.open_record(self.job, self.settings, self.record, self.data, self.gpt, self.resume)
        n_ranks = self.settings.trainer.devices
        resumes = self.resume is not None
        lost = self._on_lost
        try:
            with other_ranks(self.job.folder, n_ranks, resumes=resumes, on_lost=lost):
                self._fit()
        except DivergedError as error:
            reason = f"{one_line(error)}; the weights before it are in checkpoints/, if any was due"
            self.record.finish("diverged", reason)
            log.error("diverged: %s", reason)
            return TaskEnd(DIVERGED, f"diverged: {reason}")
        except Interrupted as stop:
            self.record.finish("interrupted", str(stop))
            raise
        except ShardError as error:
            self.record.finish("failed", one_line(error))
            raise UserError(one_line(error)) from error
        except Exception as error:
            self.record.finish("failed", f"{type(error).__name__}: {one_line(error)}")
            raise
        if self.job.rank:
            return TaskEnd(COMPLETED, "completed")
        value = run_files.close_record(self.job, self.record)
        return TaskEnd(COMPLETED, f"completed, val_loss {value:.4f}", value)

    def _on_lost(self, reason: str) -> None:
        log.error("failed: %s", reason)
        self.record.finish("failed", reason)

    def _fit(self) -> None:
        module = LanguageModel(
            self.gpt,
            self.settings.optimizer,
            self.settings.schedule,
            compile_trunk=self.settings.trainer.compile,
            seed=self.settings.seed,
        )
        trainer = self._trainer()
        try:
            path = self.resume.path if self.resume else None
            trainer.fit(module, datamodule=self.data, ckpt_path=path, weights_only=True)
        except DivergedError as error:
            raise DivergedError(f"step {trainer.global_step + 1}: {error}") from error
        finally:
            run_files.note_progress(self.record, trainer, self.tokens_per_step)
        if self.request.signum:
            raise Interrupted(self.request.signum)
        if trainer.global_step < self.settings.trainer.max_steps:
            raise RuntimeError(
                f"training ended at step {trainer.global_step} of {self.settings.trainer.max_steps}, unasked"
            )

    def _trainer(self) -> L.Trainer:
        keys = self.settings.trainer
        return L.Trainer(
            accelerator=keys.accelerator,
            devices=keys.devices,
            strategy=_strategy(keys.strategy),
            precision=keys.precision,  # type: ignore[arg-type]  # settings allow Lightning's names only
            max_steps=keys.max_steps,
            max_epochs=1,  # the loader is one epoch of max_steps batches
            limit_val_batches=0,  # the Validation callback validates
            num_sanity_val_steps=0,
            logger=self._loggers(),
            callbacks=self._callbacks(),
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=1,
            default_root_dir=self.job.folder,
        )

    def _callbacks(self) -> list[L.Callback]:
        keys, record = self.settings.trainer, self.record
        log_rows = TrainingLog(record, every_steps=keys.log_every_steps, tokens_per_step=self.tokens_per_step)
        checkpoints = Checkpoints(
            self.job.folder / "checkpoints",
            every_steps=keys.checkpoint_every_steps,
            identity=run_files.checkpoint_identity(self.settings, self.data.identity()),
            record=record,
        )
        looks: list[L.Callback] = []
        if keys.stream_pictures:
            looks = [
                StreamLog(self.job.folder, every_steps=keys.val_every_steps, log_rows=log_rows, share=0.01)
            ]
        return [  # in this order within a step: note, validate, write the row, sample, agree to stop, save
            log_rows,
            Validation(record, every_steps=keys.val_every_steps, log=log_rows, checkpoints=checkpoints),
            *looks,
            RowWriter(record),
            Dashboard(self.settings.samples, every_steps=keys.val_every_steps, log=log_rows),
            StopOnSignal(self.request),
            checkpoints,
            ProgressBar(tokens_per_step=self.tokens_per_step, every_s=0.5),
            FinalEvaluation(self.settings.evaluation, record, between_batches=self.request.check),
        ]

    def _loggers(self) -> list[Logger]:
        if self.job.rank:
            return []
        step = self.resume.step if self.resume else 0
        board = TensorBoardLogger(
            self.job.folder, name="", version="tensorboard", default_hp_metric=False, purge_step=step + 1
        )
        for logger in self.loggers:
            logger.log_hyperparams(run_files.flat(self.settings.config))
        return [board, *self.loggers]


def build_gpt(settings: Settings) -> GPT:
    """The model, with its initial weights."""
    return GPT(
        settings.model,
        residual=settings.residual,
        norm=settings.norm,
        embedding=settings.embedding,
        recurrence=settings.recurrence,
        seed=settings.seed,
    )


def _strategy(name: str) -> str | Strategy:
    if name != "ddp":
        return name
    # Every parameter has a gradient in every step (a contract test), and no buffer changes in a forward.
    return DDPStrategy(find_unused_parameters=False, broadcast_buffers=False)
