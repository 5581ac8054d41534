"""Value embeddings in attention: in some layers the values take in each token's row of that layer's own table.

    v <- v + scale_j * table_j[idx]     in the j-th of the layers;  x0 and the head as in `tied`

v stands for all heads' values side by side, as projected. The source also has a learned weight on v, which
the value projection takes in.

Source: KellerJordan/modded-nanogpt ("value embeddings", weight 0.5); the layers as in `value_embed`.
At init: not `tied` (tables of std 0.01, weight 0.5).
"""

from torch import Tensor

from src.embedding.base import Lookup
from src.embedding.value_tables import ValueTables


class ValueEmbedAttention(ValueTables):
    """J * V * D + J parameters besides `tied`; the keys are `ValueTables`'."""

    def value_addition(self, lookup: Lookup, layer: int) -> Tensor | None:
        return self.addition(lookup, layer)
