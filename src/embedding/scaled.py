"""Scaled embedding: x0 = scale * (wte[idx] + wpe[position]), with one learned number; the head is as in `tied`.

It belongs to norms without statistics (`norm=dyt`, `norm=derf`), which do not change the size of their input.

Source: Zhu et al., "Transformers without Normalization" (arXiv 2503.10622), section 5; zlab-princeton/Derf,
"language model", whose GPT-2 also scales the positions.
At init: scale sqrt(D).
Shape letters: B batch, T tokens, D n_embd.
"""

import torch
from torch import Tensor, nn

from src.embedding.base import EmbeddingSpec
from src.embedding.tied import TiedEmbedding
from src.source import Source


class ScaledEmbedding(TiedEmbedding):
    """Tied embedding times a learned number; 1 parameter more."""

    source = Source("arXiv 2503.10622, section 5", "zlab-princeton/Derf", "8dd9ea3cc703")

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__(spec)
        self.scale = nn.Parameter(torch.full((1,), spec.n_embd**0.5))

    def forward(self, idx_BT: Tensor) -> Tensor:
        return self.scale * super().forward(idx_BT)
