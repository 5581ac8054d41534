"""Serial-parallel hybrid: the Pre-LN stream with a scaled MLP output.

    x <- x + Attn(N1(x));   x <- x + MLP(N2(x)) / sqrt(2)

Source: a submission to MLS-Bench llm-pretrain-normalization.
At init: not vanilla (the MLP's outputs are scaled).
"""

import torch
from torch import Tensor

from src.residual.base import ResidualStrategy, Site


class SerialParallel(ResidualStrategy[Tensor]):
    """Stream with constant weights; no parameters."""

    def __init__(self, spec: object) -> None:
        super().__init__()

    def begin(self, x0_BTD: Tensor) -> Tensor:
        return x0_BTD

    def read(self, state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        return state, state

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return torch.add(state, y_BTD, alpha=0.5**0.5 if site.kind == "mlp" else 1.0)

    def end(self, state: Tensor) -> Tensor:
        return state
