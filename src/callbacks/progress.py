"""Progress of a run on standard error: a bar on a terminal, else one line for each logged step."""

import contextlib
import logging
import sys
import time
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from src.callbacks.run_record import RunRecord
from src.callbacks.step_end import StepEndCallback

log = logging.getLogger(__name__)


class ProgressLines(StepEndCallback):
    """Logs one line for each row of metrics.jsonl with a loss: step, losses, tokens/s and the time that is left.

    The time left follows from the mean time of this session's steps, validations included. Comes after `RowWriter`.

    Args:
        record: its last row is printed.
    """

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self._since = (time.monotonic(), 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = (time.monotonic(), trainer.global_step)

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row, step, end = self.record.last_row, trainer.global_step, trainer.max_steps
        names = [key for key in row if key.startswith(("train/", "val/")) and key.endswith("/loss")]
        losses = [f"{name} {row[name]:.4f}" for name in names]
        if row.get("step") != step or not losses:
            return
        speed = [f"{row['tokens_per_s']:,.0f} tokens/s"] if "tokens_per_s" in row else []
        per_step = (time.monotonic() - self._since[0]) / (step - self._since[1])
        left = format_duration(per_step * (end - step))
        log.info("step %d/%d  %s", step, end, "  ".join([*losses, *speed, f"{left} left"]))


def format_duration(seconds: float) -> str:
    """Return a duration as hours:minutes:seconds, after the days if there are any."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days}d " * bool(days) + f"{h}:{m:02}:{s:02}"


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

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:  # Any: Lightning declares any batch
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if batch_idx == 0:
            loaders = cast(list[object], trainer.val_dataloaders)  # of `TokenDataModule`
            self.val_progress_bar.total = getattr(loaders[dataloader_idx], "n_batches", None)

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
    ) -> None:  # Any: Lightning declares a tensor or any mapping
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
