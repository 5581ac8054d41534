"""Mean-preserving RMSNorm: normalizes the centered input and adds the unscaled mean.

    c = x - mean x;   y = (c / sqrt(mean(c^2) + eps) + mean x) * weight + bias

Source: a submission to MLS-Bench llm-pretrain-normalization.
At init: LayerNorm plus the mean of its input.
"""

from torch import Tensor
from torch.nn import functional as F

from src.norm.affine import StatisticsNorm
from src.source import Source


class MeanPreservingRMS(StatisticsNorm):
    """LayerNorm plus the mean of its input; width parameters (2 * width with biases), keys of `StatisticsNorm`."""

    source = Source("MLS-Bench llm-pretrain-normalization, a submission")

    def normalize(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) + x.mean(-1, keepdim=True)
