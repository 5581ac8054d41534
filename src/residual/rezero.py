"""ReZero: every branch behind a scalar gate that starts closed.

    x <- x + gate[k] * F_k(N_k(x))

ReZero proper has no norm; here the branch keeps its input norm, as in SkipInit.

Source: Bachlechner et al., "ReZero is All You Need" (arXiv 2003.04887), section 3; De and Smith, SkipInit
(arXiv 2002.10444).
At init (gate 0): the identity, so that only the gates get a gradient other than 0; not vanilla.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from src.residual.base import ParamGroup, Site, StreamSpec
from src.residual.families.single_stream import OneStream


class ReZero(OneStream):
    """One gate a site: S parameters, no weight decay.

    Args:
        spec: the trunk; only the number of sites is used.
        gate_init: initial gate (0 in the source).
        lr_scale: learning rate over the schedule's (0.1 to 1; the gates' first gradients are large).
    """

    init_equivalent = "identity"

    def __init__(self, spec: StreamSpec, *, gate_init: float, lr_scale: float) -> None:
        super().__init__()
        self.lr_scale = lr_scale
        self.gate_S = nn.Parameter(torch.full((spec.n_site,), gate_init))

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.gate_S,), self.lr_scale)

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return torch.addcmul(state, self.gate_S[site.index], y_BTD)
