"""Training metrics: rows for the record and the loggers."""

import time
from typing import Any, cast

import lightning as L

from src.callbacks.run_record import RunRecord
from src.callbacks.step_end import StepEndCallback
from src.callbacks.throughput import Throughput
from src.models.lightning_module import LanguageModel, StepOutput


class TrainingLog(L.Callback):
    """Notes loss, learning rate, gradient norm, speed and memory at every `every_steps`-th step and at the last.

    The values are those of the step itself, not means since the last row, so a resumed run repeats them exactly.
    The speed leaves out validations and what else is done before the next step.

    Args:
        record: receives the rows.
        every_steps: optimizer steps between rows.
        tokens_per_step: tokens of a global batch.
        throughput: measures the device.
    """

    def __init__(self, record: RunRecord, *, every_steps: int, tokens_per_step: int, throughput: Throughput) -> None:
        self.record = record
        self.throughput = throughput
        self.every_steps = every_steps
        self.tokens_per_step = tokens_per_step
        self._since = (time.monotonic(), 0)
        self._paused_at: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = (time.monotonic(), trainer.global_step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pause()

    def pause(self) -> None:
        """Leave the time from now to the next step out of the speed."""
        if self._paused_at is None:
            self._paused_at = time.monotonic()

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if self._paused_at is not None:
            self._since = (self._since[0] + time.monotonic() - self._paused_at, self._since[1])
            self._paused_at = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: object
    ) -> None:  # Any: Lightning declares a tensor or any mapping
        step = trainer.global_step
        if step % self.every_steps and step != trainer.max_steps:
            return
        output: StepOutput = outputs
        now = time.monotonic()
        seconds, steps = now - self._since[0], step - self._since[1]
        self._since = (now, step)
        tokens_per_s = steps * self.tokens_per_step / seconds
        self.record.note(
            step,
            {
                "tokens": step * self.tokens_per_step,
                "train/loss": output["loss"].item(),
                "lr": output["lr"],
                "grad_norm": output["grad_norm"].item(),
                "tokens_per_s": tokens_per_s,
                **self.throughput.measure(tokens_per_s, trainer, cast(LanguageModel, pl_module)),
            },
        )


class RowWriter(StepEndCallback):
    """Writes the step's row to metrics.jsonl, then to every logger; comes after the callbacks that note values."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row = self.record.close_row()
        if row:
            scalars = {key: float(value) for key, value in row.items() if key != "step"}
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=int(row["step"]))
