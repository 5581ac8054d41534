"""Squared-ReLU MLP: y = W_proj max(0, W_fc x)^2 with 4 * D hidden units.

Source: So et al., "Primer" (arXiv 2109.08668), section 4; karpathy/nanochat, nanochat/gpt.py.
"""

from torch import Tensor

from src.models.mlp.base import MLP, MLPSpec
from src.source import Source


class ReLU2(MLP):
    """Squared ReLU; 8 * D^2 parameters, and 5 * D biases if the model has biases."""

    source = Source("arXiv 2109.08668, section 4", "karpathy/nanochat", "92d63d4e8bb4")

    def __init__(self, spec: MLPSpec) -> None:
        super().__init__(spec, 4 * spec.n_embd)

    def hidden(self, x_BTD: Tensor, visit: int) -> Tensor:
        return self.project(self.c_fc, x_BTD, visit).relu().square()
