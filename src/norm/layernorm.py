"""LayerNorm: y = (x - mean x) / sqrt(var x + eps) * weight + bias.

Source: Ba, Kiros, Hinton, "Layer Normalization" (arXiv 1607.06450), section 3; GPT-2 uses eps = 1e-5.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bounds import PositiveFloat
from src.norm.base import NormSpec


class LayerNorm(nn.Module):
    """PyTorch's layer norm, with a bias if the model has biases; width (or 2 * width) parameters.

    Args:
        eps: added to the variance (1e-5 in GPT-2).

    Raises:
        ValueError: `eps` <= 0.
    """

    def __init__(self, spec: NormSpec, *, eps: PositiveFloat) -> None:
        super().__init__()
        if eps <= 0:
            raise ValueError(f"norm.eps must be > 0, got {eps}; GPT-2 uses 1e-5")
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(spec.width))
        self.bias = nn.Parameter(torch.zeros(spec.width)) if spec.bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [..., width] -> [..., width]; autocast runs it in float32."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
