"""What the norms with formulas of their own share: float32 statistics, a weight, and perhaps a bias.

y = n(x) * weight + bias        n: the subclass's normalization, without parameters for scale and shift
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from src.norm.base import NormSpec


class AffineNorm(nn.Module, ABC):
    """Weight 1 and, where the model has biases, bias 0; width (or 2 * width) parameters.

    Args:
        spec: width and bias.
        eps: added to a mean square.
    """

    def __init__(self, spec: NormSpec, *, eps: float) -> None:
        super().__init__()
        if eps <= 0:
            raise ValueError(f"norm.eps must be positive, got {eps}; the benchmark uses 1e-5")
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(spec.width))
        self.bias = nn.Parameter(torch.zeros(spec.width)) if spec.bias else None

    @abstractmethod
    def normalized(self, x: Tensor) -> Tensor:
        """n(x), [..., width] -> [..., width], in at least float32."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width], in the type of `x`."""
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        y = self.normalized(wide) * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)
