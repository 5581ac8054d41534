"""Partial RMSNorm, mean preserved: uses the root mean square of the first channels only.

    c = x - mean x;   y = (c / sqrt(mean(c[:n]^2) + eps) + mean x) * weight + bias      n = fraction * width

Source: a submission to MLS-Bench llm-pretrain-normalization; Zhang, Sennrich (arXiv 1910.07467), section 4, for
the partial root mean square.
At init with fraction 1: `mean_preserving_rms`.
"""

from torch import Tensor

from src.bounds import PositiveFloat
from src.norm.affine import StatisticsNorm
from src.norm.base import NormSpec
from src.source import Source


class PartialRMS(StatisticsNorm):
    """Mean-preserving norm by a partial RMS; width parameters (2 * width with biases).

    Args:
        eps: added to the mean square (1e-5 in the benchmark).
        fraction: share of channels in the root mean square, in (0, 1] (0.25 in the source).
    """

    source = Source("MLS-Bench llm-pretrain-normalization, a submission")

    def __init__(self, spec: NormSpec, *, eps: PositiveFloat, fraction: float) -> None:
        super().__init__(spec, eps=eps)
        if not 0 < fraction <= 1:
            raise ValueError(f"norm.fraction must be in (0, 1], got {fraction}; the source uses 0.25")
        self.n_channels = max(1, round(fraction * spec.width))

    def normalize(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        centered = x - mean
        square = centered[..., : self.n_channels].square().mean(-1, keepdim=True)
        return centered * (square + self.eps).rsqrt() + mean
