"""Validation loss over the fixed validation tokens, every so many steps and at the end.

A callback rather than Lightning's own loop: it ends before the step's checkpoint is written, so a resumed
run neither repeats nor loses a validation.
"""

import time
from collections.abc import Callable

import lightning as L
import torch
from torch import distributed

from src.callbacks.checkpoints import Checkpoints
from src.callbacks.guard import Guard
from src.callbacks.run_record import RunRecord
from src.callbacks.training_log import TrainingLog
from src.datamodules.base import TokenDataModule
from src.models.lightning_module import LanguageModel


class Validation(L.Callback):
    """Notes `val/loss`, the mean over every validation token; the same tokens for every run and world size.

    Args:
        record: takes the row.
        every_steps: optimizer steps between validations.
        log: has the pause taken out of its speed.
        checkpoints: is told the loss, to keep the best.
        guard: lets only sound weights through.
    """

    def __init__(
        self,
        record: RunRecord,
        *,
        every_steps: int,
        log: TrainingLog,
        checkpoints: Checkpoints,
        guard: Guard,
    ) -> None:
        self.record = record
        self.every_steps = every_steps
        self.train_log = log
        self.checkpoints = checkpoints
        self.guard = guard

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        step = trainer.global_step
        if step % self.every_steps and step != trainer.max_steps:
            return
        self.guard.check_weights(step, pl_module)
        began = time.monotonic()
        loss = validation_loss(trainer, pl_module, between_batches=lambda: None)
        self.train_log.pause(time.monotonic() - began)
        self.record.note(step, {"tokens": step * self.train_log.tokens_per_step, "val/loss": loss})
        self.checkpoints.note_validation(trainer, loss)


@torch.no_grad()
def validation_loss(
    trainer: L.Trainer, pl_module: L.LightningModule, *, between_batches: Callable[[], None]
) -> float:
    """Mean loss in nats over all validation tokens, shared out over the ranks, the same on each."""
    assert isinstance(pl_module, LanguageModel)  # tasks/train.py builds nothing else
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by fit; Lightning does not declare it
    assert isinstance(data, TokenDataModule)  # likewise
    sums = torch.zeros(2, dtype=torch.float64)
    pl_module.eval()
    with trainer.precision_plugin.forward_context():
        for tokens in data.val_dataloader():
            tokens_BT = tokens.to(pl_module.device).long()
            losses_BT = pl_module.gpt.token_losses(tokens_BT[:, :-1], tokens_BT[:, 1:])
            sums += torch.stack((losses_BT.double().sum().cpu(), torch.tensor(losses_BT.numel())))
            between_batches()
    pl_module.train()
    if trainer.world_size > 1:
        shared = sums.to(pl_module.device)
        distributed.all_reduce(shared)
        sums = shared.cpu()
    return float(sums[0] / sums[1])
