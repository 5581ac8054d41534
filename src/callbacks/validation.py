"""Validation loss in the run's record; Lightning's own loop validates, at `trainer.val_every_steps`."""

import lightning as L

from src.callbacks.run_record import RunRecord


class ValidationRecord(L.Callback):
    """Adds `val/loss` to the step's row, and has the last step validated too, multiple of the interval or not.

    Args:
        record: receives the value.
        tokens_per_step: tokens of a global batch.
    """

    def __init__(self, record: RunRecord, *, tokens_per_step: int) -> None:
        self.record = record
        self.tokens_per_step = tokens_per_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning validates before it stops early

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        loss = trainer.callback_metrics["val/loss"].item()
        self.record.note(step, {"tokens": step * self.tokens_per_step, "val/loss": loss})
