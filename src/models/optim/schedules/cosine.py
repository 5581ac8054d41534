"""Cosine decay from the peak to the floor over all steps after the warm-up.

    lr(s) = floor + (peak - floor) * (1 + cos(pi * p)) / 2,   p = (s - warmup_steps) / (max_steps - 1 - warmup_steps)

The last step runs at exactly `floor`. Source: Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5, without restarts.
"""

import math
from dataclasses import dataclass

from src.models.optim.schedule import Schedule


@dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine decay to `floor` at the last step."""

    def after_warmup(self, step: int) -> float:
        progress = self.progress(step, self.warmup_steps)
        return self.floor + (self.peak - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
