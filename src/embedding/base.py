"""The contract of an embedding: tokens in, the stream's start x0 out, and the head's weight.

The methods are those of the embedding benchmark (MLS-Bench llm-pretrain-embedding), so that a
`TokenEmbedding` written for it fits: `forward`, `get_lm_head_weight`, `get_num_pos_params`,
`get_value_embed`. Constructors take `(spec, *, <the keys of their YAML>)`.
Shape letters: B batch, T tokens, D n_embd, V vocab_size.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class EmbeddingSpec:
    """What an embedding is told about the model."""

    vocab_size: int
    n_embd: int
    block_size: int
    n_layer: int
    dropout: float


class TokenEmbedding(nn.Module, ABC):
    """Tokens to stream, and the head's weight."""

    @abstractmethod
    def forward(self, idx_BT: Tensor) -> Tensor:
        """Token ids [B, T] -> x0 [B, T, D]."""

    @abstractmethod
    def get_lm_head_weight(self) -> Tensor:
        """The head's weight [V, D]."""

    @abstractmethod
    def get_num_pos_params(self) -> int:
        """How many parameters encode positions (left out of the customary parameter count)."""

    def reset(self) -> None:
        """Change the initial weights after the model-wide N(0, 0.02); by default nothing changes."""
        return

    def get_value_embed(self, layer: int) -> Tensor | None:
        """A per-layer embedding [B, T, D] of the last forward's tokens, or None."""
        return None
