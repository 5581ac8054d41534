"""Hashed bigrams: adds rows of a second table, indexed by a token and its predecessor, before every layer.

    row = (36313 * cur XOR 27191 * prev) mod (R - 1);   R - 1 for the first token of a sequence
    x <- x + scale[l] * table[row]      before layer l;  x0 and the head as in `tied`

Source: MLS-Bench llm-pretrain-embedding, baseline `bigram_hash` (R = 5 V); KellerJordan/modded-nanogpt.
At init (table 0): `tied`. Bigrams reach across the end of a document, with `data.document_attention` too.
Shape letters: B batch, T tokens, D n_embd, L n_layer, R rows of the table.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from src.embedding.base import EmbeddingSpec, Lookup
from src.embedding.tied import TiedEmbedding
from src.source import Source

CURRENT, PREVIOUS = 36313, 27191


class BigramHash(TiedEmbedding):
    """Tied embedding with a bigram table; R * D + n_layer parameters more.

    Args:
        table_factor: R / vocab_size, with R >= 2 (5 in the source: 257 M parameters at GPT-2 Medium).
        scale_init: initial weight of the table in each layer (0.1 in the source).
    """

    source = Source("MLS-Bench llm-pretrain-embedding, baseline bigram_hash")

    def __init__(
        self, spec: EmbeddingSpec, *, table_factor: Annotated[float, Field(gt=0, le=1e6)], scale_init: float
    ) -> None:
        super().__init__(spec)
        rows = round(table_factor * spec.vocab_size)
        if rows < 2:
            raise ValueError(
                f"embedding.table_factor must give a table of >= 2 rows, got {table_factor} times "
                f"model.vocab_size={spec.vocab_size}; the source uses 5"
            )
        self.table_RD = nn.Parameter(torch.zeros(rows, spec.n_embd))
        self.scale_L = nn.Parameter(torch.full((spec.n_layer,), scale_init))

    def lookup(self, idx_BT: Tensor) -> Lookup:
        return (F.embedding(self.hash_rows(idx_BT), self.table_RD),)

    def hash_rows(self, idx_BT: Tensor) -> Tensor:
        """Return the row of every token, [B, T]."""
        last = len(self.table_RD) - 1
        hashed_BT = (CURRENT * idx_BT[:, 1:] ^ PREVIOUS * idx_BT[:, :-1]) % last
        return F.pad(hashed_BT, (1, 0), value=last)

    def stream_addition(self, lookup: Lookup, layer: int) -> Tensor | None:
        return self.scale_L[layer] * lookup[0]

    def get_num_lookup_params(self) -> int:
        return self.table_RD.numel()
