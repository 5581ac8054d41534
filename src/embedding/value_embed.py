"""Value embeddings added to the stream: before some layers, each token's row of that layer's own table.

    x <- x + scale_j * table_j[idx]     before the j-th of the layers;  x0 and the head as in `tied`

Source: MLS-Bench llm-pretrain-embedding, baseline `value_embed`.
At init: not `tied` (tables of std 0.01, weight 0.5).
"""

from torch import Tensor

from src.embedding.base import Lookup
from src.embedding.value_tables import ValueTables


class ValueEmbed(ValueTables):
    """J * V * D + J parameters besides `tied`; the keys are `ValueTables`'."""

    def stream_addition(self, lookup: Lookup, layer: int) -> Tensor | None:
        return self.addition(lookup, layer)
