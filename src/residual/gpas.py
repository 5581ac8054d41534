"""GPAS: scales the stream down after every sublayer, but not its gradient.

    x <- x + y;   x <- x - SiLU(gate[l]) * sg(x)       sg stops the gradient

One gate per layer, applied after the attention and again after the MLP: with closed sublayers a layer scales the stream
by (1 - SiLU(gate[l]))^2.

Source: Chen et al., "GPAS" (arXiv 2506.22049), section 3; dandingsky/GPAS (`pre_gpas`).
At init (gate 0): vanilla.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.residual.base import Site, StreamSpec
from src.residual.families.single_stream import SingleStream
from src.source import Source


class GPAS(SingleStream):
    """Stream with one gate per layer; n_layer parameters, lr x 1, no weight decay.

    By design the gradient differs from a finite difference.

    Args:
        gate_init: initial gate (0 in the source).
    """

    source: ClassVar[Source] = Source(
        "arXiv 2506.22049, section 3",
        "dandingsky/GPAS",
        "31980688f4cb",
        deviations=(
            "The gradients of the gates are clipped with all others only; the source's 7B run clips their own norm to "
            "0.01 as well, its Pre-LN runs up to 1B do not.",
        ),
        changed_in="0.3.0",
    )
    init_equivalent = "vanilla"

    def __init__(self, spec: StreamSpec, *, gate_init: float) -> None:
        super().__init__()
        self.gate_L = nn.Parameter(torch.full((spec.n_block,), gate_init))

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        x_BTD = state + y_BTD
        return torch.addcmul(x_BTD, F.silu(self.gate_L[site.block]), x_BTD.detach(), value=-1)
