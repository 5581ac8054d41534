"""Contract of a recurrence: the order in which layers are visited, and the step at which repeated visits start.

    visits        layers in order, each with the sublayers that are visited; by default every layer once
    start_step    before this step the trunk skips all but the first visit to each layer
    gain          factor on the outputs of repeated visits from then on

Visits are fixed for a run, so that every per-visit parameter belongs to the same visit throughout. A constructor takes
`(spec, *, <the keys of the YAML>)`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from src.source import Source

Kind = Literal["attn", "mlp"]
BOTH: tuple[Kind, ...] = ("attn", "mlp")


@dataclass(frozen=True)
class RecurrenceSpec:
    """Description of the trunk that a recurrence is built for."""

    n_layer: int


@dataclass(frozen=True)
class Visit:
    """One visit to a layer."""

    layer: int
    kinds: tuple[Kind, ...] = BOTH


class Recurrence:
    """Base class; visits every layer once, in order."""

    #: Publication and code of the method, and how this form differs from it.
    source: ClassVar[Source]

    def __init__(self, spec: RecurrenceSpec) -> None:
        self.spec = spec

    def visits(self) -> tuple[Visit, ...]:
        """Return all visits in order, at least one per layer."""
        return tuple(Visit(layer) for layer in range(self.spec.n_layer))

    @property
    def untied(self) -> frozenset[int]:
        """Layers whose repeated visits have their own MLP weights."""
        return frozenset()

    @property
    def delayed(self) -> bool:
        """True if repeated visits start after step 0."""
        return False

    def start_step(self, max_steps: int) -> int:
        """Return the first optimizer step (0-based) with repeated visits."""
        return 0

    def gain(self, step: int, max_steps: int) -> float:
        """Return the factor in [0, 1] on the outputs of repeated visits at `step`."""
        return 1.0
