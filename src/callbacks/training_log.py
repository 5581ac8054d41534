"""What training says while it runs: rows for the record and the loggers, and a progress bar."""

import time
from typing import Any

import lightning as L
from tqdm import tqdm

from src.callbacks.run_record import RunRecord
from src.models.lightning_module import StepResult


class TrainingLog(L.Callback):
    """Notes loss, rate, gradient norm and speed at every `every_steps`-th step and at the last.

    Values are those of that step itself, not means since the last row: a resumed run repeats them exactly.

    Args:
        record: takes the rows.
        every_steps: optimizer steps between rows.
        tokens_per_step: tokens of a global batch.
    """

    def __init__(self, record: RunRecord, *, every_steps: int, tokens_per_step: int) -> None:
        self.record = record
        self.every_steps = every_steps
        self.tokens_per_step = tokens_per_step
        self._since = (time.monotonic(), 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = (time.monotonic(), trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # Lightning's type says tensor or mapping; ours is the mapping
        *_: object,
    ) -> None:
        step = trainer.global_step
        if step % self.every_steps and step != trainer.max_steps:
            return
        result: StepResult = outputs["step"]
        now = time.monotonic()
        seconds, steps = now - self._since[0], step - self._since[1]
        self._since = (now, step)
        self.record.note(
            step,
            {
                "tokens": step * self.tokens_per_step,
                "train/loss": result.loss.item(),
                "lr": result.lr,
                "grad_norm": result.grad_norm.item(),
                "tokens_per_s": steps * self.tokens_per_step / seconds,
            },
        )

    def pause(self, seconds: float) -> None:
        """Leave `seconds` (of a validation, say) out of the speed."""
        self._since = (self._since[0] + seconds, self._since[1])


class RowWriter(L.Callback):
    """Closes the step's row: to metrics.jsonl, then to every logger; comes after those who note."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        row = self.record.close_row()
        if row:
            scalars = {key: float(value) for key, value in row.items() if key != "step"}
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=int(row["step"]))


class ProgressBar(L.Callback):
    """One line with loss, tokens/s and the time left; rank 0 alone draws.

    Args:
        tokens_per_step: tokens of a global batch.
        every_s: seconds between two drawings.
    """

    def __init__(self, *, tokens_per_step: int, every_s: float) -> None:
        self.tokens_per_step = tokens_per_step
        self.every_s = every_s
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=trainer.max_steps,
                initial=trainer.global_step,
                desc="train",
                unit="step",
                mininterval=self.every_s,
                dynamic_ncols=True,
            )
            self._drawn, self._drawn_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # see TrainingLog
        *_: object,
    ) -> None:
        if self._bar is None:
            return
        now, step = time.monotonic(), trainer.global_step
        if now - self._drawn >= self.every_s or step == trainer.max_steps:
            speed = (step - self._drawn_step) * self.tokens_per_step / (now - self._drawn)
            result: StepResult = outputs["step"]
            self._bar.set_postfix_str(f"loss {result.loss.item():.4f}, {speed:,.0f} tokens/s", refresh=False)
            self._bar.update(step - self._bar.n)
            self._drawn, self._drawn_step = now, step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Leave the line as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
