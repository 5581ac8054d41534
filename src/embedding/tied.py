"""Tied embedding: x0 = wte[idx] + wpe[position]; the head uses wte.

Without learned positions (`model.positions`) x0 = wte[idx].

Source: GPT-2 (Radford et al. 2019); Press, Wolf, "Using the Output Embedding" (arXiv 1608.05859).
Shape letters: B batch, T tokens, D n_embd, V vocab_size.
"""

import torch
from torch import Tensor, nn

from src.embedding.base import EmbeddingSpec, TokenEmbedding
from src.source import Source


class TiedEmbedding(TokenEmbedding):
    """Token table shared with the head, and learned positions; V * D + block_size * D parameters."""

    source = Source("arXiv 1608.05859, section 3; GPT-2 (Radford et al. 2019), section 2.3")

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__()
        self.wte = nn.Embedding(spec.vocab_size, spec.n_embd)
        self.wpe = nn.Embedding(spec.block_size, spec.n_embd) if spec.learned_positions else None
        self.drop = nn.Dropout(spec.dropout)

    def forward(self, idx_BT: Tensor) -> Tensor:
        dropped_BTD: Tensor = self.drop(self.sum_rows(idx_BT))
        return dropped_BTD

    def sum_rows(self, idx_BT: Tensor) -> Tensor:
        """Return the rows [B, T, D] of the tokens, with those of their positions if these are learned."""
        rows_BTD: Tensor = self.wte(idx_BT)
        if self.wpe is not None:
            rows_BTD = rows_BTD + self.wpe(torch.arange(idx_BT.shape[1], device=idx_BT.device))
        return rows_BTD

    def get_lm_head_weight(self) -> Tensor:
        return self.wte.weight

    def get_num_pos_params(self) -> int:
        return 0 if self.wpe is None else self.wpe.weight.numel()
