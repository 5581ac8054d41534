"""What the value embeddings share: a token table for each of some layers, looked up once a forward.

    table_j[idx] * scale_j      for the j-th of the layers

Shape letters: B batch, T tokens, D n_embd, J layers with a table, R = J * vocab_size rows.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.embedding.base import EmbeddingSpec, Lookup
from src.embedding.tied import TiedEmbedding


class ValueTables(TiedEmbedding):
    """As tied; adds J * V * D + J parameters. Subclasses say where the tables' rows go.

    Args:
        spec: the model.
        layers: layers that have a table; negative ones count from the last. Those named twice have one.
        table_std: standard deviation of the tables' initial values.
        scale_init: initial weight of each table.
    """

    def __init__(self, spec: EmbeddingSpec, *, layers: list[int], table_std: float, scale_init: float) -> None:
        super().__init__(spec)
        if not layers:
            raise ValueError("embedding.layers must name at least one layer; for none use embedding=tied")
        for layer in layers:
            if not -spec.n_layer <= layer < spec.n_layer:
                raise ValueError(
                    f"embedding.layers must lie between {-spec.n_layer} and {spec.n_layer - 1}, got {layer}; "
                    "leave it out or give a larger model.n_layer"
                )
        self.slots = {layer: j for j, layer in enumerate(sorted({layer % spec.n_layer for layer in layers}))}
        self.table_std, self.vocab_size = table_std, spec.vocab_size
        self.table_RD = nn.Parameter(torch.zeros(len(self.slots) * spec.vocab_size, spec.n_embd))
        self.scale_J = nn.Parameter(torch.full((len(self.slots),), scale_init))

    def reset(self) -> None:
        nn.init.normal_(self.table_RD, std=self.table_std)

    def lookup(self, idx_BT: Tensor) -> Lookup:
        """Each table's rows [B, T, D], in one lookup: its backward makes one dense gradient, not J."""
        first_J = self.vocab_size * torch.arange(len(self.slots), device=idx_BT.device)
        return F.embedding(idx_BT + first_J[:, None, None], self.table_RD).unbind()

    def addition(self, lookup: Lookup, layer: int) -> Tensor | None:
        """The scaled rows of one layer, [B, T, D], where it has a table."""
        j = self.slots.get(layer)
        return None if j is None else self.scale_J[j] * lookup[j]

    def get_num_lookup_params(self) -> int:
        return self.table_RD.numel()
