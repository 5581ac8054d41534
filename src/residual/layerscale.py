"""LayerScale: one small learned gate per channel on every branch.

    x <- x + gate[k] * F_k(N_k(x))    elementwise

A branch strategy: it composes with the stream of any other strategy.

Source: Touvron et al., "Going deeper with Image Transformers" (CaiT, arXiv 2103.17239), section 2;
facebookresearch/deit.
At init (small gates): close to the identity; not vanilla.
"""

import torch
from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.families.branch import WeightedBranches
from src.source import Source


class LayerScale(WeightedBranches):
    """Branches with a gate per channel; D parameters per site, lr x 1, no weight decay.

    Args:
        gate_init: initial gate; None selects the paper's by depth: 0.1 up to 18 layers, 1e-5 up to 24, 1e-6
            for more.
    """

    source = Source("arXiv 2103.17239, section 2", "facebookresearch/deit", "7e160fe43f02")
    init_equivalent = "near identity"

    def __init__(self, spec: StreamSpec, *, gate_init: float | None) -> None:
        super().__init__()
        by_depth = 0.1 if spec.n_layer <= 18 else 1e-5 if spec.n_layer <= 24 else 1e-6
        value = by_depth if gate_init is None else gate_init
        self.gate_SD = nn.Parameter(torch.full((spec.n_site, spec.n_embd), value))

    def weight(self, site: Site) -> Tensor:
        return self.gate_SD[site.index]
