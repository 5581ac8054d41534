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
from src.source import QK_NORM, Source


class ValueEmbedAttention(ValueTables):
    """Tables added to values; J * V * D + J parameters more than `tied`, keys of `ValueTables`."""

    source = Source(
        "KellerJordan/modded-nanogpt, records of 2025-01-16 (weights) and of 2026 (five tables)",
        "KellerJordan/modded-nanogpt",
        "f411b3d346aa",
        deviations=(
            "The projected values have no learned weight of their own (0.5 at init in the source), which the value "
            "projection can absorb.",
            "One learned weight per table, as in the record of 2025-01-16; later records gate the tables per head.",
            "The tables have the learning rate and weight decay of the trunk's matrices; the source multiplies them.",
            QK_NORM,
        ),
    )

    def value_addition(self, lookup: Lookup, layer: int, x_BTD: Tensor) -> Tensor | None:
        return self.scale_rows(lookup, layer)
