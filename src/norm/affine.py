"""Base class of norms with a formula of their own: float32 statistics, a weight, and a bias if the model has biases.

y = n(x) * weight + bias        n: normalization without scale and shift, defined by the subclass
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.norm.base import NormSpec


class AffineNorm(nn.Module, ABC):
    """Norm with weight 1 and bias 0 at init; width (or 2 * width) parameters.

    Args:
        eps: added to the mean square.

    Raises:
        ValueError: `eps` <= 0.
    """

    def __init__(self, spec: NormSpec, *, eps: PositiveFloat) -> None:
        super().__init__()
        if eps <= 0:
            raise ValueError(f"norm.eps must be > 0, got {eps}; the benchmark uses 1e-5")
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(spec.width))
        self.bias = nn.Parameter(torch.zeros(spec.width)) if spec.bias else None

    @abstractmethod
    def normalize(self, x: Tensor) -> Tensor:
        """Return n(x), [..., width] -> [..., width], in float32 or wider."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [..., width] -> [..., width] in the dtype of `x`."""
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        y = self.normalize(wide) * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)
