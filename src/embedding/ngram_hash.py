"""Over-encoding: x0 is the mean of the token's row and of projected rows of hashed n-gram tables.

    x0 = (wte[t_0] + sum_{i=2..n} sum_{j=1..k} E_ij[h_ij] W_ij) / (1 + k (n - 1)) + wpe[position]
    h_ij = (t_0 + t_-1 V + ... + t_{1-i} V^(i-1)) mod m_ij;   t_-s is the token s before, 0 before the sequence

Table number q (from 0) has m + 2 q rows of D / (n k) channels, so that two n-grams seldom collide in all tables. The
head is as in `tied`; without learned positions x0 has no wpe.

Source: Huang et al., "Over-Tokenized Transformer" (arXiv 2501.16975), over-encoding; wenhaochai/marin-pli,
experiments/references/over_vocab_qwen3.py.
At init: not `tied` (the tables are random).
Shape letters: B batch, T tokens, D n_embd, V vocab_size, J tables, C channels of a table, R rows of all tables.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from src.bounds import Count, NonNegativeFloat
from src.embedding.base import EmbeddingSpec
from src.embedding.tied import TiedEmbedding
from src.source import Source


class NgramHash(TiedEmbedding):
    """Tied embedding with J = k (n - 1) tables; about J m C + J C D parameters more.

    Args:
        table_factor: m / vocab_size, with m >= 1.
        max_n: n, the longest n-gram (3 in the source).
        slices: k, tables for each length (1 in the source up to D = 1152, about D / (256 n)).
        table_std: standard deviation of the initial tables (that of the token table).
    """

    source = Source(
        "arXiv 2501.16975, over-encoding",
        "wenhaochai/marin-pli",
        "0eb9600325ed",
        deviations=(
            "The tables have 5 V rows in place of 12.8 million, which would be 8.7 G parameters at GPT-2 Medium.",
            "N-grams reach across the end of a document, with data.document_attention too; the source stops them there.",
            "Initial projections are normal, without the cut at three standard deviations.",
            "Moduli differ by 2, as in the paper; the code that was read has 4, for tables on four devices.",
        ),
    )

    def __init__(
        self,
        spec: EmbeddingSpec,
        *,
        table_factor: Annotated[float, Field(gt=0, le=1e6)],
        max_n: Annotated[int, Field(ge=2, le=16)],
        slices: Count,
        table_std: NonNegativeFloat,
    ) -> None:
        super().__init__(spec)
        rows = round(table_factor * spec.vocab_size)
        if rows < 1 or max_n < 2 or slices < 1 or max_n * slices > spec.n_embd:
            raise ValueError(
                "embedding must have table_factor * model.vocab_size >= 1, max_n >= 2, slices >= 1 and max_n * slices "
                f"<= model.n_embd, got {table_factor} * {spec.vocab_size}, {max_n}, {slices} and {spec.n_embd}; the "
                "source uses max_n=3 slices=1"
            )
        width = spec.n_embd // (max_n * slices)
        self.vocab_size, self.table_std = spec.vocab_size, table_std
        self.lengths = [i for i in range(2, max_n + 1) for _ in range(slices)]
        self.moduli = [rows + 2 * q for q in range(len(self.lengths))]
        self.table_RC = nn.Parameter(torch.empty(sum(self.moduli), width))
        self.proj_JCD = nn.Parameter(torch.empty(len(self.lengths), width, spec.n_embd))
        self.reset()

    def reset(self) -> None:
        nn.init.normal_(self.table_RC, std=self.table_std)
        nn.init.normal_(self.proj_JCD, std=self.proj_JCD.shape[1] ** -0.5)

    def forward(self, idx_BT: Tensor) -> Tensor:
        rows_BTJC = F.embedding(self.hash_rows(idx_BT), self.table_RC)
        # One product sums the projections of all tables.
        ngrams_BTD = rows_BTJC.flatten(-2) @ self.proj_JCD.flatten(0, 1)
        x0_BTD = (self.wte(idx_BT) + ngrams_BTD) / (1 + len(self.lengths))
        if self.wpe is not None:
            x0_BTD = x0_BTD + self.wpe(torch.arange(idx_BT.shape[1], device=idx_BT.device))
        dropped_BTD: Tensor = self.drop(x0_BTD)
        return dropped_BTD

    def hash_rows(self, idx_BT: Tensor) -> Tensor:
        """Return the row of every token in the packed tables, [B, T, J]."""
        columns, first = [], 0
        for length, modulus in zip(self.lengths, self.moduli, strict=True):
            # Horner's rule, from the oldest token to the newest: no product exceeds modulus * V.
            row_BT = torch.zeros_like(idx_BT)
            for back in reversed(range(length)):
                row_BT = (row_BT * self.vocab_size + F.pad(idx_BT, (back, 0))[:, : idx_BT.shape[1]]) % modulus
            columns.append(row_BT + first)
            first += modulus
        return torch.stack(columns, -1)

    def get_num_lookup_params(self) -> int:
        return self.table_RC.numel()
