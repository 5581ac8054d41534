"""Training metrics: rows for the record and the loggers, and the progress bar."""

import contextlib
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from src.callbacks.run_record import RunRecord
from src.callbacks.step_end import StepEndCallback
from src.models.lightning_module import StepOutput


class TrainingLog(L.Callback):
    """Notes loss, learning rate, gradient norm and speed at every `every_steps`-th step and at the last.

    The values are those of the step itself, not means since the last row, so a resumed run repeats them exactly.
    The speed leaves out validations and what else is done before the next step.

    Args:
        record: receives the rows.
        every_steps: optimizer steps between rows.
        tokens_per_step: tokens of a global batch.
    """

    def __init__(self, record: RunRecord, *, every_steps: int, tokens_per_step: int) -> None:
        self.record = record
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
        self.record.note(
            step,
            {
                "tokens": step * self.tokens_per_step,
                "train/loss": output["loss"].item(),
                "lr": output["lr"],
                "grad_norm": output["grad_norm"].item(),
                "tokens_per_s": steps * self.tokens_per_step / seconds,
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


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar on standard error: steps of the run, loss and tokens/s, drawn by time.

    Drawing reads the loss back to the host, so it happens every `every_s` seconds, not every few batches.

    Args:
        tokens_per_step: tokens of a global batch.
        every_s: seconds between two drawings.
    """

    def __init__(self, *, tokens_per_step: int, every_s: float) -> None:
        super().__init__(leave=False)
        self.tokens_per_step = tokens_per_step
        self.every_s = every_s
        self._drawn, self._drawn_step = time.monotonic(), 0
        self._metrics: dict[str, str] = {}

    def init_train_tqdm(self) -> Tqdm:
        steps = {"total": self.trainer.max_steps, "initial": self.trainer.global_step}
        return self._build_bar("train", disable=self.is_disabled, leave=True, **steps)

    def init_validation_tqdm(self) -> Tqdm:
        # disable=None draws on a terminal only.
        return self._build_bar("validate", disable=self.is_disabled or None, leave=False, position=1)

    def _build_bar(self, description: str, **options: Any) -> Tqdm:
        """Return a bar with Lightning's format on standard error; `options` are tqdm's."""
        shared = {"dynamic_ncols": True, "smoothing": 0, "bar_format": self.BAR_FORMAT}
        return Tqdm(desc=description, file=sys.stderr, **shared, **options)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return the loss and the speed as they were last read."""
        return dict(self._metrics)

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_start(trainer, *_)
        self._drawn, self._drawn_step = time.monotonic(), trainer.global_step

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Leave the bar as `init_train_tqdm` made it: a resumed run does not start an epoch."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:  # Any: see TrainingLog
        now, step = time.monotonic(), trainer.global_step
        if self.is_disabled or (now - self._drawn < self.every_s and step != trainer.max_steps):
            return
        speed = (step - self._drawn_step) * self.tokens_per_step / (now - self._drawn)
        self._metrics = {"loss": f"{outputs['loss'].item():.4f}", "tokens/s": f"{speed:,.0f}"}
        self._drawn, self._drawn_step = now, step
        self.train_progress_bar.set_postfix(self._metrics, refresh=False)
        self.train_progress_bar.n = step
        self.train_progress_bar.refresh()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._drawn, self._drawn_step = time.monotonic(), trainer.global_step

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        with contextlib.suppress(TypeError):  # raised by the property before training started
            self.train_progress_bar.close()
