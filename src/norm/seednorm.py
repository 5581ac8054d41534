"""SeeDNorm: RMSNorm whose gain depends on the input through one number per position.

    y = (tanh(x . beta) * alpha + weight) * x / sqrt(mean(x^2) + eps)

Source: Cai et al., "SeeDNorm: Self-Rescaled Dynamic Normalization" (arXiv 2510.22777); swiss-ai/Megatron-LM,
megatron/core/transformer/torch_norm.py.
At init (beta 0): RMSNorm.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bounds import PositiveFloat
from src.norm.affine import StatisticsNorm, widen
from src.norm.base import NormSpec
from src.source import Source


class SeeDNorm(StatisticsNorm):
    """RMSNorm with a dynamic gain, never a bias; 3 * width parameters, weight decay on alpha and beta.

    Args:
        eps: added to the mean square.
        alpha_init: initial scale of the dynamic gain (1 in the source).
    """

    source = Source(
        "arXiv 2510.22777",
        "swiss-ai/Megatron-LM",
        "5fbc12419176",
        deviations=(
            "In the norms of a residual strategy, alpha and beta follow the strategy's weight decay, which is mostly 0.",
        ),
    )
    decayed: ClassVar[tuple[str, ...]] = ("alpha", "beta")
    width_readers = ("beta",)

    def __init__(self, spec: NormSpec, *, eps: PositiveFloat, alpha_init: float) -> None:
        super().__init__(replace(spec, bias=False), eps=eps)
        self.alpha = nn.Parameter(torch.full((spec.width,), float(alpha_init)))
        self.beta = nn.Parameter(torch.zeros(spec.width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [..., width] -> [..., width] in the dtype of `x`."""
        wide = widen(x)
        seed = torch.tanh((wide * self.beta).sum(-1, keepdim=True))
        normed = F.rms_norm(wide, self.weight.shape, eps=self.eps)
        return (normed * torch.addcmul(self.weight, seed, self.alpha)).to(x.dtype)
