"""Base class of norms: float32 statistics, a weight, and a bias if the model has biases.

y = n(x) * weight + bias        n: normalization without scale and shift, defined by the subclass

A subclass whose normalization torch fuses with weight and bias overrides `forward` instead.
"""

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.norm.base import NormSpec


class AffineNorm(nn.Module):
    """Norm with weight 1 and bias 0 at init; width (or 2 * width) parameters.

    Args:
        eps: positive, added to the mean square, or to the variance (1e-5 in GPT-2 and in the benchmark).
    """

    def __init__(self, spec: NormSpec, *, eps: PositiveFloat) -> None:
        super().__init__()
        if eps <= 0:
            raise ValueError(f"norm.eps must be > 0, got {eps}; the benchmark uses 1e-5")
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(spec.width))
        self.bias = nn.Parameter(torch.zeros(spec.width)) if spec.bias else None

    def normalize(self, x: Tensor) -> Tensor:
        """Return n(x), [..., width] -> [..., width], in float32 or wider."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [..., width] -> [..., width] in the dtype of `x`."""
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        y = self.normalize(wide) * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)
