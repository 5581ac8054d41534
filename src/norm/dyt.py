"""DyT: an element-wise tanh with a learned slope instead of a normalization; no statistics.

    y = tanh(alpha * x) * weight + bias        alpha: one number per norm

Source: Zhu et al., "Transformers without Normalization" (arXiv 2503.10622), section 4; jiachenzhu/DyT,
other_tasks/LLaMA (no bias), whose models also scale the embedding (`embedding=scaled`).
At init: no norm; x keeps its size where it is small, and saturates at 1. A direction that all positions share and that
outgrows 1 / alpha hides the rest of the stream from every later sublayer: it needs a long warm-up.
"""

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.norm.affine import AffineNorm
from src.norm.base import NormSpec
from src.source import Source


class DyT(AffineNorm):
    """Element-wise tanh; width + 1 parameters (2 * width + 1 with biases).

    Args:
        alpha_init: initial slope, best chosen by width (1 up to width 1024 in the source; at width 4096 it has 0.8
            before attention and 0.2 elsewhere).
    """

    source = Source(
        "arXiv 2503.10622, section 4",
        "jiachenzhu/DyT",
        "aab5dde0bc1b",
        deviations=(
            "All norms start with the same alpha; above width 1024 the source gives those before attention a larger "
            "one, which this contract does not tell apart.",
            "No weight decay on alpha and weight, as for every norm here; the source's LLaMA decays all parameters.",
        ),
    )

    def __init__(self, spec: NormSpec, *, alpha_init: PositiveFloat) -> None:
        super().__init__(spec)
        if alpha_init <= 0:
            raise ValueError(f"norm.alpha_init must be > 0, got {alpha_init}; the source uses 1 up to width 1024")
        self.alpha = nn.Parameter(torch.full((1,), float(alpha_init)))

    def normalize(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x)
