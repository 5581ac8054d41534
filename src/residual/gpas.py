"""GPAS: scales the stream down after every layer, but not its gradient.

    x <- x + y                           after every sublayer
    x <- x - SiLU(gate[l]) * sg(x)       after every layer;  sg stops the gradient

Source: Chen et al., "GPAS" (arXiv 2506.22049), section 3; dandingsky/GPAS (one gate per layer, after both sums).
At init (gate 0): vanilla.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.residual.base import Site, StreamSpec
from src.residual.families.single_stream import SingleStream


class GPAS(SingleStream):
    """Stream with one gate per layer; n_layer parameters, lr x 1, no weight decay.

    By design the gradient differs from a finite difference.

    Args:
        gate_init: initial gate (0 in the source).
    """

    init_equivalent = "vanilla"

    def __init__(self, spec: StreamSpec, *, gate_init: float) -> None:
        super().__init__()
        self.gate_L = nn.Parameter(torch.full((spec.n_block,), gate_init))

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        x_BTD = state + y_BTD
        if site.closes_block:
            x_BTD = torch.addcmul(x_BTD, F.silu(self.gate_L[site.block]), x_BTD.detach(), value=-1)
        return x_BTD
