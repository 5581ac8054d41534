"""Constant rate after the warm-up: lr(s) = peak; `optimizer.min_lr` has no effect."""

from dataclasses import dataclass

from src.models.optim.schedule import Schedule


@dataclass(frozen=True)
class Constant(Schedule):
    """Peak at every step after the warm-up."""

    def after_warmup(self, step: int) -> float:
        return self.peak
