"""ReZero / SkipInit: a learned scalar on every branch, zero at the start.

    x <- x + gate[k] * F_k(N_k(x))

Source: Bachlechner et al., "ReZero is All You Need" (arXiv 2003.04887), section 3; with the branch's norm
kept, as in De, Smith, "Batch Normalization Biases Residual Blocks" (SkipInit, arXiv 2002.10444).
At init (gate 0): the identity map, not vanilla; no sublayer has a gradient in the first step.
"""

import torch
from torch import Tensor, nn

from src.residual.base import ResidualStrategy, Site, StreamSpec


class ReZero(ResidualStrategy[Tensor]):
    """One scalar a site, lr x 1, no weight decay.

    Args:
        spec: the trunk.
        gate_init: initial weight of every branch (0.0 in the source).
    """

    def __init__(self, spec: StreamSpec, *, gate_init: float) -> None:
        super().__init__()
        self.gate_S = nn.Parameter(torch.full((spec.n_site,), gate_init))

    def begin(self, x0_BTD: Tensor) -> Tensor:
        return x0_BTD

    def read(self, state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        return state, state

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state + self.gate_S[site.index] * y_BTD

    def end(self, state: Tensor) -> Tensor:
        return state
