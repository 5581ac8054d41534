"""Layers without attention: only the MLP of these layers exists and is visited.

Source: openai/parameter-golf, pull request 1204 (layer 0); KellerJordan/modded-nanogpt (layer 7 of 11).
"""

from src.recurrence.base import Recurrence, RecurrenceSpec, Visit
from src.source import Source


class SkipAttention(Recurrence):
    """Plain order without some attention sublayers; 4 * D^2 parameters fewer per layer.

    Args:
        layers: indices in [0, n_layer) of the layers without attention, not of all ([0] in the source).
    """

    source = Source("openai/parameter-golf, pull request 1204", "openai/parameter-golf", "4908dc46f21e")

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
            Visit(layer, ("mlp",)) if layer in self.layers else Visit(layer) for layer in range(self.spec.n_layer)
        )
