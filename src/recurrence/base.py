"""Contract of a recurrence: the order in which layers are visited, and the step at which repeated visits start.

    visits        layers in order, each with the sublayers that are visited; by default every layer once
    start_step    before this step the trunk skips all but the first visit to each layer
    gain          factor on the outputs of repeated visits from then on
    loops         visits between whose groups the stream passes an adapter, the only parameters of a recurrence

Visits are fixed for a run, so that every per-visit parameter belongs to the same visit throughout. A constructor takes
`(spec, *, <the keys of the YAML>)`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from src.source import Source

Kind = Literal["attn", "mlp"]
BOTH: tuple[Kind, ...] = ("attn", "mlp")


@dataclass(frozen=True)
class RecurrenceSpec:
    """Description of the trunk that a recurrence is built for.

    Args:
        n_layer, n_embd: sizes of the trunk.
        bias: whether linear maps have biases.
    """

    n_layer: int
    n_embd: int
    bias: bool


@dataclass(frozen=True)
class Visit:
    """One visit to a layer."""

    layer: int
    kinds: tuple[Kind, ...] = BOTH


class LoopAdapter(nn.Module, ABC):
    """Map of the stream where a loop starts; needs a strategy whose state is one tensor [B, T, D].

    The stream where the first loop starts is the anchor e. The trunk computes

        x <- begin(e)                                  before the first loop
        x <- forward(x, e)                             before each loop, under autocast
        x <- ln_f(x)                                   after the last loop, if `Loops.norm_after`
    """

    @abstractmethod
    def begin(self, anchor_BTD: Tensor) -> Tensor:
        """Return the stream before the first loop."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, anchor_BTD: Tensor) -> Tensor:
        """Return the stream at the start of a loop."""

    def reset(self) -> None:
        """Draw initial values; called once, seeded, after those of the trunk, the embedding and the strategy."""
        return


@dataclass(frozen=True)
class Loops:
    """Loops of a recurrence with an adapter.

    Args:
        starts: positions in `visits()` of the visits that start a loop.
        end: position of the first visit after the loops; equal to the number of visits if there is none.
        norm_after: whether the final norm is applied after the last loop as well.
    """

    starts: frozenset[int]
    end: int
    norm_after: bool


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
    def loops(self) -> Loops | None:
        """Loops at whose starts the stream passes the adapter; None without an adapter."""
        return None

    def build_adapter(self) -> LoopAdapter:
        """Build the adapter of `loops`."""
        raise NotImplementedError

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
