"""LayerScale: one small learned gate per channel on every branch.

    x <- x + gate[k] * F_k(N_k(x))    elementwise

Source: Touvron et al., "Going deeper with Image Transformers" (CaiT, arXiv 2103.17239), section 2.
At init (small gates): close to the identity; not vanilla.
"""

import torch
from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.families.single_stream import SingleStream


class LayerScale(SingleStream):
    """Branches with a gate per channel; D parameters per site, lr x 1, no weight decay.

    Args:
        gate_init: initial gate; None selects the source's by depth: 0.1 up to 18 layers, 1e-5 up to 24, 1e-6
            for more.
    """

    init_equivalent = "near identity"

    def __init__(self, spec: StreamSpec, *, gate_init: float | None) -> None:
        super().__init__()
        by_depth = 0.1 if spec.n_layer <= 18 else 1e-5 if spec.n_layer <= 24 else 1e-6
        value = by_depth if gate_init is None else gate_init
        self.gate_SD = nn.Parameter(torch.full((spec.n_site, spec.n_embd), value))

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return torch.addcmul(state, self.gate_SD[site.index], y_BTD)
