"""RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight.

Source: Zhang, Sennrich, "Root Mean Square Layer Normalization" (arXiv 1910.07467), equation 4; the
benchmark's `rmsnorm` uses eps = 1e-5 and float32 statistics.
"""

from dataclasses import replace

from torch import Tensor
from torch.nn import functional as F

from src.bounds import PositiveFloat
from src.norm.affine import StatisticsNorm, widen
from src.norm.base import NormSpec
from src.source import Source


class RMSNorm(StatisticsNorm):
    """PyTorch's RMS norm with float32 statistics, never a bias; width parameters, keys of `StatisticsNorm`."""

    source = Source("arXiv 1910.07467, equation 4")

    def __init__(self, spec: NormSpec, *, eps: PositiveFloat) -> None:
        super().__init__(replace(spec, bias=False), eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [..., width] -> [..., width] in the dtype of `x`."""
        return F.rms_norm(widen(x), self.weight.shape, self.weight, self.eps).to(x.dtype)
