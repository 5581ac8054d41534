"""Base class of norms: float32 statistics, a weight, and a bias if the model has biases.

    y = n(x) * weight + bias        n: normalization without scale and shift, defined by the subclass

A subclass whose normalization torch fuses with weight and bias overrides `forward` instead.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.norm.base import NormSpec
from src.source import Source


class AffineNorm(nn.Module):
    """Norm with weight 1 and bias 0 at init; width (or 2 * width) parameters."""

    #: Publication and code of the method, and how this form differs from it.
    source: ClassVar[Source]

    def __init__(self, spec: NormSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(spec.width))
        self.bias = nn.Parameter(torch.zeros(spec.width)) if spec.bias else None

    def normalize(self, x: Tensor) -> Tensor:
        """Return n(x), [..., width] -> [..., width], in float32 or wider."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [..., width] -> [..., width] in the dtype of `x`."""
        y = self.normalize(widen(x)) * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class StatisticsNorm(AffineNorm):
    """Affine norm that divides by a statistic of its input.

    Args:
        eps: positive, added to the mean square, or to the variance (1e-5 in GPT-2 and in the benchmark).
    """

    def __init__(self, spec: NormSpec, *, eps: PositiveFloat) -> None:
        super().__init__(spec)
        if eps <= 0:
            raise ValueError(f"norm.eps must be > 0, got {eps}; the benchmark uses 1e-5")
        self.eps = eps


def widen(x: Tensor) -> Tensor:
    """Return `x` in float32, or in float64 if it has that dtype."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
