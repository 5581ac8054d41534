"""LayerNorm: y = (x - mean x) / sqrt(var x + eps) * weight + bias.

Source: Ba, Kiros, Hinton, "Layer Normalization" (arXiv 1607.06450), section 3; GPT-2 uses eps = 1e-5.
"""

from torch import Tensor
from torch.nn import functional as F

from src.norm.affine import StatisticsNorm
from src.source import Source


class LayerNorm(StatisticsNorm):
    """PyTorch's layer norm; width parameters (2 * width with biases), keys of `StatisticsNorm`."""

    source = Source("arXiv 1607.06450, section 3")

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [..., width] -> [..., width]; autocast runs it in float32."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
