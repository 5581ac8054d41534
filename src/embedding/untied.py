"""Untied embedding: x0 = wte[idx] + wpe[position]; the head has its own table, zero at init.

Source: MLS-Bench llm-pretrain-embedding, baseline `untied`.
At init: every logit is 0, so the first loss is exactly ln V.
Shape letters: B batch, T tokens, D n_embd, V vocab_size.
"""

from torch import Tensor, nn

from src.embedding.base import EmbeddingSpec
from src.embedding.tied import TiedEmbedding
from src.source import Source


class UntiedEmbedding(TiedEmbedding):
    """Tied embedding with a separate head; V * D parameters more."""

    source = Source("MLS-Bench llm-pretrain-embedding, baseline untied")

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__(spec)
        self.lm_head = nn.Linear(spec.n_embd, spec.vocab_size, bias=False)

    def reset(self) -> None:
        nn.init.zeros_(self.lm_head.weight)

    def get_lm_head_weight(self) -> Tensor:
        return self.lm_head.weight

    def get_num_lookup_params(self) -> int:
        return self.wte.weight.numel()
