"""Warm-up, stable, decay (WSD): the peak rate until the last `decay_share` of the run, then a decay to the floor.

    lr(s) = peak                                           for s <= start
    lr(s) = floor + (peak - floor) * f(p)                  from there on,   p = (s - start) / (last - start)
    f(p) = 1 - p  (linear)   or   1 - sqrt(p)  (1-sqrt),   start = last - decay_steps

with last = max_steps - 1 and decay_steps = decay_share * max_steps, rounded, so the last step runs at exactly `floor`.

Source: Hu et al. 2024, arXiv 2404.06395 (the stable phase); Hägele et al. 2024, arXiv 2405.18392 (20 % of the run and
the 1-sqrt shape). They decay to zero: set `optimizer.min_lr=0` for theirs.
"""

import math
from dataclasses import KW_ONLY, dataclass

from src.models.optim.schedule import Schedule

SHAPES = ("linear", "1-sqrt")


@dataclass(frozen=True)
class WSD(Schedule):
    """Constant rate, then a decay to `floor` at the last step.

    Args:
        decay_share: steps of the decay over `trainer.max_steps`, in (0, 1] (0.2 in the source).
        decay_shape: linear or 1-sqrt (1-sqrt in the source).

    Raises:
        ValueError: a key is out of its bounds, or the decay begins before the warm-up ends.
    """

    _: KW_ONLY
    decay_share: float
    decay_shape: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay_share <= 1:
            raise ValueError(
                f"schedule.decay_share must be in (0, 1], got {self.decay_share}; schedule=constant never decays"
            )
        if self.decay_shape not in SHAPES:
            raise ValueError(f"schedule.decay_shape must be one of {', '.join(SHAPES)}, got {self.decay_shape}")
        if self.warmup_steps + self.decay_steps > self.max_steps:
            raise ValueError(
                f"schedule.decay_share={self.decay_share} of trainer.max_steps={self.max_steps} must leave room for "
                f"optimizer.warmup_steps={self.warmup_steps}; lower one of them"
            )

    @property
    def decay_steps(self) -> int:
        """Number of steps below the peak rate at the end of the run, at least 1."""
        return max(1, round(self.decay_share * self.max_steps))

    def after_warmup(self, step: int) -> float:
        progress = self.progress(step, self.max_steps - 1 - self.decay_steps)
        shape = 1.0 - (math.sqrt(progress) if self.decay_shape == "1-sqrt" else progress)
        return shape * self.peak + (1.0 - shape) * self.floor
