"""Derf: an element-wise error function with a learned slope and shift instead of a normalization; no statistics.

    y = erf(alpha * x + shift) * weight + bias        alpha, shift: one number each per norm

Source: Chen et al., "Stronger Normalization-Free Transformers" (arXiv 2512.10938); zlab-princeton/Derf, "language
model", a patch of nanoGPT, which also scales the embedding (`embedding=scaled`).
At init: no norm; x keeps its size where it is small, and saturates at 1.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.norm.affine import AffineNorm
from src.norm.base import NormSpec
from src.source import Source


class Derf(AffineNorm):
    """Element-wise error function, always with a bias; 2 * width + 2 parameters.

    Args:
        alpha_init: initial slope (1 in the source's GPT-2, 0.5 in its other models).
        shift_init: initial shift (0 in the source).
    """

    source = Source(
        "arXiv 2512.10938",
        "zlab-princeton/Derf",
        "8dd9ea3cc703",
        deviations=(
            "All norms start with the same alpha; the source has a value for norms before attention, one for the "
            "others and one for the final norm, all 1 by default.",
        ),
    )

    def __init__(self, spec: NormSpec, *, alpha_init: PositiveFloat, shift_init: float) -> None:
        super().__init__(replace(spec, bias=True))
        if alpha_init <= 0:
            raise ValueError(f"norm.alpha_init must be > 0, got {alpha_init}; the source uses 1")
        self.alpha = nn.Parameter(torch.full((1,), float(alpha_init)))
        self.shift = nn.Parameter(torch.full((1,), float(shift_init)))

    def normalize(self, x: Tensor) -> Tensor:
        return torch.erf(self.alpha * x + self.shift)
