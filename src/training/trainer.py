"""Lightning's trainer for a run: its callbacks in their order, its loggers, its strategy."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from src.callbacks.background import BackgroundCheckpointIO
from src.callbacks.best_effort import Soft
from src.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from src.callbacks.dashboard import Dashboard, TensorBoardLogger
from src.callbacks.final_evaluation import FinalEvaluation
from src.callbacks.group import Group
from src.callbacks.guard import Guard
from src.callbacks.run_record import RunRecord
from src.callbacks.stop import StopOnSignal, StopRequest
from src.callbacks.stream_log import StreamLog
from src.callbacks.training_log import ProgressBar, RowWriter, TrainingLog
from src.callbacks.validation import Validation
from src.files import flatten
from src.launch.job import Job
from src.settings.read import Settings
from src.settings.trainer import max_seconds
from src.training import run_folder as run_files
from src.training.stepping import NoProfiler, StepTrainer, precision


@dataclass(frozen=True)
class TrainerParts:
    """What the trainer of a run is made of; `step` is where it begins."""

    job: Job
    settings: Settings
    request: StopRequest
    record: RunRecord
    loggers: list[Logger]
    soft: Soft
    tokens_per_step: int
    data_identity: dict[str, Any]
    step: int


def build_trainer(parts: TrainerParts) -> L.Trainer:
    """A trainer that goes to `trainer.max_steps`; the loader is its one epoch."""
    keys = parts.settings.trainer
    files = BackgroundCheckpointIO() if parts.settings.safety.background_saves else AtomicCheckpointIO()
    return StepTrainer(
        accelerator=keys.accelerator,
        devices=keys.devices,
        strategy=_strategy(keys.strategy, parts.settings.safety.rank_timeout_s),
        max_steps=keys.max_steps,
        max_epochs=1,  # the loader is one epoch of max_steps batches
        limit_val_batches=0,  # the Validation callback validates
        num_sanity_val_steps=0,
        logger=_loggers(parts),
        callbacks=_callbacks(parts, files),
        plugins=[files, precision(keys.precision, keys.accelerator)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=0,  # nothing goes through Lightning's own log
        profiler=NoProfiler(),
        default_root_dir=parts.job.folder,
    )


def _callbacks(parts: TrainerParts, files: AtomicCheckpointIO) -> list[L.Callback]:
    settings, record, soft = parts.settings, parts.record, parts.soft
    keys = settings.trainer
    log_rows = TrainingLog(record, every_steps=keys.log_every_steps, tokens_per_step=parts.tokens_per_step)

    def look(step: int) -> bool:
        return step % keys.log_every_steps == 0 or step % keys.val_every_steps == 0 or step == keys.max_steps

    guard = Guard(
        settings.guard,
        vocab_size=settings.model.vocab_size,
        warmup_steps=settings.optimizer.warmup_steps,
        look=look,
    )
    checkpoints = Checkpoints(
        parts.job.folder / "checkpoints",
        every_steps=keys.checkpoint_every_steps,
        keep=settings.safety.keep_checkpoints,
        identity=run_files.checkpoint_identity(settings, parts.data_identity),
        record=record,
        guard=guard,
        files=files,
    )
    looks: list[L.Callback] = []
    if keys.stream_pictures:
        looks = [
            StreamLog(
                parts.job.folder, every_steps=keys.val_every_steps, log_rows=log_rows, share=0.01, soft=soft
            )
        ]
    return [  # in this order within a step: judge, note, validate, write the row, sample, agree to stop, save
        guard,
        Group(
            log_rows,
            Validation(
                record, every_steps=keys.val_every_steps, log=log_rows, checkpoints=checkpoints, guard=guard
            ),
            *looks,
            RowWriter(record),
            Dashboard(settings.samples, every_steps=keys.val_every_steps, log=log_rows, soft=soft),
            ProgressBar(tokens_per_step=parts.tokens_per_step, every_s=0.5),
            FinalEvaluation(settings.evaluation, record, between_batches=parts.request.check),
            StopOnSignal(
                parts.request, max_s=max_seconds(keys.max_time), timeout_s=settings.safety.rank_timeout_s
            ),
        ),
        checkpoints,
    ]


def _loggers(parts: TrainerParts) -> list[Logger]:
    if parts.job.rank:
        return []
    board = TensorBoardLogger(
        parts.job.folder, name="", version="tensorboard", default_hp_metric=False, purge_step=parts.step + 1
    )
    for logger in parts.loggers:
        logger.log_hyperparams(flatten(parts.settings.config))
    return [*parts.soft.softened([board]), *parts.loggers]


def _strategy(name: str, timeout_s: float) -> str | Strategy:
    if name != "ddp":
        return name
    # Every parameter has a gradient in every step (a contract test), and no buffer changes in a forward.
    # Gradients are views of what is exchanged: 4 bytes a parameter less. docs/scaling.md has what others cost.
    return DDPStrategy(
        find_unused_parameters=False,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        timeout=timedelta(seconds=timeout_s),
    )
