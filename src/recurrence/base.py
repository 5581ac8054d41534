"""The contract of a recurrence: the order in which layers are visited, and from when on.

    visits = the layers, each with the sublayers that a visit takes; by default every layer once, in order
    before `start_step` the trunk leaves out all but the first visit to each layer
    from there on a repeated visit's outputs enter the stream times `gain`

The visits are fixed for a run, so that parameters by visit have one owner throughout. A constructor takes
`(spec, *, <the keys of its YAML>)`.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["attn", "mlp"]
BOTH: tuple[Kind, ...] = ("attn", "mlp")


@dataclass(frozen=True)
class RecurrenceSpec:
    """What a recurrence is told about the trunk."""

    n_layer: int


@dataclass(frozen=True)
class Visit:
    """One visit to a layer."""

    layer: int
    kinds: tuple[Kind, ...] = BOTH


class Recurrence:
    """Every layer once, in order; subclasses change that.

    Args:
        spec: the trunk.
    """

    def __init__(self, spec: RecurrenceSpec) -> None:
        self.spec = spec

    def visits(self) -> tuple[Visit, ...]:
        """All visits, in order; every layer has one at least."""
        return tuple(Visit(layer) for layer in range(self.spec.n_layer))

    @property
    def untied(self) -> frozenset[int]:
        """The layers whose repeated visits have an MLP of their own."""
        return frozenset()

    @property
    def delayed(self) -> bool:
        """Whether repeated visits begin after the run has."""
        return False

    def start_step(self, max_steps: int) -> int:
        """The first optimizer step (0-based) with repeated visits."""
        return 0

    def gain(self, step: int, max_steps: int) -> float:
        """The weight of a repeated visit's outputs at `step`, from 0 to 1."""
        return 1.0
