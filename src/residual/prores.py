"""ProRes: branch weights grow from 0 to 1 over a warm-up, shallow layers first.

    x <- x + alpha[l](t) * F_k(N_k(x))    both sublayers of layer l

t is the optimizer step; alpha is not learned (`warmup_schedules`) and applies in evaluation too. A branch strategy: it
composes with the stream of any other strategy; the source itself has it on Pre-LN, Post-LN, DeepNorm and LNS.

Source: "Progressive Residual Warmup" (arXiv 2603.05369); dandingsky/ProRes.
At init (t = 0, alpha 0 with the default schedule): the identity, so sublayers have zero gradients in the first
step; vanilla after the warm-up.
"""

from torch import Tensor

from src.residual.base import Site
from src.residual.families.branch import BranchState, WeightedBranches
from src.residual.families.warmup_schedules import WarmupStrategy
from src.source import Source


class ProRes(WarmupStrategy[BranchState], WeightedBranches):
    """Scheduled branch weights; no parameters.

    Args:
        schedule: key of `warmup_schedules.SCHEDULES` (linear in the source).
        warmup_fraction: share of the run until every weight is 1 (24,000 of 100,000 steps in the source's 1B runs).
        warmup_steps: the same in optimizer steps; exactly one of the two must be None.
    """

    source = Source("arXiv 2603.05369", "dandingsky/ProRes", "5253e0dea6cf")
    init_equivalent = "identity"

    def weight(self, site: Site) -> Tensor:
        return self.alpha_L[site.block]
