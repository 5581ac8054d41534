"""Validation losses in the run's record; Lightning's own loop validates, at `trainer.val_every_steps`.

val/loss          nats per token of `data.path`'s validation text, by which the best checkpoint is chosen
val/bpb           bits per byte of the text, loss / ln 2 * tokens / bytes, comparable across tokenizers
val/<name>/...    both for each set of `data.val_sets`
"""

import math
from collections.abc import Iterable, Mapping

import lightning as L

from src.callbacks.run_record import RunRecord


class ValidationRecord(L.Callback):
    """Adds the losses to the step's row, and has the last step validated too, multiple of the interval or not.

    Args:
        record: receives the values.
        tokens_per_step: tokens of a global batch.
        val_sets: prefix of the metrics of each set.
        bytes_per_token: mean bytes of a predicted token by prefix; a set that is missing has no bits per byte.
    """

    def __init__(
        self,
        record: RunRecord,
        *,
        tokens_per_step: int,
        val_sets: Iterable[str] = ("val",),
        bytes_per_token: Mapping[str, float],
    ) -> None:
        self.record = record
        self.tokens_per_step = tokens_per_step
        self.val_sets = tuple(val_sets)
        self.bytes_per_token = bytes_per_token

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning validates before it stops early

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        values: dict[str, float | int] = {"tokens": step * self.tokens_per_step}
        for name in self.val_sets:
            loss = values[f"{name}/loss"] = trainer.callback_metrics[f"{name}/loss"].item()
            if name in self.bytes_per_token:
                values[f"{name}/bpb"] = bits_per_byte(loss, self.bytes_per_token[name])
        self.record.note(step, values)


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Return the bits per byte of a loss in nats per token."""
    return loss / math.log(2) / bytes_per_token
