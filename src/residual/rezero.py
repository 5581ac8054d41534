"""ReZero: one scalar gate per branch, zero at init.

    x <- x + gate[k] * F_k(N_k(x))

ReZero itself has no norm; here the branch keeps its input norm, as in SkipInit.

Source: Bachlechner et al., "ReZero is All You Need" (arXiv 2003.04887), section 3; De and Smith, SkipInit
(arXiv 2002.10444).
At init (gate 0): the identity, so only the gates have a nonzero gradient in the first step; not vanilla.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from src.bounds import NonNegativeFloat
from src.residual.base import ParamGroup, Site, StreamSpec
from src.residual.families.single_stream import SingleStream


class ReZero(SingleStream):
    """Gated branches; one parameter per site, no weight decay.

    Args:
        gate_init: initial gate (0 in the source).
        lr_scale: factor on the schedule's learning rate (0.1 to 1; the first gradients of gates are large).
    """

    init_equivalent = "identity"

    def __init__(self, spec: StreamSpec, *, gate_init: float, lr_scale: NonNegativeFloat) -> None:
        super().__init__()
        self.lr_scale = lr_scale
        self.gate_S = nn.Parameter(torch.full((spec.n_site,), gate_init))

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.gate_S,), self.lr_scale)

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return torch.addcmul(state, self.gate_S[site.index], y_BTD)
