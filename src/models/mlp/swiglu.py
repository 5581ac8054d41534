"""SwiGLU MLP: y = W_proj (SiLU(W_gate x) * W_fc x) with about 8/3 * D hidden units, so that it has GELU's parameters.

    F = 8/3 D, rounded down to an integer, then up to a multiple

Source: Shazeer, "GLU Variants Improve Transformer" (arXiv 2002.05202), equation 6; meta-llama/llama3, llama/model.py
(`FeedForward`: w1 is W_gate, w3 is W_fc, w2 is W_proj).
Shape letters: D n_embd, F hidden units.
"""

from torch import Tensor
from torch.nn import functional as F

from src.bounds import PositiveInt
from src.models.mlp.base import MLP, MLPSpec
from src.source import Source


class SwiGLU(MLP):
    """Gated MLP; 3 * D * F parameters, and D + 2 * F biases if the model has biases.

    Args:
        n_hidden: hidden units F; None: 8/3 * D, rounded.
        multiple_of: number of which F is a multiple where it follows from D (256 in the source).
    """

    source = Source(
        "arXiv 2002.05202, equation 6",
        "meta-llama/llama3",
        "a0940f9cf706",
        deviations=("Hidden units are a multiple of 64, not of 256, so that narrow models keep 8/3 of the width.",),
    )

    def __init__(self, spec: MLPSpec, *, n_hidden: PositiveInt | None, multiple_of: PositiveInt) -> None:
        count = -(-(8 * spec.n_embd // 3) // multiple_of) * multiple_of if n_hidden is None else n_hidden
        super().__init__(spec, count)
        self.c_gate = spec.linear(spec.n_embd, count)

    def hidden(self, x_BTD: Tensor, visit: int) -> Tensor:
        return F.silu(self.project(self.c_gate, x_BTD, visit)) * self.project(self.c_fc, x_BTD, visit)
