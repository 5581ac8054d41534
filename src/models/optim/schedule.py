"""Contract of learning-rate schedules, and the torch scheduler that applies one to an optimizer.

A schedule is a pure function of the optimizer step s = 0 .. max_steps - 1:

    lr(s) = peak * (s + 1) / warmup_steps     for s < warmup_steps
    lr(s) = after_warmup(s)                   from there on

A method is one file in `schedules/` with a subclass that defines `after_warmup`, and one file in `conf/schedule` with
its keys. Peak, floor and warm-up are `optimizer.lr`, `optimizer.min_lr` and `optimizer.warmup_steps` for every
schedule; the length is `trainer.max_steps`. The rate of a parameter group is lr(s) times the group's `lr_scale`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule(ABC):
    """Learning rate by optimizer step.

    Subclasses add the keys of their YAML as keyword-only fields.

    Args:
        peak: the largest rate, reached at the end of the warm-up.
        floor: the rate of the last step, for schedules that decay.
        warmup_steps: steps of linear warm-up.
        max_steps: steps of the whole run.

    Raises:
        ValueError: the warm-up is as long as the run.
    """

    peak: float
    floor: float
    warmup_steps: int
    max_steps: int

    def __post_init__(self) -> None:
        if self.warmup_steps >= max(self.max_steps, 2):
            raise ValueError(
                f"optimizer.warmup_steps must be less than trainer.max_steps={self.max_steps}, "
                f"got {self.warmup_steps}; null means 4 % of the run"
            )

    def lr(self, step: int) -> float:
        """Return the rate of optimizer step `step` (0-based), before any group's scale."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        return self.after_warmup(step)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """Return the rate of a step >= `warmup_steps`."""

    def progress(self, step: int, start: int) -> float:
        """Return how much of the way from step `start` to the last step is done at `step`, in [0, 1]."""
        span = self.max_steps - 1 - start
        if span <= 0:
            return 1.0
        return min(1.0, max(0.0, (step - start) / span))


class ScheduledLR(torch.optim.lr_scheduler.LRScheduler):
    """Torch scheduler whose rates are `schedule.lr(step)` times each group's `lr_scale`.

    Rates follow from the step alone, so a resumed run calls `follow(global_step)` and needs no stored state.
    `step()` counts as in torch, for loops that call it after every optimizer step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        self.schedule = schedule
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of every group at step `last_epoch`."""
        lr = self.schedule.lr(self.last_epoch)
        return [lr * group["lr_scale"] for group in self.optimizer.param_groups]

    def follow(self, step: int) -> None:
        """Set the rates of optimizer step `step` (0-based), before the optimizer takes it."""
        self.last_epoch = step
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """Return the step, from which all else follows."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the rates of a stored step."""
        self.follow(state_dict["last_epoch"])
