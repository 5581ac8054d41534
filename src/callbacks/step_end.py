"""Base class of callbacks that act once per optimizer step, after the step's validation where one is due.

Lightning calls `on_train_batch_end` of a step before it validates at that step. A row of metrics, an agreement to
stop and a checkpoint belong after both: a run that resumes from the checkpoint then neither repeats nor loses a
validation.
"""

import lightning as L


class StepEndCallback(L.Callback):
    """Calls `on_step_end` in `on_validation_end` of a step that is validated, else in `on_train_batch_end`."""

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Act on `trainer.global_step` completed steps."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        if not validation_follows(trainer):
            self.on_step_end(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_step_end(trainer, pl_module)


def validation_follows(trainer: L.Trainer) -> bool:
    """Return whether Lightning validates after this training batch: at its interval, and before an early stop."""
    assert isinstance(trainer.val_check_batch, int)  # build_trainer gives an interval in steps
    is_due = trainer.should_stop or trainer.global_step % trainer.val_check_batch == 0
    return trainer.enable_validation and is_due
