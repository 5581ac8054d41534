"""ProRes: branch weights grow from 0 to 1 over a warm-up, shallow layers first.

    x <- x + alpha[l](t) * F_k(N_k(x))    both sublayers of layer l

t is the optimizer step; alpha is not learned (`warmup_schedules`) and applies in evaluation too.

Source: dandingsky/ProRes (arXiv 2603.05369).
At init (t = 0, alpha 0 with the default schedule): the identity, so sublayers have zero gradients in the first
step; vanilla after the warm-up.
"""

import torch
from torch import Tensor

from src.residual.base import Site
from src.residual.families.single_stream import SingleStream
from src.residual.families.warmup_schedules import WarmupStrategy


class ProRes(WarmupStrategy[Tensor], SingleStream):
    """Scheduled branch weights; no parameters.

    Args:
        schedule: key of `warmup_schedules.SCHEDULES` (linear in the source).
        warmup_fraction: share of the run until every weight is 1 (24,000 of 100,000 steps in the source).
        warmup_steps: the same in optimizer steps; exactly one of the two must be None.
    """

    init_equivalent = "identity"

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return torch.addcmul(state, self.alpha_L[site.block], y_BTD)
