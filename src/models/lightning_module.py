"""LightningModule of a GPT: one batch is one optimizer step.

Optimization is manual: a batch holds every micro-batch of an optimizer step, [A, M, T + 1], so Lightning's batch
index equals the optimizer step for any number of ranks, and a run resumes at exactly the step it saved.

Shape letters: A accumulation (micro-steps), M micro-batch size, B validation batch size, T block_size.
"""

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, TypedDict, cast

import lightning as L
import torch
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, distributed, nn

from src.kernels.autocast import suspend_autocast
from src.models.documents import number_documents
from src.models.gpt import GPT
from src.models.optim.base import OptimizerConfig, apply_gradients, build_optimizer
from src.models.optim.schedule import Schedule, ScheduledLR
from src.models.repeated_visits import start_repeated_visits
from src.models.sharding import is_sharded
from src.models.training_pass import training_pass


class StepOutput(TypedDict):
    """Output of one optimizer step; tensors are 0-dim and stay on the device."""

    loss: Tensor
    grad_norm: Tensor
    lr: float


class LanguageModel(L.LightningModule):
    """GPT with its optimizer and its learning-rate schedule.

    Logs `train/loss` at every step and `val/loss` at every validation, for callbacks that monitor a metric.

    Args:
        gpt: the model.
        optimizer: the optimizer's settings.
        schedule: the learning rate by step.
        compile_trunk: run training through `torch.compile`; evaluation stays eager because its shapes vary.
        checkpoint_activations: recompute sublayers in the backward.
        seed: dropout of a step depends on (seed, step, rank) only.
        val_sets: prefix of the metrics of each validation loader, in order.
        document_mark: id that begins each document; attention of training and validation then stays within documents.
    """

    def __init__(
        self,
        gpt: GPT,
        optimizer: OptimizerConfig,
        schedule: Schedule,
        *,
        compile_trunk: bool,
        seed: int,
        checkpoint_activations: bool = False,
        val_sets: Iterable[str] = ("val",),
        document_mark: int | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.gpt = gpt
        gpt.checkpoints_activations = checkpoint_activations
        self.optimizer_config = optimizer
        self.schedule = schedule
        self.seed = seed
        self._train_hidden = training_pass(gpt, compiled=compile_trunk, document_mark=document_mark)
        self.document_mark = document_mark
        self._params: list[nn.Parameter] = []  # of the optimizer: a strategy may replace the module's
        self._compiled, self._warm = compile_trunk, False
        self.val_sets = tuple(val_sets)
        self._val_sums, self._val_batches = torch.zeros(len(self.val_sets), 2), 0

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build one optimizer for all parameters, and its scheduler, which `training_step` steps."""
        optimizer = build_optimizer(self.gpt, self.optimizer_config)
        self._params = list(self.gpt.parameters())
        return {"optimizer": optimizer, "lr_scheduler": ScheduledLR(optimizer, self.schedule)}

    def on_train_start(self) -> None:
        """Set the learning rate of the first step, of a resumed run too."""
        self._follow_learning_rate(self.global_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Allow a run saved at its last step to continue when `max_steps` has grown since."""
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def follow_schedule(self, step: int) -> None:
        """Set the strategy's schedule-driven buffers for optimizer step `step` (0-based)."""
        self.gpt.follow(step, self.schedule.max_steps)

    # ---- training

    def training_step(self, batch_AMT: Tensor, batch_idx: int) -> StepOutput:
        """Run one optimizer step on token ids [A, M, T + 1]."""
        step = self.global_step
        counter = cast(Any, self.optimizers())  # Lightning's wrapper of the only optimizer: it counts the steps
        optimizer: torch.optim.Optimizer = counter.optimizer

        # 1. Set everything that depends on the step: schedule-driven buffers, repeated visits, dropout's seed.
        self.follow_schedule(step)
        self._begin_visits(step, optimizer, batch_AMT)
        if self.gpt.config.dropout:
            torch.manual_seed(hash((self.seed, step, self.global_rank)) & 0x7FFFFFFF)

        # 2. Accumulate gradients over the micro-batches; average the loss over the ranks.
        loss = self._accumulate(batch_AMT)
        if self.trainer.world_size > 1:
            distributed.all_reduce(loss)
            loss /= self.trainer.world_size

        # 3. Clip the gradients, step, and clear the gradients.
        norm = apply_gradients(counter, self._params, self.optimizer_config.grad_clip, loss)

        # 4. Set the learning rate of the next step: monitors read it when that step starts.
        self._follow_learning_rate(step + 1)

        # 5. Log the loss without reading it: prog_bar=True would copy it to the host at every step.
        # Loggers get it from RowWriter, in one row with the step's other values.
        self.log("train/loss", loss, on_step=True, on_epoch=False, logger=False)
        return {"loss": loss, "grad_norm": norm, "lr": self.schedule.lr(step)}

    def _follow_learning_rate(self, step: int) -> None:
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, ScheduledLR)  # the only one
        scheduler.follow(step)

    def _begin_visits(self, step: int, optimizer: torch.optim.Optimizer, batch_AMT: Tensor) -> None:
        """Copy parameters at the step where repeated visits begin; compile that phase in a session's first step."""
        recurrence = self.gpt.recurrence
        if not recurrence.delayed:
            return
        start = recurrence.start_step(self.schedule.max_steps)
        if self._compiled and not self._warm and step < start:
            self.gpt.recurs = True
            tokens_MT = batch_AMT[0]
            loss = self._micro_loss(tokens_MT[:, :-1].long(), tokens_MT[:, 1:].long())
            with suspend_autocast(loss):
                torch.autograd.grad(loss, self._params)  # leaves .grad alone, so DDP exchanges nothing
            self.gpt.recurs = False
        self._warm = True
        if step == start:
            start_repeated_visits(optimizer, self.gpt.copied_params())

    def _accumulate(self, batch_AMT: Tensor) -> Tensor:
        """Backpropagate through all micro-batches; return this rank's mean loss, detached."""
        n_micro = len(batch_AMT)
        strategy = self.trainer.strategy
        total = torch.zeros((), device=self.device)
        for i, tokens_MT in enumerate(batch_AMT):
            idx, targets = tokens_MT[:, :-1].long(), tokens_MT[:, 1:].long()
            # DDP exchanges gradients in the last micro-step only.
            if isinstance(strategy, ParallelStrategy) and i < n_micro - 1:
                sync: AbstractContextManager[None] = strategy.block_backward_sync()
            else:
                sync = contextlib.nullcontext()
            with sync:
                loss = self._micro_loss(idx, targets) / n_micro
                # Lightning's autocast is still on here; the backward of a float32 product must not run in bfloat16.
                with suspend_autocast(loss):
                    self.manual_backward(loss)
            total += loss.detach()
        return total

    def _micro_loss(self, idx_MT: Tensor, targets_MT: Tensor) -> Tensor:
        return self.gpt.head_loss(self._train_hidden(idx_MT), targets_MT)

    # ---- validation

    def on_validation_epoch_start(self) -> None:
        """Clear the sums of every set, [number of sets, 2]: losses and tokens."""
        self._val_sums = torch.zeros(len(self.val_sets), 2, dtype=torch.float64, device=self.device)
        self._val_batches = 0

    def validation_step(self, batch_BT: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add the losses of token ids [B, T + 1] to this rank's float64 sum, without reading it."""
        tokens_BT = batch_BT.long()
        idx_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        document_BT = number_documents(idx_BT, self.document_mark)
        losses_BT = self.gpt.token_losses(idx_BT, targets_BT, document_BT=document_BT)
        self._val_sums[dataloader_idx, 0] += losses_BT.double().sum()
        self._val_sums[dataloader_idx, 1] += losses_BT.numel()
        self._val_batches += 1

    def on_validation_epoch_end(self) -> None:
        """Log `<set>/loss`: nats per token, the mean over every token of the set of every rank (no mean of means)."""
        if is_sharded(self.gpt):
            self._join_longer_ranks()
        if self.trainer.world_size > 1:
            distributed.all_reduce(self._val_sums)
        for name, (total, n_tokens) in zip(self.val_sets, self._val_sums, strict=True):
            # Every rank holds the same value; "max" over them is exact, where "mean" would round.
            self.log(f"{name}/loss", total / n_tokens, logger=False, sync_dist=True, reduce_fx="max")

    def _join_longer_ranks(self) -> None:
        """Take part in the forwards of ranks with more validation batches; rank 0 has the most of every set."""
        data = cast(Any, self.trainer).datamodule
        n_rank, size = self.trainer.world_size, data.micro_batch_size
        most = sum(len(range(0, len(windows[::n_rank]), size)) for windows in data.validation_sets().values())
        idx_BT = torch.zeros(1, self.gpt.config.block_size, dtype=torch.long, device=self.device)
        for _ in range(most - self._val_batches):
            self.gpt.token_losses(idx_BT, idx_BT)
