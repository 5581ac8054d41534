"""Base class of value embeddings: one token table for each of some layers, looked up once per forward.

    scale_j * table_j[idx]      for the j-th layer with a table

Shape letters: B batch, T tokens, D n_embd, J layers with a table, R = J * vocab_size rows.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bounds import NonNegativeFloat
from src.embedding.base import EmbeddingSpec, Lookup
from src.embedding.tied import TiedEmbedding


class ValueTables(TiedEmbedding):
    """Tied embedding with J tables, J * V * D + J parameters more; subclasses define where rows are added.

    Args:
        layers: indices of the layers with a table; negative ones count from the last, duplicates count once
            ([1, 2, -3, -2, -1] in the source).
        table_std: standard deviation of the initial tables (0.01 in the source).
        scale_init: initial weight of each table (0.5 in the source).

    Raises:
        ValueError: `layers` is empty, or an index is not in [-n_layer, n_layer).
    """

    def __init__(
        self, spec: EmbeddingSpec, *, layers: list[int], table_std: NonNegativeFloat, scale_init: float
    ) -> None:
        super().__init__(spec)
        if not layers:
            raise ValueError("embedding.layers must name at least one layer; for none use embedding=tied")
        for layer in layers:
            if not -spec.n_layer <= layer < spec.n_layer:
                raise ValueError(
                    f"embedding.layers must be between {-spec.n_layer} and {spec.n_layer - 1}, got {layer}; "
                    "remove it or give a larger model.n_layer"
                )
        self.slots = {layer: j for j, layer in enumerate(sorted({layer % spec.n_layer for layer in layers}))}
        self.table_std, self.vocab_size = table_std, spec.vocab_size
        self.table_RD = nn.Parameter(torch.zeros(len(self.slots) * spec.vocab_size, spec.n_embd))
        self.scale_J = nn.Parameter(torch.full((len(self.slots),), scale_init))

    def reset(self) -> None:
        nn.init.normal_(self.table_RD, std=self.table_std)

    def lookup(self, idx_BT: Tensor) -> Lookup:
        """Return the rows [B, T, D] of each table; one lookup has one dense gradient in its backward, not J."""
        first_J = self.vocab_size * torch.arange(len(self.slots), device=idx_BT.device)
        return F.embedding(idx_BT + first_J[:, None, None], self.table_RD).unbind()

    def scale_rows(self, lookup: Lookup, layer: int) -> Tensor | None:
        """Return the scaled rows [B, T, D] of a layer, or None if it has no table."""
        j = self.slots.get(layer)
        return None if j is None else self.scale_J[j] * lookup[j]

    def get_num_lookup_params(self) -> int:
        return self.table_RD.numel()
