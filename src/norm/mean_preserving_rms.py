"""Mean-preserving RMSNorm: the centred input is scaled, and the mean put back as it was.

    c = x - mean x;   y = (c / sqrt(mean(c^2) + eps) + mean x) * weight + bias

Source: a submission to MLS-Bench llm-pretrain-normalization.
At init: LayerNorm plus the mean of its input.
"""

from torch import Tensor
from torch.nn import functional as F

from src.norm.affine import AffineNorm


class MeanPreservingRMS(AffineNorm):
    """Adds width parameters (2 * width where the model has biases); the keys are `AffineNorm`'s."""

    def normalized(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) + x.mean(-1, keepdim=True)
