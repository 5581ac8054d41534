"""Value embeddings in attention: in some layers, values plus the token's row of a table of that layer.

    v <- v + scale_j * table_j[idx]     in the j-th layer with a table;  x0 and the head as in `tied`

v is the projected values of all heads side by side. The source also has a learned weight on v, which the value
projection can absorb.

Source: KellerJordan/modded-nanogpt ("value embeddings", weight 0.5); the layers as in `value_embed`.
At init: not `tied` (tables of std 0.01, weight 0.5).
"""

from torch import Tensor

from src.embedding.base import Lookup
from src.embedding.value_tables import ValueTables


class ValueEmbedAttention(ValueTables):
    """Tables added to values; J * V * D + J parameters more than `tied`, keys of `ValueTables`."""

    def value_addition(self, lookup: Lookup, layer: int) -> Tensor | None:
        return self.scale_rows(lookup, layer)
