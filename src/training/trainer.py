"""Lightning trainer of a run: callbacks, loggers and strategy."""

import sys
from collections.abc import Iterable
from datetime import timedelta
from functools import partial

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from src.callbacks.background import BackgroundCheckpointIO
from src.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from src.callbacks.dashboard import Dashboard
from src.callbacks.evaluation import RunEvaluation
from src.callbacks.guard import Guard
from src.callbacks.loggers import RunInfo
from src.callbacks.progress import ProgressBar, ProgressLines
from src.callbacks.spike_score import SpikeScore
from src.callbacks.stop import StopOnSignal
from src.callbacks.stream_log import StreamLog
from src.callbacks.throughput import Throughput
from src.callbacks.training_log import RowWriter, TrainingLog
from src.callbacks.validation import ValidationRecord
from src.files import flatten
from src.settings.trainer import TrainerSettings, max_seconds
from src.training import provenance
from src.training.cluster import RankAgreement, build_environment
from src.training.fsdp import FSDPStrategy
from src.training.run import Run

#: Keys of `trainer` whose auto depends on the processor of a node.
DIFFER_BY_NODE = ("threads", "onednn")


def build_trainer(run: Run) -> L.Trainer:
    """Build a trainer that runs to `trainer.max_steps`; the data loader is its only epoch."""
    settings = run.settings
    keys = settings.trainer
    files = BackgroundCheckpointIO() if settings.safety.background_saves else AtomicCheckpointIO()
    if run.resume is not None and run.resume.checkpoint is not None:
        files.hold(run.resume.path, run.resume.checkpoint)
        run.resume = run.resume._replace(checkpoint=None)  # the trainer restores it once
    callbacks = _build_callbacks(run, files)
    return L.Trainer(
        accelerator=keys.accelerator,
        devices=keys.devices,
        num_nodes=keys.num_nodes,
        strategy=_build_strategy(keys, settings.safety.rank_timeout_s),
        precision=keys.precision,
        max_steps=keys.max_steps,
        max_epochs=1,
        val_check_interval=keys.val_every_steps,
        check_val_every_n_epoch=None,  # the interval counts training batches, which are optimizer steps
        num_sanity_val_steps=0,
        logger=_build_loggers(run),
        callbacks=callbacks,
        enable_progress_bar=has_bar(callbacks),  # Lightning would add its own
        plugins=[files, build_environment()],
        detect_anomaly=keys.detect_anomaly,
        enable_model_summary=False,
        use_distributed_sampler=False,
        profiler=None if settings.profiler is None else settings.profiler(run.job.folder / "profiler"),
        log_every_n_steps=keys.log_every_steps,
        default_root_dir=run.job.folder,
    )


def _build_callbacks(run: Run, files: AtomicCheckpointIO) -> list[L.Callback]:
    """Return the callbacks in the order in which they act on a step: check, note, write, agree to stop, save.

    Configured callbacks come before the row is written and the checkpoint is saved, so that it holds their state.
    """
    settings, record, tokens = run.settings, run.record, run.tokens_per_step
    keys, timeout_s = settings.trainer, settings.safety.rank_timeout_s
    spikes = SpikeScore(record, every_steps=keys.log_every_steps)
    guard = Guard(
        settings.guard,
        vocab_size=settings.model.vocab_size,
        warmup_steps=settings.optimizer.warmup_steps,
        reads_after=partial(_reads_after, keys),
        observe=spikes.add,
    )
    training_log = TrainingLog(
        record,
        every_steps=keys.log_every_steps,
        tokens_per_step=tokens,
        throughput=Throughput(keys.peak_flops, bf16=keys.precision == "bf16-mixed"),
    )
    configured = [build() for build in settings.callbacks]
    return [
        RankAgreement(keys.world_size, identify_rank(run), run.job.folder, timeout_s),
        guard,
        training_log,
        spikes,
        *configured,
        ValidationRecord(
            record,
            tokens_per_step=tokens,
            val_sets=run.data.validation_sets(),
            bytes_per_token={} if run.job.rank else run.data.bytes_per_token(),
        ),
        *([StreamLog(run.job.folder, share=0.01, best_effort=run.best_effort)] if keys.stream_pictures else []),
        Dashboard(settings.samples, run.tokenizer, best_effort=run.best_effort),
        RunEvaluation(
            settings.evaluation,
            run.tokenizer,
            record,
            request=run.stop,
            training_log=training_log,
            tokens_per_step=tokens,
        ),
        RowWriter(record),
        *([] if has_bar(configured) else [_build_progress(run)]),
        StopOnSignal(run.stop, max_s=max_seconds(keys.max_time), timeout_s=timeout_s),
        Checkpoints(
            run.checkpoints,
            every_steps=keys.checkpoint_every_steps,
            keep=settings.safety.keep_checkpoints,
            keep_steps=keys.kept_steps,
            since=settings.config.get("at", 0),
            identity=provenance.checkpoint_identity(settings, run.data.identity(), run.data.tokenizer()),
            record=record,
            guard=guard,
            files=files,
        ),
    ]


