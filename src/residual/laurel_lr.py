"""LAuReL-LR: adds a low-rank map of the stream to every sum.

    x <- F_k(N_k(x)) + x + x A_k B_k

Source: Menghani et al., "LAuReL" (arXiv 2411.07501), section 2.2, equation 3;
wdlctc/hyper-connection-factory, hcfactory/connections/laurel.py.
At init (B = 0): vanilla.
"""

from torch import Tensor

from src.residual.base import Site
from src.residual.families.low_rank import LowRankStream
from src.source import Source


class LaurelLR(LowRankStream):
    """Stream with a low-rank map per site; 2 * rank * D parameters per site, lr x 1, no weight decay.

    Args:
        rank: rank of the map (4 in the source's 1B model, 64 in its 4B model).
    """

    source = Source("arXiv 2411.07501, equation 3", "wdlctc/hyper-connection-factory", "412aeba8be65")
    init_equivalent = "vanilla"

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return self.augment(state, site) + y_BTD
