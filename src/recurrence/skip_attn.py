"""Layers without attention: a visit to them takes their MLP alone.

The attention of those layers does not exist.

Source: openai/parameter-golf, pull request 1204 (layer 0); KellerJordan/modded-nanogpt (layer 7 of 11).
"""

from src.recurrence.base import Recurrence, RecurrenceSpec, Visit


class SkipAttention(Recurrence):
    """4 * D^2 parameters fewer a layer.

    Args:
        spec: the trunk.
        layers: the layers without attention, from 0 ([0] in the source).

    Raises:
        ValueError: a layer that is not there, or no attention left.
    """

    def __init__(self, spec: RecurrenceSpec, *, layers: list[int]) -> None:
        super().__init__(spec)
        last = spec.n_layer - 1
        if not layers or not all(0 <= layer <= last for layer in layers):
            raise ValueError(
                f"recurrence.layers must name layers between 0 and {last}, got {list(layers)}; for none use "
                "recurrence=none"
            )
        if len(set(layers)) == spec.n_layer:
            raise ValueError(f"recurrence.layers must leave a layer with attention, got {list(layers)}")
        self.layers = frozenset(layers)

    def visits(self) -> tuple[Visit, ...]:
        return tuple(
            Visit(layer, ("mlp",)) if layer in self.layers else Visit(layer)
            for layer in range(self.spec.n_layer)
        )
