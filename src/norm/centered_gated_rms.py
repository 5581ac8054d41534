"""Centered RMSNorm with a gate: a learned share of the centered input is added before normalization.

    m = x + gate * (x - mean x);   y = m / sqrt(mean(m^2) + eps) * weight + bias

Source: a submission to MLS-Bench llm-pretrain-normalization.
At init (gate 0.5): neither LayerNorm nor RMSNorm (RMSNorm with gate 0).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bounds import PositiveFloat
from src.norm.affine import StatisticsNorm
from src.norm.base import NormSpec
from src.source import Source


class CenteredGatedRMS(StatisticsNorm):
    """RMSNorm with one gate per channel; 2 * width parameters (3 * width with biases).

    Args:
        eps: added to the mean square (1e-5 in the benchmark).
        gate_init: initial gate of every channel (0.5 in the source).
    """

    source = Source("MLS-Bench llm-pretrain-normalization, a submission")

    def __init__(self, spec: NormSpec, *, eps: PositiveFloat, gate_init: float) -> None:
        super().__init__(spec, eps=eps)
        self.gate = nn.Parameter(torch.full((spec.width,), gate_init))

    def normalize(self, x: Tensor) -> Tensor:
        mixed = torch.addcmul(x, self.gate, x - x.mean(-1, keepdim=True))
        return F.rms_norm(mixed, mixed.shape[-1:], eps=self.eps)
