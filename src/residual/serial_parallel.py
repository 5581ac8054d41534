"""Serial-parallel hybrid: the Pre-LN stream with a scaled MLP output.

    x <- x + Attn(N1(x));   x <- x + MLP(N2(x)) / sqrt(2)

Source: a submission to MLS-Bench llm-pretrain-normalization.
At init: not vanilla (the MLP's outputs are scaled).
"""

import torch
from torch import Tensor

from src.residual.base import Site
from src.residual.families.single_stream import SingleStream


class SerialParallel(SingleStream):
    """Stream with constant weights; no parameters."""

    def __init__(self, spec: object) -> None:
        super().__init__()

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return torch.add(state, y_BTD, alpha=0.5**0.5 if site.kind == "mlp" else 1.0)
