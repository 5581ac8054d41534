"""ReZero: one scalar gate per layer on its branches, zero at init.

    x <- x + gate[l] * F_k(N_k(x))    both sublayers of layer l

A branch strategy: it composes with the stream of any other strategy.

Source: Bachlechner et al., "ReZero is All You Need" (arXiv 2003.04887), section 3; majumderb/rezero.
At init (gate 0): the identity, so only the gates have a nonzero gradient in the first step; not vanilla.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from src.bounds import NonNegativeFloat
from src.residual.base import ParamGroup, Site, StreamSpec
from src.residual.families.branch import WeightedBranches
from src.source import Source


class ReZero(WeightedBranches):
    """Gated branches; one parameter per visit to a layer, no weight decay.

    Args:
        gate_init: initial gate (0 in the source).
        lr_scale: factor on the schedule's learning rate (1 in the source).
    """

    source = Source(
        "arXiv 2003.04887, section 3",
        "majumderb/rezero",
        "e2c94a825c55",
        deviations=(
            "The branches and the end of the stream keep the trunk's norms, which the source leaves out: GPT-2's "
            "embedding has a deviation of 0.02, and without a norm the branches and the gates' gradients nearly vanish.",
        ),
        changed_in="0.3.0",
    )
    init_equivalent = "identity"

    def __init__(self, spec: StreamSpec, *, gate_init: float, lr_scale: NonNegativeFloat) -> None:
        super().__init__()
        self.lr_scale = lr_scale
        self.gate_L = nn.Parameter(torch.full((spec.n_block,), gate_init))

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.gate_L,), self.lr_scale)

    def weight(self, site: Site) -> Tensor:
        return self.gate_L[site.block]
