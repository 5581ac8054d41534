"""GELU MLP: y = W_proj GELU(W_fc x) with 4 * D hidden units.

Source: Hendrycks, Gimpel, "Gaussian Error Linear Units" (arXiv 1606.08415), section 2; GPT-2 (Radford et al. 2019) has
its tanh approximation (model.gelu_approximate=tanh).
"""

from torch import Tensor, nn

from src.models.mlp.base import MLP, MLPSpec
from src.source import Source


class GELU(MLP):
    """GPT-2's MLP; 8 * D^2 parameters, and 5 * D biases if the model has biases."""

    source = Source("arXiv 1606.08415, section 2")

    def __init__(self, spec: MLPSpec) -> None:
        super().__init__(spec, 4 * spec.n_embd)
        self.gelu = nn.GELU(approximate=spec.gelu_approximate)

    def hidden(self, x_BTD: Tensor, visit: int) -> Tensor:
        h_BTF: Tensor = self.gelu(self.project(self.c_fc, x_BTD, visit))
        return h_BTF
