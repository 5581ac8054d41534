"""LAuReL-RW+LR: weighted sums with a low-rank map of the stream; the variant of the source's results.

    x <- a_k F_k(N_k(x)) + b_k (x + x A_k B_k),   (a_k, b_k) = 2 softmax(w_k)

Source: Menghani et al., "LAuReL" (arXiv 2411.07501), section 2.4, equation 5, table 2;
wdlctc/hyper-connection-factory, hcfactory/connections/laurel.py (default variant).
At init (w = 0, B = 0): vanilla.
"""

import torch
from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.families.low_rank import LowRankStream
from src.source import Source


class LaurelRWLR(LowRankStream):
    """Weighted sums with a low-rank map; 2 * rank * D + 2 parameters per site, lr x 1, no weight decay.

    Args:
        rank: rank of the map (4 in the source's 1B model).
    """

    source = Source("arXiv 2411.07501, equation 5", "wdlctc/hyper-connection-factory", "412aeba8be65")
    init_equivalent = "vanilla"

    def __init__(self, spec: StreamSpec, *, rank: int) -> None:
        super().__init__(spec, rank=rank)
        self.w_S2 = nn.Parameter(torch.zeros(spec.n_site, 2))

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        a, b = 2 * self.w_S2[site.index].softmax(0)
        return torch.addcmul(b * self.augment(state, site), a, y_BTD)
