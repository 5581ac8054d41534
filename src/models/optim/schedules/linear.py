"""Linear decay from the peak to the floor over all steps after the warm-up.

    lr(s) = (1 - p) * peak + p * floor,   p = (s - warmup_steps) / (max_steps - 1 - warmup_steps)

Source: Bergsma et al. 2025, arXiv 2502.15938, who decay to zero: set `optimizer.min_lr=0` for theirs.
"""

from dataclasses import dataclass

from src.models.optim.schedule import Schedule


@dataclass(frozen=True)
class Linear(Schedule):
    """Linear decay to `floor` at the last step."""

    def after_warmup(self, step: int) -> float:
        progress = self.progress(step, self.warmup_steps)
        return (1.0 - progress) * self.peak + progress * self.floor