def _reads_after(keys: TrainerSettings, step: int) -> bool:
    """Return whether the guard reads losses back after a step: where a row is logged or a validation is due."""
    return step % keys.log_every_steps == 0 or step % keys.val_every_steps == 0 or step == keys.max_steps


def _build_progress(run: Run) -> L.Callback:
    if sys.stderr.isatty():
        return ProgressBar(tokens_per_step=run.tokens_per_step, every_s=0.5)
    return ProgressLines(run.record)


def identify_rank(run: Run) -> dict[str, str]:
    """Return what has to be equal on all ranks, by the keys of `COMPARED`."""
    config = run.settings.config
    shared = {key: value for key, value in config["trainer"].items() if key not in DIFFER_BY_NODE}
    return {
        "code": str(provenance.code_identity()["sources"]),
        "config": provenance.config_hash({**config, "trainer": shared}),
        "data": str(run.data.identity()["hash"]),
        "first step": str(run.first_step),
        "rollbacks": str(run.data.skipped),
    }


def has_bar(callbacks: Iterable[L.Callback]) -> bool:
    """Return whether a callback is one of Lightning's progress bars, or built on one."""
    return any(isinstance(callback, LightningProgressBar) for callback in callbacks)


def open_loggers(run: Run) -> None:
    """Open the configured loggers; a resumed run continues under the ids that result.json has of its first session."""
    ids: dict[str, str] = dict(run.record.result.get("logger_ids", {})) if run.job.resumes else {}
    for name, make in zip(run.settings.config.get("logger") or {}, run.settings.loggers, strict=True):
        info = RunInfo(run.job.folder, run.settings.name, run.first_step, ids.get(name))
        for logger in run.best_effort.wrap_loggers([make(info)]):
            run.loggers.append(logger)
            if logger.version is not None:
                ids[name] = str(logger.version)
    run.logger_ids = ids


def _build_loggers(run: Run) -> list[Logger]:
    """Return TensorBoard's logger and the configured ones; one without effect on ranks other than 0."""
    if run.job.rank:
        return [DummyLogger()]  # callbacks such as LearningRateMonitor raise an error without a logger
    board = TensorBoardLogger(
        run.job.folder, name="", version="tensorboard", default_hp_metric=False, purge_step=run.first_step + 1
    )
    config = {**run.settings.config, "resume": None, "from_run": None}  # as config.yaml: the same in every session
    for logger in run.loggers:
        logger.log_hyperparams(flatten(config))
    return [*run.best_effort.wrap_loggers([board]), *run.loggers]


def _build_strategy(keys: TrainerSettings, timeout_s: float) -> str | Strategy:
    if keys.strategy == "fsdp":
        bf16 = keys.precision == "bf16-mixed"
        return FSDPStrategy(shards_within_node=keys.shard_within_node, bf16=bf16, timeout_s=timeout_s)
    if keys.strategy != "ddp":
        return keys.strategy
    # Every parameter has a gradient in every step (a contract test), and no buffer changes in a forward.
    # Gradients are views of the buckets that DDP exchanges, which saves 4 bytes per parameter (docs/scaling.md).
    return DDPStrategy(
        find_unused_parameters=False,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        timeout=timedelta(seconds=timeout_s),
    )
