"""Value embeddings added to the stream: before some layers, the token's row of a table of that layer.

    x <- x + scale_j * table_j[idx]     before the j-th layer with a table;  x0 and the head as in `tied`

Source: MLS-Bench llm-pretrain-embedding, baseline `value_embed`.
At init: not `tied` (tables of std 0.01, weight 0.5).
"""

from torch import Tensor

from src.embedding.base import Lookup
from src.embedding.value_tables import ValueTables
from src.source import Source


class ValueEmbed(ValueTables):
    """Tables added to the stream; J * V * D + J parameters more than `tied`, keys of `ValueTables`."""

    source = Source("MLS-Bench llm-pretrain-embedding, baseline value_embed")

    def stream_addition(self, lookup: Lookup, layer: int) -> Tensor | None:
        return self.scale_rows(lookup, layer)
