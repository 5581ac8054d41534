"""Warm-up, stable, decay (WSD): the peak rate until the last `decay_steps` of the run, then a decay to the floor.

    lr(s) = peak                                           for s <= start
    lr(s) = floor + (peak - floor) * f(p)                  from there on,   p = (s - start) / (last - start)
    f(p) = 1 - p  (linear)   or   1 - sqrt(p)  (1-sqrt),   start = last - decay_steps

with last = max_steps - 1, so the last step runs at exactly `floor`; decay_steps is a key, or decay_share * max_steps
rounded. No rate before `start` depends on max_steps, so several decays can branch from one stable phase (`branch_from`).

Source: Hu et al. 2024, arXiv 2404.06395 (the stable phase); Hägele et al. 2024, arXiv 2405.18392 (20 % of the run and
the 1-sqrt shape). They decay to zero: set `optimizer.min_lr=0` for theirs.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from src.bounds import PositiveInt
from src.models.optim.schedule import Schedule

SHAPES = ("linear", "1-sqrt")


@dataclass(frozen=True)
class WSD(Schedule):
    """Constant rate, then a decay to `floor` at the last step.

    Args:
        decay_share: steps of the decay over `trainer.max_steps`, in (0, 1] (0.2 in the source).
        decay_steps: steps of the decay; None for `decay_share` of the run.
        decay_shape: linear or 1-sqrt (1-sqrt in the source).

    Raises:
        ValueError: a key is out of its bounds, or the decay begins before the warm-up ends.
    """

    _: KW_ONLY
    decay_share: float
    decay_steps: PositiveInt | None
    decay_shape: str
    added_keys: ClassVar[dict[str, object]] = {"decay_steps": None}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay_share <= 1:
            raise ValueError(
                f"schedule.decay_share must be in (0, 1], got {self.decay_share}; schedule=constant never decays"
            )
        if self.decay_shape not in SHAPES:
            raise ValueError(f"schedule.decay_shape must be one of {', '.join(SHAPES)}, got {self.decay_shape}")
        if self.warmup_steps + self.n_decay > self.max_steps:
            key = "decay_share" if self.decay_steps is None else "decay_steps"
            raise ValueError(
                f"schedule.{key}={getattr(self, key)} of trainer.max_steps={self.max_steps} must leave room for "
                f"optimizer.warmup_steps={self.warmup_steps}; lower one of them"
            )

    @property
    def n_decay(self) -> int:
        """Number of steps below the peak rate at the end of the run, at least 1."""
        return max(1, round(self.decay_share * self.max_steps)) if self.decay_steps is None else self.decay_steps

    def after_warmup(self, step: int) -> float:
        progress = self.progress(step, self.max_steps - 1 - self.n_decay)
        shape = 1.0 - (math.sqrt(progress) if self.decay_shape == "1-sqrt" else progress)
        return shape * self.peak + (1.0 - shape) * self.floor
