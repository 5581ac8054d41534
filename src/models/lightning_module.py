"""The LightningModule: one batch is one optimizer step.

Optimization is manual: a batch holds all micro-batches of a step, [A, M, T + 1], so that Lightning's batch
index is the optimizer step, whatever the number of ranks, and a resumed run stands exactly where it stood.

Shape letters: A accumulation (micro-steps), M micro-batch size, T block_size.
"""

import contextlib
import inspect
from typing import Any, NamedTuple, cast

import lightning as L
import torch
from lightning.pytorch.core.hooks import DataHooks
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from src.models.gpt import GPT
from src.models.optim.adamw import OptimizerConfig, apply_gradients, build_optimizer, set_lr
from src.models.optim.schedule import Schedule
from src.models.repeated_visits import start_repeated_visits
from src.models.training_pass import training_pass

#: What data may do to a batch on its way to the device; no data of ours does.
BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class StepResult(NamedTuple):
    """What one optimizer step reports; tensors are 0-dim and stay on the device."""

    loss: Tensor
    grad_norm: Tensor
    lr: float


class LanguageModel(L.LightningModule):
    """A GPT, its optimizer and its schedule.

    Args:
        gpt: the model.
        optimizer: its settings.
        schedule: the learning rate by step.
        compile_trunk: run training through `torch.compile` (evaluation stays eager: its shapes vary).
        seed: dropout in a step follows from (seed, step, rank) alone.
    """

    automatic_optimization = False  # Lightning's property looks at what is never changed

    def __init__(
        self, gpt: GPT, optimizer: OptimizerConfig, schedule: Schedule, *, compile_trunk: bool, seed: int
    ) -> None:
        super().__init__()
        self.gpt = gpt
        self.optimizer_config = optimizer
        self.schedule = schedule
        self.seed = seed
        self._train_hidden = training_pass(gpt, compiled=compile_trunk)
        self._params = list(gpt.parameters())
        self._compiled, self._warm = compile_trunk, False
        self._hooked = True

    def __setattr__(self, name: str, value: Any) -> None:  # as nn.Module has it
        """As nn.Module's, sooner for words: Lightning notes the name of each hook, 24 times a step."""
        if (value is None or type(value) is str) and name in self.__dict__:  # so no parameter, buffer or module
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One for all parameters; `training_step` sets its rate."""
        return build_optimizer(self.gpt, self.optimizer_config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a run that had reached its last step go on, should `max_steps` have grown since."""
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def follow_schedule(self, step: int) -> None:
        """Fill the strategy's schedule-driven buffers for optimizer step `step` (0-based)."""
        self.gpt.follow(step, self.schedule.max_steps)

    def training_step(self, batch_AMT: Tensor, batch_idx: int) -> dict[str, StepResult]:
        """One optimizer step on token ids [A, M, T + 1]."""
        step = self.global_step
        counted = cast(Any, self.optimizers())  # Lightning's wrapper: it counts the step
        optimizer = counted.optimizer
        self.follow_schedule(step)
        self._begin_visits(step, optimizer, batch_AMT)
        if self.gpt.config.dropout:
            torch.manual_seed(hash((self.seed, step, self.global_rank)) & 0x7FFFFFFF)
        loss = self._accumulate(batch_AMT)
        if self.trainer.world_size > 1:
            distributed.all_reduce(loss)
            loss /= self.trainer.world_size

        lr = self.schedule.lr(step)
        set_lr(optimizer, lr)
        norm = apply_gradients(counted, self._params, self.optimizer_config.grad_clip, loss)
        return {"step": StepResult(loss, norm, lr)}

    # Lightning asks in each step which arguments it takes; `inspect` answers at once where the answer stands here.
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        """See whether the data has hooks for batches: Lightning looks for them in each step, in 90 calls."""
        data = type(getattr(self.trainer, "datamodule", None))
        self._hooked = any(getattr(data, hook, None) is not getattr(DataHooks, hook) for hook in BATCH_HOOKS)

    def _on_before_batch_transfer(self, batch: Tensor, dataloader_idx: int = 0) -> Any:  # as Lightning has it
        """Lightning's own where there is a hook to call."""
        return super()._on_before_batch_transfer(batch, dataloader_idx) if self._hooked else batch

    def _apply_batch_transfer_handler(
        self, batch: Tensor, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:  # as Lightning has it
        """Lightning's own where there is a hook to call; else what it does to a tensor."""
        if self._hooked:
            return super()._apply_batch_transfer_handler(batch, device, dataloader_idx)
        device = device or self.device
        return batch.to(device, non_blocking=device.type == "cuda")

    def _begin_visits(self, step: int, optimizer: Any, batch_AMT: Tensor) -> None:
        """In the first step of a session compile what comes later; where repeated visits begin, copy."""
        recurrence = self.gpt.recurrence
        if not recurrence.delayed:
            return
        start = recurrence.start_step(self.schedule.max_steps)
        if self._compiled and not self._warm and step < start:
            self.gpt.recurs = True
            tokens_MT = batch_AMT[0]
            loss = self._micro_loss(tokens_MT[:, :-1].long(), tokens_MT[:, 1:].long())
            torch.autograd.grad(loss, self._params)  # no .grad, so that no rank waits for another
            self.gpt.recurs = False
        self._warm = True
        if step == start:
            start_repeated_visits(optimizer, self.gpt.copied_params())

    def _accumulate(self, batch_AMT: Tensor) -> Tensor:
        """Backward through all micro-batches; returns this rank's mean loss, detached."""
        n_micro = len(batch_AMT)
        total = torch.zeros((), device=self.device)
        for i, tokens_MT in enumerate(batch_AMT):
            idx, targets = tokens_MT[:, :-1].long(), tokens_MT[:, 1:].long()
            ranks = self.trainer.strategy.model
            if isinstance(ranks, DistributedDataParallel):
                # DDP exchanges gradients in the last micro-step only; manual_backward prepares it for that.
                with contextlib.nullcontext() if i == n_micro - 1 else ranks.no_sync():
                    loss = self._micro_loss(idx, targets) / n_micro
                    self.manual_backward(loss)
            else:
                loss = self._micro_loss(idx, targets) / n_micro
                torch.autograd.backward(loss)  # manual_backward costs 0.1 ms in hooks that are not used
            total += loss.detach()
        return total

    def _micro_loss(self, idx_MT: Tensor, targets_MT: Tensor) -> Tensor:
        return self.gpt.head_loss(self._train_hidden(idx_MT), targets_MT)
