"""LAuReL-RW: learned weights for branch and stream in every sum.

    x <- a_k F_k(N_k(x)) + b_k x,   (a_k, b_k) = 2 softmax(w_k)

The source requires bounded weights and does not fix the map; this one gives (1, 1) at w = 0.

Source: Menghani et al., "LAuReL" (arXiv 2411.07501), section 2.1, equation 2;
wdlctc/hyper-connection-factory, hcfactory/connections/laurel.py (also the map).
At init (w = 0): vanilla.
"""

import torch
from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.families.single_stream import SingleStream
from src.source import Source


class LaurelRW(SingleStream):
    """Weighted sums; 2 parameters per site, lr x 1, no weight decay."""

    source = Source("arXiv 2411.07501, equation 2", "wdlctc/hyper-connection-factory", "412aeba8be65")
    init_equivalent = "vanilla"

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__()
        self.w_S2 = nn.Parameter(torch.zeros(spec.n_site, 2))

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        a, b = 2 * self.w_S2[site.index].softmax(0)
        return torch.addcmul(b * state, a, y_BTD)
